"""Markers as group offsets on the lanes topic: how they are written into one metadata text, and read back.

One partition of the lanes topic stands for one source lane; a source lane with several target lanes keeps all their
markers in that one text. Pure but for the handle that reads committed offsets.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ...errors import GuaranteeRefused, Indeterminate, RouteConflict, UsageError
from ...model.position import Marker, Place
from ...model.record import Lane, Path
from ...model.wire import MARKER_UNITS_MAX, decode_marker, encode_marker
from . import names
from .failures import HandleHealth, error_of, translate
from .settings import KafkaSettings
from .threads import breathe

#: offsets of a source lane with several target lanes: shared fields once, then one row per target lane
_MANY = "1;["


class _Shared(msgspec.Struct, frozen=True, array_like=True):
    incarnation: str
    epoch: int
    claim_id: str
    transactional_id: str
    source: str


class _One(msgspec.Struct, frozen=True, array_like=True):
    target_lane: int
    position: str
    count: int
    witness: str
    ordinal: int
    relayed: str
    target: str
    quarantined: int


def encode(markers: Mapping[Path, Marker], *, is_alone: bool) -> str:
    """All markers of one source lane as one text; `is_alone`: the lane has one target lane.

    Raises GuaranteeRefused where Kafka would not take it.
    """
    if is_alone:
        text = encode_marker(next(iter(markers.values())))
    else:
        first = max(markers.values(), key=lambda marker: marker.epoch)  # one of the claim that writes now
        shared = _Shared(first.place.incarnation, first.epoch, first.claim_id, first.transactional_id, first.source)
        rows = [
            _One(
                lane,
                m.place.position,
                m.place.count,
                m.place.witness,
                m.ordinal,
                m.relayed,
                m.target,
                m.quarantined,
            )
            for (_, lane), m in sorted(markers.items())
        ]
        text = "1;" + msgspec.json.encode([shared, rows]).decode()
    units = len(text.encode("utf-16-le")) // 2
    if units > MARKER_UNITS_MAX:
        raise GuaranteeRefused(
            f"source lane {next(iter(markers))[0]} has {len(markers)} target lanes: their markers need {units} "
            f"characters, Kafka stores {MARKER_UNITS_MAX}",
            hint="start a new route into a topic of fewer partitions, or with `lanes: one-to-one`",
        )
    return text


def decode(text: str, lane: Lane, paths: Iterable[Path]) -> dict[Path, Marker]:
    """The markers in the metadata of source lane `lane`.

    Raises UsageError for a newer format and for what is no marker, RouteConflict where the lane had one target lane
    and has more now.
    """
    try:
        if text[:1].isdecimal():  # every version begins with its number
            return _decode(text, lane, [path for path in paths if path[0] == lane])
        cause = None
    except msgspec.DecodeError as error:
        cause = error
    raise UsageError(
        f"the offset of source lane {lane} in the route's group is no marker: {text[:80]!r}",
        hint=_put_right(names.group("<route id>"), f"{names.lanes_topic('<route id>')}:{lane}"),
    ) from cause


def _put_right(group: str, partition: str) -> str:
    """What to do where something else committed to the route's group: the marker is gone, the data tells."""
    return (
        "something else changed the route's group (`kafka-consumer-groups.sh --reset-offsets` does): stop the route's "
        f"relays and remove that offset (`--delete-offsets --group {group} --topic {partition}`); the next claim "
        "finds in the headers of the target where the lane goes on"
    )


def _decode(text: str, lane: Lane, mine: Sequence[Path]) -> dict[Path, Marker]:
    if not text.startswith(_MANY):
        marker = decode_marker(text)
        if len(mine) != 1:
            raise RouteConflict(
                f"source lane {lane} was copied into one target lane before, now the route maps it to {len(mine)}",
                hint="use the configuration that the route was started with, or start a new route",
            )
        return {mine[0]: marker}
    shared, rows = msgspec.json.decode(text.partition(";")[2], type=tuple[_Shared, list[_One]])
    return {
        (lane, one.target_lane): Marker(
            place=Place(one.position, one.count, shared.incarnation, one.witness),
            ordinal=one.ordinal,
            relayed=one.relayed,
            target=one.target,
            epoch=shared.epoch,
            claim_id=shared.claim_id,
            transactional_id=shared.transactional_id,
            source=shared.source,
            quarantined=one.quarantined,
        )
        for one in rows
    }


def offsets(
    route: str, markers: Mapping[Path, Marker], lanes: Iterable[Lane], paths: Iterable[Path]
) -> list[TopicPartition]:
    """The group offsets that store the markers of these source lanes; the offset is the ordinal.

    `paths`: all that the claim has, also those that have no marker yet.
    """
    topic = names.lanes_topic(route)
    found = []
    widths = Counter(source for source, _ in paths)
    for lane in sorted(set(lanes)):
        mine = {path: marker for path, marker in markers.items() if path[0] == lane}
        found.append(
            TopicPartition(topic, lane, sum(m.ordinal for m in mine.values()), encode(mine, is_alone=widths[lane] == 1))
        )
    return found


class MarkerReader:
    """Memberless consumer handles of the route's group. Every method runs in one thread."""

    def __init__(self, settings: KafkaSettings, route: str) -> None:
        self._route = route
        self._settings = settings
        self.health = HandleHealth(f"markers {route}")
        self._consumer = self._open("read_committed")
        self._peeking: Consumer | None = None

    def _open(self, isolation_level: str) -> Consumer:
        properties = self._settings.consumer(
            self.health,
            group_id=names.group(self._route),
            enable_auto_commit=False,
            isolation_level=isolation_level,
        )
        return self._settings.make(Consumer, properties)

    def memberless_handle(self) -> Any:
        """The group handle of a writer that is no member: lanes set by hand."""
        return self._consumer.consumer_group_metadata()

    def read(self, lanes: Sequence[Lane], wait_s: float) -> dict[Lane, str]:
        """The stable metadata per source lane; absent where there is none.

        `committed()` waits for offsets of open transactions, which the admin API would report as absent.
        Raises Indeterminate where one stays open for `wait_s`, Unreachable, AccessRefused.
        """
        return self._read(self._consumer, lanes, wait_s)

    def peek(self, lanes: Sequence[Lane], wait_s: float) -> dict[Lane, str]:
        """The last committed metadata per source lane, open transactions left aside; absent where there is none.

        Not by the admin API: librdkafka's ListConsumerGroupOffsets crashes the process where a coordinator answers
        "not coordinator" or "load in progress", as it does for moments after every failover.
        Raises Indeterminate, Unreachable, AccessRefused.
        """
        if self._peeking is None:
            self._peeking = self._open("read_uncommitted")
        return self._read(self._peeking, lanes, wait_s)

    def _read(self, consumer: Consumer, lanes: Sequence[Lane], wait_s: float) -> dict[Lane, str]:
        topic = names.lanes_topic(self._route)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                found = consumer.committed([TopicPartition(topic, lane) for lane in lanes], 2.0)
                break
            except KafkaException as failure:
                told = consumer.poll(0)  # nothing is subscribed: it only lets the client tell what is wrong
                error = told.error() if told is not None else None
                if error is not None and error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
                    raise translate(error, "reading the markers", self.health) from failure
                is_refused = self.health.refusal() is not None
                if time.monotonic() < deadline and error_of(failure).code() in _WAIT and not is_refused:
                    breathe()
                    continue
                if error_of(failure).code() == KafkaError._TIMED_OUT and not is_refused:
                    raise Indeterminate(
                        f"the markers of route {self._route} stay behind an open transaction",
                        hint="it ends by itself after the transaction timeout",
                    ) from failure
                raise translate(failure, "reading the markers", self.health) from failure
        texts: dict[Lane, str] = {}
        plain: list[Lane] = []
        for partition in found:
            if partition.error is not None:
                raise translate(partition.error, "reading the markers", self.health)
            if partition.offset >= 0 and partition.metadata:
                texts[partition.partition] = partition.metadata
            elif partition.offset >= 0:
                plain.append(partition.partition)
        if plain:
            group, numbers = names.group(self._route), ",".join(map(str, sorted(plain)))
            raise UsageError(
                f"group {group} has a plain offset on lane{'s' * (len(plain) > 1)} {numbers}, and no marker",
                hint=_put_right(group, f"{topic}:{numbers}"),
            )
        return texts

    def close(self) -> None:
        """Let go of the handles."""
        for consumer in (self._consumer, self._peeking):
            if consumer is not None:
                self._settings.untrack(consumer)
                consumer.close()


_WAIT = frozenset(
    {
        KafkaError._TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._WAIT_COORD,
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.UNSTABLE_OFFSET_COMMIT,
    }
)
