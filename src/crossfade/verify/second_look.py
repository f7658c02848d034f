"""Tells `duplicate` from `extra`: looks through the source once more for the contents of the strays that were found.

A stray is a target row without an expected partner. Its mark, if it has one, may be copied or forged, so its content
decides: where the source holds the same record, the stray is a duplicate of it, else it comes from nowhere. The look
costs one more read of the source, and only where there are strays. It also finds which strays are certainly too much
(see `surplus`), if the report keeps rows for that. Called by `audit` and `by_key`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any

from ..brokers.protocol import Bounds, Log
from ..errors import LaneError, SourceDeleted, SourceTrimmed
from ..model.position import position_text
from ..model.record import Lane, Row, Shape
from .diff import Kind
from .reading import Reading, Translates
from .report import AuditReport, Named
from .surplus import Surplus

_READ_RECORDS_MAX = 24_000
_READ_BYTES_MAX = 32 << 20


async def second_look(
    source: Log,
    mapping: Translates,
    target_shape: Shape,
    report: AuditReport,
    bounds: Mapping[Lane, Bounds],
    *,
    route_id: str,
    quarantined: Mapping[Lane, Collection[str]],
    ids_may_mark: bool | None,
) -> None:
    """Give every stray of the report its right name. Raises Unreachable, AccessRefused."""
    is_numeric = source.shape is Shape.RECORD
    surplus = Surplus(route_id, target_shape, is_numeric, quarantined, ids_may_mark)
    asked = {surplus.wants(named) for named in report.strays if report.keeps_rows} - {None}
    surplus.looked_at = {lane for lane, there in bounds.items() if there.length <= 0}
    wanted: dict[Hashable, str] = {}
    content_of = _content_of_record if target_shape is Shape.RECORD else _content_of_entry
    contents = {content_of(named.difference.row) for named in report.strays}
    readings = {lane: Reading(there) for lane, there in bounds.items()}
    unseen: set[Lane] = set()
    while len(wanted) < len(contents) or report.keeps_rows:
        places = {lane: one.place for lane, one in readings.items() if not one.is_ended}
        if not places:
            break
        outcomes = await source.read(places, _READ_RECORDS_MAX, _READ_BYTES_MAX, 1.0)
        if not outcomes:
            unseen |= places.keys()
            break
        for lane, batch in outcomes.items():
            reading = readings[lane]
            if isinstance(batch, LaneError) or reading.not_what_it_was(batch, source.lane_name(lane)):
                unseen.add(lane)
                if isinstance(batch, SourceTrimmed | SourceDeleted):
                    there = (await source.bounds([lane]))[lane]
                    reading.go_on_behind_loss(there, reading.place.position, source.shape)
                else:
                    reading.is_ended = True  # the audit itself has named it
                continue
            mapped = mapping.translate(batch, target_shape)
            _seek(mapped.positions, mapped.rows, content_of, contents, wanted, source.lane_name(lane))
            for position, row in zip(mapped.positions, mapped.rows, strict=True) if asked else ():
                if (lane, position) in asked:
                    surplus.found(lane, position, row)
            reading.take(batch)
            if reading.is_ended and lane not in unseen:
                surplus.looked_at.add(lane)
    for named in report.strays:
        named.is_surplus = report.keeps_rows and surplus.is_certain(named, report)
        _rename(report, named, wanted.get(content_of(named.difference.row)), is_all_seen=not unseen)
    report.strays.clear()


def _seek(
    positions: list[Any],
    rows: Sequence[Row],
    content_of: Callable[[Row], Hashable],
    contents: set[Hashable],
    wanted: dict[Hashable, str],
    lane_name: str,
) -> None:
    for position, row in zip(positions, rows, strict=True):
        content = content_of(row)
        if content in contents:
            wanted.setdefault(content, f"{lane_name} {position_text(position)}")


def _rename(report: AuditReport, named: Named, original: str | None, *, is_all_seen: bool) -> None:
    difference = named.difference
    if original is None and not is_all_seen:
        report.keep(Named(named.lane, difference, named.target_lane, named.is_surplus))
        return
    kind = Kind.EXTRA if original is None else Kind.DUPLICATE
    if kind is not difference.kind:
        counts = report.lanes[named.lane].counts
        counts[difference.kind] -= 1
        counts[kind] += 1
    detail = f"{difference.detail}; the source holds it " + (f"at {original}" if original else "nowhere")
    report.keep(Named(named.lane, difference._replace(kind=kind, detail=detail), named.target_lane, named.is_surplus))


def _content_of_record(row: Row) -> Hashable:
    """Without the time: a record that was written again may have another."""
    return (row[0], row[1], tuple(row[2] or ()))


def _content_of_entry(row: Row) -> Hashable:
    return tuple(row[0])
