"""How the proxy takes clients when it may run out of descriptors: the one that is too many is reset, the rest lives on.

A descriptor is kept in reserve. It is given up to take a client that there is no room for, so that the client is told
at once (left waiting, it would be reported again and again), and so that orders are taken even then. Called by proxy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
from collections.abc import Iterator

#: EINVAL: the link was cut between poll and accept
_NOBODY_WAITS = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EINVAL)
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def raise_limit() -> None:
    """Let this process open as many descriptors as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Reserve:
    """One descriptor that is kept for when there is no other."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self._has_told = False
        self._take_back()

    @contextlib.contextmanager
    def accepted(self, listener: socket.socket) -> Iterator[tuple[socket.socket | None, bool]]:
        """The next client, None where none waits; and whether it lives on the reserve: then it is closed at the end.

        Raises OSError where the listener itself is broken.
        """
        on_reserve = False
        try:
            client = _accept(listener)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            self.tell(error)
            on_reserve = True
            client = self._accept_on_reserve(listener)
        try:
            yield client, on_reserve
        finally:
            if on_reserve:
                if client is not None:
                    client.close()
                self._take_back()

    def tell(self, error: OSError) -> None:
        """Say that there is no room: once, because the log must not fill the disk."""
        if not self._has_told:
            self._has_told = True
            open_max = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            print(f"no room for every connection, some are reset: {error} (open files: {open_max})", flush=True)

    def _accept_on_reserve(self, listener: socket.socket) -> socket.socket | None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        with contextlib.suppress(OSError):
            return _accept(listener)
        return None

    def _take_back(self) -> None:
        with contextlib.suppress(OSError):
            self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


def _accept(listener: socket.socket) -> socket.socket | None:
    while True:
        try:
            return listener.accept()[0]
        except OSError as error:
            if error.errno in _NOBODY_WAITS:
                return None
            if error.errno != errno.ECONNABORTED:
                raise
