"""A start-up cache for Kafka: what Java loads and links at every start, kept from one trial start.

It halves the CPU time until a broker is ready (5 s to 2.4 s), which on a small machine is most of the time to start a
lab and to recover from a kill. It is made once per Kafka version, by starting a throw-away broker; without it
everything works, only slower. Java itself checks that the cache fits and ignores it otherwise. Called by kafka.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from crossfade.lab import packages
from crossfade.lab.process import spawn, stop_all, wait_until
from crossfade.lab.state import free_ports

_TRIAL_TIMEOUT_S = 60.0
#: what the trial and every later start must have in common
COMMON_FLAGS = ("-XX:+UseSerialGC", "-XX:-UsePerfData")
_SILENT = ("-Xlog:disable", "-Xlog:all=error:stderr")


def flags(version: str, classpath: str, folder: Path, say: Callable[[str], None]) -> list[str]:
    """Java flags that use the cache of this version, which is made now if it is missing; none if that fails."""
    cache = packages.home() / "kafka" / f"{version}-{_fingerprint(classpath)}.aot"
    if not cache.exists():
        _make(version, classpath, cache, folder, say)
    return [f"-XX:AOTCache={cache}", *_SILENT] if cache.exists() else []


def _fingerprint(classpath: str) -> str:
    return hashlib.sha256(f"{packages.java()}\n{classpath}".encode()).hexdigest()[:12]


def _make(version: str, classpath: str, cache: Path, folder: Path, say: Callable[[str], None]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    with (cache.parent / ".warm.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another lab is making it; this one starts without
        say(f"Kafka {version}: one trial start, so that later ones take half as long")
        partial = cache.with_suffix(f".{os.getpid()}")
        with tempfile.TemporaryDirectory(dir=cache.parent) as place:
            trouble = _trial(Path(place), classpath, partial, folder)
        if trouble:
            say(f"no start-up cache: {trouble}")
            partial.unlink(missing_ok=True)
        else:
            partial.replace(cache)


def _trial(place: Path, classpath: str, cache: Path, folder: Path) -> str:
    """Start a broker, let it write the cache as it ends; says what went wrong.

    It belongs to the lab that is starting, so that the watchdog ends it with that lab's owner.
    """
    held: list[int] = []
    try:
        return _run_trial(place, classpath, cache, folder, free_ports(["broker", "controller"], {}, held))
    finally:
        for fd in held:
            os.close(fd)


def _run_trial(place: Path, classpath: str, cache: Path, folder: Path, ports: Mapping[str, int]) -> str:
    port, controller = ports["broker"], ports["controller"]
    config = place / "server.properties"
    config.write_text(
        "process.roles=broker,controller\nnode.id=1\ncontroller.listener.names=CONTROLLER\n"
        f"controller.quorum.voters=1@127.0.0.1:{controller}\n"
        f"listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\nlog.dirs={place}/data\n"
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n"
        "offsets.topic.replication.factor=1\n"
    )
    java: Sequence[str] = (str(packages.java()), *COMMON_FLAGS)
    tool = [*java, "-cp", classpath, "kafka.tools.StorageTool", "format", "-t", "A" * 22, "-c", str(config)]
    try:
        if subprocess.run(tool, capture_output=True, timeout=_TRIAL_TIMEOUT_S, check=False).returncode:
            return "the storage tool failed"
    except subprocess.TimeoutExpired:
        return f"the storage tool did not end in {_TRIAL_TIMEOUT_S:.0f} s"
    argv = [*java, *_SILENT, "-Xmx512m", f"-XX:AOTCacheOutput={cache}", "-cp", classpath, "kafka.Kafka", str(config)]
    process = spawn(argv, lab_dir=folder, log=place / "log")
    try:
        if not wait_until(lambda: not process.is_alive() or _listens(port), _TRIAL_TIMEOUT_S):
            return "the trial broker did not start"
        time.sleep(1.0)  # the last of its threads are starting
        process.send(signal.SIGTERM)
        ended = process.wait_gone(_TRIAL_TIMEOUT_S)
    finally:
        stop_all([process], grace_s=0.0)
    return "" if ended and cache.exists() else "Java did not write it"


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
