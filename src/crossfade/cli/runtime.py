"""How a process that moves many small objects sets up Python and its memory allocator.

Hides two costs that no profile of our own functions shows. At the defaults, the cycle collector walks tens of thousands
of lists that form no cycles again and again (a third of a relay's CPU time), and the allocator gives the memory of each
batch back to the kernel, which clears every page of it anew for the next one (a tenth of it).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource

#: mallopt's names: see mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
#: free memory that the process keeps for its next batches
_KEPT_BYTES = 64 << 20
#: larger blocks than this are given back at once
_LARGE_BYTES = 16 << 20
#: each thread that runs into a busy arena gets one of its own, and keeps its peak
_ARENAS = 2
_OPEN_FILES = 65_536


def keep_freed_memory(arenas: int = _ARENAS) -> None:
    """Reuse freed memory instead of giving it back. Call it before threads start: arenas are made for them.

    `arenas`: threads share so many; with more of them they wait less for each other, and keep more peaks.
    """
    # glibc alone has it; elsewhere the allocator stays as it is.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, arenas)
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def allow_open_files() -> None:
    """Let this process open many files: a route takes up to 165 with three Kafka brokers, shells often give 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if 0 <= soft < most:
        with contextlib.suppress(ValueError, OSError):  # a sandbox may forbid it: then it stays as it is
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def calm_collector() -> None:
    """Look for cycles rarely, and never again in what is here now. Call it after start-up."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000_000, 20, 100)
