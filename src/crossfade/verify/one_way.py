"""One direction of a pair of routes, as an audit of that direction sees its two streams.

Two routes that copy one stream both ways leave more on either side than one of them copies: in the source lie echoes of
the other route, in the target what applications wrote there. The source without echoes (by the rule that the relay
goes by) and the target without what applications wrote are what must agree. Wraps a `Log`; called by `verify` alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from ..brokers.protocol import Bounds, Log
from ..errors import LaneError
from ..model.echo import UNKNOWN, bare, part_echoes, with_echoes
from ..model.position import Place
from ..model.record import Batch, Lane
from ..model.wire import newest_origin


class _Side(ABC):
    """What an audit needs of a log, the rows chosen by a subclass."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.kind, self.shape, self.lanes, self.name, self.identity = (
            log.kind,
            log.shape,
            log.lanes,
            log.name,
            log.identity,
        )
        #: lane -> records that were left out
        self.left_out: dict[Lane, int] = {}

    def lane_name(self, lane: Lane) -> str:
        return self._log.lane_name(lane)

    async def bounds(self, lanes: Sequence[Lane]) -> dict[Lane, Bounds]:
        return await self._log.bounds(lanes)

    async def read(
        self, after: Mapping[Lane, Place], records_max: int, bytes_max: int, wait_s: float
    ) -> dict[Lane, Batch | LaneError]:
        places = {lane: bare(place) for lane, place in after.items()}
        found = await self._log.read(places, records_max, bytes_max, wait_s)
        return {
            lane: outcome if isinstance(outcome, LaneError) else self._counted(outcome, after[lane])
            for lane, outcome in found.items()
        }

    def _counted(self, batch: Batch, before: Place) -> Batch:
        chosen = self._choose(batch, before)
        self.left_out[batch.lane] = self.left_out.get(batch.lane, 0) + len(batch.rows) - len(chosen.rows)
        return chosen

    @abstractmethod
    def _choose(self, batch: Batch, before: Place) -> Batch:
        """The batch with the rows that this direction is about."""


class _WithoutEchoes(_Side):
    def __init__(self, log: Log, pair: str) -> None:
        super().__init__(log)
        self._pair = pair

    def _choose(self, batch: Batch, before: Place) -> Batch:
        if not before.position and before.count > 0 and not before.echoes:
            # the beginning is gone, or not looked at: the first echo tells where they go on
            before = with_echoes(before, UNKNOWN, 0)
        return part_echoes(batch, before, self._pair, has_gaps=True).batch


class _CopiesOnly(_Side):
    """A mark that was seen before, ordinal and epoch, was copied by an application: a relay gives none out twice."""

    def __init__(self, log: Log, route: str) -> None:
        super().__init__(log)
        self._route = route
        #: lane -> ordinals that began an epoch, and these epochs; lane -> highest ordinal
        self._epochs: dict[Lane, tuple[list[int], list[int]]] = {}
        self._last: dict[Lane, int] = {}

    def _choose(self, batch: Batch, before: Place) -> Batch:
        kept = [at for at, row in enumerate(batch.rows) if self._is_ours(batch.lane, row)]
        positions, rows = [batch.positions[at] for at in kept], [batch.rows[at] for at in kept]
        return replace(batch, positions=positions, rows=rows)

    def _is_ours(self, lane: Lane, row: Any) -> bool:
        origin = newest_origin(row, self.shape)
        if origin is None or origin.route != self._route or origin.lane != lane:
            return False
        firsts, epochs = self._epochs.setdefault(lane, ([], []))
        at = bisect_right(firsts, origin.ordinal) - 1
        is_known = at >= 0 and origin.ordinal <= self._last[lane]
        if is_known and epochs[at] == origin.epoch:
            return False
        if is_known:  # written anew by another claim: the audit names it
            del firsts[at + 1 :], epochs[at + 1 :]
        if not epochs or epochs[-1] != origin.epoch:
            firsts.append(origin.ordinal)
            epochs.append(origin.epoch)
        self._last[lane] = origin.ordinal
        return True

    def read_again(self, lane: Lane, ordinal: int) -> None:
        """What stands behind the mark with this ordinal is read once more, and is no copy of itself."""
        firsts, epochs = self._epochs.get(lane, ([], []))
        behind = bisect_right(firsts, ordinal)
        del firsts[behind:], epochs[behind:]
        if lane in self._last:
            self._last[lane] = min(self._last[lane], ordinal)


def without_echoes(source: Log, pair: str) -> tuple[Log, dict[Lane, int]]:
    """The source as its route copies it, and how many echoes of route `pair` were left out so far, by lane."""
    side = _WithoutEchoes(source, pair)
    return cast(Log, side), side.left_out


def copies_only(target: Log, route: str) -> Log:
    """The target without what applications wrote there, records of `route` that they wrote again included."""
    return cast(Log, _CopiesOnly(target, route))


def read_again(target: Log, lane: Lane, ordinal: int) -> None:
    """Tell a target that knows marks that it reads on from the one with this ordinal, once more."""
    seen = cast(object, target)
    if isinstance(seen, _CopiesOnly):
        seen.read_again(lane, ordinal)


def leaves_out(source: Log) -> bool:
    """Whether records are left out of this source on purpose: what is not in it may be there all the same."""
    return isinstance(cast(object, source), _WithoutEchoes)
