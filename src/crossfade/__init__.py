"""Crossfade: event streams on Redis Streams or Kafka, and live traffic moved between them exactly once."""
