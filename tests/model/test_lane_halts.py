"""Halts that are no fault of the source: the relay stops that lane alone, says why, and stays up."""

import asyncio

import pytest
from virtual import run_virtual
from world import ENTRY, RECORD, ROUTE, World

from crossfade.brokers.memory import MemoryLog
from crossfade.errors import QuarantineFull, SourceReset, TargetFull, TargetReset, TargetTorn
from crossfade.model.position import Place
from crossfade.relay.documents import AcceptedLoss, Desired
from crossfade.relay.lanes import State
from crossfade.relay.pace import Limits
from crossfade.relay.reporter import make_report

SHAPES = [(ENTRY, RECORD), (RECORD, ENTRY)]


async def copying(world, count):
    """A started world with a process that has copied `count` records of each lane."""
    for lane in range(world.lanes):
        world.write(lane, count)
    await world.start()
    copier, task = world.process()
    await asyncio.sleep(5)
    assert world.copied() == count * world.lanes
    return copier, task


async def stopped(copier, task):
    copier.stop()
    await asyncio.wait_for(task, 60)


def accepting(state):
    decision = AcceptedLoss(type(state.error).__name__, state.settled.position, "operator", "now")
    return Desired(accepted={str(state.lane): decision})


@pytest.mark.parametrize(
    ("shapes", "damage"),
    [(SHAPES[0], "remade"), (SHAPES[1], "remade"), (SHAPES[0], "torn")],  # in one Redis slot nothing parts
)
def test_a_damaged_target_lane_halts_at_the_next_claim_and_the_others_go_on(shapes, damage):
    world = World(*shapes, lanes=2)

    async def main():
        copier, task = await copying(world, 3)
        await stopped(copier, task)
        if damage == "remade":
            world.target_broker.recreate("target", 0)
        else:
            for position, _ in world.target_broker.rows("target", 0):
                world.target_broker.delete("target", 0, position)
        world.checks_every_step = False
        copier, task = world.process()
        world.write(0, 2)
        world.write(1, 2)
        await asyncio.sleep(5)
        state = copier.lanes[0]
        assert state.state is State.HALTED
        assert isinstance(state.error, TargetReset if damage == "remade" else TargetTorn)
        report = make_report(copier, 0.0)
        assert report.lanes[0].error == type(state.error).__name__
        assert report.lanes[0].reason
        assert len(world.relayed()[1, 1]) == 5
        # accepting a loss of the source does not apply: going on anywhere would copy twice
        await copier.obey(accepting(state))
        await asyncio.sleep(5)
        assert copier.lanes[0].state is State.HALTED
        assert world.target_broker.rows("target", 0) == []
        await stopped(copier, task)

    run_virtual(main())


@pytest.mark.parametrize("shapes", SHAPES)
def test_a_full_quarantine_halts_and_accepting_a_loss_does_not_copy_twice(shapes):
    world = World(*shapes, lanes=1, limits=Limits(batch_records_max=2, idle_wait_s=0.2, quarantine_records_max=0))

    async def main():
        copier, task = await copying(world, 3)
        target = copier.target
        assert isinstance(target, MemoryLog)
        target._record_bytes_max = 3
        world.write(0, 2)
        await asyncio.sleep(2)
        state = copier.lanes[0]
        assert isinstance(state.error, QuarantineFull)
        await copier.obey(accepting(state))
        await asyncio.sleep(5)
        assert len(world.relayed()[0, 0]) == 3
        assert world.target_broker.marker("target", ROUTE, (0, 0)).ordinal == 3
        await stopped(copier, task)

    run_virtual(main())
    world.check_step()


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("target_lanes", [1, 3])
def test_a_source_that_was_told_to_be_gone_and_is_not_goes_on_where_it_stood(shapes, target_lanes):
    """Brokers that have just started may say that they know no such topic."""
    world = World(*shapes, lanes=1, target_lanes=target_lanes)

    async def main():
        copier, task = await copying(world, 7)
        state = copier.lanes[0]
        state.fail(SourceReset(0, "the topic was deleted", position=state.settled.position), 0.0)
        world.write(0, 4)
        await asyncio.sleep(5)
        assert world.copied() == 7
        await copier.obey(accepting(state))
        await asyncio.sleep(5)
        assert world.copied() == 11
        world.check_end()
        await stopped(copier, task)

    run_virtual(main())


def test_a_read_from_where_the_lane_no_longer_stands_is_not_taken():
    """A read lasts up to `idle_wait_s`; an operator may send the lane elsewhere meanwhile."""
    world = World(ENTRY, RECORD, lanes=1)

    async def main():
        copier, task = await copying(world, 3)
        await stopped(copier, task)
        state = copier.lanes[0]
        began = state.place
        world.write(0, 2)
        read = await copier.source.read({0: began}, 10, 1000, 0.1)
        state.place = elsewhere = Place("1-7", count=2)
        assert copier._take(read, {0: began}) == []
        assert state.place is elsewhere
        state.place = began
        assert [len(one.batch.rows) for one in copier._take(read, {0: began})] == [2]

    run_virtual(main())


def test_a_lane_paused_and_resumed_under_its_own_append_is_not_copied_twice():
    world = World(RECORD, ENTRY, lanes=2)

    async def main():
        copier, task = await copying(world, 3)
        append = copier.target.append

        async def interrupted(claim, writes, on_sent):
            copier.desired = Desired(paused=True)
            on_sent()
            copier.desired = Desired()
            on_sent()
            return await append(claim, writes, on_sent)

        copier.target.append = interrupted
        for _ in range(3):
            world.write(0, 4)
            world.write(1, 2)
            await asyncio.sleep(5)
        await stopped(copier, task)

    run_virtual(main())
    world.check_end()


class Slow:
    """An append whose answer takes so long that the next read is planned meanwhile."""

    def __init__(self, copier, on_answer=lambda: None):
        self.copier, self.on_answer = copier, on_answer
        self.append, copier.target.append = copier.target.append, self
        #: how many of the next appends a full target refuses
        self.refuses = 0

    async def __call__(self, claim, writes, on_sent):
        on_sent()
        await asyncio.sleep(2)
        if self.refuses:
            self.refuses -= 1
            outcomes = {write.path: TargetFull(write.path[0], "full") for write in writes}
        else:
            outcomes = await self.append(claim, writes)
        self.on_answer()
        return outcomes


@pytest.mark.parametrize("shapes", SHAPES)
def test_what_was_planned_behind_a_refused_append_waits_for_it(shapes):
    world = World(*shapes, lanes=2, limits=Limits(batch_records_max=4, idle_wait_s=0.2))

    async def main():
        copier, task = await copying(world, 3)
        slow = Slow(copier)
        for refuses in (1, 0, 2):
            slow.refuses = refuses
            world.write(0, 12)
            world.write(1, 9)
            await asyncio.sleep(120)
        await stopped(copier, task)

    run_virtual(main())
    world.check_end()


@pytest.mark.parametrize("shapes", SHAPES)
def test_the_quarantine_budget_counts_what_is_under_way(shapes):
    world = World(*shapes, lanes=1, limits=Limits(batch_records_max=2, idle_wait_s=0.2, quarantine_records_max=3))

    async def main():
        copier, task = await copying(world, 3)
        Slow(copier)
        copier.target._record_bytes_max = 3
        world.write(0, 6)
        await asyncio.sleep(60)
        state = copier.lanes[0]
        assert isinstance(state.error, QuarantineFull)
        assert state.quarantined == 2
        await stopped(copier, task)

    run_virtual(main())


def test_a_lane_is_not_idle_while_its_append_is_under_way():
    world = World(ENTRY, RECORD, lanes=1, limits=Limits(batch_records_max=4, idle_wait_s=0.2))

    async def main():
        copier, task = await copying(world, 3)
        seen = []
        Slow(copier, on_answer=lambda: seen.append(copier.lanes[0].state))
        world.write(0, 2)
        await asyncio.sleep(10)
        assert set(seen) == {State.COPYING}
        assert copier.lanes[0].state is State.IDLE
        await stopped(copier, task)

    run_virtual(main())


@pytest.mark.parametrize("shapes", SHAPES)
def test_the_markers_of_idle_lanes_are_kept_alive(shapes):
    """Kafka forgets the offsets of a group without members, and a lane may rest for longer than that."""
    limits = Limits(batch_records_max=3, idle_wait_s=0.2, marker_keepalive_s=100)
    world = World(*shapes, lanes=2, limits=limits)

    async def main():
        copier, task = await copying(world, 3)
        written = {lane: state.marker_written_s for lane, state in copier.lanes.items()}
        markers = {lane: dict(state.markers) for lane, state in copier.lanes.items()}
        for _ in range(3):
            await asyncio.sleep(60)
            world.write(1, 1)  # another lane that is busy changes nothing
        await asyncio.sleep(60)
        state = copier.lanes[0]
        assert state.state is State.IDLE
        assert state.marker_written_s >= written[0] + 200
        assert [marker.place for marker in state.markers.values()] == [m.place for m in markers[0].values()]
        assert world.copied() == 9
        await stopped(copier, task)

    run_virtual(main())


@pytest.mark.parametrize("disturbed", ["paused", "claimed anew"])
@pytest.mark.parametrize("shapes", SHAPES)
def test_the_markers_of_idle_lanes_are_kept_alive_behind_a_disturbance(shapes, disturbed):
    """A source tells the end of a lane once for a place: not again to a lane that goes on there."""
    limits = Limits(batch_records_max=3, idle_wait_s=0.2, marker_keepalive_s=100)
    world = World(*shapes, lanes=2, limits=limits)

    async def main():
        copier, task = await copying(world, 3)
        await asyncio.sleep(20)
        if disturbed == "paused":
            await copier.obey(Desired(paused=True))
            await asyncio.sleep(5)
            await copier.obey(Desired())
        else:
            await copier.assigned(frozenset({0, 1}), None)
        await asyncio.sleep(5)
        written = {lane: state.marker_written_s for lane, state in copier.lanes.items()}
        await asyncio.sleep(250)
        for lane, state in copier.lanes.items():
            assert state.state is State.IDLE
            assert state.marker_written_s >= written[lane] + 100
        assert world.copied() == 6
        await stopped(copier, task)

    run_virtual(main())


@pytest.mark.parametrize("shapes", SHAPES)
def test_a_lane_without_lag_is_idle_soon_after_a_pause(shapes):
    world = World(*shapes, lanes=1, limits=Limits(idle_wait_s=0.2))

    async def main():
        copier, task = await copying(world, 3)
        await asyncio.sleep(20)
        await copier.obey(Desired(paused=True))
        await asyncio.sleep(5)
        state = copier.lanes[0]
        assert state.state is State.PAUSED
        await copier.obey(Desired())
        state.look((await copier.source.bounds([0]))[0], asyncio.get_running_loop().time())
        await asyncio.sleep(10)
        assert state.state is State.IDLE
        await stopped(copier, task)

    run_virtual(main())


def test_the_markers_of_idle_lanes_are_written_soon_after_a_claim():
    """A process that runs for some minutes a day must keep them alive too."""
    world = World(*SHAPES[0], lanes=1, limits=Limits(idle_wait_s=0.2))

    async def main():
        copier, task = await copying(world, 3)
        await stopped(copier, task)
        copier, task = world.process()
        await asyncio.sleep(5)
        (before,) = copier.lanes[0].markers.values()
        await asyncio.sleep(90)
        (after,) = copier.lanes[0].markers.values()
        assert after.claim_id == copier.claim.claim_id != before.claim_id
        assert after.place == before.place
        await stopped(copier, task)

    run_virtual(main())


def test_a_lane_is_not_idle_with_records_behind_a_marker_under_way():
    """Else it would show no lag while they are on their way."""
    world = World(*SHAPES[0], lanes=1, limits=Limits(idle_wait_s=0.2))

    async def main():
        copier, task = await copying(world, 3)
        await stopped(copier, task)
        state = copier.lanes[0]
        world.write(0, 1)
        batches = await copier.source.read({0: state.place}, 10, 1 << 20, 0.1)
        copier._in_flight = {0: True}  # the marker alone
        assert len(copier._take(batches, {0: state.place})) == 1
        assert copier._in_flight == {0: False}

    run_virtual(main())
