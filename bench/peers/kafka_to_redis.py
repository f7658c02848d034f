"""The loop that teams write by hand, Kafka -> Redis: consume, XADD in a pipeline, commit. At least once.

Best settings found: redis-py with its C parser, `fetch.queue.backoff.ms` of 10 (the default of a second starves the
loop), one synchronous commit per batch. Run as
`python -m bench.peers.kafka_to_redis BOOTSTRAP TOPIC PORT PATTERN LANES BATCH`.
"""

from __future__ import annotations

import sys

import redis
from confluent_kafka import Consumer, TopicPartition


def main(bootstrap: str, topic: str, port: int, pattern: str, lanes: int, batch: int) -> None:
    """Copy until stopped."""
    client = redis.Redis(port=port, protocol=2)
    names = [pattern.replace("<lane>", str(lane)).encode() for lane in range(lanes)]
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"hand-{pattern}",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "fetch.queue.backoff.ms": 10,
            "queued.max.messages.kbytes": 1 << 17,
            "log_level": 0,
        }
    )
    consumer.assign([TopicPartition(topic, lane, 0) for lane in range(lanes)])
    while True:
        messages = consumer.consume(batch, 0.1)
        if not messages:
            continue
        pipe = client.pipeline(transaction=False)
        for message in messages:
            if message.error() is None:
                pipe.xadd(names[message.partition()], {b"key": message.key(), b"value": message.value()})
        pipe.execute()
        consumer.commit(asynchronous=False)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))
