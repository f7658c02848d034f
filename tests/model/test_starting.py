"""Starting again: beside a relay that runs, with one position for several lanes, and on a target that lost its keys."""

import asyncio
import dataclasses

import pytest
from virtual import run_virtual
from world import ENTRY, RECORD, ROUTE, World

from crossfade.brokers.memory import MemoryLog
from crossfade.brokers.protocol import From, Start
from crossfade.errors import MarkerLost, NotStarted, RouteConflict, UsageError
from crossfade.relay.beginning import start_lanes

SHAPES = {"redis": ENTRY, "kafka": RECORD}


def started(world, start, lanes, **how):
    """`relay start`: the lanes that it has started."""

    async def play():
        source, target, board = world.logs("start")
        return set(await start_lanes(world.route, source, target, board, start, lanes, **how))

    return run_virtual(play())


@pytest.mark.parametrize("shape", SHAPES)
def test_starting_again_claims_nothing_where_all_lanes_have_markers(shape, monkeypatch):
    world = World(ENTRY, SHAPES[shape], lanes=3)
    assert started(world, Start(), [0, 2]) == {0, 2}
    claimed = []
    claim = MemoryLog.claim

    async def note(log, owner, paths):
        claimed.append(list(paths))
        return await claim(log, owner, paths)

    monkeypatch.setattr(MemoryLog, "claim", note)
    assert started(world, Start(From.LATEST), [0, 2]) == set()
    assert claimed == []
    assert started(world, Start(From.LATEST), [0, 1, 2]) == {1}  # and only the lane that has none
    assert claimed == [[(1, 1)]]


@pytest.mark.parametrize("shape", SHAPES)
def test_starting_again_leaves_a_running_relay_its_claim(shape):
    world = World(ENTRY, SHAPES[shape], lanes=2)

    async def play():
        await world.start()
        copier, task = world.process()
        await asyncio.sleep(1.0)
        claim = copier.claim.claim_id
        await world.start(Start(From.LATEST))
        for lane in range(2):
            world.write(lane, 3)
        await asyncio.sleep(2.0)
        after = copier.claim.claim_id
        copier.stop()
        await asyncio.wait([task])
        return claim == after

    assert run_virtual(play())
    world.check_end()


def test_a_changed_source_is_refused_as_before():
    world = World(ENTRY, RECORD)
    started(world, Start(), [0])
    world.route = dataclasses.replace(world.route, source="other")
    with pytest.raises(RouteConflict, match="another source"):
        started(world, Start(), [0])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_position_that_is_given_by_hand_is_for_one_lane(shape):
    world = World(SHAPES[shape], ENTRY, lanes=3)
    for lane in range(3):
        world.write(lane, 6)
    (position,) = [place for place, _ in world.source_broker.rows("source", 1)][2:3]
    at = Start(From.POSITION, position)
    started(world, Start(), [0])
    with pytest.raises(UsageError, match="lanes 1, 2 would") as refused:
        started(world, at, [0, 1, 2], by_hand=True)
    assert "--lane 1" in refused.value.hint
    assert world.target_broker.marker("target", ROUTE, (1, 1)) is None
    assert started(world, at, [1], by_hand=True) == {1}
    assert world.target_broker.marker("target", ROUTE, (1, 1)).place.position == position
    assert started(world, at, [0, 1, 2], by_hand=True) == {2}  # the others are not moved


@pytest.mark.parametrize("shape", SHAPES)
def test_a_first_start_may_begin_all_lanes_at_one_position(shape):
    world = World(SHAPES[shape], ENTRY, lanes=2)
    for lane in range(2):
        world.write(lane, 6)
    (position,) = [place for place, _ in world.source_broker.rows("source", 0)][2:3]
    assert started(world, Start(From.POSITION, position), [0, 1], by_hand=True) == {0, 1}


def lose_keys(world):
    """All of Crossfade's own keys go, the board among them; the stream stays."""
    world.checks_every_step = False  # there are records and no markers
    for lane in world.target_broker._streams["target"].lanes:
        lane.markers.clear()
        lane.claims.clear()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("where", [Start(), Start(From.LATEST)], ids=["earliest", "latest"])
def test_a_lane_beside_which_the_keys_are_gone_is_not_started_anew(shape, where):
    world = World(SHAPES[shape], ENTRY, lanes=2)
    run_virtual(world.run())
    copied = world.copied()
    lose_keys(world)
    with pytest.raises(MarkerLost, match="target:0 holds copies of source") as refused:
        started(world, where, [0, 1])
    assert "crossfade verify" in refused.value.hint
    assert "--lane 0 --from position:" in refused.value.hint
    last = str(world.source_broker.rows("source", 0)[-1][0])
    assert started(world, Start(From.POSITION, last), [0], by_hand=True) == {0}
    assert world.copied() == copied


def test_a_lane_with_records_of_others_is_started():
    world = World(ENTRY, ENTRY)
    world.checks_every_step = False
    world.write(0, 4)
    world.target_broker.write("target", 0, [([b"theirs", b"1"], 7)])
    assert started(world, Start(), [0]) == {0}


def test_a_lane_that_was_never_started_may_have_lost_its_keys():
    world = World(ENTRY, ENTRY)

    async def play():
        _, task = world.process()
        await task

    with pytest.raises(NotStarted) as refused:
        run_virtual(play())
    assert "crossfade verify" in refused.value.hint
