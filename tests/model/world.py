"""The real relay on memory brokers, broken on purpose, and judged from the target's content alone.

A world is a source, a target, a route and a plan of faults. `run` starts the lanes, lets relay processes copy, brings
a new process up whenever one dies, and ends when everything is copied. Invariants are checked at every single step
(marker == last committed record, nothing goes back) and at the end (exactly the source's records, in order).
"""

import asyncio
import collections
import contextlib

from crossfade.brokers.memory import Crash, MemoryBoard, MemoryBroker, MemoryLog, Outcome
from crossfade.brokers.protocol import Start
from crossfade.errors import CrossfadeError, Kind
from crossfade.model.lossless import without_origin_entry, without_origin_record
from crossfade.model.mapping import mapping_named
from crossfade.model.partitioner import partition
from crossfade.model.position import Place, position_order
from crossfade.model.record import Batch, Shape
from crossfade.model.route import LaneMap, make_route
from crossfade.model.wire import XF, XF_FIELD, decode_origin
from crossfade.relay.beginning import start_lanes
from crossfade.relay.copier import Copier
from crossfade.relay.documents import RouteBoard
from crossfade.relay.pace import Limits

ROUTE = "r1"
RECORD, ENTRY = Shape.RECORD, Shape.ENTRY
LIMITS = Limits(batch_records_max=3, idle_wait_s=0.2, marker_refresh_s=0.2)
#: a run that is not done after this much virtual time does not live
LIFE_S = 600.0


class Violated(AssertionError):
    """An invariant of the design does not hold; the text names it."""


def holds(condition, sentence):
    if not condition:
        raise Violated(sentence)


def row(shape, lane, number, life=0):
    """A row that is like no other: every third without a key, every fifth with headers or repeated fields."""
    key = None if number % 3 == 2 else b"k%d" % (number % 7)
    value = b"%d/%d/%d" % (lane, number, life)
    time_ms = 1000 + number + life * 100_000
    if shape is Shape.RECORD:
        return (key, value, [("h", b"1"), ("h", None)] if number % 5 == 4 else None, time_ms)
    if number % 5 == 4:
        return ([b"value", value, b"value", b"again"], time_ms)
    return ([*([b"key", key] if key else []), b"value", value], time_ms)


class World:
    """Two brokers and a route between them."""

    def __init__(
        self,
        source_shape,
        target_shape,
        *,
        lanes=1,
        target_lanes=None,
        records=6,
        faults=None,
        late_within="append",
        limits=LIMITS,
        history_max=0,
        latency_s=None,
    ):
        target_lanes = target_lanes or lanes
        latency = {} if latency_s is None else {"latency_s": latency_s}
        self.source_broker = MemoryBroker(faults=self._at_step, history_max=history_max, **latency)
        self.target_broker = MemoryBroker(
            faults=self._at_step, late_within=late_within, history_max=history_max, **latency
        )
        self.shapes = source_shape, target_shape
        self.lanes, self.target_lanes = lanes, target_lanes
        self.records = records
        self.faults = faults or {}
        self.limits = limits
        self.steps = 0
        #: (index, method) of each step, for a reader of a failure
        self.trace = []
        self.fired = collections.Counter()
        self.mapping = mapping_named("lossless")
        self.source = self.source_broker.stream("source", lanes, source_shape)
        self.target = self.target_broker.stream("target", target_lanes, target_shape)
        self.route = make_route(
            id=ROUTE,
            name="route",
            source_identity=self.source.identity,
            source_lanes=lanes,
            target_lanes=target_lanes,
            lane_map=LaneMap.ONE_TO_ONE if lanes == target_lanes else LaneMap.BY_KEY,
            partitioner="murmur2",
            mapping_digest=self.mapping.digest(),
        )
        self.paths = [path for lane in range(lanes) for path in self.route.paths_of(lane)]
        #: source lane -> rows written by the application, in order, as the relay should hand them on
        self.written = {lane: [] for lane in range(lanes)}
        #: source lane -> how often it was damaged; rows of another life are other rows
        self.lives = dict.fromkeys(range(lanes), 0)
        #: lanes whose content must be complete in the end
        self.lanes_judged = list(range(lanes))
        self._before = {}
        self._without_places = set()
        #: target lane -> (stored rows, (path, what is judged of them))
        self._seen = {}
        self.checks_every_step = True
        self._checked_at = -1

    # -- the application -----------------------------------------------------------------------------------------------

    def write(self, lane, count):
        first = len(self.written[lane])
        rows = [row(self.shapes[0], lane, number, self.lives[lane]) for number in range(first, first + count)]
        self.source_broker.write("source", lane, rows)
        if self.shapes[0] is Shape.RECORD and (first + count) % 2 == 0:
            # An aborted transaction: the place moves on although no record comes.
            self.source_broker.write_aborted("source", lane, [row(Shape.RECORD, lane, -1)])
        self.written[lane] += rows

    def expected(self, lane):
        """The source lane's rows in the target's shape, without origins."""
        return self.translated(lane, self.written[lane])

    def translated(self, lane, rows):
        batch = Batch(lane, self.shapes[0], list(range(len(rows))), rows, Place())
        return self.mapping.translate(batch, self.shapes[1]).rows

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _at_step(self, step):
        index, self.steps = self.steps, self.steps + 1
        if self.checks_every_step and self._checked_at != self.target_broker.changes:
            self.check_step()
        outcome = self.faults(index, step) if callable(self.faults) else self.faults.get(index, Outcome.OK)
        self.trace.append(f"{index} {step.instance} {step.stream} {step.method} {outcome.value}")
        if outcome is not Outcome.OK:
            self.fired[outcome] += 1
        return outcome

    def relayed(self):
        """path -> [(origin, row without origin, target position)], from the target's content alone."""
        found = {path: [] for path in self.paths}
        for lane in range(self.target_lanes):
            stored = self.target_broker.rows("target", lane, stable=False)
            # Decoding a row once is enough; what a fault took away shows in the last row that is known.
            known, seen = self._seen.setdefault(lane, ([], []))
            if len(known) > len(stored) or (known and known[-1][1] is not stored[len(known) - 1][1]):
                known.clear()
                seen.clear()
            for position, row in stored[len(known) :]:
                strip = without_origin_record if len(row) == 4 else without_origin_entry
                origin = origin_of(row)
                holds(origin is not None and origin.route == ROUTE, f"I5: {row} came from nowhere")
                holds((origin.lane, lane) in found, f"I5: {row} is in lane {lane}")
                seen.append(((origin.lane, lane), (origin, strip(row), position)))
            known += stored[len(known) :]
            for path, judged in seen:
                found[path].append(judged)
        return found

    def check_step(self):
        """What must hold between any two steps, hence also after any crash."""
        self._checked_at = self.target_broker.changes
        for path, rows in self.relayed().items():
            ordinals = [origin.ordinal for origin, _, _ in rows]
            holds(ordinals == list(range(1, len(rows) + 1)), f"I1 I2 I3: ordinals of {path} are {ordinals}")
            epochs = [origin.epoch for origin, _, _ in rows]
            holds(epochs == sorted(epochs), f"I8: epochs of {path} are {epochs}")
            marker = self.target_broker.marker("target", ROUTE, path)
            if marker is None:
                holds(not rows, f"I6: {path} has records and no marker")
                continue
            last = rows[-1][0].position if rows else ""
            holds(
                (marker.ordinal, marker.relayed) == (len(rows), last),
                f"I6: the marker of {path} is {marker}, the last committed record is {last}, number {len(rows)}",
            )
            holds(not rows or marker.target == rows[-1][2], f"I6: {marker} names another target position than {path}")
            place = (0, 0) if path[0] in self._without_places else position_order(marker.place.position)
            now = (marker.ordinal, place, marker.epoch)
            before = self._before.get(path, (0, (-1, -1), 0))
            holds(all(a >= b for a, b in zip(now, before, strict=True)), f"I7: {path} went from {before} to {now}")
            self._before[path] = now

    def forget(self, lane):
        """The target lane went back by a fault, so its markers may too."""
        self._before = {path: was for path, was in self._before.items() if path[1] != lane}

    def forget_source(self, lane):
        """The source lane's positions may start anew, so the places of its markers may go back."""
        self._before = {path: was for path, was in self._before.items() if path[0] != lane}
        self._without_places.add(lane)

    def copied(self):
        return sum(
            origin_of(stored) is not None
            for lane in range(self.target_lanes)
            for _, stored in self.target_broker.rows("target", lane)
        )

    # -- processes -----------------------------------------------------------------------------------------------------

    def logs(self, instance):
        source = MemoryLog(self.source_broker, "source", self.lanes, self.shapes[0], instance=instance)
        target = MemoryLog(self.target_broker, "target", self.target_lanes, self.shapes[1], instance=instance)
        return source, target, RouteBoard(MemoryBoard(self.target_broker, instance=instance), ROUTE)

    async def start(self, start=None):
        """`relay start`, run again until it ends well."""
        for attempt in range(20):
            source, target, board = self.logs(f"start-{attempt}")
            try:
                return await start_lanes(self.route, source, target, board, start or Start(), list(range(self.lanes)))
            except Crash:
                continue
            except CrossfadeError as error:
                if error.kind is Kind.HALT:
                    raise
        raise Violated("I14: `start` never ends")

    def process(self, instance="a", lanes=None):
        """A relay process that owns its lanes from the beginning; the task ends when it dies."""
        source, target, board = self.logs(instance)
        copier = Copier(
            self.route, source, target, self.mapping, board, self.limits, instance=instance, clock=lambda: 0.0
        )

        async def live():
            await copier.assigned(frozenset(range(self.lanes) if lanes is None else lanes), None)
            await copier.run()

        return copier, asyncio.ensure_future(live())

    async def run(self):
        """Copy everything, whatever the plan does to it."""
        loop = asyncio.get_running_loop()
        for lane in range(self.lanes):
            self.write(lane, self.records // 2)
        await self.start()
        copier, task = self.process()
        total = self.records * self.lanes
        try:
            while True:
                await asyncio.sleep(0.1)
                holds(loop.time() < LIFE_S, f"I14: {self.copied()} of {total} records after {LIFE_S} s")
                if self.copied() >= len(self.written[0]) * self.lanes and len(self.written[0]) < self.records:
                    for lane in range(self.lanes):
                        self.write(lane, self.records - len(self.written[lane]))
                if task.done():
                    died_of(task)
                    copier, task = self.process()
                elif self.copied() >= total and loop.time() > 0.6:
                    break
            await asyncio.sleep(0.5)  # whatever is still under way may do its harm now
        finally:
            copier.stop()
            await asyncio.wait([task], timeout=60)
            died_of(task)
        self.check_end()

    # -- judgement -----------------------------------------------------------------------------------------------------

    def check_end(self):
        self.check_step()  # now for every kind of run
        relayed = self.relayed()
        for lane in self.lanes_judged:
            expected = self.expected(lane)
            rows = sorted(
                (position_order(origin.position), found)
                for path in self.route.paths_of(lane)
                for origin, found, _ in relayed[path]
            )
            holds([found for _, found in rows] == expected, f"I1 I2 I4: lane {lane} has {rows}, not {expected}")
            for path in self.route.paths_of(lane):
                order = [position_order(origin.position) for origin, _, _ in relayed[path]]
                holds(order == sorted(set(order)), f"I3: order of {path} is {order}")
                if self.route.lane_map is LaneMap.BY_KEY:
                    for _, found, _ in relayed[path]:
                        key = self.mapping.key_of(found, self.shapes[1])
                        right = partition("murmur2", key, self.target_lanes, lane)
                        holds(path[1] == right, f"I3: {found} is in lane {path[1]}, its key belongs to {right}")


def origin_of(stored):
    if len(stored) == 4:
        return next((decode_origin(value) for name, value in stored[2] or () if name == XF), None)
    fields = stored[0]
    return next((decode_origin(fields[at + 1]) for at in range(0, len(fields), 2) if fields[at] == XF_FIELD), None)


def died_of(task):
    """A process may end of a crash or of its own will; every other end is a finding."""
    if task.done() and not task.cancelled():
        with contextlib.suppress(Crash):
            task.result()
