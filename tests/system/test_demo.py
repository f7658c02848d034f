"""The demo as people run it: it passes on an honest copy, fails on each kind of damage and names it, leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crossfade.lab.process import identify, tagged

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("lost", "duplicated", "reordered", "altered", "invented")
#: what each sabotage has to be called by every judge
CALLED = {"drop": "lost", "dup": "duplicated", "swap": "reordered", "alter": "altered", "invent": "invented"}
#: a machine that is busy with something else takes five times as long as an idle one
LIMIT_S = 600

pytestmark = [pytest.mark.lab, pytest.mark.timeout(LIMIT_S + 30)]


class Demo:
    """One `python -m demo --quick` with its own folder and labs."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.report = folder / "demo.json"
        self.words = folder / "words.txt"
        self.labs = folder / "labs"
        argv = [sys.executable, "-m", "demo", "--quick", "--seed", "7", "--folder", str(folder / "demo")]
        with self.words.open("wb") as out:
            self.process = subprocess.Popen(
                [*argv, "--report", str(self.report), *arguments],
                cwd=ROOT,
                stdout=out,
                stderr=out,
                env={**os.environ, "CROSSFADE_LAB_ROOT": str(self.labs)},
            )

    @property
    def lab(self) -> Path:
        return self.labs / f"demo-{self.process.pid}"

    def end(self) -> tuple[int, dict[str, Any]]:
        """Exit code and report; also checks that no process and no data is left."""
        code = self.process.wait(LIMIT_S)
        self.check_nothing_left(wait_s=0)
        return code, json.loads(self.report.read_text()) if self.report.exists() else {}

    def wait_for(self, words: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while words not in self.words.read_text():
            assert self.process.poll() is None, self.words.read_text()
            assert time.monotonic() < deadline, self.words.read_text()
            time.sleep(0.05)

    def check_nothing_left(self, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while tagged(self.lab) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert tagged(self.lab) == []
        assert not (self.lab / "data").exists()


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Any]:
    started: list[Demo] = []

    def start(*arguments: str) -> Demo:
        started.append(Demo(tmp_path, *arguments))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


def test_quick_demo_proves_the_copy(demo: Any) -> None:
    run = demo()
    code, document = run.end()
    assert code == 0, run.words.read_text()
    assert document["ok"]
    assert document["problems"] == []
    assert list(document["directions"]) == ["redis-to-kafka"]
    half = document["directions"]["redis-to-kafka"]
    assert half["records"] >= 60_000
    assert half["records_per_s"] > 1_000
    assert {kind: half[kind] for kind in KINDS} == dict.fromkeys(KINDS, 0)
    assert {verdict["records"] for verdict in half["judges"].values()} == {half["records"]}
    assert set(half["judges"]) == {"verify", "oracle", "history"}
    assert set(half["latency_ms"]) >= {"p50", "p95", "p99", "max"}
    assert set(half["lag_records"]) >= {"p50", "p95", "p99", "max"}
    assert half["lag_records"]["max"] == half["lag_records_max"] > 0
    assert len(half["faults"]) == 2
    assert all(fault["fired"] and fault["recovered_s"] > 0 for fault in half["faults"])
    kill = next(fault for fault in half["faults"] if fault["name"].startswith("kill -9 relay"))
    assert kill["observed"]["records_above_last_stable_offset"] > 0
    assert kill["observed"]["old_pid"] != kill["observed"]["new_pid"]


#: every kind of damage has its test of the judges; one of them runs the demo every day
@pytest.mark.parametrize(
    "kind", [kind if kind == "drop" else pytest.param(kind, marks=pytest.mark.long) for kind in CALLED]
)
def test_sabotage_is_found_and_named(demo: Any, kind: str) -> None:
    run = demo("--sabotage", kind)
    code, document = run.end()
    words = run.words.read_text()
    assert code == 1, words
    assert document["directions"], words  # it was judged, not broken off
    assert not document["ok"]
    half = document["directions"]["redis-to-kafka"]
    assert half[CALLED[kind]] >= 1
    damaged = document["sabotage"]["id"]
    assert damaged is not None, "the saboteur never got to work"
    for judge, verdict in half["judges"].items():
        assert not verdict["error"], f"{judge}: {verdict['error']}"
        assert verdict[CALLED[kind]] >= 1, f"{judge} calls it something else: {verdict}"
        assert verdict["named"], f"{judge} names no record"
        assert all(line in words.replace("\n", "") or line[:40] in words for line in verdict["named"])
        if kind in ("drop", "alter"):  # what is damaged is the chosen record and no other
            names = {f"id {int(damaged)}", f"source {document['sabotage']['position']}"}
            assert any(names & set(line.partition(": ")[2].split(", ")) for line in verdict["named"]), verdict["named"]
    # The faults are not what made it fail.
    assert all(fault["fired"] and fault["recovered_s"] > 0 for fault in half["faults"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_demo_leaves_nothing(demo: Any, number: signal.Signals) -> None:
    run = demo()
    run.wait_for("workload: unique keyed records")
    children = tagged(run.lab)
    assert len(children) >= 8  # four servers, proxy, watchdog, relay, follower, workload
    run.process.send_signal(number)
    code = run.process.wait(LIMIT_S)
    assert code == (130 if number == signal.SIGINT else -signal.SIGKILL)
    run.check_nothing_left(wait_s=30)
    assert [process for process in children if identify(process.pid) == process] == []
