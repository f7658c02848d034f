"""What the memory broker does beyond the contract: open transactions, late requests, groups, faults.

Enumeration and simulation stand on these; a memory broker kinder than a real one would make them worthless.
"""

import asyncio

import pytest

from crossfade.brokers.memory import Crash, MemoryBoard, MemoryBroker, MemoryGroup, MemoryLog, Outcome
from crossfade.brokers.protocol import Appended, Owner, Start
from crossfade.errors import Fenced, Indeterminate, TargetFull, TargetReset, TargetTorn, Unreachable, UsageError
from crossfade.model.position import Marker, Place
from crossfade.model.record import Shape, Write

PATH = (0, 0)
ROWS = {
    Shape.RECORD: lambda n: (b"k", b"%d" % n, None, 1000 + n),
    Shape.ENTRY: lambda n: ([b"value", b"%d" % n], 1000 + n),
}
SHAPES = pytest.mark.parametrize("shape", list(Shape), ids=lambda shape: shape.value)


def log_of(broker, shape=Shape.RECORD, lanes=1, **options):
    return MemoryLog(broker, "stream", lanes, shape, **options)


def write(log, numbers, path=PATH):
    numbers = list(numbers)
    place = Place(str(numbers[-1]), numbers[-1] + 1) if numbers else Place()
    return Write(path, numbers, [ROWS[log.shape](n) for n in numbers], place)


async def claimed(log, token=None, paths=(PATH,)):
    return await log.claim(Owner("route", "one", "digest", token=token), list(paths))


def values(broker, shape, lane=0):
    rows = [row for _, row in broker.rows("stream", lane)]
    return [int(row[1] if shape is Shape.RECORD else row[0][1]) for row in rows]


def outcomes(broker, *planned):
    """Give the next steps that write (claim, append) these outcomes; every other step is OK."""
    left = list(planned)
    broker.faults = lambda step: left.pop(0) if left and step.method.startswith(("append", "claim")) else Outcome.OK


@SHAPES
@pytest.mark.parametrize(
    ("outcome", "error", "expected"),
    [
        (Outcome.CRASH_BEFORE, Crash, []),
        (Outcome.CRASH_AFTER, Crash, [0, 1]),
        (Outcome.UNKNOWN_APPLIED, Indeterminate, [0, 1]),
        (Outcome.UNKNOWN_NOT_APPLIED, Indeterminate, []),
        (Outcome.APPLIED_LATE, Indeterminate, []),
        (Outcome.FENCED, Fenced, []),
    ],
)
async def test_what_each_outcome_leaves(shape, outcome, error, expected):
    broker = MemoryBroker()
    log = log_of(broker, shape)
    claim = await claimed(log)
    outcomes(broker, outcome)
    with pytest.raises(error):
        await log.append(claim, [write(log, [0, 1])])
    again = await claimed(log_of(broker, shape))
    assert values(broker, shape) == expected
    assert again.markers.get(PATH, Marker(Place())).ordinal == len(expected)


@SHAPES
async def test_a_dead_process_does_nothing_more(shape):
    broker = MemoryBroker()
    log = log_of(broker, shape)
    claim = await claimed(log)
    outcomes(broker, Outcome.CRASH_BEFORE)
    with pytest.raises(Crash):
        await log.append(claim, [write(log, [0])])
    for call in (log.append(claim, [write(log, [0])]), log.bounds([0]), claimed(log)):
        with pytest.raises(Crash):
            await call


@SHAPES
@pytest.mark.parametrize("late_within", ["claim", "append"])
async def test_a_late_append_finds_itself_fenced(shape, late_within):
    broker = MemoryBroker(late_within=late_within)
    log = log_of(broker, shape)
    claim = await claimed(log)
    outcomes(broker, Outcome.APPLIED_LATE)
    with pytest.raises(Indeterminate):
        await log.append(claim, [write(log, [0, 1])])
    claim = await claimed(log)
    assert values(broker, shape) == []
    await log.append(claim, [write(log, [0, 1, 2])])
    await log.append(claim, [write(log, [3])])
    assert values(broker, shape) == [0, 1, 2, 3]


async def test_who_goes_on_without_a_new_claim_gets_the_late_commit():
    """The hole that the rule `claim anew after every doubt` closes is really there."""
    broker = MemoryBroker()
    log = log_of(broker)
    claim = await claimed(log)
    outcomes(broker, Outcome.APPLIED_LATE)
    with pytest.raises(Indeterminate):
        await log.append(claim, [write(log, [0])])
    await log.append(claim, [write(log, [0])])
    assert values(broker, Shape.RECORD) == [0, 0]


@SHAPES
async def test_a_late_claim_fences_the_newer_one_which_is_safe(shape):
    broker = MemoryBroker(late_within="append")
    log = log_of(broker, shape)
    outcomes(broker, Outcome.APPLIED_LATE)
    with pytest.raises(Indeterminate):
        await claimed(log)
    claim = await claimed(log)
    with pytest.raises(Fenced):
        await log.append(claim, [write(log, [0])])
    assert values(broker, shape) == []
    await log.append(await claimed(log), [write(log, [0])])
    assert values(broker, shape) == [0]


async def test_an_open_transaction_holds_readers_back_until_it_is_aborted():
    broker = MemoryBroker()
    broker.stream("stream", 2, Shape.RECORD)
    log, reader = log_of(broker, lanes=2), log_of(broker, lanes=2)
    places = await reader.begin([0], Start())
    claim = await claimed(log, paths=[(0, 0), (1, 1)])
    outcomes(broker, Outcome.CRASH_BEFORE)
    with pytest.raises(Crash):
        await log.append(claim, [write(log, [0, 1]), write(log, [7], (1, 1))])
    broker.write("stream", 0, [ROWS[Shape.RECORD](5)])
    assert (await reader.bounds([0]))[0].count == 0
    batches = await reader.read(places, 10, 1000, 0)
    assert batches.get(0) is None or batches[0].rows == []
    await claimed(log_of(broker, lanes=2), paths=[(0, 0)])
    batches = await reader.read(places, 10, 1000, 0)
    assert batches[0].positions == [2]  # offsets 0 and 1 were aborted, 3 is the control record
    assert batches[0].place.count == 4


async def test_aborted_records_move_the_place_without_rows():
    broker = MemoryBroker()
    log = log_of(broker)
    places = await log.begin([0], Start())
    broker.write_aborted("stream", 0, [ROWS[Shape.RECORD](0)])
    batch = (await log.read(places, 10, 1000, 0))[0]
    assert (batch.rows, batch.place.count, batch.at_end) == ([], 2, True)
    assert await log.read({0: batch.place}, 10, 1000, 0) in ({}, {0: batch})


async def test_marker_and_data_torn_apart_let_the_data_decide():
    broker = MemoryBroker()
    log = log_of(broker)
    claim = await claimed(log)
    first = (await log.append(claim, [write(log, [0, 1])]))[PATH].marker
    second = (await log.append(claim, [write(log, [2])]))[PATH].marker
    broker.set_marker("stream", "route", PATH, first)  # the data is ahead
    claim = await claimed(log)
    assert (claim.markers[PATH].ordinal, claim.markers[PATH].place.position, len(claim.alarms)) == (3, "2", 1)
    broker.set_marker("stream", "route", PATH, None)  # the marker expired
    claim = await claimed(log)
    assert (claim.markers[PATH].ordinal, len(claim.alarms)) == (3, 1)
    broker.set_marker("stream", "route", PATH, second)
    broker.regress("stream", 0, 2)  # the data is behind: offset 4 is the commit, 3 the record
    claim = await claimed(log)
    assert (claim.markers[PATH].ordinal, claim.markers[PATH].place.position, len(claim.alarms)) == (2, "1", 1)
    broker.trim("stream", 0, 0)
    broker.set_marker("stream", "route", PATH, first)
    claim = await claimed(log)  # retention took everything: the marker decides
    assert (claim.markers[PATH], claim.alarms, claim.errors) == (first, [], {})


async def test_a_target_lane_made_anew_or_emptied_halts():
    broker = MemoryBroker()
    log = log_of(broker)
    await log.append(await claimed(log), [write(log, [0])])
    broker.delete("stream", 0, "0")
    assert isinstance((await claimed(log)).errors[PATH], TargetTorn)
    broker.recreate("stream", 0)
    assert isinstance((await claimed(log)).errors[PATH], TargetReset)


async def test_an_entry_lane_deleted_behind_its_marker_halts():
    broker = MemoryBroker()
    log = log_of(broker, Shape.ENTRY)
    await log.append(await claimed(log), [write(log, [0])])
    broker.recreate("stream", 0)
    assert isinstance((await claimed(log)).errors[PATH], TargetReset)


async def test_a_failover_takes_entries_marker_and_claim_together():
    broker = MemoryBroker(history_max=10)
    log = log_of(broker, Shape.ENTRY)
    claim = await claimed(log)
    first = (await log.append(claim, [write(log, [0, 1])]))[PATH].marker
    await log.append(claim, [write(log, [2])])
    newer = await claimed(log_of(broker, Shape.ENTRY))
    broker.regress("stream", 0, 2)  # the newer claim and the last append
    assert values(broker, Shape.ENTRY) == [0, 1]
    for fenced in (claim, newer):
        with pytest.raises(Fenced):
            await log.append(fenced, [write(log, [9])])
    again = await claimed(log)
    assert again.markers[PATH] == first
    assert again.epoch == newer.epoch  # numbers repeat after a failover ...
    assert again.claim_id != newer.claim_id  # ... claim ids do not


@SHAPES
async def test_a_full_lane_waits_and_the_others_go_on(shape):
    broker = MemoryBroker()
    log = log_of(broker, shape, lanes=2)
    claim = await claimed(log, paths=[(0, 0), (1, 1)])
    broker.fill("stream", 0)
    done = await log.append(claim, [write(log, [0]), write(log, [0], (1, 1))])
    assert isinstance(done[0, 0], TargetFull)
    assert isinstance(done[1, 1], Appended)
    broker.fill("stream", 0, is_full=False)
    await log.append(claim, [write(log, [0])])
    assert values(broker, shape) == [0]


async def test_ids_never_run_ahead_of_the_clock_or_go_back():
    broker = MemoryBroker(clock_ms=lambda: 2000)
    log = log_of(broker, Shape.ENTRY)
    times = [1500, 9999, 100, -1]
    rows = [([b"value", b"1"], time_ms) for time_ms in times]
    await log.append(await claimed(log), [Write(PATH, [0, 1, 2, 3], rows, Place("3", 4))])
    found = broker.rows("stream", 0)
    assert [position for position, _ in found] == ["1500-0", "2000-0", "2000-1", "2000-2"]
    own = [fields[-1].partition(b";t=")[2] for _, (fields, _) in found]
    assert own == [b"", b"9999", b"100", b"-1"]


async def test_reads_and_boards_answer_or_do_not():
    broker = MemoryBroker()
    log, board = log_of(broker), MemoryBoard(broker)
    broker.faults = lambda step: Outcome.UNKNOWN_NOT_APPLIED
    for call in (log.bounds([0]), log.begin([0], Start()), log.read({0: Place()}, 1, 1, 0), log.open(), board.get("a")):
        with pytest.raises(Unreachable):
            await call
    with pytest.raises(Indeterminate):
        await board.put("a", b"1")
    broker.faults = lambda step: Outcome.UNKNOWN_APPLIED
    with pytest.raises(Indeterminate):
        await board.put("a", b"2")
    broker.faults = lambda step: Outcome.CRASH_AFTER
    with pytest.raises(Crash):
        await board.put("a", b"3")
    with pytest.raises(Crash):
        await board.get("a")
    broker.faults = None
    assert (await MemoryBoard(broker).get("a")).body == b"3"


async def test_a_stream_is_opened_as_it_is():
    broker = MemoryBroker()
    broker.stream("stream", 2, Shape.RECORD)
    with pytest.raises(UsageError):
        await log_of(broker, lanes=3).open()
    with pytest.raises(UsageError):
        await log_of(broker, Shape.ENTRY, lanes=2).open()


# --------------------------------------------------------------------------------------------------- groups


class Heard:
    """A listener that keeps what it was told."""

    def __init__(self):
        self.told = []
        self.lanes = frozenset()
        self.token = None

    async def assigned(self, lanes, token):
        self.told.append(("assigned", set(lanes)))
        self.lanes, self.token = lanes, token

    async def revoked(self, lanes):
        self.told.append(("revoked", set(lanes)))

    async def lost(self, lanes):
        self.told.append(("lost", set(lanes)))


async def test_lanes_are_shared_given_up_before_they_are_given_and_taken_over():
    group = MemoryGroup(4)
    one, two = Heard(), Heard()
    first = asyncio.create_task(group.member("one").run(one))
    await asyncio.sleep(0)
    second = asyncio.create_task(group.member("two").run(two))
    await asyncio.sleep(0)
    assert one.told == [("assigned", {0, 1, 2, 3}), ("revoked", {1, 3}), ("assigned", {0, 2})]
    assert two.told == [("assigned", {1, 3})]
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    assert two.told[-1] == ("revoked", {1, 3})
    assert one.lanes == {0, 1, 2, 3}
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert group.members == {}


@SHAPES
async def test_a_handle_of_an_older_generation_is_refused(shape):
    broker, group = MemoryBroker(), MemoryGroup(1)
    log, one = log_of(broker, shape), Heard()
    running = asyncio.create_task(group.member("one").run(one))
    await asyncio.sleep(0)
    stale = one.token
    claim = await claimed(log, token=stale)
    await log.append(claim, [write(log, [0])])
    other = asyncio.create_task(group.member("two").run(Heard()))
    await asyncio.sleep(0)
    with pytest.raises(Fenced):
        await log.append(claim, [write(log, [1])])
    with pytest.raises(Fenced):
        await claimed(log, token=stale)
    await log.append(await claimed(log, token=one.token), [write(log, [1])])
    assert values(broker, shape) == [0, 1]
    running.cancel()
    other.cancel()
    await asyncio.gather(running, other, return_exceptions=True)


async def test_an_expired_member_is_told_and_its_name_can_come_back():
    group = MemoryGroup(2)
    one, two, again = Heard(), Heard(), Heard()
    tasks = [asyncio.create_task(group.member("one").run(one)), asyncio.create_task(group.member("two").run(two))]
    await asyncio.sleep(0)
    await group.expire("one")
    assert one.told[-1][0] == "lost"
    assert two.lanes == {0, 1}
    with pytest.raises(Fenced):
        await tasks[0]
    tasks.append(asyncio.create_task(group.member("one").run(again)))
    await asyncio.sleep(0)
    assert again.lanes | two.lanes == {0, 1}
    assert not again.lanes & two.lanes
    # the same name once more: the older process is out
    tasks.append(asyncio.create_task(group.member("one").run(Heard())))
    await asyncio.sleep(0)
    with pytest.raises(Fenced):
        await tasks[2]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
