"""One pipelined connection to one server: commands out, replies back in order.

Hides sockets, TLS, the handshake and RESP parsing (hiredis, RESP2, replies as bytes). Many callers may share a link:
each gets a future with exactly its replies. Error replies are values; only a lost or silent connection raises.
Invariant: after any doubt (timeout, parse error, cancellation of a handshake) the link is closed and never used again.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import hiredis

from ...config.secret import read_again
from ...errors import AccessRefused, CrossfadeError, Unreachable, invariant
from .replies import as_error, code_of, is_error
from .settings import Address, RedisSettings, Secret

Argument: TypeAlias = bytes | str | int | float
Command: TypeAlias = tuple[Argument, ...]

#: bytes that may wait in the process before `drain` makes a sender wait
_UNSENT_BYTES_MAX = 1 << 20
#: room for unparsed replies that is kept; at the default of 16 KiB it would be made anew for every reply
_KEPT_BYTES = 4 << 20
#: what comes in, or goes out, slower than this for longer than `timeout_s` will never end
_SLOWEST_BYTES_S = 4 << 10
#: so often within `timeout_s` whoever waits looks whether what was sent still goes out
_LOOKS = 4
#: where Linux tells in its `tcp_info` how many bytes the other side has taken
_TCP_ACKED = slice(120, 128)
_NOT_YET = object()


class LinkLost(Exception):
    """The connection ended, or fell silent before an answer; what was sent may or may not have been done."""


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


@dataclass(slots=True)
class _Waiting:
    """What was asked for by one `send`."""

    future: asyncio.Future[Replies]
    expected: int
    bytes_max: int
    got: Replies = field(default_factory=Replies)
    got_bytes: int = 0


class Link(asyncio.Protocol):
    """A connection; make one with `connect`."""

    def __init__(self, address: Address, timeout_s: float) -> None:
        self.address = address
        self.timeout_s = timeout_s
        #: digests of the scripts that were loaded on this connection
        self.scripts: set[str] = set()
        self._reader = hiredis.Reader(notEnoughData=_NOT_YET)
        self._reader.setmaxbuf(_KEPT_BYTES)
        self._waiting: deque[_Waiting] = deque()
        #: bytes that came behind the last whole reply
        self._unparsed_bytes = 0
        #: how much ever came, and when the last of it: `time()` of the loop
        self._heard_bytes = 0
        self._heard_s = 0.0
        #: how much was ever handed over to be sent
        self._written_bytes = 0
        self._transport: asyncio.Transport | None = None
        self._can_send = asyncio.Event()
        self._can_send.set()
        self._lost: str = ""

    @property
    def is_open(self) -> bool:
        """False for ever after the connection ended."""
        return self._transport is not None and not self._lost

    def send(self, packed: bytes, replies: int, bytes_max: int = 0) -> asyncio.Future[Replies]:
        """Send packed commands at once; the future gives their `replies` or raises LinkLost.

        The link is given up where more than `bytes_max` bytes come for them (0 = any number).
        """
        invariant(replies > 0, "whoever sends is answered")
        future: asyncio.Future[Replies] = asyncio.get_running_loop().create_future()
        if not self.is_open or self._transport is None:
            future.set_exception(LinkLost(self._lost or "not connected"))
            future.exception()  # a caller may give up before it looks
            return future
        self._waiting.append(_Waiting(future, replies, bytes_max))
        self._written_bytes += len(packed)
        self._transport.write(packed)
        return future

    async def drain(self) -> None:
        """Wait while too much is unsent. Raises LinkLost when the server takes nothing for `timeout_s`."""
        if self._can_send.is_set():
            return
        room = asyncio.ensure_future(self._can_send.wait())
        try:
            if not await self._comes(room):
                self.abort(f"{self.address} took no data for {self.timeout_s:g} s")
                raise LinkLost(self._lost)
        finally:
            room.cancel()

    async def wait(self, future: asyncio.Future[Replies]) -> Replies:
        """The replies of `send`. Raises LinkLost, also when nothing moves either way for `timeout_s`."""
        before_bytes = self._heard_bytes
        if not future.done() and not await self._comes(future):
            if self._heard_bytes > before_bytes:
                self.abort(f"{self.address} stopped in an answer: too little came for {self.timeout_s:g} s")
            else:
                self.abort(f"{self.address} did not answer within {self.timeout_s:g} s")
            raise LinkLost(self._lost)
        return future.result()

    async def _comes(self, future: asyncio.Future[Any]) -> bool:
        """Wait for it as long as anything moves on this connection; False when nothing did for `timeout_s`.

        Whatever comes counts, however long the whole takes: a large answer over a slow line is no silence, and as
        answers keep their order, what comes for another caller brings ours nearer. So does what still goes out.
        """
        loop = asyncio.get_running_loop()
        began_s, before_bytes = loop.time(), self._heard_bytes
        until_s = began_s + self.timeout_s
        looked_s, sent_bytes = began_s, -1
        while (left_s := until_s - loop.time()) > 0:
            await asyncio.wait((future,), timeout=min(left_s, self.timeout_s / _LOOKS))
            if future.done():
                return True
            now_s, now_bytes = loop.time(), self._sent_bytes()
            if 0 <= sent_bytes < now_bytes - _SLOWEST_BYTES_S * (now_s - looked_s):
                # some of it went out since the last look: the silence began then at the earliest
                began_s, before_bytes = looked_s, self._heard_bytes
            looked_s, sent_bytes = now_s, now_bytes
            heard_bytes = self._heard_bytes - before_bytes
            alive_s = min(max(began_s, self._heard_s), began_s + heard_bytes / _SLOWEST_BYTES_S)
            until_s = alive_s + self.timeout_s
        return False

    def _sent_bytes(self) -> int:
        """A number that rises while what was sent goes out: out of this process, and to the other side.

        The second is needed: between the two lie megabytes at times, and with TLS the first tells nothing.
        """
        if self._transport is None or not self.is_open:
            return 0
        sent_bytes = self._written_bytes - self._transport.get_write_buffer_size()
        if sys.platform == "linux":
            # A connection under TLS that was lost has none any more, a turn of the loop before we are told.
            over: socket.socket | None = self._transport.get_extra_info("socket")
            if over is not None and over.family in (socket.AF_INET, socket.AF_INET6):
                try:
                    told = over.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_ACKED.stop)
                except OSError:  # it is closed
                    return sent_bytes
                sent_bytes += int.from_bytes(told[_TCP_ACKED], sys.byteorder)
        return sent_bytes

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands and wait for their replies. Raises LinkLost."""
        return await self.wait(self.send(pack(commands), len(commands)))

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
        self._heard_s = asyncio.get_running_loop().time()
        self._heard_bytes += len(data)
        try:
            reader.feed(data)
            self._unparsed_bytes += len(data)
            while waiting:
                asked = waiting[0]
                reply = reader.gets()
                if reply is _NOT_YET:
                    if asked.bytes_max and asked.got_bytes + self._unparsed_bytes > asked.bytes_max:
                        self.abort(f"{self.address} sent over {asked.bytes_max >> 20} MB in an answer, far too much")
                    return
                got, unread = asked.got, reader.len()
                got.append(reply)
                got.sizes_bytes.append(self._unparsed_bytes - unread)
                asked.got_bytes += self._unparsed_bytes - unread
                self._unparsed_bytes = unread
                if len(got) == asked.expected:
                    waiting.popleft()
                    if not asked.future.done():
                        asked.future.set_result(got)
            if self._written_bytes and reader.has_data():
                # It would become the answer to whatever is asked next. Before the first question it is no answer, but
                # why the server does not talk to us.
                self.abort(f"{self.address} sent more answers than were asked for")
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
            future = self._waiting.popleft().future
            if not future.done():
                future.set_exception(LinkLost(self._lost))
                # a caller that was cancelled meanwhile never looks at it
                future.exception()


async def connect(settings: RedisSettings, address: Address, *, sentinel: bool = False) -> Link:
    """Open a connection to `address` and log in. Raises Unreachable, AccessRefused."""
    loop = asyncio.get_running_loop()
    context = settings.tls.context_now() if settings.tls and not address.path else None
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
    password = read_again(secret, f"the password for {link.address}") if callable(secret) else secret
    if username or password:  # a user without a password may be a nopass one: left out, it would be the default user
        login: Command = ("AUTH", username, password) if username else ("AUTH", password)
        _require(await link.call([login]), f"logging in at {link.address}")
    replies = await link.call([("PING",), ("CLIENT", "SETNAME", "crossfade")])
    # A name is a courtesy to operators: its refusal (old ACLs) is no reason to stop. Nor is a full disk, which servers
    # tell in answer to PING, though they can be read; they refuse writes by themselves.
    if not (is_error(replies[0]) and code_of(replies[0]) == "MISCONF"):
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
