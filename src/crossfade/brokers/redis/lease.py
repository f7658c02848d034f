"""Lanes shared between processes where no Kafka cluster is at hand: leases in a hash on the target.

Hides heartbeats and handing over. Invariant: a lane has one owner in the hash, and changes hands only when its owner
let it go or stopped renewing. This is liveness alone: claims decide who may write. Called by the relay's service.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from typing import Any

import msgspec

from ...errors import CrossfadeError, Fenced, Unreachable
from ...model.record import Lane
from ..protocol import Listener
from .keys import lease_key
from .link import LinkLost
from .nodes import Nodes, unreachable
from .replies import check, code_of, is_error
from .scripts import script
from .settings import RedisSettings

#: a member that was silent for so long is taken for dead
TTL_S = 5.0
RENEW_EVERY_S = 1.0
#: leaving must not hold up a process that ends: of this the relay's service keeps as much
_LEAVE_TIMEOUT_S = 1.0


class RedisLease:
    """One process's membership. Implements `Assignment`."""

    def __init__(self, settings: RedisSettings, *, route: str, lanes: int, instance: str, ttl_s: float = TTL_S) -> None:
        self._nodes = Nodes(settings)
        self._key = lease_key(route)
        self._lanes = lanes
        self._instance = instance
        self._ttl_s = ttl_s
        self._nonce = uuid.uuid4().hex[:12]
        self._owned: frozenset[Lane] = frozenset()
        #: the listener gave lanes up and has not been told since what is owned
        self._has_given_up = False

    async def run(self, listener: Listener) -> None:
        """Join and hand lanes to `listener` until cancelled; then leave. Raises Fenced, AccessRefused, and Unreachable
        when the first contact fails."""
        try:
            await self._tick(listener, "join")
            renewed_s = time.monotonic()
            while True:
                await asyncio.sleep(min(RENEW_EVERY_S, self._ttl_s / 5))
                try:
                    await self._tick(listener, "renew")
                    renewed_s = time.monotonic()
                except Unreachable:
                    if self._owned and time.monotonic() - renewed_s > self._ttl_s:
                        # Others may have them by now; whoever claimed last writes.
                        await self._lose(listener, self._owned)
        except Fenced:
            await self._lose(listener, self._owned)
            raise
        finally:
            await self._leave(listener)

    async def _tick(self, listener: Listener, what: str) -> None:
        owned, awaited = await self._call(what, frozenset())
        lost = self._owned - owned
        if lost:
            await self._lose(listener, lost)
        is_news = owned != self._owned or what == "join"
        if awaited:
            # Still ours in the hash until everything in flight has ended.
            await listener.revoked(awaited)
            self._owned -= awaited
            self._has_given_up = True
            owned, _ = await self._call("renew", awaited)
        self._owned = owned
        if is_news or self._has_given_up:
            # Also where it owns no lane more than it knows: it waits for a generation to forget what it lost.
            self._has_given_up = False
            await listener.assigned(owned, None)

    async def _lose(self, listener: Listener, lanes: frozenset[Lane]) -> None:
        self._owned -= lanes
        self._has_given_up = True
        await listener.lost(lanes)

    async def _leave(self, listener: Listener) -> None:
        with contextlib.suppress(CrossfadeError, TimeoutError):
            async with asyncio.timeout(_LEAVE_TIMEOUT_S):
                if self._owned:
                    await listener.revoked(self._owned)
                await self._call("leave", self._owned)
        await self._nodes.close()

    async def _call(self, what: str, released: frozenset[Lane]) -> tuple[frozenset[Lane], frozenset[Lane]]:
        """(lanes owned, lanes of these that others wait for). Raises Fenced, Unreachable, AccessRefused."""
        ask = {
            "what": what,
            "instance": self._instance,
            "nonce": self._nonce,
            "ttl_ms": int(self._ttl_s * 1000),
            "lanes": self._lanes,
            "released": sorted(released),
        }
        reply = await self._run(msgspec.msgpack.encode(ask))
        if reply[0] == b"FENCED":
            raise Fenced(
                f"another process took the name {self._instance!r}",
                hint="give every process a name of its own (--instance)",
            )
        return frozenset(reply[1]), frozenset(reply[2])

    async def _run(self, ask: bytes) -> list[Any]:
        doing = "renewing the lease"
        lease = script("lease")
        for _ in range(2):
            link = await self._nodes.of_key(self._key)
            try:
                replies = await link.call([*lease.ensure(link), lease.call([self._key], ask)])
            except LinkLost as error:
                self._nodes.distrust()
                raise unreachable(error, doing) from error
            if not (is_error(replies[-1]) and code_of(replies[-1]) == "NOSCRIPT"):
                break
            link.scripts.discard(lease.digest)
        if is_error(replies[-1]):
            self._nodes.distrust()
        for reply in replies:
            check(reply, doing)
        result: list[Any] = replies[-1]
        return result
