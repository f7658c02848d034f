"""Writes records at a steady rate, each with the moment at which it was written, until it is told to stop.

Every few milliseconds a small batch goes to the next lane, as from a service with a short linger: 10,000 records/s are
200 batches/s. `python -m bench.live_writer redis|kafka ADDRESS NAME LANES RATE VALUE_BYTES`; prints how many it wrote.
"""

from __future__ import annotations

import signal
import socket
import sys
import time
from typing import Any, Protocol

import hiredis
from confluent_kafka import Producer

from .prefill import make_values

_TICK_S = 0.005
#: its stub knows one-element tuples only
PACK: Any = hiredis.pack_command
_HEAD = b'{"at":"%016d","body":"'
#: where the moment stands in a value, in microseconds since the epoch
AT = slice(7, 23)


class _Sink(Protocol):
    def send(self, lane: int, key: bytes, values: list[bytes]) -> None: ...

    def finish(self) -> int: ...


class _RedisSink:
    def __init__(self, address: str, pattern: str, lanes: int) -> None:
        self._link = socket.create_connection(("127.0.0.1", int(address)))
        self._link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._keys = [pattern.replace("<lane>", str(lane)).encode() for lane in range(lanes)]
        self._reader = hiredis.Reader()
        self._sent = self._answered = 0

    def send(self, lane: int, key: bytes, values: list[bytes]) -> None:
        stream = self._keys[lane]
        self._link.sendall(b"".join([PACK((b"XADD", stream, b"*", b"key", key, b"value", v)) for v in values]))
        self._sent += len(values)
        self._take()

    def finish(self) -> int:
        while self._answered < self._sent:
            self._take()
        return self._answered

    def _take(self) -> None:
        if self._answered == self._sent:
            return
        self._reader.feed(self._link.recv(1 << 16))
        while (answer := self._reader.gets()) is not False:
            if isinstance(answer, Exception):
                raise SystemExit(f"Redis refused a record: {answer}")
            self._answered += 1


class _KafkaSink:
    def __init__(self, address: str, topic: str) -> None:
        self._topic = topic
        self._sent = 0
        self._producer = Producer(
            {
                "bootstrap.servers": address,
                "enable.idempotence": True,
                "compression.type": "lz4",
                "linger.ms": 1,
                "delivery.report.only.error": True,
                "on_delivery": _on_delivery,
                "log_level": 0,
            }
        )

    def send(self, lane: int, key: bytes, values: list[bytes]) -> None:
        for value in values:
            self._producer.produce(self._topic, value, key, lane)
        self._sent += len(values)
        self._producer.poll(0)

    def finish(self) -> int:
        return self._sent - self._producer.flush(30)


def _on_delivery(error: object, _: object) -> None:
    if error is not None:
        raise SystemExit(f"Kafka refused a record: {error}")


def main(kind: str, address: str, name: str, lanes: int, rate: float, value_bytes: int) -> None:
    """Write until SIGTERM, then print the number of records."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    sink: _Sink = _RedisSink(address, name, lanes) if kind == "redis" else _KafkaSink(address, name)
    values = make_values(lanes, value_bytes)
    keys = [values.keys[values.lane_of.index(lane)] for lane in range(lanes)]
    # The body of an ordinary value, cut to what the moment leaves.
    bodies = [values.value(id)[len(_HEAD % 0) :] for id in range(5000)]
    sent = tick = 0
    started = time.monotonic()
    while not stopping:
        due = int((time.monotonic() - started) * rate) - sent
        if due > 0:
            head = _HEAD % (time.time_ns() // 1000)
            sink.send(tick % lanes, keys[tick % lanes], [head + bodies[(sent + i) % 5000] for i in range(due)])
            sent += due
            tick += 1
        time.sleep(_TICK_S)
    print(sink.finish(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]), int(sys.argv[6]))
