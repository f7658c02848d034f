"""The end of a relay process that was asked to stop: by itself, or cut off at one deadline.

Hides that Python waits, without a limit, for tasks that swallow their cancellation and for threads that are stuck in a
call to a broker. Cutting off is safe: it is one more crash, and the next relay goes on from the markers. Called by
`crossfade relay run`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import structlog

from ..errors import CrossfadeError
from .leaving import flush_output, have_threads_ended

#: from the signal to the end of the process; five seconds are promised
STOP_S = 4.5
#: a log that nobody reads must not hold up the end
_TELL_S = 0.2


class Ending:
    """The deadline of one process; `doing` is what it would have to say that it was cut off in."""

    def __init__(self, stop_s: float = STOP_S, leave: Callable[[int], object] = os._exit) -> None:
        self.doing = "copying"
        self._stop_s, self._leave = stop_s, leave
        self._error: BaseException | None = None
        self._is_begun = False

    def begin(self) -> None:
        """The signal came: from now on the process has `stop_s`. A second signal changes nothing."""
        if not self._is_begun:
            self._is_begun = True
            threading.Thread(target=self._watch, name="relay-deadline", daemon=True).start()

    def failed(self, error: BaseException) -> None:
        """What the process ends with, also where it is cut off before that is told."""
        self._error = error

    def finish(self) -> None:
        """All is done. Leaves the process here where threads are still stuck in a call to a broker."""
        if not self._is_begun:
            return
        self.doing = "ending threads"
        if not have_threads_ended():
            self._leave(0)

    def _watch(self) -> None:
        time.sleep(self._stop_s)
        telling = threading.Thread(target=self._tell, name="relay-deadline-log", daemon=True)
        telling.start()
        telling.join(_TELL_S)
        # The last resort. sys.exit would only end this thread, and the interpreter waits for what is stuck.
        self._leave(self._error.exit_code if isinstance(self._error, CrossfadeError) else int(self._error is not None))

    def _tell(self) -> None:
        threads = sorted(each.name for each in threading.enumerate() if each is not threading.main_thread())
        log = structlog.get_logger()
        log.warning(
            "stop cut off",
            after_s=self._stop_s,
            unfinished=self.doing,
            threads=[name for name in threads if not name.startswith("relay-deadline")],
            hint="nothing is lost: the next relay goes on from the markers",
        )
        if isinstance(self._error, CrossfadeError):
            log.error("relay failed", **self._error.as_dict())
        elif self._error is not None:
            log.error("relay failed", error=type(self._error).__name__, reason=str(self._error))
        flush_output()
