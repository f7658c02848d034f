"""A small HTTP server for what processes tell about themselves: metrics and health, by GET, over one port.

Hides HTTP. Whoever serves gives a function from a path to a status and a body; it runs in the loop, so must be quick.
Invariant: a client that talks nonsense, or goes away, costs one short connection. Called by relay and verify processes.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TypeAlias

from .errors import UsageError

#: the path -> ("200 OK", body)
Answer: TypeAlias = Callable[[str], tuple[str, bytes]]

OK = "200 OK"
NOT_FOUND = "404 Not Found"
UNAVAILABLE = "503 Service Unavailable"
_REQUEST_S = 5.0


class HttpServer:
    """Answers GET requests until closed."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; port 0 takes a free one. Returns the port. Raises OSError."""
        self._server = await asyncio.start_server(self._serve, host, port)
        port_taken: int = self._server.sockets[0].getsockname()[1]
        return port_taken

    async def listen(self, port: int) -> None:
        """Listen on this host alone, unless CROSSFADE_METRICS_HOST names another address. Raises UsageError."""
        host = os.environ.get("CROSSFADE_METRICS_HOST", "127.0.0.1")
        try:
            await self.start(host, port)
        except OSError as error:
            raise UsageError(
                f"cannot open {host}:{port} for /metrics: {error.strerror}",
                hint="give each process on a host its own --metrics-port, or 0 for none",
            ) from None

    async def close(self) -> None:
        """Stop listening; safe to call twice, and before `start`."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _REQUEST_S)
            status, body = self._answer(request.split(b" ", 2)[1].decode("latin-1"))
            head = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
            await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, IndexError):
            return  # not an HTTP client, or it went away
        finally:
            writer.close()
