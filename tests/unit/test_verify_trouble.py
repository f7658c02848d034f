"""An audit while something happens to a side, and of a part whose end is not on the target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from test_verify_audit import (
    DIRECTIONS,
    ENTRY,
    LANES,
    RECORD,
    RECORDS,
    ROUTE,
    TARGET_LANES,
    World,
    alter,
    copied,
    found,
    source_positions,
    spread,
)

from crossfade.brokers.memory import MemoryLog
from crossfade.brokers.protocol import From, Start
from crossfade.errors import SourceRegressed
from crossfade.model.record import Shape
from crossfade.model.wire import newest_origin
from crossfade.verify.audit import audit
from crossfade.verify.diff import LaneDiff
from crossfade.verify.extent import extents_of
from crossfade.verify.report import AuditReport


async def of_part(world: World, since: int, until: int) -> AuditReport:
    places = source_positions(world, 0)
    limits = Start(From.POSITION, places[since]), Start(From.POSITION, places[until])
    extents = await extents_of(world.source, [0], *limits)
    return await audit(
        world.source, world.target, world.mapping, route_id=ROUTE, lanes=[0], window_rows=40, extents=extents
    )


@pytest.mark.parametrize("first", [290, 100])
@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_a_part_that_lacks_its_end_is_not_on_its_way(source: Shape, target: Shape, first: int) -> None:
    world = await copied(source, target)
    del world.stored(0)[first:301]
    if target is ENTRY:
        world.broker.stream("target", LANES, ENTRY).lanes[0].added -= 301 - first  # type: ignore[union-attr]
    report = await of_part(world, 100, 300)
    assert (found(report), report.total("pending")) == ({"missing": 301 - first}, 0)


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_a_part_that_is_on_its_way_is_pending(source: Shape, target: Shape) -> None:
    world = World(source, target)
    await world.fill(290)
    await world.copy()
    await world.fill(100, first=290)
    report = await of_part(world, 100, 300)
    assert (found(report), report.matched, report.total("pending")) == ({}, 190, 11)


async def test_a_part_by_key_that_lacks_its_end_is_not_on_its_way() -> None:
    world = await spread(RECORD, RECORD)
    to = max(range(TARGET_LANES), key=lambda lane: len(world.stored(lane)))
    until = int(source_positions(world, 0)[300])
    stored = world.stored(to)
    lost = []
    for one in stored:
        origin = newest_origin(one[1], RECORD)
        assert origin is not None
        if origin.lane == 0 and until - 20 <= int(origin.position) <= until:
            lost.append(one)
    assert lost
    stored[:] = [one for one in stored if one not in lost]
    extents = await extents_of(world.source, range(LANES), None, Start(From.POSITION, str(until)))
    assert found(await world.audit(extents=extents)) == {"missing": len(lost)}


def once(patch: pytest.MonkeyPatch, log: MemoryLog, turn: int, happen: Callable[[], None]) -> None:
    """Let something happen before a read of the log."""
    read, turns = log.read, iter(range(1_000))

    async def then(*options: Any) -> Any:
        if next(turns) == turn:
            happen()
        return await read(*options)

    patch.setattr(log, "read", then)


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_a_target_that_is_trimmed_while_it_is_read(
    source: Shape, target: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossfade.verify.audit.READ_RECORDS_MAX", 300)
    world = await copied(source, target)
    alter(world.stored(1))

    def trim() -> None:
        for lane in range(LANES):
            world.broker.trim("target", lane, 400)

    once(monkeypatch, world.target, 1, trim)
    report = await world.audit()
    assert [lane.error for lane in report.lanes.values()] == [None] * LANES
    assert found(report) == {"altered": 1}
    assert report.matched + report.total("before_target") == LANES * RECORDS - 1
    assert report.total("before_target") >= 100
    assert not report.is_complete


@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_an_entry_removed_from_the_target_while_it_is_read_is_missing(
    source: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossfade.verify.audit.READ_RECORDS_MAX", 300)
    world = await copied(source, ENTRY)
    gone = world.broker.rows("target", 1)[500][0]
    once(monkeypatch, world.target, 2, lambda: world.broker.delete("target", 1, gone))
    report = await world.audit()
    assert (found(report), report.matched) == ({"missing": 1}, LANES * RECORDS - 1)


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_a_target_by_key_that_is_trimmed_while_it_is_read(
    source: Shape, target: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossfade.verify.by_key.READ_RECORDS_MAX", 300)
    world = await spread(source, target)
    to = max(range(TARGET_LANES), key=lambda lane: len(world.stored(lane)))
    once(monkeypatch, world.target, 1, lambda: world.broker.trim("target", to, 20))
    report = await world.audit()
    assert [lane.error for lane in report.lanes.values()] == [None] * LANES
    assert found(report) == {}
    assert report.matched + report.total("before_target") == LANES * RECORDS
    assert report.total("before_target") > 0


async def test_a_lane_by_key_that_fails_makes_no_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossfade.verify.by_key.READ_RECORDS_MAX", 300)
    monkeypatch.setitem(LaneDiff.__init__.__kwdefaults__, "remembered_max", 5)
    world = await spread(RECORD, RECORD)
    read, turns = world.source.read, iter(range(1_000))

    async def failing(*options: Any) -> Any:
        found_there = await read(*options)
        if next(turns) == 1:
            found_there[0] = SourceRegressed(0, "the log was cut")
        return found_there

    monkeypatch.setattr(world.source, "read", failing)
    report = await world.audit()
    assert found(report) == {}
    assert isinstance(report.lanes[0].error, SourceRegressed)
    assert [report.lanes[lane].matched for lane in (1, 2)] == [RECORDS, RECORDS]
