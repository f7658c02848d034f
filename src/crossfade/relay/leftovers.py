"""Copies that a Redis target holds of a route whose keys beside them are gone: starting anew would append them again.

A Kafka target says itself how far a lane was copied, in the headers of its records. A Redis target keeps that in keys
of its own, which can be deleted while the stream stays. Looks at the marks at the beginning of a lane and at the ids of
its first and last entry, not at all of it. Called by `beginning`.
"""

from __future__ import annotations

from ..brokers.protocol import Bounds, From, Log, Start
from ..errors import AccessRefused, MarkerLost
from ..model.position import Place, position_order, position_text
from ..model.record import Batch, Lane, Shape
from ..model.route import Route
from ..model.wire import newest_origin

#: of the beginning of a lane: others may have written there before
_RECORDS = 1000
_BYTES = 4 << 20
_WAIT_S = 0.5


async def refuse_copies(route: Route, source: Log, target: Log, lanes: list[Lane]) -> None:
    """Raise MarkerLost where a target lane of these source lanes, which have no marker, holds copies of the route.

    Raises Unreachable, AccessRefused, LaneError.
    """
    if target.shape is not Shape.ENTRY:
        return
    paths = [path for lane in lanes for path in route.paths_of(lane)]
    bounds, marked = await _look(route, target, sorted({target_lane for _, target_lane in paths}))
    for lane, at in paths:
        entry = marked.get((lane, at), "")
        # A route that is one of a pair marks every record, and its source has copies of what applications wrote here.
        if at in bounds and not entry and not route.pair:
            entry = await _copy_by_id(source, lane, bounds[at])
        if entry:
            raise MarkerLost(
                f"route {route.name!r}: {target.lane_name(at)} holds copies of {source.lane_name(lane)} ({entry}), but "
                "the keys beside it that say how far it was copied are gone: a start would copy them again",
                hint=f"run `crossfade verify {route.name}`, then start each lane behind its last copied record: "
                f"`crossfade relay start {route.name} --lane {lane} --from position:...`",
            )


async def _look(
    route: Route, target: Log, lanes: list[Lane]
) -> tuple[dict[Lane, Bounds], dict[tuple[Lane, Lane], str]]:
    """Bounds of the target lanes, and for each path the first entry that carries the mark of the route."""
    marked: dict[tuple[Lane, Lane], str] = {}
    try:
        bounds = await target.bounds(lanes)
        for at in lanes:
            if not bounds[at].first:
                continue
            place = Place("", bounds[at].count - bounds[at].length)
            batch = (await target.read({at: place}, _RECORDS, _BYTES, _WAIT_S)).get(at)
            if not isinstance(batch, Batch):
                continue
            for position, row in zip(batch.positions, batch.rows, strict=True):
                origin = newest_origin(row, Shape.ENTRY)
                if origin is not None and origin.route == route.id:
                    marked.setdefault((origin.lane, at), position_text(position))
    except AccessRefused:  # a relay may write where it cannot read: only `verify` needs that right
        return {}, {}
    return bounds, marked


async def _copy_by_id(source: Log, lane: Lane, bounds: Bounds) -> str:
    """Which of the two ends of a target lane is the id of a copy, "" = none."""
    for position in filter(None, (bounds.last, bounds.first)):
        if await (_is_entry if source.shape is Shape.ENTRY else _is_record)(source, lane, position):
            return position
    return ""


async def _is_entry(source: Log, lane: Lane, position: str) -> bool:
    """Whether the source has an entry of this very id. It is begun here, which a start does in any case."""
    bounds = (await source.bounds([lane]))[lane]
    if not position_order(bounds.first) <= position_order(position) <= position_order(bounds.last):
        return False
    place = (await source.begin([lane], Start(From.POSITION, position)))[lane]
    return isinstance(place, Place) and place.position == position and bool(place.witness)


async def _is_record(source: Log, lane: Lane, position: str) -> bool:
    """Whether the source has a record that gives the id `<ms>-<offset>`."""
    bounds = (await source.bounds([lane]))[lane]
    ms, offset = position_order(position)
    if not bounds.count - bounds.length <= offset < bounds.count:
        return False
    before = Place(str(offset - 1) if offset else "", offset, bounds.incarnation)
    batch = (await source.read({lane: before}, 1, _BYTES, _WAIT_S)).get(lane)
    if not isinstance(batch, Batch) or not batch.positions:
        return False
    return bool(position_order(position_text(batch.positions[0])) == (offset, 0) and next(iter(batch.rows))[-1] == ms)
