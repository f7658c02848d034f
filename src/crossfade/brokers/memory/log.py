"""The Log in memory: one process's connection to one stream, as source and as target.

Two kinds of atomicity, as on the real brokers. Record lanes: one transaction carries all paths of an append; it is
fenced by its claim, and an old claim's late commit must find it fenced. Entry lanes: each lane's script checks epoch,
claim id and the expected marker, then writes; an append can end in the middle, between two lanes.
Invariant: what a fenced claim wrote is never seen by a committed reader. After a `Crash` a connection answers nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast

from ...errors import (
    BrokerError,
    Fenced,
    Indeterminate,
    LaneError,
    QuarantineFull,
    RouteConflict,
    TargetFull,
    TargetReset,
    TargetTorn,
    Unreachable,
    invariant,
)
from ...model.position import Marker, Place, order_of, position_order, position_text
from ...model.record import Batch, Lane, Path, Reject, Shape, Write
from ...model.wire import XF, XF_FIELD, Origin, decode_origin, origin_prefix, origin_suffix
from ..protocol import Appended, Bounds, Claim, Owner, Start
from .broker import MemoryBroker, OpenTransaction, Quarantined, Stream
from .faults import Crash, Outcome
from .group import is_current
from .lanes import EntryLane, RecordLane, row_size_bytes

_T = TypeVar("_T")


@dataclass(slots=True)
class MemoryClaim(Claim):
    """A claim, with the markers that its own appends have set since."""

    expected: dict[Path, Marker] = field(default_factory=dict)
    paths: tuple[Path, ...] = ()


class MemoryLog:
    """A stream of `broker`: record-shaped like a Kafka topic, or entry-shaped like Redis stream keys."""

    kind = "memory"

    def __init__(
        self,
        broker: MemoryBroker,
        stream: str,
        lanes: int,
        shape: Shape,
        *,
        instance: str = "",
        record_bytes_max: int | None = None,
    ) -> None:
        self.shape = shape
        self.reads_ahead = shape is Shape.RECORD  # as where the shape comes from
        self.lanes = lanes
        self.name = stream
        self.identity = ""
        self._broker = broker
        self._instance = instance
        self._record_bytes_max = record_bytes_max
        self._is_dead = False
        self._turn = 0
        self._told_end: dict[Lane, Place] = {}

    def lane_name(self, lane: Lane) -> str:
        return f"{self.name}[{lane}]" if self.shape is Shape.RECORD else f"{self.name}:{lane}"

    async def open(self) -> None:
        self.identity = await self._step("open", lambda: self._stream.identity)

    async def markers_of(self, route: str, paths: Sequence[Path]) -> dict[Path, Marker]:
        def look() -> dict[Path, Marker]:
            found = {path: self._broker.marker(self.name, route, path) for path in paths}
            return {path: marker for path, marker in found.items() if marker is not None}

        return await self._step("markers_of", look)

    async def count_lanes(self) -> int:
        return await self._step("count_lanes", lambda: len(self._stream.lanes))

    async def quarantined(self, route: str) -> dict[Lane, frozenset[str]]:
        found: dict[Lane, set[str]] = {}
        for each in self._broker.quarantine(self.name):
            if each.route == route:
                found.setdefault(each.path[0], set()).add(each.position)
        return {lane: frozenset(positions) for lane, positions in found.items()}

    async def close(self) -> None:
        return

    @property
    def _stream(self) -> Stream:
        return self._broker.stream(self.name, self.lanes, self.shape)

    # -- steps -------------------------------------------------------------------------------------------------------

    async def _step(self, method: str, effect: Callable[[], _T]) -> _T:
        """One request that changes nothing that matters, or may safely be repeated."""
        outcome = await self._ask(method)
        if outcome is Outcome.CRASH_BEFORE:
            self._die(method)
        if outcome in (Outcome.UNKNOWN_NOT_APPLIED, Outcome.APPLIED_LATE):
            raise Unreachable(f"{self.name}: {method}: no answer")
        return self._reply(method, outcome, effect(), Unreachable)

    async def _ask(self, method: str) -> Outcome:
        self._check_alive(method)
        await asyncio.sleep(self._broker.latency_s())  # others may come first, as on a network
        self._check_alive(method)
        return self._broker.outcome(method, self.name, self._instance)

    def _check_alive(self, method: str) -> None:
        if self._is_dead:
            raise Crash(method)

    def _die(self, method: str) -> None:
        self._is_dead = True
        raise Crash(method)

    def _reply(self, method: str, outcome: Outcome, result: _T, doubt: type[BrokerError]) -> _T:
        if outcome is Outcome.CRASH_AFTER:
            self._die(method)
        if outcome is Outcome.UNKNOWN_APPLIED:
            raise doubt(f"{self.name}: {method}: no answer", hint="claim anew and read back")
        return result

    # -- as source ---------------------------------------------------------------------------------------------------

    async def bounds(self, lanes: Sequence[Lane]) -> dict[Lane, Bounds]:
        return await self._step("bounds", lambda: {lane: self._stream.lanes[lane].bounds() for lane in lanes})

    async def begin(self, lanes: Sequence[Lane], start: Start) -> dict[Lane, Place | LaneError]:
        return await self._step("begin", lambda: {lane: self._begin(lane, start) for lane in lanes})

    def _begin(self, lane: Lane, start: Start) -> Place:
        found = self._stream.lanes[lane]
        return found.begin(start) if isinstance(found, RecordLane) else found.begin(start, self._broker.fresh("birth"))

    async def read(
        self, after: Mapping[Lane, Place], records_max: int, bytes_max: int, wait_s: float
    ) -> dict[Lane, Batch | LaneError]:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + wait_s
        while True:
            found = await self._step("read", lambda: self._read(after, records_max, bytes_max))
            left_s = until_s - loop.time()
            if found or left_s <= 0:
                return found
            await self._broker.news(left_s)

    def _read(self, after: Mapping[Lane, Place], records_max: int, bytes_max: int) -> dict[Lane, Batch | LaneError]:
        found: dict[Lane, Batch | LaneError] = {}
        lanes = sorted(after)
        self._turn += 1
        # Another lane is first each time, and none may take more than its share of what is left: no lane starves.
        first = self._turn % max(1, len(lanes))
        waiting = lanes[first:] + lanes[:first]
        while waiting:
            lane = waiting.pop(0)
            share = -(-records_max // (len(waiting) + 1))
            batch = self._stream.lanes[lane].read(after[lane], share, bytes_max)
            if isinstance(batch, Batch):
                if bytes_max <= 0 and batch.rows and found:
                    continue  # the bytes are spent: its turn comes
                records_max -= len(batch.rows)
                bytes_max -= batch.size_bytes
            if self._is_news(lane, batch, after[lane]):
                found[lane] = batch
        return found

    def _is_news(self, lane: Lane, batch: Batch | LaneError, after: Place) -> bool:
        if isinstance(batch, LaneError) or batch.rows or batch.place != after:
            self._told_end.pop(lane, None)
            return True
        told = self._told_end.get(lane) == after
        if batch.at_end:
            self._told_end[lane] = after
        return batch.at_end and not told

    # -- as target: claim --------------------------------------------------------------------------------------------

    async def claim(self, owner: Owner, paths: Sequence[Path]) -> Claim:
        claim = MemoryClaim(owner, 0, self._broker.fresh("claim"), {}, paths=tuple(paths))
        if self.shape is Shape.RECORD:
            await self._claim_step("claim", lambda: self._take(claim, paths))
        else:
            claim.epoch = self._next_epoch(owner.route, paths)
            for lane in sorted({target for _, target in paths}):
                of_lane = [path for path in paths if path[1] == lane]
                await self._claim_step("claim.lane", lambda of_lane=of_lane: self._take(claim, of_lane))  # type: ignore[misc]
        claim.expected = dict(claim.markers)
        self._broker.arrive(self._broker.due("claim"))
        return claim

    async def _claim_step(self, method: str, effect: Callable[[], None]) -> None:
        outcome = await self._ask(method)
        if outcome is Outcome.CRASH_BEFORE:
            self._die(method)
        if outcome is Outcome.FENCED:
            raise Fenced(f"{self.name}: another process claims these lanes", hint="claim anew")
        if outcome is Outcome.APPLIED_LATE:
            self._broker.delay(effect)
        if outcome in (Outcome.APPLIED_LATE, Outcome.UNKNOWN_NOT_APPLIED):
            raise Indeterminate(f"{self.name}: {method}: no answer", hint="claim anew")
        effect()
        self._reply(method, outcome, None, Indeterminate)

    def _take(self, claim: MemoryClaim, paths: Sequence[Path]) -> None:
        """Fence older claims on `paths`, then read the markers and check them against the data."""
        stream, owner = self._stream, claim.owner
        if not is_current(owner.token):
            raise Fenced(f"{self.name}: the group has a newer generation", hint="wait for the new assignment")
        for path in paths:
            self._check_route(stream, owner, path)
        claim.epoch = max(claim.epoch, self._next_epoch(owner.route, paths))
        for path in paths:
            found = stream.lanes[path[1]]
            stream.routes[path[1]] = owner.route
            if isinstance(found, EntryLane):
                found.remember()
                found.claims[owner.route, path] = (claim.epoch, claim.claim_id)
            else:
                older = stream.claims.get((owner.route, path))
                if older is not None:
                    self._abort(stream, older[1])
                stream.claims[owner.route, path] = (claim.epoch, claim.claim_id)
            self._find_marker(claim, path)
        self._broker.notify()

    def _check_route(self, stream: Stream, owner: Owner, path: Path) -> None:
        other = stream.routes.get(path[1], owner.route)
        if other != owner.route:
            raise RouteConflict(
                f"{self.lane_name(path[1])} belongs to route {other}", hint="end that route, or write to another target"
            )
        marker = self._broker.marker(self.name, owner.route, path)
        if marker is not None and marker.source and marker.source != owner.source:
            raise RouteConflict(
                f"{self.lane_name(path[1])} was filled from another source, lane map or mapping",
                hint="restore the route's configuration, or make a new route",
            )

    def _next_epoch(self, route: str, paths: Sequence[Path]) -> int:
        """1 + the highest epoch found in claims, markers and headers."""
        stream = self._stream
        highest = 0
        for path in paths:
            found = stream.lanes[path[1]]
            claims = found.claims if isinstance(found, EntryLane) else stream.claims
            marker = self._broker.marker(self.name, route, path)
            tail = _tail(found, route, path)
            highest = max(
                highest,
                claims.get((route, path), (0, ""))[0],
                marker.epoch if marker else 0,
                tail[1].epoch if tail else 0,
            )
        return highest + 1

    def _find_marker(self, claim: MemoryClaim, path: Path) -> None:
        """Compare the marker's ordinal with the tail's. Equal is normal; else the data decides, where it can."""
        found = self._stream.lanes[path[1]]
        marker = self._broker.marker(self.name, claim.owner.route, path)
        if isinstance(found, EntryLane):
            # Marker and entries change in one script: they can only part when the stream key itself is deleted.
            if marker is not None and position_order(marker.target) > found.last:
                claim.errors[path] = self._reset(path)
            elif marker is not None:
                claim.markers[path] = marker
            return
        tail = _tail(found, claim.owner.route, path)
        if tail is None:
            if marker is None:
                return
            if not marker.target or int(marker.target) < found.start:
                claim.markers[path] = marker  # nothing relayed yet, or retention took all of it
            elif int(marker.target) >= found.end:
                claim.errors[path] = self._reset(path)
            else:
                sentence = f"{self.lane_name(path[1])}: the marker names record {marker.target}, which is not there"
                claim.errors[path] = TargetTorn(path[0], sentence, hint="compare with `crossfade verify`")
            return
        position, origin = tail
        if marker is not None and marker.ordinal == origin.ordinal:
            claim.markers[path] = marker
            return
        claim.alarms.append(
            f"{self.lane_name(path[1])}: the marker says ordinal {marker.ordinal if marker else 'nothing'}, "
            f"the data {origin.ordinal}; the data decides"
        )
        claim.markers[path] = _marker_of(position, origin, marker, claim.owner.source)

    def _reset(self, path: Path) -> TargetReset:
        return TargetReset(
            path[0], f"{self.lane_name(path[1])} was deleted or emptied behind its marker", hint="copy the lane anew"
        )

    # -- as target: append -------------------------------------------------------------------------------------------

    async def append(
        self, claim: Claim, writes: Sequence[Write], on_sent: Callable[[], None] | None = None
    ) -> dict[Path, Appended | LaneError]:
        claim = cast(MemoryClaim, claim)
        invariant(all(write.path in claim.paths for write in writes), "an append goes to claimed paths")
        invariant(len({write.path for write in writes}) == len(writes), "the paths of one append are distinct")
        if on_sent is not None:
            on_sent()
        done = await (self._transact if self.shape is Shape.RECORD else self._run_scripts)(claim, writes)
        for path, outcome in done.items():
            if isinstance(outcome, Appended):
                claim.expected[path] = outcome.marker
        return done

    async def _transact(self, claim: MemoryClaim, writes: Sequence[Write]) -> dict[Path, Appended | LaneError]:
        outcome = await self._ask("append")
        if outcome is Outcome.FENCED:
            self._usurp(claim, [write.path for write in writes])
        self._check_claim(claim)
        if outcome is Outcome.CRASH_BEFORE:
            # Half of the records lie in an open transaction: readers stop in front of it until it is aborted.
            self._produce(claim, writes[: (len(writes) + 1) // 2])
            self._die("append")
        done = self._produce(claim, writes)
        self._broker.arrive(self._broker.due("append"))
        if outcome is Outcome.APPLIED_LATE:
            self._broker.delay(lambda: self._commit(claim))
        if outcome in (Outcome.APPLIED_LATE, Outcome.UNKNOWN_NOT_APPLIED):
            raise Indeterminate(f"{self.name}: commit: no answer", hint="claim anew and read back")
        self._commit(claim)
        return self._reply("append", outcome, done, Indeterminate)

    def _check_claim(self, claim: MemoryClaim) -> None:
        claims, route = self._stream.claims, claim.owner.route
        taken = [path for path in claim.paths if claims.get((route, path)) != (claim.epoch, claim.claim_id)]
        if taken or not is_current(claim.owner.token):
            self._abort(self._stream, claim.claim_id)
            raise Fenced(f"{self.name}: a newer claim owns these lanes", hint="claim anew")

    def _produce(self, claim: MemoryClaim, writes: Sequence[Write]) -> dict[Path, Appended | LaneError]:
        stream = self._stream
        pending = stream.open.setdefault(claim.claim_id, OpenTransaction())
        done: dict[Path, Appended | LaneError] = {}
        for write in writes:
            found = cast(RecordLane, stream.lanes[write.path[1]])
            fitting = self._fitting(write)
            if isinstance(fitting, LaneError):
                done[write.path] = fitting
                continue
            taken, rejects = fitting
            before = claim.expected.get(write.path, Marker(Place()))
            target = before.target
            for ordinal, at in enumerate(taken, before.ordinal + 1):
                origin = self._origin(claim, write, at, ordinal).encode()
                key, value, headers, time_ms = write.rows[at]
                row = (key, value, [*(headers or ()), (XF, origin)], time_ms)
                target = str(found.write_open(claim.claim_id, row))
            marker = self._marker(claim, write, before, taken, target, len(rejects))
            pending.markers[claim.owner.route, write.path] = marker
            pending.quarantine += rejects
            done[write.path] = Appended(marker, len(taken), len(rejects))
        return done

    def _commit(self, claim: MemoryClaim) -> None:
        """End the open transaction of `claim`, whatever lies in it by now. Raises Fenced."""
        self._check_claim(claim)
        stream = self._stream
        pending = stream.open.pop(claim.claim_id, OpenTransaction())
        for found in stream.lanes:
            cast(RecordLane, found).finish(claim.claim_id, commit=True)
        stream.markers.update(pending.markers)
        stream.quarantine += pending.quarantine
        self._broker.notify()

    def _abort(self, stream: Stream, claim_id: str) -> None:
        stream.open.pop(claim_id, None)
        for found in stream.lanes:
            if isinstance(found, RecordLane):
                found.finish(claim_id, commit=False)

    async def _run_scripts(self, claim: MemoryClaim, writes: Sequence[Write]) -> dict[Path, Appended | LaneError]:
        done: dict[Path, Appended | LaneError] = {}
        doubts: list[Path] = []
        late = self._broker.due("append")
        for number, write in enumerate(writes):
            outcome = await self._ask("append.lane")
            if outcome is Outcome.CRASH_BEFORE:
                self._die("append.lane")
            if outcome is Outcome.FENCED:
                self._usurp(claim, [write.path])
            if number == len(writes) // 2:
                self._broker.arrive(late)
            if outcome is Outcome.APPLIED_LATE:
                expected = claim.expected.get(write.path)
                self._broker.delay(lambda write=write, expected=expected: self._script(claim, write, expected))  # type: ignore[misc]
            if outcome in (Outcome.APPLIED_LATE, Outcome.UNKNOWN_NOT_APPLIED):
                doubts.append(write.path)
                continue  # the other lanes' calls are under way already: they go on
            done[write.path] = self._script(claim, write, claim.expected.get(write.path))
            if outcome is Outcome.CRASH_AFTER:
                self._die("append.lane")
            if outcome is Outcome.UNKNOWN_APPLIED:
                doubts.append(write.path)
        if doubts:
            raise Indeterminate(f"{self.name}: no answer for {len(doubts)} lanes", hint="claim anew and read back")
        return done

    def _script(self, claim: MemoryClaim, write: Write, expected: Marker | None) -> Appended | LaneError:
        """What runs inside Redis: check, write, set the marker, in one piece. Raises Fenced."""
        stream, at = self._stream, (claim.owner.route, write.path)
        found = cast(EntryLane, stream.lanes[write.path[1]])
        if found.claims.get(at) != (claim.epoch, claim.claim_id) or found.markers.get(at) != expected:
            raise Fenced(f"{self.lane_name(write.path[1])}: a newer claim owns this lane", hint="claim anew")
        if not is_current(claim.owner.token):
            raise Fenced(f"{self.name}: the group has a newer generation", hint="wait for the new assignment")
        fitting = self._fitting(write)
        if isinstance(fitting, LaneError):
            return fitting
        taken, rejects = fitting
        before = expected or Marker(Place())
        target = before.target
        found.remember()
        for ordinal, row_at in enumerate(taken, before.ordinal + 1):
            fields, time_ms = write.rows[row_at]
            entry_id = found.next_id(time_ms, self._broker.clock_ms())
            own_time = "" if entry_id[0] == time_ms else f";t={time_ms}"
            origin = self._origin(claim, write, row_at, ordinal) + own_time
            found.write([*fields, XF_FIELD, origin.encode()], entry_id)
            target = f"{entry_id[0]}-{entry_id[1]}"
        marker = self._marker(claim, write, before, taken, target, len(rejects))
        found.markers[at] = marker
        stream.quarantine += rejects
        self._broker.notify()
        return Appended(marker, len(taken), len(rejects))

    # -- what both kinds share ---------------------------------------------------------------------------------------

    def _fitting(self, write: Write) -> tuple[list[int], list[Quarantined]] | LaneError:
        """Which rows the target takes (their indices), and what goes to quarantine."""
        stream, lane = self._stream, write.path[0]
        if write.path[1] in stream.full:
            return TargetFull(lane, f"{self.lane_name(write.path[1])} takes no more", hint="make room")
        limit = self._record_bytes_max
        taken, rejects = [], list(write.rejects)
        for at, row in enumerate(write.rows):
            size_bytes = row_size_bytes(row)
            if limit is None or size_bytes <= limit:
                taken.append(at)
            else:
                reason = f"the record has {size_bytes} bytes; the target takes {limit}"
                rejects.append(Reject(write.positions[at], row, reason, self.shape))
        if len(rejects) > write.quarantine_left:
            sentence = f"{len(rejects)} records were refused, {write.quarantine_left} may be: {rejects[0].reason}"
            position = position_text(rejects[0].position)
            return QuarantineFull(lane, sentence, hint="raise the budget, or mend the records", position=position)
        rejects.sort(key=lambda reject: order_of(reject.position))
        return taken, [self._quarantined(write.path, reject) for reject in rejects]

    def _quarantined(self, path: Path, reject: Reject) -> Quarantined:
        route = self._stream.routes[path[1]]
        return Quarantined(route, path, position_text(reject.position), reject.row, reject.reason, reject.shape)

    def _origin(self, claim: MemoryClaim, write: Write, at: int, ordinal: int) -> str:
        prefix = origin_prefix(claim.owner.route, write.path[0])
        return f"{prefix}{position_text(write.positions[at])}#{ordinal}{origin_suffix(claim.epoch)}"

    def _marker(
        self, claim: MemoryClaim, write: Write, before: Marker, taken: list[int], target: str, quarantined: int
    ) -> Marker:
        return Marker(
            place=write.place,
            ordinal=before.ordinal + len(taken),
            relayed=position_text(write.positions[taken[-1]]) if taken else before.relayed,
            target=target,
            epoch=claim.epoch,
            claim_id=claim.claim_id,
            source=claim.owner.source,
            quarantined=before.quarantined + quarantined,
        )

    def _usurp(self, claim: MemoryClaim, paths: Sequence[Path]) -> None:
        """Let a claim of nobody take the lanes: the step that follows is fenced by the rules alone."""
        ghost = MemoryClaim(Owner(claim.owner.route, "ghost", claim.owner.source), 0, self._broker.fresh("claim"), {})
        self._take(ghost, paths)


def _tail(found: RecordLane | EntryLane, route: str, path: Path) -> tuple[str, Origin] | None:
    """Position and origin of the path's last relayed record that is still there.

    The highest ordinal, not the last mark: applications copy marks. Of two equal ones the first is ours.
    """
    best: tuple[str, Origin] | None = None
    for position, mark in _marks(found):
        origin = decode_origin(mark)
        if origin is None or (origin.route, origin.lane) != (route, path[0]):
            continue
        if best is None or origin.ordinal >= best[1].ordinal:
            best = (position, origin)
    return best


def _marks(found: RecordLane | EntryLane) -> Iterator[tuple[str, bytes | None]]:
    """Position and newest mark of each record, last first."""
    if isinstance(found, RecordLane):
        for offset, (_, _, headers, _) in reversed(found.committed):
            yield str(offset), next((value for name, value in reversed(headers or ()) if name == XF), None)
    else:
        for (ms, sequence), (fields, _) in reversed(found.entries):
            yield f"{ms}-{sequence}", fields[-1] if fields[-2] == XF_FIELD else None


def _marker_of(target: str, origin: Origin, marker: Marker | None, source: str) -> Marker:
    """The marker that the tail's header stands for."""
    count = -1 if "-" in origin.position else int(origin.position) + 1
    return Marker(
        place=Place(
            origin.position,
            count,
            marker.place.incarnation if marker else "",
            "",
            -1,
            marker.place.echoes if marker else 0,
        ),
        ordinal=origin.ordinal,
        relayed=origin.position,
        target=target,
        epoch=origin.epoch,
        source=source,
        quarantined=marker.quarantined if marker else 0,
    )
