"""The comparison script that teams write by hand: each stream key beside its partition, record by record.

Reads with XRANGE and `consume`, 2,000 records at a time, and compares key and value of what stands side by side: a
record that is missing makes all that follow differ, and headers, times and marks are not looked at. Run as
`python -m bench.peers.compare PORT PATTERN BOOTSTRAP TOPIC LANES BATCH`; prints records and differences.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import zip_longest

import redis
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

Pair = tuple[bytes, bytes]


def main(port: int, pattern: str, bootstrap: str, topic: str, lanes: int, batch: int) -> None:
    """Compare lane after lane."""
    client = redis.Redis(port=port, protocol=2)
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"compare-{topic}",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.queue.backoff.ms": 10,
            "queued.max.messages.kbytes": 1 << 17,
            "log_level": 0,
        }
    )
    records = differences = 0
    for lane in range(lanes):
        consumer.assign([TopicPartition(topic, lane, OFFSET_BEGINNING)])
        sides = _entries(client, pattern.replace("<lane>", str(lane)), batch), _messages(consumer, batch)
        for one, other in zip_longest(*sides):
            records += 1
            differences += one != other
    consumer.close()
    print(f"{records} records, {differences} differences")


def _entries(client: redis.Redis, key: str, batch: int) -> Iterator[Pair]:
    after = b"-"
    while found := client.xrange(key, after, count=batch):
        for _, fields in found:
            yield fields[b"key"], fields[b"value"]
        after = b"(" + found[-1][0]


def _messages(consumer: Consumer, batch: int) -> Iterator[Pair]:
    while True:
        for message in consumer.consume(batch, 1.0):
            error = message.error()
            if error is None:
                yield message.key(), message.value()
            elif error.code() == KafkaError._PARTITION_EOF:
                return


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
