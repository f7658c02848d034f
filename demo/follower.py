"""An outsider that reads a target while it is written: `python -m demo.follower --kafka ... | --redis ...`.

It knows nothing of the relay: a read_committed consumer, or XREAD. For each bite that it reads it writes one JSON line
`{"at": s, "lanes": {lane: [records, newest time in ms]}, "ms": [sampled latencies]}` to its file. A record's latency is
its arrival here minus its own time: the Kafka timestamp, or the milliseconds of the entry id (an `xf` field with `t=`
gives the own time where the id cannot). At most 2,000 records/s are sampled. Runs as a process of the demo.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO, TypeAlias

#: what one bite holds: per lane the times of its records, in milliseconds
Bite: TypeAlias = dict[int, list[int]]

SAMPLES_MAX_PER_S = 2000
_OWN_TIME = re.compile(rb";t=(-?\d+)")


class Writer:
    """Writes bites to the file, flushed line by line."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._tokens = float(SAMPLES_MAX_PER_S)
        self._at_s = time.monotonic()

    def write(self, at_s: float, bite: Bite) -> None:
        """One line for one bite that arrived at `at_s` (wall clock)."""
        records = sum(map(len, bite.values()))
        if not records:
            return
        now = time.monotonic()
        self._tokens = min(SAMPLES_MAX_PER_S / 10, self._tokens + (now - self._at_s) * SAMPLES_MAX_PER_S)
        self._at_s = now
        allowed = max(1, int(self._tokens))
        stride = -(-records // allowed)
        arrived_ms = at_s * 1000
        sampled = [
            round(arrived_ms - time_ms, 1) for times in bite.values() for time_ms in times[stride // 2 :: stride]
        ]
        self._tokens -= len(sampled)
        lanes = {lane: [len(times), max(times)] for lane, times in bite.items()}
        self._out.write(json.dumps({"at": round(at_s, 4), "lanes": lanes, "ms": sampled}) + "\n")
        self._out.flush()


def follow_kafka(bootstrap: str, topic: str, lanes: int) -> Iterator[tuple[float, Bite]]:
    """Committed records of all partitions, from the first on."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "demo-follower",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.queue.backoff.ms": 10,
            "fetch.wait.max.ms": 100,
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,
        }
    )
    consumer.assign([TopicPartition(topic, lane, 0) for lane in range(lanes)])
    while True:
        messages = consumer.consume(2000, 0.02)
        at_s = time.time()
        bite: Bite = {}
        for message in messages:
            if message.error() is None:
                bite.setdefault(message.partition() or 0, []).append(message.timestamp()[1])
        yield at_s, bite


def follow_redis(url: str, pattern: str, lanes: int) -> Iterator[tuple[float, Bite]]:
    """Entries of all stream keys, from the first on."""
    import redis

    client: Any = redis.Redis.from_url(url, socket_timeout=10, protocol=2)
    client.response_callbacks.clear()  # fields as flat lists, as the server gives them
    lane_of = {pattern.replace("<lane>", str(lane)).encode(): lane for lane in range(lanes)}
    after: dict[bytes, bytes] = dict.fromkeys(lane_of, b"0-0")
    while True:
        command = [b"XREAD", b"COUNT", b"500", b"BLOCK", b"100", b"STREAMS", *after, *after.values()]
        try:
            found = client.execute_command(*command) or []
        except redis.ConnectionError:
            time.sleep(0.05)  # not a synchronisation: the server is away, ask again
            continue
        at_s = time.time()
        bite: Bite = {}
        for key, entries in found:
            bite[lane_of[key]] = [_time_of(entry_id, fields) for entry_id, fields in entries]
            after[key] = entries[-1][0]
        yield at_s, bite


def _time_of(entry_id: bytes, fields: list[bytes]) -> int:
    if b"xf" in fields and (found := _OWN_TIME.search(fields[fields.index(b"xf") + 1])):
        return int(found[1])
    return int(entry_id.partition(b"-")[0])


def main() -> int:
    """Follow until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m demo.follower", description=__doc__)
    parser.add_argument("--kafka", metavar="BOOTSTRAP")
    parser.add_argument("--topic", default="messages.v1")
    parser.add_argument("--redis", metavar="URL")
    parser.add_argument("--pattern", default="back:stream:<lane>")
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if options.kafka:
        bites = follow_kafka(options.kafka, options.topic, options.lanes)
    else:
        bites = follow_redis(options.redis, options.pattern, options.lanes)
    with options.out.open("w") as out:
        writer = Writer(out)
        for at_s, bite in bites:
            writer.write(at_s, bite)
    return 0


if __name__ == "__main__":
    sys.exit(main())
