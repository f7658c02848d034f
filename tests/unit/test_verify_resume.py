"""An audit that goes on from an earlier one sees what happened to either side in between."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_verify_audit import (
    DIRECTIONS,
    ENTRY,
    LANES,
    RECORD,
    RECORDS,
    World,
    content_changed,
    copied,
    entry,
    found,
    record,
)

from crossfade.errors import SourceRegressed, SourceReset
from crossfade.model.record import Shape
from crossfade.verify.progress import Progress
from crossfade.verify.report import AuditReport


def kept(report: AuditReport) -> Any:
    return json.loads(json.dumps(report.state))


def write(world: World, side: str, records: int, *, at: int = 5) -> None:
    make = record if getattr(world, side).shape is RECORD else entry
    for lane in range(LANES):
        world.broker.write(side, lane, [make(at) for _ in range(records)])


@pytest.mark.parametrize("written", [0, 20, RECORDS, RECORDS + 20])
@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_a_side_that_was_made_anew_since_is_no_proof(
    source: Shape, target: Shape, side: str, written: int
) -> None:
    world = await copied(source, target)
    state = kept(await world.audit())
    for lane in range(LANES):
        world.broker.recreate(side, lane)
    write(world, side, written)
    for _ in range(3):  # nor in any later round
        report = await world.audit(resume=state)
        assert not report.ok
        state = kept(report)
    assert all(isinstance(lane.error, SourceReset | SourceRegressed) for lane in report.lanes.values())
    name = getattr(world, side).lane_name(0)
    assert name in str(report.lanes[0].error)


@pytest.mark.parametrize("written", [0, 50])
@pytest.mark.parametrize("side", ["source", "target"])
async def test_a_side_that_was_cut_off_since_is_no_proof(side: str, written: int) -> None:
    world = await copied(RECORD, RECORD)
    state = kept(await world.audit())
    for lane in range(LANES):
        world.broker.regress(side, lane, 100)
    write(world, side, written)
    report = await world.audit(resume=state, is_settled=True)
    assert [type(lane.error) for lane in report.lanes.values()] == [SourceRegressed] * LANES


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_a_state_of_an_older_version_is_gone_on_from(source: Shape, target: Shape) -> None:
    world = await copied(source, target)
    state = kept(await world.audit())
    for lane in state["lanes"].values():
        for side in ("source", "target"):
            del lane[side]["bounds"]
    await world.fill(50, first=RECORDS)
    await world.copy()
    report = await world.audit(resume=state)
    assert (report.ok, report.is_complete, report.matched) == (True, True, LANES * (RECORDS + 50))


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_a_side_that_was_trimmed_to_nothing_is_neither(source: Shape, target: Shape, side: str) -> None:
    world = await copied(source, target)
    state = kept(await world.audit())
    for lane in range(LANES):
        world.broker.trim(side, lane, 0)
    report = await world.audit(resume=state)
    assert (found(report), report.ok, report.matched) == ({}, True, LANES * RECORDS)


async def test_an_older_epoch_is_seen_by_the_audit_that_goes_on() -> None:
    world = await copied(RECORD, RECORD)
    state = kept(await world.audit())
    await world.fill(50, first=RECORDS)
    await world.copy()
    stored = world.stored(0)
    for at in range(RECORDS, RECORDS + 50):
        position, (key, value, headers, time_ms) = stored[at]
        *others, (name, mark) = headers
        stored[at] = (position, (key, value, [*others, (name, mark.rpartition(b";")[0] + b";1")], time_ms))
    report = await world.audit(resume=state, is_settled=True)
    assert (report.total("stale_epochs"), report.ok) == (50, False)


class Interrupted(Exception):
    pass


async def interrupted(world: World, after: int, **options: Any) -> Any:
    """The state of an audit that ended after so many rounds of reads; None = it came to its end before."""
    rounds: list[Any] = []

    def stop(progress: Progress) -> None:
        rounds.append(json.loads(json.dumps(progress.state())))
        if len(rounds) == after:
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crossfade.verify.audit.READ_RECORDS_MAX", 450)
        patch.setattr("crossfade.verify.progress.PROGRESS_EVERY_S", 0.0)
        try:
            await world.audit(window_rows=20, on_progress=stop, **options)
        except Interrupted:
            return rounds[-1]
    return None


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_an_audit_interrupted_in_a_long_gap_forgets_nothing(source: Shape, target: Shape) -> None:
    world = await copied(source, target)
    del world.stored(0)[200:500]
    if target is ENTRY:
        world.broker.stream("target", LANES, ENTRY).lanes[0].added -= 300  # type: ignore[union-attr]
    for after in range(1, 40):
        state = await interrupted(world, after)
        if state is None:
            break
        report = await world.audit(window_rows=20, resume=state, is_settled=True)
        assert (found(report), report.matched) == ({"missing": 300}, LANES * RECORDS - 300)
    assert after > 3


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_what_retention_took_from_the_target_in_between_is_not_missing(
    source: Shape, target: Shape, settled: bool
) -> None:
    world = await copied(source, target)
    state = kept(await world.audit())
    await world.fill(300, first=RECORDS)
    await world.copy()
    for lane in range(LANES):
        world.broker.trim("target", lane, 100)
    del world.stored(0)[30]
    if target is ENTRY:
        world.broker.stream("target", LANES, ENTRY).lanes[0].added -= 1  # type: ignore[union-attr]
    report = await world.audit(resume=state, is_settled=settled)
    # a record that is gone behind the first that is left is missing all the same
    assert (found(report), report.total("before_target")) == ({"missing": 1}, 200 * LANES)
    assert report.matched == LANES * (RECORDS + 100) - 1
    later = await world.audit(resume=kept(report), is_settled=settled)
    assert (found(later), later.total("before_target")) == ({"missing": 1}, 200 * LANES)


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_a_target_that_lost_all_that_came_in_between_counts_it_once(source: Shape, target: Shape) -> None:
    world = await copied(source, target)
    state = kept(await world.audit())
    await world.fill(50, first=RECORDS)
    await world.copy()
    for lane in range(LANES):
        world.broker.trim("target", lane, 0)
    for _ in range(3):
        report = await world.audit(resume=state, is_settled=True)
        assert (found(report), report.total("before_target")) == ({}, 50 * LANES)
        state = kept(report)
    await world.fill(50, first=RECORDS + 50)
    await world.copy()
    report = await world.audit(resume=state, is_settled=True)
    assert (found(report), report.total("before_target")) == ({}, 50 * LANES)
    assert report.matched == LANES * (RECORDS + 50)


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_what_an_emptied_target_lacks_is_counted_once(source: Shape, target: Shape) -> None:
    world = await copied(source, target)
    for lane in range(LANES):
        world.broker.trim("target", lane, 0)
    state = None
    for _ in range(3):
        report = await world.audit(resume=state)
        assert (found(report), report.total("before_target")) == ({}, RECORDS * LANES)
        state = kept(report)


@pytest.mark.parametrize("at", [0, 10])
@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_an_entry_removed_from_the_target_in_between_is_missing(source: Shape, at: int) -> None:
    world = await copied(source, ENTRY)
    await world.fill(50, first=RECORDS)
    state = kept(await world.audit())
    await world.copy()
    world.broker.delete("target", 0, world.broker.rows("target", 0)[RECORDS + at][0])
    report = await world.audit(resume=state, is_settled=True)
    assert (found(report), report.matched) == ({"missing": 1}, LANES * (RECORDS + 50) - 1)
    assert report.is_complete


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_doubled_copies_of_gone_originals_are_seen_by_the_audit_that_goes_on(
    source: Shape, target: Shape
) -> None:
    world = await copied(source, target)
    for lane in range(LANES):
        world.broker.trim("source", lane, 0)
    first = await world.audit()
    assert (found(first), first.total("source_gone")) == ({}, LANES * RECORDS)
    world.broker.write("target", 0, [world.stored(0)[100][1]])
    assert found(await world.audit(resume=kept(first))) == {"extra": 1}


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_an_end_that_is_missing_is_counted_once_however_often_it_is_audited(source: Shape, target: Shape) -> None:
    world = await copied(source, target)
    last = world.stored(0)[-1][1]
    del world.stored(0)[-5:]
    state = None
    for _ in range(3):
        report = await world.audit(resume=state, is_settled=True)
        assert (found(report), report.matched) == ({"missing": 5}, LANES * RECORDS - 5)
        state = kept(report)
    if target is RECORD:  # it comes after all
        world.broker.write("target", 0, [last])
        report = await world.audit(resume=state, is_settled=True)
        assert (found(report), report.matched) == ({"missing": 4}, LANES * RECORDS - 4)


@pytest.mark.parametrize("is_settled", [False, True])
@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_a_copy_that_came_before_the_turn_of_the_last_record_is_never_missing(
    source: Shape, is_settled: bool
) -> None:
    world = await copied(source, RECORD)
    stored = world.stored(0)
    rows = [row for _, row in stored]
    rows.insert(100, rows.pop())
    stored[:] = [(position, row) for (position, _), row in zip(stored, rows, strict=True)]
    state = None
    for number in range(4):
        if number == 2:
            await world.fill(50, first=RECORDS)
            await world.copy()
        report = await world.audit(resume=state, is_settled=is_settled)
        assert (found(report), report.total("pending")) == ({"reordered": 1}, 0)
        state = kept(report)
    assert report.matched == LANES * (RECORDS + 50) - 1


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_what_the_target_lost_at_its_beginning_is_counted_once_by_audits_that_are_cut_short(
    source: Shape, target: Shape
) -> None:
    world = await copied(source, target)
    for lane in range(LANES):
        world.broker.trim("target", lane, 200)
    before, after = [], 1
    while (state := await interrupted(world, after)) is not None:
        before.append(state["lanes"]["0"]["before_target"] and state["lanes"]["0"]["source"]["after"])
        report = await world.audit(resume=state)
        assert (found(report), report.matched) == ({}, LANES * 200)
        assert report.total("before_target") == LANES * (RECORDS - 200)
        after += 1
    assert after > 3
    assert None not in before  # nor is it read again


async def test_ranges_that_are_let_go_of_leave_their_differences_to_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossfade.verify.digests.RANGE_RECORDS", 100)
    world = await copied(RECORD, RECORD)
    stored = world.stored(0)
    stored[10:17] = [(position, content_changed(row)) for position, row in stored[10:17]]
    first = await world.audit(is_settled=True)
    assert sum(part.differences for part in first.lanes[0].ranges) == 7
    state = kept(first)
    del state["lanes"]["0"]["ranges"][:-1]
    await world.fill(300, first=RECORDS)
    await world.copy()
    report = await world.audit(resume=state, is_settled=True)
    assert (found(report), len(report.lanes[0].ranges)) == ({"altered": 7}, 4)
    assert [part.differences for part in report.lanes[0].ranges] == [0] * 4
