"""The end of a process beside threads of brokers' clients, which may be stuck in a call.

The interpreter's own end would take their handles apart under them, and wait for brokers that are away: where some do
not end in a moment, the process leaves by `os._exit`. Called by `main` and `relay_stop`.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time

#: what threads that let go of their brokers are waited for when all else has ended
_THREADS_S = 0.3


def have_threads_ended() -> bool:
    """Wait a moment for the threads of brokers' clients; False where some are stuck. All output is flushed."""
    deadline = time.monotonic() + _THREADS_S
    others = [each for each in threading.enumerate() if each.name.startswith("kafka-")]
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    flush_output()
    return not any(thread.is_alive() for thread in others)


def flush_output() -> None:
    """Flush what can be flushed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
