"""`verify` on brokers in memory: verdicts, words, JSON, lanes, and a state that survives."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crossfade import wiring
from crossfade.brokers.memory import MemoryBoard, MemoryBroker, MemoryLog
from crossfade.brokers.memory.broker import Quarantined
from crossfade.brokers.protocol import From, Start
from crossfade.cli import verify, verify_scope, verify_watch
from crossfade.cli.main import run
from crossfade.cli.output import Output
from crossfade.cli.verify_parts import Workers
from crossfade.cli.verify_scope import parse_lanes
from crossfade.cli.verify_words import exit_code_of
from crossfade.config import Config
from crossfade.errors import CrossfadeError, SourceRegressed, Unreachable, UsageError
from crossfade.model.mapping import mapping_named
from crossfade.model.partitioner import partition_many
from crossfade.model.record import Record, Shape
from crossfade.model.route import LaneMap, Route
from crossfade.model.wire import XF, Origin, encode_origin
from crossfade.relay.beginning import start_lanes
from crossfade.relay.documents import RouteBoard
from crossfade.verify import by_key
from crossfade.verify.beyond import add_beyond
from crossfade.verify.diff import Kind
from crossfade.verify.report import AuditReport, LaneReport

CONFIG = """\
version: 1
brokers:
  old: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:1"}}
  new: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:2"}}
streams:
  messages: {old: {topic: a}, new: {topic: b}}
routes:
  forward: {id: idforward, stream: messages, source: old, target: new}
"""
LANES = 3
RECORDS = 20


@dataclass
class World:
    """A source, and a target that a relay has filled."""

    broker: MemoryBroker
    lane_map: LaneMap = LaneMap.ONE_TO_ONE
    pair: str = ""
    #: lanes of each side that came later
    later: Counter[str] = field(default_factory=Counter)

    def add_lane(self, side: str) -> int:
        self.later[side] += 1
        return self.broker.add_lane(side)

    def write(self, lane: int, first: int, last: int, *, copied: int | None = None) -> None:
        """Records `first` to `last` of a lane, the first `copied` of them on the target too."""
        numbers = range(first, last)
        self.broker.write("a", lane, [record(lane, number) for number in numbers])
        self.broker.write(
            "b", lane, [copy(lane, number) for number in numbers[: copied if copied is not None else None]]
        )


def record(lane: int, number: int, value: bytes | None = None) -> Record:
    return Record(b"k%d" % number, value or b"v%d-%d" % (lane, number), None, 1_700_000_000_000 + number)


def copy(lane: int, number: int, value: bytes | None = None, *, first: int = 0) -> Record:
    """The copy of a record, where that of record `first` was the first."""
    made = record(lane, number, value)
    origin = encode_origin(Origin("idforward", lane, str(number), number - first + 1, 1))
    return made._replace(headers=[(XF, origin.encode())])


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(MemoryBroker())
    for name in ("a", "b"):
        made.broker.stream(name, LANES, Shape.RECORD)

    @asynccontextmanager
    async def open_route(
        config: Config, name: str, *, instance: str, copies: bool = True
    ) -> AsyncIterator[SimpleNamespace]:
        ends = [MemoryLog(made.broker, end, LANES + made.later[end], Shape.RECORD) for end in ("a", "b")]
        for end in ends:
            await end.open()
        lanes = min(end.lanes for end in ends)
        route = Route("idforward", "forward", lanes, ends[1].lanes, made.lane_map, "murmur2", "digest", made.pair)
        route = replace(route, lanes_without_target=ends[0].lanes - lanes)
        yield SimpleNamespace(
            route=route,
            source=ends[0],
            target=ends[1],
            mapping=mapping_named("lossless"),
            board=RouteBoard(MemoryBoard(made.broker), "idforward"),
            start=Start(),
        )

    monkeypatch.setattr(wiring, "open_route", open_route)
    monkeypatch.chdir(tmp_path)
    Path("crossfade.yaml").write_text(CONFIG)
    return made


def verified(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, dict[str, object]]:
    code = run(["verify", "forward", "-o", "json", *args])
    told = json.loads(capsys.readouterr().out)
    (route,) = told["routes"]
    assert told["ok"] == route["ok"]
    return code, route


def test_equal_sides_are_equal(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for lane in range(LANES):
        world.write(lane, 0, RECORDS)
    assert run(["verify"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "route forward: a -> b, 3 lanes"
    assert lines[1] == "  matched 60  missing 0  extra 0  duplicate 0  reordered 0  altered 0"
    assert lines[2].startswith("  equal (")
    code, told = verified(capsys)
    assert (code, told["matched"], told["complete"]) == (0, 60, True)


def test_what_is_on_its_way_is_pending_unless_all_is_settled(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.write(0, 0, RECORDS, copied=15)
    code, told = verified(capsys)
    assert (code, told["matched"], told["pending"], told["missing"], told["complete"]) == (0, 15, 5, 0, False)
    code, told = verified(capsys, "--settled")
    assert (code, told["matched"], told["pending"], told["missing"]) == (3, 15, 0, 5)


def test_an_altered_record_is_named(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.broker.write("a", 1, [record(1, number) for number in range(RECORDS)])
    world.broker.write("b", 1, [copy(1, number, b"other" if number == 7 else None) for number in range(RECORDS)])
    assert run(["verify"]) == 3
    shown = capsys.readouterr().out
    assert "  altered: lane 1, source 7, target 7" in shown
    assert "DIFFERENT: 1 findings" in shown


def test_a_record_too_few_and_one_too_many(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = [0, 1, 3, 4, 4, 5]
    world.broker.write("a", 2, [record(2, number) for number in range(6)])
    world.broker.write("b", 2, [copy(2, number) for number in numbers])
    code, told = verified(capsys)
    assert (code, told["missing"], told["duplicate"], told["altered"], told["reordered"]) == (3, 1, 1, 0, 0)


def test_what_readers_cannot_see_is_no_complete_proof(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.write(0, 0, RECORDS)
    lane: Any = world.broker.stream("a", LANES, Shape.RECORD).lanes[0]
    lane.write_open("app", record(0, RECORDS))
    world.broker.write("a", 0, [record(0, number) for number in range(RECORDS, 2 * RECORDS)])
    code, told = verified(capsys)
    assert (code, told["matched"], told["complete"]) == (0, RECORDS, False)
    assert verified(capsys, "--complete")[0] == 1
    assert run(["verify"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "  records that readers cannot see yet, in 1 lanes: an open transaction holds up readers"
    assert "equal as far as both sides can be compared" in lines[3]


def test_what_is_quarantined_while_an_audit_begins_is_not_missing(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.write(0, 0, RECORDS)
    bounds, happened = MemoryLog.bounds, []

    async def relayed_before(self: MemoryLog, lanes: Any) -> Any:
        if self.name == "b" and not happened:
            happened.append(1)
            world.broker.write("a", 0, [record(0, RECORDS), record(0, RECORDS + 1)])
            refused = Quarantined("idforward", (0, 0), str(RECORDS), record(0, RECORDS), "too large", Shape.RECORD)
            world.broker.stream("b", LANES, Shape.RECORD).quarantine.append(refused)
            world.broker.write("b", 0, [copy(0, RECORDS + 1)])
        return await bounds(self, lanes)

    monkeypatch.setattr(MemoryLog, "bounds", relayed_before)
    code, told = verified(capsys)
    assert (code, told["missing"], told["quarantined"], told["matched"]) == (0, 0, 1, RECORDS + 1)


def test_what_is_gone_from_the_beginning_is_no_complete_proof(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.write(0, 0, RECORDS)
    world.broker.trim("b", 0, keep=15)
    code, told = verified(capsys)
    assert (code, told["matched"], told["before_target"], told["complete"]) == (0, 15, 5, False)
    assert verified(capsys, "--complete")[0] == 1
    assert run(["verify"]) == 0
    assert "equal as far as both sides can be compared" in capsys.readouterr().out


@pytest.mark.parametrize("lane_map", LaneMap)
def test_a_beginning_that_was_asked_for_at_the_start_is_remembered(
    world: World, capsys: pytest.CaptureFixture[str], lane_map: LaneMap
) -> None:
    world.lane_map = lane_map
    world.broker.write("a", 0, [record(0, number) for number in range(RECORDS)])

    async def start() -> None:
        source, target = (MemoryLog(world.broker, end, LANES, Shape.RECORD) for end in ("a", "b"))
        route = Route("idforward", "forward", LANES, LANES, lane_map, "murmur2", "digest")
        board = RouteBoard(MemoryBoard(world.broker), route.id)
        await start_lanes(route, source, target, board, Start(From.LATEST), [0, 1])  # `from` of the file: earliest
        await start_lanes(route, source, target, board, Start(), [2])

    asyncio.run(start())
    later = record(0, RECORDS, b"later")
    (to,) = partition_many("murmur2", [later.key], LANES, 0) if lane_map is LaneMap.BY_KEY else [0]
    world.broker.write("a", 0, [later])
    world.broker.write("b", to, [copy(0, RECORDS, b"later", first=RECORDS)])
    code, told = verified(capsys, "--settled")
    assert (code, told["missing"], told["before_target"], told["matched"]) == (0, 0, RECORDS, 1)
    world.broker.write("a", 2, [record(2, 0)])  # that lane was begun at its first record
    code, told = verified(capsys, "--settled")
    assert (code, told["missing"], told["before_target"]) == (3, 1, RECORDS)


def test_two_empty_sides_prove_nothing(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify"]) == 1
    assert "  NO VERDICT: nothing to compare, no record is on both sides (" in capsys.readouterr().out
    code, told = verified(capsys)
    assert (code, told["ok"], told["verdict"]) == (1, False, "none")


def test_a_target_that_holds_nothing_of_the_source_proves_nothing(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.write(0, 0, RECORDS, copied=0)
    code, told = verified(capsys)
    assert (code, told["verdict"], told["matched"], told["pending"]) == (1, "none", 0, RECORDS)
    code, told = verified(capsys, "--settled")
    assert (code, told["verdict"], told["missing"]) == (3, "different", RECORDS)


def test_what_is_quarantined_is_no_complete_proof(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.write(0, 0, RECORDS)
    world.broker.write("a", 0, [record(0, RECORDS), record(0, RECORDS + 1)])
    refused = Quarantined("idforward", (0, 0), str(RECORDS), record(0, RECORDS), "too large", Shape.RECORD)
    world.broker.stream("b", LANES, Shape.RECORD).quarantine.append(refused)
    world.broker.write("b", 0, [copy(0, RECORDS + 1)])
    assert run(["verify", "--settled"]) == 0
    words = "  equal, except 1 records that the target or the mapping refused: they are not on the target ("
    assert words in capsys.readouterr().out
    code, told = verified(capsys, "--settled", "--complete")
    assert (code, told["quarantined"], told["verdict"], told["complete"]) == (1, 1, "equal", False)


def test_echoes_of_a_pair_are_no_gap_in_the_proof(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.pair = "idback"
    world.write(0, 0, RECORDS)
    echo = encode_origin(Origin("idback", 0, "7", 1, 1))
    world.broker.write("a", 0, [record(0, RECORDS)._replace(headers=[(XF, echo.encode())])])
    code, told = verified(capsys, "--settled", "--complete")
    assert (code, told["quarantined"], told["echoes"], told["complete"]) == (0, 0, 1, True)
    assert run(["verify"]) == 0
    assert "  1 brought by the other route of the pair: on the target already" in capsys.readouterr().out


def test_complete_says_why_there_is_no_verdict(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.write(0, 0, RECORDS, copied=RECORDS - 5)
    world.write(1, 0, RECORDS)
    world.broker.trim("a", 1, keep=8)
    world.write(2, 0, RECORDS)
    lane: Any = world.broker.stream("a", LANES, Shape.RECORD).lanes[2]
    lane.write_open("app", record(2, RECORDS))
    assert run(["verify", "--complete"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "NO VERDICT (--complete): 5 pending, 12 source_gone, 1 lane held up"
    assert run(["verify", "--complete", "-o", "json"]) == 1
    body = json.loads(capsys.readouterr().out)
    assert (body["exit_code"], body["verdict"], body["ok"], body["complete"]) == (1, "none", True, False)
    assert run(["verify", "-o", "json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["exit_code"], body["verdict"]) == (0, "equal")
    assert run(["verify", "--complete", "--settled"]) == 3
    assert "--complete" not in capsys.readouterr().out


def no_workers(*_: object) -> None:
    raise AssertionError("the mistake should have been found before any process or connection")


@pytest.mark.parametrize(
    ("choice", "error", "hint"),
    [
        (["--metrics-port", "9188"], "--metrics-port needs --watch", "add --watch SECONDS"),
        (["--yes"], "--yes needs --repair apply", "add --repair apply"),
        (["--yes", "--repair", "list"], "--yes needs --repair apply", "add --repair apply"),
        (["--watch", "5", "--repair", "list"], "--watch does not go with --repair", "leave out --watch"),
        (["--complete", "--repair", "list"], "--complete does not go with --repair", "leave out --complete"),
        (["--resume", "state.json", "--repair", "list"], "--resume does not go with --repair", "leave out --resume"),
        (["--watch", "5", "--complete"], "--complete does not go with --watch", "leave out --complete"),
        (["--watch", "5", "--settled"], "--settled does not go with --watch", "leave out --settled"),
        (["--watch", "5", "--to", "time:2026-01-01"], "--to does not go with --watch", "leave out --to"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    choice: list[str],
    error: str,
    hint: str,
) -> None:
    monkeypatch.setattr(verify, "Workers", no_workers)
    assert run(["verify", *choice]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(f"error: {error}")
    assert told[1] == f"hint: {hint}"


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (["--lanes", "a"], "--lanes 'a' names no lanes"),
        (["--from", "position:5", "--lanes", "0-3"], "a position belongs to one lane"),
        (["--from", "time:2026-01-02", "--to", "time:2026-01-01"], "--from lies behind --to"),
        (["--from", "time:2026-01-02", "--resume", "state.json"], "--resume goes on from an earlier audit"),
    ],
)
def test_a_mistake_is_told_before_any_broker_is_asked(
    world: World,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    choice: list[str],
    words: str,
) -> None:
    monkeypatch.setattr(verify, "Workers", no_workers)
    assert run(["verify", *choice]) == 2
    assert words in capsys.readouterr().err


def test_only_the_lanes_that_are_asked_for(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for lane in range(LANES):
        world.write(lane, 0, RECORDS, copied=RECORDS if lane else 3)
    assert verified(capsys, "--settled", "--lanes", "1-2")[0] == 0
    assert verified(capsys, "--settled", "--lanes", "0")[0] == 3


def test_an_audit_goes_on_where_it_ended(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.write(0, 0, RECORDS)
    assert verified(capsys, "--resume", "audit.json")[1]["matched"] == RECORDS
    first = json.loads(Path("audit.json").read_text())
    assert first["version"] == 1
    world.write(0, RECORDS, 2 * RECORDS)
    world.write(1, 0, 5)
    code, told = verified(capsys, "--resume", "audit.json", "--lanes", "1")
    assert (code, told["matched"]) == (0, 5)
    # What is known of lane 0 is kept by an audit of lane 1.
    assert json.loads(Path("audit.json").read_text())["routes"]["idforward"]["lanes"]["0"]
    code, told = verified(capsys, "--resume", "audit.json")
    assert (code, told["matched"]) == (0, 2 * RECORDS + 5)
    assert sorted(path.name for path in Path().iterdir()) == ["audit.json", "crossfade.yaml"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2, "routes": {}}', '{"version": 1, "routes": 3}'])
def test_a_file_that_is_no_state_is_refused(world: World, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("audit.json").write_text(text)
    assert run(["verify", "--resume", "audit.json"]) == 2
    assert capsys.readouterr().err.startswith("error: audit.json ")
    assert Path("audit.json").read_text() == text


def test_a_state_is_kept_while_the_audit_runs(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("crossfade.verify.progress.PROGRESS_EVERY_S", 0.0)
    monkeypatch.setattr(verify_scope, "SAVE_EVERY_S", 0.0)
    saved: list[str] = []
    real = verify_scope.Store.save

    def save(self: verify_scope.Store, route_id: str, state: dict[str, object]) -> None:
        saved.append(route_id)
        real(self, route_id, state)

    monkeypatch.setattr(verify_scope.Store, "save", save)
    world.write(0, 0, RECORDS)
    assert run(["verify", "--resume", "audit.json"]) == 0
    assert len(saved) > 1, "once at the end, and before it"


@pytest.mark.parametrize("every_s", [0.0, 60.0])
def test_a_state_that_cannot_be_kept_hides_no_verdict(
    world: World, every_s: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("crossfade.verify.progress.PROGRESS_EVERY_S", 0.0)
    monkeypatch.setattr(verify_scope, "SAVE_EVERY_S", every_s)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    world.broker.write("a", 0, [record(0, number) for number in range(RECORDS)])
    world.broker.write("b", 0, [copy(0, number, b"other" if number == 7 else None) for number in range(RECORDS)])
    assert run(["verify", "--resume", "audit.json"]) == 2
    told = capsys.readouterr()
    assert "altered: lane 0" in told.out
    assert "DIFFERENT: 1 findings" in told.out
    assert told.err.endswith("error: cannot write audit.json: No space left on device\nhint: name another file\n")
    assert ("the audit goes on" in told.err) == (not every_s)


def test_a_name_that_no_file_can_have_is_a_mistake_of_the_user(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", "--resume", "x" * 300]) == 2
    assert capsys.readouterr().err.startswith("error: cannot read xxx")


@pytest.mark.parametrize("choice", [["--lanes", "0"], ["--resume", "state.json"]])
def test_a_route_by_key_is_verified_as_a_whole(
    world: World, capsys: pytest.CaptureFixture[str], choice: list[str]
) -> None:
    world.lane_map = LaneMap.BY_KEY
    assert run(["verify", *choice]) == 2
    assert capsys.readouterr().err.startswith("error: route 'forward' maps lanes by key")


def test_a_route_by_key_is_verified_through_its_keys(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.lane_map = LaneMap.BY_KEY
    for lane in range(LANES):
        world.write(lane, 0, RECORDS)
    # The target holds every record in its source's lane, whatever its key: some stand where their key does not belong.
    assert run(["verify"]) == 3
    assert "missing" in capsys.readouterr().out


def test_an_audit_by_key_knows_the_lanes_of_the_first_start(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.lane_map = LaneMap.BY_KEY
    told: list[int] = []

    async def audit_by_key(*_: object, first_lanes: int, **__: object) -> AuditReport:
        told.append(first_lanes)
        return AuditReport("a", "b", {})

    monkeypatch.setattr(by_key, "audit_by_key", audit_by_key)
    asyncio.run(RouteBoard(MemoryBoard(world.broker), "idforward").add_started({0}))
    run(["verify"])
    assert told == [1]


@pytest.mark.parametrize(
    ("text", "lanes"), [(None, [0, 1, 2, 3, 4, 5]), ("0", [0]), ("0,3-5", [0, 3, 4, 5]), ("2,1-2", [1, 2]), ("5", [5])]
)
def test_lanes_by_number_and_range(text: str | None, lanes: list[int]) -> None:
    assert parse_lanes(text, 6) == lanes


@pytest.mark.parametrize(
    "text", ["", "a", "1-", "-1", "6", "4-9", "3-1", "1,,2", "0-99999999999", "0,9", "0-3,12-15", "0,5-3"]
)
def test_lanes_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_lanes(text, 6)


def test_only_a_part_of_the_source(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.write(0, 0, RECORDS, copied=12)
    world.write(1, 0, RECORDS)
    assert verified(capsys, "--settled", "--lanes", "0")[1]["missing"] == 8
    code, told = verified(capsys, "--settled", "--lanes", "0", "--from", "position:3", "--to", "position:11")
    assert (code, told["matched"], told["missing"]) == (0, 9, 0)
    code, told = verified(capsys, "--settled", "--to", "time:2023-11-14T22:13:20.010Z")
    assert (code, told["matched"]) == (0, 20)
    code, told = verified(capsys, "--settled", "--from", "time:2023-11-14T22:13:20.010Z")
    assert (code, told["matched"], told["missing"]) == (3, 12, 8)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (["--from", "position:3"], "a position belongs to one lane"),
        (["--from", "yesterday"], "--from 'yesterday' is no place in a stream"),
        (["--to", "position:x", "--lanes", "0"], "--to 'position:x' is no place in a stream"),
        (["--from", "time:2026-01-02", "--to", "time:2026-01-01"], "--from lies behind --to"),
        (["--from", "time:2026-01-02", "--resume", "state.json"], "--resume goes on from an earlier audit"),
        (["--from", "position:3-1", "--lanes", "0"], "'3-1' is no offset"),
    ],
)
def test_limits_that_mean_nothing_are_refused(
    world: World, capsys: pytest.CaptureFixture[str], choice: list[str], words: str
) -> None:
    assert run(["verify", *choice]) == 2
    assert words in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ lanes of one side


def test_a_source_lane_without_target_lane_has_no_verdict(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.write(0, 0, RECORDS)
    world.broker.write("a", world.add_lane("a"), [record(3, 0)])
    assert run(["verify"]) == 1
    shown = capsys.readouterr().out
    assert "lane 3 was not compared to its end: new source lane a[3] has no lane in b, which has 3; add one: " in shown
    assert "--topic b --partitions 4" in shown
    assert "NO VERDICT" in shown
    code, told = verified(capsys, "--resume", "audit.json", "--processes", "1")
    assert (code, told["matched"], told["complete"]) == (1, RECORDS, False)
    assert told["lanes"][3]["error"]["error"] == "TargetTooNarrow"  # type: ignore[index]
    assert verified(capsys, "--lanes", "0-2")[0] == 0
    world.add_lane("b")  # the lane goes on by itself
    world.broker.write("b", 3, [copy(3, 0)])
    code, told = verified(capsys, "--resume", "audit.json", "--complete")
    assert (code, told["matched"]) == (0, RECORDS + 1)


def test_records_in_target_lanes_that_the_source_does_not_have_are_extra(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("crossfade.verify.beyond.READ_RECORDS_MAX", 7)
    world.write(0, 0, RECORDS)
    world.broker.write("a", 1, [record(1, number) for number in range(RECORDS)])
    world.broker.write("b", 1, [copy(1, number, b"other" if number == 7 else None) for number in range(RECORDS)])
    for _ in range(2):
        lane = world.add_lane("b")
        world.broker.write_aborted("b", lane, [record(lane, 0)])
    code, told = verified(capsys, "--complete")
    assert (code, told["extra"], told["altered"], len(told["lanes"])) == (3, 0, 1, 3)  # type: ignore[arg-type]
    world.broker.write("b", 4, [record(4, number) for number in range(150)])
    code, told = verified(capsys)
    assert (code, told["extra"], told["matched"]) == (3, 150, 2 * RECORDS - 1)
    assert [lane["extra"] for lane in told["lanes"]] == [0, 0, 0, 150]  # type: ignore[union-attr]
    named = [one for one in told["differences"] if one["kind"] == "extra"]  # type: ignore[union-attr]
    assert len(named) == 100
    assert (named[0]["lane"], named[0]["target"], named[0]["detail"]) == (4, "2", "the source has no such lane")
    monkeypatch.delenv("COLUMNS", raising=False)  # else a table is cut to them
    assert run(["verify", "--repair", "list"]) == 3
    assert capsys.readouterr().out.count("b[4] lets no single record be removed") == 150
    for part in (["--lanes", "0-2"], ["--to", "time:2027-01-01"]):
        assert verified(capsys, *part)[1]["extra"] == 0
    world.pair = "idback"
    assert verified(capsys)[1]["extra"] == 0


def test_a_lane_that_the_source_got_meanwhile_is_not_beyond_it(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world.write(0, 0, RECORDS)
    world.broker.write("b", world.add_lane("b"), [copy(3, 0)])
    assert verified(capsys)[1]["extra"] == 1
    world.broker.add_lane("a")  # since this route was opened
    assert verified(capsys)[1]["extra"] == 0


async def test_a_lane_beyond_the_source_that_is_trimmed_or_fails_while_it_is_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossfade.verify.beyond.READ_RECORDS_MAX", 10)
    source, target = MemoryLog(world.broker, "a", LANES, Shape.RECORD), MemoryLog(world.broker, "e", 5, Shape.ENTRY)
    for log in (source, target):
        await log.open()
    for lane in (3, 4):
        world.broker.write("e", lane, [([b"v", b"%d" % number], 1_000 + number) for number in range(50)])
    read, turns = target.read, iter(range(100))

    async def troubled(*options: Any) -> Any:
        turn = next(turns)
        if turn == 2:
            world.broker.trim("e", 3, 25)
        outcomes = await read(*options)
        if turn == 4:
            outcomes[4] = SourceRegressed(4, "the lane was cut off")
        return outcomes

    monkeypatch.setattr(target, "read", troubled)
    report = AuditReport("a", "e", {})
    await add_beyond(source, target, report)
    read_until_trimmed = report.lanes[3].counts[Kind.EXTRA] - 25
    assert 0 < read_until_trimmed <= 20
    assert report.lanes[3].error is None
    assert report.lanes[4].error is not None
    places = [one.difference.target for one in report.named[Kind.EXTRA] if one.lane == 3]
    assert len(places) == len(set(places))


# ------------------------------------------------------------------------------------------------ watch


class Told(Output):
    """Ends the watch after so many rounds, as Ctrl-C does; does something between them."""

    __slots__ = ("between", "bodies", "rounds")

    def document(self, body: Mapping[str, Any], text: str, *, live: bool = False) -> None:
        assert live
        assert text.startswith(f"forward round {len(self.bodies) + 1}: ")
        self.bodies.append(json.loads(json.dumps(body)))
        if len(self.bodies) == self.rounds:
            os.kill(os.getpid(), signal.SIGINT)
        else:
            self.between(len(self.bodies))


async def watched(rounds: int, between: Callable[[int], None]) -> tuple[int, list[dict[str, Any]], verify_scope.Store]:
    output = Told(is_json=True)
    output.rounds, output.between, output.bodies = rounds, between, []
    store = verify_scope.Store(None)
    code = await verify_watch.watch_routes(
        output.config(),
        output,
        ["forward"],
        verify_scope.Scope(),
        store,
        every_s=0.01,
        port=0,
        workers=Workers(output.config(), 0),
        shares=False,
    )
    return code, output.bodies, store


async def test_a_watch_goes_on_from_round_to_round_and_does_not_grow(world: World) -> None:
    world.write(0, 0, RECORDS)
    code, told, store = await watched(30, lambda at: world.write(0, at * RECORDS, (at + 1) * RECORDS))
    assert code == 0
    assert [body["matched"] for body in told] == [RECORDS * at for at in range(1, 31)]
    assert {body["parity"] for body in told} == {1.0}
    lanes = store.state_of("idforward")["lanes"].values()
    assert max(len(lane["ranges"]) for lane in lanes) == 8


async def test_a_watch_without_anything_to_compare_goes_on_and_has_no_verdict_yet(world: World) -> None:
    code, told, _ = await watched(2, lambda _: None)
    assert (code, [body["verdict"] for body in told]) == (1, ["none", "none"])
    code, told, _ = await watched(2, lambda _: world.write(0, 0, RECORDS))
    assert (code, [body["verdict"] for body in told]) == (0, ["none", "equal"])


def test_a_route_without_verdict_is_not_hidden_by_one_that_is_equal() -> None:
    equal, empty, waiting, other = (AuditReport("a", "b", {0: LaneReport(0, "a", "b", is_done=True)}) for _ in range(4))
    equal.lanes[0].matched = 1
    waiting.lanes[0].pending = 1
    other.lanes[0].counts[Kind.EXTRA] = 1
    assert exit_code_of([equal]) == 0
    assert exit_code_of([equal, waiting]) == exit_code_of([empty]) == exit_code_of([]) == 1
    assert exit_code_of([equal, waiting, other]) == 3


def test_a_route_at_rest_takes_no_verdict_from_the_others() -> None:
    """The way back of a pair that nobody has written to: the other route's records are echoes there."""
    equal, resting = (AuditReport("a", "b", {0: LaneReport(0, "a", "b", is_done=True)}) for _ in range(2))
    equal.lanes[0].matched = resting.lanes[0].echoes = 1
    assert exit_code_of([equal, resting]) == 0
    resting.lanes[0].is_done = False
    assert exit_code_of([equal, resting]) == 1


async def test_a_watch_remembers_a_difference_and_survives_a_broker_that_is_away(world: World) -> None:
    world.write(0, 0, RECORDS)

    async def away(*_: object) -> None:
        raise Unreachable("nobody answers")

    with pytest.MonkeyPatch.context() as patch:

        def between(at: int) -> None:
            if at == 1:
                world.broker.write("b", 0, [copy(0, 7)])
            elif at == 2:
                patch.setattr(MemoryLog, "bounds", away)
            elif at == 3:
                patch.undo()

        code, told, _ = await watched(4, between)
    assert code == 3
    assert [body["duplicate"] for body in told] == [0, 1, 1, 1]
    assert [body.get("error", {}).get("error") for body in told] == [None, None, "Unreachable", None]
    assert [len(body["differences"]) for body in told] == [0, 1, 0, 0]


async def test_a_watch_survives_a_process_that_ended_early_and_remembers_what_it_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write(0, 0, RECORDS)
    world.broker.write("b", 0, [copy(0, 7)])
    bounds = MemoryLog.bounds

    async def ended(*_: object) -> None:
        raise CrossfadeError("a process that audits a part of the lanes ended early")

    def between(at: int) -> None:
        monkeypatch.setattr(MemoryLog, "bounds", ended if at == 1 else bounds)

    code, told, _ = await watched(3, between)
    assert code == 3
    assert [body["duplicate"] for body in told] == [1, 1, 1]
    assert [body.get("error", {}).get("error") for body in told] == [None, "CrossfadeError", None]


async def test_a_watch_ends_where_its_configuration_is_wrong(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wrong(*_: object) -> None:
        raise UsageError("the stream has a hole")

    monkeypatch.setattr(MemoryLog, "bounds", wrong)
    with pytest.raises(UsageError, match="has a hole"):
        await watched(1, lambda _: None)


async def test_a_watch_that_never_audited_anything_has_no_verdict(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def away(*_: object) -> None:
        raise Unreachable("nobody answers")

    monkeypatch.setattr(MemoryLog, "bounds", away)
    code, told, _ = await watched(3, lambda _: None)
    assert (code, [body["error"]["error"] for body in told]) == (1, ["Unreachable"] * 3)
    assert "route forward was never audited to an end" in capsys.readouterr().err


async def test_a_watch_that_ends_before_its_first_round_has_no_verdict(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stopped(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    monkeypatch.setattr(MemoryLog, "bounds", stopped)
    code, told, _ = await watched(1, lambda _: None)
    assert (code, told) == (1, [])


async def test_a_watch_of_a_route_by_key_remembers_what_retention_removes_later(world: World) -> None:
    world.lane_map = LaneMap.BY_KEY
    lane = int(partition_many("murmur2", [b"k0"], LANES)[0])
    world.broker.write("a", lane, [record(lane, 0)])
    world.broker.write("b", lane, [copy(lane, 0, b"other")])

    def between(at: int) -> None:
        if at == 2:
            world.broker.trim("a", lane, keep=0)
            world.broker.trim("b", lane, keep=0)

    code, told, _ = await watched(4, between)
    assert code == 3
    assert [(body["altered"], body["ok"]) for body in told] == [(1, False)] * 4
    assert [len(body["differences"]) for body in told] == [1, 1, 0, 0]


def test_parity_is_of_what_is_settled() -> None:
    report = AuditReport("a", "b", {0: LaneReport(0, "a", "b")})
    assert verify_watch.parity_of(report) is None
    lane = report.lanes[0]
    lane.matched, lane.pending = 97, 50
    lane.counts.update({Kind.MISSING: 1, Kind.ALTERED: 1, Kind.REORDERED: 1, Kind.EXTRA: 5})
    assert verify_watch.parity_of(report) == 0.97
    one = verify_watch.Watched("forward", verify_scope.Store(None))
    gauges = verify_watch.Gauges([one])
    assert gauges.answer("/readyz")[0].startswith("503")
    one.hear(report, 0.0)
    text = gauges.answer("/metrics")[1].decode()
    assert 'crossfade_verify_parity_ratio{route="forward"} 0.97' in text
    assert 'crossfade_verify_differences{kind="extra",route="forward"} 5.0' in text
    assert gauges.answer("/readyz")[0] == gauges.answer("/livez")[0] == "200 OK"


def test_repair_is_never_applied_without_being_asked(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", "--repair", "apply"]) == 4
    assert "add --yes" in capsys.readouterr().err
    assert run(["verify", "--repair", "list", "--resume", "state.json"]) == 2


@pytest.mark.parametrize("route", ["forward", "back"])
def test_nothing_is_removed_where_applications_write_too(
    world: World, capsys: pytest.CaptureFixture[str], route: str
) -> None:
    back = "  back: {id: idback, stream: messages, source: new, target: old, reverse_of: forward}\n"
    Path("crossfade.yaml").write_text(CONFIG + back)
    assert run(["verify", route, "--repair", "apply", "--yes"]) == 4
    assert f"route '{route}' is one of a pair" in capsys.readouterr().err
