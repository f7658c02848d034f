"""The processes that are measured: started in their own sessions, read from outside, always stopped.

Every child carries the lab's tag in its environment, so that the lab's watchdog ends it even when the benchmark itself
is killed -9. CPU and memory come from the kernel's own account of the process, never from what a tool says of itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from crossfade.lab.process import TAG

ROOT = Path(__file__).resolve().parent.parent
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_STOP_S = 12.0


class Trouble(Exception):
    """A measurement cannot be made; the message says what to look at."""


class Child:
    """One tool, one process, one log file. Use it in a `with`: on the way out the process is gone."""

    def __init__(self, name: str, argv: Sequence[str], *, logs: Path, tag: Path, env: Mapping[str, str] | None = None):
        self.name = name
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / f"{name}.log"
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=ROOT,
                env={**os.environ, **(env or {}), TAG: str(tag), "PYTHONUNBUFFERED": "1"},
            )

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def stop(self, wait_s: float = _STOP_S) -> int:
        """SIGTERM, SIGKILL after `wait_s`. Returns the exit code."""
        if self.is_running:
            self.process.terminate()
            try:
                self.process.wait(wait_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.returncode

    def kill(self) -> None:
        """kill -9, and wait until the process is gone."""
        if self.is_running:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def wait(self, limit_s: float) -> int:
        """Wait until it ends by itself and return its exit code. Raises Trouble."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Trouble(f"{self.name} did not end within {limit_s:.0f} s\n{self.tail()}") from None

    def cpu_s(self) -> float:
        """User and system CPU seconds so far, all threads."""
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return 0.0
        fields = text[text.rindex(")") + 2 :].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    def memory_peak_mib(self) -> float:
        """The largest resident size so far; 0 when the process is gone."""
        try:
            for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        except OSError:
            pass
        return 0.0

    def memory_mib(self) -> float:
        """The resident size now; 0 when the process is gone."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        except OSError:
            return 0.0
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    def output(self) -> str:
        """Everything that it wrote so far."""
        return self.log.read_text(errors="replace")

    def tail(self, lines: int = 12) -> str:
        """The last lines of its log, with the log's path."""
        return f"{self.log}:\n" + "\n".join(self.output().splitlines()[-lines:])
