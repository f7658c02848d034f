"""`uninstall` on brokers that answer what a test tells them to."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from test_cli_brokers import CONFIG, Brokers, FakeBoard, FakeBroker, fake_brokers

from crossfade.cli import relay_alive
from crossfade.cli.main import run
from crossfade.cli.relay_alive import running_instances
from crossfade.errors import AccessRefused, Unreachable, UsageError
from crossfade.relay.documents import Report


@pytest.fixture(name="brokers")
def faked_brokers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Brokers:
    return fake_brokers(tmp_path, monkeypatch)


def test_uninstall_lists_and_removes_nothing(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    brokers.new.things = {"idforward": ["topic crossfade.idforward.lanes"]}
    assert run(["uninstall", "forward"]) == 0
    shown = capsys.readouterr()
    assert "topic crossfade.idforward.lanes" in shown.out
    assert "would be removed" in shown.out
    assert "nothing was removed" in shown.err
    assert brokers.new.erased == []


def test_uninstall_removes_exactly_what_it_lists(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    brokers.old.things = {"idforward": ["a"], "idback": ["b"]}
    brokers.new.things = {"idforward": ["c"]}
    assert run(["uninstall", "forward", "--yes", "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rows"] == [
        {"route": "forward", "broker": "old", "name": "a", "state": "removed"},
        {"route": "forward", "broker": "new", "name": "c", "state": "removed"},
    ]
    assert (brokers.old.erased, brokers.new.erased) == (["a"], ["c"])
    assert brokers.old.things["idback"] == ["b"]


def test_what_an_earlier_id_left_is_listed_and_stays(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    brokers.old.things = {"idforward": ["a"], "idearlier": ["b"]}
    brokers.new.things = {"idearlier": ["c", "shared d e"]}
    assert run(["uninstall", "--yes", "-o", "json"]) == 0
    captured = capsys.readouterr()
    other = {"route": "idearlier", "state": "of a route that is not in this file"}
    assert json.loads(captured.out)["rows"] == [
        {"route": "forward", "broker": "old", "name": "a", "state": "removed"},
        {"broker": "old", "name": "b"} | other,
        {"broker": "new", "name": "c"} | other,
    ]
    assert "--id ID removes it" in captured.err
    assert (brokers.old.erased, brokers.new.erased) == (["a"], [])


def test_what_an_earlier_id_left_goes_by_that_id(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    brokers.old.things = {"idforward": ["a"], "idearlier": ["b"]}
    brokers.new.things = {"idearlier": ["c", "shared d e"]}
    assert run(["uninstall", "--id", "idearlier", "-o", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    row = {"route": "idearlier", "state": "would be removed"}
    assert rows == [row | {"broker": "old", "name": "b"}, row | {"broker": "new", "name": "c"}]
    assert run(["uninstall", "--id", "idearlier", "--yes"]) == 0
    assert (brokers.old.erased, brokers.new.erased) == (["b"], ["c"])  # what routes share is not one's own
    assert run(["uninstall", "--id", "idnobody"]) == 0
    assert "nothing of a route with id idnobody is left" in capsys.readouterr().err


def test_a_route_of_the_file_is_not_removed_by_its_id(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    brokers.old.things = {"idforward": ["a"]}
    assert run(["uninstall", "--id", "idforward", "--yes"]) == 2
    assert "hint: crossfade uninstall forward" in capsys.readouterr().err
    assert brokers.old.erased == []


@pytest.mark.parametrize("end", ["idearlier at forward", "idearlier at forward, back"])
def test_an_earlier_id_is_kept_under_a_running_relay_wherever_it_reports(brokers: Brokers, end: str) -> None:
    brokers.old.things = {"idearlier": ["b"]}
    brokers.board.running = [Report("relay-1", time.time(), state="running")]
    brokers.board.running_route = end
    assert run(["uninstall", "forward", "--id", "idearlier", "--yes"]) == 4
    assert brokers.old.erased == []


def test_an_earlier_id_whose_relays_report_elsewhere_goes_only_where_that_is_said(
    brokers: Brokers, capsys: pytest.CaptureFixture[str]
) -> None:
    group = "group msg:stream:0 crossfade.idearlier.abc"
    brokers.old.things = {"idearlier": [group]}
    command = ["uninstall", "--id", "idearlier", "--yes"]
    assert run(command) == 4
    told = capsys.readouterr().err
    assert "a relay of another file may be running on it" in told
    assert "add --unseen" in told
    assert brokers.old.erased == []
    brokers.new.things = {"idearlier": ["document status/idearlier/relay-1"]}
    assert run(command) == 0  # its relays report here: none runs
    assert brokers.old.erased == [group]
    brokers.old.things = {"idearlier": [group]}
    assert run([*command, "--unseen"]) == 0
    assert brokers.old.erased == [group, group]


GROUP = "group msg:stream:0 crossfade.idforward.abc"
DOCUMENT = "document started/idforward"


def test_a_route_whose_target_in_the_file_is_another_goes_only_where_that_is_said(
    brokers: Brokers, capsys: pytest.CaptureFixture[str]
) -> None:
    brokers.old.things = {"idforward": [GROUP]}
    assert run(["uninstall", "forward"]) == 0  # listing is always allowed
    capsys.readouterr()
    assert run(["uninstall", "forward", "--yes"]) == 4
    told = capsys.readouterr().err
    assert (
        f"route idforward has {GROUP} on old, but reports on none of these brokers: new may be another target" in told
    )
    assert "add --unseen" in told
    assert brokers.old.erased == []
    assert run(["uninstall", "forward", "--yes", "--unseen"]) == 0
    assert brokers.old.erased == [GROUP]


OF_RELAYS = [
    DOCUMENT,
    "document status/idforward/relay-1",
    "document shards/idforward",
    "document target/messages.v1",
    "key crossfade:lane:{msg:stream:0}",
]


@pytest.mark.parametrize(("left", "told"), [*((name, 0) for name in OF_RELAYS), ("document desired/idforward", 4)])
@pytest.mark.parametrize("by_id", [False, True])
def test_only_what_a_start_or_a_relay_leaves_tells_that_relays_report_there(
    brokers: Brokers, left: str, told: int, by_id: bool
) -> None:
    """A pause goes to whatever target the file names; a refused start has claimed lanes, and has no document."""
    route = "idearlier" if by_id else "idforward"
    brokers.old.things = {route: [GROUP.replace("idforward", route)]}
    brokers.new.things = {route: [left.replace("idforward", route)]}
    assert run(["uninstall", "forward", "--yes", *["--id", route] * by_id]) == told
    assert bool(brokers.old.erased) is bool(brokers.new.erased) is (told == 0)


@pytest.mark.parametrize("left", OF_RELAYS)
def test_what_relays_left_beside_the_source_tells_nothing_of_the_target_in_the_file(
    brokers: Brokers, left: str
) -> None:
    """The target that they write to may be on the source's own server: nobody has asked the board there."""
    brokers.old.things = {"idforward": [GROUP, left]}
    assert run(["uninstall", "forward", "--yes"]) == 4
    assert brokers.old.erased == []


def test_one_route_that_would_not_be_seen_keeps_the_others_from_being_half_removed(brokers: Brokers) -> None:
    brokers.old.things = {"idforward": ["a"]}
    brokers.new.things = {"idforward": [DOCUMENT], "idback": ["group msg:stream:0 crossfade.idback.abc"]}
    assert run(["uninstall", "--yes"]) == 4
    assert brokers.old.erased == brokers.new.erased == []


def test_a_removal_that_was_cut_off_is_finished_by_a_second_run(
    brokers: Brokers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    brokers.old.things = {"idforward": [GROUP, "group msg:stream:1 crossfade.idforward.abc"]}
    brokers.new.things = {"idforward": [DOCUMENT, "group crossfade.idforward"]}
    order: list[str] = []
    real = FakeBroker.erase

    async def one_of_them(self: FakeBroker, route: str, names: list[str]) -> None:
        order.append(names[0])
        await real(self, route, names[:1])
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeBroker, "erase", one_of_them)
    while any(brokers.old.things.values()) or any(brokers.new.things.values()):
        assert run(["uninstall", "forward", "--yes"]) == 130
    assert order[-1] == "group crossfade.idforward"  # the relays' own group is no sign of others
    assert run(["uninstall", "forward", "--yes"]) == 0
    assert "nothing of Crossfade is left" in capsys.readouterr().err


def test_a_target_that_does_not_say_whose_it_is_keeps_the_source(brokers: Brokers) -> None:
    brokers.old.things = {"idforward": [GROUP]}
    brokers.new.silent = AccessRefused("no right to list groups")
    assert run(["uninstall", "forward", "--yes"]) == 5
    assert brokers.old.erased == []


def test_what_two_names_of_one_service_show_is_removed_once_and_by_each_where_there_are_two(brokers: Brokers) -> None:
    brokers.old.things, brokers.new.things = {"idforward": ["a", "b"]}, {"idforward": ["b", "c"]}
    assert run(["uninstall", "forward", "--yes"]) == 0
    assert (brokers.old.erased, brokers.new.erased) == (["a", "b"], ["b", "c"])


@pytest.mark.parametrize("yes", [True, False])
def test_what_was_removed_is_told_where_others_cannot_be_looked_for(
    brokers: Brokers, monkeypatch: pytest.MonkeyPatch, yes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    async def refused(self: FakeBroker) -> set[str]:
        raise AccessRefused("no right to list groups")

    monkeypatch.setattr(FakeBroker, "routes", refused)
    brokers.old.things = {"idforward": ["a"]}
    assert run(["uninstall", "forward", "-o", "json", *["--yes"] * yes]) == 0
    shown = capsys.readouterr()
    state = "removed" if yes else "would be removed"
    assert [(row["name"], row["state"]) for row in json.loads(shown.out)["rows"]] == [("a", state)]
    assert "could not be looked for: no right to list groups\n" in shown.err


def test_uninstall_begins_with_the_target_whose_account_may_remove_more(brokers: Brokers) -> None:
    shared = {"idforward": ["a"]}
    brokers.old.things = brokers.new.things = shared
    assert run(["uninstall", "forward", "--yes"]) == 0
    assert (brokers.old.erased, brokers.new.erased) == ([], ["a"])


def test_uninstall_says_what_is_still_there(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    brokers.old.things = {"idforward": ["a", "b"]}
    brokers.old.stuck = {"b"}
    assert run(["uninstall", "forward", "--yes"]) == 1
    shown = capsys.readouterr()
    assert "still there" in shown.out
    assert shown.err.startswith("error: 1 of 2 could not be removed")


def test_uninstall_is_refused_under_a_running_relay(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    brokers.old.things = {"idforward": ["a"]}
    brokers.board.running = [Report("relay-1", time.time(), state="running")]
    assert run(["uninstall", "forward", "--yes"]) == 4
    assert capsys.readouterr().err.startswith("error: route 'forward' has running relays: relay-1\n")
    assert brokers.old.erased == []
    # Listing is always allowed.
    assert run(["uninstall", "forward"]) == 0


@pytest.mark.parametrize("state", ["running", "stopped"])
@pytest.mark.parametrize("ahead_s", [-3600.0, 3600.0])
def test_a_heartbeat_that_goes_on_is_alive_whatever_the_clocks_say(
    brokers: Brokers, ahead_s: float, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_alive, "_LIFE_PAUSE_S", 0.0)
    brokers.old.things = {"idforward": ["a"]}
    brokers.board.running = [Report("relay-1", time.time(), state=state)]
    brokers.board.ahead_s, brokers.board.beat_s = ahead_s, 1.0
    assert run(["uninstall", "forward", "--yes"]) == (4 if state == "running" else 0)
    assert brokers.old.erased == ([] if state == "running" else ["a"])


@pytest.mark.parametrize("ahead_s", [-3600.0, 3600.0])
def test_a_heartbeat_that_stands_still_is_gone_whatever_the_clocks_say(
    brokers: Brokers, ahead_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_alive, "_LIFE_PAUSE_S", 0.0)
    brokers.old.things = {"idforward": ["a"]}
    brokers.board.running = [Report("relay-1", time.time(), state="running")]
    brokers.board.ahead_s = ahead_s
    assert run(["uninstall", "forward", "--yes"]) == 0
    assert brokers.old.erased == ["a"]


def test_one_running_route_keeps_the_others_from_being_half_removed(brokers: Brokers) -> None:
    brokers.old.things = {"idforward": ["a"], "idback": ["b"]}
    brokers.board.running = [Report("relay-1", time.time(), state="running")]
    brokers.board.running_route = "back"
    assert run(["uninstall", "--yes"]) == 4
    assert brokers.old.erased == []


def test_uninstall_with_nothing_left_says_so(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["uninstall", "--yes"]) == 0
    assert "nothing of Crossfade is left" in capsys.readouterr().err


def test_what_several_routes_share_goes_with_the_last_of_them(
    brokers: Brokers, capsys: pytest.CaptureFixture[str]
) -> None:
    brokers.new.things = {name: ["shared messages crossfade.1"] for name in ("idforward", "idback")}
    brokers.board.started_lanes, brokers.board.running_route = 1, "back"
    assert run(["uninstall", "forward", "--yes"]) == 0
    assert "nothing of Crossfade is left" in capsys.readouterr().err
    assert brokers.new.erased == []
    brokers.board.running_route = "forward"  # the other one was uninstalled, or never began
    assert run(["uninstall", "forward", "--yes"]) == 0
    assert brokers.new.erased == ["shared messages crossfade.1"]


def test_what_a_route_shares_by_another_name_of_the_broker_stays(brokers: Brokers) -> None:
    text = CONFIG.replace("streams:", '  again: {kind: redis, url: "redis://127.0.0.1:1"}\nstreams:', 1)
    text = text.replace("routes:", "  one:\n    again: {keys: ['msg:stream:3']}\n    new: {topic: one.v1}\nroutes:")
    Path("crossfade.yaml").write_text(text + "  other: {id: idother, stream: one, source: again, target: new}\n")
    brokers.old.things = {"idforward": ["shared msg:stream:3 crossfade.1"]}
    brokers.board.started_lanes, brokers.board.running_route = 1, "other"
    assert run(["uninstall", "forward", "--yes"]) == 0
    brokers.board.running_route, brokers.board.unreadable = "", UsageError("a newer release wrote it")
    assert run(["uninstall", "forward", "--yes"]) == 0
    assert brokers.old.erased == []


def test_what_all_routes_share_goes_with_all_of_them(brokers: Brokers) -> None:
    brokers.new.things = {name: ["shared messages crossfade.1"] for name in ("idforward", "idback")}
    brokers.board.started_lanes = 1
    assert run(["uninstall", "--yes"]) == 0
    assert "shared messages crossfade.1" in brokers.new.erased


@pytest.mark.parametrize("wrong", ["", "Mine", "a/b", "crossfade.mine", "x" * 64])
def test_what_is_no_id_removes_nothing(brokers: Brokers, wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    brokers.old.things = {"idforward": ["a"], wrong: ["b"]}
    assert run(["uninstall", "--id", wrong, "--yes"]) == 2
    assert f"--id {wrong!r} is no id of a route" in capsys.readouterr().err
    assert run(["uninstall", "--id", wrong]) == 2
    assert brokers.old.erased == []


# -- brokers that give no answer -----------------------------------------------------------------------------------

GONE = Unreachable("no answer from h:1", hint="start it")


def _rows(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, str, str]]:
    shown = capsys.readouterr()
    assert "no answer from h:1" in shown.err
    return [(row["broker"], row["name"], row["state"]) for row in json.loads(shown.out)["rows"]]


@pytest.mark.parametrize("where", ["silent", "closed"])
def test_the_target_is_cleaned_though_the_source_is_gone(
    brokers: Brokers, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    brokers.new.things = {"idforward": ["a"]}
    setattr(brokers.old, where, GONE)
    silent = ("old", "", "could not be asked: no answer from h:1")
    assert run(["uninstall", "forward", "-o", "json"]) == 5
    assert _rows(capsys) == [("new", "a", "would be removed"), silent]
    assert run(["uninstall", "forward", "--yes", "-o", "json"]) == 5
    assert _rows(capsys) == [("new", "a", "removed"), silent]
    assert brokers.new.erased == ["a"]
    assert run(["uninstall", "forward", "--yes", "-o", "json"]) == 5, "nothing is left where it could be asked"
    assert _rows(capsys) == [silent]


def test_the_source_is_listed_though_the_target_is_gone(brokers: Brokers, capsys: pytest.CaptureFixture[str]) -> None:
    brokers.old.things = {"idforward": ["a"]}
    brokers.new.silent = AccessRefused("no answer from h:1")
    assert run(["uninstall", "-o", "json"]) == 5
    silent = ("new", "", "could not be asked: no answer from h:1")
    assert _rows(capsys) == [("old", "a", "would be removed"), silent, silent]  # once for each route


def test_what_is_of_other_routes_is_listed_though_a_broker_is_gone(
    brokers: Brokers, capsys: pytest.CaptureFixture[str]
) -> None:
    brokers.new.things = {"idearlier": ["b"]}
    brokers.old.silent = GONE
    brokers.old.things = {"idelse": ["c"]}
    assert run(["uninstall", "forward", "-o", "json"]) == 5
    assert ("new", "b", "of a route that is not in this file") in _rows(capsys)


def test_a_broker_that_refuses_a_removal_keeps_nothing_on_the_other_one(
    brokers: Brokers, capsys: pytest.CaptureFixture[str]
) -> None:
    brokers.old.things, brokers.new.things = {"idforward": ["a"]}, {"idforward": ["b", "c"]}
    brokers.new.refusal = AccessRefused("no answer from h:1")
    assert run(["uninstall", "forward", "--yes", "-o", "json"]) == 5
    assert _rows(capsys) == [
        ("old", "a", "removed"),
        ("new", "b", "removed"),
        ("new", "c", "still there"),
        ("new", "", "not everything could be removed: no answer from h:1"),
    ]


def test_a_broker_that_is_gone_after_the_removal_leaves_it_in_doubt(
    brokers: Brokers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def erase(self: FakeBroker, route: str, names: list[str]) -> None:
        self.silent = GONE

    monkeypatch.setattr(FakeBroker, "erase", erase)
    brokers.old.things = {"idforward": ["a"]}
    assert run(["uninstall", "forward", "--yes", "-o", "json"]) == 5
    assert _rows(capsys) == [
        ("old", "a", "may be still there"),
        ("old", "", "could not be asked: no answer from h:1"),
    ]


def test_an_id_whose_relays_may_report_on_a_broker_that_is_gone_goes_only_where_that_is_said(
    brokers: Brokers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = FakeBoard.reports

    async def reports(self: FakeBoard) -> list[Report]:
        if self.route.endswith("back"):
            raise Unreachable("no answer from h:1", hint="start it")
        return await answer(self)

    monkeypatch.setattr(FakeBoard, "reports", reports)
    brokers.old.silent = GONE
    brokers.new.things = {"idearlier": ["a"]}
    command = ["uninstall", "forward", "--id", "idearlier", "--yes", "-o", "json"]
    assert run(command) == 5
    assert "add --unseen" in capsys.readouterr().err
    assert brokers.new.erased == []
    assert run([*command, "--unseen"]) == 5
    assert _rows(capsys) == [("new", "a", "removed"), ("old", "", "could not be asked: no answer from h:1")]


# -- streams whose keys are discovered -----------------------------------------------------------------------------


def test_lanes_that_were_discovered_are_those_of_the_board_before_it_goes(brokers: Brokers) -> None:
    Path("crossfade.yaml").write_text(CONFIG.replace("count: 16", "count: discover"))
    brokers.old.things, brokers.new.things = {"idforward": ["a"]}, {"idforward": ["b"]}
    brokers.board.started_lanes = 3
    assert run(["uninstall", "forward", "--yes"]) == 0
    # looked at for relays, looked at, removed, looked at again; and for others
    assert brokers.old.known_lanes == brokers.new.known_lanes == [3, 3, 3, 3, 0]
    brokers.board.unreadable = Unreachable("no answer from h:1")
    assert run(["uninstall", "forward"]) == 0
    assert brokers.old.known_lanes[5:] == [0, 0]


def test_who_counts_as_running() -> None:
    reports = [
        Report("fresh", 95.0, state="running"),
        Report("old", 80.0, state="running"),
        Report("gone", 99.0, state="stopped"),
    ]
    seen = {"fresh": 95.0, "old": 80.0, "gone": 90.0}
    assert running_instances(reports, seen, 100.0) == ["fresh"]
    assert running_instances(reports, seen | {"old": 79.0}, 100.0) == ["fresh", "old"]
    assert running_instances(reports, {"gone": 90.0}, 100.0) == ["fresh", "old"], "who was not there came"
