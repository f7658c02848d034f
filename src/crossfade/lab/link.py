"""One link of the proxy: its connections, their two directions, and how bytes move in each.

While nothing is wrong a direction is a pipe in the kernel that bytes are spliced through; bytes that have to wait are
in a queue in front of it, bounded, so that the sender feels a long hold. A direction knows how to move bytes, the proxy
decides when. Called by proxy; faults names the modes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

_CHUNK_BYTES = 1 << 18
_PIPE_BYTES = 1 << 18
#: what one connection may hold back before the sender feels it
HELD_BYTES_MAX = 32 << 20
_SPLICE_NONBLOCK = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE


class Mode(StrEnum):
    """How a link behaves."""

    PASS = "pass"
    CUT = "cut"  # connections are reset, new ones refused
    DELAY = "delay"  # every byte arrives `delay_ms` later, in both directions
    HALF_OPEN = "half-open"  # connections stay, new ones are accepted, nothing arrives anywhere
    HOLD_REPLIES = "hold-replies"  # requests arrive; the answers wait for the heal
    DROP_REPLIES = "drop-replies"  # requests arrive; the answers are thrown away, the connections reset at the heal
    HOLD_REQUESTS = "hold-requests"  # requests wait for the heal, and arrive then even if the client has gone


@dataclass
class Counters:
    """What a link has done since it was made; `held_bytes` is what it holds back right now."""

    accepted: int = 0
    reset: int = 0
    request_bytes: int = 0
    reply_bytes: int = 0
    held_bytes: int = 0
    held_bytes_max: int = 0
    dropped_bytes: int = 0


class Flow:
    """One direction of a connection: a pipe in the kernel for the fast way, a queue for bytes that must wait."""

    def __init__(self, pair: Pair, source: socket.socket, target: socket.socket, *, is_reply: bool) -> None:
        self.pair = pair
        self.source = source
        self.target = target
        self.is_reply = is_reply
        self.pipe_r, self.pipe_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # over the user's pipe budget the default size does
            fcntl.fcntl(self.pipe_w, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.in_pipe_bytes = 0
        self.queue: deque[tuple[float, bytes]] = deque()
        self.queued_bytes = 0
        self.source_ended = False
        self.target_ended = False
        self.is_blocked = False  # the target takes no more for now

    def close(self) -> None:
        """Give the pipe back."""
        os.close(self.pipe_r)
        os.close(self.pipe_w)

    def splice(self) -> None:
        """Move what there is, inside the kernel.  Raises OSError when either end is broken."""
        source, target = self.source.fileno(), self.target.fileno()
        while True:
            if self.in_pipe_bytes and not self.drain_pipe():
                return
            if self.source_ended:
                return
            try:
                moved = os.splice(source, self.pipe_w, _CHUNK_BYTES, flags=_SPLICE_NONBLOCK)
            except BlockingIOError:
                return
            if moved == 0:
                self.source_ended = True
                return
            self.in_pipe_bytes += moved
            self.count(moved)
            try:
                self.in_pipe_bytes -= os.splice(self.pipe_r, target, self.in_pipe_bytes, flags=_SPLICE_NONBLOCK)
            except BlockingIOError:
                self.is_blocked = True
                return

    def drain_pipe(self) -> bool:
        """Send on what the pipe still holds; False when the target takes no more for now."""
        while self.in_pipe_bytes:
            try:
                self.in_pipe_bytes -= os.splice(
                    self.pipe_r, self.target.fileno(), self.in_pipe_bytes, flags=_SPLICE_NONBLOCK
                )
            except BlockingIOError:
                self.is_blocked = True
                return False
        return True

    def fill_queue(self) -> None:
        """Take in what has to wait, up to the limit.  Raises OSError when the source is broken."""
        link = self.pair.link
        while not self.source_ended and self.queued_bytes < HELD_BYTES_MAX:
            try:
                data = self.source.recv(_CHUNK_BYTES)
            except BlockingIOError:
                return
            if not data:
                self.source_ended = True
                return
            due = time.monotonic() + link.delay_s
            self.queue.append((due, data))
            self.queued_bytes += len(data)
            self.count(len(data))

    def discard(self) -> None:
        """Throw away what there is; the connection is torn from then on.  Raises OSError."""
        if not self.pair.is_connected and self.is_reply:
            return
        lost = self.queued_bytes
        self.queue.clear()
        self.queued_bytes = 0
        while self.in_pipe_bytes:
            got = len(os.read(self.pipe_r, self.in_pipe_bytes))
            self.in_pipe_bytes -= got
            lost += got
        while not self.source_ended:
            try:
                data = self.source.recv(_CHUNK_BYTES)
            except BlockingIOError:
                break
            if not data:
                self.source_ended = True
            lost += len(data)
        if lost:
            self.pair.is_torn = True
            self.pair.link.counters.dropped_bytes += lost

    def count(self, size_bytes: int) -> None:
        """Add to the link's counters."""
        counters = self.pair.link.counters
        if self.is_reply:
            counters.reply_bytes += size_bytes
        else:
            counters.request_bytes += size_bytes


class Pair:
    """One client connection and its connection to the server.  Raises OSError where there is no room for its pipes."""

    def __init__(self, link: Link, client: socket.socket, server: socket.socket) -> None:
        self.link = link
        self.client = client
        self.server = server
        self.requests = Flow(self, client, server, is_reply=False)
        try:
            self.replies = Flow(self, server, client, is_reply=True)
        except OSError:  # no descriptor left
            self.requests.close()
            raise
        self.is_connected = False
        self.is_closed = False
        self.is_torn = False  # bytes were thrown away: it can only be reset
        self.client_gone = False


@dataclass
class Link:
    """One listening address in front of one server."""

    name: str
    listener: socket.socket
    port: int
    target: tuple[str, int]
    mode: Mode = Mode.PASS
    delay_s: float = 0.0
    heal_at: float | None = None
    pairs: set[Pair] = field(default_factory=set)
    counters: Counters = field(default_factory=Counters)

    def holds(self, flow: Flow) -> bool:
        """Whether bytes of this direction have to wait for the heal."""
        return (self.mode is Mode.HOLD_REPLIES and flow.is_reply) or (
            self.mode is Mode.HOLD_REQUESTS and not flow.is_reply
        )

    def drops(self, flow: Flow) -> bool:
        """Whether bytes of this direction are thrown away."""
        if flow.is_reply and flow.pair.client_gone:
            return True
        return self.mode is Mode.HALF_OPEN or (self.mode is Mode.DROP_REPLIES and flow.is_reply)

    def as_dict(self) -> dict[str, Any]:
        """What `stats` answers."""
        return {
            "link": self.name,
            "port": self.port,
            "target": f"{self.target[0]}:{self.target[1]}",
            "mode": self.mode.value,
            "delay_ms": round(self.delay_s * 1000),
            "heals_in_s": None if self.heal_at is None else round(max(0.0, self.heal_at - time.monotonic()), 3),
            "connections": len(self.pairs),
            **vars(self.counters),
        }
