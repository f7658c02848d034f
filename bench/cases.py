"""The cases and what is promised of them; pure: from measured runs to rows.

A case compares a tool's run with a reference's run of the same round (their ratio is what is judged, so a machine that
is slow for a minute is slow for both), or judges one figure alone (CPU, memory, latency, seconds). Every figure is kept
as minimum, median and maximum over the rounds; the median is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .watch import Run


@dataclass(frozen=True)
class Spread:
    """Minimum, median and maximum of a figure over the rounds."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        return cls(min(figures), median(figures), max(figures))

    def as_dict(self) -> dict[str, float]:
        return {"min": _short(self.min), "median": _short(self.median), "max": _short(self.max)}


def _short(figure: float) -> float:
    return round(figure) if abs(figure) >= 1000 else float(f"{figure:.4g}")


@dataclass(frozen=True)
class Promise:
    """A limit for the median, and what we aim for."""

    must: float
    aim: float
    #: larger is better (ratios of speed); else smaller is better
    at_least: bool = True

    def is_kept(self, figure: float) -> bool:
        return figure >= self.must if self.at_least else figure <= self.must

    def is_aim_met(self, figure: float) -> bool:
        return figure >= self.aim if self.at_least else figure <= self.aim


#: what of a run is compared
Figure = Callable[[Run], float]


def speed(run: Run) -> float:
    return run.records_per_s


def cost(run: Run) -> float:
    return run.cpu_s_per_million


@dataclass(frozen=True)
class Comparison:
    """A tool beside its reference: both are names of TOOLS."""

    case: str
    tool: str
    reference: str
    promise: Promise | None = None
    figure: Figure = speed


@dataclass(frozen=True)
class Budget:
    """One figure of a tool's runs by itself."""

    case: str
    tool: str
    figure: Figure
    unit: str
    promise: Promise


#: every comparison of `make bench`
COMPARISONS = [
    Comparison("redis-kafka", "crossfade redis-kafka", "hand loop redis-kafka", Promise(1.7, 2.5)),
    Comparison("kafka-redis", "crossfade kafka-redis", "hand loop kafka-redis", Promise(2.0, 2.5)),
    Comparison("kafka-kafka", "crossfade kafka-kafka", "mirrormaker exactly once", Promise(1.5, 2.5)),
    Comparison("kafka-kafka", "crossfade kafka-kafka", "mirrormaker at least once", Promise(1.0, 1.5)),
    Comparison("redis-redis", "crossfade redis-redis", "redis-benchmark XADD -P 64", Promise(0.45, 0.6)),
    Comparison("redis-redis", "crossfade redis-redis one server", "redis-benchmark XADD -P 64"),
    Comparison("one-lane", "crossfade redis-kafka one lane", "crossfade redis-kafka", Promise(0.6, 0.8)),
    Comparison("one-lane", "crossfade kafka-redis one lane", "crossfade kafka-redis", Promise(0.6, 0.8)),
    Comparison("raw", "crossfade redis-kafka", "kafka-producer-perf-test"),
    Comparison("raw", "crossfade kafka-redis", "kafka-consumer-perf-test"),
]

#: and of `make bench-full` beside them
COMPARISONS_FULL = [
    Comparison("cost", "crossfade redis-kafka 256 lanes", "crossfade redis-kafka", Promise(1.2, 1.1, False), cost),
    Comparison("cost", "crossfade kafka-redis 256 lanes", "crossfade kafka-redis", Promise(1.2, 1.1, False), cost),
    Comparison("cost", "crossfade redis-kafka two processes", "crossfade redis-kafka", Promise(1.2, 1.1, False), cost),
    Comparison("cost", "crossfade kafka-redis two processes", "crossfade kafka-redis", Promise(1.2, 1.1, False), cost),
    Comparison("cost", "crossfade redis-kafka 10 M", "crossfade redis-kafka", Promise(1.2, 1.1, False), cost),
    Comparison("cost", "crossfade kafka-redis 10 M", "crossfade kafka-redis", Promise(1.2, 1.1, False), cost),
    Comparison("2 KiB", "crossfade redis-kafka 2 KiB", "hand loop redis-kafka 2 KiB"),
    Comparison("2 KiB", "crossfade kafka-redis 2 KiB", "hand loop kafka-redis 2 KiB"),
]


def _memory(run: Run) -> float:
    return run.memory_peak_mib


_MEMORY = Promise(300, 200, at_least=False)
BUDGETS = [
    Budget("cpu", "crossfade redis-kafka", cost, "s/M", Promise(6, 4, at_least=False)),
    Budget("cpu", "crossfade kafka-redis", cost, "s/M", Promise(2.5, 1.5, at_least=False)),
    Budget("memory", "crossfade redis-kafka", _memory, "MiB", _MEMORY),
    Budget("memory", "crossfade kafka-redis", _memory, "MiB", _MEMORY),
    Budget("memory", "crossfade kafka-kafka", _memory, "MiB", _MEMORY),
    Budget("memory", "crossfade redis-redis", _memory, "MiB", _MEMORY),
]
BUDGETS_FULL = [
    Budget("memory", "crossfade redis-kafka 10 M", _memory, "MiB", _MEMORY),
    Budget("memory", "crossfade kafka-redis 10 M", _memory, "MiB", _MEMORY),
]

#: of several million records that stay in both places
VERIFY = Comparison("verify", "crossfade verify", "comparison by hand")
VERIFY_SPEED = Budget("verify", "crossfade verify", lambda run: run.records_per_s / 1000, "1000/s", Promise(300, 300))

#: (case, source, target) -> promise in ms of the p95, or in s of the time without copying
LATENCIES = {
    ("redis", "kafka"): Promise(250, 150, at_least=False),
    ("kafka", "redis"): Promise(60, 40, at_least=False),
}
SAME_INSTANCE = Promise(3, 1, at_least=False)
OTHER_INSTANCE = Promise(12, 8, at_least=False)


@dataclass
class Row:
    """One line of the result."""

    case: str
    subject: str
    figure: str  # what is judged: ratio, s/M, MiB, ms, s
    value: Spread | None  # None: it could not be measured
    promise: Promise | None = None
    reference: str = ""
    records_per_s: Spread | None = None
    cpu_s_per_million: Spread | None = None
    reference_records_per_s: Spread | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """`pass`, `FAIL`, or `-` where nothing is promised."""
        if self.promise is None:
            return "-" if self.value is not None else "FAIL"
        return "pass" if self.value is not None and self.promise.is_kept(self.value.median) else "FAIL"

    def as_dict(self) -> dict[str, Any]:
        spreads = {
            "value": self.value,
            "records_per_s": self.records_per_s,
            "cpu_s_per_million": self.cpu_s_per_million,
            "reference_records_per_s": self.reference_records_per_s,
        }
        found: dict[str, Any] = {"case": self.case, "subject": self.subject, "figure": self.figure}
        found |= {name: spread.as_dict() if spread else None for name, spread in spreads.items()}
        found |= {"reference": self.reference, "ratio": found["value"] if self.figure.endswith("ratio") else None}
        found |= {
            "must": self.promise.must if self.promise else None,
            "aim": self.promise.aim if self.promise else None,
        }
        met = bool(self.promise and self.value and self.promise.is_aim_met(self.value.median))
        return found | {"aim_met": met if self.promise else None, "verdict": self.verdict, "note": self.note}


def tools_of(comparisons: Sequence[Comparison], budgets: Sequence[Budget]) -> list[str]:
    """The tools that must run for these, each once, in an order that alternates tool and reference."""
    found: dict[str, None] = {}
    for comparison in comparisons:
        found |= dict.fromkeys((comparison.tool, comparison.reference))
    return list(found | dict.fromkeys(budget.tool for budget in budgets))


def comparison_row(comparison: Comparison, rounds: Sequence[Mapping[str, Run]]) -> Row:
    """The row of a comparison over all rounds in which both sides were measured."""
    both = [found for found in rounds if comparison.tool in found and comparison.reference in found]
    name = "ratio" if comparison.figure is speed else "cost ratio"
    row = Row(comparison.case, comparison.tool, name, None, comparison.promise, comparison.reference)
    if not both:
        row.note = "not measured"
        return row
    tool, reference = [f[comparison.tool] for f in both], [f[comparison.reference] for f in both]
    figure = comparison.figure
    row.value = Spread.of([figure(ours) / figure(theirs) for ours, theirs in zip(tool, reference, strict=True)])
    row.records_per_s = Spread.of([speed(run) for run in tool])
    row.cpu_s_per_million = Spread.of([cost(run) for run in tool])
    row.reference_records_per_s = Spread.of([speed(run) for run in reference])
    row.note = f"reference {median(cost(run) for run in reference):.1f} s/M"
    return row


def budget_row(budget: Budget, rounds: Sequence[Mapping[str, Run]]) -> Row:
    """The row of one figure over all rounds in which it was measured."""
    runs = [found[budget.tool] for found in rounds if budget.tool in found]
    row = Row(budget.case, budget.tool, budget.unit, None, budget.promise)
    if not runs:
        row.note = "not measured"
        return row
    row.value = Spread.of([budget.figure(run) for run in runs])
    row.records_per_s = Spread.of([speed(run) for run in runs])
    row.cpu_s_per_million = Spread.of([cost(run) for run in runs])
    return row
