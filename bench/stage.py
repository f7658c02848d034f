"""Where everything is measured: labs without proxies, the source data in them, and fresh targets for each run.

One lab has the brokers and the Redis server that all data is on; a second Redis server takes what is copied from the
first. They belong to the benchmark alone, so cleaning up after a run means: everything that is not source data goes.
Valkey runs without persistence and topics keep everything (the runs are bounded instead), so that neither rewriting of
append-only files nor retention falls into a measurement.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import redis
from confluent_kafka import OFFSET_END, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from crossfade.lab import Lab
from crossfade.lab.process import tagged, wait_until

from .children import Trouble
from .prefill import fill_kafka, fill_redis

_ASK_S = 30.0
_TOUCH_S = 120.0
_INDEX_INTERVAL_BYTES = 8192
_REDIS_MEMORY_BYTES_MAX = 14 << 30


@dataclass(frozen=True)
class Data:
    """One body of source records, identical for every tool that reads it."""

    records: int
    lanes: int = 16
    value_bytes: int = 512

    @property
    def name(self) -> str:
        return f"source-{self.lanes}x{self.value_bytes}-{self.records}"

    @property
    def pattern(self) -> str:
        return f"{self.name}:<lane>"


class Stage:
    """The servers of a benchmark; `down` leaves nothing behind."""

    def __init__(self, lab: Lab, second: Lab, folder: Path) -> None:
        self._lab = lab
        self._second = second
        self.folder = folder
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.redis_url = lab.redis_url()
        self.bootstrap = lab.kafka_properties()["bootstrap.servers"]
        self.redis2_url = second.redis_url()
        self.redis, self.redis2 = (
            redis.Redis.from_url(url, socket_timeout=_ASK_S, protocol=2) for url in (self.redis_url, self.redis2_url)
        )
        self.admin = AdminClient({**lab.kafka_properties(), "log_level": 0})
        self._sources: set[str] = set()
        self._runs = 0

    @classmethod
    def up(cls, folder: Path, say: Callable[[str], None]) -> Stage:
        """Start the servers; they end with this process. Raises LabError and its kind."""
        me = os.getpid()
        with contextlib.ExitStack() as started:  # Ctrl-C too leaves no server behind
            lab = Lab.up(f"bench-{me}", brokers=3, proxies=False, owner_pid=me, heap_mb=512, say=say)
            started.callback(lab.down)
            second = Lab.up(f"bench-{me}-redis2", brokers=0, proxies=False, owner_pid=me, say=say)
            started.callback(second.down)
            stage = cls(lab, second, folder)
            for server in (stage.redis, stage.redis2):
                server.config_set("appendonly", "no")
                server.config_set("maxmemory", _REDIS_MEMORY_BYTES_MAX)
            started.pop_all()
            return stage

    def down(self) -> list[int]:
        """Stop everything, remove the data, and return the pids that are still there (there should be none)."""
        left: list[int] = []
        for lab, client in ((self._lab, self.redis), (self._second, self.redis2)):
            with contextlib.suppress(redis.RedisError):
                client.close()
            folder = lab.folder
            lab.down()
            wait_until(partial(_is_empty, folder), 5.0)
            left += [process.pid for process in tagged(folder)]
        return left

    @property
    def tag(self) -> Path:
        """What the children of the benchmark carry so that the lab's watchdog knows them."""
        return self._lab.folder

    @property
    def redis_port(self) -> int:
        return int(self._lab.state.link("redis-0").port)

    @property
    def redis2_port(self) -> int:
        return int(self._second.state.link("redis-0").port)

    def versions(self) -> dict[str, str]:
        """The servers' versions."""
        info: dict[str, Any] = self.redis.info("server")
        return {"kafka": self._lab.state.options.kafka_version, "valkey": str(info.get("valkey_version", "?"))}

    def server_cpu_s(self) -> dict[str, float]:
        """CPU seconds so far of all brokers together, and of both Redis servers."""
        ticks = os.sysconf("SC_CLK_TCK")
        out = {"kafka": 0.0, "redis": 0.0}
        for server in (*self._lab.state.servers, *self._second.state.servers):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{server.pid}/stat").read_text()
                fields = text[text.rindex(")") + 2 :].split()
                out[server.kind] = out.get(server.kind, 0.0) + (int(fields[11]) + int(fields[12])) / ticks
        return out

    def fresh_name(self, word: str) -> str:
        """A name that no earlier run used."""
        self._runs += 1
        return f"{word}-{self._runs}"

    # -- source data

    def redis_source(self, data: Data) -> Data:
        """Make sure that the stream keys hold this data."""
        if f"redis {data.name}" not in self._sources:
            fill_redis(self.redis_port, data.pattern, data.lanes, data.records, data.value_bytes)
            self._sources.add(f"redis {data.name}")
        return data

    def kafka_source(self, data: Data) -> Data:
        """Make sure that the topic holds this data."""
        if f"kafka {data.name}" not in self._sources:
            self.create_topic(data.name, data.lanes)
            fill_kafka(self.bootstrap, data.name, data.lanes, data.records, data.value_bytes)
            self._sources.add(f"kafka {data.name}")
        return data

    def forget_source(self, data: Data) -> None:
        """Remove this data from both sides, so that the next one has room."""
        for kind in ("redis", "kafka"):
            self._sources.discard(f"{kind} {data.name}")
        self.clean()

    # -- targets

    def create_topic(self, name: str, lanes: int) -> None:
        """A topic with three copies, two of which must have each record."""
        self._lab.create_topic(name, lanes, {"min.insync.replicas": "2", "retention.bytes": "-1", "retention.ms": "-1"})

    def create_target(self, name: str, lanes: int) -> None:
        """A topic that has been written to, and is empty again.

        The first entry of a partition's index maps a page of a sparse file, twice in each replica; where that is slow
        (on one virtual machine 2 to 50 ms), it would be most of what a run measures with many lanes.
        """
        self.create_topic(name, lanes)
        producer = Producer({"bootstrap.servers": self.bootstrap, "acks": "all", "log_level": 0})
        for _ in range(2):  # an index entry is due 4 KiB after the last one
            for lane in range(lanes):
                producer.produce(name, os.urandom(_INDEX_INTERVAL_BYTES), partition=lane)
            if producer.flush(_TOUCH_S):
                raise Trouble(f"topic {name} could not be written to in {_TOUCH_S:.0f} s")
        ends = [TopicPartition(name, lane, OFFSET_END) for lane in range(lanes)]
        for future in self.admin.delete_records(ends, request_timeout=_TOUCH_S).values():
            future.result(_TOUCH_S)

    def clean(self) -> None:
        """Remove everything but the source data: topics, groups, keys."""
        self._clean_kafka()
        self._clean_redis(self.redis)
        self._clean_redis(self.redis2)

    def _clean_kafka(self) -> None:
        kept = {name.removeprefix("kafka ") for name in self._sources if name.startswith("kafka ")}
        topics = [
            name for name in self.admin.list_topics(timeout=_ASK_S).topics if name not in kept and name[:2] != "__"
        ]
        with contextlib.suppress(KafkaException):
            groups = [group.group_id for group in self.admin.list_consumer_groups().result(_ASK_S).valid]
            for future in (self.admin.delete_consumer_groups(groups) if groups else {}).values():
                with contextlib.suppress(KafkaException):  # one with a member that has not left yet: the next time
                    future.result(_ASK_S)
        for future in (self.admin.delete_topics(topics) if topics else {}).values():
            with contextlib.suppress(KafkaException):
                future.result(_ASK_S)

    def _clean_redis(self, server: redis.Redis) -> None:
        kept = tuple(f"{name.removeprefix('redis ')}:".encode() for name in self._sources if name.startswith("redis "))
        gone: list[bytes] = []
        for key in server.scan_iter(count=1000):
            if not key.startswith(kept or (b"\xff",)):
                gone.append(key)
                continue
            for group in server.xinfo_groups(key):
                server.xgroup_destroy(key, group["name"])
        if gone:
            server.unlink(*gone)


def _is_empty(folder: Path) -> bool:
    return not tagged(folder)
