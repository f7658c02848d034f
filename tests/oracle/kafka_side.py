"""Reads a Kafka topic's committed records with kafka-python."""

from __future__ import annotations

import time
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from .rows import Lane, record_row

#: no progress for so long is an error, never a pass
STALL_S = 60.0


def read_kafka(bootstrap: str, topic: str, lanes: int, properties: dict[str, Any]) -> dict[int, Lane]:
    """Everything committed in partitions 0 .. `lanes` - 1 up to the last stable offset at the start."""
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap.split(","),
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="none",
        check_crcs=False,
        max_poll_records=20_000,
        fetch_max_bytes=64 << 20,
        max_partition_fetch_bytes=4 << 20,
        **properties,
    )
    found = consumer.partitions_for_topic(topic) or set()
    if not set(range(lanes)) <= set(found):
        raise RuntimeError(f"topic {topic} has partitions {sorted(found)}, expected 0 to {lanes - 1}")
    partitions = [TopicPartition(topic, number) for number in range(lanes)]
    consumer.assign(partitions)
    firsts, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    for partition in partitions:
        consumer.seek(partition, firsts[partition])
    result = {number: Lane() for number in range(lanes)}
    open_partitions = {partition for partition in partitions if firsts[partition] < ends[partition]}
    progress, heard = -1, time.monotonic()
    while open_partitions:
        for partition, records in consumer.poll(timeout_ms=500).items():
            add = result[partition.partition].add
            for record in records:
                row, time_ms = record_row(record.key, record.value, record.headers, record.timestamp)
                add(record.offset, 0, row, time_ms)
        places = {partition: consumer.position(partition) for partition in open_partitions}
        open_partitions = {partition for partition in open_partitions if places[partition] < ends[partition]}
        if sum(places.values()) != progress:
            progress, heard = sum(places.values()), time.monotonic()
        elif time.monotonic() - heard > STALL_S:
            raise RuntimeError(f"no progress for {STALL_S:.0f} s before the end of {sorted(open_partitions)}")
    consumer.close()
    return result
