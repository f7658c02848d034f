"""`crossfade lab`: which lab is meant, what the shell completes, and JSON where it is asked for. No server runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crossfade.cli import lab_streams
from crossfade.cli.main import load_command, run
from crossfade.lab import state
from crossfade.lab.lab import Lab
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
    monkeypatch.setattr(Lab, "env", lambda lab: asked.append(lab.folder.name) or {})
    assert run(words.split()) == (2 if "workload" in words else 0)  # these labs have no address of a Redis
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


def test_workload_prints_json_with_a_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = {"ok": 100_000, "fail": 0, "unknown": 0, "done": True}

    def played(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert options["stdout"] == subprocess.PIPE
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps(result) + "\n")

    monkeypatch.setattr(Lab, "env", lambda lab: {"REDIS_URL": "redis://127.0.0.1:1"})
    monkeypatch.setattr(lab_streams.subprocess, "run", played)
    assert run(["lab", "workload", "mine", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"version": 1, "lab": "mine", **result}


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
