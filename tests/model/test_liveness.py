"""What the real relay tells of itself, on memory brokers.

`/livez` is 503 where its loop is stuck in one wait, and 200 wherever it goes round; lag and reasons outlive a claim.
"""

import asyncio

import pytest
from virtual import run_virtual
from world import ENTRY, RECORD, World

from crossfade.errors import Unreachable
from crossfade.relay.documents import Desired
from crossfade.relay.pace import Limits
from crossfade.relay.reporter import CLAIM_STALL_S, STALL_S, HealthServer, Metrics, make_report


def livez(copier):
    return HealthServer([copier], Metrics([copier])).answer("/livez")


def is_alive(copier):
    return livez(copier)[0].startswith("200")


async def hanging(*args, **more):
    await asyncio.Event().wait()


async def away(*args, **more):
    raise Unreachable("no answer")


async def running(world, lanes=None):
    world.write(0, 3)
    await world.start()
    return world.process(lanes=lanes)


async def ended(copier, task):
    copier.stop()
    task.cancel()
    await asyncio.wait([task], timeout=60)


async def stays_alive(copier, seconds):
    """Whether it is alive in each of these seconds."""
    for _ in range(int(seconds)):
        await asyncio.sleep(1)
        if not is_alive(copier):
            return False
    return True


@pytest.mark.parametrize("method", ["read", "append"])
def test_a_read_or_an_append_that_never_ends_is_no_life(method):
    world = World(ENTRY, RECORD)

    async def main():
        copier, task = await running(world)
        await asyncio.sleep(5)
        setattr(copier.source if method == "read" else copier.target, method, hanging)
        world.write(0, 2)
        assert await stays_alive(copier, STALL_S - 5)
        await asyncio.sleep(10)
        assert livez(copier) == ("503 Service Unavailable", b"no progress: ['route']\n")
        await ended(copier, task)

    run_virtual(main())


def test_a_claim_that_never_ends_is_no_life_but_may_take_long():
    world = World(ENTRY, RECORD)

    async def main():
        copier, task = await running(world)
        copier.target.claim = hanging
        assert await stays_alive(copier, CLAIM_STALL_S - 5)
        await asyncio.sleep(10)
        assert not is_alive(copier)
        await ended(copier, task)

    run_virtual(main())


def test_claims_that_fail_and_are_tried_again_are_life():
    """A long outage: nothing that a new process would do better."""
    world = World(ENTRY, RECORD)

    async def main():
        copier, task = await running(world)
        await asyncio.sleep(5)
        claim, append = copier.target.claim, copier.target.append
        copier.target.claim = copier.target.append = away
        world.write(0, 2)
        assert await stays_alive(copier, 2 * CLAIM_STALL_S)
        assert HealthServer([copier], Metrics([copier])).answer("/readyz")[0].startswith("503")
        copier.target.claim, copier.target.append = claim, append
        assert await stays_alive(copier, 60)
        assert world.copied() == 5
        await ended(copier, task)

    run_virtual(main())


@pytest.mark.parametrize(
    "desired", [Desired(), Desired(paused=True), Desired(rate_records_per_s=0.01), Desired(rate_records_per_s=0.5)]
)
def test_idle_paused_and_slowed_down_are_life(desired):
    world = World(ENTRY, RECORD)

    async def main():
        copier, task = await running(world)
        await copier.obey(desired)
        assert await stays_alive(copier, 500)
        assert HealthServer([copier], Metrics([copier])).answer("/readyz")[0].startswith("200")
        await ended(copier, task)

    run_virtual(main())


def test_a_first_claim_after_a_long_wait_for_lanes_has_its_full_time():
    world = World(ENTRY, RECORD)

    async def main():
        copier, task = await running(world, lanes=[])
        await asyncio.sleep(2 * CLAIM_STALL_S)
        claim = copier.target.claim

        async def slow(*args):
            await asyncio.sleep(2 * STALL_S)
            return await claim(*args)

        copier.target.claim = slow
        await copier.assigned(frozenset([0]), None)
        assert await stays_alive(copier, 3 * STALL_S)
        assert world.copied() == 3
        await ended(copier, task)

    run_virtual(main())


def test_the_first_read_after_a_long_claim_has_its_full_time():
    world = World(ENTRY, RECORD)

    async def main():
        copier, task = await running(world)
        claim, read = copier.target.claim, copier.source.read

        async def slow_claim(*args):
            await asyncio.sleep(2 * STALL_S)
            return await claim(*args)

        async def slow_read(*args):
            await asyncio.sleep(STALL_S / 2)
            return await read(*args)

        copier.target.claim, copier.source.read = slow_claim, slow_read
        assert await stays_alive(copier, 4 * STALL_S)
        assert world.copied() == 3
        await ended(copier, task)

    run_virtual(main())


def test_a_process_without_lanes_is_alive():
    world = World(ENTRY, RECORD)

    async def main():
        copier, task = await running(world, lanes=[])
        assert await stays_alive(copier, 2 * CLAIM_STALL_S)
        await ended(copier, task)

    run_virtual(main())


def test_a_low_rate_copies_and_is_lifted_at_once():
    world = World(ENTRY, RECORD, limits=Limits(idle_wait_s=0.2, rate_records_per_s=0.5))

    async def main():
        copier, task = await running(world)
        await asyncio.sleep(3)
        assert 1 <= world.copied() < 3
        await asyncio.sleep(10)
        assert world.copied() == 3
        await copier.obey(Desired(rate_records_per_s=0.001))
        world.write(0, 5)
        await asyncio.sleep(5)
        assert world.copied() <= 4
        await copier.obey(Desired(rate_records_per_s=0.0))
        await asyncio.sleep(2)
        assert world.copied() == 8
        await ended(copier, task)

    run_virtual(main())


def test_a_new_claim_does_not_forget_since_when_a_lane_is_behind():
    world = World(ENTRY, RECORD)

    async def main():
        copier, task = await running(world)

        async def look():
            copier.lanes[0].look((await copier.source.bounds([0]))[0], asyncio.get_running_loop().time())

        await asyncio.sleep(100)
        await look()
        copier.target.append = away  # each try ends the claim
        world.write(0, 2)
        await asyncio.sleep(30)
        await look()
        assert make_report(copier, 1_700_000_000.0).lanes[0].lag_s == pytest.approx(30, abs=0.1)
        await asyncio.sleep(6)  # the source answers no look: what it held a while ago says nothing
        (told,) = make_report(copier, 1_700_000_006.0).lanes[:1]
        assert (told.lag_records, told.lag_s, told.trimmed_in_s) == (None, None, None)
        await ended(copier, task)

    run_virtual(main())


def test_an_open_transaction_that_holds_up_the_source_is_the_lanes_reason():
    world = World(RECORD, ENTRY)

    async def main():
        copier, task = await running(world)
        lane = world.source.lanes[0]
        lane.open["somebody"] = {lane.end: (b"k", b"v", None, 5)}
        lane.end += 1
        world.write(0, 2)
        for second in range(20):
            await asyncio.sleep(1)
            copier.lanes[0].look((await copier.source.bounds([0]))[0], asyncio.get_running_loop().time())
            if second == 2:
                assert make_report(copier, 0.0).lanes[0].reason == ""
        assert world.copied() == 3
        assert "open transaction" in make_report(copier, 0.0).lanes[0].reason
        lane.open.clear()
        await asyncio.sleep(2)
        copier.lanes[0].look((await copier.source.bounds([0]))[0], asyncio.get_running_loop().time())
        assert make_report(copier, 0.0).lanes[0].reason == ""
        await ended(copier, task)

    run_virtual(main())


def scraped(*copiers):
    return HealthServer(list(copiers), Metrics(list(copiers))).answer("/metrics")[1].decode()


def test_a_source_that_does_not_answer_has_no_lag_in_the_metrics():
    world = World(ENTRY, RECORD)

    async def main():
        copier, task = await running(world)
        await asyncio.sleep(5)
        state = copier.lanes[0]
        state.look((await copier.source.bounds([0]))[0], asyncio.get_running_loop().time())
        assert "crossfade_relay_lag_records{" in scraped(copier)
        await asyncio.sleep(30)
        assert "crossfade_relay_lag_records{" not in scraped(copier)
        assert "crossfade_relay_lane_halted{" in scraped(copier)
        await ended(copier, task)

    run_virtual(main())


def test_a_metric_of_several_routes_is_described_once():
    one, other = World(ENTRY, RECORD), World(ENTRY, RECORD)

    async def main():
        (first, task), (second, task2) = await running(one), await running(other)
        await asyncio.sleep(5)
        text = scraped(first, second)
        assert text.count("# TYPE crossfade_relay_records_total counter") == 1
        assert text.count("crossfade_relay_epoch{") == 2
        await ended(first, task)
        await ended(second, task2)

    run_virtual(main())


def test_lanes_that_others_own_are_not_told_of():
    world = World(ENTRY, RECORD)

    async def main():
        copier, task = await running(world)
        await asyncio.sleep(5)
        assert make_report(copier, 0.0).lanes
        await copier.lost(frozenset([0]))
        await asyncio.sleep(5)
        assert make_report(copier, 0.0).lanes  # an outage loses them too: perhaps nobody else tells of them
        await copier.assigned(frozenset(), None)
        await asyncio.sleep(5)
        report = make_report(copier, 0.0)
        assert (report.state, report.lanes) == ("waiting for lanes", [])
        assert "crossfade_relay_lane_halted{" not in scraped(copier)
        await ended(copier, task)

    run_virtual(main())
