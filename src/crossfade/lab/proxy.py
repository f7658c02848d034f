"""The TCP proxy of a lab: one process for all its links, each of which can be made to misbehave.

A link listens where clients connect and forwards to one server. While nothing is wrong the bytes are spliced in the
kernel and never enter Python. A fault is a mode with a deadline that this process keeps by itself, so a link heals
though whoever asked is dead. Bytes are forwarded whole and in order, or the connection is reset: a stream with a hole
in it is never passed on. Started by lab; told what to do over a Unix socket (see `control`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from crossfade.lab.control import bind_unix

_CHUNK_BYTES = 1 << 18
_PIPE_BYTES = 1 << 18
#: what one connection may hold back before the sender feels it
_HELD_BYTES_MAX = 32 << 20
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_WOULD_BLOCK = (errno.EAGAIN, errno.EWOULDBLOCK)


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
        os.close(self.pipe_r)
        os.close(self.pipe_w)


class Pair:
    """One client connection and its connection to the server."""

    def __init__(self, link: Link, client: socket.socket, server: socket.socket) -> None:
        self.link = link
        self.client = client
        self.server = server
        self.requests = Flow(self, client, server, is_reply=False)
        self.replies = Flow(self, server, client, is_reply=True)
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


class Proxy:
    """The event loop: edge-triggered epoll over all sockets, with the earliest deadline as its timeout."""

    def __init__(self, control_path: Path) -> None:
        self.epoll = select.epoll()
        self.links: dict[str, Link] = {}
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.timed: set[Flow] = set()  # flows with queued bytes that become due
        self.is_running = True
        self.control = bind_unix(control_path)
        self.control.listen(16)
        self.control.setblocking(False)
        self._watch(self.control, select.EPOLLIN, self._on_control)

    # -- the loop

    def run(self) -> None:
        """Serve until told to stop or the process is signalled."""
        while self.is_running:
            for fd, events in self.epoll.poll(self._timeout_s()):
                handler = self.handlers.get(fd)
                if handler is not None:
                    handler(events)
            self._on_time(time.monotonic())

    def _timeout_s(self) -> float:
        due = [link.heal_at for link in self.links.values() if link.heal_at is not None]
        due += [flow.queue[0][0] for flow in self.timed if flow.queue and not flow.is_blocked]
        return max(0.0, min(due) - time.monotonic()) + 0.0005 if due else -1

    def _on_time(self, now: float) -> None:
        for link in self.links.values():
            if link.heal_at is not None and now >= link.heal_at:
                self.set_mode(link, Mode.PASS)
        for flow in [flow for flow in self.timed if flow.queue and flow.queue[0][0] <= now]:
            self._pump(flow)

    def _watch(self, sock: socket.socket, events: int, handler: Callable[[int], None]) -> None:
        self.handlers[sock.fileno()] = handler
        self.epoll.register(sock.fileno(), events)

    def _unwatch(self, sock: socket.socket) -> None:
        fd = sock.fileno()
        if self.handlers.pop(fd, None) is not None:
            self.epoll.unregister(fd)

    # -- links

    def add_link(self, name: str, port: int, target: tuple[str, int]) -> Link:
        """Listen on `port` of the loopback for this link.

        The port has to be named: one that the kernel chose would be given up by the first cut.
        Raises ValueError, OSError.
        """
        if not port:
            raise ValueError("a link needs a port of its own")
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(512)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        link = Link(name, listener, listener.getsockname()[1], target)
        self.links[name] = link
        self._watch(listener, select.EPOLLIN, partial(self._on_accept, link))
        return link

    def set_mode(self, link: Link, mode: Mode, *, delay_s: float = 0.0, deadline_s: float | None = None) -> None:
        """Change how a link behaves, from the next byte on; with `deadline_s` it goes back to pass by itself."""
        before = link.mode
        link.mode = mode
        link.delay_s = delay_s if mode is Mode.DELAY else 0.0
        link.heal_at = None if deadline_s is None or mode is Mode.PASS else time.monotonic() + deadline_s
        if before is Mode.CUT and mode is not Mode.CUT:
            link.listener.listen(512)
        if mode is Mode.CUT:
            # A shut down listener keeps its port and refuses; listen() brings it back.
            with contextlib.suppress(OSError):
                link.listener.shutdown(socket.SHUT_RDWR)
            self.reset_connections(link)
        for pair in list(link.pairs):
            if pair.is_torn and mode not in (Mode.HALF_OPEN, Mode.DROP_REPLIES):
                self._close(pair, reset=True)
                continue
            for flow in (pair.requests, pair.replies):
                # What was held is due now; what was delayed keeps its order because the queue goes first.
                if not link.holds(flow):
                    flow.queue = deque((min(due, time.monotonic()), data) for due, data in flow.queue)
                if not pair.is_closed:
                    self._pump(flow)
        self._count_held(link)

    def reset_connections(self, link: Link) -> int:
        """Reset every connection of the link now; says how many there were."""
        pairs = list(link.pairs)
        for pair in pairs:
            self._close(pair, reset=True)
        return len(pairs)

    def _count_held(self, link: Link) -> None:
        held = sum(flow.queued_bytes for pair in link.pairs for flow in (pair.requests, pair.replies))
        link.counters.held_bytes = held
        link.counters.held_bytes_max = max(link.counters.held_bytes_max, held)

    # -- connections

    def _on_accept(self, link: Link, _: int) -> None:
        while True:
            try:
                client, _ = link.listener.accept()
            except OSError as error:
                if error.errno in (*_WOULD_BLOCK, errno.EINVAL):  # EINVAL: the link was cut between poll and here
                    return
                if error.errno == errno.ECONNABORTED:
                    continue
                raise
            link.counters.accepted += 1
            server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            for sock in (client, server):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = Pair(link, client, server)
            link.pairs.add(pair)
            if link.mode is Mode.HALF_OPEN:
                pair.is_torn = True  # it never reaches the server, so the heal has to reset it
            else:
                server.connect_ex(link.target)
                self._watch(server, _EVENTS, partial(self._on_server, pair))
            self._watch(client, _EVENTS, partial(self._on_client, pair))

    def _on_client(self, pair: Pair, events: int) -> None:
        if pair.is_closed:
            return
        if events & select.EPOLLERR:
            self._client_lost(pair)
            return
        # Every edge reports EPOLLOUT too; only a flow that was stopped by a full socket has use for it.
        if events & select.EPOLLOUT and pair.replies.is_blocked:
            pair.replies.is_blocked = False
            self._pump(pair.replies)
        if not pair.is_closed and events & (select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP):
            self._pump(pair.requests)

    def _on_server(self, pair: Pair, events: int) -> None:
        if pair.is_closed:
            return
        if not pair.is_connected:
            if pair.server.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or events & select.EPOLLERR:
                self._close(pair, reset=True)
                return
            pair.is_connected = True
            pair.requests.is_blocked = True  # what the client sent meanwhile
        if events & select.EPOLLERR:
            self._close(pair, reset=True)
            return
        if events & select.EPOLLOUT and pair.requests.is_blocked:
            pair.requests.is_blocked = False
            self._pump(pair.requests)
        if not pair.is_closed and events & (select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP):
            self._pump(pair.replies)

    def _client_lost(self, pair: Pair) -> None:
        """The client reset the connection: held requests still go to the server, nothing else does."""
        if pair.requests.queue and pair.link.mode is Mode.HOLD_REQUESTS:
            pair.client_gone = True
            pair.requests.source_ended = True
            self._unwatch(pair.client)
            return
        self._close(pair, reset=True)

    # -- moving bytes

    def _pump(self, flow: Flow) -> None:
        """Move what can be moved in one direction, until the source is empty or the target is full."""
        pair, link = flow.pair, flow.pair.link
        try:
            if link.drops(flow):
                self._discard(flow)
            elif link.holds(flow) or link.mode is Mode.DELAY or flow.queue:
                self._drain_pipe(flow)
                if not flow.in_pipe_bytes:
                    self._pump_queue(flow)
            elif pair.is_connected:
                self._splice(flow)
        except OSError:
            if flow is pair.requests and not pair.client_gone:
                self._client_lost(pair)
            else:
                self._close(pair, reset=True)
            return
        self._maybe_end(flow)

    def _splice(self, flow: Flow) -> None:
        source, target = flow.source.fileno(), flow.target.fileno()
        while True:
            if flow.in_pipe_bytes and not self._drain_pipe(flow):
                return
            if flow.source_ended:
                return
            try:
                moved = os.splice(source, flow.pipe_w, _CHUNK_BYTES, flags=_SPLICE_NONBLOCK)
            except BlockingIOError:
                return
            if moved == 0:
                flow.source_ended = True
                return
            flow.in_pipe_bytes += moved
            self._count(flow, moved)
            try:
                flow.in_pipe_bytes -= os.splice(flow.pipe_r, target, flow.in_pipe_bytes, flags=_SPLICE_NONBLOCK)
            except BlockingIOError:
                flow.is_blocked = True
                return

    def _drain_pipe(self, flow: Flow) -> bool:
        """Send on what the pipe still holds; False when the target takes no more for now."""
        while flow.in_pipe_bytes:
            try:
                flow.in_pipe_bytes -= os.splice(
                    flow.pipe_r, flow.target.fileno(), flow.in_pipe_bytes, flags=_SPLICE_NONBLOCK
                )
            except BlockingIOError:
                flow.is_blocked = True
                return False
        return True

    def _pump_queue(self, flow: Flow) -> None:
        link = flow.pair.link
        self._fill_queue(flow)
        now = time.monotonic()
        while flow.queue and flow.pair.is_connected and not link.holds(flow) and flow.queue[0][0] <= now:
            due, data = flow.queue[0]
            try:
                sent = flow.target.send(data)
            except BlockingIOError:
                flow.is_blocked = True
                break
            flow.queued_bytes -= sent
            if sent < len(data):
                flow.queue[0] = (due, data[sent:])
            else:
                flow.queue.popleft()
            if flow.queued_bytes < _HELD_BYTES_MAX:
                self._fill_queue(flow)
        self._count_held(link)
        if flow.queue and not link.holds(flow):
            self.timed.add(flow)
        else:
            self.timed.discard(flow)
        if not flow.queue and not link.holds(flow) and link.mode is not Mode.DELAY and flow.pair.is_connected:
            self._splice(flow)  # caught up: back to the fast way

    def _fill_queue(self, flow: Flow) -> None:
        link = flow.pair.link
        while not flow.source_ended and flow.queued_bytes < _HELD_BYTES_MAX:
            try:
                data = flow.source.recv(_CHUNK_BYTES)
            except BlockingIOError:
                return
            if not data:
                flow.source_ended = True
                return
            due = time.monotonic() + link.delay_s
            flow.queue.append((due, data))
            flow.queued_bytes += len(data)
            self._count(flow, len(data))

    def _discard(self, flow: Flow) -> None:
        if not flow.pair.is_connected and flow.is_reply:
            return
        lost = flow.queued_bytes
        flow.queue.clear()
        flow.queued_bytes = 0
        while flow.in_pipe_bytes:
            got = len(os.read(flow.pipe_r, flow.in_pipe_bytes))
            flow.in_pipe_bytes -= got
            lost += got
        while not flow.source_ended:
            try:
                data = flow.source.recv(_CHUNK_BYTES)
            except BlockingIOError:
                break
            if not data:
                flow.source_ended = True
            lost += len(data)
        if lost:
            flow.pair.is_torn = True
            flow.pair.link.counters.dropped_bytes += lost

    def _count(self, flow: Flow, size_bytes: int) -> None:
        counters = flow.pair.link.counters
        if flow.is_reply:
            counters.reply_bytes += size_bytes
        else:
            counters.request_bytes += size_bytes

    # -- ends

    def _maybe_end(self, flow: Flow) -> None:
        """Pass an end of stream on once everything before it has been passed on."""
        pair, link = flow.pair, flow.pair.link
        if pair.is_closed or not flow.source_ended or flow.in_pipe_bytes or flow.queue:
            return
        if pair.client_gone:
            self._end_without_client(pair)
            return
        if link.drops(flow) and not (pair.requests.source_ended and pair.replies.source_ended):
            if flow is pair.requests:  # the client left a half-open connection
                self._close(pair, reset=True)
            return
        if not flow.target_ended and pair.is_connected:
            flow.target_ended = True
            with contextlib.suppress(OSError):
                flow.target.shutdown(socket.SHUT_WR)
        if pair.requests.source_ended and pair.replies.source_ended:
            self._close(pair, reset=pair.is_torn)

    def _end_without_client(self, pair: Pair) -> None:
        """Close towards the server once it has all the requests, and wait for it to close.

        Resetting at once could take the requests back out of its receive queue.
        """
        if not pair.requests.queue and not pair.requests.target_ended:
            pair.requests.target_ended = True
            with contextlib.suppress(OSError):
                pair.server.shutdown(socket.SHUT_WR)
        if pair.replies.source_ended:
            self._close(pair, reset=False)

    def _close(self, pair: Pair, *, reset: bool) -> None:
        if pair.is_closed:
            return
        pair.is_closed = True
        for sock in (pair.client, pair.server):
            self._unwatch(sock)
            if reset:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            sock.close()
        for flow in (pair.requests, pair.replies):
            self.timed.discard(flow)
            flow.close()
        if reset:
            pair.link.counters.reset += 1
        pair.link.pairs.discard(pair)

    # -- control

    def _on_control(self, _: int) -> None:
        with contextlib.suppress(BlockingIOError):
            conn, _addr = self.control.accept()
            with conn:
                conn.settimeout(2.0)
                try:
                    request = json.loads(conn.makefile().readline())
                    answer = self._obey(request)
                except (KeyError, ValueError, OSError) as error:
                    answer = {"error": f"{type(error).__name__}: {error}"}
                with contextlib.suppress(OSError):  # the asker may have gone
                    conn.sendall(json.dumps(answer).encode() + b"\n")

    def _obey(self, request: dict[str, Any]) -> dict[str, Any]:
        op = request["op"]
        if op == "add":
            link = self.add_link(request["link"], int(request["port"]), (request["host"], int(request["target_port"])))
            return link.as_dict()
        if op == "stop":
            self.is_running = False
            return {}
        if op == "stats":
            for link in self.links.values():
                self._count_held(link)
            return {"links": [link.as_dict() for link in self.links.values()]}
        link = self.links[request["link"]]
        if op == "set":
            self.set_mode(
                link,
                Mode(request["mode"]),
                delay_s=float(request.get("delay_ms") or 0) / 1000,
                deadline_s=request.get("deadline_s"),
            )
        elif op == "reset":
            return {**link.as_dict(), "connections_reset": self.reset_connections(link)}
        else:
            raise ValueError(f"unknown operation {op!r}")
        return link.as_dict()


_EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET
_SPLICE_NONBLOCK = 2 | 1  # SPLICE_F_NONBLOCK | SPLICE_F_MOVE


def main(argv: list[str]) -> int:
    """`python -m crossfade.lab.proxy CONTROL_SOCKET`"""
    proxy = Proxy(Path(argv[0]))

    def stop(*_: object) -> None:
        proxy.is_running = False
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    proxy.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
