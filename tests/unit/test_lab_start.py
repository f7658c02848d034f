"""How a lab starts, without a server: it takes what it needs only, and a tool that hangs is named."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from crossfade.lab import kafka, packages, warm
from crossfade.lab.errors import StartFailed
from crossfade.lab.state import Options, State


def hangs(command: list[str], *, timeout: float, **_: Any) -> None:
    raise subprocess.TimeoutExpired(command, timeout)


@pytest.fixture
def _slow_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "java", lambda: Path("java"))
    monkeypatch.setattr(packages, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(packages, "kafka_classpath", lambda version, say: "classes")
    monkeypatch.setattr(subprocess, "run", hangs)


def test_a_lab_without_brokers_takes_nothing_of_kafka(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def taken(*_: Any, **__: Any) -> None:
        raise AssertionError("Kafka is fetched")

    monkeypatch.setattr(packages, "kafka_classpath", taken)
    assert kafka.prepare(State(name="a", options=Options(brokers=0)), tmp_path, None, print) == []


@pytest.mark.usefixtures("_slow_java")
def test_a_trial_start_that_hangs_leaves_the_lab_without_a_cache(tmp_path: Path) -> None:
    said: list[str] = []
    assert warm.flags("4.0.0", "classes", tmp_path, said.append) == []
    assert said[-1] == "no start-up cache: the storage tool did not end in 60 s"


@pytest.mark.usefixtures("_slow_java")
def test_a_storage_tool_that_hangs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "flags", lambda *_: [])
    state = State(name="a", options=Options(brokers=1, kafka_version="4.0.0"))
    state.ports = {name: 20_000 + at for at, name in enumerate(kafka.port_names(state.options))}
    with pytest.raises(StartFailed, match="storage tool did not end in 60 s"):
        kafka.prepare(state, tmp_path, None, print)
