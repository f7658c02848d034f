"""`relay` on boards that hold what a test puts there: status, wait, pause, rate, and wrong command lines."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crossfade import wiring
from crossfade.cli import relay as relay_commands
from crossfade.cli import relay_status
from crossfade.cli.main import run
from crossfade.cli.relay import parse_start
from crossfade.config import Config
from crossfade.errors import AccessRefused, CrossfadeError, Unreachable, UsageError
from crossfade.relay.documents import AcceptedLoss, Desired, LaneReport, Report

CONFIG = """\
version: 1
brokers:
  old: {kind: redis, url: "redis://127.0.0.1:1"}
  new: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:1"}}
streams:
  messages:
    old: {lanes: "m:<lane>", count: 4}
    new: {topic: t}
routes:
  forward: {id: idforward, stream: messages, source: old, target: new}
"""


@dataclass
class FakeBoard:
    """A RouteBoard in memory; `trouble` is raised by the next questions, one each."""

    lanes: set[int] = field(default_factory=set)
    held: list[Report] = field(default_factory=list)
    wanted: Desired = field(default_factory=Desired)
    trouble: list[CrossfadeError] = field(default_factory=list)
    asked: int = 0
    opened: int = 0
    left: set[int] = field(default_factory=set)

    async def unstarted(self) -> frozenset[int]:
        return frozenset(self.left)

    async def started(self) -> frozenset[int]:
        return frozenset(self.lanes)

    async def reports(self) -> list[Report]:
        self.asked += 1
        if self.trouble:
            raise self.trouble.pop(0)
        return self.held

    async def desired(self) -> Desired:
        return self.wanted

    async def change_desired(self, change: Callable[[Desired], None]) -> Desired:
        change(self.wanted)
        return self.wanted


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBoard:
    made = FakeBoard()

    @asynccontextmanager
    async def open_board(config: Config, name: str) -> AsyncIterator[FakeBoard]:
        made.opened += 1
        yield made

    async def no_sleep(seconds: float) -> None:
        return

    monkeypatch.setattr(wiring, "open_board", open_board)
    monkeypatch.setattr(relay_status.asyncio, "sleep", no_sleep)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("CROSSFADE_")]:
        monkeypatch.delenv(name)
    Path("crossfade.yaml").write_text(CONFIG)
    return made


def heard(*lanes: LaneReport, age_s: float = -5.0) -> Report:
    """A report that is newer than any command."""
    return Report("one", time.time() - age_s, state="running", lanes=list(lanes))


def copied(lane: int) -> LaneReport:
    return LaneReport(lane, f"m:{lane}", "running", lag_records=0)


def busy(lane: int, name: str = "", **more: Any) -> LaneReport:
    """A lane with figures as wide as those of a real one."""
    figures: dict[str, Any] = {"ordinal": 12_345_678, "lag_records": 1230, "lag_s": 12.34, "records_per_s": 1520.0}
    return LaneReport(
        lane, name or f"messages:{lane}", **({"state": "copying", "position": place(lane)} | figures | more)
    )


def place(lane: int) -> str:
    return f"17638593712{lane:02}-0"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """What a command shows on a terminal of so many columns."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")

    def show(width: int, *args: str) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        run(list(args))
        return [re.sub("\x1b\\[[0-9;]*[A-Za-z]", "", line).rstrip() for line in capsys.readouterr().out.splitlines()]

    return show


# -- wait ----------------------------------------------------------------------------------------------------------


def test_wait_for_a_route_that_was_never_started_is_refused(
    board: FakeBoard, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["relay", "wait"]) == 4
    told = capsys.readouterr()
    assert told.out == ""
    assert "never started" in told.err
    assert "crossfade relay start forward" in told.err


def test_wait_for_lanes_that_were_never_started_is_refused(
    board: FakeBoard, capsys: pytest.CaptureFixture[str]
) -> None:
    board.lanes, board.left, board.held = {3}, {0, 1, 2}, [heard(copied(3))]
    assert run(["relay", "wait"]) == 4
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error (NotStarted): route 'forward' has lanes that were never started (0-2)")
    assert "crossfade relay start forward" in told.err
    board.held = [heard(*map(copied, range(4)))]  # a start that was cut short had begun them all the same
    assert run(["relay", "wait"]) == 0


def test_wait_believes_no_look_at_the_source_that_is_older_than_the_command(board: FakeBoard) -> None:
    board.lanes = {0}
    board.held = [heard(copied(0), age_s=-5)]
    board.held[0].look_age_s = 4.9
    assert run(["relay", "wait", "--timeout-s", "0"]) == 1
    board.held = [heard(copied(0), age_s=-10)]
    board.held[0].look_age_s = 4.9
    assert run(["relay", "wait", "--timeout-s", "0"]) == 0


def test_wait_ends_when_every_started_lane_is_copied(board: FakeBoard) -> None:
    board.lanes, board.held = {0, 1}, [heard(copied(0), copied(1))]
    assert run(["relay", "wait"]) == 0


def test_wait_counts_lanes_that_are_started_while_it_waits(board: FakeBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    board.lanes, board.held = {0, 1}, [heard(copied(0))]

    async def one_more(seconds: float) -> None:
        board.lanes = {0, 1, 2}
        board.held = [heard(copied(0), copied(1))] if board.asked < 3 else [heard(copied(0), copied(1), copied(2))]

    monkeypatch.setattr(relay_status.asyncio, "sleep", one_more)
    assert run(["relay", "wait"]) == 0
    assert board.asked == 3 + 1


def test_wait_survives_a_broker_that_is_away(board: FakeBoard, capsys: pytest.CaptureFixture[str]) -> None:
    board.lanes, board.held = {0}, [heard(copied(0))]
    board.trouble = [Unreachable("no answer"), Unreachable("no answer")]
    assert run(["relay", "wait"]) == 0
    assert capsys.readouterr().err == "no answer; asking again\n"


def test_wait_tells_once_that_lanes_are_paused(board: FakeBoard, capsys: pytest.CaptureFixture[str]) -> None:
    board.lanes, board.held = {0, 1}, [heard(copied(0), LaneReport(1, "m:1", "paused", lag_records=7))]
    assert run(["relay", "wait", "--timeout-s", "0.6"]) == 1
    told = "forward has paused lanes: `crossfade relay resume forward`\n"
    assert capsys.readouterr().err == told + "not copied within 0.6 s\n"


def test_wait_for_a_broker_that_stays_away_ends_when_time_is_up(board: FakeBoard) -> None:
    board.lanes, board.trouble = {0}, [Unreachable("no answer")]
    assert run(["relay", "wait", "--timeout-s", "0"]) == 5


def test_wait_gives_a_look_no_more_than_the_time_that_is_left(
    board: FakeBoard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[str] = []

    async def never() -> list[Report]:
        try:
            await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=5)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        ended.append("by itself")
        raise Unreachable("no answer")

    monkeypatch.setattr(board, "reports", never)
    monkeypatch.setattr(relay_status, "_LOOK_S", 0.01)
    board.lanes = {0}
    since_s = time.monotonic()
    assert run(["relay", "wait", "--timeout-s", "0.2"]) == 5
    assert time.monotonic() - since_s < 3
    assert ended == ["cancelled"]
    assert "could not be read within" in capsys.readouterr().err


def test_wait_still_looks_where_no_time_is_left(board: FakeBoard, monkeypatch: pytest.MonkeyPatch) -> None:
    async def soon() -> list[Report]:
        await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=0.05)
        return [heard(LaneReport(0, "m:0", "halted"))]

    monkeypatch.setattr(board, "reports", soon)
    board.lanes = {0}
    assert run(["relay", "wait", "--timeout-s", "0"]) == 3


def test_wait_ends_at_once_where_the_broker_refuses(board: FakeBoard) -> None:
    board.lanes, board.trouble = {0}, [AccessRefused("wrong password")]
    assert run(["relay", "wait"]) == 5


def test_wait_shows_the_halted_lane_and_what_to_do(board: FakeBoard, capsys: pytest.CaptureFixture[str]) -> None:
    board.lanes = {0}
    board.held = [heard(LaneReport(0, "m:0", "halted", reason="trimmed", hint="accept the loss"))]
    assert run(["relay", "wait"]) == 3
    assert capsys.readouterr().err == "m:0: accept the loss\n"


# -- status --------------------------------------------------------------------------------------------------------


def test_status_shows_started_lanes_that_nobody_reports(board: FakeBoard, capsys: pytest.CaptureFixture[str]) -> None:
    board.lanes, board.held = {0, 1}, [heard(copied(0))]
    assert run(["relay", "status", "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["lane"], row["state"], row["reason"]) for row in rows] == [
        ("m:0", "running", ""),
        ("m:1", "started", "no relay has reported"),
    ]
    assert rows[1]["lag_records"] is None
    assert list(rows[0]) == list(rows[1])


@pytest.mark.parametrize(("age_s", "report_state", "shown"), [(2.0, "stopped", "stopped"), (60.0, "copying", "silent")])
def test_status_shows_no_figures_of_a_relay_that_is_gone(age_s: float, report_state: str, shown: str) -> None:
    """The source goes on without it: a lag of 0 from its last heartbeat would be a lie."""
    lane = LaneReport(
        0, "m:0", "idle", "7-0", ordinal=9, lag_records=0, lag_s=0.0, records_per_s=5.0, trimmed_in_s=30.0
    )
    found = Report("one", 1000.0, state=report_state, epoch=4, lanes=[lane])
    (row,) = relay_status.status_rows("forward", [found], Desired(), 1000.0 + age_s)
    assert (row["state"], row["position"], row["ordinal"], row["epoch"]) == (shown, "7-0", 9, 4)
    assert row["reason"]
    assert [row[name] for name in ("lag_records", "lag_s", "records_per_s", "trimmed_in_s")] == [None] * 4
    (row,) = relay_status.status_rows("forward", [Report("one", 1000.0, lanes=[lane])], Desired(), 1001.0)
    assert [row[name] for name in ("lag_records", "lag_s", "records_per_s", "trimmed_in_s")] == [0, 0.0, 5.0, 30]


def test_status_says_that_a_route_waits_to_be_opened_anew() -> None:
    lane = LaneReport(0, "m:0", "idle", "7-0")
    waits = Report("one", 1000.0, state="opening anew", reason="no broker answers", lanes=[lane])
    (row,) = relay_status.status_rows("forward", [waits], Desired(), 1001.0)
    assert (row["state"], row["reason"]) == ("opening anew", "no broker answers")


def test_status_hears_whoever_has_a_claim_before_one_that_has_lost_it() -> None:
    lane = LaneReport(0, "m:0", "idle", "7-0")
    had = Report("had", 1001.0, state="claiming", epoch=0, lanes=[lane])
    has = Report("has", 1000.0, state="copying", epoch=5, lanes=[lane])
    (row,) = relay_status.status_rows("forward", [had, has], Desired(), 1002.0)
    assert (row["owner"], row["epoch"]) == ("has", 5)
    (row,) = relay_status.status_rows("forward", [had, has], Desired(), 1010.5)  # that one is silent meanwhile
    assert row["owner"] == "had"


@pytest.mark.parametrize("ahead_s", [60.0, 8.0])
def test_status_hears_who_lives_before_one_whose_clock_was_ahead(ahead_s: float) -> None:
    dead = Report("dead", 1000.0 + ahead_s, state="idle", epoch=4, lanes=[LaneReport(0, "m:0", "idle", lag_records=0)])
    owner = Report("owner", 999.5, state="copying", epoch=5, lanes=[LaneReport(0, "m:0", "copying", lag_records=70)])
    (row,) = relay_status.status_rows("forward", [dead, owner], Desired(), 1000.0)
    assert (row["owner"], row["lag_records"]) == ("owner", 70)


def test_status_shows_no_figures_of_a_heartbeat_far_ahead_of_the_clock() -> None:
    dead = Report("dead", 1060.0, state="idle", epoch=4, lanes=[LaneReport(0, "m:0", "idle", lag_records=0)])
    (row,) = relay_status.status_rows("forward", [dead], Desired(), 1000.0)
    assert (row["state"], row["lag_records"]) == ("silent", None)
    assert row["reason"] == "the last heartbeat of dead is 60 s ahead of this host's clock"


def test_status_shows_the_routes_whose_broker_answers(
    board: FakeBoard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    route = "  {0}: {{id: id{0}, stream: messages, source: old, target: new}}\n"
    head, line, _ = CONFIG.partition("routes:\n")
    Path("crossfade.yaml").write_text(head + line + route.format("away") + route.format("here"))
    board.lanes, board.held = {0}, [heard(copied(0))]
    board.trouble = [Unreachable("no answer")]
    assert run(["relay", "status", "-o", "json"]) == 5
    told = capsys.readouterr()
    assert [row["route"] for row in json.loads(told.out)["rows"]] == ["here"]
    assert told.err.startswith("route away could not be looked at: no answer\n")
    board.trouble = [Unreachable("no answer")]

    async def until_second(seconds: float) -> None:
        if board.asked >= 4:
            raise KeyboardInterrupt

    board.asked = 0
    monkeypatch.setattr(relay_status.asyncio, "sleep", until_second)
    assert run(["relay", "status", "--watch", "-o", "json"]) == 130
    shown = [json.loads(text)["rows"] for text in capsys.readouterr().out.splitlines()]
    assert [[row["route"] for row in rows] for rows in shown] == [["here"], ["away", "here"]]
    board.trouble = [AccessRefused("wrong password")]
    assert run(["relay", "status", "--watch", "-o", "json"]) == 5


def test_status_says_that_nothing_was_started(board: FakeBoard, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["relay", "status"]) == 0
    assert capsys.readouterr().err == "route forward was never started: crossfade relay start forward\n"


def test_status_says_which_lanes_were_never_started(board: FakeBoard, capsys: pytest.CaptureFixture[str]) -> None:
    board.lanes, board.left = {1}, {0, 2, 3}
    assert run(["relay", "status", "-o", "json"]) == 0
    told = capsys.readouterr()
    assert [(row["lane"], row["state"]) for row in json.loads(told.out)["rows"]] == [("m:1", "started")]
    assert told.err == "route forward has lanes that were never started (0, 2-3): crossfade relay start forward\n"
    board.held = [heard(copied(0), copied(3))]
    assert run(["relay", "status"]) == 0
    assert (
        capsys.readouterr().err
        == "route forward has lanes that were never started (2): crossfade relay start forward\n"
    )


def test_status_tells_what_to_do_about_a_halted_lane(board: FakeBoard, capsys: pytest.CaptureFixture[str]) -> None:
    board.lanes = {0}
    board.held = [heard(LaneReport(0, "m:0", "halted", reason="trimmed", hint="accept the loss"))]
    assert run(["relay", "status"]) == 3
    assert capsys.readouterr().err == "m:0: accept the loss\n"


def test_status_names_a_lane_of_a_topic(tmp_path: Path, board: FakeBoard, capsys: pytest.CaptureFixture[str]) -> None:
    Path("crossfade.yaml").write_text(CONFIG.replace("source: old, target: new", "source: new, target: old"))
    board.lanes = {2}
    assert run(["relay", "status", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["lane"] == "t[2]"


def test_status_watch_survives_a_broker_that_is_away(
    board: FakeBoard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    board.lanes, board.held = {0}, [heard(copied(0))]
    board.trouble = [Unreachable("no answer")]

    async def until_third(seconds: float) -> None:
        if board.asked == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(relay_status.asyncio, "sleep", until_third)
    assert run(["relay", "status", "--watch", "-o", "json"]) == 130
    told = capsys.readouterr()
    assert told.err == "no answer; asking again\n"
    assert len(told.out.splitlines()) == 2


def test_status_without_watch_tells_an_unreachable_broker(board: FakeBoard) -> None:
    board.trouble = [Unreachable("no answer")]
    assert run(["relay", "status"]) == 5


def test_a_route_that_is_named_twice_is_one(board: FakeBoard, capsys: pytest.CaptureFixture[str]) -> None:
    board.lanes = {0}
    assert run(["relay", "status", "forward", "forward", "-o", "json"]) == 0
    assert board.opened == 1


@pytest.mark.parametrize("width", [80, 100, 120, 140])
def test_status_keeps_a_line_for_each_lane_on_a_terminal(
    width: int, board: FakeBoard, terminal: Callable[..., list[str]]
) -> None:
    board.lanes = set(range(16))
    lanes = [busy(lane) for lane in range(16)]
    lanes[3] = busy(3, state="waiting", trimmed_in_s=512.0, reason="the target is full")
    lanes[4] = busy(4, echoes=7)
    lanes[7] = busy(7, state="halted", reason="7,120 records are gone")
    board.held = [heard(*lanes, age_s=0)]
    board.held[0].instance = "relay-0@host"
    shown = terminal(width, "relay", "status")
    assert max(map(len, shown)) <= width
    assert [line.split()[:2] for line in shown[3:19]] == [[f"messages:{n}", place(n)] for n in range(16)]
    assert [line.split()[-2:] for line in shown[6:8]] == [["waiting", "512"], ["copying", "-"]]
    assert all("relay-0@host" in line for line in shown[3:19])
    left_out = ["echoes, records_per_s: left out, the terminal is too narrow"] if width == 80 else []
    assert shown[19:] == ["messages:3: the target is full", "messages:7: 7,120 records are gone", *left_out]


def test_status_leaves_out_what_says_nothing_on_a_terminal(
    board: FakeBoard, terminal: Callable[..., list[str]]
) -> None:
    board.lanes, board.held = {0, 1}, [heard(busy(0), busy(1), age_s=0)]
    assert heads(terminal(80, "relay", "status")) == "lane position records lag_s per_s owner state"
    assert heads(terminal(80, "relay", "status", "--wide")) == (
        "route lane number position ordinal records lag_s per_s owner epoch state"
    )
    board.held = [heard(busy(0, "m:{a}:2", echoes=1), busy(1, "m:{b}:2", lag_s=None), age_s=0)]
    assert heads(terminal(100, "relay", "status")) == ("lane number position records lag_s per_s echoes owner state")
    board.held = []
    assert heads(terminal(80, "relay", "status")) == "lane state"


def heads(shown: list[str]) -> str:
    """The names of the columns; of those in two lines, the second."""
    return " ".join(next(before for before, line in itertools.pairwise(shown) if line.startswith("─")).split())


def test_status_tells_a_reason_of_many_lanes_once(board: FakeBoard, terminal: Callable[..., list[str]]) -> None:
    board.lanes = set(range(16))
    spare = Report("spare", time.time(), state="waiting for lanes", reason="16 lanes have an owner")
    board.held = [heard(*map(busy, range(16)), age_s=0), spare]
    board.wanted = Desired(paused=True)
    assert terminal(80, "relay", "status")[19:] == [
        "spare: waiting for lanes, 16 lanes have an owner",
        "messages:0 and 15 more: paused by an operator",
    ]
    board.wanted = Desired(paused_lanes=[4, 9])
    assert terminal(80, "relay", "status")[20:] == ["messages:4, messages:9: paused by an operator"]


def test_status_names_the_route_of_each_lane_where_it_shows_several(
    board: FakeBoard, terminal: Callable[..., list[str]]
) -> None:
    route = "  {0}: {{id: id{0}, stream: messages, source: old, target: new}}\n"
    head, line, _ = CONFIG.partition("routes:\n")
    Path("crossfade.yaml").write_text(head + line + route.format("away") + route.format("here"))
    board.lanes, board.wanted = {0}, Desired(paused=True)
    board.held = [heard(busy(0), age_s=0)]
    shown = terminal(80, "relay", "status")
    assert [line.split()[0] for line in shown[3:5]] == ["away", "here"]
    assert "here messages:0: paused by an operator" in shown
    shown = terminal(80, "relay", "status", "here")
    assert shown[3].startswith("messages:0")


def test_status_shows_a_program_every_column(
    board: FakeBoard, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    board.lanes, board.held = {0}, [heard(busy(0, state="halted", reason="7 are gone"), age_s=0)]
    assert run(["relay", "status"]) == 3
    head, _, row = (line.split() for line in capsys.readouterr().out.splitlines())
    assert " ".join(head) == (
        "route lane number position ordinal lag_records lag_s records_per_s echoes owner epoch state "
        "trimmed_in_s reason"
    )
    assert row[-3:] == ["7", "are", "gone"]
    assert run(["relay", "status", "-o", "json"]) == 3
    assert " ".join(json.loads(capsys.readouterr().out)["rows"][0]) == (
        " ".join(head) + " quarantined deleted error lost_records hint"
    )


# -- pause, resume, rate -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_only_lanes_that_are_there_are_paused(
    board: FakeBoard, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    board.lanes = {0, 1, 2, 5}
    assert run(["relay", command, "forward", "--lane", "1", "--lane", "99"]) == 2
    assert capsys.readouterr().err == (
        "error: route 'forward' has no started lane 99\n"
        "hint: started are: 0-2, 5; see `crossfade relay status forward`\n"
    )
    assert board.wanted == Desired()
    assert run(["relay", command, "forward", "--lane", "-1"]) == 2
    assert run(["relay", command, "forward", "--lane", "1"]) == 0
    assert board.wanted.paused_lanes == ([1] if command == "pause" else [])


def test_a_lane_that_is_resumed_while_its_route_is_paused_stays_so_and_that_is_told(
    board: FakeBoard, capsys: pytest.CaptureFixture[str]
) -> None:
    board.lanes, board.wanted = {0, 1}, Desired(paused=True, paused_lanes=[1])
    assert run(["relay", "resume", "forward", "--lane", "1"]) == 0
    assert capsys.readouterr().err == ("the whole route is paused, these lanes too: `crossfade relay resume forward`\n")
    assert run(["relay", "resume", "forward"]) == 0
    assert capsys.readouterr().err == ""


def test_resuming_names_the_lanes_that_stay_halted(board: FakeBoard, capsys: pytest.CaptureFixture[str]) -> None:
    board.lanes = {0, 1, 2}
    halted = LaneReport(1, "m:1", "halted", position="5-0", error="SourceTrimmed", reason="7 are gone", hint="restore")
    board.held = [heard(copied(0), halted, LaneReport(2, "m:2", "halted", error="TargetTorn", reason="torn"))]
    assert run(["relay", "resume", "forward", "--lane", "0"]) == 0
    assert capsys.readouterr().err == ""
    assert run(["relay", "resume", "forward", "--lane", "1"]) == 0
    assert capsys.readouterr().err == "m:1 stays halted: 7 are gone\nhint: restore\n"
    assert run(["relay", "resume", "forward"]) == 0
    assert capsys.readouterr().err == "m:1 stays halted: 7 are gone\nhint: restore\nm:2 stays halted: torn\n"


def test_a_lane_that_is_gone_can_be_resumed(board: FakeBoard) -> None:
    board.wanted = Desired(paused_lanes=[99])
    assert run(["relay", "resume", "forward", "--lane", "99"]) == 0
    assert board.wanted.paused_lanes == []


def test_a_rate_goes_back_to_the_one_of_the_file(board: FakeBoard) -> None:
    assert run(["relay", "rate", "forward", "20000"]) == 0
    assert board.wanted.rate_records_per_s == 20_000
    assert run(["relay", "rate", "forward", "configured"]) == 0
    assert board.wanted.rate_records_per_s is None


def test_an_accepted_loss_is_shown_by_the_journal(board: FakeBoard, capsys: pytest.CaptureFixture[str]) -> None:
    board.lanes = {3}
    halted = LaneReport(3, "m:3", "halted", position="5-0", error="SourceTrimmed", lost_records=7, reason="7 are gone")
    board.held = [heard(halted)]
    assert run(["relay", "resume", "forward", "--lane", "3", "--accept-loss", "test data"]) == 0
    capsys.readouterr()
    assert run(["-o", "json", "relay", "journal"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["rows"]
    assert entry["by"]
    assert entry["at"]
    assert [entry[name] for name in ("route", "lane", "error", "position", "lost", "reason")] == [
        "forward", "m:3", "SourceTrimmed", "5-0", 7, "test data"
    ]  # fmt: skip


def test_alarms_are_shown_below_the_lanes_with_their_numbers(
    board: FakeBoard, capsys: pytest.CaptureFixture[str]
) -> None:
    board.lanes = {3}
    report = heard(copied(3), age_s=0)
    report.alarms = ["4 new lanes are copied from their beginning"]
    board.held = [report]
    assert run(["-o", "json", "relay", "status"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["rows"][0]["number"] == 3
    assert "alarm of one: 4 new lanes are copied from their beginning" in told.err
    report.at_s -= 3600  # whoever told it is gone
    assert run(["-o", "json", "relay", "status"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("rate", ["inf", "nan", "1e400", "fast"])
def test_a_rate_is_a_number(board: FakeBoard, rate: str) -> None:
    assert run(["relay", "rate", "forward", rate]) == 2
    assert board.wanted == Desired()
    assert run(["relay", "rate", "forward", "0"]) == 0


# -- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["start", "--from", "garbage"],
        ["start", "--from", ""],
        ["run", "--shard", "4/4"],
        ["run", "--metrics-port", "99999"],
        ["run", "--metrics-port", "-1"],
    ],
)
def test_a_wrong_argument_is_told_before_any_broker_is_asked(
    board: FakeBoard, args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_broker(*args: object, **options: object) -> None:
        raise Unreachable("no broker is there")

    monkeypatch.setattr(wiring, "open_route", no_broker)
    assert run(["relay", *args]) == 2


def test_a_time_has_its_zone() -> None:
    assert parse_start("time:2026-01-01T00:00:00Z").value == "1767225600000"
    assert parse_start("time:2026-01-01T01:00:00+01:00").value == "1767225600000"
    for text in ("time:2026-01-01", "time:2026-01-01T00:00:00"):
        with pytest.raises(UsageError) as caught:
            parse_start(text)
        assert "a time with its zone" in caught.value.hint


async def test_a_second_process_on_a_host_copies_without_metrics() -> None:
    class Health:
        def __init__(self) -> None:
            self.asked: list[int] = []

        async def listen(self, port: int) -> None:
            self.asked.append(port)
            raise UsageError("taken")

    health = Health()
    await relay_commands._listen(health, None, 9464)
    await relay_commands._listen(health, 0, 9464)
    assert health.asked == [9464]
    for asked, configured in ((9464, 9464), (9999, 9464), (None, 9999)):
        with pytest.raises(UsageError):
            await relay_commands._listen(health, asked, configured)


def test_accepting_a_loss_lets_go_of_decisions_that_are_spent(board: FakeBoard) -> None:
    board.lanes = {0, 1, 2}
    board.held = [
        heard(
            LaneReport(0, "m:0", "running", position="9-0"),
            LaneReport(1, "m:1", "halted", position="5-0", error="SourceTrimmed"),
            LaneReport(2, "m:2", "halted", position="5-0", error="SourceTrimmed"),
        )
    ]
    earlier = AcceptedLoss("SourceTrimmed", "5-0", "me@host", "2026-01-01T00:00:00+00:00", "why")
    board.wanted = Desired(accepted={"0": earlier, "1": earlier}, journal=[earlier, earlier])
    assert run(["relay", "resume", "forward", "--lane", "2", "--accept-loss", "test data"]) == 0
    assert sorted(board.wanted.accepted) == ["1", "2"]
    assert [one.reason for one in board.wanted.journal] == ["why", "why", "test data"]


@pytest.mark.parametrize("error", ["QuarantineFull", "TargetReset", "TargetTorn", "TargetTooNarrow"])
def test_no_loss_is_accepted_where_the_source_lost_nothing(
    error: str, board: FakeBoard, capsys: pytest.CaptureFixture[str]
) -> None:
    board.lanes = {0}
    board.held = [heard(LaneReport(0, "m:0", "halted", position="5-0", error=error, hint="restore the target"))]
    assert run(["relay", "resume", "forward", "--lane", "0", "--accept-loss", "no matter"]) == 4
    told = capsys.readouterr().err
    assert f"m:0 is halted by {error}, which is no loss of the source" in told
    assert "hint: restore the target" in told
    assert not board.wanted.accepted


def test_a_loss_that_only_an_earlier_owner_tells_of_is_none(board: FakeBoard) -> None:
    board.lanes = {0}
    now_s = time.time()
    halted = LaneReport(0, "m:0", "halted", position="5-0", error="SourceTrimmed")
    board.held = [
        Report("before", now_s - 60, state="stopped", epoch=3, lanes=[halted]),
        Report("now", now_s, state="copying", epoch=4, lanes=[LaneReport(0, "m:0", "copying", position="9-0")]),
    ]
    assert run(["relay", "resume", "forward", "--lane", "0", "--accept-loss", "no matter"]) == 4
    assert not board.wanted.accepted


# -- reshard -------------------------------------------------------------------------------------------------------


def test_a_split_is_not_changed_where_nobody_can_be_asked(
    board: FakeBoard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Split:
        lanes = 4
        changed = 0

        async def shards(self) -> int:
            return 1

        async def reshard(self, shards: int) -> None:
            Split.changed = shards

    @asynccontextmanager
    async def open_split(config: Config, name: str) -> AsyncIterator[Split]:
        yield Split()

    monkeypatch.setattr(wiring, "open_split", open_split)
    assert run(["relay", "reshard", "forward", "2"]) == 4
    told = capsys.readouterr()
    assert "--shard 1/2" in told.out
    assert "there is nobody to ask" in told.err
    assert "then add --yes" in told.err
    assert Split.changed == 0
    assert run(["relay", "reshard", "forward", "2", "--yes"]) == 0
    assert Split.changed == 2
