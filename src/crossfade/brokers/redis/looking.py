"""Atomic looks at stream keys: entries, counters and groups of one moment, many lanes in one pipeline.

Hides commands and the form of their replies. Invariant: what a `Look` says and the entries that come with it were true
at the same moment, on a server that was a primary then. Called by `source`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import Unreachable
from ...model.record import Lane
from .keys import is_birth
from .link import Command, Link, LinkLost, Replies, pack_one
from .nodes import Nodes, unreachable
from .reckoning import Look
from .replies import as_error, check, code_of, info_fields, is_error, pairs, too_old

#: what a look is made of; before Redis 7.0 some are missing
_TOLD = {b"entries-added", b"length", b"last-generated-id", b"max-deleted-entry-id", b"first-entry"}


@dataclass(frozen=True, slots=True)
class Range:
    """What to read: from `edge` to the end, or (reverse) from `edge` to the beginning."""

    edge: bytes
    count: int
    reverse: bool


class Looker:
    """Looks at the stream keys of one log."""

    def __init__(self, nodes: Nodes, stream_keys: Sequence[bytes]) -> None:
        self._nodes = nodes
        self._keys = stream_keys

    async def look(
        self, lanes: Sequence[Lane], ranges: Mapping[Lane, Range], bytes_max: int = 0
    ) -> dict[Lane, tuple[Look, list[Any], int]]:
        """One atomic look at each lane, the entries of the asked range, and about how many bytes came for them.

        These bytes count the first and the last entry of the stream too. More than `bytes_max` from one node are not
        waited for (0 = any number): then, as with a silent node, the link is lost.
        Raises Unreachable, AccessRefused, and UsageError for a server that is too old.
        """
        commands: dict[Lane, list[Command]] = {}
        for lane in lanes:
            key, asked = self._keys[lane], ranges[lane]
            read: Command = ("XREVRANGE", key, asked.edge, "-") if asked.reverse else ("XRANGE", key, asked.edge, "+")
            commands[lane] = [
                ("MULTI",),
                (*read, "COUNT", asked.count),
                ("XINFO", "STREAM", key),
                ("XINFO", "GROUPS", key),
                ("EXEC",),
            ]
        replies, histories = await self.call(commands, "reading", bytes_max)
        return {
            lane: (*self._parse(lane, replies[lane], histories[lane]), sum(replies[lane].sizes_bytes)) for lane in lanes
        }

    def _parse(self, lane: Lane, replies: list[Any], history: str) -> tuple[Look, list[Any]]:
        doing = f"reading {self._name(lane)}"
        for reply in replies:
            check(reply, doing)
        entries, info, groups = replies[-1]
        if is_error(entries) and code_of(entries) == "WRONGTYPE":
            return Look(exists=True, is_stream=False, history=history), []
        check(entries, doing)
        if is_error(info) and "no such key" in str(info):
            return Look(exists=False, history=history), []
        stream = pairs(check(info, doing))
        if not stream.keys() >= _TOLD:  # where no version is told, `open` could not see it
            raise too_old(f"the server of {self._name(lane)}")
        births: dict[str, str] = {}
        for group in map(pairs, check(groups, doing)):
            name = group[b"name"].decode(errors="replace")
            if is_birth(name):
                births[name] = group[b"last-delivered-id"].decode()
        first = stream[b"first-entry"]
        look = Look(
            exists=True,
            births=births,
            added=stream[b"entries-added"],
            length=stream[b"length"],
            last=stream[b"last-generated-id"].decode(),
            max_deleted=stream[b"max-deleted-entry-id"].decode(),
            first=first[0].decode() if first else "",
            history=history,
        )
        return look, entries or []

    async def call(
        self, commands: Mapping[Lane, Sequence[Command]], doing: str, bytes_max: int = 0
    ) -> tuple[dict[Lane, Replies], dict[Lane, str]]:
        """Commands of several lanes, one pipeline a node; and each node's history. Raises Unreachable."""
        lanes = list(commands)
        groups = await self._nodes.by_link([self._keys[lane] for lane in lanes])
        flights: list[tuple[Link, list[Lane], asyncio.Future[Replies]]] = []
        for link, indexes in groups.items():
            mine = [lanes[index] for index in indexes]
            packed = [pack_one(("INFO", "replication"))]
            packed += [pack_one(command) for lane in mine for command in commands[lane]]
            flights.append((link, mine, link.send(b"".join(packed), len(packed), bytes_max)))
        replies: dict[Lane, Replies] = {}
        histories: dict[Lane, str] = {}
        for link, mine, future in flights:
            try:
                got = await link.wait(future)
            except LinkLost as error:
                self._nodes.distrust()
                raise unreachable(error, doing) from error
            history = self._history(link, got[0])
            self._nodes.heed(got)
            at = 1
            for lane in mine:
                end = at + len(commands[lane])
                replies[lane] = Replies(got[at:end], got.sizes_bytes[at:end])
                at = end
                histories[lane] = history
        return replies, histories

    def _history(self, link: Link, info: Any) -> str:
        """The replication id of a primary, "" where INFO is not allowed. Raises Unreachable on a replica."""
        if is_error(info):
            if code_of(info) == "NOPERM":
                return ""
            raise as_error(info, "reading the role")
        found = info_fields(info)
        if found.get("role") == "slave":
            self._nodes.distrust()
            link.abort("it has become a replica")
            raise Unreachable(f"Redis at {link.address} has become a replica", hint="the new primary is looked for")
        return found.get("master_replid", "")[:8]

    def _name(self, lane: Lane) -> str:
        return self._keys[lane].decode(errors="replace")


def digest_of(fields: list[bytes]) -> str:
    """What tells an entry from another one at the same id."""
    return hashlib.blake2b(pack_one(tuple(fields)), digest_size=8).hexdigest()
