"""The state of a broker in memory, and the faults that tests cause in it.

Hides where things are kept: data in lanes; markers and claims beside the data (entry lanes: as in a Redis slot) or in a
store of their own (record lanes: as Kafka's group offsets, so that marker and data can be torn apart).
Invariant: state changes only within one step, between two awaits. Called by the other modules of this folder and tests.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

from ...errors import CrossfadeError, UsageError
from ...model.position import Marker, position_order
from ...model.record import Lane, Path, Row, Shape
from ..protocol import Document
from .faults import Faults, Outcome, Step
from .lanes import EntryLane, RecordLane

#: the time of a broker whose test does not care about time, milliseconds since the epoch
FIXED_TIME_MS = 1_700_000_000_000


@dataclass(slots=True)
class Quarantined:
    """One record that the target refused, as it lies in quarantine."""

    route: str
    path: Path
    position: str
    row: Row
    reason: str
    shape: Shape


@dataclass(slots=True)
class OpenTransaction:
    """What a transaction holds besides its records, until it commits."""

    markers: dict[tuple[str, Path], Marker] = field(default_factory=dict)
    quarantine: list[Quarantined] = field(default_factory=list)


@dataclass(slots=True)
class Stream:
    """The lanes of one stream and what is kept beside them."""

    name: str
    shape: Shape
    lanes: list[RecordLane] | list[EntryLane]
    identity: str
    quarantine: list[Quarantined] = field(default_factory=list)
    #: target lane -> route that writes to it
    routes: dict[Lane, str] = field(default_factory=dict)
    #: lanes that refuse writes for lack of memory
    full: set[Lane] = field(default_factory=set)
    #: record lanes: (route, path) -> marker
    markers: dict[tuple[str, Path], Marker] = field(default_factory=dict)
    #: record lanes: (route, path) -> (epoch, claim id)
    claims: dict[tuple[str, Path], tuple[int, str]] = field(default_factory=dict)
    #: record lanes: claim id -> its open transaction
    open: dict[str, OpenTransaction] = field(default_factory=dict)


class MemoryBroker:
    """One broker. Tests write to it as applications do, read it as they do, and break it."""

    def __init__(
        self,
        *,
        faults: Faults | None = None,
        clock_ms: Callable[[], int] = lambda: FIXED_TIME_MS,
        history_max: int = 0,
        late_within: str = "append",
        latency_s: Callable[[], float] = lambda: 0.0,
    ) -> None:
        #: chooses the outcome of every step; None = all is well
        self.faults = faults
        self.clock_ms = clock_ms
        #: how many changes `regress` can take back from an entry lane
        self.history_max = history_max
        #: when requests under way arrive (`APPLIED_LATE`): after the next "claim", or within the next "append"
        self.late_within = late_within
        #: how long a request takes to arrive; others may come first meanwhile
        self.latency_s = latency_s
        self.steps = 0
        #: grows with every change of a stream
        self.changes = 0
        self.documents: dict[str, Document] = {}
        self._streams: dict[str, Stream] = {}
        self._late: list[Callable[[], object]] = []
        self._waiting: set[asyncio.Future[None]] = set()
        self._names = 0

    # -- streams -----------------------------------------------------------------------------------------------------

    def fresh(self, what: str) -> str:
        """A name that was never given before."""
        self._names += 1
        return f"{what}-{self._names}"

    def stream(self, name: str, lanes: int, shape: Shape) -> Stream:
        """The stream `name`, made with these lanes if it is not there. Raises UsageError where it is another."""
        found = self._streams.get(name)
        if found is None:
            found = Stream(name, shape, [], self.fresh(f"memory/{name}"))
            if shape is Shape.RECORD:
                topic_id = self.fresh("topic")
                found.lanes = [RecordLane(lane, topic_id) for lane in range(lanes)]
            else:
                found.lanes = [EntryLane(lane) for lane in range(lanes)]
                for entry_lane in found.lanes:
                    entry_lane.history_max = self.history_max
            self._streams[name] = found
        if found.shape is not shape or len(found.lanes) < lanes:
            raise UsageError(f"stream {name!r} exists with {len(found.lanes)} lanes of shape {found.shape.value}")
        return found

    def add_lane(self, name: str) -> Lane:
        """Let the stream have one lane more, as an operator who adds a partition or an application's new stream key."""
        lanes = self._streams[name].lanes
        number = len(lanes)
        if self._streams[name].shape is Shape.RECORD:
            cast(list[RecordLane], lanes).append(RecordLane(number, cast(RecordLane, lanes[0]).incarnation))
        else:
            added = EntryLane(number)
            added.history_max = self.history_max
            cast(list[EntryLane], lanes).append(added)
        self.notify()
        return number

    # -- what applications do ----------------------------------------------------------------------------------------

    def write(self, name: str, lane: Lane, rows: Iterable[Row]) -> None:
        """Append rows of the stream's shape; the id of an entry takes its `time_ms` where order allows."""
        found = self._streams[name].lanes[lane]
        for row in rows:
            if isinstance(found, RecordLane):
                found.write(tuple(row))
            else:
                found.remember()
                found.write(list(row[0]), found.next_id(row[1], max(row[1], self.clock_ms())))
        self.notify()

    def write_aborted(self, name: str, lane: Lane, rows: Iterable[Row]) -> None:
        """Append rows of a transaction that aborts: offsets that no committed reader sees. Record lanes only."""
        found = cast(RecordLane, self._streams[name].lanes[lane])
        for row in rows:
            found.write_open("application", tuple(row))
        found.finish("application", commit=False)
        self.notify()

    def rows(self, name: str, lane: Lane, *, stable: bool = True) -> list[tuple[str, Row]]:
        """Position and row of everything that a committed reader sees in the lane, `xf` included.

        Without `stable` also what is committed behind an open transaction of somebody else.
        """
        found = self._streams[name].lanes[lane]
        if isinstance(found, RecordLane):
            end = found.stable_end if stable else found.end
            return [(str(offset), row) for offset, row in found.committed if offset < end]
        return [(f"{ms}-{sequence}", row) for (ms, sequence), row in found.entries]

    def quarantine(self, name: str) -> list[Quarantined]:
        return list(self._streams[name].quarantine)

    # -- data faults -------------------------------------------------------------------------------------------------

    def trim(self, name: str, lane: Lane, keep: int) -> None:
        """Remove all but the last `keep` records, as retention or XTRIM does."""
        self._streams[name].lanes[lane].trim(keep)
        self.notify()

    def delete(self, name: str, lane: Lane, position: str) -> None:
        """Remove one record: XDEL, or compaction."""
        found = self._streams[name].lanes[lane]
        if isinstance(found, RecordLane):
            found.delete(int(position))
        else:
            found.delete(position_order(position))
        self.notify()

    def recreate(self, name: str, lane: Lane) -> None:
        """Delete the lane and make it anew, empty. What lives beside it stays."""
        found = self._streams[name].lanes[lane]
        if isinstance(found, RecordLane):
            found.recreate(self.fresh("topic"))
        else:
            found.recreate()
        self.notify()

    def regress(self, name: str, lane: Lane, changes: int) -> None:
        """Lose the last `changes` offsets (record lane), or changes of any kind (entry lane; needs `history_max`).

        Producers of a record lane are fenced by it: the new leader does not know their sequence numbers.
        """
        stream = self._streams[name]
        stream.lanes[lane].regress(changes)
        stream.claims = {at: held for at, held in stream.claims.items() if at[1][1] != lane}
        self.notify()

    def fill(self, name: str, lane: Lane, *, is_full: bool = True) -> None:
        """Let the lane refuse relayed writes (TargetFull), or take them again."""
        full = self._streams[name].full
        (full.add if is_full else full.discard)(lane)

    def set_marker(self, name: str, route: str, path: Path, marker: Marker | None) -> None:
        """Tear marker and data apart, as lost or expired group offsets do."""
        stream = self._streams[name]
        found = stream.lanes[path[1]]
        markers = found.markers if isinstance(found, EntryLane) else stream.markers
        markers.pop((route, path), None)
        if marker is not None:
            markers[route, path] = marker
        self.changes += 1

    def marker(self, name: str, route: str, path: Path) -> Marker | None:
        stream = self._streams[name]
        found = stream.lanes[path[1]]
        markers = found.markers if isinstance(found, EntryLane) else stream.markers
        return markers.get((route, path))

    def release(self, name: str, route: str) -> None:
        """Let go of a route that has ended, so that another may write to its lanes."""
        stream = self._streams[name]
        stream.routes = {lane: owner for lane, owner in stream.routes.items() if owner != route}

    # -- steps -------------------------------------------------------------------------------------------------------

    def outcome(self, method: str, stream: str, instance: str) -> Outcome:
        """Count a step and ask what becomes of it."""
        step = Step(self.steps, method, stream, instance)
        self.steps += 1
        return Outcome.OK if self.faults is None else self.faults(step)

    def delay(self, effect: Callable[[], object]) -> None:
        """Keep a request under way."""
        self._late.append(effect)

    def due(self, within: str) -> list[Callable[[], object]]:
        """The requests under way whose moment this is; they are not kept any longer."""
        if within != self.late_within:
            return []
        late, self._late = self._late, []
        return late

    def arrive(self, late: list[Callable[[], object]]) -> None:
        """Let requests arrive. Nobody hears whether they were refused."""
        for effect in late:
            with contextlib.suppress(CrossfadeError):
                effect()

    # -- waiting -----------------------------------------------------------------------------------------------------

    def notify(self) -> None:
        """Count a change and wake all readers that wait for news."""
        self.changes += 1
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()

    async def news(self, wait_s: float) -> None:
        """Wait until something changed, at most `wait_s`."""
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            await asyncio.wait_for(waiting, wait_s)
        except TimeoutError:
            return
        finally:
            self._waiting.discard(waiting)
