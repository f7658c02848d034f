"""How the workload sends: pipelined XADD over one socket, or idempotent produce; and what became of each record.

Invariants: a record whose send was cut is never sent again and stays UNKNOWN, so a source holds a record at most once;
what waiting cannot help (no first link, a refusal that stays) ends the sending with an error. Called by `workload`.
"""

from __future__ import annotations

import socket
import ssl
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

import hiredis

from .errors import LabError, LabUsage
from .history import FAILED, UNKNOWN, digest_of, digest_of_entry
from .payloads import Values, mixed_entry, mixed_record

#: without an answer for so long a link counts as cut
ANSWER_TIMEOUT_S = 5.0
RECONNECT_PAUSE_S = 0.1
#: how long the first link may take; a later one may take as long as a fault lasts
FIRST_LINK_S = 30.0
_SAY_AFTER_S = 10.0
_SEE_ACCOUNT = "see user and password in the URL"
#: refusals that last, and what to do about them
_LASTING = {
    "MOVED": "the workload writes to one server: use a lab without a Redis Cluster",
    "READONLY": "a replica: after a failover run it again with the same --history",
    "WRONGTYPE": "--pattern has to name stream keys, or keys that are not there yet",
    "NOPERM": _SEE_ACCOUNT,
    "NOAUTH": _SEE_ACCOUNT,
}

#: its stub knows one-element tuples only
_PACK: Any = hiredis.pack_command


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
        self._address = f"{self._url.hostname or '127.0.0.1'}:{self._url.port or 6379}"
        self._tls = _tls_context(self._url) if self._url.scheme == "rediss" else None
        self._values = values
        self._mixed = mixed
        self._is_stopping = is_stopping
        self._streams = [pattern.replace("<lane>", str(lane)).encode() for lane in values.lane_of]
        self._prefix = [self._canonical_prefix(index) for index in range(len(values.keys))]
        self._waiting: deque[Batch] = deque()
        self._done: list[Batch] = []
        self._socket: socket.socket | None = None
        self._reader = hiredis.Reader()
        self._was_linked = False
        self._refusal = ""  # one that lasts

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
        self._raise_refusal()
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
        self._raise_refusal()
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
                if isinstance(answer, Exception) and str(answer).partition(" ")[0] in _LASTING:
                    self._refusal = str(answer)
            self._done.append(self._waiting.popleft())

    def _raise_refusal(self) -> None:
        """After the outcomes of what was refused have been handed out: the history knows them."""
        if self._refusal and not self._done:
            hint = _LASTING[self._refusal.partition(" ")[0]]
            raise LabError(f"{self._address} says: {self._refusal}", hint=hint)

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
        began, has_said = time.monotonic(), False
        while self._socket is None and not self._is_stopping():
            try:
                self._socket = self._connect()
                self._was_linked = True
            except ssl.SSLCertVerificationError as error:
                hint = "ssl_ca_certs=FILE in the URL names the authority"
                raise LabError(f"{self._address} is not trusted: {error.verify_message}", hint=hint) from None
            except OSError as error:
                gone_s = time.monotonic() - began
                if not self._was_linked and gone_s > FIRST_LINK_S:
                    hint = "`crossfade lab status` shows what runs"
                    raise LabError(f"no link to {self._address} in {gone_s:.0f} s: {error}", hint=hint) from None
                if not has_said and gone_s > _SAY_AFTER_S:
                    has_said = True
                    print(f"no link to {self._address} for {gone_s:.0f} s: {error}", file=sys.stderr, flush=True)
                time.sleep(RECONNECT_PAUSE_S)
        return self._socket

    def _connect(self) -> socket.socket:
        url = self._url
        host = url.hostname or "127.0.0.1"
        link = socket.create_connection((host, url.port or 6379), timeout=ANSWER_TIMEOUT_S)
        try:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                link = self._tls.wrap_socket(link, server_hostname=host)
            self._greet(link)
        except BaseException:  # Ctrl-C too: nobody else knows of the socket yet
            link.close()
            raise
        return link

    def _greet(self, link: socket.socket) -> None:
        """Log in, and see that it answers.  Raises OSError where waiting may help, LabError where it does not."""
        url = self._url
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
                    raise LabError(f"{self._address} says: {answer}", hint=_SEE_ACCOUNT)
                raise ConnectionError(str(answer))  # LOADING and the like: later

    def in_flight(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def _tls_context(url: SplitResult) -> ssl.SSLContext:
    """What trusts the authority that `ssl_ca_certs` names, or those of this machine.  Raises LabUsage."""
    file = parse_qs(url.query).get("ssl_ca_certs", [None])[-1]
    try:
        return ssl.create_default_context(cafile=file)
    except OSError as error:
        raise LabUsage(f"ssl_ca_certs: {file} cannot be used: {error.strerror or error}") from None


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
