"""The consumer side of a Kafka stream: records behind given places, in order, with nothing skipped in silence.

Hides librdkafka's consumer: assigned by hand, read_committed, no reset policy. It runs in its handle's thread.
Invariant: what `take` gives for a lane continues the place that was asked for; anything that does not (trimmed,
re-created, shorter) comes out as trouble of that lane, for the log to name.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from ...model.position import Place, offset_behind
from ...model.record import Lane
from .failures import HandleHealth, translate
from .headers import headers_of
from .settings import KafkaSettings

_EOF = KafkaError._PARTITION_EOF
#: trouble of one lane: the place does not exist there (any more, or yet)
OUT_OF_PLACE = frozenset(
    {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._LOG_TRUNCATION, KafkaError._NO_OFFSET}
)
_SLICE_MAX = 2000
#: of one broker's answer, of one lane in it at most, and lanes that it always has room for
_ANSWER_BYTES = 8 << 20
_LANE_BYTES_MAX = 1 << 20
_LANES_AT_ONCE = 16
#: records held ahead, over all lanes: a lane that has its share is not fetched
_QUEUE_RECORDS = 60_000
_LANE_QUEUE_MIN = 100
_MEET_S = 0.15
#: where the first look gives more than this, the source is behind: more is gathered, for so long
#: (with a smaller number, a live stream that was held up once would be gathered, and so held up, for ever)
_BACKLOG_RECORDS = 4_000
_BACKLOG_GATHER_S = 0.05
#: an assignment has taken effect within this time
_ASSIGN_S = 5.0
_ON_ITS_WAY = (KafkaError._STATE, KafkaError._OUTDATED, KafkaError._PREV_IN_PROGRESS)

_message: Any = Message  # its stub allows None where a fetched message has none
_error_of, _lane_of, _offset_of = _message.error, _message.partition, _message.offset
_key_of, _value_of, _time_of = _message.key, _message.value, _message.timestamp


@dataclass(slots=True)
class Taken:
    """What was taken of one lane: the columns of its rows, and where the reader stands behind them."""

    positions: list[int] = field(default_factory=list)
    keys: list[Any] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    next_offset: int = -1
    leader_epoch: int = -1
    at_end: bool = False
    size_bytes: int = 0
    last: Any = None  # the Message of the last row
    eof_at: int = -1  # where the end of the lane was seen during this take


@dataclass(slots=True)
class _Cursor:
    """Where the consumer stands in one assigned lane."""

    next_offset: int
    trouble: KafkaError | None = None


class SourceReader:
    """One consumer handle. Every method runs in the handle's thread."""

    def __init__(
        self, settings: KafkaSettings, topic: str, *, group: str, queue_kbytes_max: int, lanes: int = 1
    ) -> None:
        self._topic = topic
        lane_bytes_max = min(_LANE_BYTES_MAX, _ANSWER_BYTES // max(1, min(lanes, _LANES_AT_ONCE)))
        self.health = HandleHealth(f"source {topic}")
        self._consumer = settings.make(
            Consumer,
            settings.consumer(
                self.health,
                group_id=group,
                enable_auto_commit=False,
                enable_auto_offset_store=False,
                auto_offset_reset="error",
                isolation_level="read_committed",
                enable_partition_eof=True,
                check_crcs=True,
                fetch_queue_backoff_ms=10,
                fetch_wait_max_ms=100,
                # A broker fills its answer lane by lane. It has room for a few lanes; many take turns: one that has its
                # share of the queue is not fetched, and what comes of a lane at once is worth an append.
                # (Answers in flight are memory too: one per broker, twice while decompressed.)
                fetch_max_bytes=_ANSWER_BYTES,
                max_partition_fetch_bytes=lane_bytes_max,
                queued_max_messages_kbytes=queue_kbytes_max,
                queued_min_messages=max(_LANE_QUEUE_MIN, _QUEUE_RECORDS // max(1, lanes)),
                max_poll_interval_ms=86_400_000,
            ),
        )
        self._settings = settings
        self._cursors: dict[Lane, _Cursor] = {}
        #: lanes in trouble: what came behind that is not taken, until they are sought anew
        self._troubled: set[Lane] = set()
        #: newly sought lanes that have not answered yet
        self._fresh: set[Lane] = set()
        #: places whose epoch cannot be checked: the log starts between their last record and them
        self._trusted: dict[Lane, Place] = {}
        #: messages that are fetched, but were beyond the limits of the last `take`
        self._held: list[Any] = []
        self._row_bytes = 512  # running mean, so that a slice does not overshoot the byte limit by much

    def take(
        self, after: Mapping[Lane, Place], records_max: int, bytes_max: int, wait_s: float, gather_s: float
    ) -> tuple[dict[Lane, Taken], dict[Lane, KafkaError]]:
        """Records behind each place, and the lanes in trouble (a lane is in one of the two).

        Waits up to `wait_s` for the first record, then gathers for `gather_s`, and longer where there is a backlog: it
        is under way already, and few large appends cost less than many small ones. Raises Unreachable, AccessRefused.
        """
        taken: dict[Lane, Taken] = {}
        try:
            self._assign(after)
            self._gather(taken, records_max, bytes_max, wait_s, gather_s)
        except KafkaException as failure:
            self.forget()
            raise translate(failure, f"reading {self._topic}", self.health) from failure
        except BaseException:  # whatever it was
            # What was fetched is dropped with the error, so the consumer stands behind the places that it is asked for.
            self.forget()
            raise
        for lane in [lane for lane in taken if lane not in self._cursors]:
            del taken[lane]
        for lane, lot in taken.items():
            self._settle(lane, lot)
        troubled: dict[Lane, KafkaError] = {}
        for lane, cursor in list(self._cursors.items()):
            if cursor.trouble is not None and lane not in taken:
                troubled[lane] = cursor.trouble
                self._unassign([lane])
        if not taken and (refusal := self.health.refusal()) is not None:
            raise translate(refusal, f"reading {self._topic}", self.health)
        return taken, troubled

    def is_trusted(self, lane: Lane, place: Place) -> bool:
        """Whether this place is sought without its epoch already."""
        return self._trusted.get(lane) == place

    def trust(self, lane: Lane, place: Place) -> None:
        """Seek this place without its epoch: its last record was deleted, but nothing behind it."""
        self._trusted[lane] = place

    def examine(self, lane: Lane, place: Place, low: int, wait_s: float) -> KafkaError | None:
        """What the broker says against a place whose epoch it is asked about; None = nothing, or nothing in time.

        The lane is assigned at `low`, its first offset, and the place sought from there: assigned at once, a place
        beyond the end may be refused for that alone, before the epoch is looked at. All lanes are let go of. Raises
        Unreachable, AccessRefused.
        """
        self.forget()
        sought = TopicPartition(self._topic, lane, offset_behind(place), leader_epoch=int(place.witness or -1))
        try:
            self._consumer.incremental_assign([TopicPartition(self._topic, lane, low)])
            try:
                self._check_epochs([sought])
                return self._first_word(lane, time.monotonic() + wait_s)
            finally:
                self._consumer.incremental_unassign([TopicPartition(self._topic, lane)])
                self._held = [message for message in self._held if message.partition() != lane]
        except KafkaException as failure:
            self.forget()
            raise translate(failure, f"reading {self._topic}", self.health) from failure

    def _first_word(self, lane: Lane, until_s: float) -> KafkaError | None:
        """The first error of a lane; None where a record or its end comes before, or nothing in time."""
        while time.monotonic() < until_s:
            for message in self._consumer.consume(1, 0.05):
                error: KafkaError | None = message.error()
                if message.topic() is None or message.partition() != lane:
                    self._held.append(message)
                else:
                    return None if error is None or error.code() == _EOF else error
        return None

    def forget(self, lanes: list[Lane] | None = None) -> None:
        """Let go of lanes (None = all): the next `take` seeks them anew."""
        self._unassign(list(self._cursors) if lanes is None else [lane for lane in lanes if lane in self._cursors])

    def close(self) -> None:
        """Leave; the handle is unusable afterwards."""
        self._settings.untrack(self._consumer)
        self._consumer.close()

    def _assign(self, after: Mapping[Lane, Place]) -> None:
        """Stand where `after` says: a lane is sought only when its place is not where its last read ended."""
        self._unassign(
            [
                lane
                for lane, cursor in self._cursors.items()
                if lane not in after or after[lane].count != cursor.next_offset or cursor.trouble is not None
            ]
        )
        enter = []
        for lane, place in after.items():
            if lane in self._cursors:
                continue
            # The leader epoch lets the broker say that the log was cut off and has grown past this place since. It is
            # the last record's: what follows up to the place are marks of transactions, perhaps of a later epoch.
            offset, epoch = offset_behind(place), int(place.witness or -1)
            if self.is_trusted(lane, place):
                offset, epoch = place.count, -1
            enter.append(TopicPartition(self._topic, lane, offset, leader_epoch=epoch))
            self._cursors[lane] = _Cursor(place.count)
            self._fresh.add(lane)
        if enter:
            self._consumer.incremental_assign(enter)
            self._check_epochs([partition for partition in enter if partition.leader_epoch is not None])

    def _check_epochs(self, partitions: list[TopicPartition]) -> None:
        """Let the broker check the epochs of newly assigned places.

        An assignment does that only when its partition's epoch is news to the handle: not when the lane was read
        before, nor when the leader changed while it was not. A seek always does. Raises KafkaException.
        """
        deadline = time.monotonic() + _ASSIGN_S
        unsought = {partition.partition for partition in partitions}
        for partition in partitions:
            while partition.partition in unsought:
                try:
                    self._consumer.seek(partition)
                    break
                except KafkaException as failure:
                    # The assignment is still on its way to the handle's own thread, or it has failed already.
                    if failure.args[0].code() not in _ON_ITS_WAY or time.monotonic() > deadline:
                        raise
                unsought -= self._refused(unsought)
            unsought.discard(partition.partition)

    def _refused(self, unsought: set[Lane]) -> set[Lane]:
        """Wait a moment; which of these lanes are in trouble already, so that nothing can be sought in them.

        What else came of them comes again behind the seek, and is not kept.
        """
        refused: set[Lane] = set()
        for message in self._consumer.consume(_SLICE_MAX, 0.001):
            lane, error = message.partition(), message.error()
            if message.topic() is None or lane not in unsought:
                self._held.append(message)
            elif error is not None and error.code() != _EOF:
                self._held.append(message)
                refused.add(lane)
        return refused

    def _unassign(self, lanes: list[Lane]) -> None:
        if lanes:
            gone = set(lanes)
            self._held = [message for message in self._held if message.partition() not in gone]
            self._fresh -= gone
            self._troubled -= gone
            self._consumer.incremental_unassign([TopicPartition(self._topic, lane) for lane in lanes])
            for lane in lanes:
                del self._cursors[lane]

    def _gather(
        self, taken: dict[Lane, Taken], records_max: int, bytes_max: int, wait_s: float, gather_s: float
    ) -> None:
        """Take what is held back from before, then wait for the first record, then gather for `gather_s`."""
        consume, clock = self._consumer.consume, time.monotonic
        until = clock() + wait_s
        records, size = 0, 0
        if self._held:
            held, self._held = self._held, []
            records, size = self._sort(held, taken, records_max, bytes_max)
            if taken:
                until = min(until, clock() + _gather_s(records, gather_s))
        # What is held back comes before anything newer: nothing is fetched while there is some.
        while not self._held and records < records_max and size < bytes_max:
            # consume(n) waits for all n: ask for one while there is nothing, then for what is already there.
            messages = consume(1, max(0.0, until - clock()))
            if not messages:
                return
            if self._fresh:
                messages = self._meet_all(messages, records_max)
            had = bool(taken)
            while messages:
                got, got_bytes = self._sort(messages, taken, records_max - records, bytes_max - size)
                records += got
                size += got_bytes
                if self._held or records >= records_max or size >= bytes_max:
                    return
                room = max(1, (bytes_max - size) // self._row_bytes)
                messages = consume(min(records_max - records, _SLICE_MAX, room), 0)
            if taken and not had:
                until = min(until, clock() + _gather_s(records, gather_s))
            if clock() >= until:
                return

    def _meet_all(self, messages: list[Any], records_max: int) -> list[Any]:
        """Wait a moment until every newly sought lane has answered, and deal out the lanes in turn.

        Else a short limit would be filled by the lane whose broker answers first, again and again.
        """
        deadline = time.monotonic() + _MEET_S
        while True:
            for message in messages:
                self._fresh.discard(message.partition())
            if not self._fresh or time.monotonic() > deadline or len(messages) > _SLICE_MAX:
                break
            messages += self._consumer.consume(1, 0.01) + self._consumer.consume(_SLICE_MAX, 0)
        self._fresh.clear()
        lanes: dict[Lane, list[Any]] = {}
        for message in messages:
            lanes.setdefault(message.partition(), []).append(message)
        if len(lanes) < 2 or len(messages) <= records_max:
            return messages
        share = max(1, records_max // (2 * len(lanes)))
        longest = max(map(len, lanes.values()))
        return [
            message
            for start in range(0, longest, share)
            for lot in lanes.values()
            for message in lot[start : start + share]
        ]

    def _sort(self, messages: list[Any], taken: dict[Lane, Taken], records_max: int, bytes_max: int) -> tuple[int, int]:
        """Append messages to their lanes, up to the limits; the rest is held back. Records and bytes taken."""
        runs = _runs(messages)
        size = sum(value_bytes for _, _, value_bytes in runs)
        if size > bytes_max or len(messages) > records_max:
            messages, size = self._hold_back(messages, records_max, bytes_max)
            runs = _runs(messages)
        self._row_bytes = max(1, (self._row_bytes * 7 + size // max(1, len(messages))) // 8)
        if self._troubled or any(map(_error_of, messages)):
            messages = self._without_events(messages, taken)
            runs = _runs(messages)
        # Columns first: a lane's neighbours come together, and C loops take them apart.
        for lane, mine, value_bytes in runs:
            lot = taken.get(lane)
            if lot is None:
                lot = taken[lane] = Taken()
            keys, headers = list(map(_key_of, mine)), headers_of(mine)
            lot.keys += keys
            lot.values += map(_value_of, mine)
            lot.headers += headers
            lot.times += [time_ms if kind else -1 for kind, time_ms in map(_time_of, mine)]  # kind 0: it has none
            lot.positions += map(_offset_of, mine)
            beside = sum(map(len, filter(None, keys))) + _headers_bytes(headers)
            size += beside  # a message counts its value alone
            lot.size_bytes += value_bytes + beside
            lot.last = mine[-1]
        return len(messages), size

    def _without_events(self, messages: list[Any], taken: dict[Lane, Taken]) -> list[Any]:
        """The records alone; of a lane in trouble those before it, because what it was about is missing behind it."""
        records = []
        for message in messages:
            if message.error() is not None:
                self._event(message, taken)
            elif message.partition() not in self._troubled:
                records.append(message)
        return records

    def _hold_back(self, messages: list[Any], records_max: int, bytes_max: int) -> tuple[list[Any], int]:
        """The first messages, as many as the limits let through and at least one, with their bytes."""
        size = 0
        for count, message in enumerate(messages):
            if count >= records_max or (size >= bytes_max and count):
                self._held = messages[count:]
                return messages[:count], size
            size += len(message)
        return messages, size

    def _event(self, message: Any, taken: dict[Lane, Taken]) -> None:
        error, lane = message.error(), message.partition()
        code = error.code()
        cursor = self._cursors.get(lane)
        if code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise translate(error, f"reading {self._topic}", self.health)
        if message.topic() is not None and cursor is not None and lane not in self._troubled:
            if code == _EOF:
                lot = taken.get(lane)
                if lot is None:
                    lot = taken[lane] = Taken()
                lot.eof_at = message.offset()
            else:  # whatever it is: the client may have passed over something
                cursor.trouble = error
                self._troubled.add(lane)
        elif code not in (_EOF, KafkaError.GROUP_AUTHORIZATION_FAILED):  # the group is never used
            structlog.get_logger("kafka.source").info("fetch event", topic=self._topic, lane=lane, error=error.str())

    def _settle(self, lane: Lane, lot: Taken) -> None:
        cursor = self._cursors[lane]
        if lot.last is not None:
            lot.next_offset = lot.positions[-1] + 1
            lot.leader_epoch = -1 if lot.last.leader_epoch() is None else lot.last.leader_epoch()
            lot.last = None
        # The end lies behind control records and aborted data: the place moves there, past the last row.
        if lot.eof_at >= max(lot.next_offset, cursor.next_offset):
            lot.next_offset = lot.eof_at
            lot.at_end = True
        elif lot.next_offset < 0:
            lot.next_offset = cursor.next_offset
        cursor.next_offset = lot.next_offset


def _runs(messages: list[Any]) -> list[tuple[Lane, list[Any], int]]:
    """Neighbours of one lane, with the bytes of their values."""
    runs = [(lane, list(run)) for lane, run in groupby(messages, _lane_of)]
    return [(lane, run, sum(map(len, run))) for lane, run in runs]


def _gather_s(records: int, gather_s: float) -> float:
    """How long to gather behind a first look that gave so many records."""
    return max(gather_s, _BACKLOG_GATHER_S) if records > _BACKLOG_RECORDS else gather_s


def _headers_bytes(headers: list[list[tuple[str, bytes | None]] | None]) -> int:
    """Bytes of the headers of some messages."""
    return sum([len(name) + len(value or b"") for several in headers if several for name, value in several])
