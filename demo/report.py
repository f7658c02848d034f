"""What the demo tells at its end: a short table for people, and build/demo.json for programs."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .faults import Fault
from .judges import KINDS, Verdict
from .timeline import Timeline, percentiles

#: around a fault, latencies are not quiet until so long after every lane went on
SETTLE_S = 2.0


@dataclass
class Direction:
    """One half of the demo, with everything that was measured in it."""

    name: str  # "redis-to-kafka", "kafka-to-redis"
    route: str
    timeline: Timeline
    faults: list[Fault] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    records_min: int = 0
    restarts_unasked: int = 0
    #: samples of how many records were written and not yet arrived
    lags: list[int] = field(default_factory=list)
    #: latencies are of records written from this moment on: not of a backlog that was there before
    latency_from_s: float = 0.0
    #: rates and latencies are of what arrived until then: the first half goes on, slowly, during the second
    until_s: float = 0.0

    def problems(self) -> list[str]:
        """Why this half does not count as proof, in sentences; empty when it does."""
        found = [
            f"{self.name}: {fault.name} did not take effect under load" for fault in self.faults if not fault.fired
        ]
        found += [
            f"{self.name}: {fault.name} was not recovered from within the limit"
            for fault in self.faults
            if fault.recovered_s is None
        ]
        for verdict in self.verdicts:
            found += [f"{self.name}: {verdict.judge}: {sentence}" for sentence in verdict.problems()]
        if len({verdict.records for verdict in self.verdicts if verdict.ok}) > 1:
            counted = ", ".join(f"{verdict.judge} {verdict.records:,}" for verdict in self.verdicts)
            found.append(f"{self.name}: the judges counted different records: {counted}")
        if self.timeline.total < self.records_min:
            found.append(f"{self.name}: only {self.timeline.total:,} records, {self.records_min:,} were wanted")
        return found

    def as_dict(self) -> dict[str, Any]:
        """This half in build/demo.json. The counts are the worst that any judge found."""
        windows = [
            (fault.at_s, fault.at_s + (fault.recovered_s or 0.0) + SETTLE_S) for fault in self.faults if fault.at_s
        ]
        latency, quiet = self.timeline.latency(windows, self.latency_from_s, self.until_s)
        mean, best = self.timeline.records_per_s(self.until_s)
        return {
            "records": self.timeline.total,
            "records_per_s": round(mean),
            "records_per_s_best_second": round(best),
            "lag_records_max": max(self.lags, default=0),
            "lag_records": percentiles(self.lags),
            "latency_ms": latency,
            "latency_quiet_ms": quiet,
            **{kind: max((verdict.counts[kind] for verdict in self.verdicts), default=0) for kind in KINDS},
            "faults": [fault.as_dict() for fault in self.faults],
            "relay_restarts_unasked": self.restarts_unasked,
            "judges": {verdict.judge: verdict.as_dict() for verdict in self.verdicts},
        }


def machine() -> dict[str, Any]:
    """Where it ran."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_bytes / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def problems_of(directions: list[Direction], left: list[int]) -> list[str]:
    """Why the whole run does not count as proof: the verdict, which is good only when this is empty."""
    found = [problem for direction in directions for problem in direction.problems()]
    if left:
        found.append(f"processes were left behind: {left}")
    return found


def broken_off(seed: int, problem: str, sabotage: str) -> dict[str, Any]:
    """The report of a run that could not go on: nothing was judged."""
    return {
        "version": 1,
        "ok": False,
        "problems": [f"the demo could not go on: {problem}"],
        "seed": seed,
        "sabotage": {"kind": sabotage, "id": None} if sabotage else None,
        "directions": {},
        "machine": machine(),
    }


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Replace the report as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=2) + "\n")
    partial.replace(path)


def print_table(console: Console, directions: list[Direction]) -> None:
    """The whole run on one screen."""
    table = Table(title="what was copied, and what the judges found", title_justify="left")
    table.add_column("")
    documents = [direction.as_dict() for direction in directions]
    for direction in directions:
        table.add_column(direction.name, justify="right")
    for label, show in _ROWS:
        table.add_row(label, *(show(document) for document in documents))
    console.print(table)
    if not any(direction.faults for direction in directions):
        return
    faults = Table(title="what was broken meanwhile", title_justify="left")
    for name in ("direction", "fault", "fired", "seen", "recovered"):
        faults.add_column(name, overflow="fold", justify="right" if name == "recovered" else "left")
    for direction in directions:
        for fault in direction.faults:
            recovered = "never" if fault.recovered_s is None else f"{fault.recovered_s:.1f} s"
            faults.add_row(direction.name, fault.name, "yes" if fault.fired else "NO", _seen(fault.observed), recovered)
    console.print(faults)


def _seen(observed: dict[str, Any]) -> str:
    parts = []
    if "records_above_last_stable_offset" in observed:
        parts.append(f"{observed['records_above_last_stable_offset']} records in an open transaction")
    if "answer_bytes_held" in observed:
        parts.append(f"{observed['records_appended_without_answer']} records appended, answer held")
    if "new_leader" in observed:
        parts.append(f"leader {observed['old_leader']} -> {observed['new_leader']}")
    if "connections_reset" in observed:
        parts.append(f"{observed['connections_reset']} connections reset, new ones refused, {observed['cut_s']} s")
    if "old_pid" in observed:
        parts.append(f"pid {observed['old_pid']} gone")
    return ", ".join(parts)


def _spread(document: dict[str, Any], name: str) -> str:
    found = document[name]
    if not found:
        return "-"
    return " / ".join(f"{found[part]:,.0f}" for part in ("p50", "p95", "p99", "max"))


_ROWS: list[tuple[str, Any]] = [
    ("records", lambda d: f"{d['records']:,}"),
    ("records/s, mean", lambda d: f"{d['records_per_s']:,}"),
    ("records/s, best second", lambda d: f"{d['records_per_s_best_second']:,}"),
    ("lag in records, p50 / p95 / p99 / max", lambda d: _spread(d, "lag_records")),
    ("latency ms, p50 / p95 / p99 / max", lambda d: _spread(d, "latency_ms")),
    ("the same outside faults", lambda d: _spread(d, "latency_quiet_ms")),
    *[(kind, lambda d, kind=kind: str(d[kind])) for kind in KINDS],
]
