"""`crossfade verify --watch`: audits again and again, each time from where the last audit ended.

Hides rounds, their state (bounded, in memory) and the gauges of `--metrics-port`. A broker that does not answer, or a
process that ends early, costs a round, never the watch. Invariant: a difference that was ever seen stays seen, in the
counts and in the exit code. Called by `verify`.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import CrossfadeError, UsageError
from ..serving import NOT_FOUND, OK, UNAVAILABLE, HttpServer
from .output import Output
from .verify_parts import Workers
from .verify_run import audit_route
from .verify_scope import Scope, Store
from .verify_words import DIFFERENT, KINDS, NO_VERDICT, VERDICTS, exit_code_of, named_lines, verdict_of

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from ..config import Config
    from ..verify.report import AuditReport

#: what makes a route differ
_FINDINGS = (*KINDS, "stale_epochs")
#: ranges of digests that the state keeps of each lane: a watch must not grow
_RANGES_KEPT = 8


@dataclass
class Watched:
    """What is known of one route."""

    name: str
    store: Store
    rounds: int = 0
    report: AuditReport | None = None
    error: CrossfadeError | None = None
    #: when the last round that gave a report began (seconds since the epoch)
    audited_s: float = 0.0
    #: the most that any round found of each kind: a route by key has no memory of its own between rounds
    found: Counter[str] = field(default_factory=Counter)

    def hear(self, report: AuditReport, began_s: float) -> None:
        """What a round that began then found."""
        self.report, self.error, self.audited_s = report, None, began_s
        self.found |= Counter({kind: report.total(kind) for kind in _FINDINGS})

    @property
    def code(self) -> int:
        """The exit code: 3 if anything ever differed, and none is 0 without a report."""
        if self.found.total():
            return DIFFERENT
        return NO_VERDICT if self.report is None else exit_code_of([self.report])

    @property
    def parity(self) -> float | None:
        """Matching of the settled source records; None = there are none."""
        return None if self.report is None else parity_of(self.report)

    def row(self, now_s: float) -> dict[str, Any]:
        """One line of `-o json`."""
        row: dict[str, Any] = {"route": self.name, "round": self.rounds}
        if self.error is not None:
            row["error"] = self.error.as_dict()
        if self.report is None:
            return row
        report = self.report
        told = report.as_dict() | {"ok": self.code == 0, "verdict": VERDICTS[self.code], **self.found}
        keys = ("ok", "verdict", "complete", "matched", *KINDS, "pending", "stale_epochs", "seconds")
        row |= {key: told[key] for key in keys}
        row |= {"parity": self.parity, "audited_age_s": round(now_s - self.audited_s, 3)}
        return row | {"differences": told["differences"] if self.error is None else []}


def parity_of(report: AuditReport) -> float | None:
    """Matching / settled records: settled is what the source holds and what is not on its way any more."""
    settled = report.matched + sum(report.total(kind) for kind in ("missing", "altered", "reordered"))
    return report.matched / settled if settled else None


async def watch_routes(
    config: Config,
    output: Output,
    names: Sequence[str],
    scope: Scope,
    store: Store,
    *,
    every_s: float,
    port: int,
    workers: Workers,
    shares: bool,
) -> int:
    """Audit in rounds until SIGINT or SIGTERM. Returns the exit code: 3 if anything ever differed, 1 without verdict.

    `store` keeps where each audit ended. Raises UsageError.
    """
    watched = [Watched(name, store) for name in names]
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    gauges = Gauges(watched)
    server = HttpServer(gauges.answer)
    if port:
        await server.listen(port)
    try:
        while not stop.is_set():
            began_s = time.monotonic()
            for one in watched:
                if not await _unless_stopped(stop, _round(config, output, one, scope, workers, shares=shares)):
                    break
                output.document(one.row(time.time()), _text(one), live=True)
                if store.failure is not None:
                    raise store.failure
            left_s = every_s - (time.monotonic() - began_s)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(left_s, 0.0))
    finally:
        await server.close()
    for one in watched:
        if one.report is None:
            output.note(f"route {one.name} was never audited to an end")
    return max(one.code for one in watched)  # no verdict is 1, a difference 3


async def _unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work`, but give it up at once when `stop` is set. Whether it was done."""
    doing = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([doing, stopping], return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
        return doing.done()
    finally:
        for task in (doing, stopping):
            task.cancel()
        await asyncio.gather(doing, stopping, return_exceptions=True)


async def _round(config: Config, output: Output, one: Watched, scope: Scope, workers: Workers, *, shares: bool) -> None:
    """One audit, from where the last ended."""
    began_s = time.time()
    try:
        report = await audit_route(config, output, one.name, scope, one.store, workers, shares=shares)
    except UsageError:
        raise
    except CrossfadeError as error:  # a broker does not answer, or a process that audits a part of the lanes has ended
        one.error = error
    else:
        one.hear(report, began_s)
        one.store.trim(_RANGES_KEPT)
    one.rounds += 1


def _text(one: Watched) -> str:
    if one.error is not None or one.report is None:
        return f"{one.name} round {one.rounds}: {one.error}"
    report, parity = one.report, one.parity
    counts = "  ".join(f"{kind} {one.found[kind]:,}" for kind in KINDS if one.found[kind])
    share = "-" if parity is None else f"{parity:.6%}"
    totals = f"matched {report.matched:,}  pending {report.total('pending'):,}  {counts}".rstrip()
    verdict = verdict_of(report)
    if one.code == DIFFERENT != exit_code_of([report]):
        verdict += "; an earlier round found differences"
    head = f"{one.name} round {one.rounds}: parity {share}  {totals}  {verdict}"
    return "\n".join([head, *named_lines(report)])


class Gauges:
    """What a scrape of `/metrics` sees; `/livez` and `/readyz` beside it."""

    def __init__(self, watched: Sequence[Watched]) -> None:
        from prometheus_client import CollectorRegistry

        self._watched = watched
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def answer(self, path: str) -> tuple[str, bytes]:
        """See `serving.Answer`."""
        from prometheus_client import generate_latest

        if path == "/metrics":
            return OK, generate_latest(self._registry)
        if path == "/livez":
            return OK, b"ok\n"
        if path == "/readyz":
            waiting = [one.name for one in self._watched if one.report is None]
            return (UNAVAILABLE, f"not audited yet: {waiting}\n".encode()) if waiting else (OK, b"ok\n")
        return NOT_FOUND, b"try /metrics, /livez or /readyz\n"

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at each scrape."""
        from prometheus_client.core import GaugeMetricFamily

        def gauge(name: str, words: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"crossfade_verify_{name}", words, labels=["route", *labels])

        parity = gauge("parity_ratio", "Matching / settled records; absent where none is settled.")
        matched = gauge("matched_records", "On the target exactly once, in order, unchanged.")
        pending = gauge("pending_records", "Not yet on the target.")
        differences = gauge("differences", "Records that are not as they should be.", "kind")
        age = gauge("audited_age_seconds", "Since the last finished round began; what was there then is audited.")
        failed = gauge("round_failed", "1 where the last round gave no report.")
        for one in self._watched:
            at = [one.name]
            failed.add_metric(at, float(one.error is not None))
            if one.report is None:
                continue
            if one.parity is not None:
                parity.add_metric(at, one.parity)
            matched.add_metric(at, one.report.matched)
            pending.add_metric(at, one.report.total("pending"))
            age.add_metric(at, time.time() - one.audited_s)
            for kind in KINDS:
                differences.add_metric([*at, kind], one.found[kind])
        return iter([parity, matched, pending, differences, age, failed])
