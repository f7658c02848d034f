"""How the benchmark measures: steady state between two looks, exact counts, latencies, recovery, and its refusals."""

from __future__ import annotations

import shutil
import sys
from array import array
from collections import namedtuple
from pathlib import Path
from typing import Any

import bench.__main__ as command
import pytest
from bench import tools, watch
from bench.children import Child, Trouble
from bench.live import Arrivals, percentile
from bench.peers import mirror
from bench.prefill import make_values


class Script:
    """A counter that follows a script, and a clock that moves a second a look."""

    trouble = ""

    def __init__(self, looks: list[int], counted: int) -> None:
        self.looks, self.counted, self.at = looks, counted, 0

    def progress(self) -> int:
        self.at += 1
        return self.looks[min(self.at, len(self.looks)) - 1]

    def records(self) -> int:
        return self.counted


class FakeChild:
    name, is_running = "tool", True

    def __init__(self, script: Script) -> None:
        self._script = script

    def cpu_s(self) -> float:
        return self._script.at * 0.5

    def memory_peak_mib(self) -> float:
        return 80.0

    def tail(self) -> str:
        return "its log"


class FakeStage:
    def server_cpu_s(self) -> dict[str, float]:
        return {"kafka": 0.0, "redis": 0.0}


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def tick(_: float) -> None:
        now[0] += 1.0

    monkeypatch.setattr(watch.time, "sleep", tick)
    monkeypatch.setattr(watch.time, "monotonic", lambda: now[0])


def measured(looks: list[int], records: int, counted: int | None = None) -> watch.Run:
    script = Script(looks, records if counted is None else counted)
    stage: Any = FakeStage()
    child: Any = FakeChild(script)
    return watch.measure(stage, [child], script, records)


def test_the_rate_is_that_of_the_steady_state() -> None:
    # Three seconds of start-up, then 100 in the first look, 1000 two seconds later; the quiet end does not count.
    run = measured([0, 0, 0, 100, 500, 1000], 1000)
    assert run.records_per_s == 450
    assert run.seconds == 2
    assert run.cpu_s_per_million == pytest.approx(1.0 / 900 * 1e6)
    assert run.memory_peak_mib == 80


def test_control_records_in_the_offsets_are_scaled_away() -> None:
    assert measured([0, 110, 1100], 1000).records_per_s == pytest.approx(900)


@pytest.mark.parametrize("counted", [999, 1001])
def test_a_run_that_lost_or_doubled_a_record_is_no_measurement(counted: int) -> None:
    with pytest.raises(Trouble, match=f"{counted} records in the target instead of 1000"):
        measured([0, 100, 1000], 1000, counted)


def test_a_copy_that_stands_still_is_trouble() -> None:
    with pytest.raises(Trouble, match="nothing moved for 60 s"):
        measured([0, 100], 1000)


def test_a_copy_that_was_done_at_the_first_look_is_not_measured() -> None:
    with pytest.raises(Trouble, match="too quick"):
        measured([0, 1000], 1000)


def test_latency_counts_the_records_written_within_the_window() -> None:
    seen = array("q", [0, 9_000, 0, 1_000_000, 1_005_000, 1, 1_500_000, 1_520_000, 0, 2_000_000, 2_900_000, 1])
    arrivals = Arrivals(seen, 2)
    assert arrivals.latencies_ms(1_000_000, 2_000_000) == [5.0, 20.0]
    assert len(arrivals) == 4


def test_percentiles_never_leave_the_list() -> None:
    ordered = [float(number) for number in range(100)]
    assert [percentile(ordered, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 99]
    assert percentile([7.0], 0.95) == 7


def test_a_relay_is_back_when_the_last_lane_moved() -> None:
    killed = 10_000_000
    rows = [(9_999_000, 12_000_000, 0), (10_100_000, 11_000_000, 0), (10_200_000, 12_500_000, 1)]
    seen = array("q", [number for row in rows for number in row])
    # The first row was written before the kill: it may come out of what was under way.
    assert Arrivals(seen, 2).back_after_s(killed) == 2.5
    assert Arrivals(seen, 3).back_after_s(killed) is None


def test_the_figures_of_consumer_perf_are_found_by_name(tmp_path: Path) -> None:
    head = "start.time, end.time, data.consumed.in.MB, MB.sec, data.consumed.in.nMsg, nMsg.sec, rebalance.time.ms"
    head += ", fetch.time.ms, fetch.MB.sec, fetch.nMsg.sec"
    row = "2026-11-20 10:00:00:000, x, 488.2, 100.0, 1000, 5, 3000, 500, 9, 2000.0"
    text = f"WARNING: a restricted method\n{head}\n{row}"
    with Child("perf", [sys.executable, "-c", f"print({text!r})"], logs=tmp_path, tag=tmp_path) as child:
        child.process.wait()
        run = tools._consumer_perf_run(child, 1000, 2.0)
        assert (run.records_per_s, run.seconds, run.cpu_s_per_million) == (2000, 0.5, 2000)
        with pytest.raises(Trouble, match="1000 of 1001"):
            tools._consumer_perf_run(child, 1001, 2.0)


def test_mirrormaker_commits_five_times_a_second_when_exactly_once() -> None:
    strict = mirror.properties("run-1", "127.0.0.1:1", "source", exactly_once=True)
    loose = mirror.properties("run-1", "127.0.0.1:1", "source", exactly_once=False)
    assert "transaction.boundary.interval.ms = 200" in strict
    assert "to-run-1.exactly.once.source.support = enabled" in strict
    assert "exactly.once" not in loose
    assert mirror.target_topic("run-1", "source") == "from-run-1.source"


def test_the_data_is_halved_by_lz4_and_not_constant() -> None:
    import lz4.frame

    values = make_values(16, 512)
    lane = [id for id in range(20_000) if values.lane_of[values.key_index(id)] == 3][:500]
    body = b"".join(values.value(id) for id in lane)
    ratio = len(body) / len(lz4.frame.compress(body))
    assert 1.7 < ratio < 2.4
    assert len({values.value(id) for id in lane}) == 500
    assert {len(values.value(id)) for id in lane} == {512}


def test_too_little_disk_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 19 * 10**9))
    monkeypatch.setattr(command.Stage, "up", lambda *_: pytest.fail("the lab was started"))
    assert command.main([]) == 4
    assert "refused: 19.0 GB free" in capsys.readouterr().err
