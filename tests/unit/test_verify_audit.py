"""The auditor on both shapes: what a relay leaves is silent, each planted damage is found, named and placed."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from crossfade.brokers.memory import MemoryBroker, MemoryLog
from crossfade.brokers.protocol import From, Owner, Start
from crossfade.errors import LaneError
from crossfade.model.mapping import mapping_named
from crossfade.model.partitioner import partition_many
from crossfade.model.position import Place, position_text
from crossfade.model.record import Batch, Shape, Write
from crossfade.verify.audit import audit
from crossfade.verify.by_key import audit_by_key
from crossfade.verify.digests import RangeDigests
from crossfade.verify.extent import extents_of
from crossfade.verify.progress import Progress
from crossfade.verify.reading import Reading
from crossfade.verify.report import AuditReport

LANES = 3
RECORDS = 700
ROUTE = "0a1b2c3d"
RECORD, ENTRY = Shape.RECORD, Shape.ENTRY
DIRECTIONS = [(ENTRY, RECORD), (RECORD, ENTRY), (RECORD, RECORD), (ENTRY, ENTRY)]
TIME_MS = 1_700_000_000_000


def entry(at: int) -> tuple[list[bytes], int]:
    value = b"value %d" % at
    shapes = [
        [b"key", b"k%d" % (at % 9), b"value", value],
        [b"a", b"1", b"a", b"2", b"n", value],
        [b"v", value, b"", b""],
    ]
    return (shapes[0 if at % 5 else at // 5 % 3], TIME_MS + at // 3)


def record(at: int) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]] | None, int]:
    key = b"k%d" % (at % 9)
    if at % 7 == 0:
        return (key, b"value %d" % at, [("trace", b"%d" % at), ("none", None)], TIME_MS + at // 3)
    if at % 11 == 0:  # out of order in time, as several writers make it
        return (None, b"value %d" % at, None, TIME_MS - at)
    return (key, b"value %d" % at, None, TIME_MS + at // 3)


class World:
    """A source, a target, and the copy between them, made by the memory log's own append."""

    def __init__(self, source: Shape, target: Shape) -> None:
        self.broker = MemoryBroker(clock_ms=lambda: TIME_MS + 10_000_000)
        self.source = MemoryLog(self.broker, "source", LANES, source)
        self.target = MemoryLog(self.broker, "target", LANES, target)
        self.mapping = mapping_named("lossless")
        self.places: dict[int, Place] = {}

    async def fill(self, records: int = RECORDS, first: int = 0) -> None:
        await self.source.open()
        await self.target.open()
        make = record if self.source.shape is RECORD else entry
        for lane in range(LANES):
            self.broker.write("source", lane, [make(at * LANES + lane) for at in range(first, first + records)])
            if self.source.shape is RECORD:
                self.broker.write_aborted("source", lane, [make(10**6)])

    async def copy(self, start: Start | None = None) -> None:
        """Copy everything, by two claims, in uneven batches."""
        if not self.places:
            begun = await self.source.begin(range(LANES), start or Start())
            self.places = {lane: place for lane, place in begun.items() if isinstance(place, Place)}
        for records_max in (97, 10_000):
            owner = Owner(ROUTE, "test", "digest")
            claim = await self.target.claim(owner, [(lane, lane) for lane in range(LANES)])
            for _ in range(2 if records_max == 97 else 50):
                batches = await self.source.read(self.places, records_max, 1 << 30, 0)
                writes = []
                for lane, batch in batches.items():
                    assert isinstance(batch, Batch)
                    mapped = self.mapping.translate(batch, self.target.shape)
                    writes.append(Write((lane, lane), mapped.positions, mapped.rows, batch.place, mapped.rejects))
                    self.places[lane] = batch.place
                if not any(write.rows for write in writes):
                    break
                outcomes = await self.target.append(claim, writes)
                assert not [one for one in outcomes.values() if isinstance(one, LaneError)]

    def stored(self, lane: int) -> list[Any]:
        """What the target's broker keeps of a lane: (position, row), to be damaged."""
        found = self.broker.stream("target", LANES, self.target.shape).lanes[lane]
        return found.committed if self.target.shape is RECORD else found.entries  # type: ignore[union-attr]

    async def audit(self, **options: Any) -> AuditReport:
        options.setdefault("window_rows", 40)
        return await audit(self.source, self.target, self.mapping, route_id=ROUTE, lanes=list(range(LANES)), **options)


async def copied(source: Shape, target: Shape) -> World:
    world = World(source, target)
    await world.fill()
    await world.copy()
    return world


def found(report: AuditReport) -> dict[str, int]:
    kinds = ("missing", "extra", "duplicate", "reordered", "altered")
    return {kind: report.total(kind) for kind in kinds if report.total(kind)}


def rows_swapped(stored: list[Any], left: int, right: int) -> None:
    stored[left], stored[right] = (stored[left][0], stored[right][1]), (stored[right][0], stored[left][1])


def content_changed(row: Any) -> Any:
    """The same mark under another content."""
    if len(row) == 4:
        return (row[0], (row[1] or b"") + b"!", row[2], row[3])
    return ([row[0][0], row[0][1] + b"!", *row[0][2:]], row[1])


def unmarked(row: Any) -> Any:
    if len(row) == 4:
        return (row[0], row[1], [header for header in row[2] if header[0] != "xf"] or None, row[3])
    return (row[0][:-2], row[1])


def drop(stored: list[Any]) -> None:
    del stored[400]


def double(stored: list[Any]) -> None:
    stored.append((last_after(stored), stored[400][1]))


def double_without_mark(stored: list[Any]) -> None:
    stored.append((last_after(stored), unmarked(stored[400][1])))


def swap(stored: list[Any]) -> None:
    rows_swapped(stored, 400, 401)


def swap_far(stored: list[Any]) -> None:
    row = stored.pop(400)[1]
    stored.append((last_after(stored), row))


def alter(stored: list[Any]) -> None:
    stored[400] = (stored[400][0], content_changed(stored[400][1]))


def invent(stored: list[Any]) -> None:
    stored.append((last_after(stored), content_changed(unmarked(stored[400][1]))))


def invent_under_a_copied_mark(stored: list[Any]) -> None:
    stored.append((last_after(stored), content_changed(stored[400][1])))


def last_after(stored: list[Any]) -> Any:
    last = stored[-1][0]
    return last + 1 if isinstance(last, int) else (last[0], last[1] + 1)


DAMAGES: list[tuple[Callable[[list[Any]], None], str]] = [
    (drop, "missing"),
    (double, "duplicate"),
    (double_without_mark, "duplicate"),
    (swap, "reordered"),
    (swap_far, "reordered"),
    (alter, "altered"),
    (invent, "extra"),
    (invent_under_a_copied_mark, "extra"),
]


def grow(world: World, lane: int) -> None:
    """Let the broker's own counters know of rows that were put into its storage."""
    lanes = world.broker.stream("target", LANES, world.target.shape).lanes
    stored = world.stored(lane)
    if world.target.shape is RECORD:
        lanes[lane].end = max(lanes[lane].end, stored[-1][0] + 1)  # type: ignore[union-attr]
    else:
        lanes[lane].added, lanes[lane].last = len(stored), stored[-1][0]  # type: ignore[union-attr]


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_a_right_copy_is_silent_and_complete(source: Shape, target: Shape) -> None:
    world = await copied(source, target)
    report = await world.audit()
    assert report.ok, report.as_dict()
    assert report.is_complete
    assert report.matched == LANES * RECORDS
    assert not report.as_dict()["differences"]


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
@pytest.mark.parametrize(("damage", "name"), DAMAGES)
async def test_one_damaged_record_is_found_and_named(
    source: Shape, target: Shape, damage: Callable[[list[Any]], None], name: str
) -> None:
    world = await copied(source, target)
    damage(world.stored(1))
    grow(world, 1)
    report = await world.audit()
    assert not report.ok
    assert found(report) == {name: 1}
    (difference,) = report.as_dict()["differences"]  # type: ignore[misc]
    assert difference["lane"] == 1
    assert difference["kind"] == name
    assert difference["source"] or difference["target"]


async def test_contents_that_changed_places_under_their_marks_are_reordered() -> None:
    world = await copied(RECORD, ENTRY)
    stored = world.stored(1)
    (left, (fields, time_ms)), (right, (others, others_ms)) = stored[400], stored[404]
    stored[400] = (left, ([*others[:-2], *fields[-2:]], time_ms))
    stored[404] = (right, ([*fields[:-2], *others[-2:]], others_ms))
    assert time_ms != others_ms
    assert found(await world.audit()) == {"reordered": 1}


async def test_what_is_on_its_way_is_pending_and_settled_it_is_missing() -> None:
    world = await copied(ENTRY, RECORD)
    await world.fill(50, first=RECORDS)
    report = await world.audit()
    assert report.ok
    assert not report.is_complete
    assert report.total("pending") == 50 * LANES
    settled = await world.audit(is_settled=True)
    assert found(settled) == {"missing": 50 * LANES}


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_a_later_audit_goes_on_where_the_last_one_ended(source: Shape, target: Shape) -> None:
    world = await copied(source, target)
    await world.fill(50, first=RECORDS)
    first = await world.audit()
    assert first.total("pending") == 50 * LANES
    state = json.loads(json.dumps(first.state))
    await world.copy()
    alter(world.stored(2))  # behind the audit already: seen by a new one alone
    reads: list[int] = []
    read = world.target.read

    async def counting(*arguments: Any) -> Any:
        outcome = await read(*arguments)
        reads.append(sum(len(batch.rows) for batch in outcome.values()))
        return outcome

    world.target.read = counting  # type: ignore[method-assign]
    later = await world.audit(resume=state)
    assert later.ok
    assert later.is_complete
    assert later.matched == LANES * (RECORDS + 50)
    assert sum(reads) < LANES * RECORDS
    assert not (await world.audit()).ok


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_an_interrupted_audit_goes_on_and_finds_the_same(source: Shape, target: Shape) -> None:
    world = await copied(source, target)
    for lane, damage in enumerate((drop, swap, alter)):
        damage(world.stored(lane))
    whole = found(await world.audit())
    states: list[dict[str, Any]] = []

    class Interrupted(Exception):
        pass

    def stop(progress: Progress) -> None:
        states.append(json.loads(json.dumps(progress.state())))
        raise Interrupted

    resumed: dict[str, Any] | None = None
    for _ in range(100):
        try:
            report = await small_steps(world, resumed, stop)
            break
        except Interrupted:
            resumed = states[-1]
    assert found(report) == whole
    assert report.matched == LANES * RECORDS - 3
    assert len(states) > 3


async def small_steps(world: World, resume: dict[str, Any] | None, stop: Callable[[Progress], None]) -> AuditReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crossfade.verify.audit.READ_RECORDS_MAX", 150)
        patch.setattr("crossfade.verify.progress.PROGRESS_EVERY_S", 0.0)
        return await world.audit(resume=resume, on_progress=stop, window_rows=20)


@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_source_trimmed_after_copying_is_not_verifiable(source: Shape) -> None:
    world = await copied(source, RECORD)
    for lane in range(LANES):
        world.broker.trim("source", lane, 500)
    report = await world.audit()
    assert report.ok, report.as_dict()
    assert not report.is_complete
    assert report.total("source_gone") == (RECORDS - 500) * LANES
    assert report.matched == 500 * LANES


@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_source_trimmed_during_the_audit_is_not_verifiable(source: Shape) -> None:
    world = await copied(source, RECORD)
    read, turns = world.source.read, iter(range(1000))

    async def trimming(*arguments: Any) -> Any:
        if next(turns) == 2:
            for lane in range(LANES):
                world.broker.trim("source", lane, 100)
        return await read(*arguments)

    world.source.read = trimming  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crossfade.verify.audit.READ_RECORDS_MAX", 150)
        report = await world.audit(window_rows=20)
    assert report.ok, report.as_dict()
    assert report.total("source_gone") > 0
    assert report.total("source_gone") + report.matched == RECORDS * LANES


async def test_target_trimmed_by_its_retention_is_not_missing() -> None:
    world = await copied(ENTRY, RECORD)
    for lane in range(LANES):
        world.broker.trim("target", lane, 300)
    report = await world.audit()
    assert report.ok
    assert report.matched == 300 * LANES
    assert report.total("before_target") == (RECORDS - 300) * LANES
    assert not report.is_complete


async def test_copy_from_latest_expects_nothing_older() -> None:
    world = World(ENTRY, RECORD)
    await world.fill(100)
    start = Start(From.LATEST)
    await world.copy(start)
    await world.fill(50, first=100)
    await world.copy()
    starts = dict.fromkeys(range(LANES), start)
    report = await world.audit(starts=starts)
    assert report.ok, report.as_dict()
    assert report.matched == 50 * LANES
    del world.stored(0)[0]
    assert found(await world.audit(starts=starts)) == {"missing": 1}
    assert found(await world.audit()) == {"missing": 100 * LANES + 1}
    # each lane by its own beginning
    assert found(await world.audit(starts={1: start})) == {"missing": 100 * (LANES - 1) + 1}


async def test_quarantined_records_are_not_missing() -> None:
    world = await copied(ENTRY, RECORD)
    positions = [position for position, _ in world.broker.rows("source", 0)]
    del world.stored(0)[300]
    assert found(await world.audit()) == {"missing": 1}

    async def quarantined() -> dict[int, set[str]]:
        return {0: {positions[300]}}

    report = await world.audit(quarantined=quarantined)
    assert report.ok
    assert report.total("quarantined") == 1


async def test_writes_of_a_fenced_relay_are_not_ok() -> None:
    world = await copied(ENTRY, RECORD)
    stored = world.stored(0)
    position, (key, value, headers, time_ms) = stored[500]
    older = [(name, content.replace(b";2", b";1")) for name, content in headers]
    assert older != headers
    stored[500] = (position, (key, value, older, time_ms))
    report = await world.audit()
    assert report.total("stale_epochs") == 1
    assert not report.ok


async def test_source_made_anew_is_a_lane_error() -> None:
    world = await copied(RECORD, ENTRY)
    bounds = world.source.bounds

    async def then_recreated(lanes: Any) -> Any:
        found = await bounds(lanes)
        for lane in range(LANES):
            world.broker.recreate("source", lane)
        await world.fill(5)
        return found

    world.source.bounds = then_recreated  # type: ignore[method-assign]
    report = await world.audit()
    assert not report.ok
    assert all(lane.error is not None for lane in report.lanes.values())


async def test_digests_are_of_the_source_and_do_not_depend_on_slices() -> None:
    world = await copied(ENTRY, RECORD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crossfade.verify.digests.RANGE_RECORDS", 250)
        whole = await world.audit()
        patch.setattr("crossfade.verify.audit.READ_RECORDS_MAX", 130)
        sliced = await world.audit(window_rows=7)
        alter(world.stored(1))
        damaged = await world.audit()
    ranges = {lane: [part.digest for part in report.ranges] for lane, report in whole.lanes.items()}
    assert ranges == {lane: [part.digest for part in report.ranges] for lane, report in sliced.lanes.items()}
    assert [part.records for part in whole.lanes[0].ranges] == [250, 250, 200]
    assert len({digest for parts in ranges.values() for digest in parts}) == 3 * LANES
    assert [part.differences for part in damaged.lanes[1].ranges] == [0, 1, 0]


def test_digests_of_times_that_only_an_entry_id_can_hold() -> None:
    positions = [b"%d-0" % at for at in range(4)]
    fields = [[b"a", b"b"]] * 4

    def digest(times: list[int], *cuts: int) -> str:
        digests = RangeDigests(ranges := [])
        for first, last in pairwise([0, *cuts, 4]):
            digests.add(positions[first:last], [fields[first:last], times[first:last]], 0)
        digests.close(0)
        (part,) = ranges
        return part.digest

    beyond = [5, 2**63, 2**64 - 1, 6]
    assert digest(beyond) == digest(beyond, 1, 2) == digest(beyond, 3)
    assert digest(beyond) != digest([5, -(2**63), -1, 6])
    # what every digest was until now stays
    assert digest([5, 6, 7, 8]) == "2f26b71c332d7926fd9600ecd8848363"


async def test_empty_sides() -> None:
    world = World(ENTRY, RECORD)
    await world.source.open()
    await world.target.open()
    report = await world.audit()
    assert report.verdict == "none"
    assert report.is_complete
    await world.fill(10)
    assert (await world.audit()).total("pending") == 10 * LANES


# ------------------------------------------------------------------------------------------------ N lanes to M, by key

TARGET_LANES = 5


class KeyedWorld(World):
    """Three source lanes spread over five target lanes by key."""

    def __init__(self, source: Shape, target: Shape) -> None:
        super().__init__(source, target)
        self.target = MemoryLog(self.broker, "target", TARGET_LANES, target)

    async def copy(self, start: Start | None = None) -> None:
        begun = await self.source.begin(range(LANES), start or Start())
        places = {lane: place for lane, place in begun.items() if isinstance(place, Place)}
        paths = [(lane, to) for lane in range(LANES) for to in range(TARGET_LANES)]
        claim = await self.target.claim(Owner(ROUTE, "test", "digest", paths=tuple(paths)), paths)
        while True:
            batches = await self.source.read(places, 130, 1 << 30, 0)
            writes = []
            for lane, batch in batches.items():
                assert isinstance(batch, Batch)
                mapped = self.mapping.translate(batch, self.target.shape)
                keys = [self.mapping.key_of(row, self.target.shape) for row in mapped.rows]
                lanes = partition_many("murmur2", keys, TARGET_LANES, lane)
                for to in range(TARGET_LANES):
                    chosen = [at for at, one in enumerate(lanes) if one == to]
                    positions, rows = [mapped.positions[at] for at in chosen], [mapped.rows[at] for at in chosen]
                    writes.append(Write((lane, to), positions, rows, batch.place))
                places[lane] = batch.place
            if not any(write.rows for write in writes):
                return
            outcomes = await self.target.append(claim, writes)
            assert not [one for one in outcomes.values() if isinstance(one, LaneError)]

    def stored(self, lane: int) -> list[Any]:
        found = self.broker.stream("target", TARGET_LANES, self.target.shape).lanes[lane]
        return found.committed if self.target.shape is RECORD else found.entries  # type: ignore[union-attr]

    async def audit(self, **options: Any) -> AuditReport:
        options.setdefault("window_rows", 40)
        return await audit_by_key(
            self.source, self.target, self.mapping, route_id=ROUTE, partitioner="murmur2", **options
        )


async def spread(source: Shape, target: Shape) -> KeyedWorld:
    world = KeyedWorld(source, target)
    await world.fill()
    await world.copy()
    return world


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_a_right_spread_by_key_is_silent(source: Shape, target: Shape) -> None:
    world = await spread(source, target)
    report = await world.audit()
    assert report.ok, report.as_dict()
    assert report.is_complete
    assert report.matched == LANES * RECORDS


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
@pytest.mark.parametrize("name", ["missing", "altered", "reordered", "duplicate", "extra"])
async def test_damage_to_a_spread_by_key_is_named(source: Shape, target: Shape, name: str) -> None:
    world = await spread(source, target)
    to = max(range(TARGET_LANES), key=lambda lane: len(world.stored(lane)))
    stored = world.stored(to)
    at = 100
    if name == "missing":
        del stored[at]
    elif name == "altered":
        stored[at] = (stored[at][0], content_changed(stored[at][1]))
    elif name == "reordered":
        row = stored.pop(at)[1]
        stored.append((last_after(stored), row))
    elif name == "duplicate":
        stored.append((last_after(stored), stored[at][1]))
    else:
        stored.append((last_after(stored), content_changed(unmarked(stored[at][1]))))
    lane = world.broker.stream("target", TARGET_LANES, target).lanes[to]
    if target is RECORD:
        lane.end = stored[-1][0] + 1  # type: ignore[union-attr]
    else:
        lane.added, lane.last = len(stored), stored[-1][0]  # type: ignore[union-attr]
    report = await world.audit()
    assert found(report) == {name: 1}, report.as_dict()["differences"]


async def test_a_spread_by_key_that_is_trimmed_pending_or_late() -> None:
    world = await spread(ENTRY, RECORD)
    await world.fill(50, first=RECORDS)
    report = await world.audit()
    assert report.ok
    assert report.total("pending") == 50 * LANES
    assert found(await world.audit(is_settled=True)) == {"missing": 50 * LANES}
    for lane in range(TARGET_LANES):
        world.broker.trim("target", lane, 40)
    report = await world.audit()
    assert report.ok, report.as_dict()["differences"]
    assert not report.is_complete
    assert report.total("before_target") + report.matched + report.total("pending") == (RECORDS + 50) * LANES
    world.broker.trim("source", 0, 20)
    assert (await world.audit()).ok


# ------------------------------------------------------------------------------------------------ a part of the source


def source_positions(world: World, lane: int) -> list[str]:
    return [position_text(position) for position, _ in world.broker.rows("source", lane)]


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
async def test_only_the_records_between_two_positions_are_compared(source: Shape, target: Shape) -> None:
    world = await copied(source, target)
    places = source_positions(world, 1)
    for damage in (drop, double, swap_far, alter, invent):  # all about record 400
        damage(world.stored(1))
    grow(world, 1)
    since, until = Start(From.POSITION, places[100]), Start(From.POSITION, places[299])

    async def audited(since: Start | None, until: Start | None) -> AuditReport:
        extents = await extents_of(world.source, [1], since, until)
        return await audit(
            world.source, world.target, world.mapping, route_id=ROUTE, lanes=[1], window_rows=40, extents=extents
        )

    report = await audited(since, until)
    assert (found(report), report.matched, report.is_complete) == ({}, 200, True)
    report = await audited(None, until)
    # Among entries whose ids are their marks, a stranger may claim a record of the extent: then it is one too many.
    strangers = {"extra": 1} if (source, target) == (RECORD, ENTRY) else {}
    assert (found(report), report.matched) == (strangers, 300)
    report = await audited(since, None)
    assert found(report) == found(await world.audit())
    assert found(report)
    report = await audited(Start(From.POSITION, places[650]), None)
    assert report.matched == 50
    assert "missing" not in found(report)


@pytest.mark.parametrize(("source", "target"), DIRECTIONS)
@pytest.mark.parametrize(("damage", "name"), DAMAGES)
async def test_damage_inside_of_the_extent_is_found(
    source: Shape, target: Shape, damage: Callable[[list[Any]], None], name: str
) -> None:
    world = await copied(source, target)
    places = source_positions(world, 1)
    damage(world.stored(1))
    grow(world, 1)
    extents = await extents_of(world.source, [1], Start(From.POSITION, places[380]), None)
    report = await audit(
        world.source, world.target, world.mapping, route_id=ROUTE, lanes=[1], window_rows=40, extents=extents
    )
    assert found(report) == {name: 1}


@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_a_time_limits_all_lanes_and_an_empty_extent_is_silent(source: Shape) -> None:
    world = await copied(source, RECORD)
    since, until = Start(From.TIME, str(TIME_MS + 200)), Start(From.TIME, str(TIME_MS + 300))
    lanes = list(range(LANES))
    report = await world.audit(extents=await extents_of(world.source, lanes, since, until))
    assert report.ok, report.as_dict()["differences"]
    expected = 0
    for lane in lanes:
        rows = world.broker.rows("source", lane)
        times = [row[-1] for _, row in rows]
        first = next(at for at, time_ms in enumerate(times) if time_ms >= TIME_MS + 200)
        last = next(at for at, time_ms in enumerate(times) if time_ms >= TIME_MS + 300)
        expected += last - first
    assert report.matched == expected > 0
    assert report.is_complete
    before_all = Start(From.TIME, "5")
    report = await world.audit(extents=await extents_of(world.source, lanes, None, before_all))
    assert (found(report), report.matched) == ({}, 0)


async def test_a_spread_by_key_within_a_time() -> None:
    world = await spread(RECORD, ENTRY)
    lanes = list(range(LANES))
    since = Start(From.TIME, str(TIME_MS + 300))
    extents = await extents_of(world.source, lanes, since, None)
    report = await world.audit(extents=extents)
    assert report.ok, report.as_dict()["differences"]
    assert 0 < report.matched < LANES * RECORDS
    del world.stored(2)[0]  # before the extent
    assert (await world.audit(extents=extents)).ok
    del world.stored(2)[-1]
    assert found(await world.audit(extents=extents, is_settled=True)) == {"missing": 1}


async def test_places_of_compared_batches_are_let_go() -> None:
    world = await copied(RECORD, ENTRY)
    seen: list[int] = []

    def look(progress: Progress) -> None:
        seen.append(max(len(one._batches) for one in readings))

    readings: list[Reading] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crossfade.verify.audit.READ_RECORDS_MAX", 9)
        patch.setattr("crossfade.verify.progress.PROGRESS_EVERY_S", 0.0)
        made = Reading.__init__

        def remember(self: Reading, *arguments: Any) -> None:
            made(self, *arguments)
            readings.append(self)

        patch.setattr(Reading, "__init__", remember)
        report = await world.audit(on_progress=look, window_rows=4)
    assert report.ok
    assert report.is_complete
    assert len(seen) > 100, "reads were small"
    assert max(seen) <= 70
