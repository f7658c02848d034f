"""One pipelined connection to one server: commands out, replies back in order.

Hides sockets, TLS, the handshake and RESP parsing (hiredis, RESP2, replies as bytes). Many callers may share a link:
each gets a future with exactly its replies. Error replies are values; only a lost or silent connection raises.
Invariant: after any doubt (timeout, parse error, cancellation of a handshake) the link is closed and never used again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import hiredis

from ...errors import AccessRefused, CrossfadeError, Unreachable
from .replies import as_error, is_error
from .settings import Address, RedisSettings, Secret

Argument: TypeAlias = bytes | str | int | float
Command: TypeAlias = tuple[Argument, ...]

#: bytes that may wait in the process before `drain` makes a sender wait
_UNSENT_BYTES_MAX = 1 << 20
#: room for unparsed replies that is kept; at the default of 16 KiB it would be made anew for every reply
_KEPT_BYTES = 4 << 20
_NOT_YET = object()


class LinkLost(Exception):
    """The connection ended, or an answer did not come in time; what was sent may or may not have been done."""


def pack(commands: Iterable[Command]) -> bytes:
    """Commands as the server reads them."""
    return b"".join([pack_one(command) for command in commands])


def pack_one(command: Command) -> bytes:
    """One command as the server reads it."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub knows one-tuples only
    return packed


class Replies(list[Any]):
    """The replies to one `send`, and about how many bytes each was (up to a kilobyte more or less)."""

    def __init__(self, replies: Iterable[Any] = (), sizes_bytes: Iterable[int] = ()) -> None:
        super().__init__(replies)
        self.sizes_bytes = list(sizes_bytes)


class Link(asyncio.Protocol):
    """A connection; make one with `connect`."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self.address = address
        self.timeout_s = timeout_s
        #: digests of the scripts that were loaded on this connection
        self.scripts: set[str] = set()
        self._reader = hiredis.Reader(notEnoughData=_NOT_YET)
        self._reader.setmaxbuf(_KEPT_BYTES)
        self._waiting: deque[tuple[asyncio.Future[Replies], int, Replies]] = deque()
        #: bytes that came behind the last whole reply
        self._unparsed_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._can_send = asyncio.Event()
        self._can_send.set()
        self._lost: str = ""

    @property
    def is_open(self) -> bool:
        """False for ever after the connection ended."""
        return self._transport is not None and not self._lost

    def send(self, packed: bytes, replies: int) -> asyncio.Future[Replies]:
        """Send packed commands at once; the future gives their `replies` or raises LinkLost."""
        future: asyncio.Future[Replies] = asyncio.get_running_loop().create_future()
        if not self.is_open or self._transport is None:
            future.set_exception(LinkLost(self._lost or "not connected"))
            future.exception()  # a caller may give up before it looks
            return future
        self._waiting.append((future, replies, Replies()))
        self._transport.write(packed)
        return future

    async def drain(self) -> None:
        """Wait while too much is unsent. Raises LinkLost when the server takes nothing for `timeout_s`."""
        if self._can_send.is_set():
            return
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._can_send.wait()
        except TimeoutError:
            self.abort(f"{self.address} took no data for {self.timeout_s:g} s")
            raise LinkLost(self._lost) from None

    async def wait(self, future: asyncio.Future[Replies], extra_s: float = 0.0) -> Replies:
        """The replies of `send`. Raises LinkLost, also when they take longer than `timeout_s` + `extra_s`."""
        try:
            async with asyncio.timeout(self.timeout_s + extra_s):
                return await asyncio.shield(future)
        except TimeoutError:
            self.abort(f"{self.address} did not answer within {self.timeout_s + extra_s:g} s")
            raise LinkLost(self._lost) from None

    async def call(self, commands: Sequence[Command], extra_s: float = 0.0) -> list[Any]:
        """Send commands and wait for their replies. Raises LinkLost."""
        return await self.wait(self.send(pack(commands), len(commands)), extra_s)

    def abort(self, reason: str) -> None:
        """Close at once; everything that waits raises LinkLost."""
        transport = self._transport
        self._fail(reason)
        if transport is not None:
            transport.abort()

    # asyncio.Protocol ------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
            transport.set_write_buffer_limits(high=_UNSENT_BYTES_MAX)

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            self._unparsed_bytes += len(data)
            while waiting:
                reply = reader.gets()
                if reply is _NOT_YET:
                    return
                future, expected, got = waiting[0]
                got.append(reply)
                unread = reader.len()
                got.sizes_bytes.append(self._unparsed_bytes - unread)
                self._unparsed_bytes = unread
                if len(got) == expected:
                    waiting.popleft()
                    if not future.done():
                        future.set_result(got)
        except hiredis.ProtocolError as error:
            self.abort(f"{self.address} does not speak the Redis protocol: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection to {self.address} was closed" + (f": {exc}" if exc else ""))

    def pause_writing(self) -> None:
        self._can_send.clear()

    def resume_writing(self) -> None:
        self._can_send.set()

    def _fail(self, reason: str) -> None:
        if not self._lost:
            self._lost = reason
        self._can_send.set()
        while self._waiting:
            future, _, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(LinkLost(self._lost))
                # a caller that was cancelled meanwhile never looks at it
                future.exception()


async def connect(settings: RedisSettings, address: Address, *, sentinel: bool = False) -> Link:
    """Open a connection to `address` and log in. Raises Unreachable, AccessRefused."""
    loop = asyncio.get_running_loop()
    context = settings.tls.context() if settings.tls and not address.path else None
    link = Link(address, settings.request_timeout_s)
    try:
        async with asyncio.timeout(settings.connect_timeout_s):
            if address.path:
                await loop.create_unix_connection(lambda: link, address.path)
            else:
                server_hostname = address.host if context else None
                await loop.create_connection(
                    lambda: link, address.host, address.port, ssl=context, server_hostname=server_hostname
                )
            await _handshake(link, settings, sentinel)
    except (OSError, TimeoutError, LinkLost) as error:
        link.abort("the handshake failed")
        reason = str(error) or f"no answer within {settings.connect_timeout_s:g} s"
        raise Unreachable(f"Redis at {address} cannot be reached: {reason}", hint=_hint(settings, reason)) from error
    except BaseException:  # cancelled, or a refusal: either way no half-open connection stays
        link.abort("the handshake was interrupted")
        raise
    return link


def _hint(settings: RedisSettings, reason: str) -> str:
    if "CERTIFICATE" in reason or "certificate" in reason:
        return "check tls.ca, and that the certificate names this host"
    if settings.tls is None and "closed" in reason:
        return "does the server expect TLS? then the url starts with rediss://"
    return "check host, port, TLS and firewall; is the server running?"


async def _handshake(link: Link, settings: RedisSettings, sentinel: bool) -> None:
    username = settings.sentinel_username if sentinel else settings.username
    secret: Secret = settings.sentinel_password if sentinel else settings.password
    password = secret() if callable(secret) else secret
    if username or password:  # a user without a password may be a nopass one: left out, it would be the default user
        login: Command = ("AUTH", username, password) if username else ("AUTH", password)
        _require(await link.call([login]), f"logging in at {link.address}")
    replies = await link.call([("PING",), ("CLIENT", "SETNAME", "crossfade")])
    # a name is a courtesy to operators: its refusal (old ACLs) is no reason to stop
    _require(replies[:1], f"talking to {link.address}")
    if settings.db and not sentinel:
        _require(await link.call([("SELECT", settings.db)]), f"selecting database {settings.db}")


def _require(replies: list[Any], doing: str) -> None:
    for reply in replies:
        if is_error(reply):
            error: CrossfadeError = as_error(reply, doing)
            if not isinstance(error, AccessRefused | Unreachable):
                error = AccessRefused(str(error), hint="check username, password and database of this broker")
            raise error
