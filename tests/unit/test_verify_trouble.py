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
    TIME_MS,
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
from crossfade.model.record import Batch, Shape
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


def twice(patch: pytest.MonkeyPatch, log: MemoryLog, turn: int, happen: Callable[[int], None]) -> None:
    """Let something happen before two reads of the log in a row."""
    once(patch, log, turn, lambda: happen(0))
    once(patch, log, turn + 1, lambda: happen(1))


async def test_entries_of_a_source_by_key_that_are_deleted_before_two_reads_in_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("crossfade.verify.by_key.READ_RECORDS_MAX", 300)
    world = await spread(ENTRY, RECORD)

    def delete(at: int) -> None:
        for lane in range(LANES):
            world.broker.delete("source", lane, source_positions(world, lane)[680 + at])

    twice(monkeypatch, world.source, 4, delete)
    report = await world.audit()
    assert found(report) == {}
    assert (report.matched, report.total("source_gone")) == (LANES * (RECORDS - 2), LANES * 2)


@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_entries_of_a_target_by_key_that_are_deleted_before_two_reads_in_a_row(
    source: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossfade.verify.by_key.READ_RECORDS_MAX", 300)
    world = await spread(source, ENTRY)
    to = max(range(TARGET_LANES), key=lambda lane: len(world.stored(lane)))
    places = [position for position, _ in world.broker.rows("target", to)]
    twice(monkeypatch, world.target, 2, lambda at: world.broker.delete("target", to, places[700 + at]))
    report = await world.audit()
    assert (found(report), report.matched) == ({"missing": 2}, LANES * RECORDS - 2)


@pytest.mark.parametrize("target", [ENTRY, RECORD])
async def test_entries_that_a_source_by_key_passes_over_as_deleted_say_nothing_against_their_copies(
    target: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `deleted: count` reads: no gap is told, but each batch tells up to where single entries may be gone."""
    monkeypatch.setattr("crossfade.verify.by_key.READ_RECORDS_MAX", 300)
    world = await spread(ENTRY, target)
    kept: Any = world.broker.stream("source", LANES, ENTRY).lanes[0]
    doomed = source_positions(world, 0)[600:604]

    def delete() -> None:
        for position in doomed:
            world.broker.delete("source", 0, position)
            kept.added -= 1

    once(monkeypatch, world.source, 3, delete)
    report = await world.audit()
    assert found(report) == {}
    assert (report.matched, report.total("source_gone")) == (LANES * RECORDS - 4, 4)


async def test_an_audit_by_key_of_a_live_queue_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossfade.verify.by_key.READ_RECORDS_MAX", 300)
    world = await spread(ENTRY, RECORD)
    read, rows = world.source.read, []

    async def then(*options: Any) -> Any:
        if 0 < len(rows) < 40:  # a task comes, and is done
            world.broker.write("source", 0, [([b"v", b"%d" % len(rows)], TIME_MS + 10**6)])
            world.broker.delete("source", 0, source_positions(world, 0)[-1])
        outcomes = await read(*options)
        rows.append(sum(len(batch.rows) for batch in outcomes.values() if isinstance(batch, Batch)))
        return outcomes

    monkeypatch.setattr(world.source, "read", then)
    report = await world.audit()
    assert (found(report), report.matched) == ({}, LANES * RECORDS)
    assert len(rows) < 40, "it ends while tasks still come"


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


# ------------------------------------------------------------------------------------------------ hidden from readers


@pytest.fixture
def held_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossfade.verify.ends._HELD_UP_S_MAX", 0.0)


async def hold_up(world: World, side: str) -> None:
    """An open transaction of somebody, and behind it 20 records in lane 0: on the target, they are right copies."""
    if side == "target":
        for lane in world.broker.stream(side, LANES, RECORD).lanes:
            lane.write_open("app", (b"k", b"v", None, TIME_MS))  # type: ignore[union-attr]
        await world.fill(20, first=RECORDS)
        await world.copy()
        return
    world.broker.stream(side, LANES, RECORD).lanes[0].write_open("app", (b"k", b"v", None, TIME_MS))  # type: ignore[union-attr]
    world.broker.write(side, 0, [(b"k", b"%d" % at, None, TIME_MS) for at in range(20)])


@pytest.mark.parametrize("spread_by_key", [False, True])
@pytest.mark.parametrize("is_settled", [False, True])
@pytest.mark.usefixtures("held_for_good")
async def test_records_behind_an_open_transaction_of_the_source_are_not_compared(
    is_settled: bool, spread_by_key: bool
) -> None:
    world = await (spread if spread_by_key else copied)(RECORD, RECORD)
    assert (await world.audit(is_settled=is_settled)).is_complete
    await hold_up(world, "source")
    report = await world.audit(is_settled=is_settled)
    assert (report.ok, report.is_complete) == (True, False)
    assert [bool(lane.held_up) for lane in report.lanes.values()] == [True, False, False]
    assert "open transaction" in str(report.as_dict()["lanes"][0]["held_up"])  # type: ignore[index]
    extents = await extents_of(world.source, range(LANES), None, Start(From.POSITION, source_positions(world, 0)[300]))
    assert (await world.audit(is_settled=is_settled, extents=extents)).is_complete, "of that part nothing is hidden"


@pytest.mark.parametrize("is_settled", [False, True])
@pytest.mark.usefixtures("held_for_good")
async def test_copies_behind_an_open_transaction_of_the_target_are_not_missing(is_settled: bool) -> None:
    world = await copied(RECORD, RECORD)
    await hold_up(world, "target")
    report = await world.audit(is_settled=is_settled)
    assert (found(report), report.total("pending"), report.is_complete) == ({}, 20 * LANES, False)
    assert [bool(lane.held_up) for lane in report.lanes.values()] == [is_settled] * LANES
    world.broker.stream("target", LANES, RECORD).lanes[0].finish("app", commit=False)  # type: ignore[union-attr]
    report = await world.audit(is_settled=is_settled)
    assert (report.lanes[0].pending, report.lanes[1].pending) == (0, 20)


@pytest.mark.usefixtures("held_for_good")
async def test_copies_by_key_behind_an_open_transaction_of_the_target_are_not_missing() -> None:
    world = await spread(RECORD, RECORD)
    to = max(range(TARGET_LANES), key=lambda lane: len(world.stored(lane)))
    kept: Any = world.broker.stream("target", TARGET_LANES, RECORD).lanes[to]
    behind = kept.committed[-10:]
    del kept.committed[-10:]
    kept.end = behind[0][0]
    kept.write_open("app", (b"k", b"v", None, TIME_MS))
    for _, row in behind:
        kept.write(row)
    report = await world.audit(is_settled=True)
    assert (found(report), report.total("pending"), report.is_complete) == ({}, 10, False)
    assert all(lane.held_up for lane in report.lanes.values())


async def test_a_commit_that_ends_soon_is_waited_for_where_all_is_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossfade.verify.ends._HELD_UP_S_MAX", 60.0)
    monkeypatch.setattr("crossfade.verify.ends._AGAIN_S", 0.01)
    world = await copied(RECORD, RECORD)
    await hold_up(world, "target")
    bounds, asked = world.target.bounds, []

    async def committed_soon(lanes: Any) -> Any:
        asked.append(1)
        if len(asked) == 5:  # an audit asks when it begins, and when it has read all
            for lane in world.broker.stream("target", LANES, RECORD).lanes:
                lane.finish("app", commit=False)  # type: ignore[union-attr]
        return await bounds(lanes)

    monkeypatch.setattr(world.target, "bounds", committed_soon)
    assert (await world.audit()).total("pending") == 20 * LANES, "what is not settled is not waited for"
    assert (await world.audit(is_settled=True)).is_complete
    assert len(asked) == 6
