"""Reads a target as an application would, and notes when each record arrived.

Kafka: a read_committed consumer; Redis: a blocking XREAD over all stream keys. On SIGTERM it writes what it saw as
64-bit numbers: written (microseconds since the epoch), arrived, lane, one triple a record.
`python -m bench.live_reader redis|kafka ADDRESS NAME LANES FILE`.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hiredis
from confluent_kafka import Consumer, TopicPartition

from .live_writer import AT, PACK

#: takes (written_us, arrived_us, lane) triples
Seen = array


def _read_kafka(address: str, topic: str, lanes: int, is_stopping: Callable[[], bool], seen: Seen[int]) -> None:
    consumer = Consumer(
        {
            "bootstrap.servers": address,
            "group.id": f"bench-live-{topic}",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "fetch.queue.backoff.ms": 10,
            "log_level": 0,
        }
    )
    consumer.assign([TopicPartition(topic, lane, 0) for lane in range(lanes)])
    while not is_stopping():
        message: Any = consumer.poll(0.1)
        if message is not None and message.error() is None:
            value = message.value()
            seen.extend((int(value[AT]), time.time_ns() // 1000, message.partition()))
    consumer.close()


def _read_redis(address: str, pattern: str, lanes: int, is_stopping: Callable[[], bool], seen: Seen[int]) -> None:
    keys = [pattern.replace("<lane>", str(lane)).encode() for lane in range(lanes)]
    lane_of = {key: lane for lane, key in enumerate(keys)}
    last: dict[bytes, bytes] = dict.fromkeys(keys, b"0")
    link = socket.create_connection(("127.0.0.1", int(address)))
    reader = hiredis.Reader()
    while not is_stopping():
        link.sendall(PACK((b"XREAD", b"COUNT", b"2000", b"BLOCK", b"200", b"STREAMS", *keys, *last.values())))
        while (answer := reader.gets()) is False:
            reader.feed(link.recv(1 << 18))
        arrived_us = time.time_ns() // 1000
        for key, entries in answer or ():
            last[key] = entries[-1][0]
            lane = lane_of[key]
            for _, fields in entries:
                seen.extend((int(fields[fields.index(b"value") + 1][AT]), arrived_us, lane))


def main(kind: str, address: str, name: str, lanes: int, file: Path) -> None:
    """Read until SIGTERM, then write the file."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    seen: Seen[int] = array("q")
    read = _read_redis if kind == "redis" else _read_kafka
    read(address, name, lanes, lambda: bool(stopping), seen)
    file.write_bytes(seen.tobytes())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), Path(sys.argv[5]))
