"""The part of a source that an audit is limited to: from one position or time on, up to another, both included.

Hides that positions are numbers or ids, and that a time is arithmetic on a Redis id but a question to Kafka. Whether a
record belongs to the extent is decided by its *source* position alone, on both sides: so a copy whose time was altered
is still compared with its original. Called by `audit` and `by_key`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from ..brokers.protocol import Bounds, From, Log, Start
from ..errors import LaneError, UsageError
from ..model.position import position_order
from ..model.record import Lane, Shape

Order: TypeAlias = tuple[int, int]

_FIRST: Order = (-1, -1)
_LAST: Order = (1 << 80, 0)
_SEQUENCE_MAX = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Extent:
    """Orders of the first and the last source position that belong to it."""

    first: Order = _FIRST
    last: Order = _LAST

    def __contains__(self, order: object) -> bool:
        return isinstance(order, tuple) and self.first <= order <= self.last

    @property
    def before(self) -> Order:
        """Just before its first position."""
        return (self.first[0], self.first[1] - 1)

    def leaves_out(self, order: Order, is_marked: bool) -> bool:
        """Whether a target row that stands among rows of the extent is a copy of what lies outside of it.

        An entry id that only looks like a copy's (no mark) and names what lies before is none: ids rise with the copy.
        """
        return order > self.last or (order < self.first and is_marked)

    def clip(self, bounds: Bounds, shape: Shape) -> Bounds:
        """The bounds of the source lane, with an end not behind the extent's."""
        if not bounds.last or position_order(bounds.last) <= self.last:
            return bounds
        if self.last[0] < 0:
            return replace(bounds, length=0)
        text = str(self.last[0]) if shape is Shape.RECORD else f"{self.last[0]}-{self.last[1]}"
        return replace(bounds, last=text)


async def extents_of(
    source: Log, lanes: Sequence[Lane], since: Start | None, until: Start | None
) -> dict[Lane, Extent] | None:
    """The extent of each lane between two positions or times; None = no limit was given.

    A time stands for the first record of that time or later: it is part of an extent that begins there, and not of one
    that ends there. Raises UsageError, Unreachable, AccessRefused.
    """
    if since is None and until is None:
        return None
    begins = dict.fromkeys(lanes, _FIRST) if since is None else await _orders(source, lanes, since)
    ends = dict.fromkeys(lanes, _LAST)
    if until is not None:
        ends = await _orders(source, lanes, until)
        if until.where is From.TIME:
            ends = {lane: _preceding(order, source.shape) for lane, order in ends.items()}
        elif source.shape is Shape.ENTRY and "-" not in until.value:
            ends = {lane: (order[0], _SEQUENCE_MAX) for lane, order in ends.items()}
    return {lane: Extent(begins[lane], ends[lane]) for lane in lanes}


async def _orders(source: Log, lanes: Sequence[Lane], limit: Start) -> dict[Lane, Order]:
    """The order of the limit in each lane."""
    if limit.where is From.POSITION:
        if source.shape is Shape.RECORD and "-" in limit.value:
            raise UsageError(f"{limit.value!r} is no offset", hint="positions of Kafka are whole numbers")
        return dict.fromkeys(lanes, position_order(limit.value))
    if source.shape is Shape.ENTRY:
        return dict.fromkeys(lanes, (int(limit.value), 0))
    places = await source.begin(lanes, limit)  # on a source of records this only asks
    found = {}
    for lane, place in places.items():
        if isinstance(place, LaneError):
            raise place
        found[lane] = (place.count, 0)
    return found


def _preceding(order: Order, shape: Shape) -> Order:
    return (order[0] - 1, 0 if shape is Shape.RECORD else _SEQUENCE_MAX)
