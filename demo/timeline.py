"""What a follower saw, over time: records per lane, when each lane went on, and latencies.

Reads the follower's file as it grows; nothing here talks to a broker. Used for progress, for the lag, and to tell when
a fault was over: at the first moment when every lane had received a record written after it.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

#: a lane counts as live once a record younger than this arrived on it
_LIVE_MS = 1500.0


class Timeline:
    """A follower's file as arrays. Safe to use from several threads."""

    def __init__(self, path: Path, lanes: int) -> None:
        self.path = path
        self.lanes = lanes
        #: records seen per lane
        self.counts = [0] * lanes
        self.total = 0
        #: (arrival in s, total so far), one pair per bite
        self.totals: list[tuple[float, int]] = []
        #: (arrival in s, latency in ms), sampled
        self.latencies: list[tuple[float, float]] = []
        #: when every lane had received a record younger than _LIVE_MS; 0 = not yet
        self.live_from_s = 0.0
        #: per lane: arrivals; records seen by then; the newest record time in ms seen by then (never falling)
        self._arrivals: list[list[float]] = [[] for _ in range(lanes)]
        self._seen: list[list[int]] = [[] for _ in range(lanes)]
        self._newest_ms: list[list[int]] = [[] for _ in range(lanes)]
        self._not_live = set(range(lanes))
        self._read_to = 0
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Take in what the follower wrote since the last time."""
        with self._lock:
            if not self.path.exists():
                return
            with self.path.open("rb") as file:
                file.seek(self._read_to)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read_to += len(whole)
            for line in whole.splitlines():
                self._take(json.loads(line))

    def _take(self, bite: dict[str, object]) -> None:
        at_s: float = bite["at"]  # type: ignore[assignment]
        lanes: dict[str, list[int]] = bite["lanes"]  # type: ignore[assignment]
        for text, (records, newest_ms) in lanes.items():
            lane = int(text)
            self.counts[lane] += records
            self.total += records
            newest = self._newest_ms[lane]
            self._arrivals[lane].append(at_s)
            self._seen[lane].append(self.counts[lane])
            newest.append(max(newest_ms, newest[-1] if newest else 0))
            if at_s * 1000 - newest_ms < _LIVE_MS:
                self._not_live.discard(lane)
        if not self._not_live and not self.live_from_s:
            self.live_from_s = at_s
        self.totals.append((at_s, self.total))
        self.latencies += [(at_s, ms) for ms in bite["ms"]]  # type: ignore[attr-defined]

    def counts_now(self) -> list[int]:
        """Records seen per lane."""
        with self._lock:
            return list(self.counts)

    def moved(self, since_s: float) -> int:
        """Records that arrived after `since_s`."""
        with self._lock:
            at = bisect_right(self.totals, (since_s, 1 << 62))
            return self.total - (self.totals[at - 1][1] if at else 0)

    def all_lanes_past(self, moment_s: float) -> float | None:
        """When every lane had received a record written after `moment_s`; None = not yet."""
        return self._all_lanes(self._newest_ms, [moment_s * 1000] * self.lanes)

    def all_lanes_beyond(self, counts: list[int]) -> float | None:
        """When every lane had received more records than `counts` says; None = not yet."""
        return self._all_lanes(self._seen, counts)

    def _all_lanes(self, grown: Sequence[Sequence[float]], limits: Sequence[float]) -> float | None:
        with self._lock:
            latest = 0.0
            for arrivals, values, limit in zip(self._arrivals, grown, limits, strict=True):
                at = bisect_right(values, limit)
                if at == len(values):
                    return None
                latest = max(latest, arrivals[at])
            return latest

    def records_per_s(self, until_s: float) -> tuple[float, float]:
        """Mean and the best second, of what arrived until then."""
        with self._lock:
            totals = self.totals[: bisect_right(self.totals, (until_s, 1 << 62))]
            if len(totals) < 2:
                return 0.0, 0.0
            seconds: dict[int, int] = {}
            before = 0
            for at_s, total in totals:
                seconds[int(at_s)] = seconds.get(int(at_s), 0) + total - before
                before = total
            span_s = max(0.001, totals[-1][0] - totals[0][0])
            return totals[-1][1] / span_s, float(max(seconds.values()))

    def latency(
        self, windows: list[tuple[float, float]], written_from_s: float, until_s: float
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Percentiles in ms: of the records written from one moment on that arrived until the other, and of those
        of them that arrived outside the `windows` (s)."""
        found = [(at_s, ms) for at_s, ms in self.latencies if at_s - ms / 1000 >= written_from_s and at_s <= until_s]
        quiet = [ms for at_s, ms in found if not any(first <= at_s <= last for first, last in windows)]
        return percentiles([ms for _, ms in found]), percentiles(quiet)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and max, and of how many values; empty without any."""
    if not values:
        return {}
    ordered = sorted(values)
    found = {name: ordered[min(len(ordered) - 1, int(len(ordered) * part))] for name, part in _PARTS.items()}
    return {
        **{name: round(value, 1) for name, value in found.items()},
        "max": round(ordered[-1], 1),
        "samples": len(ordered),
    }


_PARTS = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
