"""Jars are believed by checksum only, and what goes wrong names the coordinate and the next step."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

import pytest

from crossfade.lab import debian, packages
from crossfade.lab.errors import LabUsage, NotPossibleHere, PackageError

GOOD = b"a jar"
PIN = packages.Pin("org.example", "thing", "1.2", hashlib.sha256(GOOD).hexdigest())


def fetcher(path: Path, contents: list[bytes]) -> packages.Fetch:
    """Like the Maven client: an existing file is the answer, otherwise the next content is downloaded."""

    def fetch(pin: packages.Pin) -> Path:
        if not path.exists():
            path.write_bytes(contents.pop(0))
        return path

    return fetch


def test_a_good_jar_is_believed(tmp_path: Path) -> None:
    assert packages.verified(PIN, fetcher(tmp_path / "jar", [GOOD])).read_bytes() == GOOD


def test_a_jar_cut_short_in_the_cache_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "jar").write_bytes(GOOD[:2])
    assert packages.verified(PIN, fetcher(tmp_path / "jar", [GOOD])).read_bytes() == GOOD


def test_a_wrong_jar_is_refused_by_name_with_both_checksums(tmp_path: Path) -> None:
    with pytest.raises(PackageError) as caught:
        packages.verified(PIN, fetcher(tmp_path / "jar", [b"evil", b"evil"]))
    assert "org.example:thing:1.2" in caught.value.message
    assert PIN.sha256 in caught.value.message
    assert hashlib.sha256(b"evil").hexdigest() in caught.value.message
    assert "mirror" in caught.value.hint
    assert not (tmp_path / "jar").exists()


def test_a_failed_download_names_the_coordinate_and_what_to_do() -> None:
    def fetch(pin: packages.Pin) -> Path:
        raise OSError("no route to host")

    with pytest.raises(PackageError, match=r"org\.example:thing:1\.2: no route to host") as caught:
        packages.verified(PIN, fetch)
    assert "network" in caught.value.hint


def test_every_lock_is_whole() -> None:
    assert packages.KAFKA_VERSION in packages.kafka_versions()
    for version in packages.kafka_versions():
        pins = packages.kafka_pins(version, tools=True)
        assert all(re.fullmatch(r"[0-9a-f]{64}", pin.sha256) for pin in pins)
        assert len({(pin.group, pin.artifact) for pin in pins}) == len(pins)
        brokers = {pin.artifact: pin.version for pin in packages.kafka_pins(version)}
        assert brokers["kafka_2.13"] == brokers["kafka-clients"] == version
    tools = {pin.artifact for pin in packages.kafka_pins(packages.KAFKA_VERSION, tools=True)}
    assert {"connect-mirror", "connect-runtime", "kafka-tools"} <= tools


def test_a_version_without_a_lock_is_refused_with_those_that_have_one() -> None:
    with pytest.raises(LabUsage) as caught:
        packages.kafka_pins("0.8.0")
    assert packages.KAFKA_VERSION in caught.value.hint


def test_a_stamp_is_believed_only_while_every_jar_keeps_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSFADE_HOME", str(tmp_path))
    monkeypatch.setattr(packages, "kafka_pins", lambda version, tools: [PIN])
    fetched: list[str] = []

    def fetch(pin: packages.Pin) -> Path:
        path = tmp_path / "jar"
        if not path.exists():
            fetched.append(pin.coordinate)
            path.write_bytes(GOOD)
        return path

    monkeypatch.setattr(packages, "_maven_fetch", lambda: fetch)
    said: list[str] = []
    for _ in range(2):
        assert packages.kafka_classpath("1", say=said.append) == str(tmp_path / "jar")
    assert len(fetched) == len(said) == 1
    (tmp_path / "jar").write_bytes(GOOD[:3])
    assert packages.kafka_classpath("1", say=said.append) == str(tmp_path / "jar")
    assert len(fetched) == 2


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFADE_HOME", str(tmp_path / "own"))
    assert packages.home() == tmp_path / "own"
    monkeypatch.delenv("CROSSFADE_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert packages.home() == tmp_path / "crossfade"


# -- which Redis it is


def redis_server(path: Path, version: str) -> Path:
    """A program that says what a redis-server of this version says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=00000000:0 malloc=jemalloc-5.3.0 bits=64'\n")
    path.chmod(0o755)
    path.with_name("redis-check-rdb").touch()
    return path


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A machine whose package and whose PATH have a redis-server of these versions; none where it is empty."""
    has = {"package": "", "path": ""}
    monkeypatch.setenv("CROSSFADE_HOME", str(tmp_path / "cache"))

    def unpack(wanted: tuple[str, ...], root: Path, release: str = "") -> None:
        if not has["package"]:
            raise PackageError("there is no such package")
        redis_server(root / "usr/bin/redis-server", has["package"])

    def which(name: str) -> str | None:
        if name != "redis-server":
            return f"/usr/bin/{name}"
        return str(redis_server(tmp_path / "bin/redis-server", has["path"])) if has["path"] else None

    monkeypatch.setattr(debian, "unpack", unpack)
    monkeypatch.setattr(shutil, "which", which)
    return has


@pytest.mark.parametrize(
    ("package", "path", "expected"),
    [("7.0.15", "8.0.2", "cache"), ("6.0.16", "7.2.4", "bin"), ("8.0.2", "7.0.15", "bin"), ("", "7.4.1", "bin")],
)
def test_redis7_is_a_redis_7(machine: dict[str, str], tmp_path: Path, package: str, path: str, expected: str) -> None:
    machine |= {"package": package, "path": path}
    for _ in range(2):  # unpacked, and found unpacked
        build = packages.redis_build("redis7", say=lambda words: None)
        assert build.server.relative_to(tmp_path).parts[0] == expected


@pytest.mark.parametrize(
    ("package", "path", "told"),
    [
        ("8.0.2", "", "no Redis 7 server: the distribution's package is version 8.0.2"),
        ("6.0.16", "17.0.1", "the distribution's package is version 6.0.16; {path} is version 17.0.1"),
        ("", "6.2.14", "there is no such package; {path} is version 6.2.14"),
    ],
)
def test_another_version_is_refused_by_name(
    machine: dict[str, str], tmp_path: Path, package: str, path: str, told: str
) -> None:
    machine |= {"package": package, "path": path}
    with pytest.raises(NotPossibleHere) as caught:
        packages.redis_build("redis7", say=lambda words: None)
    assert told.format(path=tmp_path / "bin/redis-server") in caught.value.message
    assert "of version 7 on PATH" in caught.value.hint
