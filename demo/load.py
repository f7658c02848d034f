"""The load under which the faults happen: what the workload wrote, what arrived, and the lag between, over time.

A thread samples the source's length in Redis itself (not the workload's own word for it) and both followers' counts a
few times a second. All waiting in the demo goes through `wait`: until a condition holds, never for a fixed time.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable

from .timeline import Timeline

_SAMPLE_S = 0.2


class Load:
    """Samples the run until `stop`."""

    def __init__(self, source_records: Callable[[], int], forward: Timeline) -> None:
        self._source_records = source_records
        self.forward = forward
        #: set for the second half
        self.back: Timeline | None = None
        self.written = 0
        self.lag = 0
        #: each sample of the lag, by route, from the first record that was written
        self.lags: dict[str, list[int]] = {"forward": [], "back": []}
        self._was_live = False
        #: called while waiting; each may raise to give up early
        self.watch: list[Callable[[], None]] = []
        self._samples: list[tuple[float, int]] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self.error: Exception | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def is_writing(self) -> bool:
        """Whether the workload wrote within the last second."""
        return self.written_since(time.time() - 1.0) > 0

    def written_since(self, moment_s: float) -> int:
        """Records that the source got since then."""
        samples = self._samples
        at = bisect_left(samples, (moment_s, 0))
        return self.written - samples[at][1] if at < len(samples) else 0

    def wait(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Wait until `condition` holds; False when `limit_s` passed. Raises what `watch` raises."""
        deadline = time.monotonic() + limit_s
        while True:
            self.refresh()
            if condition():
                return True
            if self.error is not None:
                raise self.error
            for check in self.watch:
                check()
            if time.monotonic() >= deadline:
                return False
            self._stopping.wait(0.05)

    def refresh(self) -> None:
        """Take in what the followers saw."""
        self.forward.refresh()
        if self.back is not None:
            self.back.refresh()

    def _run(self) -> None:
        while not self._stopping.wait(_SAMPLE_S):
            try:
                self._sample()
            except Exception as error:  # noqa: BLE001 - it is raised again in the thread that waits
                self.error = error
                return

    def _sample(self) -> None:
        # Arrivals first: what arrived was written before, so the lag is never below the truth by a race.
        self.refresh()
        seen = self.forward.total
        back_seen = self.back.total if self.back is not None else 0
        at_s = time.time()
        self.written = self._source_records()
        self._samples.append((at_s, self.written))
        if self.back is None:
            self.lag = max(0, self.written - seen)
            if self.written:  # before, there is nothing to be late with
                self.lags["forward"].append(self.lag)
            return
        self.lag = max(0, self.forward.total - back_seen)
        if self.back.live_from_s and not self._was_live:  # before, it was the backlog that the second half begins with
            self._was_live, self.lags["back"] = True, []
        self.lags["back"].append(self.lag)
