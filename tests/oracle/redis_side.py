"""Reads Redis streams over a bare socket, or TLS (rediss://..?ssl_ca_certs=FILE): own RESP parser, XRANGE pages."""

from __future__ import annotations

import socket
import ssl
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .rows import Lane, entry_row

PAGE_ENTRIES = 4000


class Resp:
    """A connection that speaks just enough RESP2."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        host = parts.hostname or "127.0.0.1"
        self._socket = socket.create_connection((host, parts.port or 6379), timeout=60)
        if parts.scheme == "rediss":
            context = ssl.create_default_context(cafile=parse_qs(parts.query).get("ssl_ca_certs", [None])[0])
            self._socket = context.wrap_socket(self._socket, server_hostname=host)
        self._buffer = b""
        self._at = 0
        if parts.password:
            user = [unquote(parts.username)] if parts.username else []
            self.call("AUTH", *user, unquote(parts.password))
        if parts.path.strip("/"):
            self.call("SELECT", parts.path.strip("/"))

    def call(self, *words: str | bytes) -> Any:
        packed = [b"*%d\r\n" % len(words)]
        for word in words:
            data = word.encode() if isinstance(word, str) else word
            packed.append(b"$%d\r\n%b\r\n" % (len(data), data))
        self._socket.sendall(b"".join(packed))
        return self._reply()

    def _more(self) -> None:
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._buffer = self._buffer[self._at :] + data
        self._at = 0

    def _reply(self) -> Any:
        while (end := self._buffer.find(b"\r\n", self._at)) < 0:
            self._more()
        kind, head = self._buffer[self._at], self._buffer[self._at + 1 : end]
        self._at = end + 2
        if kind == 36:  # $
            size = int(head)
            if size < 0:
                return None
            while len(self._buffer) < self._at + size + 2:
                self._more()
            at, self._at = self._at, self._at + size + 2
            return self._buffer[at : at + size]
        if kind == 42:  # *
            return [self._reply() for _ in range(int(head))] if head != b"-1" else None
        if kind == 58:  # :
            return int(head)
        if kind == 43:  # +
            return head
        raise RuntimeError(f"the server says {head.decode(errors='replace')}")

    def close(self) -> None:
        self._socket.close()


def read_redis(url: str, pattern: str, lanes: int) -> dict[int, Lane]:
    """Everything that `lanes` stream keys hold; `<lane>` in the pattern is the lane's number."""
    link = Resp(url)
    result: dict[int, Lane] = {}
    for number in range(lanes):
        lane = result[number] = Lane()
        name, start = pattern.replace("<lane>", str(number)), b"-"
        while True:
            page = link.call("XRANGE", name, start, "+", "COUNT", str(PAGE_ENTRIES))
            for place, fields in page:
                ms, _, sequence = place.partition(b"-")
                row, time_ms = entry_row(fields, int(ms))
                lane.add(int(ms), int(sequence), row, time_ms)
            if len(page) < PAGE_ENTRIES:
                break
            start = b"(" + page[-1][0]
    link.close()
    return result
