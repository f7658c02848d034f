"""The workload under the faults: `crossfade.lab.workload` as a process, at full rate until the goal, then slower.

It writes past the proxies, so that no fault stops it, and never ends by itself: faults need traffic until the last of
them is over. Once enough is written it goes on at the slow rate (the same history, one record after the other), so that
a slow machine does not get a backlog that it has to copy, and judge, for minutes.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from .children import Child, Trouble
from .stage import Stage


class Writing:
    """One workload that can change its rate. Used by the run and by the thread that samples the load."""

    def __init__(self, stage: Stage, history: Path, seed: int, say: Callable[[str], None]) -> None:
        self._stage = stage
        self._history = history
        self._seed = seed
        self._say = say
        self._child: Child | None = None
        self._rate_records_per_s = 0
        self._lock = threading.Lock()

    def start(self, rate_records_per_s: int) -> None:
        """Begin, or go on, at this rate."""
        with self._lock:
            self._start(rate_records_per_s)

    def slow_down(self, rate_records_per_s: int) -> None:
        """Go on at this rate if it writes at another one."""
        with self._lock:
            if self._child is not None and self._rate_records_per_s != rate_records_per_s:
                self._stop()
                self._start(rate_records_per_s)

    def stop(self) -> None:
        """Stop it in good order. Raises Trouble when it had already ended."""
        with self._lock:
            if self._child is not None:
                self._say(f"workload stopped after {self._stop():,} records")

    def abandon(self) -> None:
        """End it in any case."""
        with self._lock:
            if self._child is not None:
                self._child.end()
                self._child = None

    def check(self) -> None:
        """Raise Trouble when it has ended by itself."""
        child = self._child
        if child is not None and not child.is_running and self._lock.acquire(blocking=False):
            try:
                if child is self._child:
                    raise Trouble(f"the workload ended by itself, see {child.log}:\n{child.tail()}")
            finally:
                self._lock.release()

    def _start(self, rate_records_per_s: int) -> None:
        argv = [
            *(sys.executable, "-m", "crossfade.lab.workload", "--redis", self._stage.redis_direct),
            *("--pattern", self._stage.pattern, "--lanes", str(self._stage.lanes)),
            *("--rate", str(rate_records_per_s), "--history", str(self._history), "--seed", str(self._seed)),
        ]
        child = Child("workload", [*argv, "--progress"], logs=self._stage.logs, tag=self._stage.tag, env={})
        child.start()
        self._child, self._rate_records_per_s = child, rate_records_per_s
        self._say(f"workload: unique keyed records at {rate_records_per_s:,}/s to {self._stage.pattern}")

    def _stop(self) -> int:
        """Records acknowledged in all."""
        child, self._child = self._child, None
        assert child is not None
        code = child.stop()
        # It takes SIGTERM for an order from the moment on in which it begins to write; before, it has written nothing.
        if code not in (0, -signal.SIGTERM):
            raise Trouble(f"the workload ended with {code}, see {child.log}:\n{child.tail()}")
        return int(json.loads(child.tail(1))["ok"])
