"""How far an audit is, and that it does not stand still; and what keeps its pace.

Hides clocks and rates. Called by `audit` and `by_key`; `Progress` is what the CLI shows.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..errors import Unreachable

#: a side that gives nothing for so long, though its bounds say that there is more, is unreachable
STALL_S_MAX = 60.0
PROGRESS_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an audit is."""

    records: int
    #: records of the source when the audit began (Kafka: an upper bound)
    records_total: int
    differences: int
    elapsed_s: float
    records_per_s: float
    eta_s: float
    #: call it for a state to resume from; costs a little, so not at every progress
    state: Callable[[], dict[str, Any]]


class Watch:
    """Tells of progress, and notices when there is none."""

    def __init__(self, on_progress: Callable[[Progress], None] | None) -> None:
        self.records_before = 0
        self._on_progress = on_progress
        self._started_s = self._told_s = self._heard_s = time.monotonic()

    def heard(self, is_news: bool) -> None:
        """After each round of reads. Raises Unreachable when none has brought anything for too long."""
        now_s = time.monotonic()
        if is_news:
            self._heard_s = now_s
        elif now_s - self._heard_s > STALL_S_MAX:
            raise Unreachable(
                f"no records came for {STALL_S_MAX:.0f} s, though the bounds say that there are more",
                hint="check that the brokers serve reads (leaders, open transactions)",
            )

    def tell(self, records: int, total: int, differences: int, state: Callable[[], dict[str, Any]]) -> None:
        """Call back, but not too often."""
        now_s = time.monotonic()
        if self._on_progress is None or now_s - self._told_s < PROGRESS_EVERY_S:
            return
        self._told_s = now_s
        elapsed_s = now_s - self._started_s
        rate = (records - self.records_before) / max(elapsed_s, 1e-9)
        eta_s = max(0, total - records) / rate if rate else 0.0
        self._on_progress(Progress(records, total, differences, elapsed_s, rate, eta_s, state))


@contextmanager
def collector_calmed() -> Iterator[None]:
    """Collect cycles rarely while rows stream by: rows hold none, and every full collection would walk all that are
    waiting, which doubles the cost of a record."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(1_000_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
