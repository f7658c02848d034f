"""The demo's own processes: relays, workload and followers.

Every child runs in its own session, so that Ctrl-C reaches the demo alone, which then ends its children in order. Every
child also carries the lab's tag in its environment: if the demo itself is killed -9, the lab's watchdog ends them with
the servers. `Supervised` starts its child again at once when it dies, as systemd would; a fault can hold that back for
the moment in which it looks at what the dead process left behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from crossfade.lab.process import TAG

ROOT = Path(__file__).resolve().parent.parent

#: a child that dies by itself this often within a minute is broken, not unlucky
_DEATHS_MAX = 20


class Trouble(Exception):
    """The demo cannot go on; the message says what to look at."""


class Child:
    """One process with its output in a log file."""

    def __init__(self, name: str, argv: Sequence[str], *, logs: Path, tag: Path, env: Mapping[str, str]) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = logs / f"{name}.log"
        self._env = {**os.environ, **env, TAG: str(tag), "PYTHONUNBUFFERED": "1"}
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it; its output is appended to its log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=ROOT,
                env=self._env,
            )

    def kill(self) -> int:
        """kill -9, wait until the process is gone, and return the pid that it had."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        return self.process.pid

    def stop(self, wait_s: float = 15.0) -> int | None:
        """SIGTERM, then SIGKILL after `wait_s` (0: at once). The exit code, None if it was never started."""
        if self.process is None:
            return None
        if self.process.poll() is None:
            if wait_s:
                self.process.terminate()
            try:
                self.process.wait(wait_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode

    def end(self) -> None:
        """End it at once, in any case."""
        self.stop(wait_s=0.0)

    def tail(self, lines: int = 8) -> str:
        """The last lines of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class Supervised(Child):
    """A child that is started again whenever it dies, until `stop`."""

    def __init__(self, name: str, argv: Sequence[str], *, logs: Path, tag: Path, env: Mapping[str, str]) -> None:
        super().__init__(name, argv, logs=logs, tag=tag, env=env)
        #: times it was started again after it ended by itself (not by a fault)
        self.deaths_own = 0
        self._lock = threading.RLock()
        self._is_wanted = False
        self._is_held = False
        self._watching: threading.Thread | None = None
        self._recent_deaths: list[float] = []

    def start(self) -> None:
        self._is_wanted = True
        super().start()
        self._watching = threading.Thread(target=self._watch, name=f"supervisor {self.name}", daemon=True)
        self._watching.start()

    def kill_and_hold(self) -> int:
        """kill -9 without starting it again until `let_go`. Returns the pid that is gone."""
        with self._lock:
            self._is_held = True
            return self.kill()

    def let_go(self) -> None:
        """Start it again, as the supervisor does."""
        with self._lock:
            if self._is_wanted and not self.is_running:
                super().start()
            self._is_held = False

    def stop(self, wait_s: float = 15.0) -> int | None:
        with self._lock:
            self._is_wanted = False
        return super().stop(wait_s)

    def check(self) -> None:
        """Raise Trouble when it cannot stay alive."""
        if not self._is_wanted or self.is_running or self._is_held:
            return
        if self._is_broken():
            raise Trouble(f"{self.name} cannot stay alive, see {self.log}:\n{self.tail()}")

    def _is_broken(self) -> bool:
        now = time.monotonic()
        self._recent_deaths = [at for at in self._recent_deaths if now - at < 60]
        return len(self._recent_deaths) >= _DEATHS_MAX

    def _watch(self) -> None:
        while self._is_wanted:
            process = self.process
            assert process is not None
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
            with self._lock:
                if not self._is_wanted or self._is_held or self.is_running:
                    continue
                self.deaths_own += 1
                self._recent_deaths.append(time.monotonic())
                if self._is_broken():
                    return
                with self.log.open("a") as log:
                    log.write(f"--- supervisor: {self.name} ended with {process.returncode}, starting it again\n")
                super().start()


def crossfade_command() -> list[str]:
    """How the demo calls the product: its ordinary command."""
    return [str(Path(sys.executable).parent / "crossfade")]
