"""Starting single lanes: what each command does where none, some, all, or also lanes that came later have begun.

                         never started     some, by --lane          all          all, and lanes came later
relay start              all               the others               none         the later ones, at their first record
relay start --lane N     N; the others     N                        none         N, at its first record; with --from
                         stay unstarted                                          there; the other later ones stay
relay run                NotStarted        NotStarted, names them   runs         the later ones, at their first record
relay run --start        all               the others               runs         the same
relay wait               NotStarted        NotStarted, names them   waits        waits
relay status             says so           names them                            rows once they are started

A start that fails changes nothing of it.
"""

import asyncio

import pytest
from test_new_lanes import SHAPES, Stage
from virtual import run_virtual

from crossfade import wiring
from crossfade.brokers.memory import MemoryLog
from crossfade.brokers.protocol import From, Start
from crossfade.cli import relay as relay_commands
from crossfade.cli import relay_status
from crossfade.cli.relay_fleet import Fleet
from crossfade.errors import MarkerLost, NotStarted, UsageError

LANES = 3
EARLIEST, LATEST = Start(), Start(From.LATEST)


class Output:
    """What a command shows."""

    def __init__(self):
        self.notes, self.rows = [], []

    def note(self, text):
        self.notes.append(text)

    def table(self, rows, columns):
        self.rows += rows


@pytest.fixture(params=["redis-to-kafka", "kafka-to-redis"])
def stage(request, monkeypatch):
    made = Stage(SHAPES[request.param], source_lanes=LANES, target_lanes=LANES + 2)
    monkeypatch.setattr(wiring, "open_route", made.open)
    monkeypatch.setattr(wiring, "open_board", made.board)
    monkeypatch.setattr(relay_status, "lane_name", lambda config, route, lane: f"source:{lane}")
    for lane in range(LANES):
        made.write(lane, range(4))
    return made


def start(stage, begin=None, lanes=()):
    """`relay start`: how many lanes were started, and what was told."""
    output = Output()
    run_virtual(relay_commands._start(None, ["route"], begin, set(lanes), output))
    return output.rows[0]["started"], output.notes


def relay_run(stage, *, start_first=False, until=lambda: False):
    """`relay run` until it ends by itself, or until what it should copy is copied."""

    async def play():
        fleet = Fleet(None, ["route"], "a", None, start_first=start_first)
        try:
            await fleet.open()
            running = asyncio.ensure_future(fleet.run())
            for _ in range(200):
                if until() or running.done():
                    break
                await asyncio.sleep(0.1)
            fleet.stop()
            await running
        finally:
            await fleet.close()

    try:
        run_virtual(play())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def copied(stage):
    return [stage.copied(lane) for lane in range(len(stage.streams["source"].lanes))]


def refusal(work, *args, **about):
    with pytest.raises((NotStarted, MarkerLost)) as refused:
        work(*args, **about)
    assert isinstance(refused.value, NotStarted), refused.value
    return refused.value.message


def wait(stage):
    """`relay wait`: raises NotStarted, else how many started lanes nobody has reported."""

    async def look():
        async with stage.board(None, "route") as board:
            return (await relay_status._heard({"route": board}, 0.0))[1]

    return run_virtual(look())


def status(stage):
    async def look():
        async with stage.board(None, "route") as board:
            rows, below = await relay_status._look_at(None, "route", board)
            return [row["number"] for row in rows], below

    return run_virtual(look())


def begun(stage):
    async def look():
        async with stage.board(None, "route") as board:
            return await board.beginnings()

    return run_virtual(look())


def test_never_started(stage):
    assert "3 lanes were never started" in refusal(relay_run, stage)
    assert "route 'route' was never started" in refusal(wait, stage)
    assert status(stage) == ([], ["route route was never started: crossfade relay start route"])
    assert start(stage, LATEST) == (LANES, [])


@pytest.fixture
def failed(stage, monkeypatch):
    """A first start of one lane was refused by its source."""

    async def refuse(log, lanes, begin):
        raise UsageError("the position lies behind the end")

    with monkeypatch.context() as patched:
        patched.setattr(MemoryLog, "begin", refuse)
        with pytest.raises(UsageError, match="behind the end"):
            start(stage, EARLIEST, {0})


@pytest.mark.usefixtures("failed")
def test_a_first_start_that_fails_starts_nothing(stage):
    assert status(stage) == ([], ["route route was never started: crossfade relay start route"])
    assert "3 lanes were never started" in refusal(relay_run, stage)
    assert "route 'route' was never started" in refusal(wait, stage)
    relay_run(stage, start_first=True)  # from `latest`, as this file says
    assert status(stage)[1] == []
    assert copied(stage) == [0] * LANES


@pytest.mark.usefixtures("failed")
def test_a_position_for_all_lanes_is_taken_behind_a_first_start_that_failed(stage):
    (position,) = [place for place, _ in stage.broker.rows("source", 0)][1:2]
    assert start(stage, Start(From.POSITION, position)) == (LANES, [])


def test_some_lanes_are_started_and_the_others_wait_for_it(stage):
    assert start(stage, EARLIEST, {1}) == (1, [])
    assert start(stage, EARLIEST, {1}) == (0, [])
    names = "source[0], source[2]" if stage.shapes[0].name == "RECORD" else "source:0, source:2"
    assert refusal(relay_run, stage).endswith(f"2 lanes were never started: {names}")
    assert copied(stage) == [0] * LANES, "nothing of them is copied from its first record unasked"
    assert "lanes that were never started (0, 2)" in refusal(wait, stage)
    assert status(stage) == ([1], ["route route has lanes that were never started (0, 2): crossfade relay start route"])
    with pytest.raises(UsageError, match="lanes 0, 2 would"):
        start(stage, Start(From.POSITION, "1"))
    assert start(stage, LATEST, {0}) == (1, [])
    assert "never started (2)" in refusal(wait, stage)
    assert start(stage) == (1, [])  # from `latest`, as this file says
    assert begun(stage) == {0: LATEST, 1: EARLIEST, 2: LATEST}
    assert (status(stage), wait(stage)) == (([0, 1, 2], []), LANES)
    relay_run(stage, until=lambda: copied(stage) == [0, 4, 0])
    assert copied(stage) == [0, 4, 0]


def test_run_with_start_begins_the_others_where_the_file_says(stage):
    assert start(stage, EARLIEST, {1}) == (1, [])
    relay_run(stage, start_first=True, until=lambda: copied(stage) == [0, 4, 0])
    assert begun(stage) == {0: LATEST, 1: EARLIEST, 2: LATEST}
    assert copied(stage) == [0, 4, 0]


def test_lanes_that_came_later_are_followed_and_others_still_wait(stage):
    assert start(stage, EARLIEST, {1}) == (1, [])
    stage.write(stage.broker.add_lane("source"), range(5))
    assert "2 lanes were never started" in refusal(relay_run, stage)
    assert begun(stage) == {1: EARLIEST, 3: EARLIEST}
    started, notes = start(stage)
    assert (started, notes) == (2, [])
    relay_run(stage, until=lambda: copied(stage) == [0, 4, 0, 5])
    assert copied(stage) == [0, 4, 0, 5]


@pytest.mark.parametrize("lanes", [(), (3,)])
def test_a_later_lane_begins_at_its_first_record_where_nobody_says_where(stage, lanes):
    assert start(stage, LATEST) == (LANES, [])
    for _ in range(2):
        stage.write(stage.broker.add_lane("source"), range(5))
    started, (note,) = start(stage, None, lanes)
    assert started == (len(lanes) or 2)
    assert "copied from their beginning" in note
    assert set(begun(stage)) == {0, 1, 2, *(lanes or (3, 4))}
    relay_run(stage, until=lambda: copied(stage) == [0, 0, 0, 5, 5])
    assert copied(stage) == [0, 0, 0, 5, 5]


def test_a_later_lane_begins_where_an_operator_says(stage):
    assert start(stage, LATEST) == (LANES, [])
    for _ in range(2):
        stage.write(stage.broker.add_lane("source"), range(5))
    (position,) = [place for place, _ in stage.broker.rows("source", 3)][2:3]
    at = Start(From.POSITION, position)
    assert start(stage, at, {3}) == (1, [])
    assert begun(stage) == dict.fromkeys(range(3), LATEST) | {3: at}, "the other one waits for its own"
    relay_run(stage, until=lambda: copied(stage) == [0, 0, 0, 2, 5])
    assert copied(stage) == [0, 0, 0, 2, 5]


def test_a_lane_that_is_not_there_is_refused_before_anything_is_started(stage):
    assert start(stage, LATEST) == (LANES, [])
    stage.write(stage.broker.add_lane("source"), range(5))
    with pytest.raises(UsageError, match="has no lane 7"):
        start(stage, LATEST, {7})
    assert set(begun(stage)) == {0, 1, 2}
