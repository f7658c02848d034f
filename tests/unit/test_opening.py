"""Opening a route by key into Kafka: what its markers have no room for is refused before it is started."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crossfade import wiring
from crossfade.brokers.memory import MemoryBoard, MemoryBroker
from crossfade.config import Config, load
from crossfade.errors import GuaranteeRefused
from crossfade.relay.documents import RouteBoard
from crossfade.wiring import opening

CONFIG = """\
version: 1
brokers:
  old: {kind: redis, url: "redis://127.0.0.1:1"}
  new: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:1"}}
streams:
  messages:
    old: {lanes: "m:<lane>", count: 2}
    new: {topic: t}
routes:
  forward: {id: idforward, stream: messages, source: old, target: new, lanes: by-key}
"""


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> MemoryBoard:
    board = MemoryBoard(MemoryBroker())

    async def open_log(*args: Any, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(lanes=2 if args[3] == "old" else 64, identity="x", shape=None)

    monkeypatch.setattr(opening, "_open_log", open_log)
    monkeypatch.setattr(opening, "_make_board", lambda at: board)
    monkeypatch.setattr(opening, "limits_of", lambda *_, **__: None)
    return board


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "crossfade.yaml").write_text(CONFIG)
    return load(tmp_path / "crossfade.yaml", {}, {})


async def test_a_route_with_too_many_target_lanes_is_never_started(config: Config, stored: MemoryBoard) -> None:
    with pytest.raises(GuaranteeRefused, match="route 'forward' maps each source lane to 64 target lanes"):
        async with wiring.open_route(config, "forward"):
            pass


async def test_it_can_be_compared_and_goes_on_where_it_was_started(config: Config, stored: MemoryBoard) -> None:
    async with wiring.open_route(config, "forward", copies=False) as opened:
        assert opened.route.target_lanes == 64
    await RouteBoard(stored, "idforward").add_started({0, 1})
    async with wiring.open_route(config, "forward") as opened:
        assert opened.route.target_lanes == 64
