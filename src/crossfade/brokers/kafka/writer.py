"""One transactional producer: it lives in one thread, writes whole transactions, and is thrown away on any doubt.

Hides librdkafka's transactional producer and its retries. Invariant: `commit` returns only when exactly the given
records and markers are committed; anything less certain raises, and the producer never speaks again.
librdkafka speaks the old EndTxn and retries inside, so a step that was sent twice may come late, and would then fall
into a later transaction. Therefore abort_transaction is never called (the next claim's init_transactions ends what is
open), and a transaction with a step that took as long as a retry is the last one of its producer: `is_spent`.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaError, KafkaException, Producer, TopicPartition

from ...errors import BrokerError, Indeterminate, invariant
from ...model.record import Lane, Path, Row
from ...model.wire import XF
from ...telemetry import step
from .failures import HandleHealth, doubt, error_of, translate
from .settings import DOUBT_S, RETRY_BACKOFF_MS, TRANSACTION_TIMEOUT_MS, KafkaSettings
from .threads import HandleThread, throw_away

#: init_transactions waits for an open transaction of the predecessor to be aborted
_INIT_S = 30.0
#: a transaction must be over by then, or the broker aborts it; and all its records must be delivered well before
_TRANSACTION_S = TRANSACTION_TIMEOUT_MS / 1000
_DELIVERY_S = 0.8 * _TRANSACTION_S
#: a step of a transaction may take so long; where brokers turn out to be slow, up to the second
_STEP_S = 2.0
_STEP_MAX_S = 6.0
#: small requests that tell how far the brokers are, and how much of that time is sure
_ROUND_TRIPS = 3
_ROUND_TRIP_SURE = 0.8
#: librdkafka does not always keep to a limit: where the group's coordinator dies while markers are stored, its call
#: never returns. This long behind the limit the producer is given up, thread and all.
_STUCK_S = 1.0
_LOOK_S = 0.5
_BATCH_BYTES = 1_000_000
_BATCH_RECORDS = 1_500
#: what a record takes in a batch beside key, value and headers, with `xf`
_RECORD_EXTRA_BYTES = 80
#: batches that are not acknowledged yet, over all lanes: a broker has five requests of a connection in hand
_BATCHES_SENT_MAX = 16
#: with fewer lanes there is nothing to do while a batch is acknowledged
_PACED_LANES_MIN = 4


@dataclass(frozen=True, slots=True)
class Lot:
    """The records of one path in one transaction."""

    path: Path
    rows: Sequence[Row]
    positions: Sequence[Any]
    #: ordinal of the last record before these
    ordinal: int
    prefix: str
    suffix: str
    #: index -> the record's own time, to travel in `xf`
    own_times: Mapping[int, int]

    def keeps_times(self, start: int, stop: int) -> bool:
        """Whether the own times of all these records travel in `xf`."""
        own = self.own_times
        return bool(own) and (len(own) == len(self.rows) or all(at in own for at in range(start, stop)))


@dataclass(frozen=True, slots=True)
class Note:
    """A record for a topic of Crossfade's own."""

    topic: str
    lane: Lane
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | str | None]] | None


class Patience:
    """What is known of the brokers' speed; outlives the writers."""

    def __init__(self) -> None:
        #: how long a step of a transaction may take: short, to notice a lost one; longer where brokers are slow
        self.limit_s = _STEP_S
        #: the least that a request was ever seen to take: brokers that are slow now are not distant; 0 = unknown
        self.round_trip_s = 0.0

    def observe(self, took_s: float) -> None:
        """Learn from one step."""
        self.limit_s = min(_STEP_MAX_S, max(_STEP_S, self.limit_s / 2, 4 * took_s))

    def observe_round_trip(self, took_s: float) -> None:
        """Learn from one request, or from the share of a request in a step."""
        self.round_trip_s = min(self.round_trip_s or took_s, took_s)


Offsets = Callable[[Mapping[Path, int]], list[TopicPartition]]
#: whether the topic gives records its own time; called in the event loop
GivesTimes = Callable[[], Coroutine[Any, Any, bool]]
_OWN_TIME = "the topic gives records its own time since a moment"


class Writer:
    """One transactional id's producer."""

    def __init__(
        self,
        settings: KafkaSettings,
        transactional_id: str,
        topic: str,
        *,
        message_bytes_max: int,
        batch_bytes_max: int = _BATCH_BYTES,
        patience: Patience | None = None,
    ) -> None:
        self.transactional_id = transactional_id
        self._topic = topic
        self.health = HandleHealth(f"writer {transactional_id}")
        self._properties = settings.producer(
            self.health,
            transactional_id=transactional_id,
            transaction_timeout_ms=TRANSACTION_TIMEOUT_MS,
            enable_idempotence=True,
            acks="all",
            retry_backoff_ms=RETRY_BACKOFF_MS,
            retry_backoff_max_ms=1000,
            compression_type="lz4",
            # Full batches go at once; a shorter time than it takes to produce one would send it in parts.
            linger_ms=20,
            batch_size=batch_bytes_max,
            batch_num_messages=_BATCH_RECORDS,
            queue_buffering_max_messages=500_000,
            queue_buffering_max_kbytes=262_144,
            message_max_bytes=message_bytes_max,
        )
        self._settings = settings
        self._batch_bytes_max = batch_bytes_max
        self._thread = HandleThread(transactional_id)
        self._producer: Any = None
        self._is_dead = False
        self._is_spent = False
        #: batches that are not acknowledged, by what tells of them -> their lane
        self._open_batches: dict[Any, Lane] = {}
        #: (lane, time) that brokers acknowledged as given by them to records of this transaction
        self._given_times: set[tuple[Lane, int]] = set()
        self._patience = patience or Patience()
        #: until when the records of the transaction under way must be delivered
        self._deliver_by_s = math.inf
        #: until when the step must come back that the thread is in (0 = none), and what it does
        self._step = (0.0, "")

    @property
    def is_dead(self) -> bool:
        return self._is_dead

    @property
    def is_spent(self) -> bool:
        """True when a request of the last transaction may still be on its way: the next one needs a new producer."""
        return self._is_spent

    async def open(self) -> None:
        """Fence every older producer of this id and end its open transaction.

        Raises Fenced, AccessRefused, Unreachable.
        """
        await self._thread.call(self._open)

    async def commit(
        self,
        lots: Sequence[Lot],
        notes: Sequence[Note],
        offsets: Offsets | None,
        group: Any,
        on_sent: Callable[[], None] | None = None,
        gives_times: GivesTimes | None = None,
    ) -> dict[Any, int]:
        """Write everything in one transaction; the offset of each path's last record, and of each note by its index.

        `offsets` gives the group offsets that belong to those (None = none). `on_sent` is called in the event loop when
        all is produced. `gives_times` is asked where that cannot be told from what the brokers acknowledge.

        Raises Fenced, Indeterminate, AccessRefused; after any of them the writer is dead.
        """
        invariant(not self._is_spent, "a producer whose requests may come late gets no further transaction")
        loop = asyncio.get_running_loop()

        def produced() -> None:
            if on_sent is not None:
                loop.call_soon_threadsafe(on_sent)

        def loses_times() -> bool:
            if gives_times is None:
                return True
            asked = asyncio.run_coroutine_threadsafe(gives_times(), loop)
            try:
                return asked.result(max(0.0, self._deliver_by_s - time.monotonic()))
            finally:
                asked.cancel()

        call = asyncio.ensure_future(
            self._thread.call(self._commit, lots, notes, offsets, group, produced, loses_times)
        )
        try:
            while not call.done():
                await asyncio.wait([call], timeout=_LOOK_S)
                until_s, doing = self._step
                if not call.done() and until_s and time.monotonic() > until_s + _STUCK_S:
                    # Should the call return yet, the thread sees a dead writer before its next step.
                    raise doubt("the client does not come back", doing)
            return call.result()
        except BaseException:  # cancelled too: what is under way is in doubt, so this producer never speaks again
            self.discard()
            call.cancel()
            raise
        finally:
            del call  # it holds the error whose traceback holds this frame, and the records

    def discard(self) -> None:
        """Throw the producer away: nothing more is sent, an open transaction stays open. Returns at once."""
        if not self._is_dead:
            self._is_dead = True
            self._thread.post(self._destroy)
            self._thread.stop()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of a discarded writer's thread."""
        self._thread.join(timeout_s)

    # --- in the producer's thread -----------------------------------------------------------------------------------

    def _open(self) -> None:
        deadline = time.monotonic() + _INIT_S
        self._producer = self._settings.make(Producer, self._properties)
        while True:
            try:
                self._producer.init_transactions(max(0.1, min(5.0, deadline - time.monotonic())))
                break
            except KafkaException as failure:
                error = error_of(failure)
                retry = error.retriable() or error.code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT)
                if not retry or self._is_dead or time.monotonic() > deadline or self.health.refusal() is not None:
                    raise translate(error, f"claiming as {self.transactional_id}", self.health) from failure
        if self._topic:
            self._measure_round_trip()
        step("kafka.claim.initialised")

    def _commit(
        self,
        lots: Sequence[Lot],
        notes: Sequence[Note],
        offsets: Offsets | None,
        group: Any,
        produced: Callable[[], None],
        loses_times: Callable[[], bool],
    ) -> dict[Any, int]:
        producer = self._producer
        self._given_times.clear()
        doing = "beginning a transaction"
        try:
            producer.begin_transaction()
            self._deliver_by_s = time.monotonic() + _DELIVERY_S
            step("kafka.append.begun")
            doing = "sending records"
            delivered: dict[Any, int] = {}
            failed: list[KafkaError] = []
            try:
                self._produce_lots(lots, delivered, failed)
                for index, note in enumerate(notes):
                    self._produce_note(note, index, delivered, failed)
            except KafkaException:
                self._probe()  # a refused batch makes the next record a call out of place: what refused it matters
                raise
            step("kafka.append.produced")
            produced()
            # Within a path the broker keeps the order, so the last record of each tells of all.
            self._await(lambda: len(delivered) == len(lots) + len(notes), failed)
            if self._given_times:
                self._refuse_given_times(lots, loses_times)
            step("kafka.append.delivered")
            if offsets is not None:
                doing = "storing the markers"
                marked = offsets({lot.path: delivered[lot.path] for lot in lots})
                self._timed(doing, 2, producer.send_offsets_to_transaction, marked, group)
                step("kafka.append.offsets_sent")
            doing = "committing"
            self._timed(doing, 1, producer.commit_transaction)
            step("kafka.append.committed")
        except KafkaException as failure:
            raise doubt(failure, doing, self.health) from failure
        return delivered

    def _measure_round_trip(self) -> None:
        """Ask for something small a few times: the fastest answer counts."""
        for _ in range(_ROUND_TRIPS):
            began = time.monotonic()
            try:
                self._producer.list_topics(self._topic, timeout=_STEP_S)
            except KafkaException:  # what is wrong shows at the next step, which is told
                return
            self._patience.observe_round_trip(time.monotonic() - began)

    def _timed(self, doing: str, requests: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a step of the transaction; behind one that took as long as a retry the producer is spent.

        A retry comes DOUBT_S after an answer, or the end of a connection, and is then under way itself. So a step of
        `requests` in a row that was sent twice takes DOUBT_S and as many round trips, and distant brokers are not slow
        ones. Of the round trip the least that was ever seen counts, and less than that.
        """
        if self._is_dead:
            raise Indeterminate("the claim was given up in the middle of a transaction")
        began = time.monotonic()
        limit_s = min(self._patience.limit_s, self._deliver_by_s - _DELIVERY_S + _TRANSACTION_S - began)
        if limit_s <= 0:
            raise doubt(f"the transaction took longer than {_TRANSACTION_S:.0f} s", doing)
        self._step = (began + limit_s, doing)
        try:
            function(*arguments, limit_s)
        finally:
            self._step = (0.0, "")
            took_s = time.monotonic() - began
            if not self._is_dead:
                self._patience.observe(took_s)
        once_s = DOUBT_S + requests * _ROUND_TRIP_SURE * self._patience.round_trip_s
        if self._patience.round_trip_s:
            self._patience.observe_round_trip(took_s / requests)
        self._is_spent = self._is_spent or took_s > once_s

    def _produce_lots(self, lots: Sequence[Lot], delivered: dict[Any, int], failed: list[KafkaError]) -> None:
        """Produce a batch of each lane in turn, the next one of a lane when the last one is acknowledged.

        An idempotent producer has one batch of a partition in flight, and few of a broker. librdkafka (2.16) lets the
        broker's thread spin as long as another one is ready behind them: measured, more CPU time than everything else
        in a copy. So hardly more are produced than can be sent.
        """
        acknowledged: dict[Any, int] = {}
        sent = 0
        left = [(lot, 0) for lot in lots]
        while left:
            behind: list[tuple[Lot, int]] = []
            for lot, start in left:
                stop = min(start + self._batch_records(lot, start), len(lot.rows))
                if start and len(lots) >= _PACED_LANES_MIN:
                    self._await(lambda path=lot.path, at=start: (path, at) in acknowledged, failed)  # type: ignore[misc]
                most = sent - _BATCHES_SENT_MAX
                self._await(lambda most=most: len(acknowledged) + len(delivered) > most, failed)  # type: ignore[misc]
                sent += 1
                is_last = stop == len(lot.rows)
                token = lot.path if is_last else (lot.path, stop)
                told = delivered if is_last else acknowledged
                self._open_batches[token] = lot.path[1]
                watched = None if lot.keeps_times(start, stop) else lot.path[1]
                self._produce(lot, start, stop, self._delivery(token, told, failed, watched))
                self._producer.poll(0)
                if not is_last:
                    behind.append((lot, stop))
            left = behind

    def _batch_records(self, lot: Lot, start: int) -> int:
        """How many records from `start` on fill a batch, by the size of a few."""
        some = [lot.rows[at] for at in range(start, len(lot.rows), 1 + (len(lot.rows) - start) // 8)]
        size_bytes = sum(
            len(key or b"") + len(value or b"") + sum(len(name) + len(text or b"") for name, text in headers or ())
            for key, value, headers, _ in some
        )
        return max(1, min(_BATCH_RECORDS, self._batch_bytes_max // (size_bytes // len(some) + _RECORD_EXTRA_BYTES)))

    def _produce(self, lot: Lot, start: int, stop: int, on_delivery: Callable[[Any, Any], None]) -> None:
        rows, positions, own_times = lot.rows, lot.positions, lot.own_times
        end = stop - 1
        if own_times:
            self._produce_with_times(lot, start, end)
        else:
            self._produce_plain(lot, start, end)
        key, value, headers, time_ms = rows[end]
        own = f";t={own_times[end]}" if end in own_times else ""
        text = f"{lot.prefix}{positions[end]}#{lot.ordinal + end + 1}{lot.suffix}{own}"
        self._send(self._topic, value, key, lot.path[1], [*(headers or ()), (XF, text)], time_ms, on_delivery)

    def _produce_plain(self, lot: Lot, start: int, stop: int) -> None:
        """The hot loop: nothing here that is not needed for every record."""
        produce, topic, lane = self._producer.produce, self._topic, lot.path[1]
        prefix, suffix, ordinal = lot.prefix, lot.suffix, lot.ordinal + start
        for (key, value, headers, time_ms), position in zip(
            lot.rows[start:stop], lot.positions[start:stop], strict=True
        ):
            ordinal += 1
            origin = (XF, f"{prefix}{position}#{ordinal}{suffix}")
            carried = [*headers, origin] if headers else [origin]
            try:
                produce(topic, value, key, lane, None, None, time_ms, carried)
            except BufferError:
                self._send(topic, value, key, lane, carried, time_ms, None)

    def _produce_with_times(self, lot: Lot, start: int, stop: int) -> None:
        for index in range(start, stop):
            key, value, headers, time_ms = lot.rows[index]
            own = f";t={lot.own_times[index]}" if index in lot.own_times else ""
            text = f"{lot.prefix}{lot.positions[index]}#{lot.ordinal + index + 1}{lot.suffix}{own}"
            self._send(self._topic, value, key, lot.path[1], [*(headers or ()), (XF, text)], time_ms, None)

    def _produce_note(self, note: Note, index: int, delivered: dict[Any, int], failed: list[KafkaError]) -> None:
        now_ms = int(time.time() * 1000)
        self._send(
            note.topic, note.value, note.key, note.lane, note.headers, now_ms, self._delivery(index, delivered, failed)
        )

    def _send(self, topic: str, value: Any, key: Any, lane: Lane, headers: Any, time_ms: int, callback: Any) -> None:
        """Produce one record, waiting for room in the client's queue."""
        while True:
            try:
                self._producer.produce(topic, value, key, lane, callback, None, time_ms, headers)
                return
            except BufferError:
                self._producer.poll(0.05)
                if time.monotonic() > self._deliver_by_s or self._is_dead:
                    raise doubt("the client's queue stayed full", "sending records") from None

    def _delivery(
        self, token: Any, delivered: dict[Any, int], failed: list[KafkaError], watched: Lane | None = None
    ) -> Callable[[Any, Any], None]:
        """Takes what the client tells of a batch's last record.

        `watched`: its lane, where a time that the broker gives the batch would be the only one of some record.
        """

        def on_delivery(error: KafkaError | None, message: Any) -> None:
            self._open_batches.pop(token, None)
            if error is None:
                delivered[token] = message.offset()
                if watched is not None:
                    kind, time_ms = message.timestamp()
                    if kind == TIMESTAMP_LOG_APPEND_TIME:
                        self._given_times.add((watched, time_ms))
            else:
                failed.append(error)

        return on_delivery

    def _refuse_given_times(self, lots: Sequence[Lot], loses_times: Callable[[], bool]) -> None:
        """Raise KafkaException where the topic has begun to give records its own time, which would replace theirs.

        A batch that a broker has already, sent again behind a lost answer, is acknowledged as if the broker had given
        it a time: the latest of its records. Those have kept theirs. Where the times do not tell the one from the
        other, the topic does.
        """
        theirs = {(lot.path[1], row[3]) for lot in lots for row in lot.rows}
        if not self._given_times <= theirs:
            raise KafkaException(KafkaError(KafkaError._FAIL, _OWN_TIME))
        try:
            is_lost = loses_times()
        except (BrokerError, CancelledError, TimeoutError) as error:
            what = (
                "a broker told a time of its own for records, and the topic cannot be asked whether it gives them one"
            )
            raise KafkaException(KafkaError(KafkaError._FAIL, f"{what}: {error}")) from error
        if is_lost:
            raise KafkaException(KafkaError(KafkaError._FAIL, _OWN_TIME))

    def _await(self, condition: Callable[[], bool], failed: list[KafkaError]) -> None:
        """Wait for deliveries. It polls: under flush() a delivery callback can be lost."""
        while not condition() and not failed:
            if self._is_dead or time.monotonic() > self._deliver_by_s:
                late = ", ".join(f"{self._topic}[{lane}]" for lane in sorted(set(self._open_batches.values()))[:5])
                where = f" to {late}" if late else ""
                raise doubt(f"records were not delivered{where} within {_DELIVERY_S:.0f} s", "sending records")
            if self._producer.poll(0.1) == 0:
                self._probe()
        if failed:
            self._probe()  # the last record was perhaps only purged with the one that failed
            raise KafkaException(failed[0])

    def _probe(self) -> None:
        """Raise what has already failed the transaction.

        A refused batch fails it, but only its own records are reported; those behind them wait for an abort. Nothing
        tells the state of a transaction but a call that is out of place in it.
        """
        try:
            self._producer.begin_transaction()
        except KafkaException as failure:
            if error_of(failure).code() != KafkaError._STATE:
                raise

    def _destroy(self) -> None:
        """Drop the handle without waiting for anything that is still queued or in flight."""
        producer, self._producer = self._producer, None
        if producer is not None:
            self._settings.untrack(producer)
            throw_away(producer)


async def fence(settings: KafkaSettings, transactional_id: str) -> None:
    """Fence whoever writes under an id, and end what it left open. Raises Fenced, AccessRefused, Unreachable."""
    writer = Writer(settings, transactional_id, "", message_bytes_max=1_000_000)
    try:
        await writer.open()
    finally:
        writer.discard()
