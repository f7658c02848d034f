"""A disk that is full: from a moment on no file of one server takes another byte, until that is lifted.

Done by a limit on the size of that process's files, which needs no right and no mount: a write fails with EFBIG where a
full disk says ENOSPC, and servers treat the two alike. Data, sockets and memory are untouched. The limit goes with the
process: a server that has ended of it starts without. Called by faults and heals.
"""

from __future__ import annotations

import contextlib
import resource

from crossfade.lab.errors import LabError, NotPossibleHere
from crossfade.lab.process import Process


def fill(process: Process) -> None:
    """Let no file of the process grow any more.  Raises LabError, NotPossibleHere."""
    try:
        _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, most))
    except ProcessLookupError as error:
        raise LabError("the server has ended meanwhile", hint="start it, or wait until it has healed") from error
    except PermissionError as error:
        raise NotPossibleHere(f"a full disk needs the right to limit a process: {error}") from error


def make_room(process: Process) -> None:
    """Let its files grow again; nothing happens where it has ended."""
    if process.is_alive():
        with contextlib.suppress(ProcessLookupError):
            _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))


def is_full(process: Process) -> bool:
    """Whether the process runs and its files cannot grow."""
    if not process.is_alive():
        return False
    try:
        return resource.prlimit(process.pid, resource.RLIMIT_FSIZE)[0] == 0
    except ProcessLookupError:
        return False
