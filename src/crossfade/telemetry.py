"""Structured logs and named steps.

A step is a point in a protocol where a crash matters. `step()` costs an assignment when nothing listens. Warnings and
errors name the last step that the process has passed (`last_step`), and `CROSSFADE_KILL_AT=relay.append.sent:3` makes
it kill -9 itself at the third passing of a step, which is how the crash matrix visits every one of them in real
processes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any, TextIO

import structlog

#: log levels whose lines name the last step
_TELLS_STEP = frozenset({"warning", "error", "exception", "critical"})
#: step name -> passings left before this process kills itself
_KILL_AT: dict[str, int] = {}
#: of the whole process: with several routes, whichever of them passed one last
_last_step = ""


def arm_kill(spec: str) -> None:
    """Arm `step:count[,step:count]`; an empty text arms nothing."""
    for part in filter(None, spec.split(",")):
        name, _, count = part.partition(":")
        _KILL_AT[name] = int(count or 1)


def step(name: str) -> None:
    """Pass a named step. Kills the process (SIGKILL) where the crash matrix armed it."""
    global _last_step
    _last_step = name
    if _KILL_AT and name in _KILL_AT:
        _KILL_AT[name] -= 1
        if _KILL_AT[name] == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def add_last_step(_logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A structlog processor: warnings and errors say where in its protocols the process was."""
    if _last_step and method in _TELLS_STEP:
        event["last_step"] = _last_step
    return event


def _wants_colors() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")  # https://no-color.org


class LineLog:
    """Writes each line to a stream at once; where that refuses it (a full disk, a reader that has gone), the line is
    left out and counted. A log must never end what it tells about."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        # Past the buffers: they keep what was refused, and offer it again with every later line.
        self._raw: Any = getattr(getattr(file, "buffer", None), "raw", None)
        self._lock = threading.Lock()
        self._left_out = 0
        self._is_torn = False  # the last line went out in part

    def add_left_out(self, _logger: object, _method: str, event: structlog.typing.EventDict) -> Any:
        """A structlog processor: how many lines are missing before this one."""
        if self._left_out:
            event["lines_left_out"] = self._left_out
        return event

    def write(self, line: str) -> None:
        """Write a line, or count it."""
        with self._lock:
            try:
                self._write(line + "\n")
                self._left_out = 0
            except (OSError, ValueError):
                self._left_out += 1

    def _write(self, text: str) -> None:
        if self._raw is None:
            self._file.write(text)
            self._file.flush()
            return
        left = (("\n" if self._is_torn else "") + text).encode(self._file.encoding, "backslashreplace")
        while left:
            written = self._raw.write(left)
            if not written:  # None: a pipe that is full, of somebody who does not want to be waited for
                raise BlockingIOError
            left = left[written:]
            self._is_torn = bool(left)

    debug = info = warning = error = critical = write


def setup_logging(*, json: bool, level: str = "info") -> None:
    """Send structured logs to stderr: JSON lines for machines, coloured words for people."""
    numeric = {"debug": 10, "info": 20, "warning": 30, "error": 40}[level]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if json else structlog.dev.ConsoleRenderer(colors=_wants_colors())
    )
    log = LineLog(sys.stderr)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            add_last_step,
            log.add_left_out,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=lambda *_: log,
        cache_logger_on_first_use=True,
    )


arm_kill(os.environ.get("CROSSFADE_KILL_AT", ""))
