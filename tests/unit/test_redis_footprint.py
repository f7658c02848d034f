"""What a route left on a Redis service, told from what others have there, on a service that a test makes up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hiredis
import pytest

from crossfade import wiring
from crossfade.brokers.redis import RedisInspector, discover, footprint
from crossfade.brokers.redis.keys import BOARD_KEY, lease_key, new_birth, quarantine_key, state_key
from crossfade.brokers.redis.settings import Address, RedisSettings
from crossfade.config import load
from crossfade.errors import UsageError

ROUTE = "mine"
SETTINGS = RedisSettings(addresses=(Address("127.0.0.1", 1),))
_FILE = """
version: 1
brokers:
  old: {kind: redis, url: "redis://127.0.0.1:1"}
  new: {kind: redis, url: "redis://127.0.0.1:2"}
streams:
  messages:
    old: {lanes: "msg:<lane>", count: discover}
    new: {lanes: "copy:<lane>", count: discover}
routes:
  forward: {id: mine, stream: messages, source: old, target: new}
"""


@dataclass
class FakeService:
    """The keys of a service: hashes, and streams by the names of their groups."""

    hashes: dict[bytes, dict[bytes, bytes]] = field(default_factory=dict)
    streams: dict[bytes, list[str]] = field(default_factory=dict)

    async def call(self, _nodes: object, _key: bytes, commands: Sequence[tuple[Any, ...]], _doing: str) -> list[Any]:
        return [self._answer(*command) for command in commands]

    def _answer(self, name: str, *words: Any) -> Any:
        match name, words:
            case "EXISTS", [key]:
                return int(key in self.hashes or key in self.streams)
            case "HGET", [key, one]:
                return self.hashes.get(key, {}).get(one.encode())
            case "HKEYS", [key]:
                return list(self.hashes.get(key, {}))
            case "XINFO", ["STREAM", key]:
                return [] if key in self.streams else hiredis.ReplyError("ERR no such key")
            case "XINFO", ["GROUPS", key]:
                if key not in self.streams:
                    return hiredis.ReplyError("ERR no such key")
                return [[b"name", group.encode(), b"consumers", 0] for group in self.streams[key]]
            case "DEL", [key]:
                self.hashes.pop(key, None)
                return 1
            case "HDEL", [key, one]:
                return self.hashes.get(key, {}).pop(one, None) is not None
            case "XGROUP", ["DESTROY", key, group]:
                self.streams[key].remove(group.decode())
                return 1
        raise AssertionError((name, words))


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> FakeService:
    made = FakeService()
    monkeypatch.setattr(footprint, "call_key", made.call)
    monkeypatch.setattr(discover, "call_key", made.call)
    return made


def inspector(*keys: str) -> RedisInspector:
    return RedisInspector(SETTINGS, keys)


@pytest.mark.parametrize("application", ["crossfade.billing", f"crossfade.{ROUTE}.billing", "crossfade.0123456789AB"])
async def test_a_group_of_an_application_is_nobodys_birth(service: FakeService, application: str) -> None:
    own, shared, other = new_birth(ROUTE), new_birth(""), new_birth("other")
    service.streams[b"msg:0"] = [application, own, shared, other]
    left = await inspector("msg:0").footprint(ROUTE)
    assert left == [f"group msg:0 {own}", f"shared msg:0 {shared}"]
    await inspector("msg:0").erase(ROUTE, left)
    assert service.streams[b"msg:0"] == [application, other]
    with pytest.raises(UsageError, match="nothing that Crossfade made"):
        await inspector("msg:0").erase(ROUTE, [f"group msg:0 {application}"])


@pytest.mark.parametrize("route", ["started", "status", "relay-1", "mine"])
async def test_a_document_is_its_routes_alone(service: FakeService, route: str) -> None:
    own = [b"desired/mine", b"started/mine", b"status/mine/relay-1"]
    service.hashes[BOARD_KEY] = dict.fromkeys([*own, b"status/other/mine", b"started/other", b"\0versions"], b"1 {}")
    expected = [f"document {name.decode()}" for name in own] if route == ROUTE else []
    assert await inspector("msg:0").footprint(route) == expected


# -- streams whose keys are discovered -----------------------------------------------------------------------------


def claimed(service: FakeService, *lanes: int) -> list[str]:
    """What a claim writes beside the target's lanes, before they have records."""
    keys = [state_key(b"copy:%d" % lane) for lane in lanes]
    service.hashes |= {key: {b"route": ROUTE.encode()} for key in keys}
    return [f"key {key.decode()}" for key in keys]


async def left_at(tmp_path: Path, role: str, known_lanes: int) -> list[str]:
    path = tmp_path / "crossfade.yaml"
    path.write_text(_FILE)
    config = load(path, {}, {})
    async with wiring.open_inspectors(config, "forward", (role,), known_lanes=known_lanes) as [(_, _, found)]:
        return await found.footprint(ROUTE)


@pytest.mark.parametrize("known_lanes", [0, 4])
@pytest.mark.parametrize("copied", [(), (0, 2), (0, 1)], ids=["nothing", "a hole", "the first ones"])
async def test_lanes_of_a_target_without_records_are_looked_at_too(
    service: FakeService, tmp_path: Path, copied: tuple[int, ...], known_lanes: int
) -> None:
    service.streams = {b"copy:%d" % lane: [] for lane in copied}
    expected = claimed(service, 0, 1, 2, 3)
    assert await left_at(tmp_path, "target", known_lanes) == expected


async def test_lanes_that_the_board_knows_of_are_looked_at_whatever_else_is_gone(
    service: FakeService, tmp_path: Path
) -> None:
    quarantine = quarantine_key(b"copy:3", ROUTE)
    service.streams[quarantine] = []
    assert await left_at(tmp_path, "target", 0) == []
    assert await left_at(tmp_path, "target", 4) == [f"key {quarantine.decode()}"]


async def test_a_source_whose_stream_keys_are_gone_keeps_nothing_from_being_listed(
    service: FakeService, tmp_path: Path
) -> None:
    service.hashes[lease_key(ROUTE)] = {}
    lease = f"key {lease_key(ROUTE).decode()}"
    assert await left_at(tmp_path, "source", 0) == [lease]
    birth = new_birth(ROUTE)
    service.streams[b"msg:5"] = [birth]
    assert await left_at(tmp_path, "source", 0) == [f"group msg:5 {birth}", lease]
    to_copy_from_it = wiring.open_inspectors(load(tmp_path / "crossfade.yaml", {}, {}), "forward", ("source",))
    with pytest.raises(UsageError, match="there is no stream msg:0"):
        await to_copy_from_it.__aenter__()
