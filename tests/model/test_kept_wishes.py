"""What was wished of a route holds from the first record on and until its process ends, whatever the board does."""

import asyncio

import pytest
from test_new_lanes import SHAPES, Stage, play, until
from virtual import run_virtual

from crossfade.brokers.memory import Outcome
from crossfade.errors import Unreachable
from crossfade.relay.documents import AcceptedLoss, RouteBoard
from crossfade.relay.lanes import State
from crossfade.relay.reporter import HealthServer


async def wish(stage, **wishes):
    """Change these wishes on the board, and no others."""

    def change(desired):
        for name, value in wishes.items():
            setattr(desired, name, value)

    async with stage.board(None, "route") as board:
        await board.change_desired(change)


def forget_wishes(stage):
    del stage.broker.documents["desired/r1"]


@pytest.fixture
def board_takes(monkeypatch):
    """Calling it with seconds makes each look at the wishes take so long; below 0 it fails."""
    look, took_s = RouteBoard.desired_if_any, [0.0]

    async def slow(self):
        if took_s[-1] < 0:
            raise Unreachable("no broker answers")
        await asyncio.sleep(took_s[-1])
        return await look(self)

    monkeypatch.setattr(RouteBoard, "desired_if_any", slow)
    return took_s.append


@pytest.mark.parametrize("way", SHAPES)
@pytest.mark.parametrize("wishes", [{"paused": True}, {"paused_lanes": [0]}])
@pytest.mark.parametrize("later_s", [0.3, -1.0])
def test_a_pause_holds_from_the_first_record_on_however_late_the_board_answers(
    monkeypatch, board_takes, way, wishes, later_s
):
    stage = Stage(SHAPES[way])
    board_takes(0.3)
    run_virtual(stage.start())
    run_virtual(wish(stage, **wishes))
    stage.write(0, range(4))
    monkeypatch.setattr(stage, "start", lambda: asyncio.sleep(0))

    async def history(fleet):
        board_takes(later_s)
        await asyncio.sleep(20)
        assert stage.copied(0) == 0
        board_takes(0.0)
        stage.broker.add_lane("source")  # opened anew, it holds likewise
        board_takes(0.3)
        await until(lambda: fleet.copiers[0].route.source_lanes == 3)
        await asyncio.sleep(5)
        assert stage.copied(0) == 0
        await wish(stage, paused=False, paused_lanes=[])
        await until(lambda: stage.copied(0) == 4)

    play(monkeypatch, stage, history)


@pytest.mark.parametrize("way", SHAPES)
def test_wishes_that_are_gone_from_the_board_hold_also_when_the_route_is_opened_anew(monkeypatch, way):
    stage = Stage(SHAPES[way])

    async def history(fleet):
        await wish(stage, paused_lanes=[1], rate_records_per_s=2.0)
        await asyncio.sleep(3)
        stage.write(1, range(4))
        forget_wishes(stage)
        await asyncio.sleep(3)
        for _ in range(2):
            lane = stage.broker.add_lane("source")
            stage.write(lane, range(5))
            await until(lambda lane=lane: stage.copied(lane) == 5)
        assert any("gone from the board" in alarm for alarm in fleet.copiers[0].alarms)
        stage.write(0, range(100))
        await asyncio.sleep(10)
        assert stage.copied(1) == 0
        assert 10 < stage.copied(0) < 40
        await wish(stage, paused_lanes=[])  # whatever is wished anew counts, alone
        await until(lambda: stage.copied(1) == 4 and stage.copied(0) == 100)

    play(monkeypatch, stage, history)


@pytest.mark.parametrize("way", ["redis-to-kafka", "kafka-to-redis"])
def test_a_loss_that_was_accepted_is_gone_behind_again_although_the_decision_is_gone_from_the_board(monkeypatch, way):
    """The claim ended before the markers had moved: the lane halts where it did, and nobody decides it again."""
    stage = Stage(SHAPES[way])

    async def history(fleet):
        stage.write(0, range(3))
        await until(lambda: stage.copied(0) == 3)
        await wish(stage, paused_lanes=[0])
        await asyncio.sleep(3)
        stage.write(0, range(3, 9))
        stage.broker.trim("source", 0, 2)
        await wish(stage, paused_lanes=[])
        await until(lambda: fleet.copiers[0].lanes[0].state is State.HALTED)
        lost = fleet.copiers[0].lanes[0]
        stage.broker.faults = lambda step: (
            Outcome.UNKNOWN_NOT_APPLIED if step.method.startswith("append") else Outcome.OK
        )
        decision = AcceptedLoss(type(lost.error).__name__, lost.settled.position, "operator", "now")
        await wish(stage, accepted={"0": decision})
        await until(lambda: fleet.copiers[0].trouble)
        await asyncio.sleep(2)
        forget_wishes(stage)
        await asyncio.sleep(30)
        stage.broker.faults = None
        await until(lambda: stage.copied(0) == 5)

    play(monkeypatch, stage, history)


def test_a_route_that_waits_for_the_board_while_it_is_opened_anew_is_alive_and_ends_at_once(monkeypatch, board_takes):
    stage = Stage(SHAPES["kafka-to-redis"])

    async def history(fleet):
        board_takes(3600.0)
        health = HealthServer(fleet.copiers, fleet.metrics)
        stage.broker.add_lane("source")
        for _ in range(900):
            await asyncio.sleep(1.0)
            assert health.answer("/livez")[0].startswith("200")
        assert fleet.copiers[0].route.source_lanes == 2  # not opened yet
        began_s = asyncio.get_running_loop().time()
        fleet.stop()
        async with stage.board(None, "route") as board:
            while not (await board.reports())[0].is_stopped:
                await asyncio.sleep(0.1)
                assert asyncio.get_running_loop().time() < began_s + 3

    play(monkeypatch, stage, history)
