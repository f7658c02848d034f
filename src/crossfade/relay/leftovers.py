"""Copies that a Redis target holds of a route whose keys beside them are gone: starting anew would append them again.

A Kafka target says itself how far a lane was copied, in the headers of its records. A Redis target keeps that in keys
of its own, which can be deleted while the stream stays. What is left are the marks of single entries, looked for at the
beginning of a lane, and ids: an entry without a mark may have that of its original, which is asked of its first and
last entry. Called by `beginning`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from ..brokers.protocol import Bounds, From, Log, Start
from ..errors import AccessRefused, LaneError, MarkerLost, Unreachable
from ..model.lossless import without_origin_entry
from ..model.position import Place, order_of, position_order, position_text
from ..model.record import Batch, Lane, Row, Shape
from ..model.route import LaneMap, Route
from ..model.wire import newest_origin

#: of the beginning of a lane: others may have written there before
_RECORDS = 1000
_BYTES = 4 << 20
_WAIT_S = 1.0
#: a source says within this time whether it has a record: a first read connects, and asks for much, before it answers
_ANSWER_S = 10.0
#: how often the beginning of a lane is read anew that was trimmed meanwhile
_TRIES = 5
_PAUSE_S = 0.2
_SEQUENCE_MAX = 2**64 - 1


async def refuse_copies(
    route: Route, source: Log, target: Log, lanes: list[Lane], starts: Mapping[Lane, Place]
) -> None:
    """Raise MarkerLost where a target lane of these source lanes, which have no marker, holds copies of the route.

    `starts`: where reading begins. A copy without mark that is the end of its lane, and stands where reading begins,
    is not refused: nothing is copied twice behind it, and nothing is passed over.
    Raises Unreachable, AccessRefused, LaneError.
    """
    if target.shape is not Shape.ENTRY:
        return
    paths = [path for lane in lanes for path in route.paths_of(lane)]
    found = await _look(route, target, sorted({target_lane for _, target_lane in paths}))
    for lane, at in paths:
        if at not in found:
            continue
        why = found[at].marked.get(lane, "")
        if why:
            why = f"{why} carries the route's mark"
        elif _may_lack_marks(route, lane):
            why = await _copy_by_id(source, target, (lane, at), found[at], starts.get(lane), _way_out(route, lane))
        if why:
            raise MarkerLost(
                f"route {route.name!r}: {target.lane_name(at)} holds copies of {source.lane_name(lane)} ({why}), but "
                "no keys beside it say how far it was copied: a start would copy them again, or pass over others",
                hint=f"run `crossfade verify {route.name}`, then {_way_out(route, lane)}",
            )


def _way_out(route: Route, lane: Lane) -> str:
    return (
        "start each lane behind its last copied record, which is not checked: "
        f"`crossfade relay start {route.name} --lane {lane} --from position:...`"
    )


def _may_lack_marks(route: Route, lane: Lane) -> bool:
    """Whether copies of this source lane may carry their origin in their ids alone.

    By key they carry marks as soon as the source has a second lane: then one of them alone, the first, may have been
    copied without before. A route that is one of a pair marks every record, and its source has copies of what
    applications wrote here.
    """
    return not route.pair and (route.lane_map is LaneMap.ONE_TO_ONE or lane == 0)


# --- the target -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Found:
    """What was seen of a target lane that is not empty."""

    bounds: Bounds
    #: source lane -> the first entry that carries the mark of the route
    marked: dict[Lane, str] = field(default_factory=dict)
    #: position -> row of the first entry, and of the last one where the lane is short
    ends: dict[str, Row] = field(default_factory=dict)


async def _look(route: Route, target: Log, lanes: list[Lane]) -> dict[Lane, _Found]:
    """The beginnings of target lanes, without those that are empty. Raises Unreachable."""
    found = {}
    try:
        for at, bounds in (await target.bounds(lanes)).items():
            seen = await _look_at(route, target, at, bounds)
            if seen is not None:
                found[at] = seen
    except AccessRefused:  # a relay may write where it cannot read: only `verify` needs that right
        return {}
    return found


async def _look_at(route: Route, target: Log, at: Lane, bounds: Bounds) -> _Found | None:
    """The beginning of one; None = it is empty. Raises Unreachable, AccessRefused."""
    for _ in range(_TRIES):
        if not bounds.first:
            return None
        found = _Found(bounds)
        if await _read_beginning(route, target, at, found):
            return found
        await asyncio.sleep(_PAUSE_S)
        bounds = (await target.bounds([at]))[at]
    raise Unreachable(
        f"whether {target.lane_name(at)} holds copies of route {route.name!r} cannot be told: its beginning changes "
        "all the time",
        hint="run the command again while nobody trims the target",
    )


async def _read_beginning(route: Route, target: Log, at: Lane, found: _Found) -> bool:
    """Take in the first entries; False = they were trimmed meanwhile, or did not come."""
    place = Place("", found.bounds.count - found.bounds.length)
    records, size_bytes, is_end = 0, 0, False
    while not is_end and records < _RECORDS and size_bytes < _BYTES:  # one read may give less than it is asked for
        batch = (await target.read({at: place}, _RECORDS - records, _BYTES - size_bytes, _WAIT_S)).get(at)
        if not isinstance(batch, Batch):
            return False
        for position, row in zip(map(position_text, batch.positions), batch.rows, strict=True):
            origin = newest_origin(row, Shape.ENTRY)
            if origin is not None and origin.route == route.id:
                found.marked.setdefault(origin.lane, position)
            if position in (found.bounds.first, found.bounds.last):
                found.ends[position] = row
        records, size_bytes = records + len(batch.positions), size_bytes + batch.size_bytes
        place, is_end = batch.place, batch.at_end
    return True


async def _is_same_entry(target: Log, at: Lane, position: str, witness: str) -> bool:
    """Whether the target has this very entry. Raises Unreachable, AccessRefused."""
    found = (await target.read({at: Place(position, -1, "", witness)}, 1, _BYTES, 0.0)).get(at)
    return not isinstance(found, LaneError)


# --- the source -----------------------------------------------------------------------------------------------------


async def _copy_by_id(
    source: Log, target: Log, path: tuple[Lane, Lane], found: _Found, start: Place | None, way_out: str
) -> str:
    """Which of the two ends of a target lane is a copy, and what shows it; "" = none, or `start` goes on from it."""
    lane, at = path
    for position in dict.fromkeys((found.bounds.last, found.bounds.first)):
        row = found.ends.get(position)
        if row is not None and newest_origin(row, Shape.ENTRY) is not None:
            continue  # it says itself where it comes from
        is_entry = source.shape is Shape.ENTRY
        # `<ms>-<offset>`
        wanted = position if is_entry else str(position_order(position)[1])
        answer = await _record_at(source, lane, wanted, way_out)
        if answer is None:
            continue
        if not is_entry:
            # What it is made of is the mapping's affair: nobody but a relay gives ids of both time and offset.
            is_copy = next(iter(answer.rows))[-1] == position_order(position)[0]
        else:
            is_copy = await _is_copied_entry(target, at, position, row, answer)
        if not is_copy:
            continue
        if position == found.bounds.last and start is not None and start.position == wanted:
            return ""
        what = "both in id and content" if is_entry else "in time and offset, which are its id"
        return f"{position} is equal {what}"
    return ""


async def _is_copied_entry(target: Log, at: Lane, position: str, row: Row | None, original: Batch) -> bool:
    """Whether the entry of the target at `position` has what that of the source has, which has the same id."""
    expected = next(iter(original.rows))
    stripped = without_origin_entry(expected)
    if row is not None:
        return list(row[0]) == list(stripped[0])
    # Its row is far from the beginning. Whether it is the very same can be asked; not so where the copy lacks a mark
    # that its original has of an older hop: then the id alone counts.
    return stripped is not expected or await _is_same_entry(target, at, position, original.place.witness)


async def _record_at(source: Log, lane: Lane, position: str, way_out: str) -> Batch | None:
    """The one record of the source at `position`; None = there is none, or none any more: then it is not copied again.

    Raises Unreachable, AccessRefused, LaneError, and MarkerLost where the source gives errors instead of the record.
    """
    place = await _place_before(source, lane, position)
    clock, trouble = asyncio.get_running_loop().time, ""
    until_s = clock() + _ANSWER_S
    while place is not None and clock() < until_s:
        answer = (await source.read({lane: place}, 1, _BYTES, _WAIT_S)).get(lane)
        if isinstance(answer, LaneError):  # trimmed meanwhile, or made anew: the bounds say what is there now
            trouble = f": {answer.message}"
            await asyncio.sleep(_PAUSE_S)
            place = await _place_before(source, lane, position)
        elif answer is not None and answer.positions:
            return answer if order_of(answer.positions[0]) == position_order(position) else None
        elif answer is not None and answer.at_end:
            return None
        elif answer is not None:
            place = answer.place
    if place is None:
        return None
    untold = f"whether the target holds a copy of {source.lane_name(lane)} {position} cannot be told"
    if trouble:
        raise MarkerLost(f"{untold}{trouble}", hint=f"see to that and run the command again, or {way_out}")
    raise Unreachable(
        f"{untold}: the source gave nothing within {_ANSWER_S:.0f} s",
        hint=f"check that the brokers of the source run and can be reached, and run the command again, or {way_out}",
    )


async def _place_before(source: Log, lane: Lane, position: str) -> Place | None:
    """Where to read on to come to `position`; None = the source has nothing there.

    A Redis source is begun for it, which a start does in any case. Raises Unreachable, AccessRefused, LaneError.
    """
    bounds = (await source.bounds([lane]))[lane]
    number, sequence = order = position_order(position)
    if source.shape is Shape.RECORD:
        if not bounds.count - bounds.length <= number < bounds.count:
            return None
        return Place(str(number - 1) if number else "", number, bounds.incarnation)
    if not bounds.first or not position_order(bounds.first) <= order <= position_order(bounds.last):
        return None
    before = f"{number}-{sequence - 1}" if sequence else f"{number - 1}-{_SEQUENCE_MAX}"
    place = (await source.begin([lane], Start(From.POSITION, before)))[lane]
    if isinstance(place, LaneError):
        raise place
    # A Redis source moves its birth group along with a place that names it.
    return msgspec.structs.replace(place, incarnation="")
