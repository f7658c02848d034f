"""Right copies whose originals the source no longer has: counted, or named, and never removed by a repair."""

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
    ROUTE,
    World,
    copied,
    double_without_mark,
    drop,
    found,
    grow,
    invent_under_a_copied_mark,
    last_after,
    rows_swapped,
)
from test_verify_beginning import told_by_ids, without_marks, written_by_others

from crossfade.brokers.protocol import From, Start
from crossfade.model.record import Shape
from crossfade.model.wire import Origin, encode_origin
from crossfade.verify.by_key import audit_by_key
from crossfade.verify.repair import Plan, plan_of
from crossfade.verify.report import AuditReport

KEEP: Any = {"named_max": 10_000, "keeps_rows": True}


def planned(report: AuditReport) -> Plan:
    return plan_of(report, can_remove=True, target_names={}, copy_anew="")


def removed_by(report: AuditReport) -> int:
    """How many rows a repair would take away."""
    return len(planned(report).removable)


def emptied(world: World, how: str) -> None:
    """Nothing is left of the source."""
    for lane in range(LANES):
        if how == "trimmed":
            world.broker.trim("source", lane, 0)
        elif how == "deleted":
            for position, _ in world.broker.rows("source", lane):
                world.broker.delete("source", lane, position)
        else:
            world.broker.recreate("source", lane)


WAYS = [
    (source, target, how)
    for source, target in DIRECTIONS
    for how in (("trimmed", "deleted", "gone") if source is ENTRY else ("trimmed", "deleted"))
]


@pytest.mark.parametrize("start", [From.EARLIEST, From.LATEST])
@pytest.mark.parametrize(("source", "target", "how"), WAYS)
async def test_a_source_that_was_emptied_says_nothing_against_the_copies(
    source: Shape, target: Shape, how: str, start: From
) -> None:
    world = await copied(source, target)
    emptied(world, how)
    report = await world.audit(keep=KEEP, is_settled=True, starts=dict.fromkeys(range(LANES), Start(start)))
    assert found(report) == {}
    assert report.total("source_gone") == LANES * RECORDS
    assert not report.is_complete
    assert removed_by(report) == 0


@pytest.mark.parametrize(("source", "how"), [(ENTRY, "trimmed"), (ENTRY, "gone"), (RECORD, "trimmed")])
async def test_nor_against_copies_that_are_told_by_their_ids(source: Shape, how: str) -> None:
    world = await copied(source, ENTRY)
    (told_by_ids if source is RECORD else without_marks)(world)
    emptied(world, how)
    report = await world.audit(keep=KEEP, is_settled=True)
    assert (found(report), report.total("source_gone")) == ({}, LANES * RECORDS)
    assert removed_by(report) == 0


@pytest.mark.parametrize("how", ["trimmed", "gone"])
async def test_nor_against_copies_by_key(how: str) -> None:
    world = World(ENTRY, RECORD)
    await world.fill()
    await world.copy()
    emptied(world, how)
    report = await audit_by_key(
        world.source, world.target, ByKey(world), route_id=ROUTE, partitioner="murmur2", is_settled=True, keep=KEEP
    )
    assert (found(report), report.total("source_gone")) == ({}, LANES * RECORDS)
    assert removed_by(report) == 0


class ByKey:
    """The world's mapping, with keys."""

    def __init__(self, world: World) -> None:
        self.translate = world.mapping.translate

    def key_of(self, row: Any, shape: Shape) -> bytes | None:
        return row[0] if shape is RECORD else None


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_a_source_that_was_emptied_while_it_was_read(
    source: Shape, target: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossfade.verify.audit.READ_RECORDS_MAX", 300)
    world = await copied(source, target)
    read, reads = world.source.read, []

    async def emptied_later(*options: Any) -> Any:
        reads.append(1)
        if len(reads) == 3:
            emptied(world, "trimmed")
        return await read(*options)

    monkeypatch.setattr(world.source, "read", emptied_later)
    report = await world.audit(keep=KEEP, is_settled=True)
    assert found(report) == {}
    assert report.matched + report.total("source_gone") == LANES * RECORDS
    assert removed_by(report) == 0


@pytest.mark.parametrize(
    ("first", "count"), [(0, 3), (300, 1), (300, 5), (300, 200), (RECORDS - 1, 1), (RECORDS - 90, 90)]
)
@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_originals_that_were_deleted_one_by_one(source: Shape, target: Shape, first: int, count: int) -> None:
    """XDEL by workers, compaction."""
    world = await copied(source, target)
    for lane in range(LANES):
        for position, _ in world.broker.rows("source", lane)[first : first + count]:
            world.broker.delete("source", lane, position)
    report = await world.audit(keep=KEEP, is_settled=True)
    assert found(report) == {}
    assert (report.matched, report.total("source_gone")) == (LANES * (RECORDS - count), LANES * count)
    assert removed_by(report) == 0


@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_a_hole_hides_no_other_damage(source: Shape) -> None:
    world = await copied(source, ENTRY)
    for position, _ in world.broker.rows("source", 1)[300:320]:
        world.broker.delete("source", 1, position)
    drop(world.stored(1))
    double_without_mark(world.stored(1))
    invent_under_a_copied_mark(world.stored(1))
    grow(world, 1)
    report = await world.audit(keep=KEEP, is_settled=True)
    assert report.total("source_gone") == 20
    assert found(report)["missing"] == 1
    assert report.total("duplicate") + report.total("extra") == 2


async def test_a_copy_of_what_a_hole_took_is_no_duplicate_of_its_like() -> None:
    """Records of equal content: the source holds the like of a gone original, and that has a copy of its own."""
    world = World(ENTRY, ENTRY)
    await world.fill(0)
    for lane in range(LANES):
        world.broker.write("source", lane, [([b"beat", b"1"], 1_700_000_000_000 + at) for at in range(100)])
    await world.copy()
    lane = world.broker.stream("source", LANES, ENTRY).lanes[1]
    gone = world.broker.rows("source", 1)[50][0]
    world.broker.delete("source", 1, gone)
    lane.max_deleted = (0, 0)  # type: ignore[union-attr]  # XSETID, or a server that forgot: nothing tells of the hole
    report = await world.audit(keep=KEEP, is_settled=True)
    assert found(report) == {"duplicate": 1}
    assert removed_by(report) == 0
    (remedy,) = planned(report).remedies
    assert remedy.action.value == "keep"


@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_copies_of_what_the_source_lost_at_its_end_are_named_and_stay(source: Shape) -> None:
    """A failover of the source that lost its last records: theirs are the only copies."""
    world = await copied(source, ENTRY)
    for lane in world.broker.stream("source", LANES, source).lanes:
        if source is RECORD:
            lane.regress(40)  # type: ignore[union-attr]
        else:
            del lane.entries[-40:]  # type: ignore[union-attr]
            lane.last, lane.added = lane.entries[-1][0], len(lane.entries)  # type: ignore[union-attr]
    report = await world.audit(keep=KEEP, is_settled=True)
    assert report.total("extra") + report.total("duplicate") >= 20 * LANES
    assert removed_by(report) == 0


async def test_a_key_that_was_made_anew_keeps_its_older_copies() -> None:
    world = await copied(ENTRY, ENTRY)
    emptied(world, "gone")
    await world.fill(30, first=RECORDS)
    report = await world.audit(keep=KEEP)
    assert (found(report), report.total("source_gone")) == ({}, LANES * RECORDS)
    assert removed_by(report) == 0


@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_what_is_certainly_too_much_is_removed_beside_holes(source: Shape) -> None:
    world = await copied(source, ENTRY)
    for position, _ in world.broker.rows("source", 1)[300:320]:
        world.broker.delete("source", 1, position)
    stored = world.stored(1)
    stored.append((last_after(stored), stored[400][1]))  # the copy of what the source has, again
    grow(world, 1)
    report = await world.audit(keep=KEEP, is_settled=True)
    assert (found(report), removed_by(report)) == ({"duplicate": 1}, 1)


async def test_the_only_right_copy_is_not_removed_beside_an_altered_one() -> None:
    world = await copied(RECORD, ENTRY)
    stored = world.stored(1)
    stored.append((last_after(stored), stored[400][1]))
    at, (fields, time_ms) = stored[400]
    stored[400] = at, ([fields[0], b"other", *fields[2:]], time_ms)
    grow(world, 1)
    report = await world.audit(keep=KEEP, is_settled=True)
    assert found(report) == {"altered": 1, "duplicate": 1}
    assert removed_by(report) == 0


async def test_a_row_with_a_mark_of_another_lane_of_the_route_stays() -> None:
    world = await copied(RECORD, ENTRY)
    stored = world.stored(1)
    mark = encode_origin(Origin(ROUTE, 7, "3", 4, 1)).encode()
    stored.append((last_after(stored), ([b"a", b"b", b"xf", mark], stored[-1][1][1])))
    grow(world, 1)
    report = await world.audit(keep=KEEP, is_settled=True)
    assert (found(report), removed_by(report)) == ({"extra": 1}, 0)


async def test_others_entries_are_removed_where_the_source_still_says_what_it_had() -> None:
    world = await copied(RECORD, ENTRY)
    written_by_others(world, 3)
    report = await world.audit(keep=KEEP, is_settled=True)
    assert (found(report), removed_by(report)) == ({"extra": 3 * LANES}, 3 * LANES)


async def test_more_strays_than_were_looked_at_are_not_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossfade.verify.report.STRAYS_MAX", 4)
    world = await copied(RECORD, ENTRY)
    written_by_others(world, 3)
    report = await world.audit(keep=KEEP, is_settled=True)
    assert (report.differences, removed_by(report)) == (9, 4)


async def test_a_watch_tells_a_duplicate_from_a_copy_of_what_a_hole_took() -> None:
    world = await copied(ENTRY, ENTRY)
    for position, _ in world.broker.rows("source", 1)[600:620]:
        world.broker.delete("source", 1, position)
    first = await world.audit(is_settled=True)
    assert (found(first), first.total("source_gone")) == ({}, 20)
    stored = world.stored(1)
    stored.append((last_after(stored), stored[400][1]))
    grow(world, 1)
    later = await world.audit(is_settled=True, resume=json.loads(json.dumps(first.state)))
    assert found(later) == {"duplicate": 1}


@pytest.mark.parametrize(("first_lanes", "removed"), [(LANES, 1), (1, 0), (0, 0)])
async def test_by_key_a_row_without_mark_is_too_much_where_every_copy_is_marked(first_lanes: int, removed: int) -> None:
    world = await copied(ENTRY, ENTRY)
    for position, _ in world.broker.rows("source", 1)[300:320]:
        world.broker.delete("source", 1, position)
    stored = world.stored(1)
    stored.append((last_after(stored), ([b"a", b"b"], stored[-1][1][1])))
    grow(world, 1)
    report = await audit_by_key(
        world.source,
        world.target,
        ByKey(world),
        route_id=ROUTE,
        partitioner="murmur2",
        first_lanes=first_lanes,
        is_settled=True,
        keep=KEEP,
    )
    strays = [
        one for one in planned(report).removable if one.difference.claim is None or not one.difference.claim.is_marked
    ]
    assert len(strays) == removed


@pytest.mark.parametrize("is_by_id", [False, True])
async def test_copies_from_before_a_topic_was_made_anew_stay(is_by_id: bool) -> None:
    world = await copied(RECORD, ENTRY)
    if is_by_id:
        told_by_ids(world)
    for lane in range(LANES):
        world.broker.recreate("source", lane)
        times = range(1_700_005_000_000, 1_700_005_000_900)
        world.broker.write("source", lane, [(b"k", b"new", None, time_ms) for time_ms in times])
    await world.source.open()
    for start in (From.EARLIEST, From.LATEST):
        starts = dict.fromkeys(range(LANES), Start(start))
        report = await world.audit(keep=KEEP, starts=starts)
        assert removed_by(report) == 0
    for lane in range(LANES):  # the new copies stand behind the old ones, under the same offsets
        stored = world.stored(lane)
        for at in range(900):
            mark = encode_origin(Origin(ROUTE, lane, str(at), RECORDS + 1 + at, 9)).encode()
            fields = [b"key", b"k", b"value", b"new", b"xf", mark]
            stored.append(((1_700_005_000_000 + at, 0), (fields, 1_700_005_000_000 + at)))
        grow(world, lane)
    report = await world.audit(keep=KEEP, is_settled=True)
    assert not report.ok
    assert removed_by(report) == 0


@pytest.mark.parametrize("target", [ENTRY, RECORD])
async def test_a_copied_record_that_was_never_committed_is_named(target: Shape) -> None:
    """What an application aborted at the head of a log is no original that is gone."""
    world = World(RECORD, target)
    await world.fill(0)  # one aborted record a lane
    await world.fill(50)
    await world.copy()
    stored = world.stored(0)
    mark = encode_origin(Origin(ROUTE, 0, "0", 51, 2, None))
    row = stored[0][1]
    kept = (
        (b"k", b"aborted", [("xf", mark.encode())], row[3])
        if target is RECORD
        else ([b"k", b"aborted", b"xf", mark.encode()], row[1])
    )
    stored.append((last_after(stored), kept))
    grow(world, 0)
    report = await world.audit(keep=KEEP, is_settled=True)
    assert report.total("source_gone") == 0
    assert sum(found(report).values()) == 1


async def test_the_only_copy_stays_behind_a_failover_that_was_written_on() -> None:
    """The ids of what a replica never had lie between those of what it has."""
    world = await copied(ENTRY, ENTRY)
    without_marks(world)
    lanes = world.broker.stream("source", LANES, ENTRY).lanes
    for lane in lanes:
        del lane.entries[-40:]  # type: ignore[union-attr]
        lane.last, lane.added = lane.entries[-1][0], len(lane.entries)  # type: ignore[union-attr]
    await world.fill(30, first=RECORDS + 100)
    report = await world.audit(keep=KEEP)
    assert report.total("extra") + report.total("duplicate") == 40 * LANES
    assert removed_by(report) == 0


@pytest.mark.parametrize("how", ["trimmed", "all trimmed"])
@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_doubled_and_moved_copies_of_what_is_gone_are_named_and_stay(
    source: Shape, target: Shape, how: str
) -> None:
    world = await copied(source, target)
    world.broker.trim("source", 0, 200 if how == "trimmed" else 0)
    stored = world.stored(0)
    world.broker.write("target", 0, [stored[at][1] for at in range(10)])
    report = await world.audit(keep=KEEP, is_settled=True)
    assert found(report) == {"extra": 10}
    assert removed_by(report) == 0
    rows_swapped(stored, 100, 101)
    assert found(await world.audit(is_settled=True)) == {"extra": 11}


@pytest.mark.parametrize("is_by_key", [False, True])
@pytest.mark.parametrize("target", [ENTRY, RECORD])
async def test_originals_that_workers_delete_while_they_are_read(
    target: Shape, is_by_key: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "by_key" if is_by_key else "audit"
    monkeypatch.setattr(f"crossfade.verify.{module}.READ_RECORDS_MAX", 300)
    world = await copied(ENTRY, target)
    mapping = ByKey(world)
    monkeypatch.setattr(mapping, "key_of", lambda *_: None)
    read, reads = world.source.read, []

    async def deleting(*options: Any) -> Any:
        reads.append(1)
        if len(reads) == 3:
            for lane in range(LANES):
                for position, _ in world.broker.rows("source", lane)[400:420]:
                    world.broker.delete("source", lane, position)
        return await read(*options)

    monkeypatch.setattr(world.source, "read", deleting)
    if is_by_key:
        report = await audit_by_key(
            world.source, world.target, mapping, route_id=ROUTE, partitioner="murmur2", keep=KEEP
        )
    else:
        report = await world.audit(keep=KEEP)
    assert found(report) == {}
    assert (report.matched, report.total("source_gone")) == (LANES * (RECORDS - 20), LANES * 20)
