"""The judge who knows what was sent: `python -m demo.history_check --direction r2k|k2r ... --history FILE`.

Reads both sides itself and lets `crossfade.lab.checker` compare them with the workload's history of sends
(acknowledged, refused, unknown). Prints one JSON document; exit code 0 where nothing is wrong, 1 where something is.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossfade.lab.checker import check
from crossfade.lab.history import digest_of, digest_of_entry, id_in, read_history

_READ_LIMIT_S = 60.0


def redis_lane(client: Any, key: str) -> Iterator[tuple[int | None, int, object]]:
    """(record id, digest, entry id) of a stream key, in order; an `xf` field that the relay added is left out."""
    after = "-"
    while True:
        entries = client.execute_command("XRANGE", key, after, "+", "COUNT", 5000)
        for entry_id, fields in entries:
            if b"xf" in fields[0::2]:
                at = 2 * fields[0::2].index(b"xf")
                fields = fields[:at] + fields[at + 2 :]
            yield id_in(b" ".join(fields)), digest_of_entry(fields), entry_id
        if len(entries) < 5000:
            return
        after = "(" + entries[-1][0].decode()


@dataclass
class Lane:
    """What was read of one partition: record id (-1 = none), digest and offset of each record, in columns."""

    ids: array[int] = field(default_factory=lambda: array("q"))
    digests: array[int] = field(default_factory=lambda: array("I"))
    offsets: array[int] = field(default_factory=lambda: array("q"))

    def __iter__(self) -> Iterator[tuple[int | None, int, object]]:
        for id, digest, offset in zip(self.ids, self.digests, self.offsets, strict=True):
            yield None if id < 0 else id, digest, offset


def kafka_lanes(consumer: Any, topic: str, count: int) -> dict[int, Lane]:
    """The committed records of all partitions, in order; the `xf` header is left out.

    All at once: one after the other would wait for the broker as many times as there are partitions.
    """
    from confluent_kafka import KafkaError, TopicPartition

    lanes = {lane: Lane() for lane in range(count)}
    consumer.assign([TopicPartition(topic, lane, 0) for lane in lanes])
    unfinished = set(lanes)
    heard_s = time.monotonic()
    while unfinished:
        messages = consumer.consume(2000, 0.05)
        if messages:
            heard_s = time.monotonic()
        elif time.monotonic() > heard_s + _READ_LIMIT_S:
            raise SystemExit(f"{topic}: Kafka gave nothing for {_READ_LIMIT_S:.0f} s, unfinished {sorted(unfinished)}")
        for message in messages:
            error = message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                unfinished.discard(message.partition())
                continue
            if error is not None:
                raise SystemExit(f"{topic}: {error}")
            key, value, lane = message.key(), message.value(), lanes[message.partition()]
            headers = [header for header in message.headers() or () if header[0] != "xf"]
            id = id_in(value or b"")
            lane.ids.append(-1 if id is None else id)
            lane.digests.append(digest_of(key, value, headers))
            lane.offsets.append(message.offset())
    return lanes


def main() -> int:
    """Judge one direction."""
    parser = argparse.ArgumentParser(prog="python -m demo.history_check", description=__doc__)
    parser.add_argument("--direction", choices=["r2k", "k2r"], required=True)
    parser.add_argument("--redis", metavar="URL", required=True)
    parser.add_argument("--pattern", required=True)
    parser.add_argument("--kafka", metavar="BOOTSTRAP", required=True)
    parser.add_argument("--topic", required=True)
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--history", type=Path, required=True)
    options = parser.parse_args()

    import redis
    from confluent_kafka import Consumer

    # Entries as flat lists, repeats kept: redis-py's own answer would be a dict.
    client = redis.Redis.from_url(options.redis, protocol=2)
    client.response_callbacks.clear()
    consumer = Consumer(
        {
            "bootstrap.servers": options.kafka,
            "group.id": "demo-history-check",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.queue.backoff.ms": 10,
            "log_level": 0,
        }
    )
    from_redis = {
        lane: redis_lane(client, options.pattern.replace("<lane>", str(lane))) for lane in range(options.lanes)
    }
    from_kafka = kafka_lanes(consumer, options.topic, options.lanes)
    sides = (from_redis, from_kafka) if options.direction == "r2k" else (from_kafka, from_redis)
    report = check(read_history(options.history), source=sides[0], target=sides[1])
    print(json.dumps(report.as_dict()))
    consumer.close()
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main())
