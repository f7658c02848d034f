"""What the system tests stand on: applications that write, relays as real processes, and the oracle as the judge.

Nothing of the product runs inside the test process but its lab. Writers and counters use plain client libraries; the
verdict over a copy is the oracle's alone. Every wait is for a condition, with a limit far beyond what is normal.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from kafka import KafkaConsumer
from kafka import TopicPartition as Partition
from tests.oracle.judge import Judgement, judge
from tests.oracle.kafka_side import read_kafka
from tests.oracle.redis_side import Resp, read_redis
from tests.oracle.rows import Lane, entry_row, record_row

from crossfade.lab import Lab
from crossfade.lab.process import TAG

ROOT = Path(__file__).resolve().parents[2]
CROSSFADE = str(Path(sys.executable).parent / "crossfade")
#: far beyond what any single wait here takes, also on a loaded machine
LIMIT_S = 120.0
#: fewer records than this in one look at a topic are not a backlog any more
_TRICKLE = 500
_ORIGIN = re.compile(rb"1;([a-z0-9-]+)/(\d+)@([0-9-]+)#(\d+);(\d+)")
_numbers = itertools.count(1)

Entry = list[bytes]
Header = tuple[str, bytes | None]
Record = tuple[bytes | None, bytes | None, list[Header] | None, int]


def wait_for(condition: Callable[[], Any], what: str, *, limit_s: float = LIMIT_S, pause_s: float = 0.05) -> Any:
    """Wait until `condition` gives something true, and return it; fail naming `what`."""
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"after {limit_s:.0f} s still waiting: {what() if callable(what) else what}"
        time.sleep(pause_s)
    return found


def plain_value(number: int, size_bytes: int = 200) -> bytes:
    """A value that carries its number where the oracle looks for it."""
    return (b'{"id":"%016d","body":"' % number).ljust(size_bytes - 2, b"x") + b'"}'


class RedisSide:
    """A set of stream keys of one test."""

    kind = "redis"

    def __init__(self, lab: Lab, lanes: int, pattern: str) -> None:
        self.lanes, self.pattern = lanes, pattern
        self.url, self.direct = lab.redis_url(), lab.redis_url(direct=True)
        self.client = redis.Redis.from_url(self.direct, protocol=2)

    def broker(self) -> dict[str, Any]:
        return {"kind": "redis", "url": self.url}

    def side(self) -> dict[str, Any]:
        return {"lanes": self.pattern, "count": self.lanes}

    def key(self, lane: int) -> str:
        return self.pattern.replace("<lane>", str(lane))

    def write(self, lane: int, entries: Iterable[Entry | tuple[str, Entry]]) -> list[bytes]:
        """XADD each entry, or (id, entry); returns the ids."""
        pipe = self.client.pipeline(transaction=False)
        for entry in entries:
            entry_id, fields = entry if isinstance(entry, tuple) else ("*", entry)
            pipe.execute_command("XADD", self.key(lane), entry_id, *fields)
        ids: list[bytes] = pipe.execute()
        return ids

    def write_numbers(self, lane: int, numbers: Iterable[int], keys: int = 20) -> None:
        """Canonical entries: a key, and a value that carries the number."""
        self.write(lane, [[b"key", b"k-%d" % (n % keys), b"value", plain_value(n)] for n in numbers])

    def count(self, lanes: Sequence[int] | None = None) -> int:
        return sum(int(self.client.xlen(self.key(lane))) for lane in (range(self.lanes) if lanes is None else lanes))

    def read(self) -> dict[int, Lane]:
        return read_redis(self.direct, self.pattern, self.lanes)

    def raw(self) -> dict[int, list[tuple[bytes, Entry]]]:
        """(id, fields) of everything, as it lies there."""
        link = Resp(self.direct)
        found = {lane: [tuple(e) for e in link.call("XRANGE", self.key(lane), "-", "+")] for lane in range(self.lanes)}
        link.close()
        return found

    def rows(self) -> dict[int, list[tuple[bytes, ...]]]:
        return {
            lane: [entry_row(fields, int(place.partition(b"-")[0]))[0] for place, fields in entries]
            for lane, entries in self.raw().items()
        }

    def origins(self) -> dict[int, list[tuple[int, int, int]]]:
        """(source lane, ordinal, epoch) per lane, of entries that carry `xf`."""
        out: dict[int, list[tuple[int, int, int]]] = {}
        for lane, entries in self.raw().items():
            marks = [
                value
                for _, fields in entries
                for name, value in zip(fields[::2], fields[1::2], strict=True)
                if name == b"xf"
            ]
            out[lane] = _origins(marks)
        return out

    def clean(self) -> None:
        for key in self.client.scan_iter(self.pattern.replace("<lane>", "*"), count=1000):
            self.client.delete(key)
        self.client.close()


class KafkaSide:
    """A topic of one test."""

    kind = "kafka"

    def __init__(self, lab: Lab, lanes: int, topic: str, configs: dict[str, str] | None = None) -> None:
        self.lanes, self.topic, self._lab = lanes, topic, lab
        self.properties = lab.kafka_properties()
        self.direct = lab.kafka_properties(direct=True)
        keep = {"min.insync.replicas": "2", "retention.ms": "-1", "retention.bytes": str(1 << 28)}
        lab.create_topic(topic, lanes, keep | (configs or {}))
        self._producer: Producer | None = None
        self._counter: Consumer | None = None
        self._counts: dict[int, int] = {}

    def broker(self) -> dict[str, Any]:
        return {"kind": "kafka", "properties": dict(self.properties)}

    def side(self) -> dict[str, Any]:
        return {"topic": self.topic}

    def write(self, lane: int, records: Iterable[Record]) -> None:
        """Produce (key, value, headers, time in ms; 0 = now) and wait until all are acknowledged."""
        if self._producer is None:
            self._producer = Producer({**self.direct, "acks": "all", "enable.idempotence": True, "linger.ms": 2})
        failed: list[KafkaError] = []
        for key, value, headers, time_ms in records:
            self._producer.produce(
                self.topic,
                value,
                key,
                lane,
                headers=headers,
                timestamp=time_ms,
                callback=lambda error, _: failed.append(error) if error is not None else None,
            )
            self._producer.poll(0)
        assert self._producer.flush(60) == 0
        assert failed == []

    def write_numbers(self, lane: int, numbers: Iterable[int], keys: int = 20) -> None:
        self.write(lane, [(b"k-%d" % (n % keys), plain_value(n), None, 0) for n in numbers])

    def count(self, lanes: Sequence[int] | None = None) -> int:
        """Committed records seen so far by a consumer that follows the topic."""
        if self._counter is None:
            self._counter = Consumer(
                {
                    **self.direct,
                    "group.id": f"count-{self.topic}",
                    "isolation.level": "read_committed",
                    "enable.auto.commit": False,
                    "auto.offset.reset": "earliest",
                    "fetch.wait.max.ms": 50,
                }
            )
            self._counter.assign([TopicPartition(self.topic, lane, 0) for lane in range(self.lanes)])
        until_s = time.monotonic() + 1.0
        while messages := self._counter.consume(5000, 0.15):
            for message in messages:
                if message.error() is None:
                    self._counts[message.partition()] = self._counts.get(message.partition(), 0) + 1
                elif not message.error().retriable():
                    raise KafkaException(message.error())
            if len(messages) < _TRICKLE and time.monotonic() > until_s:
                break  # somebody goes on writing: that has no end
        return sum(count for lane, count in self._counts.items() if lanes is None or lane in lanes)

    def forget_count(self) -> None:
        """Count anew: the topic was re-created or trimmed."""
        if self._counter is not None:
            self._counter.close()
        self._counter, self._counts = None, {}

    def read(self) -> dict[int, Lane]:
        return read_kafka(self.direct["bootstrap.servers"], self.topic, self.lanes, self.login())

    def login(self) -> dict[str, Any]:
        """How kafka-python logs in at the direct listener; nothing in an open lab."""
        if "sasl.username" not in self.direct:
            return {}
        return {
            "security_protocol": self.direct["security.protocol"],
            "sasl_mechanism": self.direct["sasl.mechanism"],
            "sasl_plain_username": self.direct["sasl.username"],
            "sasl_plain_password": self.direct["sasl.password"],
        }

    def raw(self) -> dict[int, list[Any]]:
        """Every committed record by kafka-python, as it lies there."""
        consumer = KafkaConsumer(
            bootstrap_servers=self.direct["bootstrap.servers"].split(","),
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",
            **self.login(),
        )
        partitions = [Partition(self.topic, lane) for lane in range(self.lanes)]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        consumer.seek_to_beginning()
        found: dict[int, list[Any]] = {lane: [] for lane in range(self.lanes)}

        def at_end() -> bool:
            for partition, records in consumer.poll(timeout_ms=200).items():
                found[partition.partition] += records
            return all(consumer.position(partition) >= ends[partition] for partition in partitions)

        wait_for(at_end, f"the end of {self.topic}", pause_s=0)
        consumer.close()
        return found

    def rows(self) -> dict[int, list[tuple[bytes, ...]]]:
        return {
            lane: [record_row(r.key, r.value, r.headers, r.timestamp)[0] for r in records]
            for lane, records in self.raw().items()
        }

    def origins(self) -> dict[int, list[tuple[int, int, int]]]:
        """(source lane, ordinal, epoch) per lane, in the order of the target."""
        return {
            lane: _origins([value for r in records for name, value in r.headers if name == "xf"])
            for lane, records in self.raw().items()
        }

    def reopen(self) -> None:
        """Write and count anew: the topic is another one now."""
        self.forget_count()
        self._producer = None

    def clean(self) -> None:
        self.reopen()
        self._lab.admin.delete_topic(self.topic)


Side = RedisSide | KafkaSide


def _origins(marks: Iterable[bytes]) -> list[tuple[int, int, int]]:
    matches = [match for mark in marks if (match := _ORIGIN.match(mark))]
    return [(int(match[2]), int(match[4]), int(match[5])) for match in matches]


class Writer(threading.Thread):
    """An application that goes on writing to all lanes in turns until `stop`, at most `records_max`."""

    def __init__(self, side: Side, *, records_max: int = 6000, batch: int = 25, pause_s: float = 0.01) -> None:
        super().__init__(daemon=True)
        self._side, self._left, self._batch, self._pause_s = side, records_max, batch, pause_s
        self._stopping = threading.Event()
        self.written = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for lane in itertools.cycle(range(self._side.lanes)):
                if self._stopping.is_set() or self.written >= self._left:
                    return
                self._side.write_numbers(lane, range(self.written, self.written + self._batch))
                self.written += self._batch
                self._stopping.wait(self._pause_s)
        except BaseException as error:
            self.error = error
            raise

    def stop(self, records_min: int = 100) -> int:
        """Stop writing as soon as so many records are acknowledged; their number."""
        wait_for(
            lambda: self.written >= records_min or not self.is_alive(),
            lambda: f"{records_min} records written, there are {self.written}",
        )
        self._stopping.set()
        self.join(LIMIT_S)
        assert not self.is_alive()
        assert self.error is None, self.error
        return self.written


class Relay:
    """One `crossfade relay run` as a process of its own, with everything that it says in a file."""

    def __init__(self, copy: Copy, arguments: Sequence[str], env: dict[str, str]) -> None:
        self.log = copy.folder / f"relay-{next(_numbers)}.log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                [CROSSFADE, "-c", str(copy.config), "-o", "json", "relay", "run", "copy", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=copy.folder,
                env={**os.environ, TAG: str(copy.lab.folder), "PYTHONFAULTHANDLER": "1", **env},
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait_said(self, text: str, *, limit_s: float = LIMIT_S) -> None:
        wait_for(
            lambda: text in self.said or not self.is_running,
            lambda: f"{text!r} in\n{self.said[-3000:]}",
            limit_s=limit_s,
        )
        assert text in self.said, f"the relay ended with {self.process.returncode}:\n{self.said[-3000:]}"

    def wait_end(self, *, limit_s: float = LIMIT_S) -> int:
        """Its exit code (negative: the signal that ended it)."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the relay goes on:\n{self.said[-3000:]}") from None

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait(LIMIT_S) == -signal.SIGKILL

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait_end()

    def destroy(self) -> None:
        if self.is_running:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(LIMIT_S)


@dataclass(frozen=True)
class Answer:
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.out)["rows"]
        return rows


class Copy:
    """One route of one test: its configuration, its relays, its verdict."""

    def __init__(self, lab: Lab, folder: Path, source: Side, target: Side, **route: Any) -> None:
        self.lab, self.folder, self.source, self.target = lab, folder, source, target
        self.id = f"sys-{secrets.token_hex(5)}"
        stream = {name: route.pop(name) for name in ("mapping", "partitioner", "from", "deleted") if name in route}
        self.document: dict[str, Any] = {
            "version": 1,
            "brokers": {"old": source.broker(), "new": target.broker()},
            "streams": {"stream": {"old": source.side(), "new": target.side(), **stream}},
            "routes": {
                "copy": {
                    "id": self.id,
                    "stream": "stream",
                    "source": "old",
                    "target": "new",
                    "metrics_port": 0,
                    "batch_records": 400,
                    **route,
                }
            },
        }
        self.config = folder / f"crossfade-{next(_numbers)}.yaml"
        self.write_config()
        self.relays: list[Relay] = []

    def write_config(self) -> None:
        """Write the (changed) document; JSON is YAML."""
        self.config.write_text(json.dumps(self.document, indent=2))

    def cli(self, *arguments: str, limit_s: float = LIMIT_S, env: dict[str, str] | None = None) -> Answer:
        """Any command of the product, with JSON on stdout."""
        done = subprocess.run(
            [CROSSFADE, "-c", str(self.config), "-o", "json", *arguments],
            capture_output=True,
            text=True,
            timeout=limit_s,
            cwd=self.folder,
            env={**os.environ, TAG: str(self.lab.folder), **(env or {})},
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def start(self) -> None:
        """`relay start`: the first markers."""
        answer = self.cli("relay", "start")
        assert answer.code == 0, answer.err

    def run(self, *arguments: str, instance: str = "one", kill_at: str = "", by_hand: bool = False) -> Relay:
        """A relay process; `by_hand` sets its lanes by `--shard 0/1` instead of the group."""
        more = ["--shard", "0/1"] if by_hand else []
        env = {"CROSSFADE_KILL_AT": kill_at} if kill_at else {}
        relay = Relay(self, ["--instance", instance, *more, *arguments], env)
        self.relays.append(relay)
        return relay

    def status(self) -> dict[str, dict[str, Any]]:
        """`relay status` by lane name (processes without lanes by their own)."""
        answer = self.cli("relay", "status", "copy")
        assert answer.code in (0, 3), answer.err
        return {row.get("lane") or row["owner"]: row for row in answer.rows}

    def wait_status(self, lane: str, condition: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Wait until `relay status` says so of one lane; that lane's row."""
        seen: dict[str, Any] = {}

        def holds() -> bool:
            seen.update(self.status())
            return lane in seen and condition(seen[lane])

        wait_for(holds, lambda: f"{lane} {what}; status {seen}\n{self.said()}", pause_s=0.3)
        row: dict[str, Any] = seen[lane]
        return row

    def wait_drained(self, lanes: Sequence[int] | None = None, *, records: int | None = None) -> None:
        """Wait until the target holds as many committed records as the source (or `records`)."""
        wanted = self.source.count(lanes) if records is None else records
        wait_for(
            lambda: self.target.count(lanes) >= wanted,
            lambda: f"{wanted} records in the target, it has {self.target.count(lanes)}\n{self.said()}",
        )

    def said(self) -> str:
        return "\n".join(f"--- {relay.log.name}\n{relay.said[-2500:]}" for relay in self.relays[-3:])

    def judge(self) -> Judgement:
        """The oracle's verdict over both sides."""
        return judge(self.source.read(), self.target.read())

    def check(self, records_min: int = 1) -> Judgement:
        """The oracle finds an exact copy of at least so many records."""
        result = self.judge()
        assert result.differences == 0, f"{result.as_dict()}\n{self.said()}"
        assert result.source_records == result.records >= records_min, f"{records_min} wanted: {result.as_dict()}"
        return result

    def clean(self) -> None:
        for relay in self.relays:
            relay.destroy()
