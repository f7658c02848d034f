"""How a copy is measured: from outside, by what the target has committed, while it happens.

A counter asks the target how much it holds (Kafka: last stable offsets, Redis: stream lengths) some ten times a second.
The rate is that of the steady state: from the first moment at which something was committed to the first moment at
which everything was, so start-up and group joins do not count for anybody. CPU is taken at the same two moments.
At the end the target is counted record by record: a run that lost or doubled one is no measurement.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import redis
from confluent_kafka import Consumer, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from .children import Child, Trouble
from .stage import Stage

_LOOK_S = 0.05
#: everything counts as committed when nothing moved for so long (transactions leave control records of unknown number)
_QUIET_S = 1.0
_STALLED_S = 60.0
_ASK_S = 10.0


@dataclass(frozen=True)
class Run:
    """One measured copy."""

    records_per_s: float
    cpu_s_per_million: float
    memory_peak_mib: float = 0.0
    seconds: float = 0.0
    server_cpu_s_per_million: float = 0.0


class Counter(Protocol):
    """Asks a target how much it holds."""

    trouble: str

    def progress(self) -> int:
        """A number that grows with what is committed, cheap to ask."""
        ...

    def records(self) -> int:
        """Committed records, exactly; may take a second."""
        ...


class KafkaCounter:
    """Counts what a read_committed reader of a topic can see."""

    def __init__(self, admin: AdminClient, bootstrap: str, topic: str, lanes: int) -> None:
        self._admin = admin
        self._bootstrap = bootstrap
        self._topic = topic
        self._lanes = range(lanes)
        self._last = 0
        #: offsets of what was there before, and is gone; -1 = not asked yet
        self._base = -1
        #: why the last look failed; "" when it did not
        self.trouble = ""

    def progress(self) -> int:
        try:
            if self._base < 0:
                self._base = self._sum(OffsetSpec.earliest())
            self._last = max(self._last, self._sum(OffsetSpec.latest()) - self._base)
            self.trouble = ""
        except KafkaException as error:  # a leader that moves, a topic not known everywhere yet: the next look tells
            self.trouble = str(error)
            with contextlib.suppress(KafkaException):  # the handle would keep the leaders that it knew for a minute
                self._admin.list_topics(self._topic, _ASK_S)
        return self._last

    def _sum(self, which: OffsetSpec) -> int:
        futures = self._admin.list_offsets(
            {TopicPartition(self._topic, lane): which for lane in self._lanes},
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=_ASK_S,
        )
        return sum(max(0, future.result(_ASK_S).offset) for future in futures.values())

    def records(self) -> int:
        consumer = Consumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": "bench-count",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "fetch.queue.backoff.ms": 10,
                "queued.max.messages.kbytes": 1 << 17,
                "log_level": 0,
            }
        )
        try:
            consumer.assign([TopicPartition(self._topic, lane, 0) for lane in self._lanes])
            return self._count(consumer)
        finally:
            consumer.close()

    def _count(self, consumer: Consumer) -> int:
        ended: set[int | None] = set()
        found, deadline = 0, time.monotonic() + _STALLED_S
        while len(ended) < len(self._lanes):
            if time.monotonic() > deadline:
                raise Trouble(f"counting {self._topic} took more than {_STALLED_S:.0f} s")
            for message in consumer.consume(10_000, 0.2):
                if message.error() is None:
                    found += 1
                else:
                    ended.add(message.partition())
        return found


class RedisCounter:
    """Counts the entries of stream keys."""

    def __init__(self, client: redis.Redis, keys: list[str]) -> None:
        self._redis = client
        self._keys = keys
        self.trouble = ""

    def progress(self) -> int:
        pipe = self._redis.pipeline(transaction=False)
        for key in self._keys:
            pipe.xlen(key)
        return sum(pipe.execute())

    def records(self) -> int:
        return self.progress()


def measure(
    stage: Stage, children: list[Child], counter: Counter, records: int, *, done: Callable[[], bool] | None = None
) -> Run:
    """Watch `children` bring `records` records into the target. Raises Trouble.

    `done` says when a tool that ends by itself has ended well; one that runs for ever is left running.
    """
    looks = _watch(stage, children, counter, records, done)
    counted = counter.records()
    memory = sum(child.memory_peak_mib() for child in children)
    if counted != records:
        raise Trouble(f"{children[0].name}: {counted} records in the target instead of {records}")
    first, last = looks
    # Control records take offsets too: what was seen is scaled so that the end is the number of records.
    moved = records * (last.progress - first.progress) / last.progress
    seconds = last.at_s - first.at_s
    return Run(
        records_per_s=moved / seconds,
        cpu_s_per_million=(last.cpu_s - first.cpu_s) / moved * 1e6,
        memory_peak_mib=memory,
        seconds=seconds,
        server_cpu_s_per_million=(last.server_cpu_s - first.server_cpu_s) / moved * 1e6,
    )


@dataclass(frozen=True)
class _Look:
    at_s: float
    progress: int
    cpu_s: float
    server_cpu_s: float


def _look(stage: Stage, children: list[Child], progress: int, at_s: float) -> _Look:
    return _Look(at_s, progress, sum(c.cpu_s() for c in children), sum(stage.server_cpu_s().values()))


def _watch(
    stage: Stage, children: list[Child], counter: Counter, records: int, done: Callable[[], bool] | None
) -> tuple[_Look, _Look]:
    """The first look with something in the target, and the first with everything."""
    first: _Look | None = None
    last: _Look | None = None
    moved_s = time.monotonic()
    while True:
        progress = counter.progress()
        now_s = time.monotonic()
        if last is None or progress != last.progress:
            last, moved_s = _look(stage, children, progress, now_s), now_s
            first = first or (last if progress else None)
        elif first is not None and progress >= records and now_s - moved_s >= _QUIET_S:
            if first.progress == last.progress:
                raise Trouble(f"{children[0].name} was too quick to be measured: give it more records")
            return first, last
        for child in children:
            if not child.is_running and (done is None or not done()):
                raise Trouble(f"{child.name} ended with {child.process.returncode}\n{child.tail()}")
        if now_s - moved_s > _STALLED_S:
            found = f"{progress} of {records}{', ' + counter.trouble if counter.trouble else ''}"
            raise Trouble(f"{children[0].name}: nothing moved for {_STALLED_S:.0f} s ({found})\n{children[0].tail()}")
        time.sleep(_LOOK_S)
