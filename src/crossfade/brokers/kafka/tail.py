"""Marker against data: what the tail of a target lane says about the marker beside it.

`PathTail` and `resolve` are pure. Invariant: ordinals are compared, not positions; where marker and data differ, in
either direction, the data decides, and the marker decides only where the log starts after the marker's record.
`TailReader` feeds them from the broker.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ...errors import LaneError, TargetReset, TargetTorn, Unreachable
from ...model.position import Marker, Place
from ...model.record import Lane, Path
from ...model.wire import XF, Origin, decode_origin
from .failures import HandleHealth, translate
from .settings import KafkaSettings

#: how far back the tail of a lane is searched for the route's headers; one transaction is never longer
SCAN_OFFSETS_MAX = 100_000


@dataclass(slots=True)
class PathTail:
    """What was seen of one path while its target lane's tail went by, in offset order."""

    marker: Marker | None
    #: the record that the marker names was seen
    is_matched: bool = False
    #: the last record of an unbroken run of ordinals behind the marker (or, without marker, of any)
    last: Origin | None = None
    last_offset: int = -1
    #: the newest record at or below the marker's ordinal
    below: Origin | None = None
    below_offset: int = -1
    has_gap: bool = False
    epoch_max: int = 0

    def feed(self, offset: int, origin: Origin) -> None:
        """Take note of one of the path's records."""
        self.epoch_max = max(self.epoch_max, origin.epoch)
        marker_ordinal = self.marker.ordinal if self.marker is not None else -1
        if origin.ordinal <= marker_ordinal:
            if self.below is None or origin.ordinal >= self.below.ordinal:
                self.below, self.below_offset = origin, offset
            if self.marker is not None and (str(offset), origin.ordinal, origin.position) == (
                self.marker.target,
                marker_ordinal,
                self.marker.relayed,
            ):
                self.is_matched = True
            return
        reached = self.last.ordinal if self.last is not None else marker_ordinal
        if origin.ordinal <= reached and self.last is not None:
            return  # an application copied one of our records: its header is data
        if reached >= 0 and origin.ordinal != reached + 1:
            self.has_gap = True
        self.last, self.last_offset = origin, offset


@dataclass(frozen=True, slots=True)
class LaneExtent:
    """The target lane at the moment of the claim."""

    low: int  # log start
    end: int  # last stable offset
    is_compacted: bool = False


@dataclass(frozen=True, slots=True)
class Resolved:
    marker: Marker | None
    alarm: str = ""
    error: LaneError | None = None
    #: the tail must be read again from further back
    needs_back_scan: bool = False


def resolve(path: Path, tail: PathTail, extent: LaneExtent, name: str, *, is_back_scanned: bool) -> Resolved:
    """Decide between a path's marker and the tail of its target lane `name`."""
    marker = tail.marker
    if marker is None:
        if tail.last is None:
            return Resolved(None)
        return Resolved(
            _from_header(tail.last, tail.last_offset, None),
            f"{name}: no marker for source lane {path[0]}; rebuilt from the header of record {tail.last_offset}",
        )
    if tail.has_gap:
        return Resolved(
            marker, error=_torn(path, marker, f"{name}: ordinals behind {marker.ordinal} have a gap in the data")
        )
    target = int(marker.target) if marker.target else -1
    is_cut = target >= 0 and target < extent.low
    is_known = target < 0 or is_cut or tail.is_matched
    if not is_known and target >= extent.end and extent.end == 0:
        return Resolved(
            marker,
            error=TargetReset(
                path[0],
                f"{name} is empty, but its marker names record {target}: the target was deleted or emptied",
                hint="start the route anew on this target",
                position=marker.relayed,
            ),
        )
    if not is_known and not extent.is_compacted:
        if not is_back_scanned:
            return Resolved(marker, needs_back_scan=True)
        if tail.below is None:
            return Resolved(
                marker,
                error=_torn(
                    path, marker, f"{name}: record {target} of the marker is absent, and no earlier one is left"
                ),
            )
        if tail.last is not None:
            return Resolved(
                marker, error=_torn(path, marker, f"{name}: records before ordinal {tail.last.ordinal} are absent")
            )
        return Resolved(
            _from_header(tail.below, tail.below_offset, marker),
            f"{name}: the marker of source lane {path[0]} is ahead of the data "
            f"(ordinal {marker.ordinal}, data {tail.below.ordinal}); the data decides",
        )
    if tail.last is not None:
        return Resolved(
            _from_header(tail.last, tail.last_offset, marker),
            f"{name}: the marker of source lane {path[0]} is behind the data "
            f"(ordinal {marker.ordinal}, data {tail.last.ordinal}); the data decides",
        )
    if not is_known and extent.is_compacted:
        return Resolved(marker, f"{name}: record {target} of the marker was compacted away; the marker decides")
    return Resolved(marker)


def _from_header(origin: Origin, offset: int, marker: Marker | None) -> Marker:
    """The marker that belongs to a record found in the target."""
    is_kafka = "-" not in origin.position
    place = Place(
        position=origin.position,
        count=int(origin.position) + 1 if is_kafka else -1,
        incarnation=marker.place.incarnation if marker is not None else "",
    )
    found = Marker(place=place, ordinal=origin.ordinal, relayed=origin.position, target=str(offset), epoch=origin.epoch)
    if marker is None:
        return found
    return msgspec.structs.replace(
        found,
        epoch=max(marker.epoch, origin.epoch),
        claim_id=marker.claim_id,
        transactional_id=marker.transactional_id,
        source=marker.source,
        quarantined=marker.quarantined,
    )


def _torn(path: Path, marker: Marker, message: str) -> TargetTorn:
    return TargetTorn(
        path[0],
        message,
        hint="compare both sides with `crossfade verify` before deciding where to go on",
        position=marker.relayed,
    )


class TailReader:
    """A consumer handle that reads the ends of target lanes. Every method runs in the handle's thread."""

    def __init__(self, settings: KafkaSettings, topic: str, route: str) -> None:
        self._topic = topic
        self._prefix = f"1;{route}/"
        self.health = HandleHealth(f"tail {topic}")
        self._consumer = Consumer(
            settings.consumer(
                self.health,
                group_id=f"crossfade.{route}",
                enable_auto_commit=False,
                auto_offset_reset="error",
                isolation_level="read_committed",
                enable_partition_eof=True,
                fetch_wait_max_ms=10,
                fetch_queue_backoff_ms=10,
                queued_max_messages_kbytes=32_768,
                max_poll_interval_ms=86_400_000,
            )
        )
        self._settings = settings
        settings.track(self._consumer)

    def scan(self, ranges: Mapping[Lane, tuple[int, int]], tails: Mapping[Path, PathTail], wait_s: float) -> None:
        """Feed `tails` with our records in each target lane's offsets `[from, to)`.

        Raises Unreachable, AccessRefused.
        """
        left = {lane: stop for lane, (start, stop) in ranges.items() if start < stop}
        if not left:
            return
        self._consumer.assign([TopicPartition(self._topic, lane, ranges[lane][0]) for lane in left])
        deadline = time.monotonic() + wait_s
        try:
            while left:
                if time.monotonic() > deadline:
                    raise Unreachable(f"the tail of {self._topic} could not be read within {wait_s:.0f} s")
                messages = self._consumer.consume(1, 0.1) or []
                messages += self._consumer.consume(2000, 0)
                for message in messages:
                    self._note(message, left, tails)
        except KafkaException as failure:
            raise translate(failure, f"reading the tail of {self._topic}", self.health) from failure
        finally:
            self._consumer.unassign()

    def _note(self, message: Any, left: dict[Lane, int], tails: Mapping[Path, PathTail]) -> None:
        lane = message.partition()
        error = message.error()
        if error is not None:
            if error.code() in (KafkaError._PARTITION_EOF, KafkaError._AUTO_OFFSET_RESET):
                left.pop(lane, None)  # reset: the log start moved past the range meanwhile
            elif error.code() != KafkaError.GROUP_AUTHORIZATION_FAILED:
                raise translate(error, f"reading the tail of {self._topic}", self.health)
            return
        stop = left.get(lane)
        if stop is None:
            return
        offset = message.offset()
        if offset < stop:
            origin = self._origin(message.headers())
            if origin is not None:
                tail = tails.get((origin.lane, lane))
                if tail is not None:
                    tail.feed(offset, origin)
        if offset >= stop - 1:
            del left[lane]

    def _origin(self, headers: Any) -> Origin | None:
        """Our origin: the last `xf` header, where it is of this route."""
        for name, content in reversed(headers or ()):
            if name == XF:
                return decode_origin(content) if content is not None and content.startswith(self._needle) else None
        return None

    @property
    def _needle(self) -> bytes:
        return self._prefix.encode()

    def close(self) -> None:
        """Let go of the handle."""
        self._settings.untrack(self._consumer)
        self._consumer.close()
