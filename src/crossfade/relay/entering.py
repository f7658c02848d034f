"""Entering a claim: what each owned lane is at first, made from nothing but the markers that the claim found.

Hides which lanes cannot go on, and why: no marker, no lane in the target, paths on both sides of a cut of the source,
or what the claim itself says of them. Invariant: where a lane stood in this process before is not taken over, only its
rates and totals are. Called by `relay.copier` at each claim; it does the halting and the telling.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..brokers.protocol import Claim, Log
from ..errors import LaneError, MarkerLost, NotStarted, SourceRegressed, TargetTooNarrow, TargetTorn, Unreachable
from ..model.position import Place
from ..model.record import Lane, Path, Shape
from ..model.route import Route
from .documents import RouteBoard
from .lanes import LaneState, State

#: a broker answers within this time whether it still has the log that a place was in
_CHECK_S = 2.0


async def claimed_lanes(
    route: Route,
    source: Log,
    board: RouteBoard,
    claim: Claim,
    owned: Iterable[Lane],
    known: Mapping[Lane, LaneState],
) -> dict[Lane, LaneState]:
    """The owned lanes as the claim found them, halted where it says so; `known`: how they were before in this process.

    Raises MarkerLost, NotStarted, Unreachable, AccessRefused.
    """
    missing = {lane for lane in owned for path in route.paths_of(lane) if not _is_found(claim, path)}
    if missing:
        await _refuse_without_marker(route, source, board, missing)
    lanes: dict[Lane, LaneState] = {}
    for lane in sorted(owned):
        errors = [claim.errors[path] for path in route.paths_of(lane) if path in claim.errors]
        markers = {path: claim.markers[path] for path in route.paths_of(lane) if path in claim.markers}
        state = LaneState(lane, source.lane_name(lane), markers, Place())
        before = known.get(lane)
        if before is not None:  # rates and totals of this process go on
            state.records_total, state.looks, state.bounds = before.records_total, before.looks, before.bounds
            state.relayed_time_ms, state.quarantined_total = before.relayed_time_ms, before.quarantined_total
            state.deleted_total, state.deleted_ahead = before.deleted_total, before.deleted_ahead
            state.deleted_told, state.deleted_told_s = before.deleted_told, before.deleted_told_s
            state.level_at_s, state.still_since_s = before.level_at_s, before.still_since_s
        if errors:
            state.error, state.state = errors[0], State.HALTED
        else:
            state.place = state.settled
            state.settle_deleted()  # an append whose answer was lost may have arrived
        lanes[lane] = state
    split = [lane for lane, state in lanes.items() if state.is_split]
    for lane, bounds in (await source.bounds(split)).items() if split else ():
        lanes[lane].incarnation = bounds.incarnation
        lanes[lane].place = lanes[lane].settled
    return lanes


async def _refuse_without_marker(route: Route, source: Log, board: RouteBoard, missing: set[Lane]) -> None:
    lost = missing & await board.started()
    names = ", ".join(source.lane_name(lane) for lane in sorted(lost or missing)[:5])
    if lost:
        raise MarkerLost(
            f"route {route.name!r}: {len(lost)} started lanes have no marker in the target: {names}",
            hint="the marker was deleted or expired; compare both sides with `crossfade verify`, then start each of "
            "these lanes behind its last copied record: "
            f"`crossfade relay start {route.name} --lane N --from position:...`",
        )
    raise NotStarted(
        f"route {route.name!r}: {len(missing)} lanes were never started: {names}",
        hint=f"start them once: `crossfade relay start {route.name}` (it writes the first marker); if they were copied "
        "before, the target lost Crossfade's keys: run `crossfade verify` first",
    )


def _is_found(claim: Claim, path: Path) -> bool:
    return path in claim.markers or path in claim.errors


def lanes_without_target(route: Route, source: Log, target: Log) -> dict[Lane, LaneState]:
    """New source lanes that wait for a lane in the target, halted by name: nobody owns them."""
    states = {}
    redis = "raise the `count` of the target, and restart the relay: it reads its file at the start"
    for lane in range(route.source_lanes, route.source_lanes + route.lanes_without_target):
        state = LaneState(lane, source.lane_name(lane), {}, Place(), state=State.HALTED)
        alter = f"`kafka-topics.sh --alter --topic {target.name} --partitions {lane + 1}`"
        kafka = f"{alter}; the relay then goes on by itself"
        state.error = TargetTooNarrow(
            lane,
            f"new source lane {state.name} has no lane in {target.name}, which has {target.lanes}",
            hint=f"add one: {kafka if target.shape is Shape.RECORD else redis}",
        )
        states[lane] = state
    return states


async def cut_between_paths(source: Log, state: LaneState) -> LaneError | None:
    """What halts a lane of which some paths stand beyond a cut of the Kafka log: they would pass over what is new.

    The relay ended while a write was under way, or while some paths had gone on behind an accepted cut.
    Raises Unreachable, AccessRefused.
    """
    cuts: list[SourceRegressed] = []
    for place in state.ahead:
        # From elsewhere, so that the place is sought anew: a source tells its end only once.
        await source.read({state.lane: state.settled}, 1, 1, 0.0)
        found = (await source.read({state.lane: place}, 1, 1, _CHECK_S)).get(state.lane)
        if found is None:
            raise Unreachable(
                f"{state.name}: whether its log was cut off could not be asked",
                hint="the relay asks again; check that the brokers of the source run and can be reached",
            )
        if isinstance(found, SourceRegressed):
            cuts.append(found)
    return _across(state, min(cuts, key=lambda cut: cut.ends_at)) if cuts else None


def _across(state: LaneState, cut: SourceRegressed) -> LaneError:
    """What halts a lane whose paths stand on both sides of a cut."""
    at = state.settled.position
    if cut.ends_at > (int(at) if at else -1):
        return cut  # the others are before it: a loss like any other
    return TargetTorn(
        state.lane,
        f"target lanes of {state.name} stand on both sides of a cut: some have gone on behind it, up to {at}, some "
        f"stand at {cut.position} of before; {cut.message}",
        hint="compare both sides with `crossfade verify`, and copy the lane anew",
        position=at,
    )
