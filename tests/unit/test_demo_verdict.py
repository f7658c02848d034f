"""The demo's verdict: only a run without any flaw is `ok`, and the report on disk is always of the last run."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from demo import __main__ as command
from demo.children import Trouble
from demo.faults import Fault
from demo.judges import KINDS, Verdict
from demo.load import Load
from demo.report import Direction
from demo.run import Plan, Run
from demo.timeline import Timeline
from rich.console import Console

from crossfade.errors import CrossfadeError

RECORDS = 1000


def clean_half(folder: Path) -> Direction:
    """One half in which everything was as it must be."""
    timeline = Timeline(folder / "seen.jsonl", 1)
    timeline.path.write_text(json.dumps({"at": 100.0, "lanes": {"0": [RECORDS, 99_990]}, "ms": [10.0]}) + "\n")
    timeline.refresh()
    half = Direction("redis-to-kafka", "forward", timeline, records_min=RECORDS, until_s=200.0)
    half.faults = [Fault("kill -9 relay", 50.0, True, {}, 1.5), Fault("cut the link", 60.0, True, {}, 3.0)]
    half.verdicts = [Verdict(judge, True, RECORDS) for judge in ("verify", "oracle", "history")]
    return half


def conclude(folder: Path, half: Direction, left: list[int]) -> dict[str, Any]:
    return Run(Plan(1), folder, Console(quiet=True))._conclude([half], left)


def test_a_clean_run_is_ok(tmp_path: Path) -> None:
    document = conclude(tmp_path, clean_half(tmp_path), [])
    assert document["ok"] is True
    assert document["problems"] == []
    assert document["directions"]["redis-to-kafka"]["records"] == RECORDS


def fault_not_fired(half: Direction) -> None:
    half.faults[0].fired = False


def fault_not_recovered(half: Direction) -> None:
    half.faults[1].recovered_s = None


def too_few_records(half: Direction) -> None:
    half.records_min = RECORDS + 1


def judges_disagree(half: Direction) -> None:
    half.verdicts[1].records -= 1


def no_verdict(half: Direction) -> None:
    half.verdicts[2] = Verdict("history", error="no answer after 180 s")


def not_right_without_a_count(half: Direction) -> None:
    half.verdicts[0].ok = False


def damage(judge: int, kind: str) -> Callable[[Direction], None]:
    def spoil(half: Direction) -> None:
        half.verdicts[judge].counts[kind] = 1  # even where the judge itself says ok

    return spoil


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        pytest.param(fault_not_fired, "kill -9 relay did not take effect under load", id="fault not fired"),
        pytest.param(fault_not_recovered, "cut the link was not recovered from", id="fault not recovered"),
        pytest.param(too_few_records, "only 1,000 records, 1,001 were wanted", id="too few records"),
        pytest.param(judges_disagree, "the judges counted different records", id="judges disagree"),
        pytest.param(no_verdict, "history: no answer after 180 s", id="no verdict"),
        pytest.param(not_right_without_a_count, "verify: the copy is not right", id="not right"),
        *(
            pytest.param(damage(judge, kind), f"{name}: 1 {kind}", id=f"{name} {kind}")
            for judge, name in enumerate(("verify", "oracle", "history"))
            for kind in KINDS
        ),
    ],
)
def test_each_flaw_alone_makes_it_fail(tmp_path: Path, spoil: Callable[[Direction], None], told: str) -> None:
    half = clean_half(tmp_path)
    spoil(half)
    document = conclude(tmp_path, half, [])
    assert document["ok"] is False
    assert [problem for problem in document["problems"] if told in problem] == document["problems"] != []


def test_a_process_left_behind_makes_it_fail(tmp_path: Path) -> None:
    document = conclude(tmp_path, clean_half(tmp_path), [4711])
    assert document["ok"] is False
    assert document["problems"] == ["processes were left behind: [4711]"]


# -- the figures


def test_lag_has_percentiles_over_its_samples(tmp_path: Path) -> None:
    half = clean_half(tmp_path)
    half.lags = list(range(1000, 0, -1))
    document = conclude(tmp_path, half, [])["directions"]["redis-to-kafka"]
    assert document["lag_records"] == {"p50": 501, "p95": 951, "p99": 991, "max": 1000, "samples": 1000}
    assert document["lag_records_max"] == 1000


def test_lag_is_sampled_from_the_first_record_and_without_the_backlog_of_the_second_half(tmp_path: Path) -> None:
    def arrive(timeline: Timeline, records: int, newest_ms: int) -> None:
        with timeline.path.open("a") as file:
            file.write(json.dumps({"at": time.time(), "lanes": {"0": [records, newest_ms]}, "ms": []}) + "\n")

    forward, back = (Timeline(tmp_path / name, 1) for name in ("forward", "back"))
    written = [0]
    load = Load(lambda: written[0], forward)
    load._sample()
    assert load.lags["forward"] == []
    written[0] = 100
    load._sample()
    arrive(forward, 70, 0)
    load._sample()
    arrive(forward, 30, 0)
    load._sample()
    assert load.lags == {"forward": [100, 30, 0], "back": []}
    load.back = back
    load._sample()  # the second half begins a hundred records behind
    arrive(back, 95, int(time.time() * 1000))
    load._sample()
    assert load.lags == {"forward": [100, 30, 0], "back": [5]}


# -- the report on disk


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], dict[str, Any]]], tuple[int, Path]]:
    """Runs the command with another `play`; an earlier run left a good report."""
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    report = tmp_path / "demo.json"
    report.write_text('{"ok": true}')

    def start(play: Callable[[], dict[str, Any]]) -> tuple[int, Path]:
        monkeypatch.setattr(Run, "play", lambda run: play())
        argv = ["demo", "--seed", "7", "--folder", str(tmp_path / "demo"), "--report", str(report)]
        monkeypatch.setattr(sys, "argv", argv)
        return command.main(), report

    return start


@pytest.mark.parametrize("error", [Trouble("the relay cannot stay alive"), CrossfadeError("no broker")])
def test_a_run_that_cannot_go_on_says_so_in_the_report(demo: Any, error: Exception) -> None:
    def play() -> dict[str, Any]:
        raise error

    code, report = demo(play)
    document = json.loads(report.read_text())
    assert code == 1
    assert document["ok"] is False
    assert document["problems"] == [f"the demo could not go on: {error}"]
    assert document["seed"] == 7


def test_an_interrupted_run_leaves_no_report_of_an_earlier_one(demo: Any) -> None:
    def play() -> dict[str, Any]:
        raise KeyboardInterrupt

    code, report = demo(play)
    assert code == 130
    assert not report.exists()


def test_while_it_runs_there_is_no_report(demo: Any, tmp_path: Path) -> None:
    seen: list[bool] = []

    def play() -> dict[str, Any]:
        seen.append((tmp_path / "demo.json").exists())
        return {"ok": True, "problems": [], "seconds": 1.0}

    code, report = demo(play)
    assert (code, seen) == (0, [False])
    assert json.loads(report.read_text())["ok"] is True
