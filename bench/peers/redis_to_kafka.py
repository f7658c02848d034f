"""The loop that teams write by hand, Redis -> Kafka: XREADGROUP, produce, flush, XACK. At least once.

Best settings found: redis-py with its C parser, idempotent producer with large lz4 batches, one XACK per stream key in
one pipeline. Run as `python -m bench.peers.redis_to_kafka PORT PATTERN LANES BOOTSTRAP TOPIC BATCH`.
"""

from __future__ import annotations

import sys

import redis
from confluent_kafka import Producer

_GROUP = "hand"


def main(port: int, pattern: str, lanes: int, bootstrap: str, topic: str, batch: int) -> None:
    """Copy until stopped."""
    client = redis.Redis(port=port, protocol=2)
    names = [pattern.replace("<lane>", str(lane)).encode() for lane in range(lanes)]
    lane_of = {name: lane for lane, name in enumerate(names)}
    for name in names:
        client.xgroup_create(name, _GROUP, "0")
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "acks": "all",
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 5,
            "batch.size": 1 << 20,
            "log_level": 0,
        }
    )
    wanted: dict[bytes, str] = dict.fromkeys(names, ">")
    # COUNT holds for each stream key by itself
    count = max(1, batch // lanes)
    while True:
        found = client.xreadgroup(_GROUP, "hand-1", wanted, count=count, block=1000)
        for name, entries in found:
            lane = lane_of[name]
            for id, fields in entries:
                time_ms = int(id.split(b"-")[0])
                producer.produce(topic, fields[b"value"], fields[b"key"], lane, timestamp=time_ms)
        producer.flush()
        acks = client.pipeline(transaction=False)
        for name, entries in found:
            acks.xack(name, _GROUP, *[id for id, _ in entries])
        acks.execute()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4], sys.argv[5], int(sys.argv[6]))
