"""What either side loses while it is audited makes no difference of a right copy, nor work without end."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from test_verify_audit import (
    ENTRY,
    LANES,
    RECORD,
    RECORDS,
    ROUTE,
    TIME_MS,
    World,
    content_changed,
    copied,
    found,
    grow,
    last_after,
    spread,
    unmarked,
)

from crossfade.brokers.memory import MemoryLog
from crossfade.brokers.memory.lanes import EntryLane
from crossfade.brokers.protocol import From, Owner, Start
from crossfade.errors import SourceDeleted, Unreachable
from crossfade.model.mapping import mapping_named
from crossfade.model.position import Place, position_order, position_text
from crossfade.model.record import Batch, Shape, Write
from crossfade.model.wire import Origin, encode_origin
from crossfade.verify.extent import extents_of


@pytest.fixture(autouse=True)
def small_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossfade.verify.audit.READ_RECORDS_MAX", 300)


def before_reads(patch: pytest.MonkeyPatch, log: MemoryLog, happen: Callable[[int], None]) -> list[int]:
    """Let something happen before each read of the log; gives how many rows each read gave."""
    read, rows = log.read, []

    async def then(*options: Any) -> Any:
        happen(len(rows))
        rows.append(0)
        outcomes = await read(*options)
        rows[-1] = sum(len(batch.rows) for batch in outcomes.values() if isinstance(batch, Batch))
        return outcomes

    patch.setattr(log, "read", then)
    return rows


def at(world: World, side: str, lane: int, number: int) -> Any:
    return world.broker.rows(side, lane)[number][0]


# ------------------------------------------------------------------------------------------------ of the source


async def test_an_entry_deleted_behind_a_pending_tail_costs_the_tail_nothing() -> None:
    world = World(ENTRY, RECORD)
    await world.fill(650)
    await world.copy()
    await world.fill(50, first=650)
    first = await world.audit()
    assert (found(first), first.total("pending")) == ({}, LANES * 50)
    await world.copy()
    for lane in range(LANES):
        world.broker.delete("source", lane, at(world, "source", lane, 645))  # it was compared
    report = await world.audit(resume=json.loads(json.dumps(first.state)))
    assert (found(report), report.matched) == ({}, LANES * RECORDS)


@pytest.mark.parametrize("target", [ENTRY, RECORD])
async def test_entries_deleted_before_two_reads_in_a_row(target: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await copied(ENTRY, target)

    def delete(turn: int) -> None:
        for lane in range(LANES) if turn in (4, 5) else ():
            world.broker.delete("source", lane, at(world, "source", lane, 690 - turn))

    before_reads(monkeypatch, world.source, delete)
    report = await world.audit()
    assert (found(report), report.matched, report.total("source_gone")) == ({}, LANES * (RECORDS - 2), LANES * 2)


@pytest.mark.parametrize("target", [ENTRY, RECORD])
async def test_a_part_of_a_source_that_is_trimmed_far_before_it(target: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await copied(ENTRY, target)
    extents = await extents_of(world.source, range(LANES), Start(From.TIME, str(TIME_MS + 500)), None)
    whole = (await world.audit(extents=extents)).matched

    def trim(turn: int) -> None:
        for lane in range(LANES) if turn == 0 else ():
            world.broker.trim("source", lane, RECORDS - 10)

    before_reads(monkeypatch, world.source, trim)
    report = await world.audit(extents=extents)
    assert (found(report), report.matched) == ({}, whole)


async def test_a_live_queue_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await copied(ENTRY, RECORD)

    def work(turn: int) -> None:  # a task comes and is done before each read, but for the first
        if turn:
            world.broker.write("source", 0, [([b"v", b"task %d" % turn], TIME_MS + 10**6 + turn)])
            world.broker.delete("source", 0, at(world, "source", 0, -1))
        assert turn < 100

    rows = before_reads(monkeypatch, world.source, work)
    report = await world.audit()
    assert (found(report), report.matched, sum(rows)) == ({}, LANES * RECORDS, LANES * RECORDS)


@pytest.mark.parametrize("how", ["trimmed", "its place deleted", "its place trimmed"])
async def test_a_source_that_goes_on_without_its_count_hides_nothing(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a deletion the place proves less: what is trimmed behind it is told all the same."""
    world = await copied(ENTRY, RECORD)
    del world.stored(0)[650]

    def lose(turn: int) -> None:
        if turn == 2:
            world.broker.delete("source", 0, at(world, "source", 0, 600))
        if turn == 3 and how == "trimmed":
            world.broker.trim("source", 0, 150)
        if turn == 3 and how == "its place deleted":
            world.broker.delete("source", 0, at(world, "source", 0, 199))
        if turn == 3 and how == "its place trimmed":
            world.broker.trim("source", 0, 499)

    before_reads(monkeypatch, world.source, lose)
    report = await world.audit()
    assert [lane.error for lane in report.lanes.values()] == [None] * LANES
    assert found(report) == {"missing": 1}
    assert report.matched + report.total("source_gone") == LANES * RECORDS - 1


async def test_a_watch_goes_on_from_a_place_without_count(monkeypatch: pytest.MonkeyPatch) -> None:
    world = await copied(ENTRY, RECORD)

    def delete(turn: int) -> None:
        if turn == 2:
            world.broker.delete("source", 0, at(world, "source", 0, 600))

    states: list[Any] = []
    with monkeypatch.context() as patch:
        patch.setattr("crossfade.verify.progress.PROGRESS_EVERY_S", 0.0)
        before_reads(patch, world.source, delete)
        await world.audit(on_progress=lambda progress: states.append(json.loads(json.dumps(progress.state()))))
    uncounted = [state for state in states if state["lanes"]["0"]["source"]["place"].get("count", 0) < 0]
    assert uncounted
    rows = before_reads(monkeypatch, world.source, lambda _: None)
    for state in uncounted:
        del rows[:]
        report = await world.audit(resume=state, is_settled=True)
        assert (found(report), report.matched) == ({}, LANES * RECORDS - 1)
        places = [state["lanes"][str(lane)]["source"]["place"].get("position", "") for lane in range(LANES)]
        behind = [
            position
            for lane, place in enumerate(places)
            for position, _ in world.broker.rows("source", lane)
            if position_order(position) > position_order(place)
        ]
        assert sum(rows) == len(behind)


@pytest.mark.parametrize("first", [0, 400])
@pytest.mark.parametrize("target", [ENTRY, RECORD])
async def test_a_source_that_only_counts_what_is_deleted(
    target: Shape, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `deleted: count`: no read fails, and each batch tells up to where single entries may be gone."""
    counts_deleted(monkeypatch)
    world = await copied(ENTRY, target)
    gone = [[at(world, "source", lane, number) for number in range(first, first + 10)] for lane in range(LANES)]

    def delete(turn: int) -> None:
        for lane in range(LANES) if turn == (2 if first else 0) else ():
            for position in gone[lane]:
                world.broker.delete("source", lane, position)

    before_reads(monkeypatch, world.source, delete)
    report = await world.audit()
    assert (found(report), report.matched, report.total("source_gone")) == ({}, LANES * (RECORDS - 10), LANES * 10)


async def test_a_mark_of_what_is_newer_than_the_audit_is_no_copy_of_what_was_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts_deleted(monkeypatch)
    world = await copied(ENTRY, RECORD)
    later = TIME_MS + 10**6
    mark = encode_origin(Origin(ROUTE, 0, f"{later}-0", RECORDS + 1, 9)).encode()
    world.broker.write("target", 0, [(b"k", b"forged", [("xf", mark)], later)])

    def work(turn: int) -> None:
        if turn == 1:
            world.broker.write("source", 0, [([b"v", b"task"], later)])
            world.broker.delete("source", 0, at(world, "source", 0, -1))

    before_reads(monkeypatch, world.source, work)
    assert found(await world.audit()) == {"extra": 1}


def counts_deleted(patch: pytest.MonkeyPatch) -> None:
    check, read = EntryLane._check, EntryLane.read

    def forgiving(*options: Any) -> Any:
        error = check(*options)
        return None if isinstance(error, SourceDeleted) else error

    def counting(lane: EntryLane, place: Place, *limits: Any) -> Any:
        batch = read(lane, place, *limits)
        if not isinstance(batch, Batch) or place.count < 0:
            return batch
        there = batch.place if batch.rows else Place(place.position, lane.added, place.incarnation, place.witness)
        return replace(batch, place=there, deleted=there.count - place.count - len(batch.rows))

    patch.setattr(EntryLane, "_check", forgiving)
    patch.setattr(EntryLane, "read", counting)


@pytest.mark.parametrize("left", [RECORDS - 30, 0])
@pytest.mark.parametrize("make", [copied, spread])
@pytest.mark.parametrize("target", [ENTRY, RECORD])
async def test_what_is_trimmed_beside_an_old_deletion_is_gone_too(
    target: Shape, make: Callable[[Shape, Shape], Awaitable[World]], left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `deleted: count` and MAXLEN: no counter tells the two apart, so that no read fails."""
    counts_deleted(monkeypatch)
    world = await make(ENTRY, target)
    for lane in range(LANES):
        world.broker.delete("source", lane, at(world, "source", lane, 5))
    stored = world.stored(1)
    stored.append((last_after(stored), content_changed(unmarked(stored[50][1]))))
    grow(world, 1)

    def trim(turn: int) -> None:
        for lane in range(LANES) if turn == 0 else ():
            world.broker.trim("source", lane, left)

    before_reads(monkeypatch, world.source, trim)
    report = await world.audit()
    assert (found(report), report.matched) == ({"extra": 1}, LANES * left)
    assert report.total("source_gone") == LANES * (RECORDS - left)


# ------------------------------------------------------------------------------------------------ of a live queue

#: a few more than are read at once, so that what was deleted behind them could be taken for their number
QUEUED = RECORDS + 30


async def queued(source: Shape, target: Shape, copies: int = QUEUED) -> World:
    world = World(source, target)
    await world.fill(copies)
    await world.copy()
    await world.fill(QUEUED - copies, first=copies)
    return world


def tasks_done(patch: pytest.MonkeyPatch, world: World, side: str) -> None:
    """Between the bounds and the first read of a side tasks come and are done: written and deleted at its end."""

    def work(turn: int) -> None:
        for lane in range(LANES) if turn == 0 else ():
            for number in range(40):
                world.broker.write(side, lane, [([b"v", b"task %d" % number], TIME_MS + 10**6 + number)])
                world.broker.delete(side, lane, at(world, side, lane, -1))

    before_reads(patch, getattr(world, side), work)


def alter_tail(stored: list[Any]) -> None:
    for number in range(RECORDS, QUEUED):
        stored[number] = (stored[number][0], content_changed(stored[number][1]))


def lose_in_tail(stored: list[Any]) -> None:
    del stored[RECORDS + 5 : QUEUED - 2]


def lose_tail(stored: list[Any]) -> None:
    del stored[RECORDS:]


def damage_nothing(stored: list[Any]) -> None:
    pass


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (damage_nothing, {}),
        (alter_tail, {"altered": LANES * 30}),
        (lose_in_tail, {"missing": LANES * 23}),
        (lose_tail, {"missing": LANES * 30}),
    ],
)
async def test_tasks_that_are_done_ahead_of_the_reading_hide_nothing_of_the_tail(
    damage: Callable[[list[Any]], None], names: dict[str, int], counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if counts:
        counts_deleted(monkeypatch)
    world = await queued(ENTRY, RECORD)
    for lane in range(LANES):
        damage(world.stored(lane))
    tasks_done(monkeypatch, world, "source")
    report = await world.audit(is_settled=damage is lose_tail)
    assert (found(report), report.total("source_gone"), report.is_complete) == (names, 0, True)
    assert report.matched == LANES * QUEUED - sum(names.values())


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("target", [ENTRY, RECORD])
async def test_tasks_that_are_done_ahead_of_the_reading_leave_the_tail_pending(
    target: Shape, counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if counts:
        counts_deleted(monkeypatch)
    world = await queued(ENTRY, target, copies=RECORDS)
    with monkeypatch.context() as patch:
        tasks_done(patch, world, "source")
        report = await world.audit()
    assert (found(report), report.matched, report.total("pending")) == ({}, LANES * RECORDS, LANES * 30)
    for lane in range(LANES):
        world.broker.write("source", lane, [([b"v", b"later %d" % at], TIME_MS + 2 * 10**6 + at) for at in range(50)])
    with monkeypatch.context() as patch:
        counts_deleted(patch)
        await world.copy()
    report = await world.audit(resume=json.loads(json.dumps(report.state)))
    assert (found(report), report.is_complete, report.total("source_gone")) == ({}, True, 0)
    assert report.matched == LANES * (QUEUED + 50)


@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_tasks_that_are_done_on_the_target_hide_nothing_of_its_tail(
    source: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await queued(source, ENTRY)
    alter_tail(world.stored(0))
    tasks_done(monkeypatch, world, "target")
    report = await world.audit()
    assert (found(report), report.matched) == ({"altered": 30}, LANES * QUEUED - 30)
    assert report.is_complete


async def test_tasks_that_are_done_hide_no_original_of_a_duplicate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossfade.verify.second_look._READ_RECORDS_MAX", 300)
    counts_deleted(monkeypatch)
    world = await queued(ENTRY, RECORD)
    stored = world.stored(0)
    stored.append((last_after(stored), stored[RECORDS + 10][1]))
    grow(world, 0)
    tasks_done(monkeypatch, world, "source")
    assert found(await world.audit()) == {"duplicate": 1}


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("turn", [0, 1, 2])
@pytest.mark.parametrize("how", ["the last", "all", "all trimmed", "all but the first"])
@pytest.mark.parametrize("side", ["source", "target"])
async def test_what_is_deleted_from_the_end_is_not_waited_for(
    side: str, how: str, turn: int, counts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last entry that the bounds name may stand just behind a whole number of reads."""
    monkeypatch.setattr("crossfade.verify.progress.STALL_S_MAX", 0.0)
    if counts:
        counts_deleted(monkeypatch)
    world = World(ENTRY, ENTRY)
    await world.fill(201)
    await world.copy()

    def lose(now: int) -> None:
        assert now < 20
        for lane in range(LANES) if now == turn else ():
            if how == "all trimmed":
                world.broker.trim(side, lane, 0)
                continue
            positions = [position for position, _ in world.broker.rows(side, lane)]
            for position in positions[{"the last": -1, "all": 0, "all but the first": 1}[how] :]:
                world.broker.delete(side, lane, position)

    before_reads(monkeypatch, getattr(world, side), lose)
    report = await world.audit()
    assert [lane.error for lane in report.lanes.values()] == [None] * LANES
    if side == "source":
        assert (found(report), report.matched + report.total("source_gone")) == ({}, LANES * 201)


@pytest.mark.parametrize("side", ["source", "target"])
async def test_a_queue_whose_first_task_is_done_before_each_read_is_not_read_for_ever(
    side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(ENTRY, ENTRY)
    await world.fill(30)
    await world.copy()

    def work(turn: int) -> None:
        assert turn < 100
        world.broker.write(side, 0, [([b"v", b"task %d" % turn], TIME_MS + 10**6 + turn)])
        world.broker.delete(side, 0, at(world, side, 0, 0))

    before_reads(monkeypatch, getattr(world, side), work)
    report = await world.audit()
    assert (found(report), report.matched) == ({}, (LANES - 1) * 30)


# ------------------------------------------------------------------------------------------------ of the target


@pytest.mark.parametrize("keep", [RECORDS - 100, 5])
@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_a_target_that_is_trimmed_for_the_first_time_before_it_is_read(
    source: Shape, keep: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await copied(source, ENTRY)

    def trim(turn: int) -> None:
        for lane in range(LANES) if turn == 0 else ():
            world.broker.trim("target", lane, keep)

    before_reads(monkeypatch, world.target, trim)
    report = await world.audit()
    assert (found(report), report.matched) == ({}, LANES * keep)
    assert report.total("before_target") == LANES * (RECORDS - keep)


# ------------------------------------------------------------------------------------------------ told too early


def told_too_early(patch: pytest.MonkeyPatch, log: MemoryLog, end: int) -> None:
    """As a new leader that does not know how far the log was committed: an end that is told, and soon taken back."""
    read, told = log.read, set()

    async def then(after: Any, *others: Any) -> Any:
        outcomes = await read(after, *others)
        for lane, batch in outcomes.items():
            if lane in told or batch.place.count <= end:
                continue
            kept = sum(position < end for position in batch.positions)
            told.add(lane)
            outcomes[lane] = replace(
                batch,
                positions=batch.positions[:kept],
                rows=batch.rows[:kept],
                place=Place(str(end - 1), end, batch.place.incarnation, batch.place.witness),
                at_end=True,
            )
        return outcomes

    patch.setattr(log, "read", then)


@pytest.mark.parametrize("side", ["source", "target"])
async def test_an_end_that_a_new_leader_tells_too_early_is_none(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await copied(RECORD, RECORD)
    told_too_early(monkeypatch, getattr(world, side), 500)
    report = await world.audit(is_settled=True)
    assert (found(report), report.matched) == ({}, LANES * RECORDS)


async def test_an_end_that_is_never_taken_back_is_no_waiting_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossfade.verify.progress.STALL_S_MAX", 0.0)
    world = await copied(RECORD, RECORD)
    read = world.source.read

    async def cut(after: Any, *others: Any) -> Any:
        outcomes = await read(after, *others)
        return {lane: batch for lane, batch in outcomes.items() if lane or batch.place.count < 500}

    monkeypatch.setattr(world.source, "read", cut)
    with pytest.raises(Unreachable):
        await world.audit()


# ------------------------------------------------------------------------------------------------ quarantined


@pytest.mark.parametrize("copied_first", [False, True])
async def test_what_is_quarantined_at_the_end_of_a_lane_is_counted_once(copied_first: bool) -> None:
    world = World(RECORD, ENTRY)
    world.mapping = mapping_named("body")
    await world.source.open()
    await world.target.open()
    good, bad = (None, b"x", None, TIME_MS), (b"k", None, [("h", b"1")], TIME_MS)
    for lane in range(LANES):
        world.broker.write("source", lane, [good, bad] if copied_first else [good, bad, good, bad, bad])
    world.places = dict(await world.source.begin(range(LANES), Start()))  # type: ignore[arg-type]
    claim = await world.target.claim(Owner(ROUTE, "test", "digest"), [(lane, lane) for lane in range(LANES)])
    writes = []
    for lane, batch in (await world.source.read(world.places, 6, 1 << 20, 0)).items():
        assert isinstance(batch, Batch)
        mapped = world.mapping.translate(batch, ENTRY)
        writes.append(Write((lane, lane), mapped.positions, mapped.rows, batch.place, mapped.rejects, 10))
    await world.target.append(claim, writes)
    state, each = None, 1 if copied_first else 3
    for _ in range(4):
        report = await world.audit(resume=state)
        assert (found(report), report.total("quarantined")) == ({}, LANES * each)
        state = json.loads(json.dumps(report.state))
    for lane in range(LANES):
        world.broker.write("source", lane, [bad, good])
    report = await world.audit(resume=state)
    assert (found(report), report.total("quarantined")) == ({}, LANES * (each + 1))


async def test_what_the_target_refused_at_the_end_of_a_lane_is_counted_once() -> None:
    world = await copied(ENTRY, RECORD)
    state, refused = None, {lane: {position_text(at(world, "source", lane, -1))} for lane in range(LANES)}
    for lane in range(LANES):
        world.stored(lane).pop()

    async def quarantined() -> Any:
        return refused

    for _ in range(3):
        report = await world.audit(resume=state, quarantined=quarantined)
        assert (found(report), report.total("quarantined")) == ({}, LANES)
        state = json.loads(json.dumps(report.state))
