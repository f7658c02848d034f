"""How the lab talks to its own proxy: one JSON line each way over a Unix socket in the lab's folder.

A Unix socket's path is limited to 107 bytes, which a lab in a deep folder exceeds; both ends therefore go through
`/proc/self/fd`. Called by proxy (binding) and by lab and launch (asking).
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from crossfade.lab.errors import LabError


def bind_unix(path: Path) -> socket.socket:
    """A socket bound at `path`; what an earlier process left there is replaced."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        sock.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
    os.chmod(path, 0o600)
    return sock


def ask(path: Path, request: dict[str, Any], *, wait_s: float = 5.0) -> dict[str, Any]:
    """Send one request to the proxy and return its answer.

    Raises LabError when the proxy does not answer or refuses.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(wait_s)
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            sock.connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        sock.sendall(json.dumps(request).encode() + b"\n")
        with sock.makefile() as lines:
            answer: dict[str, Any] = json.loads(lines.readline() or "{}")
    except (OSError, ValueError) as error:
        raise LabError(f"the lab's proxy does not answer: {error}", hint="see `crossfade lab status`") from error
    finally:
        sock.close()
    if "error" in answer:
        raise LabError(f"the lab's proxy refused {request.get('op')}: {answer['error']}")
    return answer
