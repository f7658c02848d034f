"""Keys, certificates and accounts of a secured lab (`--secure`).

Everything is made for one lab and thrown away with it. Called by lab; kafka and redis put the results into their files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crossfade.lab.errors import LabUsage
from crossfade.lab.state import Options, State


@dataclass(frozen=True)
class KafkaSecurity:
    """What a broker needs to know to ask for TLS, SASL and ACLs."""

    def properties(self, *, is_broker: bool) -> dict[str, str]:
        return {}

    def format_arguments(self) -> list[str]:
        return []


@dataclass(frozen=True)
class Security:
    """All of a secured lab."""

    kafka: KafkaSecurity
    redis_lines: Callable[[str], list[str]]
    secrets: dict[str, str]


def check(options: Options) -> None:
    if options.secure:
        raise LabUsage("not yet")


def prepare(folder: Path, state: State) -> Security:
    return Security(KafkaSecurity(), lambda _: [], {})


def kafka_client(folder: Path, state: State, listener: str) -> dict[str, str]:
    return {}


def redis_url(folder: Path, state: State, port: int) -> str:
    return f"redis://127.0.0.1:{port}/0"


def env(folder: Path, state: State) -> dict[str, str]:
    return {}
