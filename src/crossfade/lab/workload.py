"""A workload of unique, keyed records that remembers every send: `python -m crossfade.lab.workload --help`.

Each record carries its id in its value; the lane follows from the key, so order per key is order per lane. Sends are
pipelined; a link that is cut leaves its sends *unknown* (they may or may not have happened) and they are never sent
again, so a record is in the source at most once. SIGTERM ends it in good order; the same history file goes on later.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import socket
import ssl
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import hiredis

from ..model.partitioner import partition_many
from .history import FAIL, FAILED, INFO, OK, UNKNOWN, HistoryWriter, digest_of, digest_of_entry, read_history

#: one write of a pipeline
BATCH_RECORDS_MAX = 500
#: without an answer for so long a link counts as cut
ANSWER_TIMEOUT_S = 5.0
RECONNECT_PAUSE_S = 0.1

#: its stub knows one-element tuples only
_PACK: Any = hiredis.pack_command

_HEAD, _TAIL = b'{"id":"', b'"}'


class Values:
    """Makes the records: 512-byte texts that LZ4 halves, a few thousand keys, all a function of seed and id."""

    def __init__(self, *, seed: int, keys: int, lanes: int, value_bytes: int) -> None:
        rng = random.Random(seed)
        self.keys = [b"user-%06d" % number for number in range(keys)]
        self.lane_of = partition_many("murmur2", self.keys, lanes)
        self._body = max(0, value_bytes - len(_HEAD) - 16 - len(b'","body":"') - len(_TAIL))
        self._text = _half_compressible_text(rng, 1 << 21)
        self._span = len(self._text) - self._body

    def key_index(self, id: int) -> int:
        """Which key record `id` has: spread evenly, neighbours differ."""
        return (id * 2654435761 >> 7) % len(self.keys)

    def value(self, id: int) -> bytes:
        """The value of record `id`."""
        at = id * 40503 % self._span
        return b'{"id":"%016d","body":"%b"}' % (id, self._text[at : at + self._body])


def _half_compressible_text(rng: random.Random, size_bytes: int) -> bytes:
    letters = "abcdefghijklmnopqrstuvwxyz"
    noise = letters + letters.upper() + "0123456789+-"
    words = ["".join(rng.choices(letters, k=rng.randint(4, 10))) for _ in range(400)]
    parts: list[str] = []
    size = 0
    while size < size_bytes:
        part = "".join(rng.choices(noise, k=20)) if rng.random() < 0.18 else " ".join(rng.choices(words, k=3))
        parts.append(part)
        size += len(part) + 1
    return " ".join(parts)[:size_bytes].encode()


def mixed_entry(id: int, key: bytes, value: bytes) -> list[bytes]:
    """Fields as other software writes them: the canonical form is one shape of eight."""
    tag = b'{"id":"%016d"}' % id
    shapes: list[list[bytes]] = [
        [b"key", key, b"value", value],
        [b"user", key, b"amount", b"12.50", b"note", value, b"at", b"1700000000"],
        [b"tag", b"a", b"tag", b"b", b"tag", b"a", b"id", tag],
        [b"\xff\x00bin", bytes(range(256)), b"id", tag, b"\r\n", b"$-1\r\n"],
        [b"", b"", b"empty", b"", b"id", tag, b"", b"again"],
        [b"value", value, b"key", key],
        [b"key", key, b"value", value, b"trace", b"00-4bf92f3577b34da6"],
        [b"body", value],
    ]
    return shapes[id % len(shapes)]


def mixed_record(
    id: int, key: bytes, value: bytes
) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]] | None]:
    """Key, value, headers as other software writes them: nulls, tombstones, repeated and binary headers."""
    tag = b'{"id":"%016d"}' % id
    shapes: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]] | None]] = [
        (key, value, None),
        (key, value, [("trace", b"00-4bf92f3577b34da6")]),
        (key, value, [("a", b"1"), ("b", b"2"), ("a", b"1"), ("none", None), ("", b"")]),
        (bytes(range(256)), tag + bytes(range(256)), None),
        (key, b"", [("id", tag)]),
        (key, None, [("id", tag)]),
        (None, value, None),
        (b"", value, [("größe", "ü".encode())]),
    ]
    return shapes[id % len(shapes)]


@dataclass(slots=True)
class Batch:
    """Consecutive records on their way, and what became of each."""

    first: int
    lanes: array[int]
    payload: Any
    outcomes: list[bytes] = field(default_factory=list)


class Sender(Protocol):
    """One kind of broker."""

    #: batches that may be unanswered
    in_flight_max: int

    def prepare(self, first: int, count: int) -> tuple[Batch, array[int]]:
        """Records `first` ... as a batch, and their digests."""
        ...

    def send(self, batch: Batch) -> None: ...

    def settled(self, wait: bool) -> list[Batch]:
        """Batches whose every outcome is known, in order; with `wait` at least one, if any is in flight."""
        ...

    def in_flight(self) -> int: ...

    def close(self) -> None: ...


class RedisSender:
    """Pipelined XADD over one socket; connects again when the link is cut."""

    in_flight_max = 8

    def __init__(self, url: str, pattern: str, values: Values, mixed: bool, is_stopping: Callable[[], bool]) -> None:
        self._url = urlsplit(url)
        self._values = values
        self._mixed = mixed
        self._is_stopping = is_stopping
        self._streams = [pattern.replace("<lane>", str(lane)).encode() for lane in values.lane_of]
        self._prefix = [self._canonical_prefix(index) for index in range(len(values.keys))]
        self._waiting: deque[Batch] = deque()
        self._done: list[Batch] = []
        self._socket: socket.socket | None = None
        self._reader = hiredis.Reader()

    def _canonical_prefix(self, index: int) -> bytes:
        stream, key = self._streams[index], self._values.keys[index]
        head = b"*7\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$1\r\n*\r\n" % (len(stream), stream)
        return head + b"$3\r\nkey\r\n$%d\r\n%b\r\n$5\r\nvalue\r\n$" % (len(key), key)

    def prepare(self, first: int, count: int) -> tuple[Batch, array[int]]:
        values, lanes, digests = self._values, array("H"), array("I")
        parts: list[bytes] = []
        for id in range(first, first + count):
            index = values.key_index(id)
            value = values.value(id)
            lanes.append(values.lane_of[index])
            if self._mixed:
                fields = mixed_entry(id, values.keys[index], value)
                digests.append(digest_of_entry(fields))
                parts.append(_PACK((b"XADD", self._streams[index], b"*", *fields)))
            else:
                digests.append(digest_of(values.keys[index], value))
                parts.append(b"%b%d\r\n%b\r\n" % (self._prefix[index], len(value), value))
        return Batch(first, lanes, b"".join(parts)), digests

    def send(self, batch: Batch) -> None:
        link = self._connected()
        self._waiting.append(batch)
        if link is None:
            self._cut()
            return
        try:
            link.sendall(batch.payload)
        except OSError:
            self._cut()
        batch.payload = b""

    def settled(self, wait: bool) -> list[Batch]:
        while not self._done and self._waiting:
            self._take_answers()
            if self._done or not self._waiting:
                break
            if not wait:
                break
            self._receive()
        done, self._done = self._done, []
        return done

    def _take_answers(self) -> None:
        while self._waiting:
            batch = self._waiting[0]
            missing = len(batch.lanes) - len(batch.outcomes)
            for _ in range(missing):
                answer = self._reader.gets()
                if answer is False:
                    return
                batch.outcomes.append(answer if type(answer) is bytes else FAILED)
            self._done.append(self._waiting.popleft())

    def _receive(self) -> None:
        try:
            data = self._socket.recv(1 << 16) if self._socket else b""
        except OSError:
            data = b""
        if data:
            self._reader.feed(data)
        else:
            self._cut()

    def _cut(self) -> None:
        """Everything unanswered is unknown from now on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        while self._waiting:
            batch = self._waiting.popleft()
            batch.outcomes += [UNKNOWN] * (len(batch.lanes) - len(batch.outcomes))
            self._done.append(batch)

    def _connected(self) -> socket.socket | None:
        """The link, made anew where it is gone; None when told to stop meanwhile."""
        while self._socket is None and not self._is_stopping():
            try:
                self._socket = self._connect()
            except OSError:
                time.sleep(RECONNECT_PAUSE_S)
        return self._socket

    def _connect(self) -> socket.socket:
        url = self._url
        host = url.hostname or "127.0.0.1"
        link = socket.create_connection((host, url.port or 6379), timeout=ANSWER_TIMEOUT_S)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if url.scheme == "rediss":
            context = ssl.create_default_context()
            link = context.wrap_socket(link, server_hostname=host)
        self._reader = hiredis.Reader()
        hello: list[tuple[Any, ...]] = []
        if url.password:
            user = [unquote(url.username).encode()] if url.username else []
            hello.append((b"AUTH", *user, unquote(url.password).encode()))
        if url.path.strip("/"):
            hello.append((b"SELECT", url.path.strip("/").encode()))
        for command in [*hello, (b"PING",)]:
            link.sendall(_PACK(command))
            while (answer := self._reader.gets()) is False:
                data = link.recv(1 << 16)
                if not data:
                    raise ConnectionError("closed")
                self._reader.feed(data)
            if isinstance(answer, Exception):
                if str(answer).startswith(("WRONGPASS", "NOAUTH", "ERR", "NOPERM")):
                    raise SystemExit(f"{host}:{url.port or 6379} says: {answer}")
                raise ConnectionError(str(answer))  # LOADING and the like: later
        return link

    def in_flight(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


class KafkaSender:
    """Idempotent produce into given partitions; outcomes from delivery reports."""

    in_flight_max = 64

    def __init__(self, bootstrap: str, topic: str, values: Values, mixed: bool, properties: dict[str, str]) -> None:
        from confluent_kafka import Producer  # only this mode needs librdkafka

        self._topic = topic
        self._values = values
        self._mixed = mixed
        self._waiting: deque[Batch] = deque()
        self._left: dict[int, int] = {}  # first id of a batch -> outcomes still unknown
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "linger.ms": 5,
                "batch.size": 1 << 20,
                "compression.type": "lz4",
                "queue.buffering.max.messages": 1_000_000,
                "delivery.timeout.ms": 120_000,
                "log_level": 0,
                **properties,
            }
        )

    def prepare(self, first: int, count: int) -> tuple[Batch, array[int]]:
        values, lanes, digests = self._values, array("H"), array("I")
        rows: list[Any] = []
        for id in range(first, first + count):
            index = values.key_index(id)
            key, value = values.keys[index], values.value(id)
            row = mixed_record(id, key, value) if self._mixed else (key, value, None)
            lanes.append(values.lane_of[index])
            digests.append(digest_of(*row))
            rows.append(row)
        return Batch(first, lanes, rows), digests

    def send(self, batch: Batch) -> None:
        batch.outcomes = [b""] * len(batch.lanes)
        self._left[batch.first] = len(batch.lanes)
        self._waiting.append(batch)
        produce, topic, lanes = self._producer.produce, self._topic, batch.lanes
        for index, (key, value, headers) in enumerate(batch.payload):
            report = self._reporter(batch, index)
            while True:
                try:
                    produce(topic, value, key, lanes[index], on_delivery=report, headers=headers)
                    break
                except BufferError:
                    self._producer.poll(0.01)
        batch.payload = None
        self._producer.poll(0)

    def _reporter(self, batch: Batch, index: int) -> Callable[[Any, Any], None]:
        def report(error: Any, message: Any) -> None:
            if error is None:
                batch.outcomes[index] = b"%d" % message.offset()
            else:
                batch.outcomes[index] = UNKNOWN  # librdkafka's time-outs do not tell whether the broker has it
            self._left[batch.first] -= 1

        return report

    def settled(self, wait: bool) -> list[Batch]:
        done: list[Batch] = []
        while True:
            while self._waiting and self._left[self._waiting[0].first] == 0:
                batch = self._waiting.popleft()
                del self._left[batch.first]
                done.append(batch)
            if done or not wait or not self._waiting:
                return done
            self._producer.poll(0.05)

    def in_flight(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        self._producer.flush(5)


@dataclass(slots=True)
class Totals:
    ok: int = 0
    fail: int = 0
    unknown: int = 0

    def add(self, outcomes: list[bytes]) -> None:
        failed, unknown = outcomes.count(FAILED), outcomes.count(UNKNOWN)
        self.fail += failed
        self.unknown += unknown
        self.ok += len(outcomes) - failed - unknown


class Workload:
    """Sends at a rate until enough records are acknowledged, time is up, or it is told to stop."""

    def __init__(self, sender: Sender, history: HistoryWriter, *, next_id: int, totals: Totals) -> None:
        self._sender = sender
        self._history = history
        self._next_id = next_id
        self.totals = totals
        self.is_stopping = False

    def run(self, *, rate: float, seconds: float, records: int, progress: bool) -> None:
        """`rate` records/s (0 = as fast as it goes), `seconds` (0 = no limit), `records` acknowledged in all (0 = no
        limit, resumed ones included)."""
        started = told = time.monotonic()
        sent = 0
        batch_max = int(min(BATCH_RECORDS_MAX, max(1, rate / 200))) if rate else BATCH_RECORDS_MAX
        while not self.is_stopping:
            now = time.monotonic()
            if progress and now - told >= 1:
                told = now
                self._tell(now - started)
            wanted = batch_max
            if records:
                open_records = self._sender.in_flight() * batch_max
                wanted = min(wanted, records - self.totals.ok - open_records)
                if wanted <= 0:
                    if self.totals.ok >= records:
                        break
                    if self._sender.in_flight():
                        self._settle(wait=True)
                        continue
                    wanted = min(batch_max, records - self.totals.ok)
            if seconds and now - started >= seconds:
                break
            if rate and sent > (now - started) * rate:
                self._settle(wait=False)
                time.sleep(min(0.05, sent / rate - (now - started)))
                continue
            batch, digests = self._sender.prepare(self._next_id, wanted)
            self._history.intend(self._next_id, batch.lanes, digests)
            self._next_id += wanted
            sent += wanted
            self._sender.send(batch)
            self._settle(wait=self._sender.in_flight() >= self._sender.in_flight_max)
        while self._sender.in_flight():
            self._settle(wait=True)
        self._settle(wait=False)

    def _settle(self, *, wait: bool) -> None:
        for batch in self._sender.settled(wait):
            self._history.settle(batch.first, batch.outcomes)
            self.totals.add(batch.outcomes)
            if FAILED in batch.outcomes:
                time.sleep(0.05)  # a broker that refuses is not helped by haste

    def _tell(self, elapsed_s: float) -> None:
        line = {"seconds": round(elapsed_s, 1), "ok": self.totals.ok, "fail": self.totals.fail}
        print(json.dumps(line | {"unknown": self.totals.unknown}), flush=True)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m crossfade.lab.workload", description=__doc__)
    parser.add_argument("--redis", metavar="URL", help="redis://[user:password@]host:port[/db]")
    parser.add_argument("--pattern", default="msg:stream:<lane>", help="name of the stream keys")
    parser.add_argument("--kafka", metavar="BOOTSTRAP", help="write to Kafka instead")
    parser.add_argument("--topic", default="messages.v1")
    parser.add_argument("--property", action="append", default=[], metavar="NAME=VALUE", help="for librdkafka")
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--rate", type=float, default=0, help="records per second; 0 = as fast as it goes")
    parser.add_argument("--seconds", type=float, default=0, help="0 = no limit")
    parser.add_argument("--records", type=int, default=0, help="stop when so many are acknowledged; 0 = no limit")
    parser.add_argument("--history", type=Path, required=True, metavar="FILE", help="goes on where it ended")
    parser.add_argument("--keys", type=int, default=4000)
    parser.add_argument("--value-bytes", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mixed", action="store_true", help="shapes that other software writes")
    parser.add_argument("--progress", action="store_true", help="a JSON line each second")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the workload; the last line on stdout is its result as JSON."""
    options = _arguments().parse_args(argv)
    if bool(options.redis) == bool(options.kafka):
        print("give either --redis or --kafka", file=sys.stderr)
        return 2
    totals, next_id = Totals(), 0
    if options.history.exists() and options.history.stat().st_size:
        before = read_history(options.history)
        totals = Totals(before.count(OK), before.count(FAIL), before.count(INFO))
        next_id = len(before)
    values = Values(seed=options.seed, keys=options.keys, lanes=options.lanes, value_bytes=options.value_bytes)
    kind = "redis" if options.redis else "kafka"
    header = {"kind": kind, "seed": options.seed, "lanes": options.lanes, "keys": options.keys, "mixed": options.mixed}
    history = HistoryWriter(options.history, header)
    stop: list[int] = []
    sender: Sender
    if options.redis:
        sender = RedisSender(options.redis, options.pattern, values, options.mixed, lambda: bool(stop))
    else:
        properties = dict(item.split("=", 1) for item in options.property)
        sender = KafkaSender(options.kafka, options.topic, values, options.mixed, properties)
    workload = Workload(sender, history, next_id=next_id, totals=totals)

    def end(number: int, _: object) -> None:
        stop.append(number)
        workload.is_stopping = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    started, first_ok = time.monotonic(), totals.ok
    cpu_before = _cpu_s()
    workload.run(rate=options.rate, seconds=options.seconds, records=options.records, progress=options.progress)
    elapsed_s = time.monotonic() - started
    sender.close()
    history.close()
    written = totals.ok - first_ok
    result = {"ok": totals.ok, "fail": totals.fail, "unknown": totals.unknown, "seconds": round(elapsed_s, 2)}
    result |= {"records_per_s": round(written / max(elapsed_s, 1e-9))}
    result |= {"cpu_us_per_record": round((_cpu_s() - cpu_before) * 1e6 / max(1, written), 2), "done": True}
    print(json.dumps(result), flush=True)
    return 0


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
