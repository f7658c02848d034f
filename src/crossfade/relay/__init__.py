"""The exactly-once copier: one process over its lanes. It sees brokers through `brokers.protocol` alone."""
