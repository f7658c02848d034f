"""Removes single entries from a target's stream keys, for `crossfade verify --repair apply`.

Hides the script that looks and removes in one step. Invariant: an entry is removed only while it holds exactly what the
caller has seen. Removing leaves last-generated-id and entries-added as they are, so a relay that comes back finds its
lane as it left it. Called by the CLI.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...model.record import Lane
from ..removal import Removal
from .link import Command
from .nodes import Nodes, call_key
from .replies import check
from .scripts import script

#: commands in one pipeline
_AT_ONCE = 500
_OUTCOMES = {b"OK": Removal.REMOVED, b"GONE": Removal.GONE, b"CHANGED": Removal.CHANGED}


class RedisRemover:
    """Removes from the stream keys of one log, over its connections."""

    def __init__(self, nodes: Nodes, stream_keys: Sequence[bytes]) -> None:
        self._nodes = nodes
        self._keys = stream_keys

    async def entries(self, lane: Lane, positions: Sequence[str]) -> dict[str, list[bytes]]:
        """See `Remover.entries`."""
        doing = f"reading {self._name(lane)}"
        commands: list[Command] = [("XRANGE", self._keys[lane], position, position) for position in positions]
        found: dict[str, list[bytes]] = {}
        for position, reply in zip(positions, await self._call(lane, commands, doing), strict=True):
            for _, fields in check(reply, doing):
                found[position] = fields
        return found

    async def remove(self, lane: Lane, entries: Mapping[str, Sequence[bytes]]) -> dict[str, Removal]:
        """See `Remover.remove`."""
        doing = f"removing from {self._name(lane)}"
        remove, key = script("remove"), self._keys[lane]
        # Loaded each time: a server that forgot it would refuse the calls, and nobody would know how many were done.
        load: Command = ("SCRIPT", "LOAD", remove.text)
        check((await call_key(self._nodes, key, [load], doing))[0], doing)
        commands = [remove.call([key], position, *fields) for position, fields in entries.items()]
        replies = await self._call(lane, commands, doing)
        return {position: _OUTCOMES[check(reply, doing)[0]] for position, reply in zip(entries, replies, strict=True)}

    async def _call(self, lane: Lane, commands: Sequence[Command], doing: str) -> list[Any]:
        replies: list[Any] = []
        for first in range(0, len(commands), _AT_ONCE):
            replies += await call_key(self._nodes, self._keys[lane], commands[first : first + _AT_ONCE], doing)
        return replies

    def _name(self, lane: Lane) -> str:
        return self._keys[lane].decode(errors="replace")
