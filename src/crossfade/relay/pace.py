"""How much to move at once, and how fast: batch size from measured appends, and a live rate limit. No I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that the user can see and set. All are per process and route."""

    batch_records_max: int = 16_000
    batch_size_bytes_max: int = 64 * 1024 * 1024
    commit_interval_s: float = 0.15  # what one append should take under load
    quarantine_records_max: int = 100
    rate_records_per_s: float = 0.0  # 0 = no limit
    idle_wait_s: float = 0.5
    marker_refresh_s: float = 30.0  # a place that moved without records is stored at least this often
    marker_keepalive_s: float = 3600.0  # an idle lane's marker is written again, so that it never expires
    marker_echo_s: float = 1.0  # a place that moved over echoes alone is stored at least this often
    discover_s: float = 30.0  # between two looks for new lanes of the source
    source_has_gaps: bool = False  # records may be deleted before they are copied: echo ordinals may have gaps


#: an append costs something whatever its size (a transaction's first produce alone takes 30-50 ms), so a small batch is
#: no cure for a slow broker: below this the cost per record only grows
_BATCH_RECORDS_MIN = 2_000
_BATCH_BYTES_MIN = 1 << 20
#: and each lane of an append costs something too (a request, its replication, the end of the transaction)
_LANE_RECORDS_MIN = 128
#: how far above the goal an append may be before the batch shrinks
_SLOW_FACTOR = 5


class BatchSize:
    """Records per append: grows while there is a backlog, shrinks only when full appends take far too long."""

    def __init__(self, limits: Limits, lanes: int = 1) -> None:
        self._max = limits.batch_records_max
        self._min = min(self._max, max(_BATCH_RECORDS_MIN, lanes * _LANE_RECORDS_MIN))
        self._goal_s = limits.commit_interval_s
        self._max_bytes = limits.batch_size_bytes_max
        self.records = min(4_000, self._max)
        self.size_bytes = self._max_bytes

    def observe(self, records: int, took_s: float) -> None:
        """Learn from one append of `records` that took `took_s`; one that was not full says nothing about size."""
        self.size_bytes = min(self._max_bytes, 2 * self.size_bytes)
        if records < 0.8 * self.records:
            return
        if took_s > _SLOW_FACTOR * self._goal_s:
            self.records = max(self._min, int(self.records * 0.7))
        else:
            self.records = min(self._max, int(self.records * 1.5))

    def halve(self) -> None:
        """An append ended in doubt: perhaps it was too much for the target to take in time."""
        self.records = max(self._min, self.records // 2)
        self.size_bytes = max(min(self._max_bytes, _BATCH_BYTES_MIN), self.size_bytes // 2)


class RateLimit:
    """A token bucket of one second, or one record; `rate_records_per_s` may change at any time, 0 lifts it."""

    def __init__(self, rate_records_per_s: float, now_s: float) -> None:
        self.rate_records_per_s = rate_records_per_s
        self._tokens = 0.0
        self._at_s = now_s

    def allowance(self, wanted: int, now_s: float) -> int:
        """How many of `wanted` records may be read now."""
        if self.rate_records_per_s <= 0:
            return wanted
        self._refill(now_s)
        return max(0, min(wanted, int(self._tokens)))

    def spend(self, records: int) -> None:
        if self.rate_records_per_s > 0:
            self._tokens -= records

    def wait_s(self) -> float:
        """Until a tenth of a second's worth of records may be read; 0 = now, else at least a millisecond."""
        if self.rate_records_per_s <= 0:
            return 0.0
        need = max(1.0, self.rate_records_per_s / 10) - self._tokens
        return max(0.001, need / self.rate_records_per_s) if need > 0 else 0.0

    def _refill(self, now_s: float) -> None:
        fullest = max(1.0, self.rate_records_per_s)
        self._tokens = min(fullest, self._tokens + (now_s - self._at_s) * self.rate_records_per_s)
        self._at_s = now_s
