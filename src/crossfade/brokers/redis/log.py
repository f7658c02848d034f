"""A set of Redis stream keys as a `Log`: the front of `source` and `target`.

Hides which server holds which key. Rows are entries `(fields, time_ms)`; positions are entry ids as bytes, exactly as
the server gave them. Called by `wiring`; the relay and the auditor see only the Protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from ...errors import InvariantBroken, LaneError, Unreachable, UsageError
from ...model.position import Marker, Place
from ...model.record import Batch, Lane, Path, Shape, Write
from ..protocol import Appended, Bounds, Claim, Owner, Start
from .claims import Claims, RedisClaim
from .discover import BEYOND_LATER, count_keys
from .keys import check_slots
from .link import LinkLost
from .nodes import Nodes
from .pieces import append_in_pieces
from .replies import VERSION_MIN, check, code_of, info_fields, is_error, too_old, version_in
from .settings import RedisSettings
from .source import Source
from .target import Target


class RedisLog:
    """One stream (a list of stream keys) on one Redis or Valkey service."""

    kind: str = "redis"
    reads_ahead: bool = False
    shape: Shape = Shape.ENTRY

    def __init__(
        self,
        settings: RedisSettings,
        stream_keys: Sequence[str | bytes],
        *,
        name: str,
        route: str = "",
        deleted: Literal["halt", "count"] = "halt",
        read: Literal["at_once", "replicated"] = "at_once",
        memory_bytes_max: int = 0,
        key_of: Callable[[int], str] | None = None,
        is_paired: bool = False,
    ) -> None:
        """`route`: id of the route, as a source on whose keys it gives births. `deleted`: what happens if applications
        delete entries that are not copied yet. `read`: hand out entries at once, or only when all replicas have them.
        `memory_bytes_max`: as a target, stop above it (0 = maxmemory). `key_of`: the stream key of any lane, where more
        lanes may come than there are now. `is_paired`: the route is one of a pair, and must mark what it writes."""
        if not stream_keys:
            raise UsageError(f"stream {name} has no stream keys", hint="set count, or name the keys")
        self.stream_keys: list[bytes] = [key.encode() if isinstance(key, str) else key for key in stream_keys]
        if len(set(self.stream_keys)) != len(self.stream_keys):
            raise UsageError(f"stream {name} names a stream key twice", hint="each lane needs a key of its own")
        self.settings = settings
        self.name = name
        self.lanes: int = len(self.stream_keys)
        self.identity: str = f"{settings.identity}/{name}"
        self._key_of = key_of
        self.nodes = Nodes(settings)
        self.source = Source(self.nodes, self.stream_keys, route=route, deleted=deleted, read=read)
        self.claims = Claims(self.nodes, self.stream_keys, alone="" if is_paired else route)
        self.target = Target(self.nodes, self.stream_keys, memory_bytes_max)

    def lane_name(self, lane: Lane) -> str:
        """The stream key of a lane."""
        return self.stream_keys[lane].decode(errors="replace")

    async def open(self) -> None:
        """Connect and check the version. Raises Unreachable, AccessRefused, UsageError."""
        if self.settings.mode == "cluster":
            check_slots(self.stream_keys)
        link = await self.nodes.of_key(self.stream_keys[0])
        try:
            (text,) = await link.call([("INFO", "server")])
        except LinkLost as error:
            raise Unreachable(f"Redis at {link.address}: {error}") from error
        if is_error(text) and code_of(text) == "NOPERM":
            return  # doctor says what this costs
        words, numbers = version_in(info_fields(check(text, "reading the version")))
        # some services tell no numbers; doctor says what this costs
        if numbers is not None and numbers < VERSION_MIN:
            raise too_old(f"{words} at {link.address}")

    async def count_lanes(self) -> int:
        """See `Log.count_lanes`. Raises UsageError, Unreachable, AccessRefused."""
        if self._key_of is None:
            return self.lanes
        return await count_keys(self.nodes, self._key_of, known=self.lanes, beyond=BEYOND_LATER)

    async def bounds(self, lanes: Sequence[Lane]) -> dict[Lane, Bounds]:
        """See `Log.bounds`. Raises Unreachable, AccessRefused."""
        return await self.source.bounds(lanes)

    async def begin(self, lanes: Sequence[Lane], start: Start) -> dict[Lane, Place | LaneError]:
        """See `Log.begin`. Raises UsageError, Unreachable, AccessRefused."""
        return await self.source.begin(lanes, start)

    async def read(
        self, after: Mapping[Lane, Place], records_max: int, bytes_max: int, wait_s: float
    ) -> dict[Lane, Batch | LaneError]:
        """See `Log.read`. Raises Unreachable, AccessRefused."""
        return await self.source.read(after, records_max, bytes_max, wait_s)

    async def claim(self, owner: Owner, paths: Sequence[Path]) -> Claim:
        """See `Log.claim`. Raises RouteConflict, Fenced, Indeterminate, Unreachable, AccessRefused."""
        return await self.claims.claim(owner, paths)

    async def append(
        self, claim: Claim, writes: Sequence[Write], on_sent: Callable[[], None] | None = None
    ) -> dict[Path, Appended | LaneError]:
        """See `Log.append`. Raises Fenced, Indeterminate, Unreachable, AccessRefused."""
        if not isinstance(claim, RedisClaim):
            raise InvariantBroken("a claim is used with the log that gave it")
        if claim.owner.pair:
            return await append_in_pieces(self.target, claim, writes, on_sent)
        return await self.target.append(claim, writes, on_sent)

    async def markers_of(self, route: str, paths: Sequence[Path]) -> dict[Path, Marker]:
        """See `Log.markers_of`. Raises GuaranteeRefused, Unreachable, AccessRefused."""
        return await self.claims.markers_of(route, paths)

    async def quarantined(self, route: str) -> dict[Lane, frozenset[str]]:
        """See `Log.quarantined`. Raises Unreachable, AccessRefused."""
        return await self.source.quarantined(route)

    async def close(self) -> None:
        """See `Log.close`."""
        await self.nodes.close()
