"""The audit of a route that spreads N source lanes over M target lanes by key.

Every path (source lane, target lane) is compared by itself: what the source lane holds for keys of that target lane,
against what the target lane holds with marks of that source lane. So loss, order per key and a record on the wrong lane
show, however the sources interleave. Slower than one to one, because every mark is read. Called by the CLI.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from ..brokers.protocol import Bounds, Log, Start
from ..errors import LaneError, SourceDeleted, SourceReset, SourceTrimmed
from ..model.partitioner import partition_many
from ..model.position import position_order, position_text
from ..model.record import Batch, Lane, Path, Row, Shape
from ..model.wire import newest_origin
from .audit import BUFFERED_ROWS_MAX, READ_BYTES_MAX, READ_RECORDS_MAX, READ_WAIT_S
from .diff import NO_MARK, Difference, Kind, LaneDiff
from .ends import Ends, Quarantine, ends_of, made_anew_since
from .extent import Extent
from .one_way import leaves_out
from .origins import Codec, Copy, codec_for
from .progress import Progress, Watch, collector_calmed
from .reading import Reading, Translates, cut, has_lost_behind, is_from_earliest, lost_before
from .report import AuditReport, Keeping, LaneReport
from .second_look import second_look

#: rows kept of one side while the other side is read on
SIDE_ROWS_MAX = BUFFERED_ROWS_MAX // 2
_BEFORE_ALL = position_order("")


class MapsByKey(Translates, Protocol):
    """What is needed of a mapping."""

    def key_of(self, row: Row, shape: Shape) -> bytes | None: ...


async def audit_by_key(
    source: Log,
    target: Log,
    mapping: MapsByKey,
    *,
    route_id: str,
    partitioner: str,
    on_progress: Callable[[Progress], None] | None = None,
    window_rows: int = 2_000,
    starts: Mapping[Lane, Start] | None = None,
    first_lanes: int = 0,
    is_settled: bool = False,
    quarantined: Quarantine | None = None,
    extents: Mapping[Lane, Extent] | None = None,
    keep: Keeping | None = None,
) -> AuditReport:
    """Compare all lanes of an open source with all lanes of an open target; see `audit`. It begins anew each time.

    `first_lanes`: how many lanes the source had when the route was first started (0 = as many as now).
    The report has one entry per source lane. Raises Unreachable, AccessRefused, UsageError (unknown partitioner).
    """
    started_s = time.monotonic()
    sources, targets = range(source.lanes), range(target.lanes)
    ends = await ends_of(source, target, sources, targets, quarantined, is_settled=is_settled)
    report = AuditReport(source.name, target.name, {}, **(keep or {}))
    run = _Run(source, target, mapping, report, partitioner, on_progress)
    run.ids_may_mark = (first_lanes or source.lanes) == 1 and target.shape is Shape.ENTRY
    run.extents = dict(extents or {})
    run.bounds = ends.source
    for lane, bounds in ends.source.items():
        extent = run.extents.get(lane)
        clipped = bounds if extent is None else extent.clip(bounds, source.shape)
        run.sources[lane] = Reading(clipped, extent, source.shape)
    run.targets = {lane: Reading(bounds) for lane, bounds in ends.target.items()}
    run.quarantined = ends.quarantined
    for lane in sources:
        held_up = ends.held_up(lane, run.extents.get(lane), targets)
        report.lanes[lane] = LaneReport(lane, source.lane_name(lane), target.name, held_up=held_up)
        run.add_paths(lane, route_id, window_rows, is_from_earliest(starts, lane))
    with collector_calmed():
        await run.to_the_end()
        await run.look_back(ends)
    run.finish(ends.is_settled_in)
    if report.strays:
        await second_look(
            source,
            mapping,
            target.shape,
            report,
            ends.source,
            route_id=route_id,
            quarantined=run.quarantined,
            ids_may_mark=run.ids_may_mark if run.ids_may_mark or first_lanes else None,
        )
    report.seconds = time.monotonic() - started_s
    report.records_per_s = report.matched / max(report.seconds, 1e-9)
    return report


class _Run:
    def __init__(
        self,
        source: Log,
        target: Log,
        mapping: MapsByKey,
        report: AuditReport,
        partitioner: str,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.sources: dict[Lane, Reading] = {}
        #: of the whole source lanes
        self.bounds: dict[Lane, Bounds] = {}
        self.targets: dict[Lane, Reading] = {}
        self.quarantined: dict[Lane, frozenset[str]] = {}
        self.extents: dict[Lane, Extent] = {}
        #: per target lane: its last marked record belongs to the extents, and so does what stands unmarked behind it
        self._is_inside: dict[Lane, bool] = {}
        self._paths: dict[Path, LaneDiff] = {}
        #: begun late, nothing trimmed, and no copy seen so far: the number in the mark of the first one tells more
        self._unbegun: dict[Path, Codec] = {}
        self._source = source
        self._target = target
        self._mapping = mapping
        self._report = report
        self._partitioner = partitioner
        self._watch = Watch(on_progress)
        #: entry ids may stand for marks of lane 0 where it alone came to the target lanes, at first or ever since:
        #: a lane that came later was claimed in all of them before it wrote, and from then on every copy is marked
        self.ids_may_mark = False

    def add_paths(self, lane: Lane, route_id: str, window_rows: int, is_earliest: bool) -> None:
        bounds = self.bounds[lane]
        for to, reading in self.targets.items():
            codec = codec_for(
                target_shape=self._target.shape,
                route_id=route_id,
                lane=lane,
                is_source_numeric=self._source.shape is Shape.RECORD,
            )
            diff = LaneDiff(
                codec,
                window_rows=window_rows,
                on_difference=self._reporter(lane, to),
                begins_late=reading.is_trimmed or not is_earliest,
                extent=self.extents.get(lane),
                expects=partial(self._expects, lane, to),
            )
            before, is_told = lost_before(bounds, self._source.shape)
            diff.source_lost("", before, is_told=is_told, holes_until=self._holes_until(bounds))
            self._paths[lane, to] = diff
            if not is_earliest and not reading.is_trimmed and lane not in self.extents:
                self._unbegun[lane, to] = codec

    def _holes_until(self, bounds: Bounds) -> str:
        return "" if leaves_out(self._source) else bounds.holes_until

    def _expects(self, lane: Lane, to: Lane, copy: Copy) -> bool:
        """Whether the record that a row of target lane `to` names would be copied there."""
        if copy.row is None or copy.origin is None:
            return False
        if position_text(copy.origin) in self.quarantined.get(lane, ()):
            return False
        key = self._mapping.key_of(copy.row, self._target.shape)
        return partition_many(self._partitioner, [key], len(self.targets), lane)[0] == to

    def _reporter(self, lane: Lane, to: Lane) -> Callable[[Difference], None]:
        return lambda difference: self._report.add(lane, difference, to)

    async def to_the_end(self) -> None:
        """Raises Unreachable, AccessRefused."""
        while True:
            self._advance()
            sources = [lane for lane, one in self.sources.items() if not one.is_ended]
            targets = [lane for lane, one in self.targets.items() if not one.is_ended]
            if not sources and not targets:
                return
            taken = await asyncio.gather(*self._reads(sources, targets))
            self._watch.heard(any(taken))
            self._watch.tell(
                sum(diff.matched for diff in self._paths.values()),
                sum(one.bounds.length for one in self.sources.values()),
                self._report.differences,
                dict,
            )

    def _reads(self, sources: list[Lane], targets: list[Lane]) -> list[Any]:
        """Read both sides, but let the one wait that has run ahead; where both have, their lanes that hold most."""
        expected, actual = dict.fromkeys(self.sources, 0), dict.fromkeys(self.targets, 0)
        for (lane, to), diff in self._paths.items():
            expected[lane] += len(diff.expected)
            actual[to] += len(diff.actual)
        is_source_full = sum(expected.values()) > SIDE_ROWS_MAX
        is_target_full = sum(actual.values()) > SIDE_ROWS_MAX
        if is_source_full and targets and not is_target_full:
            return [self._read_target(targets)]
        if is_target_full and sources and not is_source_full:
            return [self._read_source(sources)]
        # Not before: a Kafka consumer throws away what it has fetched of a lane that is left out.
        if is_source_full and is_target_full:
            from_source = [lane for lane in sources if expected[lane] <= SIDE_ROWS_MAX // len(expected)]
            from_target = [to for to in targets if actual[to] <= SIDE_ROWS_MAX // len(actual)]
            if from_source or from_target:  # else each waits for what stands behind the rows of others
                sources, targets = from_source, from_target
        sides = ((self._read_source, sources), (self._read_target, targets))
        return [read(lanes) for read, lanes in sides if lanes]

    async def _read_source(self, lanes: Sequence[Lane]) -> bool:
        places = {lane: self.sources[lane].place for lane in lanes}
        outcomes = await self._source.read(places, READ_RECORDS_MAX, READ_BYTES_MAX, READ_WAIT_S)
        for lane, outcome in outcomes.items():
            if isinstance(outcome, SourceTrimmed | SourceDeleted):
                await self._go_on_behind_gap(lane)
            elif isinstance(outcome, LaneError):
                self._fail(lane, outcome, self._source.shape)
            elif other := self.sources[lane].not_what_it_was(outcome, self._source.lane_name(lane)):
                self._fail(lane, other, self._source.shape)
            else:
                self._take_source(lane, outcome)
        return bool(outcomes)

    async def _read_target(self, lanes: Sequence[Lane]) -> bool:
        places = {lane: self.targets[lane].place for lane in lanes}
        outcomes = await self._target.read(places, READ_RECORDS_MAX, READ_BYTES_MAX, READ_WAIT_S)
        for lane, outcome in outcomes.items():
            if isinstance(outcome, SourceTrimmed | SourceDeleted):  # it is read as a source is
                await self._go_on_behind_target_gap(lane)
            elif isinstance(outcome, LaneError):
                self._fail_target(lane, outcome)
            elif other := self.targets[lane].not_what_it_was(outcome, self._target.lane_name(lane)):
                self._fail_target(lane, other)
            else:
                self._take_target(lane, outcome)
        return bool(outcomes)

    async def _go_on_behind_gap(self, lane: Lane) -> None:
        reading = self.sources[lane]
        last = reading.place.position
        bounds = (await self._source.bounds([lane]))[lane]
        before, _ = lost_before(bounds, self._source.shape)
        for to in self.targets:
            self._paths[lane, to].source_lost(last, before, holes_until=self._holes_until(bounds))
        reading.go_on_behind_loss(bounds, last, self._source.shape)

    async def _go_on_behind_target_gap(self, to: Lane) -> None:
        reading = self.targets[to]
        # A second gap may be told before anything came behind the first: what was dealt with stays dealt with.
        reached = max(position_order(reading.place.position), reading.done_until or _BEFORE_ALL)
        done = None if reached == _BEFORE_ALL else reached
        bounds = (await self._target.bounds([to]))[to]
        reading.begin_again(bounds, done)
        if has_lost_behind(done, bounds, self._target.shape):
            for lane in self.sources:
                self._unbegun.pop((lane, to), None)
                self._paths[lane, to].target_lost()

    def _fail(self, lane: Lane, error: LaneError, side: Shape) -> None:
        """A lane that cannot be read to its end says nothing of what is on the target. What was read of a topic that
        turns out to be another one may be of either."""
        if isinstance(error, SourceReset) and side is Shape.RECORD:
            self._report.forget(lane)
        self._report.lanes[lane].error = error
        self.sources[lane].is_ended = True
        for to in self.targets:
            diff = self._paths[lane, to]
            diff.expected.drop(len(diff.expected))
            diff.actual.drop(len(diff.actual))

    def _fail_target(self, to: Lane, error: LaneError) -> None:
        """Any source lane may have copies there."""
        self.targets[to].is_ended = True
        for lane in self.sources:
            self._fail(lane, error, self._target.shape)

    async def look_back(self, ends: Ends) -> None:
        """Fail the lanes that were made anew while they were read."""
        asked = {lane: there for lane, there in ends.source.items() if not self._has_failed(lane)}
        for lane, error in (await made_anew_since(self._source, asked)).items():
            self._fail(lane, error, self._source.shape)
        if not all(self._has_failed(lane) for lane in self.sources):
            for to, error in (await made_anew_since(self._target, ends.target)).items():
                self._fail_target(to, error)

    def _has_failed(self, lane: Lane) -> bool:
        return self._report.lanes[lane].error is not None

    def _take_source(self, lane: Lane, batch: Batch) -> None:
        reading, mine = self.sources[lane], self._report.lanes[lane]
        rows = reading.new_rows(batch)
        reading.take(batch)
        mapped = self._mapping.translate(cut(batch, rows), self._target.shape)
        mine.quarantined += len(mapped.rejects)
        keys = [self._mapping.key_of(row, self._target.shape) for row in mapped.rows]
        lanes = partition_many(self._partitioner, keys, len(self.targets), lane)
        left_out = self.quarantined.get(lane, frozenset())
        sorted_out: dict[Lane, tuple[list[Any], list[Row]]] = {}
        for position, row, to in zip(mapped.positions, mapped.rows, lanes, strict=True):
            if left_out and position_text(position) in left_out:
                mine.quarantined += 1
                continue
            positions, expected = sorted_out.setdefault(to, ([], []))
            positions.append(position)
            expected.append(row)
        for to in self.targets if not leaves_out(self._source) else ():
            self._paths[lane, to].source_has_holes(reading.holes_until(batch))
        for to, (positions, expected) in sorted_out.items():
            self._paths[lane, to].expect(positions, expected)

    def _take_target(self, to: Lane, batch: Batch) -> None:
        reading = self.targets[to]
        kept = cut(batch, reading.new_rows(batch))
        reading.take(batch)
        sorted_out: dict[Lane, tuple[list[Any], list[Row]]] = {}
        for position, row in zip(kept.positions, kept.rows, strict=True):
            origin = newest_origin(row, kept.shape)
            lane = 0 if origin is None and self.ids_may_mark else -1 if origin is None else origin.lane
            if self.extents and origin is not None and lane in self.extents:
                self._is_inside[to] = position_order(origin.position) in self.extents[lane]
            if (lane, to) not in self._paths:
                if not self._is_inside.get(to, not self.extents):
                    continue  # it stands among records that are not part of the audit
                # No lane of ours: it is named with the source lane of the same number, or the first.
                home = to if to in self.sources else 0
                foreign = Difference(Kind.EXTRA, None, position, NO_MARK, row)
                self._report.add(home, foreign, to)
                continue
            positions, actual = sorted_out.setdefault(lane, ([], []))
            positions.append(position)
            actual.append(row)
        for lane, (positions, actual) in sorted_out.items():
            if not self._has_failed(lane):
                self._check_beginning(lane, to, positions, actual)
                self._paths[lane, to].see(positions, actual)

    def _check_beginning(self, lane: Lane, to: Lane, positions: list[Any], rows: list[Row]) -> None:
        """Nothing was trimmed on the target: then the first copies of a path have the numbers from 1 on."""
        codec = self._unbegun.get((lane, to))
        if codec is None:
            return
        copies = codec.normal(positions, rows)
        marked = [at for at, copy in enumerate(copies) if copy.ordinal >= 0 and self._expects(lane, to, copy)]
        before = copies[: marked[0]] if marked else copies
        may_be_by_id = self.ids_may_mark and lane == 0 and any(copy.ordinal < 0 for copy in before)
        if not marked and not may_be_by_id:
            return
        del self._unbegun[lane, to]
        absent = 0 if may_be_by_id else min(copies[at].ordinal for at in marked) - 1
        if absent > 0:
            words = f"the first {absent} records of the copy into {self._target.lane_name(to)} are gone"
            self._report.add(lane, Difference(Kind.MISSING, None, None, words), to)
            self._report.lanes[lane].counts[Kind.MISSING] += absent - 1

    def _advance(self) -> None:
        for (lane, to), diff in self._paths.items():
            diff.expected.is_ended = self.sources[lane].is_ended
            diff.actual.is_ended = self.targets[to].is_ended
            if (diff.expected or diff.actual) and not self._has_failed(lane):
                diff.advance()

    def finish(self, is_settled_in: Callable[[Lane], bool]) -> None:
        """Name what never came."""
        for (lane, to), diff in self._paths.items():
            mine = self._report.lanes[lane]
            if mine.error is None:
                is_copied = is_settled_in(to) or diff.has_seen_beyond
                unnamed = diff.finish(is_settled=is_copied)
                if is_copied:
                    mine.counts[Kind.MISSING] += unnamed
                else:
                    mine.pending += unnamed
                mine.is_done = True
            elif not mine.is_mixed:
                diff.name_missing()
            mine.matched += diff.matched
            mine.before_target += diff.before + diff.before_end
            mine.source_gone += diff.source_gone
            mine.stale_epochs += 0 if mine.is_mixed else diff.stale_epochs
