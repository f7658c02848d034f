"""A group in memory: hands out source lanes to processes, one generation after another.

Hides the order of a rebalance: every member first gives up what others will get, then all are told their lanes and
the handle of the new generation. Invariant: handles of older generations are not current any more, so a process that
missed the change is refused by claim and append. Called by tests and simulation in place of Kafka's group.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from ...errors import Fenced
from ...model.record import Lane
from ..protocol import Listener


@dataclass(eq=False, slots=True)
class Handle:
    """What a member shows when it claims and appends."""

    group: MemoryGroup
    instance: str
    generation: int


def is_current(token: object | None) -> bool:
    """False for the handle of an older generation; anything that is no handle of ours does not matter."""
    if not isinstance(token, Handle):
        return True
    member = token.group.members.get(token.instance)
    return member is not None and token.generation == token.group.generation


@dataclass(eq=False, slots=True)
class _Member:
    listener: Listener
    lanes: frozenset[Lane] = frozenset()
    is_dead: bool = False
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class MemoryGroup:
    """Lanes 0 to `lanes` - 1, shared by all members as evenly as possible."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.generation = 0
        self.members: dict[str, _Member] = {}
        self._changing = asyncio.Lock()

    def member(self, instance: str) -> MemoryAssignment:
        """The Assignment of the process named `instance`."""
        return MemoryAssignment(self, instance)

    async def join(self, instance: str, listener: Listener) -> _Member:
        async with self._changing:
            older = self.members.pop(instance, None)
            if older is not None:
                older.gone.set()
                await older.listener.lost(older.lanes)
            member = self.members[instance] = _Member(listener)
            await self._rebalance()
            return member

    async def leave(self, instance: str, member: _Member) -> None:
        async with self._changing:
            if self.members.get(instance) is member and not member.is_dead:
                await member.listener.revoked(member.lanes)
                del self.members[instance]
                await self._rebalance()

    def kill(self, instance: str) -> None:
        """The process died without leaving: its lanes are nobody's until `expire`, or until its name joins again."""
        if instance in self.members:
            self.members[instance].is_dead = True

    async def expire(self, instance: str) -> None:
        """End the member's session, as a broker does with a process that was cut off; it may not even notice."""
        async with self._changing:
            member = self.members.pop(instance, None)
            if member is not None:
                member.gone.set()
                await self._rebalance()
                await member.listener.lost(member.lanes)

    async def _rebalance(self) -> None:
        names = sorted(self.members)
        shares = {name: frozenset(range(place, self.lanes, len(names))) for place, name in enumerate(names)}
        for name, share in shares.items():
            member = self.members[name]
            if member.lanes - share:
                await member.listener.revoked(member.lanes - share)
        self.generation += 1
        for name, share in shares.items():
            member = self.members[name]
            member.lanes = share
            await member.listener.assigned(share, Handle(self, name, self.generation))


class MemoryAssignment:
    """One process's membership."""

    def __init__(self, group: MemoryGroup, instance: str) -> None:
        self._group = group
        self._instance = instance

    async def run(self, listener: Listener) -> None:
        """Join and stay until cancelled. Raises Fenced when the session ended or the name was taken."""
        member = await self._group.join(self._instance, listener)
        try:
            await member.gone.wait()
        finally:
            await self._group.leave(self._instance, member)
        raise Fenced(f"another process took the name {self._instance!r}, or its session ended", hint="join again")
