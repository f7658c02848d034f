"""Packages of the distribution, or of its next release, unpacked into a folder: nothing is installed, no root needed.

Hides `apt-get` and its private package index. The archive's address is the machine's own (`apt-get indextargets`), its
signatures are checked with the machine's keys. Called by packages.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from crossfade.lab.errors import PackageError

#: make a Redis server with TLS, its sentinel and `redis-cli`
REDIS_PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1")
#: what they need of a newer system than this one
LIBRARIES = (
    *("libc6", "libssl3t64", "libstdc++6", "libgcc-s1", "libatomic1", "libsystemd0", "libcap2"),
    *("zlib1g", "libzstd1"),
)
#: the release of Debian that has Redis 8
REDIS8_RELEASE = "trixie"
_KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TIMEOUT_S = 300


def unpack(packages: Sequence[str], root: Path, release: str = "") -> None:
    """Fetch packages of this machine's release, or of another one, and unpack them under `root`.

    Raises PackageError.
    """
    work = root.with_name("packages")
    shutil.rmtree(work, ignore_errors=True)
    (work / "lists/partial").mkdir(parents=True)
    (work / "cache/archives/partial").mkdir(parents=True)
    (work / "status").touch()
    private = [
        f"-oDir::State::lists={work}/lists",
        f"-oDir::State::status={work}/status",
        f"-oDir::Cache={work}/cache",
        "-oDebug::NoLocking=true",
        *(_of_release(release, work) if release else []),
    ]
    own = ["apt-get", "-q", "-oAPT::Sandbox::User="]  # the sandbox user cannot write into a private folder
    # The machine's own index first; many images have none, then a private one is fetched (it needs no root).
    attempts = [[[*own, "download", *packages]]] if not release else []
    attempts.append([[*own, *private, "update"], [*own, *private, "download", *packages]])
    _download(attempts, packages, work)
    partial = root.with_name("root.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for archive in sorted(work.glob("*.deb")):
        _run(["dpkg", "-x", str(archive), str(partial)], work)
    shutil.rmtree(root, ignore_errors=True)
    partial.rename(root)
    shutil.rmtree(work, ignore_errors=True)


def _of_release(release: str, work: Path) -> list[str]:
    """Options for an index of another release in the archive that this machine uses."""
    targets = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages"]
    rows = [line.split() for line in _run(targets, work).splitlines()]
    archives = [row[0] for row in rows if len(row) == 3 and row[2] == "main" and row[0].rstrip("/").endswith("/debian")]
    if not archives or not _KEYS.exists():
        raise PackageError(f"{release} is a release of Debian, and this machine's packages come from elsewhere")
    (work / "sources.list").write_text(f"deb [signed-by={_KEYS}] {archives[0]} {release} main\n")
    return [f"-oDir::Etc::sourcelist={work}/sources.list", "-oDir::Etc::sourceparts=-"]


def _download(attempts: list[list[list[str]]], packages: Sequence[str], work: Path) -> None:
    trouble = "?"
    for commands in attempts:
        for command in commands:
            try:
                _run(command, work)
            except PackageError as error:
                trouble = error.message
        if len(list(work.glob("*.deb"))) == len(packages):
            return
    raise PackageError(f"cannot fetch {', '.join(packages)}: {trouble}", hint="check the network")


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise PackageError(f"{command[0]} took longer than {_TIMEOUT_S} s", hint="check the network") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise PackageError(f"{command[0]} failed: {said[-1]}")
    return done.stdout
