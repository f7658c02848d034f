"""Streams, topics and routes of the system tests: every test gets its own, and leaves no process behind."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rig import Copy, KafkaSide, RedisSide, Side

from crossfade.lab import Lab


class Workshop:
    """Makes sides and copies on the session's lab."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.sides: list[Side] = []
        self.copies: list[Copy] = []

    def redis(self, lanes: int = 4) -> RedisSide:
        side = RedisSide(self.lab, lanes, f"sys-{secrets.token_hex(5)}:<lane>")
        self.sides.append(side)
        return side

    def kafka(self, lanes: int = 4, configs: dict[str, str] | None = None) -> KafkaSide:
        side = KafkaSide(self.lab, lanes, f"sys-{secrets.token_hex(5)}", configs)
        self.sides.append(side)
        return side

    def side(self, letter: str, lanes: int = 4) -> Side:
        return self.redis(lanes) if letter == "r" else self.kafka(lanes)

    def copy(self, source: Side | str, target: Side | str, **route: Any) -> Copy:
        """A route between two sides; a letter (r or k) makes a new side of four lanes."""
        source = self.side(source) if isinstance(source, str) else source
        target = self.side(target) if isinstance(target, str) else target
        made = Copy(self.lab, self.folder, source, target, **route)
        self.copies.append(made)
        return made

    def close(self) -> None:
        for copy in self.copies:
            copy.clean()
        for side in self.sides:
            side.clean()


@pytest.fixture
def workshop(lab: Lab, tmp_path: Path) -> Iterator[Workshop]:
    made = Workshop(lab, tmp_path)
    yield made
    made.close()


@pytest.fixture
def copy(workshop: Workshop) -> Callable[..., Copy]:
    """`copy("r", "k")`: a route between two new sides."""
    return workshop.copy
