"""The first start of a lane: where it begins, on a paired route with the echoes that lie before it; its first marker.

An echo is known by its ordinal, so a start must know the ordinal of the last echo before it. The paired route's own
marker, which lies beside the source, says it where the start is at or behind that marker's record; a start before it
is counted through from the beginning of the lane, and refused where that beginning is gone. Called by `relay start`,
and by `relay run` with `--start` and for lanes that came later.
"""

from __future__ import annotations

import asyncio

import structlog

from ..brokers.protocol import From, Log, Owner, Start
from ..errors import (
    BrokerError,
    GuaranteeRefused,
    Indeterminate,
    Kind,
    LaneError,
    Unreachable,
    UsageError,
)
from ..model.echo import bare, part_echoes, with_echoes
from ..model.position import Marker, Place, order_of, position_order
from ..model.record import Lane, Path, Write
from ..model.route import Route
from .documents import RouteBoard
from .leftovers import refuse_copies

_START_TRIES = 6
_TRIES = 10
_READ_RECORDS = 20_000
_READ_BYTES = 16 << 20
_READ_WAIT_S = 0.5
_STALL_S = 60.0


async def start_lanes(
    route: Route,
    source: Log,
    target: Log,
    board: RouteBoard,
    start: Start,
    lanes: list[Lane],
    *,
    by_hand: bool = False,
) -> dict[Lane, Place]:
    """Write the first marker of lanes that have none: the explicit beginning of a copy.

    Lanes that already have a marker keep it (starting twice changes nothing), so a doubtful outcome is settled as in
    the relay: claim anew, read back, go on. Returns the places of the lanes that were started now.
    `by_hand`: an operator gave `start` just now; a position is for one lane where the route was started before.
    Raises UsageError, RouteConflict, MarkerLost, Indeterminate, Unreachable, AccessRefused, LaneError.
    """
    places: dict[Lane, Place] = {}
    for left in reversed(range(_START_TRIES)):
        try:
            await _start_once(route, source, target, board, start, lanes, places, by_hand=by_hand)
            break
        except BrokerError as error:
            if error.kind is Kind.HALT or left == 0:
                raise
            structlog.get_logger().warning("starting again", route=route.name, reason=error.message)
            await asyncio.sleep(0.2 * (_START_TRIES - left))
    await board.add_started(set(lanes), route.source_lanes)
    return places


async def _start_once(
    route: Route,
    source: Log,
    target: Log,
    board: RouteBoard,
    start: Start,
    lanes: list[Lane],
    places: dict[Lane, Place],
    *,
    by_hand: bool,
) -> None:
    """One claim and one append; `places` takes what was tried, as it may have been written."""
    # A claim fences whoever copies these lanes: it is taken on those alone that have no marker.
    known = await _markers_now(route, target, lanes)
    lanes = [lane for lane in lanes if not all(path in known for path in route.paths_of(lane))]
    if not lanes:
        return
    paths = [path for lane in lanes for path in route.paths_of(lane)]
    owner = Owner(route.id, "start", route.source, paths=tuple(paths), pair=route.pair)
    claim = await target.claim(owner, paths)
    for error in claim.errors.values():
        raise error
    fresh = [lane for lane in lanes if not all(path in claim.markers for path in route.paths_of(lane))]
    if not fresh:
        return
    is_one = by_hand and start.where is From.POSITION and len(fresh) == 1
    if by_hand and start.where is From.POSITION and not is_one and await board.started():
        # A first start may mean it so. Behind lost markers it is where one lane had got to.
        raise UsageError(
            f"route {route.name!r} was started before: {start.value} is a position of one lane, and lanes "
            f"{_numbers(fresh)} would start at it",
            hint=f"start them one by one: `crossfade relay start {route.name} --lane {fresh[0]} --from position:...`",
        )
    begun = {} if route.pair else await begin(source, fresh, start)
    if not is_one:
        await refuse_copies(route, source, target, fresh, begun)
    places |= await begin_with_echoes(source, route.pair, fresh, start) if route.pair else begun
    await board.note_beginning(set(fresh), start)
    writes = [
        Write(path, [], [], places[lane])
        for lane in fresh
        for path in route.paths_of(lane)
        if path not in claim.markers
    ]
    for outcome in (await target.append(claim, writes)).values():
        if isinstance(outcome, LaneError):
            raise outcome


async def _markers_now(route: Route, target: Log, lanes: list[Lane]) -> dict[Path, Marker]:
    """The markers that a claim would find as they should be; where only a claim can tell, none."""
    paths = [path for lane in lanes for path in route.paths_of(lane)]
    try:
        found = await target.markers_of(route.id, paths)
    except (GuaranteeRefused, Indeterminate):  # one of a pair that marks no records yet, a transaction under way
        return {}
    return {path: marker for path, marker in found.items() if marker.source == route.source}


def _numbers(lanes: list[Lane]) -> str:
    return ", ".join(map(str, lanes[:5])) + (" .." if len(lanes) > 5 else "")


async def begin(source: Log, lanes: list[Lane], start: Start) -> dict[Lane, Place]:
    """The place where reading begins. Raises LaneError, Unreachable, AccessRefused."""
    places: dict[Lane, Place] = {}
    for lane, place in (await source.begin(lanes, start)).items():
        if isinstance(place, LaneError):
            raise place
        places[lane] = place
    return places


async def begin_with_echoes(source: Log, pair: str, lanes: list[Lane], start: Start) -> dict[Lane, Place]:
    """The same, each place with the ordinal of the last record of route `pair` that lies before it.

    Raises GuaranteeRefused where that cannot be known, LaneError, Unreachable, AccessRefused.
    """
    paths = [(lane, lane) for lane in lanes]
    places: dict[Lane, Place] = {}
    left = list(lanes)
    for _ in range(_TRIES):
        before = await source.markers_of(pair, paths)
        begun = await begin(source, left, start)
        after = await source.markers_of(pair, paths)
        for lane, place in begun.items():
            found = await _counted(source, pair, lane, place, before.get((lane, lane)), after.get((lane, lane)))
            if found is not None:
                places[lane] = found
        left = [lane for lane in left if lane not in places]
        if not left:
            return places
        await asyncio.sleep(0.2)
    raise Unreachable(
        f"route {pair} has just begun and moves on while lanes {left[:5]} are being started",
        hint="run the command again",
    )


async def _counted(
    source: Log, pair: str, lane: Lane, place: Place, before: Marker | None, after: Marker | None
) -> Place | None:
    """The place with its last echo; None = the paired route moved on, and must be looked at again."""
    now = after.ordinal if after is not None else 0
    if now == 0:
        return with_echoes(place, 0, 0)
    known = before.ordinal if before is not None else 0
    record = before.target if before is not None else ""
    if known and _is_behind(place, record):
        if known == now:
            return with_echoes(place, known, 0)
        place_of_record = (await begin(source, [lane], Start(From.POSITION, record)))[lane]
        return await _count_to(source, pair, lane, with_echoes(place_of_record, known, 0), place)
    if not known:
        return None
    first = (await begin(source, [lane], Start(From.EARLIEST)))[lane]
    end = (await begin(source, [lane], Start(From.POSITION, record)))[lane]
    is_whole = first.count == 0 and not first.position
    if is_whole and (await _count_to(source, pair, lane, first, end)).echo == known:
        return await _count_to(source, pair, lane, first, place)
    raise GuaranteeRefused(
        f"{source.lane_name(lane)} cannot be started before {record}: how many records of the paired route lie before "
        "the start cannot be told, because the beginning of the lane is gone or was written without marks",
        hint="start it with `--from latest`, or with `--from position:...` at that record or behind it",
    )


def _is_behind(place: Place, record: str) -> bool:
    if "-" not in record:
        return place.count > int(record)
    return position_order(place.position) >= position_order(record)


async def _count_to(source: Log, pair: str, lane: Lane, start: Place, end: Place) -> Place:
    """`end`, with the echoes that lie before it; `start` says how many lie before itself. Raises Unreachable."""
    at = start
    idle_s = 0.0
    while not _has_reached(at, end):
        outcome = (await source.read({lane: bare(at)}, _READ_RECORDS, _READ_BYTES, _READ_WAIT_S)).get(lane)
        if isinstance(outcome, LaneError):
            raise outcome
        if outcome is None or bare(outcome.place) == bare(at):
            idle_s += _READ_WAIT_S
            if idle_s > _STALL_S:
                raise Unreachable(f"{source.lane_name(lane)} gives nothing between {at.position} and {end.position}")
            continue
        idle_s = 0.0
        behind = [position for position in outcome.positions if order_of(position) > position_order(end.position)]
        wanted = len(outcome.positions) - len(behind)
        outcome.positions, outcome.rows = outcome.positions[:wanted], outcome.rows[:wanted]
        at = part_echoes(outcome, at, pair).batch.place
    return with_echoes(end, at.echo, 0)


def _has_reached(at: Place, end: Place) -> bool:
    return position_order(at.position) >= position_order(end.position) or (at.count >= end.count >= 0 <= at.count)
