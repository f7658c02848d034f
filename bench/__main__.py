"""`python -m bench`: measure Crossfade beside public tools on this machine, judge the promises, leave nothing behind.

The same servers and source data for every tool, rounds in which each tool runs once, so that whatever else the machine
does hits all of them alike. Exit code 1 where a promise is not kept, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from crossfade.errors import CrossfadeError

from . import cases, live, report, tools
from .cases import Promise, Row, Spread
from .children import ROOT, Trouble
from .stage import Data, Stage
from .watch import Run

DISK_FREE_BYTES_MIN = 20 * 10**9
#: `make bench` must end within 20 minutes, the live cases need less than five: all rounds have ended by then
_ROUNDS_END_S = 15 * 60.0
_WINDOWS = 3
_KILLS_SAME = 3
_KILLS_OTHER = 2


class Bench:
    """One benchmark: what was asked, and what was measured so far."""

    def __init__(self, stage: Stage, options: argparse.Namespace, say: Callable[[str], None]) -> None:
        self._stage = stage
        self._options = options
        self._say = say
        self._started_s = time.monotonic()
        self.rows: list[Row] = []

    def run(self) -> None:
        """Measure everything that was asked for into `rows`. Raises what the lab raises; a tool's trouble is a row."""
        self._throughput()
        if self._is_wanted("verify"):
            self._verify()
        self._live()
        if self._options.full:
            self._large()

    def _is_wanted(self, case: str) -> bool:
        return not self._options.only or any(case.startswith(only) for only in self._options.only)

    # -- throughput

    def _throughput(self) -> None:
        comparisons = [c for c in cases.COMPARISONS + self._full(_EVERY_ROUND) if self._is_wanted(c.case)]
        budgets = [b for b in cases.BUDGETS if self._is_wanted(b.case)]
        wanted = cases.tools_of(comparisons, budgets)
        # Java compiles what runs often, and a server's first use of memory costs page faults: whoever came first would
        # pay that for all. So each tool runs once before it counts.
        plain = [name for name in wanted if not any(word in name for word in _OTHER_DATA)]
        self._round(plain, _WARM_UP)
        # The brokers' compiler still takes a quarter of their time then: what writes through them runs once more.
        self._round([name for name in plain if any(word in name for word in _THROUGH_BROKERS)], _WARM_UP)
        rounds: list[dict[str, Run]] = []
        for number in range(1, 1 + (self._options.rounds if wanted else 0)):
            elapsed_s = time.monotonic() - self._started_s
            if number > 1 and elapsed_s * (number + 1) / number > _ROUNDS_END_S and not self._options.full:
                self._say(f"{number - 1} rounds fill the time")
                break
            rounds.append(self._round(wanted, number))
        self.rows += [cases.comparison_row(comparison, rounds) for comparison in comparisons]
        self.rows += [cases.budget_row(budget, rounds) for budget in budgets]

    def _full(self, tools_wanted: Sequence[str]) -> list[cases.Comparison]:
        if not self._options.full:
            return []
        return [c for c in cases.COMPARISONS_FULL if any(word in c.tool for word in tools_wanted)]

    def _round(self, wanted: Sequence[str], number: int) -> dict[str, Run]:
        found: dict[str, Run] = {}
        # Every other round runs backwards: nobody always follows the same neighbour.
        for name in wanted if number % 2 else reversed(wanted):
            run = self._measured(name, number)
            if run is not None:
                found[name] = run
        return found

    def _measured(self, name: str, number: int) -> Run | None:
        when = "warm-up" if number == _WARM_UP else f"round {number}"
        try:
            run = self._tool(name)()
        except Trouble as trouble:
            self._say(f"{when:7}  {name:40} TROUBLE: {trouble}")
            return None
        self._say_run(when, name, run)
        return run

    def _say_run(self, when: str, name: str, run: Run) -> None:
        self._say(
            f"{when:7}  {name:40} {run.records_per_s:>9,.0f} records/s  {run.cpu_s_per_million:5.2f} s/M"
            f"  servers {run.server_cpu_s_per_million:5.2f} s/M  {run.memory_peak_mib:4.0f} MiB  {run.seconds:5.1f} s"
        )

    def _tool(self, name: str) -> Callable[[], Run]:
        """How to run a tool: its function, bound to the data that it is measured on (filled in when it is not yet)."""
        stage, plain = self._stage, Data(self._options.records)
        one, many = Data(self._options.records // 2, 1), Data(self._options.records, 256)
        wide = Data(self._options.records // 2, 16, 2048)
        data = plain
        for word, other in zip(_OTHER_DATA, (one, many, wide, Data(10_000_000)), strict=True):
            data = other if word in name else data
        if name.startswith("crossfade"):
            source, target = name.split()[1].split("-")
            self._fill(source, data)
            processes = 2 if "two processes" in name else 1
            is_one = name.endswith("one server")
            return partial(tools.crossfade, stage, data, source, target, processes=processes, is_one_server=is_one)
        if name.startswith("hand loop"):
            source, _, _ = name.split()[2].partition("-")
            self._fill(source, data)
            return partial(tools.hand_redis_to_kafka if source == "redis" else tools.hand_kafka_to_redis, stage, data)
        if name.startswith("redis-benchmark"):
            return partial(tools.redis_benchmark, stage, data)
        if name == "kafka-producer-perf-test":
            return partial(tools.producer_perf, stage, data)
        self._fill("kafka", data)
        if name == "kafka-consumer-perf-test":
            return partial(tools.consumer_perf, stage, data)
        return partial(tools.mirror_maker, stage, data, exactly_once=name.endswith("exactly once"))

    def _fill(self, kind: str, data: Data) -> None:
        _fill(self._stage, kind, data)

    # -- two sides that are compared

    def _verify(self) -> None:
        data = Data(_VERIFY_TIMES * self._options.records)
        self._fill("redis", data)
        rounds: list[dict[str, Run]] = []
        try:
            copy = tools.copied(self._stage, data)
            for number in range(1, 1 + self._options.rounds):
                found: dict[str, Run] = {}
                for name, measured in (
                    (cases.VERIFY.tool, partial(tools.verify, self._stage, copy)),
                    (cases.VERIFY.reference, partial(tools.compare_by_hand, self._stage, copy, _BY_HAND_LANES)),
                ):
                    found[name] = measured()
                    self._say_run(f"round {number}", name, found[name])
                rounds.append(found)
        except Trouble as trouble:
            self._say(f"verify: TROUBLE: {trouble}")
        self._stage.forget_source(data)
        self.rows += [cases.comparison_row(cases.VERIFY, rounds), cases.budget_row(cases.VERIFY_SPEED, rounds)]

    # -- live

    def _live(self) -> None:
        for (source, target), promise in cases.LATENCIES.items():
            name = f"{source}-{target}"
            if self._is_wanted("latency"):
                self._latency(name, source, target, promise)
            if self._is_wanted("same-instance"):
                measured = partial(live.back_same_instance, self._stage, source, target, _KILLS_SAME)
                self._back("same-instance", name, measured, cases.SAME_INSTANCE)
            if self._is_wanted("other-instance"):
                measured = partial(live.back_other_instance, self._stage, source, target, _KILLS_OTHER)
                self._back("other-instance", name, measured, cases.OTHER_INSTANCE)

    def _latency(self, name: str, source: str, target: str, promise: Promise) -> None:
        row = Row("latency", f"crossfade {name}, p95 at 10,000/s", "ms", None, promise)
        self.rows.append(row)
        try:
            found = live.latency(self._stage, source, target, _WINDOWS)
        except Trouble as trouble:
            row.note = str(trouble).splitlines()[0]
            self._say(f"latency {name}: TROUBLE: {trouble}")
            return
        row.value = Spread.of([window.p95_ms for window in found])
        row.records_per_s = Spread.of([window.records_per_s for window in found])
        row.cpu_s_per_million = Spread.of([window.relay_cpu_s_per_million for window in found])
        middle = sorted(found, key=lambda window: window.p95_ms)[len(found) // 2]
        row.note = f"p50 {middle.p50_ms:.0f} ms, p99 {middle.p99_ms:.0f} ms, max {middle.max_ms:.0f} ms"
        self._say(f"latency {name}: p95 {middle.p95_ms:.0f} ms, {row.note}")

    def _back(self, case: str, name: str, measured: Callable[[], list[float]], promise: Promise) -> None:
        row = Row(case, f"crossfade {name}, after kill -9", "s", None, promise)
        self.rows.append(row)
        try:
            found = measured()
        except Trouble as trouble:
            row.note = str(trouble).splitlines()[0]
            self._say(f"{case} {name}: TROUBLE: {trouble}")
            return
        row.value = Spread.of(found)
        self._say(f"{case} {name}: copying again after {', '.join(f'{seconds:.2f}' for seconds in found)} s")

    # -- what only fits once

    def _large(self) -> None:
        """Ten million records, one direction at a time: the plain data makes room first, and is measured beside it."""
        for direction in ("redis-kafka", "kafka-redis"):
            source = direction.partition("-")[0]
            names = [f"crossfade {direction}", f"crossfade {direction} 10 M"]
            rounds = [self._round(names, 1)]
            chosen = [c for c in cases.COMPARISONS_FULL if c.tool == names[1] and self._is_wanted(c.case)]
            self.rows += [cases.comparison_row(comparison, rounds) for comparison in chosen]
            budgets = [b for b in cases.BUDGETS_FULL if b.tool == names[1] and self._is_wanted(b.case)]
            self.rows += [cases.budget_row(budget, rounds) for budget in budgets]
            self._say(f"removing the ten million records of {source}")
            self._stage.forget_source(Data(10_000_000))


#: how many times as many records as in a throughput run: an audit also has to start and to end
_VERIFY_TIMES = 3
#: the script by hand takes its time, and is as quick for few lanes as for many
_BY_HAND_LANES = 4
_WARM_UP = 0
#: words in the names of tools that are measured on other data than the plain
_OTHER_DATA = ("one lane", "256 lanes", "2 KiB", "10 M")
_THROUGH_BROKERS = ("crossfade redis-kafka", "crossfade kafka-kafka", "mirrormaker")
_EVERY_ROUND = ("256 lanes", "two processes", "2 KiB")


def _fill(stage: Stage, kind: str, data: Data) -> None:
    (stage.redis_source if kind == "redis" else stage.kafka_source)(data)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", metavar="CASE", help="cases that begin with this; may be repeated")
    parser.add_argument("--records", type=int, default=1_000_000, help="records of a throughput run")
    parser.add_argument("--rounds", type=int, default=3, help="most rounds; fewer when the time is up")
    parser.add_argument("--full", action="store_true", help="also 2 KiB, 256 lanes, two processes, ten million records")
    parser.add_argument("--no-judge", action="store_true", help="exit 0 though a promise is not kept")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench.json", help="where the figures go")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns the exit code."""
    options = _arguments().parse_args(arguments)
    free = shutil.disk_usage(ROOT).free
    if free < DISK_FREE_BYTES_MIN:
        _say(f"refused: {free / 1e9:.1f} GB free in {ROOT}, a benchmark needs {DISK_FREE_BYTES_MIN / 1e9:.0f} GB")
        return 4
    # SIGINT too: a shell's background job inherits it ignored.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    folder = options.out.parent / "bench"
    shutil.rmtree(folder, ignore_errors=True)
    started = time.monotonic()
    facts: dict[str, Any] = {"machine": report.machine(), "versions": report.versions()}
    try:
        rows = _on_stage(folder, options, facts)
    except KeyboardInterrupt:
        _say("interrupted; everything is stopped and removed")
        return 130
    except CrossfadeError as error:
        _say(f"error: {error.message}\nhint: {error.hint}")
        return error.exit_code
    facts |= {"records": options.records, "rounds_max": options.rounds, "seconds": round(time.monotonic() - started)}
    report.write(options.out, rows, facts)
    print(report.table(rows), flush=True)
    _say(f"{options.out} after {(time.monotonic() - started) / 60:.1f} minutes")
    failed = [row for row in rows if row.verdict == "FAIL"]
    for row in failed:
        _say(f"not kept: {row.case}: {row.subject} {row.note}")
    return 1 if failed and not options.no_judge else 0


def _on_stage(folder: Path, options: argparse.Namespace, facts: dict[str, Any]) -> list[Row]:
    stage = Stage.up(folder, _say)
    try:
        facts["versions"] |= stage.versions()
        bench = Bench(stage, options, _say)
        bench.run()
        return bench.rows
    finally:
        # A second Ctrl-C must not leave servers behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        left = stage.down()
        if left:
            _say(f"processes that would not end: {left}")


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
