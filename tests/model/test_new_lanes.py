"""Lanes that come while a route runs, on brokers in memory: followed from their beginning, or halted by name."""

import asyncio
import contextlib

import pytest
from virtual import run_virtual
from world import holds, row

from crossfade import wiring
from crossfade.brokers.memory import MemoryBoard, MemoryBroker, MemoryLog
from crossfade.brokers.protocol import From, Start, VersionConflict
from crossfade.cli import relay_fleet as fleet_module
from crossfade.cli.relay_alive import running_instances
from crossfade.cli.relay_fleet import Fleet, follow_new_lanes
from crossfade.errors import NotStarted, RouteConflict, TargetFull, TargetTooNarrow, Unreachable, UsageError
from crossfade.model.mapping import mapping_named
from crossfade.model.record import Shape
from crossfade.model.route import LaneMap, make_route
from crossfade.relay import service as service_module
from crossfade.relay.beginning import start_lanes
from crossfade.relay.documents import RouteBoard
from crossfade.relay.lanes import State
from crossfade.relay.pace import Limits
from crossfade.relay.reporter import HealthServer
from crossfade.relay.service import ByHand

RECORD, ENTRY = Shape.RECORD, Shape.ENTRY
SHAPES = {"redis-to-kafka": (ENTRY, RECORD), "kafka-to-redis": (RECORD, ENTRY), "kafka-to-kafka": (RECORD, RECORD)}


class Stage:
    """A source and a target whose lanes may grow; `open` stands in for the wiring."""

    def __init__(self, shapes, *, source_lanes=2, target_lanes=4):
        self.shapes = shapes
        self.broker = MemoryBroker(latency_s=lambda: 0.01)
        self.streams = {
            "source": self.broker.stream("source", source_lanes, shapes[0]),
            "target": self.broker.stream("target", target_lanes, shapes[1]),
        }
        self.mapping = mapping_named("lossless")

    @contextlib.asynccontextmanager
    async def open(self, config, name, *, shard=None, instance="a"):
        source, target = (
            MemoryLog(self.broker, stream, len(self.streams[stream].lanes), shape, instance=instance)
            for stream, shape in zip(("source", "target"), self.shapes, strict=True)
        )
        await source.open()
        await target.open()
        board = RouteBoard(MemoryBoard(self.broker, instance=instance), "r1")
        started = await board.known()
        route = make_route(
            id="r1",
            name="route",
            source_identity=source.identity,
            source_lanes=source.lanes,
            target_lanes=target.lanes,
            lane_map=LaneMap.ONE_TO_ONE,
            partitioner="murmur2",
            mapping_digest=self.mapping.digest(),
            first_lanes=await board.first_lanes(),
        )
        new_lanes = tuple(lane for lane in range(route.source_lanes) if started and lane not in started)
        yield wiring.OpenRoute(
            route=route,
            source=source,
            target=target,
            mapping=self.mapping,
            board=board,
            start=Start(From.LATEST),
            limits=Limits(idle_wait_s=0.2, discover_s=2.0),
            new_lanes=new_lanes,
            unowned=frozenset(new_lanes) | await board.unowned(),
            assignment=lambda: ByHand(route.source_lanes, (0, 1)),
        )

    @contextlib.asynccontextmanager
    async def board(self, config, name):
        yield RouteBoard(MemoryBoard(self.broker, instance="a"), "r1")

    async def start(self):
        async with self.open(None, "route") as opened:
            lanes = list(range(opened.route.source_lanes))
            await start_lanes(opened.route, opened.source, opened.target, opened.board, Start(), lanes)

    def write(self, lane, numbers):
        self.broker.write("source", lane, [row(self.shapes[0], lane, number) for number in numbers])

    def copied(self, lane):
        return len(self.broker.rows("target", lane))


def play(monkeypatch, stage, history):
    """Run a fleet while `history(fleet)` goes on."""
    monkeypatch.setattr(wiring, "open_route", stage.open)
    monkeypatch.setattr(wiring, "open_board", stage.board)

    async def all_of_it():
        await stage.start()
        fleet = Fleet(None, ["route"], "a", None, start_first=False)
        await fleet.open()
        running = asyncio.ensure_future(fleet.run())
        try:
            await history(fleet)
        finally:
            fleet.stop()
            await running
            await fleet.close()

    run_virtual(all_of_it())


async def until(condition, limit_s=20.0):
    end_s = asyncio.get_running_loop().time() + limit_s
    while not condition():
        holds(asyncio.get_running_loop().time() < end_s, "I9: nothing is skipped in silence")
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("way", SHAPES)
def test_a_new_lane_is_copied_from_its_beginning_and_told(monkeypatch, way):
    stage = Stage(SHAPES[way])

    async def history(fleet):
        stage.write(0, range(3))
        await until(lambda: stage.copied(0) == 3)
        lane = stage.broker.add_lane("source")
        stage.write(lane, range(5))
        stage.write(1, range(4))
        await until(lambda: stage.copied(lane) == 5 and stage.copied(1) == 4)
        assert any("new lanes" in alarm for alarm in fleet.copiers[0].alarms)
        stage.write(0, range(3, 6))
        stage.write(lane, range(5, 7))
        await until(lambda: stage.copied(lane) == 7 and stage.copied(0) == 6)
        assert fleet.metrics.render()

    play(monkeypatch, stage, history)
    assert [stage.copied(lane) for lane in range(3)] == [6, 4, 7]  # and nothing twice


def test_brokers_that_are_away_while_new_lanes_are_followed_are_waited_for(monkeypatch):
    stage = Stage(SHAPES["kafka-to-redis"])
    away = asyncio.Event()

    async def history(fleet):
        opened = stage.open

        @contextlib.asynccontextmanager
        async def sometimes(*arguments, **options):
            if away.is_set():
                raise Unreachable("no broker answers")
            async with opened(*arguments, **options) as found:
                yield found

        monkeypatch.setattr(wiring, "open_route", sometimes)
        away.set()
        stage.write(0, range(3))
        lane = stage.broker.add_lane("source")
        stage.write(lane, range(5))
        health = HealthServer(fleet.copiers, fleet.metrics)
        for _ in range(3600):  # longer than any claim may take
            await asyncio.sleep(1.0)
            assert health.answer("/livez")[0].startswith("200")
        async with stage.board(None, "route") as board:
            (report,) = await board.reports()
        assert (report.state, report.reason) == ("opening anew", "no broker answers")
        assert running_instances([report], {}, report.at_s) == ["a"]  # nobody uninstalls under it
        away.clear()
        await until(lambda: stage.copied(lane) == 5 and stage.copied(0) == 3, limit_s=60.0)

    play(monkeypatch, stage, history)


class Troubled:
    """The wiring of a stage, of which each opening meets `trouble` while there is one, after `after_s`."""

    def __init__(self, monkeypatch, stage):
        self.stage, self.trouble, self.after_s = stage, None, 0.0
        monkeypatch.setattr(wiring, "open_route", self.open)

    @contextlib.asynccontextmanager
    async def open(self, *arguments, **options):
        if self.trouble is not None:
            await asyncio.sleep(self.after_s)
            raise self.trouble
        async with self.stage.open(*arguments, **options) as found:
            yield found

    async def report(self):
        async with self.stage.board(None, "route") as board:
            (found,) = await board.reports()
        return found


@pytest.mark.parametrize(
    "trouble",
    [TargetFull(2, "the target has no room"), UsageError("there is no stream k5, but k6 is one"), Unreachable("gone")],
)
def test_troubles_that_pass_are_waited_for_when_new_lanes_are_followed(monkeypatch, trouble):
    stage = Stage(SHAPES["redis-to-kafka"])

    async def history(fleet):
        wiring_of = Troubled(monkeypatch, stage)
        wiring_of.trouble = trouble
        lane = stage.broker.add_lane("source")
        stage.write(lane, range(5))
        await asyncio.sleep(60)
        assert (await wiring_of.report()).reason == trouble.message
        wiring_of.trouble = None
        await until(lambda: stage.copied(lane) == 5)

    play(monkeypatch, stage, history)


def test_an_opening_that_hangs_is_alive_all_the_time(monkeypatch):
    stage = Stage(SHAPES["redis-to-kafka"])

    async def history(fleet):
        wiring_of = Troubled(monkeypatch, stage)
        wiring_of.trouble, wiring_of.after_s = Unreachable("no sentinel answers"), 30.0
        stage.broker.add_lane("source")
        await asyncio.sleep(10)
        seen = {}
        for _ in range(60):
            report = await wiring_of.report()
            assert running_instances([report], {"a": report.at_s}, service_module.wall_clock()) == ["a"]
            seen[report.at_s] = report.state
            await asyncio.sleep(1)
        assert len(seen) > 30
        assert set(seen.values()) == {"opening anew"}

    monkeypatch.setattr(service_module, "wall_clock", lambda: asyncio.get_running_loop().time())
    monkeypatch.setattr(fleet_module, "wall_clock", lambda: asyncio.get_running_loop().time())
    play(monkeypatch, stage, history)


@pytest.mark.parametrize("after_s", [0.0, 30.0])
def test_a_relay_that_ends_while_its_route_is_opened_says_that_it_has_stopped(monkeypatch, after_s):
    stage, found = Stage(SHAPES["redis-to-kafka"]), []

    async def history(fleet):
        wiring_of = Troubled(monkeypatch, stage)
        wiring_of.trouble, wiring_of.after_s = Unreachable("no sentinel answers"), after_s
        stage.broker.add_lane("source")
        await asyncio.sleep(10)
        began_s = asyncio.get_running_loop().time()
        fleet.stop()
        while not (report := await wiring_of.report()).is_stopped:
            await asyncio.sleep(0.1)
            assert asyncio.get_running_loop().time() < began_s + 3
        found.append(report)

    play(monkeypatch, stage, history)
    assert found


def test_a_route_that_cannot_be_opened_any_more_says_that_it_has_stopped(monkeypatch):
    stage, found = Stage(SHAPES["redis-to-kafka"]), []

    async def history(fleet):
        wiring_of = Troubled(monkeypatch, stage)
        wiring_of.trouble = RouteConflict("another route writes to these lanes")
        stage.broker.add_lane("source")
        await asyncio.sleep(10)
        found.append(await wiring_of.report())

    with pytest.raises(BaseExceptionGroup) as raised:
        play(monkeypatch, stage, history)
    assert isinstance(raised.value.exceptions[0], RouteConflict)
    assert found[0].is_stopped


@pytest.mark.parametrize("trouble", [Unreachable("no board"), VersionConflict("it keeps changing")])
def test_a_board_that_does_not_take_who_owns_new_lanes_holds_up_nobody(monkeypatch, trouble):
    stage = Stage(SHAPES["kafka-to-redis"])

    async def history(fleet):
        async def refuse(self, lanes):
            raise trouble

        monkeypatch.setattr(RouteBoard, "note_owned", refuse)
        lane = stage.broker.add_lane("source")
        stage.write(lane, range(5))
        stage.write(0, range(3))
        await until(lambda: stage.copied(lane) == 5 and stage.copied(0) == 3)
        await asyncio.sleep(30)

    play(monkeypatch, stage, history)


def test_new_lanes_stay_unowned_until_a_process_has_them(monkeypatch):
    """Who is killed before the group has handed them out must know when it is back that it has to."""
    stage = Stage(SHAPES["kafka-to-redis"])

    async def story():
        await stage.start()
        lane = stage.broker.add_lane("source")
        async with stage.open(None, "route") as opened:
            assert opened.unowned == {lane}
            await follow_new_lanes(opened)
        async with stage.open(None, "route") as opened:
            assert opened.new_lanes == ()
            assert opened.unowned == {lane}

    run_virtual(story())

    async def history(fleet):
        stage.write(2, range(3))
        await until(lambda: stage.copied(2) == 3)
        async with stage.board(None, "route") as board:
            for _ in range(20):
                if not await board.unowned():
                    break
                await asyncio.sleep(0.5)
            assert not await board.unowned()

    monkeypatch.setattr(stage, "start", lambda: asyncio.sleep(0))
    play(monkeypatch, stage, history)


def test_a_route_that_was_forgotten_while_it_was_opened_anew_is_not_started_again(monkeypatch):
    stage, seen = Stage(SHAPES["kafka-to-redis"]), []

    async def history(fleet):
        fleet._start_first = True
        opened = stage.open
        forgotten = asyncio.Event()

        @contextlib.asynccontextmanager
        async def forgetting(*arguments, **options):
            stage.broker.documents.clear()
            for lane in stage.streams["target"].lanes:
                lane.markers.clear()
            forgotten.set()
            async with opened(*arguments, **options) as found:
                yield found

        monkeypatch.setattr(wiring, "open_route", forgetting)
        stage.write(0, range(3))
        await until(lambda: stage.copied(0) == 3)
        stage.broker.add_lane("source")
        await asyncio.wait_for(forgotten.wait(), 60)
        await asyncio.sleep(30)
        async with stage.board(None, "route") as board:
            seen.append(await board.started())

    with pytest.raises(BaseExceptionGroup) as ended:
        play(monkeypatch, stage, history)
    assert isinstance(ended.value.exceptions[0], NotStarted)
    assert seen == [set()]


@pytest.mark.parametrize("way", SHAPES)
def test_a_lane_that_came_while_nothing_ran_is_followed_too(monkeypatch, way):
    stage = Stage(SHAPES[way])

    async def history(fleet):
        pass

    play(monkeypatch, stage, history)
    lane = stage.broker.add_lane("source")
    stage.write(lane, range(4))

    async def later(fleet):
        await until(lambda: stage.copied(lane) == 4)
        assert any("new lanes" in alarm for alarm in fleet.copiers[0].alarms)

    monkeypatch.setattr(stage, "start", lambda: asyncio.sleep(0))
    play(monkeypatch, stage, later)


@pytest.mark.parametrize("way", SHAPES)
def test_a_new_lane_without_target_is_halted_and_goes_on_when_it_has_one(monkeypatch, way):
    stage = Stage(SHAPES[way], target_lanes=2)

    async def history(fleet):
        lane = stage.broker.add_lane("source")
        stage.write(lane, range(5))
        await until(lambda: lane in fleet.copiers[0].lanes)
        state = fleet.copiers[0].lanes[lane]
        assert state.state is State.HALTED
        assert isinstance(state.error, TargetTooNarrow)
        assert "partitions 3" in state.error.hint or "count" in state.error.hint
        stage.write(0, range(3))
        await until(lambda: stage.copied(0) == 3)  # the others go on
        assert stage.broker.add_lane("target") == lane
        await until(lambda: stage.copied(lane) == 5)

    play(monkeypatch, stage, history)


def test_fewer_lanes_than_were_started_are_refused_and_a_first_start_must_fit():
    about = {
        "id": "r1",
        "name": "route",
        "source_identity": "s",
        "lane_map": LaneMap.ONE_TO_ONE,
        "partitioner": "murmur2",
        "mapping_digest": "",
    }
    with pytest.raises(RouteConflict, match="started with 4 source lanes, now there are 3"):
        make_route(source_lanes=3, target_lanes=4, first_lanes=4, **about)
    with pytest.raises(UsageError, match="one to one"):
        make_route(source_lanes=5, target_lanes=4, **about)
    grown = make_route(source_lanes=6, target_lanes=5, first_lanes=4, **about)
    assert (grown.source_lanes, grown.lanes_without_target) == (5, 1)
    assert grown.source == make_route(source_lanes=4, target_lanes=4, **about).source  # the marker's digest holds
