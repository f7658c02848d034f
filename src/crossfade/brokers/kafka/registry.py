"""Which route writes to a target topic, and how a route is split by hand: two documents on the target's board.

Invariant: at most one route is entered for a topic; a second one is refused by name. Asked at every claim of a new
process, after the producer is initialised where the answer could change under it.
"""

from __future__ import annotations

import msgspec

from ...errors import RouteConflict
from ..protocol import Document, VersionConflict
from . import names
from .board import KafkaBoard


class _Entry(msgspec.Struct, frozen=True):
    version: int
    route: str
    topic_id: str


class _Shards(msgspec.Struct, frozen=True, omit_defaults=True):
    version: int
    count: int
    #: earlier splits whose writers may not all be fenced yet
    unfenced: tuple[int, ...] = ()


class Registry:
    """The entry of one target topic."""

    def __init__(self, board: KafkaBoard, topic: str) -> None:
        self._board = board
        self._topic = topic
        self._entered: _Entry | None = None

    async def enter(self, route: str, topic_id: str, *, anew: bool = False) -> str:
        """Enter the route for the topic; the topic id that it was entered with. Raises RouteConflict.

        What was found once is not asked for again, but `anew`: another process of the route may have followed.
        """
        if not anew and self._entered is not None and self._entered.route == route:
            return self._entered.topic_id
        name = names.target_document(self._topic)
        while True:
            found = await self._board.get(name)
            if found is not None:
                entry = self._entry_of(found, route)
                self._entered = entry
                return entry.topic_id
            entry = _Entry(1, route, topic_id)
            try:
                await self._board.put(name, msgspec.json.encode(entry), 0)
            except VersionConflict:
                continue
            self._entered = entry
            return topic_id

    async def follow(self, route: str, topic_id: str) -> None:
        """Note that nothing was copied yet and the topic is a new one, or that its id is told at last.

        Raises RouteConflict.
        """
        name, entry = names.target_document(self._topic), _Entry(1, route, topic_id)
        while True:
            found = await self._board.get(name)
            if found is not None and self._entry_of(found, route) == entry:  # another process was first
                break
            try:
                await self._board.put(name, msgspec.json.encode(entry), found.version if found is not None else 0)
            except VersionConflict:
                continue
            break
        self._entered = entry

    def _entry_of(self, found: Document, route: str) -> _Entry:
        entry = msgspec.json.decode(found.body, type=_Entry)
        if entry.route != route:
            raise RouteConflict(
                f"route {entry.route} writes to topic {self._topic}; route {route} may not write there too",
                hint=f"stop route {entry.route} and run `crossfade uninstall` for it, or choose another topic",
            )
        return entry

    async def leave(self, route: str) -> None:
        """Remove the entry where it is the route's."""
        name = names.target_document(self._topic)
        found = await self._board.get(name)
        if found is not None and msgspec.json.decode(found.body, type=_Entry).route == route:
            await self._board.delete(name)
        self._entered = None

    async def check_shards(self, route: str, shard: tuple[int, int]) -> None:
        """Refuse a shard of another split than the published one; the first shard publishes. Raises RouteConflict."""
        name = names.shards_document(route)
        while True:
            found = await self._board.get(name)
            if found is not None:
                count = msgspec.json.decode(found.body, type=_Shards).count
                if count != shard[1]:
                    raise RouteConflict(
                        f"route {route} is split into {count} shards, this process is shard {shard[0]}/{shard[1]}",
                        hint=f"use --shard i/{count}, or change the split: `crossfade relay reshard ROUTE {shard[1]}`",
                    )
                return
            try:
                await self._board.put(name, msgspec.json.encode(_Shards(1, shard[1])), 0)
            except VersionConflict:
                continue
            return

    async def publish_shards(self, route: str, count: int) -> int:
        """Publish a new split; the old one (0 = there was none). Who fences the old ids afterwards may go on."""
        name = names.shards_document(route)
        while True:
            found: Document | None = await self._board.get(name)
            before = msgspec.json.decode(found.body, type=_Shards) if found is not None else _Shards(1, 0)
            old = before.count
            unfenced = tuple(sorted({*before.unfenced, old} - {0, count}))
            try:
                await self._board.put(
                    name,
                    msgspec.json.encode(_Shards(1, count, unfenced)),
                    found.version if found is not None else 0,
                )
            except VersionConflict:
                continue
            return old

    async def split(self, route: str) -> tuple[int, tuple[int, ...]]:
        """The published number of shards (0 = none), and earlier ones whose writers may not all be fenced."""
        found = await self._board.get(names.shards_document(route))
        if found is None:
            return 0, ()
        shards = msgspec.json.decode(found.body, type=_Shards)
        return shards.count, shards.unfenced

    async def note_fenced(self, route: str) -> None:
        """The writers of all earlier splits are fenced. Raises VersionConflict where the split changed meanwhile."""
        name = names.shards_document(route)
        found = await self._board.get(name)
        if found is not None:
            count = msgspec.json.decode(found.body, type=_Shards).count
            await self._board.put(name, msgspec.json.encode(_Shards(1, count)), found.version)
