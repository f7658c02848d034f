"""What a relay tells the outside: the heartbeat document, the Prometheus metrics, and health over HTTP.

Metrics are read from the copier when they are scraped; nothing here runs per record.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from ..serving import NOT_FOUND, OK, UNAVAILABLE, HttpServer
from .copier import Copier
from .documents import LaneReport, Report
from .lanes import LaneState, State

#: a copier that gives no sign of progress for this long is not alive: reads and appends end long before, one way or
#: the other
STALL_S = 30.0
#: so long a claim may take: it waits for open transactions, and may read far back in the target
CLAIM_STALL_S = 600.0
_BUCKETS_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


def make_report(copier: Copier, now_s: float) -> Report:
    """The heartbeat of one process: what `crossfade relay status` shows."""
    claim = copier.claim
    loop_s = asyncio.get_running_loop().time()
    states = {state.state for state in copier.lanes.values()}
    overall = "waiting for lanes" if not copier.lanes else "claiming" if claim is None else "copying"
    if states and states <= {State.HALTED}:
        overall = "halted"
    elif states and states <= {State.PAUSED}:
        overall = "paused"
    return Report(
        instance=copier.instance,
        at_s=now_s,
        process=copier.process,
        epoch=claim.epoch if claim else 0,
        state=overall,
        throttle=copier.throttle,
        reason=copier.trouble,
        look_age_s=round(max((state.look_age_s(loop_s) for state in copier.lanes.values()), default=0.0), 1),
        records=copier.records_total,
        alarms=copier.alarms[-5:],
        lanes=[_lane_report(state, now_s, loop_s) for state in copier.lanes.values()],
    )


def _lane_report(state: LaneState, now_s: float, loop_s: float) -> LaneReport:
    is_known = state.is_seen(loop_s)
    return LaneReport(
        lane=state.lane,
        name=state.name,
        state=state.state.value,
        position=state.settled.position,
        ordinal=state.ordinal,
        lag_records=state.lag_records if is_known else None,
        lag_s=state.lag_s(now_s, loop_s) if is_known else None,
        records_per_s=round(state.records_per_s, 1),
        quarantined=state.quarantined,
        echoes=state.echoes,
        deleted=state.deleted_total,
        trimmed_in_s=state.trimmed_in_s if is_known else None,
        error=type(state.error).__name__ if state.error else "",
        lost_records=state.error.lost_records if state.error and state.error.lost_records >= 0 else None,
        reason=state.error.message if state.error else state.held_up,
        hint=state.error.hint if state.error else "",
    )


class Metrics:
    """Prometheus metrics of one relay process, over all its routes."""

    def __init__(self, copiers: list[Copier]) -> None:
        """`copiers`: the present ones, whenever it is asked; each must be `follow`ed."""
        self._copiers = copiers
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._latency = Histogram(
            "crossfade_relay_latency_seconds",
            "From the record's own time to its commit in the target, of the oldest record of each append.",
            ["route"],
            registry=self._registry,
            buckets=_BUCKETS_S,
        )

    def follow(self, copier: Copier) -> None:
        """Take note of its appends."""
        latency = self._latency.labels(copier.route.name)

        def appended(state: LaneState, records: int, oldest_ms: int, now_s: float) -> None:
            if oldest_ms > 0:
                latency.observe(max(0.0, now_s - oldest_ms / 1000))

        copier.on_appended = appended

    def collect(self) -> Iterator[Metric]:
        """Called by the registry at each scrape, in the relay's loop."""
        labels = ["route", "lane"]
        records = CounterMetricFamily("crossfade_relay_records", "Records relayed by this process.", labels=labels)
        quarantined = CounterMetricFamily("crossfade_relay_quarantined_records", "Records quarantined.", labels=labels)
        echoes = CounterMetricFamily(
            "crossfade_relay_echoes", "Records of the paired route passed over since the start.", labels=labels
        )
        deleted = CounterMetricFamily(
            "crossfade_relay_deleted_records", "Source entries deleted before they were read.", labels=labels
        )
        lag = GaugeMetricFamily("crossfade_relay_lag_records", "Source records not yet in the target.", labels=labels)
        halted = GaugeMetricFamily("crossfade_relay_lane_halted", "1 where an operator must decide.", labels=labels)
        trimmed = GaugeMetricFamily(
            "crossfade_relay_trimmed_in_seconds", "Until the source's trimming reaches the position.", labels=labels
        )
        epoch = GaugeMetricFamily("crossfade_relay_epoch", "Epoch of the present claim, 0 = none.", labels=["route"])
        loop_s = asyncio.get_running_loop().time()
        for copier in self._copiers:
            route = copier.route.name
            epoch.add_metric([route], copier.claim.epoch if copier.claim else 0)
            for state in copier.lanes.values():
                at = [route, state.name]
                records.add_metric(at, state.records_total)
                quarantined.add_metric(at, state.quarantined_total)
                halted.add_metric(at, float(state.state is State.HALTED))
                deleted.add_metric(at, state.deleted_total)
                if copier.route.pair:
                    echoes.add_metric(at, state.echoes)
                if not state.is_seen(loop_s):
                    continue
                if (lag_records := state.lag_records) is not None:
                    lag.add_metric(at, lag_records)
                if (trimmed_in_s := state.trimmed_in_s) is not None:
                    trimmed.add_metric(at, trimmed_in_s)
        return iter([records, quarantined, echoes, deleted, lag, halted, trimmed, epoch])

    def render(self) -> bytes:
        return generate_latest(self._registry)


class HealthServer(HttpServer):
    """`/metrics`, `/livez` (no loop is stuck) and `/readyz` (owns a claim) of several copiers, on one port."""

    def __init__(self, copiers: list[Copier], metrics: Metrics) -> None:
        super().__init__(self.answer)
        self._copiers = copiers
        self._metrics = metrics

    def answer(self, path: str) -> tuple[str, bytes]:
        """Status and body of a GET."""
        if path == "/metrics":
            return OK, self._metrics.render()
        if path == "/livez":
            stalled = [copier.route.name for copier in self._copiers if _is_stalled(copier)]
            return (UNAVAILABLE, f"no progress: {stalled}\n".encode()) if stalled else (OK, b"ok\n")
        if path == "/readyz":
            waiting = [c.route.name for c in self._copiers if c.claim is None]
            return (UNAVAILABLE, f"no claim: {waiting}\n".encode()) if waiting else (OK, b"ok\n")
        return NOT_FOUND, b"try /metrics, /livez or /readyz\n"


def _is_stalled(copier: Copier) -> bool:
    """The loop of the copier sits in one wait for too long. Waiting for lanes may take for ever: others own them."""
    limit_s = CLAIM_STALL_S if copier.claim is None else STALL_S
    return not copier.is_waiting_for_lanes and asyncio.get_running_loop().time() - copier.progress_s > limit_s


def wall_clock() -> float:
    return time.time()
