"""What a lab is, on disk: `.crossfade/lab/<name>/lab.json`, read and replaced as a whole under a lock.

Every change goes through `change`, so that the CLI, the watchdog and a test can work on one lab at a time without
losing each other's entries. The file names each server with the command that starts it, so anybody can restart it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from crossfade.lab.errors import LabError, LabUsage
from crossfade.lab.process import Process

STATE_VERSION = 1
NAME = re.compile(r"[a-z0-9-]{1,63}")
#: below the kernel's usual range for outgoing connections, so that a stopped server's port stays free
PORTS = range(20_000, 32_000)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of `up`."""

    brokers: int = 3
    controllers: str = "combined"
    redis: str = "standalone"
    redis_flavour: str = "valkey"
    secure: bool = False
    proxies: bool = True
    kafka_version: str = ""
    heap_mb: int = 512


class Server(msgspec.Struct, kw_only=True):
    """One server process: how to start it, where it listens, and which process it is now."""

    name: str
    kind: str  # kafka | controller | redis | sentinel
    argv: list[str]
    env: dict[str, str]
    port: int  # where it listens itself: the direct listener of a broker
    log: str
    data_dir: str
    node_id: int = 0
    pid: int = 0
    started_ticks: int = 0

    @property
    def process(self) -> Process:
        return Process(self.pid, self.started_ticks)

    @property
    def is_alive(self) -> bool:
        return self.pid != 0 and self.process.is_alive()


class LinkAddress(msgspec.Struct, kw_only=True):
    """A proxy's listening port and the port behind it; they are the same in a lab without proxies."""

    name: str
    port: int
    target_port: int


class State(msgspec.Struct, kw_only=True):
    """The whole of a lab."""

    version: int = STATE_VERSION
    name: str
    options: Options
    cluster_id: str = ""
    owner: tuple[int, int] | None = None  # pid and start time; the lab ends with this process
    helpers: dict[str, tuple[int, int]] = {}  # proxy and watchdog
    servers: list[Server] = []
    links: list[LinkAddress] = []
    ports: dict[str, int] = {}
    secrets: dict[str, str] = {}

    def server(self, name: str) -> Server:
        """The server of this name.  Raises LabUsage."""
        for server in self.servers:
            if server.name == name:
                return server
        known = ", ".join(server.name for server in self.servers) or "none"
        raise LabUsage(f"lab {self.name!r} has no server {name!r}", hint=f"servers: {known}")

    def link(self, name: str) -> LinkAddress:
        """The link of this name.  Raises LabUsage."""
        for link in self.links:
            if link.name == name:
                return link
        known = ", ".join(link.name for link in self.links) or "none"
        raise LabUsage(f"lab {self.name!r} has no link {name!r}", hint=f"links: {known}")

    def processes(self) -> list[Process]:
        """Every recorded process, servers first."""
        found = [server.process for server in self.servers if server.pid]
        return found + [Process(*identity) for identity in self.helpers.values()]


def lab_root() -> Path:
    """The folder of all labs of this working directory; `CROSSFADE_LAB_ROOT` moves it."""
    return Path(os.environ.get("CROSSFADE_LAB_ROOT") or Path.cwd() / ".crossfade" / "lab").resolve()


def lab_dir(name: str) -> Path:
    """The folder of one lab.  Raises LabUsage for a name that is no name."""
    if not NAME.fullmatch(name):
        raise LabUsage(f"{name!r} is not a lab name", hint="use 1 to 63 of a-z, 0-9 and -")
    return lab_root() / name


def read(folder: Path) -> State:
    """Read a lab's state.  Raises LabUsage when there is none, LabError when it is of a newer kind."""
    try:
        raw = (folder / "lab.json").read_bytes()
    except FileNotFoundError:
        known = sorted(path.parent.name for path in folder.parent.glob("*/lab.json"))
        raise LabUsage(
            f"there is no lab {folder.name!r} in {folder.parent}",
            hint=f"known: {', '.join(known)}" if known else "start one with `crossfade lab up`",
        ) from None
    try:
        state = msgspec.json.decode(raw, type=State)
    except msgspec.MsgspecError as error:
        raise LabError(f"{folder}/lab.json is damaged: {error}", hint="remove the folder") from error
    if state.version > STATE_VERSION:
        raise LabError(f"{folder}/lab.json has version {state.version}", hint="written by a newer Crossfade: use that")
    return state


def write(folder: Path, state: State) -> None:
    """Replace a lab's state as a whole."""
    partial = folder / f".lab.json.{os.getpid()}"
    partial.touch(mode=0o600)  # it holds the passwords of a secured lab
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(state), indent=1))
    partial.replace(folder / "lab.json")


@contextlib.contextmanager
def change(folder: Path) -> Iterator[State]:
    """Read, let the caller change, write: alone.  Raises what `read` raises."""
    with locked(folder):
        state = read(folder)
        yield state
        write(folder, state)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lab's lock; it is released by the kernel if the holder dies."""
    fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def is_free(port: int) -> bool:
    """Whether this loopback port can be listened on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(names: list[str], kept: dict[str, int], held: list[int] | None = None) -> dict[str, int]:
    """A port for each name: the kept one where it is free, else a fresh one.

    Servers listen seconds after their ports were chosen. So `held` takes a descriptor of each port: until it is closed,
    no lab of this user chooses that port.
    """
    out: dict[str, int] = {}
    for name in names:
        if name in kept and _take(kept[name], held):
            out[name] = kept[name]
    for name in names:
        while name not in out:
            port = random.choice(PORTS)
            if port not in kept.values() and port not in out.values() and _take(port, held):
                out[name] = port
    return out


def _take(port: int, held: list[int] | None) -> bool:
    """Whether nobody listens on the port, and no other lab is about to."""
    folder = Path(tempfile.gettempdir()) / f"crossfade-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    fd = os.open(folder / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return False
    is_ours = is_free(port)
    if is_ours and held is not None:
        held.append(fd)
    else:
        os.close(fd)
    return is_ours
