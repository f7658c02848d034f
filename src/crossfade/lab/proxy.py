"""The TCP proxy of a lab: one process for all its links, each of which can be made to misbehave.

A link listens where clients connect and forwards to one server. While nothing is wrong the bytes are spliced in the
kernel and never enter Python. A fault is a mode with a deadline that this process keeps by itself, so a link heals
though whoever asked is dead. Bytes are forwarded whole and in order, or the connection is reset: a stream with a hole
in it is never passed on. A connection takes six descriptors; where there are none left it is reset, and nothing else
suffers. Started by lab; told what to do over a Unix socket (see `control`).
"""

from __future__ import annotations

import contextlib
import json
import select
import signal
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from crossfade.lab.accepting import Reserve, raise_limit
from crossfade.lab.control import bind_unix
from crossfade.lab.link import HELD_BYTES_MAX, Flow, Link, Mode, Pair

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Proxy:
    """The event loop: edge-triggered epoll over all sockets, with the earliest deadline as its timeout."""

    def __init__(self, control_path: Path) -> None:
        self.epoll = select.epoll()
        self.links: dict[str, Link] = {}
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.timed: set[Flow] = set()  # flows with queued bytes that become due
        self.is_running = True
        self.reserve = Reserve()
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
        self.epoll.register(sock.fileno(), events)
        self.handlers[sock.fileno()] = handler

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
            with self.reserve.accepted(link.listener) as (client, on_reserve):
                if client is None:
                    return
                link.counters.accepted += 1
                if on_reserve or not self._join(link, client):
                    link.counters.reset += 1
                    with contextlib.suppress(OSError):
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                    client.close()

    def _join(self, link: Link, client: socket.socket) -> bool:
        """Tie a client to the server behind the link; False where that takes more descriptors than there are."""
        server = None
        try:
            server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            for sock in (client, server):
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = Pair(link, client, server)
        except OSError as error:
            self.reserve.tell(error)
            if server is not None:
                server.close()
            return False
        link.pairs.add(pair)
        if link.mode is Mode.HALF_OPEN:
            pair.is_torn = True  # it never reaches the server, so the heal has to reset it
        else:
            server.connect_ex(link.target)
            self._watch(server, _EVENTS, partial(self._on_server, pair))
        self._watch(client, _EVENTS, partial(self._on_client, pair))
        return True

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
                flow.discard()
            elif link.holds(flow) or link.mode is Mode.DELAY or flow.queue:
                flow.drain_pipe()
                if not flow.in_pipe_bytes:
                    self._pump_queue(flow)
            elif pair.is_connected:
                flow.splice()
        except OSError:
            if flow is pair.requests and not pair.client_gone:
                self._client_lost(pair)
            else:
                self._close(pair, reset=True)
            return
        self._maybe_end(flow)

    def _pump_queue(self, flow: Flow) -> None:
        link = flow.pair.link
        flow.fill_queue()
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
            if flow.queued_bytes < HELD_BYTES_MAX:
                flow.fill_queue()
        self._count_held(link)
        if flow.queue and not link.holds(flow):
            self.timed.add(flow)
        else:
            self.timed.discard(flow)
        if not flow.queue and not link.holds(flow) and link.mode is not Mode.DELAY and flow.pair.is_connected:
            flow.splice()  # caught up: back to the fast way

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
        with self.reserve.accepted(self.control) as (conn, _):
            if conn is None:
                return
            with conn:
                conn.settimeout(2.0)
                try:
                    request = json.loads(conn.makefile().readline())
                    answer = self._obey(request)
                except (KeyError, TypeError, ValueError, OSError) as error:
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


def main(argv: list[str]) -> int:
    """`python -m crossfade.lab.proxy CONTROL_SOCKET`"""
    raise_limit()
    proxy = Proxy(Path(argv[0]))

    def stop(*_: object) -> None:
        proxy.is_running = False
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    proxy.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
