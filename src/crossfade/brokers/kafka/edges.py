"""Looks at a few records of a topic by offset: the tail of target lanes at a claim, the first record of a lane.

Hides a second consumer handle, which is idle between looks. Nothing here moves records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ...errors import Unreachable
from ...model.record import Lane
from .failures import HandleHealth, translate
from .settings import KafkaSettings
from .threads import HandleThread, breathe

#: called with lane and message; True = seen enough of this lane
Look = Callable[[Lane, Any], bool]


class EdgeReader:
    """A read_committed consumer for short looks, in a thread of its own."""

    def __init__(self, settings: KafkaSettings, topic: str, group: str) -> None:
        self._settings = settings
        self._group = group  # never joined
        self._topic = topic
        self.health = HandleHealth(f"edges {topic}")
        self._thread = HandleThread(f"edges-{topic}")
        self._consumer: Any = None

    async def look(self, ranges: Mapping[Lane, tuple[int, int]], look: Look, wait_s: float) -> None:
        """Show `look` the records in each lane's offsets `[from, to)`, in order. Raises Unreachable, AccessRefused."""
        wanted = {lane: (start, stop) for lane, (start, stop) in ranges.items() if start < stop}
        if wanted:
            await self._thread.call(self._look, wanted, look, wait_s)

    async def first(self, offsets: Mapping[Lane, int], wait_s: float) -> dict[Lane, tuple[int, int]]:
        """Offset and time (ms) of the first committed record at or behind each offset; absent where there is none."""
        found: dict[Lane, tuple[int, int]] = {}

        def note(lane: Lane, message: Any) -> bool:
            kind, time_ms = message.timestamp()
            found[lane] = (message.offset(), time_ms if kind else -1)
            return True

        ranges = {lane: (offset, 1 << 62) for lane, offset in offsets.items()}
        if ranges:
            await self._thread.call(self._look, ranges, note, wait_s, is_lenient=True)
        return found

    def close(self) -> None:
        """Let go of handle and thread. Returns at once."""
        self._thread.post(self._destroy)
        self._thread.stop()

    # --- in the handle's thread ---------------------------------------------------------------------------------------

    def _look(
        self, ranges: Mapping[Lane, tuple[int, int]], look: Look, wait_s: float, *, is_lenient: bool = False
    ) -> None:
        consumer = self._open()
        left = {lane: stop for lane, (_, stop) in ranges.items()}
        deadline = time.monotonic() + wait_s
        try:
            consumer.assign([TopicPartition(self._topic, lane, start) for lane, (start, _) in ranges.items()])
            while left:
                if time.monotonic() > deadline:
                    raise Unreachable(f"records of {self._topic} could not be read within {wait_s:.0f} s")
                messages = consumer.consume(1, 0.1) + consumer.consume(2000, 0)
                for message in messages:
                    self._note(message, left, look, is_lenient)
                if not messages:
                    breathe()
                if left and (refusal := self.health.refusal()) is not None:
                    raise translate(refusal, f"reading {self._topic}", self.health)
        except KafkaException as failure:
            raise translate(failure, f"reading {self._topic}", self.health) from failure
        finally:
            consumer.unassign()

    def _note(self, message: Any, left: dict[Lane, int], look: Look, is_lenient: bool) -> None:
        lane, error = message.partition(), message.error()
        stop = left.get(lane)
        if error is not None:
            if message.topic() is not None and stop is None:
                return  # what comes behind the range is not asked for
            if is_lenient and message.topic() is not None and error.code() != KafkaError.TOPIC_AUTHORIZATION_FAILED:
                left.pop(lane, None)  # the reader of records tells what is wrong with the lane
                return
            if error.code() in (KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET):
                left.pop(lane, None)  # reset: the log start has moved past the range meanwhile
            elif error.code() != KafkaError.GROUP_AUTHORIZATION_FAILED:  # the group is never used
                raise translate(error, f"reading {self._topic}", self.health)
        elif stop is not None:
            offset = message.offset()
            if (offset < stop and look(lane, message)) or offset >= stop - 1:
                del left[lane]

    def _open(self) -> Any:
        if self._consumer is None:
            self._consumer = self._settings.make(
                Consumer,
                self._settings.consumer(
                    self.health,
                    group_id=self._group,
                    enable_auto_commit=False,
                    enable_auto_offset_store=False,
                    auto_offset_reset="error",
                    isolation_level="read_committed",
                    enable_partition_eof=True,
                    fetch_wait_max_ms=10,
                    fetch_queue_backoff_ms=10,
                    queued_max_messages_kbytes=32_768,
                    max_poll_interval_ms=86_400_000,
                ),
            )
        return self._consumer

    def _destroy(self) -> None:
        if self._consumer is not None:
            self._settings.untrack(self._consumer)
            self._consumer.close()
            self._consumer = None
