"""Up to where an audit compares: the bounds of both sides, and the quarantine as it was after them.

Hides the order in which they are asked for. The target comes first and the source after it, so that whatever the target
holds up to its bound had its original in the source by then. The quarantine comes last: what is quarantined later lies
behind all that the target holds up to its bound, so it is pending, not missing. Called by `audit`, `by_key`, `reading`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..brokers.protocol import Bounds, Log
from ..errors import AccessRefused, SourceReset, Unreachable
from ..model.position import position_order
from ..model.record import Lane, Shape
from .extent import Extent

#: asks for the source positions that the route quarantined, by source lane
Quarantine: TypeAlias = Callable[[], Awaitable[Mapping[Lane, Collection[str]]]]

#: a commit hides its records for a moment: where all is said to be settled, they are waited for
_HELD_UP_S_MAX = 5.0
_AGAIN_S = 0.25


@dataclass(frozen=True, slots=True)
class Ends:
    """What both sides hold."""

    source: dict[Lane, Bounds]
    target: dict[Lane, Bounds]
    quarantined: dict[Lane, frozenset[str]]
    #: nothing is on its way any more, as far as somebody says so
    is_settled: bool

    def is_settled_in(self, target_lane: Lane) -> bool:
        """Whether what this lane lacks at its end is missing: not where it may stand behind an open transaction."""
        return self.is_settled and not self.target[target_lane].held_up

    def held_up(self, lane: Lane, extent: Extent | None, target_lanes: Iterable[Lane]) -> str:
        """What hides records of this source lane, or of its target lanes where they should be settled; "" = nothing."""
        there = self.source[lane]
        is_within = extent is not None and position_order(there.last) >= extent.last
        hidden = [] if is_within else [there.held_up]
        hidden += [self.target[to].held_up for to in target_lanes if self.is_settled]
        return next(filter(None, hidden), "")


async def ends_of(
    source: Log,
    target: Log,
    source_lanes: Sequence[Lane],
    target_lanes: Sequence[Lane],
    quarantine: Quarantine | None,
    *,
    is_settled: bool,
) -> Ends:
    """Ask both sides. Raises Unreachable, AccessRefused."""
    until_s = time.monotonic() + (_HELD_UP_S_MAX if is_settled else 0.0)
    while True:
        target_bounds = await target.bounds(target_lanes)
        source_bounds = await source.bounds(source_lanes)
        is_held_up = any(there.held_up for there in (*source_bounds.values(), *target_bounds.values()))
        if not is_held_up or time.monotonic() >= until_s:
            break
        await asyncio.sleep(_AGAIN_S)
    found = await quarantine() if quarantine is not None else {}
    quarantined = {lane: frozenset(positions) for lane, positions in found.items()}
    return Ends(source_bounds, target_bounds, quarantined, is_settled)


async def made_anew_since(log: Log, bounds: Mapping[Lane, Bounds]) -> dict[Lane, SourceReset]:
    """Which lanes were made anew since these bounds were taken, or may have been. To be asked when all is read: of a
    topic an audit is told now and then only. Entries are looked at in every read."""
    if log.shape is not Shape.RECORD or not bounds:
        return {}
    try:
        now = await log.bounds(list(bounds))
    except (AccessRefused, Unreachable) as failure:
        # It is not there, or has fewer lanes, or nobody can tell: as bad as another one in its place.
        why = f"cannot be looked at any more, it may have been made anew while it was read: {failure.message}"
        return {lane: SourceReset(lane, f"{log.lane_name(lane)} {why}") for lane in bounds}
    return {
        lane: made_anew(lane, log.lane_name(lane))
        for lane, before in bounds.items()
        if is_made_anew(before.incarnation, now[lane].incarnation)
    }


def is_made_anew(before: str, now: str) -> bool:
    """Whether these are the incarnations of two lanes; one that is not told proves nothing."""
    return bool(before and now) and before != now


def made_anew(lane: Lane, name: str) -> SourceReset:
    """Why a lane has no verdict."""
    return SourceReset(lane, f"{name} was deleted and made anew while it was read")
