"""The board on Kafka: small versioned documents in one compacted topic.

A document's version is its record's offset + 1: it only rises, survives compaction, and needs no counter. A
compare-and-set is a transaction under the one fixed id `crossfade.board`: init (which fences every other writer), read
to the end, compare, write, commit. Heartbeats are plain idempotent writes.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from ...errors import AccessRefused, Fenced, Indeterminate, Unreachable, UsageError
from ..protocol import DOCUMENT_BYTES_MAX, Document, VersionConflict
from . import names
from .cluster import LATEST, Cluster, are_two_topics
from .failures import HandleHealth, error_of, is_topic_missing, translate
from .settings import RETRY_BACKOFF_MS, KafkaSettings
from .threads import HandleThread, breathe, throw_away
from .writer import Note, Writer

#: How the brokers keep the board. A new process reads all of it, and of a document only the last version counts: what
#: heartbeats replaced is compacted away soon. The segment that is written to never is, so it is small.
TOPIC_CONFIG = {
    "cleanup.policy": "compact",
    "segment.bytes": str(16 << 20),
    "segment.ms": "3600000",
    "min.compaction.lag.ms": "300000",
    "min.cleanable.dirty.ratio": "0.1",
    # a reader that was cut off for up to a week still learns what was deleted meanwhile
    "delete.retention.ms": "604800000",
}

_TRIES = 12
#: reading ends where nothing comes for so long
_READ_S = 10.0
_WRITE_S = 10.0
#: so long brokers must not know the topic before it counts as deleted, asked again after so long at most
_GONE_S = 5.0
_MISSED_APART_S = 30.0


class KafkaBoard:
    """Documents on one Kafka cluster. `cluster` may be shared with a log."""

    def __init__(self, settings: KafkaSettings, cluster: Cluster | None = None) -> None:
        self._settings = settings
        self._owns_cluster = cluster is None
        self._cluster = cluster or Cluster(settings)
        self._is_ready = False
        self._reader: _Reader | None = None
        self._reader_thread: HandleThread | None = None
        self._plain: _PlainWriter | None = None
        self._changing = asyncio.Lock()
        self._reading = asyncio.Lock()
        #: since when the brokers know no such topic, though there was one, and when they said so last; 0 = they know it
        self._missed_s = self._missed_last_s = 0.0

    async def get(self, name: str) -> Document | None:
        """The document now. Raises Unreachable, AccessRefused."""
        return (await self._documents()).get(name)

    async def list(self, prefix: str) -> dict[str, Document]:
        """All documents whose names begin with `prefix`. Raises Unreachable, AccessRefused."""
        return {name: found for name, found in sorted((await self._documents()).items()) if name.startswith(prefix)}

    async def put(self, name: str, body: bytes, expected_version: int | None = None) -> int:
        """Store a document (see `Board.put`). Raises VersionConflict, UsageError, Unreachable, AccessRefused."""
        if len(body) > DOCUMENT_BYTES_MAX:
            raise UsageError(
                f"the document {name!r} has {len(body)} bytes; at most {DOCUMENT_BYTES_MAX} fit", hint="make it smaller"
            )
        await self._prepare()
        if expected_version is not None:
            return await self._compare_and_set(name, body, expected_version)
        return await self._write_plainly(name, body)

    async def delete(self, name: str) -> None:
        """Remove a document; absent is no error. Raises Unreachable, AccessRefused."""
        await self._prepare()
        await self._write_plainly(name, None)

    async def close(self) -> None:
        """Let go of handles and threads. Safe to call twice."""
        if self._reader_thread is not None and self._reader is not None:
            self._reader_thread.post(self._reader.close)
            self._reader_thread.stop()
            self._reader_thread = self._reader = None
        if self._plain is not None:
            self._plain.close()
            self._plain = None
        if self._owns_cluster:
            self._cluster.close()

    async def _prepare(self) -> None:
        if not self._is_ready:
            facts = await self._cluster.topic(names.BOARD_TOPIC)
            if facts is None:
                replication = min(3, len((await self._cluster.describe()).nodes))
                await self._cluster.ensure_topic(
                    names.BOARD_TOPIC,
                    1,
                    replication,
                    TOPIC_CONFIG | {"min.insync.replicas": str(min(2, replication))},
                )
            self._is_ready = True

    async def _documents(self) -> dict[str, Document]:
        async with self._reading:  # else an older end, told later, would look like that of a topic made anew
            if not self._is_ready and await self._cluster.topic(names.BOARD_TOPIC) is None:
                return {}  # reading creates nothing
            self._is_ready = True
            try:
                found = await self._read_on()
            except (AccessRefused, Unreachable) as failure:  # of a topic that is gone it is said that nobody leads it
                if await self._cluster.topic_id(names.BOARD_TOPIC, tries=1) != "":
                    self._missed_s = 0.0
                    raise
                if not self._is_gone():
                    raise Unreachable(
                        failure.message,
                        hint="nothing to do: brokers that have just started may not know the topic yet, and one that "
                        "was deleted is made anew by the next heartbeat or command that writes",
                    ) from failure
                self._is_ready = False  # who writes next makes it anew
                self._missed_s = 0.0
                if self._reader is not None and self._reader_thread is not None:
                    await self._reader_thread.call(self._reader.forget)
                return {}
            self._missed_s = 0.0
            return found

    def _is_gone(self) -> bool:
        """Whether the brokers, which say now that there is no such topic, have said so for a while: some that have just
        started do not know all topics yet."""
        now_s = time.monotonic()
        if not self._missed_s or now_s - self._missed_last_s > _MISSED_APART_S:
            self._missed_s = now_s
        self._missed_last_s = now_s
        return now_s - self._missed_s >= _GONE_S

    async def _read_on(self) -> dict[str, Document]:
        end = (await self._cluster.offsets(names.BOARD_TOPIC, [0], LATEST))[0]
        topic_id = await self._cluster.topic_id(names.BOARD_TOPIC) or ""
        if self._reader is None or self._reader_thread is None:
            self._reader = _Reader(self._settings)
            self._reader_thread = HandleThread("board-reader")
        return await self._reader_thread.call(self._reader.catch_up, end, topic_id)

    async def _compare_and_set(self, name: str, body: bytes, expected_version: int) -> int:
        """Init, read, compare, write, commit; from the beginning whenever another writer came between."""
        async with self._changing:
            for attempt in range(_TRIES):
                writer = Writer(self._settings, names.BOARD_WRITER, names.BOARD_TOPIC, message_bytes_max=1_000_000)
                written = 0
                try:
                    await writer.open()
                    found = (await self._documents()).get(name)
                    version = found.version if found is not None else 0
                    if version != expected_version:
                        raise VersionConflict(
                            f"document {name} has version {version}, not {expected_version}: somebody changed it",
                            hint="read it again and decide anew",
                        )
                    note = Note(names.BOARD_TOPIC, 0, name.encode(), body, None)
                    written = (await writer.commit([], [note], None, None))[0] + 1
                except (Fenced, Indeterminate):
                    pass  # the next init settles what became of it
                finally:
                    writer.discard()
                if written and await self._is_visible(name, written):
                    return written
                await asyncio.sleep(random.uniform(0.02, 0.1 * (attempt + 1)))
        raise Unreachable(f"document {name} could not be changed: other writers came between {_TRIES} times")

    async def _is_visible(self, name: str, version: int) -> bool:
        """Wait until readers see a committed document: the commit's answer comes before its markers are written."""
        deadline = time.monotonic() + _READ_S
        while time.monotonic() < deadline:
            found = (await self._documents()).get(name)
            if found is not None and found.version >= version:
                return True
            await asyncio.sleep(0.01)
        return False

    async def _write_plainly(self, name: str, body: bytes | None) -> int:
        if self._plain is None:
            self._plain = _PlainWriter(self._settings)
        return await self._plain.write(name, body)


class _Reader:
    """Tails the board; runs in its handle's thread. Paused between calls, so that it costs nothing."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self.health = HandleHealth("board reader")
        self._consumer: Any = None
        self._documents: dict[str, Document] = {}
        self._next = 0
        self._topic_id = ""

    def catch_up(self, end: int, topic_id: str = "") -> dict[str, Document]:
        """Read on to `end`; all documents there. `topic_id`: as the brokers tell it now, "" = they could not."""
        if end < self._next or are_two_topics(topic_id, self._topic_id):
            self.forget()  # the topic was deleted and made anew: nothing of what was read is there any more
        self._topic_id = topic_id or self._topic_id
        if self._next < end:
            self._read(end)
        return dict(self._documents)

    def forget(self) -> None:
        """Read from the start of the topic next time."""
        self.close()
        self._documents, self._next = {}, 0

    def close(self) -> None:
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            self._settings.untrack(consumer)
            consumer.close()

    def _read(self, end: int) -> None:
        lane = TopicPartition(names.BOARD_TOPIC, 0)
        if self._consumer is None:
            self._consumer = self._settings.make(
                Consumer,
                self._settings.consumer(
                    self.health,
                    group_id="crossfade-board",
                    enable_auto_commit=False,
                    enable_auto_offset_store=False,
                    auto_offset_reset="earliest",  # compaction and uninstall may have removed the beginning
                    isolation_level="read_committed",
                    enable_partition_eof=True,
                    fetch_wait_max_ms=10,
                    max_poll_interval_ms=86_400_000,
                ),
            )
            self._consumer.assign([TopicPartition(names.BOARD_TOPIC, 0, 0)])
        else:
            self._consumer.resume([lane])
        read, came_at = self._next, time.monotonic()
        try:
            while self._next < end:
                if self._next > read:  # a large board takes its time
                    read, came_at = self._next, time.monotonic()
                elif time.monotonic() > came_at + _READ_S:
                    raise Unreachable(
                        f"the board could not be read: nothing came for {_READ_S:.0f} s, at offset {read} of {end} of "
                        f"topic {names.BOARD_TOPIC}",
                        hint="check that the brokers run and can be reached",
                    )
                messages = self._consumer.consume(1, 0.1) + self._consumer.consume(1000, 0)
                for message in messages:
                    self._note(message)
                if not messages:
                    breathe()
        except KafkaException as failure:
            raise translate(failure, "reading the board", self.health) from failure
        finally:
            self._consumer.pause([lane])

    def _note(self, message: Any) -> None:
        error = message.error()
        if error is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                self._next = max(self._next, message.offset())
            elif error.code() != KafkaError.GROUP_AUTHORIZATION_FAILED:
                raise translate(error, "reading the board", self.health)
            return
        self._next = message.offset() + 1
        name = (message.key() or b"").decode("utf-8", "replace")
        if message.value() is None:
            self._documents.pop(name, None)
        else:
            self._documents[name] = Document(message.offset() + 1, message.value())


class _PlainWriter:
    """An idempotent producer for heartbeats, in a thread of its own."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self.health = HandleHealth("board writer")
        self._thread = HandleThread("board-writer")
        self._producer: Any = None

    async def write(self, name: str, body: bytes | None) -> int:
        """Write a record; the version that it gives the document."""
        return await self._thread.call(self._write, name, body)

    def close(self) -> None:
        self._thread.post(self._destroy)
        self._thread.stop()

    def _write(self, name: str, body: bytes | None) -> int:
        if self._producer is None:
            self._producer = self._settings.make(
                Producer,
                self._settings.producer(
                    self.health,
                    enable_idempotence=True,
                    acks="all",
                    linger_ms=0,
                    retry_backoff_ms=RETRY_BACKOFF_MS,
                    message_timeout_ms=int(_WRITE_S * 1000),
                ),
            )
        outcome: list[Any] = []
        try:
            self._producer.produce(
                names.BOARD_TOPIC, body, name.encode(), 0, lambda error, message: outcome.append((error, message))
            )
            deadline = time.monotonic() + _WRITE_S + 2
            while not outcome:
                self._producer.poll(0.1)
                if time.monotonic() > deadline or self.health.refusal() is not None:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "no delivery report"))
            error, message = outcome[0]
            if error is not None:
                raise KafkaException(error)
        except KafkaException as failure:
            self._destroy()
            error = translate(failure, f"writing document {name}", self.health)
            if is_topic_missing(error_of(failure)):  # deleted, or not known to all brokers yet: the next try makes it
                raise Unreachable(error.message, hint="nothing to do: it is tried again") from failure
            raise error from failure
        return int(message.offset()) + 1

    def _destroy(self) -> None:
        if self._producer is not None:
            producer, self._producer = self._producer, None
            self._settings.untrack(producer)
            throw_away(producer)
