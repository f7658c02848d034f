"""Server processes: started in their own sessions, tagged, and never confused with a stranger's.

A pid is only believed together with the start time that the kernel recorded for it, so a recycled pid is never
signalled. Every child carries the lab's folder in its environment (`CROSSFADE_LAB_DIR`): what was started but not yet
written down, because the owner was killed in between, is still found and ended. Used in the whole lab.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: names the lab folder in the environment of every process that belongs to it
TAG = "CROSSFADE_LAB_DIR"


@dataclass(frozen=True)
class Process:
    """One process as it was started: the pid alone is not an identity, pid and start time are."""

    pid: int
    started_ticks: int

    def is_alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        found = _stat(self.pid)
        return found is not None and found.started_ticks == self.started_ticks and found.state not in "ZX"

    def is_frozen(self) -> bool:
        """Whether it is stopped by SIGSTOP."""
        found = _stat(self.pid)
        return found is not None and found.started_ticks == self.started_ticks and found.state == "T"

    def send(self, signum: int) -> bool:
        """Signal it, if it still is the same process; the answer says whether it was."""
        if not self.is_alive():
            return False
        try:
            os.kill(self.pid, signum)
        except ProcessLookupError:
            return False
        return True

    def wait_gone(self, wait_s: float) -> bool:
        """Wait until it is gone; False after `wait_s`."""
        return wait_until(lambda: not self.is_alive(), wait_s, pause_s=0.01)

    def kill(self, wait_s: float = 5.0) -> bool:
        """SIGKILL and wait; True when it is gone."""
        self.send(signal.SIGKILL)
        return self.wait_gone(wait_s)


@dataclass(frozen=True)
class _Stat:
    state: str
    started_ticks: int


def _stat(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name is in parentheses and may itself hold spaces and parentheses: cut after the last one.
    fields = text[text.rindex(")") + 2 :].split()
    return _Stat(fields[0], int(fields[19]))


def identify(pid: int) -> Process | None:
    """The process that has this pid now, or None when there is none."""
    found = _stat(pid)
    return None if found is None or found.state in "ZX" else Process(pid, found.started_ticks)


def spawn(argv: Sequence[str], *, lab_dir: Path, log: Path, env: Mapping[str, str] | None = None) -> Process:
    """Start a server in its own session, its output appended to `log`.

    It is reaped by nobody when the caller goes on: `collect` or the caller's own end does that.
    Raises OSError when the program is missing.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Python ignores SIGXFSZ and its children too: a write beyond a limit is an error, not the server's end.
            restore_signals=False,
            cwd=str(lab_dir),
            env={**os.environ, **(env or {}), TAG: str(lab_dir)},
        )
    found = _stat(child.pid)
    # Between fork and here the child is at worst a zombie of ours, so its entry in /proc exists.
    started_ticks = found.started_ticks if found else 0
    child.returncode = 0  # it outlives this object on purpose; without this the interpreter warns about it
    return Process(child.pid, started_ticks)


def collect(process: Process) -> None:
    """Reap the process if it was our own child, so that it does not stay a zombie until we end."""
    with contextlib.suppress(ChildProcessError, OSError):
        os.waitpid(process.pid, os.WNOHANG)


def tagged(lab_dir: Path) -> list[Process]:
    """Every live process that carries this lab's tag, this one left out."""
    needle = f"{TAG}={lab_dir}".encode()
    out = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environ = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:
            continue  # gone meanwhile, or another user's
        if needle in environ.split(b"\0"):
            process = identify(int(entry))
            if process is not None:
                out.append(process)
    return out


def stop_all(processes: Sequence[Process], *, grace_s: float) -> None:
    """SIGTERM to all (thawed first), `grace_s` for them to end, then SIGKILL for the rest."""
    for process in processes:
        process.send(signal.SIGCONT)
        process.send(signal.SIGTERM)
    wait_until(lambda: not any(process.is_alive() for process in processes), grace_s)
    for process in processes:
        process.kill()
        collect(process)


def wait_until(condition: Callable[[], bool], wait_s: float, *, pause_s: float = 0.05) -> bool:
    """Poll until the condition holds; False when `wait_s` passed without it."""
    deadline = time.monotonic() + wait_s
    while True:
        if condition():
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause_s)
