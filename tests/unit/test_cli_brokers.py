"""`doctor` on brokers that answer what a test tells them to; `test_cli_uninstall` has the same brokers."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from crossfade import wiring
from crossfade.brokers.protocol import Finding, Level
from crossfade.cli.doctor import Examined, guarantee
from crossfade.cli.main import run
from crossfade.config import Config
from crossfade.errors import AccessRefused, CrossfadeError, Unreachable, UsageError
from crossfade.relay.documents import Report

CONFIG = """\
version: 1
brokers:
  old: {kind: redis, url: "redis://127.0.0.1:1"}
  new: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:1"}}
streams:
  messages:
    old: {lanes: "msg:stream:<lane>", count: 16}
    new: {topic: messages.v1}
    retention: 3h
routes:
  forward: {id: idforward, stream: messages, source: old, target: new}
  back: {id: idback, stream: messages, source: new, target: old, reverse_of: forward}
"""
OK = Finding("x.version", Level.OK, "9.1")
BAD = Finding("x.eviction", Level.FAIL, "allkeys-lru evicts streams", "CONFIG SET maxmemory-policy noeviction")
HIDDEN = Finding("x.persistence", Level.UNKNOWN, "CONFIG is forbidden", "ask the provider")


@dataclass
class FakeBroker:
    """An Inspector with fixed answers."""

    lanes: int = 16
    findings: list[Finding] = field(default_factory=lambda: [OK])
    error: CrossfadeError | None = None
    #: what it takes to be opened: a stream whose keys are discovered asks the broker
    closed: CrossfadeError | None = None
    things: dict[str, list[str]] = field(default_factory=dict)
    stuck: set[str] = field(default_factory=set)
    oldest_s: float | None = 5.0
    asked: list[tuple[str, float, float | None]] = field(default_factory=list)
    erased: list[str] = field(default_factory=list)
    #: what it does not say of the route's leftovers, and how it refuses to remove them
    silent: CrossfadeError | None = None
    refusal: CrossfadeError | None = None
    #: how many lanes it was told of, each time that it was opened
    known_lanes: list[int | None] = field(default_factory=list)

    async def inspect(self, role: str, retention_needed_s: float, oldest_s: float | None = None) -> list[Finding]:
        self.asked.append((role, retention_needed_s, oldest_s))
        if self.error is not None:
            raise self.error
        return self.findings

    async def routes(self) -> set[str]:
        return {route for route, left in self.things.items() if left}

    async def footprint(self, route: str) -> list[str]:
        if self.silent is not None:
            raise self.silent
        return list(self.things.get(route, []))

    async def erase(self, route: str, names: Sequence[str]) -> None:
        if self.refusal is not None:
            self.things[route] = self.things[route][1:]
            raise self.refusal
        self.erased += names
        self.things[route] = [name for name in self.things[route] if name not in names or name in self.stuck]


@dataclass
class FakeBoard:
    """The part of a RouteBoard that uninstall reads."""

    running: list[Report] = field(default_factory=list)
    #: the route that the next question is about
    route: str = ""
    running_route: str = ""
    started_lanes: int = 0

    unreadable: CrossfadeError | None = None

    async def first_lanes(self) -> int:
        if self.unreadable is not None:
            raise self.unreadable
        return self.started_lanes

    async def started(self) -> frozenset[int]:
        if self.unreadable is not None:
            raise self.unreadable
        return frozenset(range(self.started_lanes)) if self.running_route in ("", self.route) else frozenset()

    #: how much the heartbeats are ahead of this host's clock, and how much later they are at each look
    ahead_s: float = 0.0
    beat_s: float = 0.0

    async def reports(self) -> list[Report]:
        self.ahead_s += self.beat_s
        if self.running_route not in ("", self.route):
            return []
        return [structs.replace(report, at_s=report.at_s + self.ahead_s) for report in self.running]


@dataclass
class Brokers:
    old: FakeBroker = field(default_factory=FakeBroker)
    new: FakeBroker = field(default_factory=FakeBroker)
    board: FakeBoard = field(default_factory=FakeBoard)


@pytest.fixture(name="brokers")
def faked_brokers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Brokers:
    return fake_brokers(tmp_path, monkeypatch)


def fake_brokers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Brokers:
    """Put them in the place of real ones, with a configuration in the present folder."""
    made = Brokers()

    @asynccontextmanager
    async def open_inspectors(
        config: Config,
        name: str,
        roles: tuple[str, ...] = ("source", "target"),
        source_lanes: int = 0,
        *,
        known_lanes: int | None = None,
    ) -> AsyncIterator[list[tuple[str, str, FakeBroker]]]:
        route = config.routes[name]
        ends = [(route.source, "source"), (route.target, "target")]
        for broker, role in ends:
            if role not in roles:
                continue
            if (error := getattr(made, broker).closed) is not None:
                raise error
            getattr(made, broker).known_lanes.append(known_lanes)
        yield [(broker, role, getattr(made, broker)) for broker, role in ends if role in roles]

    @asynccontextmanager
    async def open_board(config: Config, name: str) -> AsyncIterator[FakeBoard]:
        made.board.route = name
        yield made.board

    monkeypatch.setattr(wiring, "open_inspectors", open_inspectors)
    monkeypatch.setattr(wiring, "open_board", open_board)
    monkeypatch.chdir(tmp_path)
    Path("crossfade.yaml").write_text(CONFIG)
    return made


# -- doctor --------------------------------------------------------------------------------------------------------


def test_doctor_is_content_where_nothing_is_wrong(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "forward"]) == 0
    assert capsys.readouterr().out == (
        "route forward: messages, old -> new\n"
        "  old (redis, source)\n"
        "    ok       x.version  9.1\n"
        "  new (kafka, target)\n"
        "    ok       x.version  9.1\n"
        "  the route itself\n"
        "    ok       route.loop   by its addresses, no copy comes back to its source\n"
        "    ok       route.lanes  16 source lanes, 16 target lanes, one-to-one\n"
        "  guarantee: exactly once, in order per lane: records and marker are one transaction, so read_committed "
        "readers see each record once\n"
    )
    # The target is judged by how old the records are that will come.
    assert brokers.old.asked == [("source", 10_800.0, None)]
    assert brokers.new.asked == [("target", 10_800.0, 5.0)]


def test_a_target_is_judged_by_where_the_copy_begins(brokers: Brokers) -> None:
    retention = "    retention: 3h\n"
    since = datetime.fromtimestamp(time.time() - 1000, UTC).isoformat()
    brokers.old.oldest_s = 5000.0
    for start in ("latest", f"{{time: '{since}'}}"):
        Path("crossfade.yaml").write_text(CONFIG.replace(retention, f"{retention}    from: {start}\n"))
        assert run(["doctor", "forward"]) == 0
    latest, later = [asked[2] for asked in brokers.new.asked]
    assert latest == 0.0
    assert later == pytest.approx(1000, abs=100)


def test_doctor_names_what_fails_and_the_fix(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    brokers.old.findings = [OK, BAD]
    assert run(["doctor", "forward"]) == 3
    shown = capsys.readouterr().out
    assert "    FAIL     x.eviction  allkeys-lru evicts streams\n" in shown
    assert "fix: CONFIG SET maxmemory-policy noeviction\n" in shown
    assert "guarantee: none as things are: old x.eviction failed\n" in shown


def test_what_could_not_be_asked_is_unknown_and_not_ok(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    brokers.old.findings = [HIDDEN]
    assert run(["doctor", "forward"]) == 0
    shown = capsys.readouterr().out
    assert "    unknown  x.persistence  CONFIG is forbidden\n" in shown
    assert "not proven, because it could not be asked: old x.persistence" in shown


def test_what_no_broker_can_tell_is_said_once_and_takes_nothing_from_the_guarantee(
    brokers: Brokers, capsys: pytest.CaptureFixture[str]
) -> None:
    brokers.old.findings = brokers.new.findings = [OK, Finding("x.clock", Level.BY_HAND, "x tells no time", "use NTP")]
    assert run(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert shown.endswith("\n\nno broker can be asked, see to it yourself:\n  x.clock  x tells no time: use NTP\n")
    assert shown.count("x.clock") == 1
    assert "not proven" not in shown
    assert run(["doctor", "forward", "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)["findings"]
    assert [f["level"] for f in told if f["check"] == "x.clock"] == ["by-hand", "by-hand"]


@pytest.mark.parametrize("error", [Unreachable("no answer from h:1", hint="start it"), AccessRefused("wrong password")])
def test_a_silent_broker_is_a_finding_and_the_other_is_still_asked(
    brokers: Brokers, error: CrossfadeError, capsys: pytest.CaptureFixture[str]
) -> None:
    brokers.old.error = error
    assert run(["doctor", "forward"]) == 5
    shown = capsys.readouterr().out
    assert f"FAIL     connection  {error.message}" in shown
    assert "ok       x.version  9.1" in shown


def test_lanes_that_do_not_fit_fail_in_the_words_of_start(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    brokers.new.lanes = 8
    assert run(["doctor", "forward"]) == 3
    shown = capsys.readouterr().out
    assert "FAIL     route.lanes  route 'forward' maps lanes one to one, but the source has 16 lanes" in shown
    assert "fix: give the target 16 lanes, or set `lanes: by-key` on the route\n" in shown
    assert "guarantee: none as things are: route.lanes failed\n" in shown


def test_more_target_lanes_than_markers_have_room_for_fail(
    brokers: Brokers, capsys: pytest.CaptureFixture[str]
) -> None:
    forward = "source: old, target: new"
    Path("crossfade.yaml").write_text(
        CONFIG.replace(forward, f"{forward}, lanes: by-key").replace(", reverse_of: forward", "")
    )
    brokers.new.lanes = 64
    assert run(["doctor", "forward"]) == 3
    shown = capsys.readouterr().out
    assert "FAIL     route.lanes  route 'forward' maps each source lane to 64 target lanes" in shown
    assert "partitions, or set `lanes: one-to-one` on the route\n" in shown
    brokers.new.lanes = 24
    run(["doctor", "forward"])
    assert "ok       route.lanes  16 source lanes, 24 target lanes, by-key" in capsys.readouterr().out


def test_lanes_that_came_after_the_start_only_wait(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    brokers.new.lanes, brokers.board.started_lanes = 8, 8
    assert run(["doctor", "forward"]) == 0
    assert "WARN     route.lanes  16 source lanes, 8 target lanes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "code"), [(UsageError("a newer release wrote it"), 3), (AccessRefused("no right"), 0)]
)
def test_a_board_that_cannot_be_read_ends_no_examination(
    brokers: Brokers, error: CrossfadeError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    brokers.board.unreadable = error
    assert run(["doctor", "forward"]) == code
    shown = capsys.readouterr().out
    assert "ok       x.version  9.1" in shown
    assert ("FAIL     route.lanes  a newer release wrote it" in shown) == (code == 3)


def test_a_copy_in_a_circle_fails_in_the_words_of_start(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    Path("crossfade.yaml").write_text(CONFIG.replace(", reverse_of: forward", ""))
    assert run(["doctor", "back"]) == 3
    shown = capsys.readouterr().out
    assert "FAIL     route.loop" in shown
    assert "copy in a circle" in shown
    assert "fix: add `reverse_of: back` to route forward" in shown


@pytest.mark.parametrize(
    ("error", "code", "check"),
    [
        (Unreachable("no answer from h:1"), 5, "connection"),
        (UsageError("there is no stream key a:0"), 3, "configuration"),
    ],
)
def test_a_source_whose_lanes_cannot_be_discovered_keeps_nothing_from_being_asked_of_the_target(
    brokers: Brokers, error: CrossfadeError, code: int, check: str, capsys: pytest.CaptureFixture[str]
) -> None:
    brokers.old.closed = error
    assert run(["doctor", "forward", "-o", "json"]) == code
    told = json.loads(capsys.readouterr().out)
    assert [(f["broker"], f["check"], f["level"]) for f in told["findings"]] == [
        ("old", check, "fail"),
        ("new", "x.version", "ok"),
        ("", "route.loop", "ok"),
    ]


def test_doctor_in_json_holds_every_finding(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    brokers.new.findings = [BAD]
    assert run(["doctor", "-o", "json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"version", "findings", "guarantees"}
    assert {(f["route"], f["broker"], f["role"], f["level"]) for f in told["findings"]} == {
        ("forward", "old", "source", "ok"),
        ("forward", "new", "target", "fail"),
        ("forward", "", "route", "ok"),
        ("back", "new", "source", "fail"),
        ("back", "old", "target", "ok"),
        ("back", "", "route", "ok"),
    }
    assert set(told["guarantees"]) == {"forward", "back"}


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert run(["doctor", *arguments, "--print-acls", "-o", "json"]) == 0
    rights: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["rights"]
    return rights


def test_print_acls_has_one_line_for_an_account_however_many_routes_it_serves(
    brokers: Brokers, capsys: pytest.CaptureFixture[str]
) -> None:
    (source, _) = _printed(capsys, "forward")
    old, new = _printed(capsys)
    assert old["uses"] == [{"route": "forward", "role": "source"}, {"route": "back", "role": "target"}]
    (line,) = old["commands"]
    assert line.startswith("ACL SETUSER crossfade on resetkeys resetchannels -@all ~msg:stream:* ~crossfade:*")
    assert {"+xadd", "+xgroup|create", "+xgroup|destroy", "+xdel"} <= set(line.split())
    assert set(source["commands"][0].split()) - set(line.split()) == {"%R~crossfade:*"}
    assert len(new["commands"]) == len(set(new["commands"]))
    assert run(["doctor", "--print-acls"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# old: source of route forward, target of route back\nACL SETUSER ")


def test_print_acls_gives_no_password_and_says_how_to_set_one(
    brokers: Brokers, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = _printed(capsys)
    how = "its password: ACL SETUSER crossfade resetpass '>...'"
    assert (old["notes"], new["notes"]) == ([how], [])
    assert not {word for command in old["commands"] for word in command.split() if word[0] in "><#!" or "pass" in word}
    assert run(["doctor", "--print-acls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:4] == [*old["commands"], f"# {how}", ""]
    assert [line for line in lines if "password" in line] == [f"# {how}"]


def test_print_acls_asks_no_broker_and_names_the_configured_user(
    brokers: Brokers, capsys: pytest.CaptureFixture[str]
) -> None:
    url = 'url: "redis://127.0.0.1:1"'
    text = CONFIG.replace(url, url + ", username: relay").replace("count: 16", "count: discover")
    Path("crossfade.yaml").write_text(text.replace("msg:stream:<lane>", "msg[{<lane>}]"))
    (source, _) = _printed(capsys, "forward")
    assert source["commands"][0].startswith("ACL SETUSER relay on resetkeys ")
    assert source["notes"] == ["its password: ACL SETUSER relay resetpass '>...'"]
    assert " ~msg\\[{*}\\] " in source["commands"][0]
    Path("crossfade.yaml").write_text(CONFIG.replace(url, url + ", username: default"))
    (source, _) = _printed(capsys, "forward")
    assert source["commands"][0].startswith("ACL SETUSER crossfade on ")


def test_an_unknown_route_names_the_nearest(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "forwrad"]) == 2
    assert capsys.readouterr().err == "error: crossfade.yaml has no route 'forwrad'\nhint: did you mean 'forward'?\n"


def test_a_configuration_without_routes_is_told(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    Path("crossfade.yaml").write_text(CONFIG.partition("routes:")[0] + "routes: {}\n")
    assert run(["doctor"]) == 2
    assert "has no routes" in capsys.readouterr().err


def test_the_guarantee_on_redis_says_what_a_failover_does() -> None:
    examined = [Examined("r", "a", "source", "kafka", [OK]), Examined("r", "b", "target", "redis", [OK])]
    assert "one script writes records and marker" in guarantee(examined)
