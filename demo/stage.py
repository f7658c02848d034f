"""Where the demo plays: a lab of three Kafka brokers and a Valkey server, a topic, and a crossfade.yaml.

The relays reach the servers through the lab's proxies, where faults happen; the workload, the followers and the judges
go past them, so that they keep writing and watching whatever happens to the relays. Everything that the demo asks a
server about itself (lengths, leaders, open transactions) is asked here, past the faults.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from crossfade.lab import Lab, LabError
from crossfade.lab.process import TAG, tagged, wait_until

from .children import Trouble

_ASK_S = 5.0

_CONFIG = """\
version: 1
brokers:
  old: {{kind: redis, url: "{redis}"}}
  new: {{kind: kafka, properties: {{bootstrap.servers: "{bootstrap}"}}}}
streams:
  messages:
    old: {{lanes: "{pattern}", count: {lanes}}}
    new: {{topic: {topic}}}
  returned:
    old: {{lanes: "{back_pattern}", count: {lanes}}}
    new: {{topic: {topic}}}
routes:
  forward: {{id: {forward_id}, stream: messages, source: old, target: new}}
  back: {{id: {back_id}, stream: returned, source: new, target: old}}
"""


@dataclass
class HeldAnswers:
    """A link to Redis whose answers the proxy holds back."""

    #: records in the target when the first answer was held
    at_records: int
    bytes: Callable[[], int]


class Stage:
    """The servers of one run; `down` leaves nothing behind."""

    lanes = 16
    topic = "messages.v1"
    pattern = "msg:stream:<lane>"
    back_pattern = "back:stream:<lane>"

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._lab = lab
        self.folder = folder
        self.logs = folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.config = folder / "crossfade.yaml"
        self.redis_direct = lab.redis_url(direct=True)
        self.bootstrap_direct = lab.kafka_properties(direct=True)["bootstrap.servers"]
        self._redis = redis.Redis.from_url(self.redis_direct, socket_timeout=_ASK_S, protocol=2)
        self._admin = AdminClient(
            {**lab.kafka_properties(direct=True), "reconnect.backoff.max.ms": 200, "log_level": 0}
        )
        self._brokers_down: set[int] = set()

    @classmethod
    def up(cls, folder: Path, say: Callable[[str], None]) -> Stage:
        """Start the servers (owned by this process: they end with it), the topic and the configuration.

        Raises LabError and its kind, Trouble.
        """
        lab = Lab.up(f"demo-{os.getpid()}", brokers=3, redis="standalone", owner_pid=os.getpid(), say=say)
        try:
            return cls(lab, folder)._prepare()
        except BaseException:  # Ctrl-C too: no server is left behind
            lab.down()
            raise

    def _prepare(self) -> Stage:
        keep = {"min.insync.replicas": "2", "retention.bytes": str(2 << 30), "retention.ms": "-1"}
        self._lab.create_topic(self.topic, self.lanes, keep)
        self.config.write_text(
            _CONFIG.format(
                redis=self._lab.redis_url(),
                bootstrap=self._lab.kafka_properties()["bootstrap.servers"],
                pattern=self.pattern,
                back_pattern=self.back_pattern,
                lanes=self.lanes,
                topic=self.topic,
                forward_id=f"demo-forward-{os.urandom(4).hex()}",
                back_id=f"demo-back-{os.urandom(4).hex()}",
            )
        )
        return self

    @property
    def tag(self) -> Path:
        """What the demo's own processes carry so that the lab's watchdog knows them."""
        return self._lab.folder

    def child_env(self) -> dict[str, str]:
        """The environment of processes that the demo starts."""
        return {**os.environ, TAG: str(self.tag)}

    def keep_logs(self) -> None:
        """Copy the servers' logs beside the demo's own."""
        for name, path in self._lab.logs().items():
            with contextlib.suppress(OSError):
                shutil.copyfile(path, self.logs / f"server-{name}.log")

    def down(self) -> list[int]:
        """Stop everything, remove the data, and return the pids that are still there (there should be none)."""
        folder = self._lab.folder
        self._redis.close()
        self._lab.down()
        wait_until(lambda: not tagged(folder), 5.0)
        return [process.pid for process in tagged(folder)]

    # -- Redis

    def redis_records(self, pattern: str) -> int:
        """Entries in all stream keys of a pattern."""
        return sum(self.redis_counts(pattern))

    def redis_counts(self, pattern: str) -> list[int]:
        """Entries in each stream key of a pattern."""
        pipe = self._redis.pipeline(transaction=False)
        for lane in range(self.lanes):
            pipe.xlen(pattern.replace("<lane>", str(lane)))
        counts: list[int] = pipe.execute()
        return counts

    def wait_redis_grows(self, pattern: str, since: int, limit_s: float) -> int:
        """Wait until the stream keys hold more than `since` entries; says how many more."""
        wait_until(lambda: self.redis_records(pattern) > since, limit_s, pause_s=0.005)
        return self.redis_records(pattern) - since

    @property
    def redis_link_port(self) -> int:
        return self._lab.state.link("redis-0").port

    def redis_link(self) -> Mapping[str, Any]:
        """What the proxy counted on the link between relays and Redis."""
        links: list[dict[str, Any]] = self._lab.ask_proxy({"op": "stats"})["links"]
        return next(link for link in links if link["link"] == "redis-0")

    def cut_redis(self, deadline_s: float) -> None:
        """Reset every connection and refuse new ones, until healed, at the latest after `deadline_s`."""
        self._set_redis_link("cut", deadline_s)

    def heal_redis(self) -> None:
        """Let the link work again."""
        self._set_redis_link("pass", None)

    @contextlib.contextmanager
    def redis_answers_held(self, deadline_s: float) -> Iterator[HeldAnswers]:
        """Requests reach Redis, the answers wait in the proxy."""
        self._set_redis_link("hold-replies", deadline_s)
        try:
            yield HeldAnswers(self.redis_records(self.back_pattern), lambda: int(self.redis_link()["held_bytes"]))
        finally:
            self.heal_redis()

    def _set_redis_link(self, mode: str, deadline_s: float | None) -> None:
        self._lab.ask_proxy({"op": "set", "link": "redis-0", "mode": mode, "deadline_s": deadline_s})

    # -- Kafka

    def open_transactions(self) -> dict[int, int]:
        """Partition -> records above its last stable offset: what an open transaction has written."""
        high = self._ends(IsolationLevel.READ_UNCOMMITTED)
        stable = self._ends(IsolationLevel.READ_COMMITTED)
        return {lane: high[lane] - stable[lane] for lane in high if high[lane] > stable.get(lane, high[lane])}

    def _ends(self, isolation: IsolationLevel) -> dict[int, int]:
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        wanted = {TopicPartition(self.topic, lane): latest for lane in range(self.lanes)}
        found: dict[int, int] = {}
        futures = self._admin.list_offsets(wanted, isolation_level=isolation, request_timeout=_ASK_S)
        for place, future in futures.items():
            # A partition whose leader is away has no answer now; the others have.
            with contextlib.suppress(KafkaException, TimeoutError):
                if (offset := future.result(_ASK_S).offset) >= 0:
                    found[place.partition] = offset
        return found

    def leader(self, partition: int) -> int:
        """Node id of the partition's leader, -1 where there is none."""
        try:
            return self._lab.admin.leaders(self.topic).get(partition, -1)
        except LabError as error:
            raise Trouble(f"Kafka does not say who leads: {error}") from error

    def wait_leader_moves(self, partition: int, old_leader: int, limit_s: float) -> int:
        """Wait until another broker leads; says which."""
        deadline = time.monotonic() + limit_s
        while (found := self.leader(partition)) in (old_leader, -1):
            if time.monotonic() > deadline:
                return found
            time.sleep(0.05)
        return found

    def kill_broker(self, node_id: int) -> int:
        """kill -9 a broker; returns the pid that is gone."""
        process = self._lab.state.server(f"kafka-{node_id}").process
        if not process.kill():
            raise Trouble(f"kafka-{node_id} (pid {process.pid}) survived kill -9")
        return process.pid

    def restart_broker(self, node_id: int) -> None:
        """Start a broker again and wait until it is back."""
        self._lab.start_server(f"kafka-{node_id}", wait=True)

    def wait_all_in_sync(self, limit_s: float) -> None:
        """Wait until every partition has all its copies in sync. Raises Trouble."""

        def in_sync() -> bool:
            try:
                partitions = self._admin.list_topics(timeout=_ASK_S).topics
            except KafkaException:
                return False
            return all(
                len(part.isrs) == len(part.replicas)
                for topic in partitions.values()
                for part in topic.partitions.values()
            )

        if not wait_until(in_sync, limit_s, pause_s=0.2):
            raise Trouble(f"Kafka's copies were not all in sync after {limit_s:.0f} s")
