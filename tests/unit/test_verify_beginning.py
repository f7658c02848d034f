"""Where the comparison of a lane begins: at the first copy on the target, and at nothing that only looks like one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_verify_audit import (
    DIRECTIONS,
    ENTRY,
    LANES,
    RECORD,
    TARGET_LANES,
    TIME_MS,
    KeyedWorld,
    World,
    found,
    rows_swapped,
)

from crossfade.brokers.protocol import From, Start
from crossfade.model.record import Shape
from crossfade.model.wire import decode_origin

LATEST = dict.fromkeys(range(LANES), Start(From.LATEST))
BEFORE, COPIED = 100, 60


def written_by_others(world: World, count: int = 1) -> None:
    """Records of another writer at the end of every target lane, each at a time of its own."""
    for lane in range(LANES):
        times = range(TIME_MS + 5_000_000, TIME_MS + 5_000_000 + count)
        rows: list[Any] = [
            (b"mine", b"x", None, time_ms) if world.target.shape is RECORD else ([b"mine", b"x"], time_ms)
            for time_ms in times
        ]
        world.broker.write("target", lane, rows)


async def begun_late(source: Shape, target: Shape, *, others: int = 0) -> World:
    """A copy that began behind the first records of the source, and perhaps behind what others wrote to the target."""
    world = World(source, target)
    await world.fill(BEFORE)
    written_by_others(world, others)
    await world.copy(Start(From.LATEST))
    await world.fill(COPIED, first=BEFORE)
    await world.copy()
    return world


def told_by_ids(world: World) -> None:
    """Let the entries be as in a lane that no other wrote to: `<time>-<offset>` and no mark, where these rise."""
    for lane in range(LANES):
        stored, last = world.stored(lane), (0, -1)
        for at, ((id_ms, _), (fields, _)) in enumerate(stored):
            origin = decode_origin(fields[-1])
            assert origin is not None
            own_ms = id_ms if origin.time_ms is None else origin.time_ms
            if (own_ms, int(origin.position)) > last:
                last = own_ms, int(origin.position)
                stored[at] = last, (fields[:-2], own_ms)
            else:
                last = last[0], int(origin.position)
                mark = fields[-1].partition(b";t=")[0] + b";t=%d" % own_ms
                stored[at] = last, ([*fields[:-1], mark], last[0])
        world.broker.stream("target", LANES, ENTRY).lanes[lane].last = last  # type: ignore[union-attr]


@pytest.mark.parametrize("others", [1, 3, 300])
@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_what_others_wrote_before_the_copy_is_not_its_beginning(
    source: Shape, target: Shape, others: int
) -> None:
    world = await begun_late(source, target, others=others)
    report = await world.audit(starts=LATEST, is_settled=True)
    assert found(report) == {"extra": others * LANES}
    assert (report.matched, report.total("before_target")) == (COPIED * LANES, BEFORE * LANES)
    state = json.loads(json.dumps(report.state))
    await world.fill(5, first=BEFORE + COPIED)
    await world.copy()
    later = await world.audit(starts=LATEST, is_settled=True, resume=state)
    assert (found(later), later.matched) == ({"extra": others * LANES}, (COPIED + 5) * LANES)
    del world.stored(1)[others + 30]
    assert found(await world.audit(starts=LATEST, is_settled=True)) == {"extra": others * LANES, "missing": 1}


@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_any_number_of_others_records_may_stand_before_the_copy(
    source: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossfade.verify.audit.READ_RECORDS_MAX", 60)  # less than that in one go
    world = await begun_late(source, RECORD, others=300)
    report = await world.audit(starts=LATEST, is_settled=True)
    assert (found(report), report.matched) == ({"extra": 300 * LANES}, COPIED * LANES)


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_a_trimmed_target_may_begin_with_what_others_wrote(source: Shape, target: Shape) -> None:
    world = World(source, target)
    await world.fill(BEFORE)
    await world.copy()
    written_by_others(world)
    await world.fill(COPIED, first=BEFORE)
    await world.copy()
    for lane in range(LANES):
        world.broker.trim("target", lane, COPIED + 1)
    report = await world.audit(is_settled=True)
    assert found(report) == {"extra": LANES}
    assert (report.matched, report.total("before_target")) == (COPIED * LANES, BEFORE * LANES)


async def test_where_nobody_else_writes_the_first_id_is_the_beginning() -> None:
    world = await begun_late(RECORD, ENTRY)
    told_by_ids(world)
    report = await world.audit(starts=LATEST, is_settled=True)
    assert found(report) == {}
    assert (report.matched, report.total("before_target")) == (COPIED * LANES, BEFORE * LANES)
    written_by_others(world)  # behind them
    assert found(await world.audit(starts=LATEST, is_settled=True)) == {"extra": LANES}
    del world.stored(1)[20]
    assert found(await world.audit(starts=LATEST, is_settled=True)) == {"extra": LANES, "missing": 1}


async def test_a_first_copy_that_was_altered_does_not_hide_the_others() -> None:
    world = await begun_late(RECORD, ENTRY)
    told_by_ids(world)
    stored = world.stored(1)
    (id_ms, offset), row = stored[0]
    stored[0] = (id_ms - 7, offset), (row[0], id_ms - 7)
    assert sum(found(await world.audit(starts=LATEST, is_settled=True)).values()) == 1


async def test_the_time_that_an_older_hop_carried_is_that_of_the_id() -> None:
    world = World(RECORD, ENTRY)
    await world.fill(BEFORE)
    await world.copy(Start(From.LATEST))
    for lane in range(LANES):
        marks = [b"1;older/0@%d#%d;1;t=%d" % (at, at + 1, TIME_MS + at) for at in range(9)]
        world.broker.write("source", lane, [(b"k", b"v", [("xf", mark)], TIME_MS + 999) for mark in marks])
    await world.copy()
    told_by_ids(world)
    report = await world.audit(starts=LATEST, is_settled=True)
    assert (found(report), report.matched) == ({}, 9 * LANES)


@pytest.mark.parametrize("gone", [1, 3, 20, COPIED])
async def test_originals_that_compaction_took_say_nothing_against_their_copies(gone: int) -> None:
    world = await begun_late(RECORD, ENTRY)
    told_by_ids(world)
    lanes = world.broker.stream("source", LANES, RECORD).lanes
    for lane in range(LANES):
        kept: list[Any] = lanes[lane].committed  # type: ignore[union-attr]
        del kept[BEFORE : BEFORE + gone]
    report = await world.audit(starts=LATEST, is_settled=True)
    assert report.total("missing") == 0
    assert report.matched == (COPIED - gone) * LANES


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_a_target_that_only_others_wrote_to_lacks_nothing(source: Shape, target: Shape) -> None:
    world = World(source, target)
    await world.fill(BEFORE)
    written_by_others(world, 3)
    report = await world.audit(starts=LATEST, is_settled=True)
    expected = {"extra": 3 * LANES}
    if (source, target) == (ENTRY, ENTRY):  # their ids are the only ones that there are: they may be copies
        assert report.total("missing") == 0
    assert found(report) == expected


def first_gone(world: World, records: int = 1, side: str = "source") -> None:
    """Retention takes the first records of every lane."""
    for lane in range(LANES):
        world.broker.trim(side, lane, len(world.broker.rows(side, lane)) - records)


def read_by(monkeypatch: pytest.MonkeyPatch, records: int) -> None:
    monkeypatch.setattr("crossfade.verify.audit.READ_RECORDS_MAX", records)


@pytest.mark.parametrize("read_records_max", [60, 6_000])
@pytest.mark.parametrize("gone", [0, 1, BEFORE])
@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_any_number_of_others_entries_may_stand_before_the_copy(
    source: Shape, gone: int, read_records_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(monkeypatch, read_records_max)
    world = await begun_late(source, ENTRY, others=300)
    if gone:
        first_gone(world, gone)
    report = await world.audit(starts=LATEST, is_settled=True)
    assert (found(report), report.matched) == ({"extra": 300 * LANES}, COPIED * LANES)
    assert (report.total("before_target"), report.total("source_gone")) == ((BEFORE - gone) * LANES, 0)


@pytest.mark.parametrize("gone", [0, 1])
@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_more_of_others_entries_than_a_read_of_the_usual_size(source: Shape, gone: int) -> None:
    world = await begun_late(source, ENTRY, others=9_000)
    if gone:
        first_gone(world, gone)
    report = await world.audit(starts=LATEST, is_settled=True)
    assert (found(report), report.matched) == ({"extra": 9_000 * LANES}, COPIED * LANES)


@pytest.mark.parametrize("gone", [0, 1])
@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_others_entries_are_no_beginning_where_the_earliest_ones_were_removed(
    source: Shape, gone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(monkeypatch, 60)
    world = World(source, ENTRY)
    await world.fill(BEFORE)
    written_by_others(world, 300)
    await world.copy()
    if gone:
        first_gone(world, gone)
    first_gone(world, 10, side="target")
    report = await world.audit(is_settled=True)
    assert (found(report), report.matched) == ({"extra": 290 * LANES}, (BEFORE - gone) * LANES)
    assert report.total("source_gone") == gone * LANES


@pytest.mark.parametrize("others", [1, 300])
async def test_a_target_of_others_entries_lacks_nothing_though_nobody_can_be_asked(
    others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(monkeypatch, 60)
    world = World(RECORD, ENTRY)
    await world.fill(BEFORE)
    first_gone(world)
    written_by_others(world, others)
    assert found(await world.audit(starts=LATEST, is_settled=True)) == {"extra": others * LANES}


def without_marks(world: World) -> None:
    """Between two Redis, the entries as in a lane that no other wrote to: under the ids of their originals."""
    for lane in range(LANES):
        stored = world.stored(lane)
        for at, (_, (fields, time_ms)) in enumerate(stored):
            origin = decode_origin(fields[-1])
            assert origin is not None
            id_ms, _, sequence = origin.position.partition("-")
            stored[at] = (int(id_ms), int(sequence)), (fields[:-2], origin.time_ms or time_ms)
        world.broker.stream("target", LANES, ENTRY).lanes[lane].last = stored[-1][0]  # type: ignore[union-attr]


def rows_read(world: World, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of the target each read from now on gives."""
    counts: list[int] = []
    read = world.target.read

    async def counted(*options: Any) -> Any:
        outcomes = await read(*options)
        counts.append(sum(len(batch.rows) for batch in outcomes.values()))  # type: ignore[union-attr]
        return outcomes

    monkeypatch.setattr(world.target, "read", counted)
    return counts


@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_a_lane_that_nobody_else_writes_to_is_read_once(source: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    read_by(monkeypatch, 60)
    world = await begun_late(source, ENTRY)
    (told_by_ids if source is RECORD else without_marks)(world)
    read = rows_read(world, monkeypatch)
    report = await world.audit(starts=LATEST, is_settled=True)
    assert (found(report), report.matched, sum(read)) == ({}, COPIED * LANES, COPIED * LANES)


async def test_nor_is_it_read_twice_where_the_first_originals_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    read_by(monkeypatch, 60)
    world = World(RECORD, ENTRY)
    await world.fill(0)
    await world.copy(Start(From.LATEST))
    for lane in range(LANES):
        world.broker.write("source", lane, [(b"k", b"%d" % at, None, TIME_MS + at) for at in range(COPIED)])
    await world.copy()
    told_by_ids(world)
    first_gone(world, COPIED - 10)
    read = rows_read(world, monkeypatch)
    report = await world.audit(starts=LATEST, is_settled=True)
    assert (found(report), report.matched, sum(read)) == ({}, 10 * LANES, COPIED * LANES)


@pytest.mark.parametrize("gone", [COPIED - 1, COPIED])
@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_copies_by_id_stay_copies_where_their_originals_are_gone(
    source: Shape, gone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(monkeypatch, 30)
    world = await begun_late(source, ENTRY)
    (told_by_ids if source is RECORD else without_marks)(world)
    await world.fill(5, first=BEFORE + COPIED)
    first_gone(world, BEFORE + gone)
    report = await world.audit(starts=LATEST)
    assert (found(report), report.total("source_gone")) == ({}, gone * LANES)
    assert (report.matched, report.total("pending")) == ((COPIED - gone) * LANES, 5 * LANES)


@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_an_audit_goes_on_from_any_moment_before_the_beginning_was_known(
    source: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(monkeypatch, 60)
    monkeypatch.setattr("crossfade.verify.progress.PROGRESS_EVERY_S", 0)
    world = await begun_late(source, ENTRY, others=100)
    first_gone(world)
    states: list[Any] = []
    await world.audit(starts=LATEST, on_progress=lambda progress: states.append(progress.state()))
    assert len(states) > 5
    for state in states:
        report = await world.audit(starts=LATEST, is_settled=True, resume=json.loads(json.dumps(state)))
        assert (found(report), report.matched) == ({"extra": 100 * LANES}, COPIED * LANES)


@pytest.mark.parametrize("gone", [0, 1])
@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_a_copy_of_everything_may_begin_behind_any_number_of_others_entries(source: Shape, gone: int) -> None:
    world = World(source, ENTRY)
    await world.fill(BEFORE)
    written_by_others(world, 300)  # more than a window of the comparison
    await world.copy()
    if gone:
        first_gone(world)
    report = await world.audit(is_settled=True)
    assert (found(report), report.matched) == ({"extra": 300 * LANES}, (BEFORE - gone) * LANES)
    del world.stored(1)[300 + 30]
    assert found(await world.audit(is_settled=True)) == {"extra": 300 * LANES, "missing": 1}


async def test_one_copy_by_id_before_others_entries_stays_one() -> None:
    world = World(RECORD, ENTRY)
    await world.fill(1)
    await world.copy()
    told_by_ids(world)
    written_by_others(world, 20)
    await world.fill(COPIED, first=1)
    await world.copy()
    first_gone(world)
    report = await world.audit(starts=LATEST, is_settled=True)
    assert (found(report), report.total("source_gone")) == ({"extra": 20 * LANES}, LANES)


# ------------------------------------------------------------------------------------------------ N lanes to M, by key

HALFWAY = Start(From.TIME, str(TIME_MS + BEFORE))


async def spread_late(source: Shape, target: Shape) -> tuple[KeyedWorld, int]:
    """A copy by key that began behind the first records of the source; and the target lane that has the most of it."""
    world = KeyedWorld(source, target)
    await world.fill(BEFORE + COPIED)
    await world.copy(HALFWAY)
    return world, max(range(TARGET_LANES), key=lambda lane: len(world.stored(lane)))


async def audited(world: KeyedWorld, **options: Any) -> dict[str, int]:
    return found(await world.audit(starts=dict.fromkeys(range(LANES), HALFWAY), is_settled=True, **options))


def lose_first(world: KeyedWorld, lane: int, records: int) -> None:
    """They were never written: the counters of the broker do not know of them."""
    del world.stored(lane)[:records]
    if world.target.shape is ENTRY:
        world.broker.stream("target", TARGET_LANES, ENTRY).lanes[lane].added -= records  # type: ignore[union-attr]


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_the_first_copies_by_key_are_missing_where_the_number_in_the_first_mark_tells(
    source: Shape, target: Shape
) -> None:
    world, to = await spread_late(source, target)
    assert await audited(world) == {}
    lose_first(world, to, 10)
    assert await audited(world) == {"missing": 10}
    report = await world.audit(starts=dict.fromkeys(range(LANES), HALFWAY))
    (first, *_) = report.as_dict()["differences"]  # type: ignore[misc]
    assert (first["source"], first["target"]) == (None, None)
    assert f"the first 10 records of the copy into {world.target.lane_name(to)} are gone" in first["detail"]


async def test_what_was_trimmed_of_a_target_by_key_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossfade.verify.by_key.READ_RECORDS_MAX", 30)
    world, to = await spread_late(ENTRY, ENTRY)
    read, turns = world.target.read, iter(range(1_000))

    async def trimming(*options: Any) -> Any:
        if next(turns) == 0:
            world.broker.trim("target", to, 20)
        return await read(*options)

    monkeypatch.setattr(world.target, "read", trimming)
    assert await audited(world) == {}  # while it is read
    assert await audited(world) == {}  # and before


@pytest.mark.parametrize("target", [ENTRY, RECORD])
async def test_first_copies_by_key_that_changed_places_are_not_missing(target: Shape) -> None:
    world, to = await spread_late(ENTRY, target)
    rows_swapped(world.stored(to), 0, 1)
    assert "missing" not in await audited(world)


async def test_nor_are_those_whose_originals_are_gone() -> None:
    world, _ = await spread_late(RECORD, RECORD)
    for lane in range(LANES):
        world.broker.trim("source", lane, 20)
    assert await audited(world) == {}
