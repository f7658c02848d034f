"""Opening a route: what cannot be copied is refused before anything is started.

By key into Kafka: what its markers have no room for. Anywhere: a stream into itself, whatever its servers are called.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hiredis
import pytest

from crossfade import wiring
from crossfade.brokers.kafka.cluster import Cluster, ConfigValue
from crossfade.brokers.kafka.log import KafkaLog
from crossfade.brokers.memory import MemoryBoard, MemoryBroker
from crossfade.brokers.redis.log import RedisLog
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
        lanes, kind = (2, "redis") if args[3] == "old" else (64, "kafka")
        return SimpleNamespace(lanes=lanes, identity="x", shape=None, kind=kind)

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


async def test_lanes_that_nobody_has_started_yet_are_no_later_ones(config: Config, stored: MemoryBoard) -> None:
    board = RouteBoard(stored, "idforward")
    await board.add_started({1}, 2)
    async with wiring.open_route(config, "forward") as opened:
        assert opened.new_lanes == ()


async def test_lanes_behind_those_of_the_first_start_are_later_ones(config: Config, stored: MemoryBoard) -> None:
    await RouteBoard(stored, "idforward").add_started({0}, 1)
    async with wiring.open_route(config, "forward") as opened:
        assert opened.new_lanes == (1,)


@pytest.mark.parametrize("back", ["", ", reverse_of: forward"])
async def test_a_redis_target_knows_whether_its_route_is_one_of_a_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: str
) -> None:
    opened: dict[str, str] = {}

    async def open_log(log: RedisLog | KafkaLog) -> None:
        if isinstance(log, RedisLog):
            opened[log.name] = log.claims.alone
        log.lanes, log.identity = 2, log.name

    monkeypatch.setattr(RedisLog, "open", open_log)
    monkeypatch.setattr(KafkaLog, "open", open_log)
    monkeypatch.setattr(KafkaLog, "is_compacted", lambda log: asyncio.sleep(0, False))
    monkeypatch.setattr(opening, "_make_board", lambda at: MemoryBoard(MemoryBroker()))
    forward = "  forward: {id: idforward, stream: messages, source: old, target: new}\n"
    text = CONFIG.partition("  forward:")[0] + (forward if back else "")
    text += f"  back: {{id: idback, stream: messages, source: new, target: old{back}}}\n"
    (tmp_path / "crossfade.yaml").write_text(text)
    async with wiring.open_route(load(tmp_path / "crossfade.yaml", {}, {}), "back"):
        pass
    assert opened == {"m:<lane>": "" if back else "idback"}


# -- a pair --------------------------------------------------------------------------------------------------------

_PAIR = """\
version: 1
brokers:
  old: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:1"}}
  new: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:2"}}
streams:
  messages:
    old: {topic: t}
    new: {topic: u}
routes:
  forward: {id: idforward, stream: messages, source: old, target: new, allow_weak: true}
  back: {id: idback, stream: messages, source: new, target: old, reverse_of: forward, allow_weak: true}
"""


@pytest.mark.parametrize("name", ["forward", "back"])
@pytest.mark.parametrize("policy", ["delete", "compact", "compact,delete"])
async def test_a_compacted_source_of_a_pair_may_lack_echoes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, policy: str
) -> None:
    source = "t" if name == "forward" else "u"

    async def open_log(log: KafkaLog) -> None:
        log.lanes, log.identity = 2, log.name

    async def config_of(_: Cluster, topic: str) -> dict[str, ConfigValue]:
        return {"cleanup.policy": ConfigValue(policy if topic == source else "delete", False)}

    monkeypatch.setattr(KafkaLog, "open", open_log)
    monkeypatch.setattr(Cluster, "config", config_of)
    monkeypatch.setattr(opening, "_make_board", lambda at: MemoryBoard(MemoryBroker()))
    (tmp_path / "crossfade.yaml").write_text(_PAIR)
    async with wiring.open_route(load(tmp_path / "crossfade.yaml", {}, {}), name) as opened:
        assert opened.limits.source_has_gaps is ("compact" in policy)


# -- a stream into itself ------------------------------------------------------------------------------------------

_TWO_REDIS = """\
version: 1
brokers:
  old: {{kind: redis, url: "redis://127.0.0.1:{0}/{2}"}}
  new: {{kind: redis, url: "redis://127.0.0.1:{1}/0"}}
streams:
  messages:
    old: {{lanes: "m:<lane>", count: 2}}
    new: {{keys: [{3}, other]}}
routes:
  forward: {{id: idforward, stream: messages, source: old, target: new}}
"""
_TWO_KAFKAS = """\
version: 1
brokers:
  old: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:1"}}
  new: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:2"}}
streams:
  messages:
    old: {topic: t}
    new: {topic: t}
routes:
  forward: {id: idforward, stream: messages, source: old, target: new}
"""


@contextlib.asynccontextmanager
async def redis_at(run_id: str) -> AsyncIterator[int]:
    """The port of a primary that says which one it is; "" = it does not."""
    text = f"redis_version:7.2.4\r\nrun_id:{run_id}\r\n".encode()
    told = {b"INFO": b"$%d\r\n%s\r\n" % (len(text), text), b"ROLE": b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"}
    tasks: set[Any] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        parser = hiredis.Reader()
        while data := await reader.read(65536):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                writer.write(told.get(command[0].upper(), b"+OK\r\n"))
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize(
    ("run_ids", "db", "key", "is_one"),
    [
        (("a1", "a1"), 0, "m:1", True),
        (("a1", "b2"), 0, "m:1", False),
        (("a1", "a1"), 1, "m:1", False),
        (("a1", "a1"), 0, "n:1", False),
        (("", ""), 0, "m:1", False),
        (("0" * 40, "0" * 40), 0, "m:1", False),
    ],
)
async def test_a_server_under_two_addresses_is_not_copied_into_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_ids: tuple[str, str], db: int, key: str, is_one: bool
) -> None:
    monkeypatch.setattr(opening, "_make_board", lambda at: MemoryBoard(MemoryBroker()))
    async with redis_at(run_ids[0]) as one, redis_at(run_ids[1]) as other:
        (tmp_path / "crossfade.yaml").write_text(_TWO_REDIS.format(one, other, db, key))
        config = load(tmp_path / "crossfade.yaml", {}, {})
        refused = pytest.raises(GuaranteeRefused, match="route forward copies into its own source")
        with refused if is_one else contextlib.nullcontext():
            async with wiring.open_route(config, "forward") as opened:
                assert opened.route.source_lanes == 2


@pytest.mark.parametrize(
    ("clusters", "topic_ids", "is_one"),
    [(("c", "c"), ("x", "x"), True), (("c", "c"), ("x", "y"), False), (("c", "d"), ("x", "x"), False)],
)
async def test_a_topic_under_two_addresses_is_not_copied_into_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clusters: tuple[str, str],
    topic_ids: tuple[str, str],
    is_one: bool,
) -> None:
    found = {"127.0.0.1:1": (clusters[0], topic_ids[0]), "127.0.0.1:2": (clusters[1], topic_ids[1])}

    async def open_log(log: KafkaLog) -> None:
        log.lanes, log.identity = 2, f"kafka:{found[log.cluster.settings.bootstrap][0]}:{log.name}"

    async def topic_id(cluster: Cluster, name: str) -> str:
        return found[cluster.settings.bootstrap][1]

    monkeypatch.setattr(KafkaLog, "open", open_log)
    monkeypatch.setattr(Cluster, "topic_id", topic_id)
    monkeypatch.setattr(opening, "_make_board", lambda at: MemoryBoard(MemoryBroker()))
    (tmp_path / "crossfade.yaml").write_text(_TWO_KAFKAS)
    config = load(tmp_path / "crossfade.yaml", {}, {})
    refused = pytest.raises(GuaranteeRefused, match="route forward copies into its own source")
    with refused if is_one else contextlib.nullcontext():
        async with wiring.open_route(config, "forward") as opened:
            assert opened.route.target_lanes == 2
