"""Echoes: records that the route of the other way wrote, which a route must not copy back. Pure.

Two routes that copy one stream in both directions are a declared pair. Each passes over what the other one wrote, and
nothing else: applications copy marks (a dead letter that is replayed, a task that is queued again), so a mark alone
proves nothing. An echo carries the paired route's id, this very lane, and the ordinal behind the last echo's; copied
marks are older, so their records are native and are copied. Called by the relay and by the auditor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from .position import Place, order_of, position_order, position_text
from .record import Batch, Row
from .wire import newest_origin

#: `Place.echo` where the last echo is not known (a loss was accepted, or a marker was rebuilt): the next one tells
UNKNOWN = -1


class Parted(NamedTuple):
    """A batch without its echoes."""

    batch: Batch
    #: see `Write.passed`
    passed: list[tuple[tuple[int, int], int, int]]
    #: positions of native records whose marks claim to be later echoes than the next: echoes are missing, or a forgery
    out_of_turn: list[str]


def part_echoes(batch: Batch, before: Place, pair: str, *, has_gaps: bool = False) -> Parted:
    """Leave out the echoes of route `pair` among the rows behind `before`, and count them in the batch's place.

    `has_gaps`: records of the source may be deleted before they are read, so a later ordinal is an echo too.
    """
    last, echoes = before.echo, before.echoes
    passed = [(position_order(before.position), last, echoes)]
    out_of_turn: list[str] = []
    kept: list[int] = []
    for at, row in enumerate(batch.rows):
        origin = newest_origin(row, batch.shape)
        if origin is None or origin.route != pair or origin.lane != batch.lane:
            kept.append(at)
        elif last == UNKNOWN or origin.ordinal == last + 1 or (has_gaps and origin.ordinal > last):
            last, echoes = origin.ordinal, echoes + 1
            passed.append((order_of(batch.positions[at]), last, echoes))
        else:
            kept.append(at)
            if origin.ordinal > last:
                out_of_turn.append(position_text(batch.positions[at]))
    place = with_echoes(batch.place, last, echoes)
    if len(kept) == len(batch.rows):
        return Parted(_replaced(batch, batch.positions, batch.rows, place), passed, out_of_turn)
    positions = [batch.positions[at] for at in kept]
    all_rows = list(batch.rows)
    rows = [all_rows[at] for at in kept]
    return Parted(_replaced(batch, positions, rows, place), passed, out_of_turn)


def with_echoes(place: Place, echo: int, echoes: int) -> Place:
    """The place with what was passed over before it."""
    return Place(place.position, place.count, place.incarnation, place.witness, echo, echoes)


def bare(place: Place) -> Place:
    """The place as its source knows it."""
    return with_echoes(place, 0, 0) if place.echo or place.echoes else place


def _replaced(batch: Batch, positions: list[Any], rows: Sequence[Row], place: Place) -> Batch:
    return Batch(batch.lane, batch.shape, positions, rows, place, batch.at_end, batch.size_bytes, batch.deleted)
