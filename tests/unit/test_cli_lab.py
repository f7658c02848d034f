"""`crossfade lab`: which lab is meant, what the shell completes, and JSON where it is asked for. No server runs."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crossfade.cli.main import load_command, run
from crossfade.config import load
from crossfade.lab import admin, state, workload
from crossfade.lab.errors import LabUsage
from crossfade.lab.lab import Lab
from crossfade.lab.process import identify
from crossfade.lab.state import LinkAddress, Options, Server, State


def server(name: str, kind: str) -> Server:
    return Server(name=name, kind=kind, argv=[], env={}, port=1, log="", data_dir="")


def make_lab(name: str, brokers: int) -> None:
    kafka = [server(f"kafka-{number}", "kafka") for number in range(1, brokers + 1)]
    made = State(name=name, options=Options(brokers=brokers), servers=[server("redis-0", "redis"), *kafka])
    made.links = [LinkAddress(name=f"to-{each.name}", port=1, target_port=2) for each in made.servers]
    state.lab_dir(name).mkdir(parents=True)
    state.write(state.lab_dir(name), made)


@pytest.fixture(autouse=True)
def _two_labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("CROSSFADE_")]:
        monkeypatch.delenv(name)
    make_lab("default", 1)
    make_lab("mine", 3)


# -- which lab


@pytest.mark.parametrize(
    ("words", "variable", "meant"),
    [
        ("lab topic orders", "", "default"),
        ("lab topic orders", "mine", "mine"),
        ("lab topic default orders", "mine", "default"),
        ("lab workload", "", "default"),
        ("lab workload", "mine", "mine"),
        ("lab workload default", "mine", "default"),
    ],
)
def test_topic_and_workload_mean_the_lab_that_the_shell_was_given(
    words: str, variable: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSFADE_LAB", variable)
    asked: list[str] = []
    monkeypatch.setattr(Lab, "create_topic", lambda lab, topic, partitions: asked.append(lab.folder.name))

    def refused(lab: Lab) -> str:
        asked.append(lab.folder.name)
        raise LabUsage("has no Redis")

    monkeypatch.setattr(Lab, "primary_url", refused)
    assert run(words.split()) == (2 if "workload" in words else 0)
    assert asked == [meant]


def test_a_topic_is_created_in_one_lab(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "topic", "default", "mine", "orders"]) == 2
    assert capsys.readouterr().err == (
        "error: default, mine: a topic is created in one lab\nhint: crossfade lab topic [LAB] TOPIC: one topic a call\n"
    )
    assert run(["lab", "topic"]) == 2


# -- JSON


def test_topic_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Lab, "create_topic", lambda lab, topic, partitions: None)
    assert run(["lab", "topic", "mine", "orders", "--partitions", "3", "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"version": 1, "lab": "mine", "topic": "orders", "partitions": 3}
    assert run(["lab", "topic", "mine", "orders"]) == 0
    assert capsys.readouterr().out == ""


RESULT: dict[str, Any] = {"ok": 100_000, "fail": 0, "unknown": 0, "done": True}


def test_workload_prints_json_with_a_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Lab, "primary_url", lambda lab: "redis://127.0.0.1:1")
    monkeypatch.setattr(workload, "play", lambda argv: (RESULT, 0))
    assert run(["lab", "workload", "mine", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": 1, "lab": "mine", **RESULT}


# -- what the workload writes to


def reshape(name: str, **options: Any) -> None:
    with state.change(state.lab_dir(name)) as found:
        found.options = Options(**options)


def test_a_workload_that_a_signal_ends_prints_what_it_knows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Lab, "primary_url", lambda lab: "redis://127.0.0.1:1")
    monkeypatch.setattr(workload, "play", lambda argv: (RESULT, int(signal.SIGINT)))
    assert run(["lab", "workload"]) == 130
    assert json.loads(capsys.readouterr().out) == RESULT


def test_a_workload_on_a_stopped_lab_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "workload", "mine"]) == 1
    assert capsys.readouterr().err == (
        "error: redis-0 of lab 'mine' does not answer\n"
        "hint: `crossfade lab status mine` shows what runs, `crossfade lab up mine` starts it\n"
    )


@pytest.mark.parametrize(("shape", "told"), [("none", "has no Redis"), ("cluster", "is a Redis Cluster")])
def test_a_workload_needs_one_server_that_takes_every_key(
    shape: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reshape("mine", redis=shape)
    assert run(["lab", "workload", "mine"]) == 2
    assert told in capsys.readouterr().err


def test_a_workload_goes_to_the_primary_that_the_sentinels_name(monkeypatch: pytest.MonkeyPatch) -> None:
    reshape("mine", redis="sentinel")
    with state.change(state.lab_dir("mine")) as found:
        names = [*(f"redis-{index}" for index in range(3)), "sentinel-0"]
        found.servers = [server(name, name.partition("-")[0]) for name in names]
        found.links = [LinkAddress(name=name, port=8000 + at, target_port=7000 + at) for at, name in enumerate(names)]
        found.ports = {name: 7000 + at for at, name in enumerate(names)}
        found.ports |= {f"proxy.redis-{index}": 8000 + index for index in range(3)}
    answering: list[str] = []

    def answers(lab: Lab, name: str) -> bool:
        answering.append(name)
        return True

    monkeypatch.setattr(Lab, "server_answers", answers)
    monkeypatch.setattr(admin, "primary_port", lambda urls, service: 8002)
    assert Lab.load("mine").primary_url() == "redis://127.0.0.1:8002/0"
    assert answering == ["redis-2"]
    monkeypatch.setattr(admin, "primary_port", lambda urls, service: 0)
    assert Lab.load("mine").primary_url() == "redis://127.0.0.1:8000/0"


def test_a_history_that_is_none_is_refused_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Lab, "primary_url", lambda lab: "redis://127.0.0.1:1")
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear reader,\nthis is no history.\n")
    assert run(["lab", "workload", "--history", str(letter)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {letter} is no history of a workload\nhint: ")
    assert letter.read_text() == "Dear reader,\nthis is no history.\n"
    for place in (letter / "below", tmp_path):
        assert run(["lab", "workload", "--history", str(place)]) == 2
        assert " the history " in capsys.readouterr().err


def test_a_history_that_cannot_be_looked_at_is_the_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Lab, "primary_url", lambda lab: "redis://127.0.0.1:1")
    long = tmp_path / ("h" * 300)
    assert run(["lab", "workload", "--history", str(long)]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: cannot read the history {long}: File name too long\nhint: ")
    assert told.count("\n") == 2

    shut = tmp_path / "shut" / "h"  # in a folder without the right to search it; root may search every one

    def without_the_right(method: Any) -> Any:
        def asks(path: Path, **options: Any) -> Any:
            if path == shut:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return method(path, **options)

        return asks

    for name in ("stat", "read_bytes"):
        monkeypatch.setattr(Path, name, without_the_right(getattr(Path, name)))
    assert run(["lab", "workload", "--history", str(shut)]) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot read the history {shut}: Permission denied\nhint: ")


def test_a_workload_has_no_more_lanes_than_a_history_can_tell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Lab, "primary_url", lambda lab: "redis://127.0.0.1:1")
    monkeypatch.setattr(workload, "play", lambda argv: (RESULT, 0))
    assert run(["lab", "workload", "--lanes", "65536"]) == 0
    assert run(["lab", "workload", "--lanes", "65537"]) == 2
    assert capsys.readouterr().err.startswith("error: Invalid value for '--lanes': ")


@pytest.mark.parametrize("lanes", ["0", "65537", "many"])
def test_the_workload_itself_refuses_a_number_of_lanes_that_no_history_can_tell(
    lanes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        workload.play(["--redis", "redis://127.0.0.1:1", "--history", str(tmp_path / "h"), "--lanes", lanes])
    assert ended.value.code == 2
    assert f"argument --lanes: {lanes!r} is not a number from 1 to 65536" in capsys.readouterr().err


def test_init_takes_the_address_of_a_secured_lab(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my ca.pem").write_text("-----BEGIN CERTIFICATE-----")
    assert run(["init", "--source", f"rediss://app:pw?1@h:1/0?ssl_ca_certs={tmp_path}/my%20ca.pem"]) == 0
    broker: Any = load(None, {}, {}).brokers["old"]
    assert (broker.url, broker.tls.ca, broker.password.get()) == ("rediss://h:1/0", f"{tmp_path}/my ca.pem", "pw?1")
    (tmp_path / "below").mkdir()
    # a name counts from here, not from the folder of the file that is written
    assert run(["-c", "below/x.yaml", "init", "--source", "rediss://h:1/0?ssl_ca_certs=my%20ca.pem"]) == 0
    broker = load(tmp_path / "below" / "x.yaml", {}, {}).brokers["old"]
    assert broker.tls.ca == f"{tmp_path}/my ca.pem"
    capsys.readouterr()
    assert run(["init", "--force", "--source", "redis://app:hunter2@h:1/0?db=3"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: the address of 'h:1/0' has options that are not taken: db\n")
    assert "hunter2" not in told


# -- status


@pytest.mark.parametrize("gone", ["", "proxy", "watchdog"])
def test_a_lab_without_its_helpers_does_not_run(
    gone: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    me = identify(os.getpid())
    assert me is not None
    monkeypatch.setattr("crossfade.lab.lab.ask", lambda path, request: {"links": []})
    with state.change(state.lab_dir("mine")) as found:
        for each in found.servers:
            each.pid, each.started_ticks = me.pid, me.started_ticks
        found.helpers = dict.fromkeys(("proxy", "watchdog"), (me.pid, me.started_ticks))
        if gone:
            found.helpers[gone] = (me.pid, me.started_ticks - 1)
    assert run(["lab", "status", "mine"]) == (1 if gone else 0)
    assert (f"the {gone} is gone" in capsys.readouterr().err) == bool(gone)


# -- completion


def completed(words: str, **environ: str) -> list[str]:
    settings = {"_CROSSFADE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = "from crossfade.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | settings | environ, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("lab topic m", ["mine"]),
        ("lab workload ", ["default", "mine"]),
        ("lab up --redis s", ["standalone", "sentinel"]),
        ("lab up --controllers ", ["combined", "separate"]),
        ("lab up --redis-flavour redis", ["redis7", "redis8"]),
        ("lab fault kill ", ["redis-0", "kafka-1"]),
        ("lab fault kill --lab mine kafka", ["kafka-1", "kafka-2", "kafka-3"]),
        ("lab fault cut-aof --lab mine ", ["redis-0"]),
        ("lab fault move-leader --lab mine t --to ", ["kafka-1", "kafka-2", "kafka-3"]),
        ("lab fault delay to-k", ["to-kafka-1"]),
        ("lab fault kill --lab nowhere ", []),
    ],
)
def test_completion_offers_what_there_is(words: str, offered: list[str]) -> None:
    assert completed(f"crossfade {words}") == offered


def test_completion_goes_by_the_lab_of_the_shell() -> None:
    assert completed("crossfade lab fault freeze kafka", CROSSFADE_LAB="mine") == ["kafka-1", "kafka-2", "kafka-3"]


def test_every_fault_completes_its_server_its_link_or_its_topic() -> None:
    wanted = {"server", "link", "topic"}
    for name, command in load_command("lab").commands["fault"].commands.items():
        for parameter in command.params:
            if parameter.name in wanted:
                assert parameter._custom_shell_complete is not None, f"{name}: {parameter.name}"
