"""Everything that Crossfade left on a Redis service for one route, as names; and removing exactly these.

Names are `key <name>`, `document <name>`, `group <stream key> <group>`, and `shared <stream key> <group>` for a birth
group that an earlier release made for all routes. Invariant: nothing is removed whose name was not given, and neither a
stream key itself nor what is another route's is ever named. Called by `doctor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import UsageError
from ..protocol import route_of_document
from .keys import BOARD_KEY, VERSIONS_FIELD, is_birth, lease_key, quarantine_key, route_of_birth, state_key
from .link import Command
from .nodes import Nodes, call_key
from .replies import check, is_error, pairs


class Footprint:
    """Finds and removes what belongs to a route, on the keys of one stream."""

    def __init__(self, nodes: Nodes, stream_keys: Sequence[bytes]) -> None:
        self._nodes = nodes
        self._keys = stream_keys

    async def names(self, route: str) -> list[str]:
        """What there is. Raises Unreachable, AccessRefused."""
        found: list[str] = []
        for key in self._keys:
            found += await self._beside(key, route)
        if await self._ask(lease_key(route), ("EXISTS", lease_key(route))):
            found.append(f"key {_text(lease_key(route))}")
        documents = await self._ask(BOARD_KEY, ("HKEYS", BOARD_KEY))
        found += sorted(f"document {_text(name)}" for name in documents if route_of_document(_text(name)) == route)
        return found

    async def _beside(self, key: bytes, route: str) -> list[str]:
        found: list[str] = []
        if await self._ask(state_key(key), ("HGET", state_key(key), "route")) == route.encode():
            found.append(f"key {_text(state_key(key))}")
        quarantine = quarantine_key(key, route)
        if await self._ask(quarantine, ("EXISTS", quarantine)):
            found.append(f"key {_text(quarantine)}")
        (groups,) = await call_key(self._nodes, key, [("XINFO", "GROUPS", key)], "looking for what is left")
        if not is_error(groups):
            names = [_text(pairs(group)[b"name"]) for group in groups]
            births = {name: route_of_birth(name) for name in names if is_birth(name)}
            found += [f"group {_text(key)} {name}" for name, owner in births.items() if owner == route]
            found += [f"shared {_text(key)} {name}" for name, owner in births.items() if not owner]
        return found

    async def erase(self, names: Sequence[str]) -> None:
        """Remove exactly these. Raises UsageError, Unreachable, AccessRefused."""
        for name in names:
            kind, _, rest = name.partition(" ")
            if kind == "key" and rest.startswith("crossfade:"):
                await self._ask(_bytes(rest), ("DEL", _bytes(rest)))
            elif kind == "document":
                await self._erase_document(_bytes(rest))
            elif kind in ("group", "shared") and is_birth(rest.rpartition(" ")[2]):
                key, _, group = rest.rpartition(" ")
                await self._ask(_bytes(key), ("XGROUP", "DESTROY", _bytes(key), _bytes(group)))
            else:
                raise UsageError(f"{name!r} is nothing that Crossfade made", hint="use the names that uninstall lists")

    async def _erase_document(self, name: bytes) -> None:
        await self._ask(BOARD_KEY, ("HDEL", BOARD_KEY, name))
        if set(await self._ask(BOARD_KEY, ("HKEYS", BOARD_KEY))) <= {VERSIONS_FIELD}:
            # nothing of any route is left, so nobody compares versions any more
            await self._ask(BOARD_KEY, ("DEL", BOARD_KEY))

    async def _ask(self, key: bytes, command: Command) -> Any:
        (reply,) = await call_key(self._nodes, key, [command], "looking for what is left")
        return check(reply, "looking for what is left")


def _text(name: bytes) -> str:
    return name.decode(errors="surrogateescape")


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")
