"""A Kafka topic as a Log: source (read_committed, places checked) and target (one transaction per append).

Joins the reader, the writer and the marker reader of this folder. Invariant as a source: a batch that is handed out
continues its place, in the same topic and not a re-created one of that name. Invariant as a target: records, markers
and quarantined records of an append are one transaction of one transactional id, which is the fence.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import structlog
from confluent_kafka import KafkaError

from ...errors import (
    AccessRefused,
    LaneError,
    SourceDamaged,
    SourceRegressed,
    SourceReset,
    SourceTrimmed,
    Unreachable,
    UsageError,
)
from ...model.position import Marker, Place, offset_behind
from ...model.record import Batch, Lane, Path, RecordColumns, Shape, Write
from ...telemetry import step
from ..protocol import Appended, Bounds, Claim, From, Owner, Start
from . import markers, names
from .board import KafkaBoard
from .cluster import EARLIEST, LATEST, Cluster, TopicFacts, are_two_topics, at_time, is_told
from .edges import EdgeReader
from .failures import is_topic_missing
from .markers import MarkerReader
from .registry import Registry
from .settings import KafkaSettings
from .source import OUT_OF_PLACE, SourceReader, Taken
from .target import KafkaTarget
from .threads import HandleThread
from .writer import fence

#: while nothing comes, the topic is asked after this often
_IDLE_CHECK_S = 1.0
#: asking for the topic's id after every read costs about this much of our processor, and may take this share of it
_CHECK_S = 0.0003
_CHECK_LANE_S = 0.00001
_CHECK_SHARE = 0.1
_GATHER_S_MAX = 0.05
_LOOK_S = 15.0
#: where the log was cut off, in librdkafka's words (-1 = it knows no such epoch); the code may be that of any reset
_CUT_AT = re.compile(r"broker end offset is (-?\d+) \(offset leader epoch (-?\d+)\)")
#: how often the brokers are asked where the epoch of a place ended, and for how long each time
_CUT_TRIES = 5
_CUT_WAIT_S = 3.0
_CUT_PAUSE_S = 0.3
#: a read in which places turn out to be gone may take this much longer
_DIAGNOSIS_S = 5.0


class KafkaLog:
    """One topic. Raises UsageError for a negative memory bound.

    `route`: whose rights the reader uses (its group is never joined).
    `source_lanes`: lanes of the stream that is copied into this one (None: as many as this topic has).
    `queue_kbytes_max`: bound of the records that are fetched ahead.
    `allow_weak`: go on where a lost broker could cost acknowledged records.
    `checks_reads`: False = the topic's id is not asked for after every read: for audits, which commit nothing.
    """

    kind = "kafka"
    shape = Shape.RECORD
    reads_ahead = True

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        *,
        route: str = "",
        source_lanes: int | None = None,
        queue_kbytes_max: int = 32_768,
        allow_weak: bool = False,
        checks_reads: bool = True,
    ) -> None:
        if queue_kbytes_max < 1024:
            raise UsageError(f"queue_kbytes_max is {queue_kbytes_max}, at least 1024 are needed")
        self.name = topic
        self.lanes = 0
        self.identity = ""
        self._settings = settings
        self._group = names.group(route) if route else "crossfade-source"
        self._queue_kbytes_max = queue_kbytes_max
        self.cluster = Cluster(settings)
        self._facts: TopicFacts | None = None
        self._reader: SourceReader | None = None
        self._reader_thread: HandleThread | None = None
        self._checks_reads = checks_reads
        #: when the topic's id was asked for last, and what it was
        self._checked_at = -inf
        self._told_id = ""
        self._edges = EdgeReader(settings, topic, self._group)
        self._board = KafkaBoard(settings, self.cluster)
        self._first_times: dict[Lane, tuple[str, int, str, int]] = {}
        self._compacted: bool | None = None
        self._target = KafkaTarget(
            settings, self.cluster, topic, self._edges, self._board, source_lanes, allow_weak=allow_weak
        )

    def lane_name(self, lane: Lane) -> str:
        return f"{self.name}[{lane}]"

    async def open(self) -> None:
        """Learn lanes and identity. Raises Unreachable, AccessRefused."""
        facts = await self.cluster.existing_topic(self.name)
        self._facts = facts
        self.lanes = facts.lanes
        described = await self.cluster.describe()
        self.identity = f"kafka:{described.cluster_id}:{self.name}"

    async def count_lanes(self) -> int:
        """How many partitions the topic has now. Raises Unreachable, AccessRefused."""
        return (await self.cluster.existing_topic(self.name)).lanes

    # --- source -----------------------------------------------------------------------------------------------------

    async def bounds(self, lanes: Sequence[Lane]) -> dict[Lane, Bounds]:
        """What each lane holds now. Raises Unreachable, AccessRefused."""
        low, end, held_up, is_compacted = await asyncio.gather(
            self.cluster.offsets(self.name, lanes, EARLIEST),
            self.cluster.offsets(self.name, lanes, LATEST),
            self.conditions(lanes),
            self.is_compacted(),
        )
        incarnation = await self._incarnation()
        firsts = await self._firsts(incarnation, low, end)
        return {
            lane: Bounds(
                first=firsts[lane][0],
                last=str(end[lane] - 1) if end[lane] > low[lane] else "",
                count=end[lane],
                length=max(0, end[lane] - low[lane]),
                incarnation=incarnation,
                first_time_ms=firsts[lane][1],
                held_up=held_up.get(lane, ""),
                holes_until=str(end[lane] - 1) if is_compacted and end[lane] > low[lane] else "",
            )
            for lane in low
        }

    async def is_compacted(self) -> bool:
        """Whether the topic was seen to be compacted: asked for once, so a refusal is not asked for again.

        Raises Unreachable.
        """
        if self._compacted is None:
            try:
                policy = (await self.cluster.config(self.name)).get("cleanup.policy")
            except AccessRefused:
                policy = None
            self._compacted = policy is not None and "compact" in policy.value
        return self._compacted

    async def _firsts(
        self, incarnation: str, low: Mapping[Lane, int], end: Mapping[Lane, int]
    ) -> dict[Lane, tuple[str, int]]:
        """Position and time of the first record of each lane. They change only when the log start moves."""
        unknown = {
            lane: start
            for lane, start in low.items()
            if start < end[lane] and self._first_times.get(lane, ("", -1))[:2] != (incarnation, start)
        }
        for lane, (offset, time_ms) in (await self._edges.first(unknown, _LOOK_S)).items():
            self._first_times[lane] = (incarnation, low[lane], str(offset), time_ms)
        return {
            lane: known[2:]
            if (known := self._first_times.get(lane)) and known[:2] == (incarnation, low[lane])
            else ("", -1)
            for lane in low
        }

    async def begin(self, lanes: Sequence[Lane], start: Start) -> dict[Lane, Place | LaneError]:
        """Where reading begins in each lane. Raises Unreachable, AccessRefused, UsageError."""
        bounds = await self.bounds(lanes)
        if start.where is From.EARLIEST:
            counts = {lane: b.count - b.length for lane, b in bounds.items()}
        elif start.where is From.LATEST:
            counts = {lane: b.count for lane, b in bounds.items()}
        elif start.where is From.TIME:
            found = await self.cluster.offsets(self.name, lanes, at_time(_whole_number(start.value)))
            counts = {lane: b.count if found[lane] < 0 else min(found[lane], b.count) for lane, b in bounds.items()}
        else:
            return {lane: self._begin_after(lane, _whole_number(start.value), bounds[lane]) for lane in lanes}
        return {
            lane: Place(
                position=str(count - 1) if count > bounds[lane].count - bounds[lane].length else "",
                count=count,
                incarnation=bounds[lane].incarnation,
            )
            for lane, count in counts.items()
        }

    def _begin_after(self, lane: Lane, offset: int, bounds: Bounds) -> Place | LaneError:
        place = Place(position=str(offset), count=offset + 1, incarnation=bounds.incarnation)
        return self._out_of_bounds(lane, place, bounds) or place

    async def read(
        self, after: Mapping[Lane, Place], records_max: int, bytes_max: int, wait_s: float
    ) -> dict[Lane, Batch | LaneError]:
        """Committed records behind each place (see `Log.read`).

        The topic's id is asked for after the records were taken and before they are handed out, so a commit never
        covers records of a re-created topic. That costs one small metadata request a read; records are gathered a few
        milliseconds longer where it would take more than a tenth of the time. (An audit, which commits nothing, asks
        once a second and at its end, and goes by the topic that was opened.) Trimming and truncation need no extra
        check: the broker refuses to serve an offset below the log start, beyond the end, or of a divergent epoch.
        """
        if not after:
            return {}
        reader, thread = self._source()
        gather_s = min(_GATHER_S_MAX, (_CHECK_S + _CHECK_LANE_S * self.lanes) / _CHECK_SHARE)
        taken, troubled = await thread.call(reader.take, after, records_max, bytes_max, wait_s, gather_s)
        outcome: dict[Lane, Batch | LaneError] = {}
        is_due = troubled or time.monotonic() - self._checked_at > _IDLE_CHECK_S
        if taken or is_due:
            must_ask = is_due or self._checks_reads
            incarnation = await self._incarnation_now(reader, thread) if must_ask else self._told_id
            opened = "" if self._checks_reads or self._facts is None else self._facts.topic_id
            for lane in after:
                known = after[lane].incarnation or opened
                if are_two_topics(known, incarnation) or (known and not incarnation):
                    outcome[lane] = self._reset(lane, after[lane].position, known, incarnation)
            if outcome:
                await thread.call(reader.forget)
                return outcome
            for lane, lot in taken.items():
                outcome[lane] = _batch(lane, lot, after[lane], incarnation)
            if troubled:
                outcome |= await self._diagnose({lane: after[lane] for lane in troubled}, troubled)
        step("kafka.read.done")
        return outcome

    async def conditions(self, lanes: Sequence[Lane]) -> dict[Lane, str]:
        """Lanes whose readers are held up by an open transaction, with what to say about it.

        The two ends are asked for one beside the other: where others write, they differ for a moment without one.
        """
        high, stable = await asyncio.gather(
            self.cluster.offsets(self.name, lanes, LATEST, committed=False),
            self.cluster.offsets(self.name, lanes, LATEST),
        )
        return {
            lane: f"{self.lane_name(lane)}: an open transaction holds up readers at offset {stable[lane]} "
            f"({high[lane] - stable[lane]} offsets behind it)"
            for lane in high
            if high[lane] > stable[lane]
        }

    def _source(self) -> tuple[SourceReader, HandleThread]:
        if self._reader is None or self._reader_thread is None:
            self._reader = SourceReader(
                self._settings,
                self.name,
                group=self._group,
                queue_kbytes_max=self._queue_kbytes_max,
                lanes=self.lanes,
            )
            self._reader_thread = HandleThread(f"source-{self.name}")
        return self._reader, self._reader_thread

    async def _incarnation(self) -> str:
        facts = await self.cluster.existing_topic(self.name)
        return facts.topic_id

    async def _incarnation_now(self, reader: SourceReader, thread: HandleThread) -> str:
        """The topic's id, "" = deleted. Where no broker can tell, what was taken is forgotten and read again."""
        found = await self.cluster.topic_id(self.name)
        if found == "":  # a broker that has just started may not know the topic yet: make sure
            await asyncio.sleep(0.5)
            found = await self.cluster.topic_id(self.name)
        if found is None:
            await thread.call(reader.forget)
            raise Unreachable(f"no broker could tell about topic {self.name}", hint="check that the brokers run")
        self._checked_at, self._told_id = time.monotonic(), found
        return found

    def _reset(self, lane: Lane, position: str, known: str, found: str) -> SourceReset:
        what = "was deleted and made anew" if found else "was deleted"
        return SourceReset(
            lane,
            f"{self.lane_name(lane)}: the topic {what} (id {known} is now {found or 'gone'})",
            hint="decide with `crossfade relay resume` where to go on",
            position=position,
        )

    async def _diagnose(
        self, places: Mapping[Lane, Place], troubled: Mapping[Lane, KafkaError]
    ) -> dict[Lane, LaneError]:
        """Name the trouble of lanes whose place the broker does not serve; a passing trouble has no entry.

        Nor has what there is no time for now: other lanes wait for this read. Those lanes are sought again, and by then
        the ones that were named are out.
        """
        until = time.monotonic() + _DIAGNOSIS_S
        reader, thread = self._source()
        bounds = await self.bounds(list(places))
        errors = {lane: self._out_of_bounds(lane, place, bounds[lane]) for lane, place in places.items()}
        if shorter := [lane for lane, error in errors.items() if isinstance(error, SourceRegressed)]:
            await asyncio.sleep(1.0)  # a new leader may not know its high watermark yet: make sure
            bounds |= await self.bounds(shorter)
            errors |= {lane: self._out_of_bounds(lane, places[lane], bounds[lane]) for lane in shorter}
        found: dict[Lane, LaneError] = {}
        for looked, (lane, place) in enumerate(places.items()):
            if looked and time.monotonic() > until:
                break
            error = errors[lane]
            low = bounds[lane].count - bounds[lane].length
            is_cut = _CUT_AT.search(troubled[lane].str()) is not None
            is_damage = (
                error is None and troubled[lane].code() not in OUT_OF_PLACE and not is_topic_missing(troubled[lane])
            )
            if (
                error is None
                and not is_cut
                and offset_behind(place) < low
                and not (is_damage and await thread.call(reader.is_trusted, lane, place))
            ):
                await thread.call(reader.trust, lane, place)
            elif is_damage:
                error = self._damage(lane, place, troubled[lane])
            elif place.witness and (isinstance(error, SourceRegressed) or troubled[lane].code() in OUT_OF_PLACE):
                error = await self._diverged(lane, place, low, error)
            if error is not None:
                found[lane] = error
            else:
                structlog.get_logger("kafka.source").info(
                    "seeking again", lane=self.lane_name(lane), at=place.count, reason=troubled[lane].str()
                )
        return found

    def _damage(self, lane: Lane, place: Place, trouble: KafkaError) -> SourceDamaged:
        """What the brokers or the client say of a place that is there: nothing behind it is read meanwhile."""
        return SourceDamaged(
            lane,
            f"{self.lane_name(lane)}: a batch behind {place.position or 'the start'} cannot be read: {trouble.str()}",
            hint="look at the leader's log; where the batch is damaged and another replica has it whole "
            "(`kafka-dump-log.sh --deep-iteration --files`), let that one lead. The lane is tried again by itself",
            position=place.position,
        )

    def _out_of_bounds(self, lane: Lane, place: Place, bounds: Bounds) -> LaneError | None:
        low = bounds.count - bounds.length
        if place.count < low:
            return SourceTrimmed(
                lane,
                f"{self.lane_name(lane)}: {low - place.count} offsets behind {place.position or 'the start'} were "
                f"deleted before they were copied; the log now starts at {low}",
                hint="decide with `crossfade relay resume --accept-loss` whether to go on without them",
                position=place.position,
                lost_records=low - place.count,
            )
        if offset_behind(place) > bounds.count:
            return SourceRegressed(
                lane,
                f"{self.lane_name(lane)} ends at {bounds.count}, but {offset_behind(place)} was reached: records that "
                "were already copied are gone (unclean election, restored disk)",
                hint="compare both sides with `crossfade verify`, then decide where to go on",
                position=place.position,
                lost_records=offset_behind(place) - bounds.count,
                ends_at=bounds.count,
            )
        return None

    async def _diverged(self, lane: Lane, place: Place, low: int, error: LaneError | None) -> LaneError | None:
        """Where the leader epoch of the place ended: the log was cut off there, and may have grown since.

        Where the log ends now says less: what stands between the cut and that is new. `error` is what the bounds said;
        it stands where the brokers do not tell more. No answer in time is none: the lane is sought again.
        """
        reader, thread = self._source()
        # Of a place before the beginning the brokers say nothing but that.
        for tried in range(1 if isinstance(error, SourceTrimmed) else _CUT_TRIES):
            await asyncio.sleep(_CUT_PAUSE_S * tried)
            trouble = await thread.call(reader.examine, lane, place, low, _CUT_WAIT_S)
            if trouble is None:
                return None
            found = _CUT_AT.search(trouble.str())
            # Where the client was asking about a later epoch already, it takes that answer for this place too.
            if found is not None and int(found[2]) <= int(place.witness):
                break
            structlog.get_logger("kafka.source").info(
                "not told where the log was cut off", lane=self.lane_name(lane), at=place.count, reason=trouble.str()
            )
        else:
            return error
        ends_at = int(found[1])
        return SourceRegressed(
            lane,
            f"{self.lane_name(lane)}: the log was cut off before {offset_behind(place)}, which was reached (unclean "
            f"election, restored disk): {trouble.str()}",
            hint="compare both sides with `crossfade verify`, then decide where to go on",
            position=place.position,
            lost_records=offset_behind(place) - ends_at if ends_at >= 0 else -1,
            ends_at=ends_at,
        )

    # --- target -----------------------------------------------------------------------------------------------------

    async def claim(self, owner: Owner, paths: Sequence[Path]) -> Claim:
        """Fence every older claim on these paths, then read and check their markers (see `Log.claim`)."""
        return await self._target.claim(owner, paths)

    async def append(
        self, claim: Claim, writes: Sequence[Write], on_sent: Callable[[], None] | None = None
    ) -> dict[Path, Appended | LaneError]:
        """One transaction with the records and markers of all writes (see `Log.append`)."""
        return await self._target.append(claim, writes, on_sent)

    async def guarantee(self) -> list[str]:
        """Which guarantee holds on this target, and why. Raises GuaranteeRefused, Unreachable, AccessRefused."""
        return await self._target.guarantee()

    async def markers_of(self, route: str, paths: Sequence[Path]) -> dict[Path, Marker]:
        """See `Log.markers_of`. Raises Indeterminate, Unreachable, AccessRefused."""
        if not paths or await self.cluster.topic(names.lanes_topic(route)) is None:
            return {}
        thread = HandleThread(f"markers-of-{route}")
        reader = MarkerReader(self._settings, route)
        try:
            texts = await thread.call(reader.read, sorted({source for source, _ in paths}), _LOOK_S)
        finally:
            thread.post(reader.close)
            thread.stop()
        return {
            path: marker
            for lane, text in texts.items()
            for path, marker in markers.decode(text, lane, paths).items()
            if path in set(paths)
        }

    async def quarantined(self, route: str) -> dict[Lane, frozenset[str]]:
        """Source positions in the route's quarantine (see `Log.quarantined`). Raises Unreachable, AccessRefused."""
        topic = names.quarantine_topic(route)
        if await self.cluster.topic(topic) is None:
            return {}
        low = await self.cluster.offsets(topic, [0], EARLIEST)
        end = await self.cluster.offsets(topic, [0], LATEST)
        found: dict[Lane, set[str]] = {}

        def note(_: Lane, message: Any) -> bool:
            headers = dict(message.headers() or ())
            found.setdefault(int(headers["lane"]), set()).add(headers["position"].decode())
            return False

        reader = EdgeReader(self._settings, topic, self._group)
        try:
            await reader.look({0: (low[0], end[0])}, note, _LOOK_S)
        finally:
            reader.close()
        return {lane: frozenset(positions) for lane, positions in found.items()}

    async def reshard(self, route: str, count: int) -> None:
        """Change into how many shards a route is split by hand; finishes an earlier change that was cut short.

        Raises VersionConflict, Unreachable, AccessRefused.
        """
        registry = Registry(self._board, self.name)
        _, unfenced = await registry.split(route)
        await self._target.reshard(route, count)
        for old in unfenced:
            for index in range(old):
                if old != count:
                    await fence(self._settings, names.transactional_id(route, None, (index, old)))
        await registry.note_fenced(route)

    async def split(self, route: str) -> tuple[int, tuple[int, ...]]:
        """Into how many shards a route is split by hand (0 = it is not), and earlier splits that are not fenced yet."""
        return await Registry(self._board, self.name).split(route)

    async def release(self, route: str) -> None:
        """Let another route write to this topic from now on. Raises Unreachable, AccessRefused."""
        await self._target.release(route)

    async def close(self) -> None:
        """Let go of connections and threads. Safe to call twice."""
        thread, reader = self._reader_thread, self._reader
        self._reader_thread = self._reader = None
        if thread is not None and reader is not None:
            thread.post(reader.close)
            thread.stop()
        await self._target.close()
        await self._board.close()
        self._edges.close()
        self.cluster.close()


def _batch(lane: Lane, lot: Taken, place: Place, incarnation: str) -> Batch:
    is_moved = bool(lot.positions)
    witness = str(lot.leader_epoch) if is_moved and lot.leader_epoch >= 0 else ("" if is_moved else place.witness)
    return Batch(
        lane,
        Shape.RECORD,
        lot.positions,
        RecordColumns(lot.keys, lot.values, lot.headers, lot.times),
        Place(
            position=str(lot.positions[-1]) if is_moved else place.position,
            count=lot.next_offset,
            # brokers that are upgraded one by one tell an id, then none
            incarnation=incarnation if is_told(incarnation) else place.incarnation or incarnation,
            witness=witness,
        ),
        at_end=lot.at_end,
        size_bytes=lot.size_bytes,
    )


def _whole_number(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UsageError(
            f"{value!r} is no whole number", hint="give milliseconds since the epoch, or an offset"
        ) from None
