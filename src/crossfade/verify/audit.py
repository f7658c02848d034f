"""Reads both sides of a route itself and compares them, lane by lane, in bounded memory.

Only `read` and `bounds` of the two logs are used: nothing is claimed, nothing is written. Bounds are taken from the
target first and from the source after it, so that whatever the target holds up to its bound had its original in the
source by then; what the source holds beyond is *pending*, never a difference. Called by the CLI, the demo and gates.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..brokers.protocol import From, Log, Start
from ..errors import LaneError, SourceDeleted, SourceTrimmed, Unreachable, invariant
from ..model.position import Place
from ..model.record import Batch, Lane, Shape
from .extent import Extent
from .lane import LaneAudit, Translates, cut
from .report import AuditReport, Keeping
from .second_look import second_look

#: one read, over all lanes
READ_RECORDS_MAX = 8_000
READ_BYTES_MAX = 8 << 20
READ_WAIT_S = 0.2
#: rows kept of one side while the other side is read on
BUFFERED_ROWS_MAX = 16_000
#: a side that gives nothing for so long, though its bounds say that there is more, is unreachable
STALL_S_MAX = 60.0
PROGRESS_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an audit is."""

    records: int
    #: records of the source when the audit began (Kafka: an upper bound)
    records_total: int
    differences: int
    elapsed_s: float
    records_per_s: float
    eta_s: float
    #: call it for a state to resume from; costs a little, so not at every progress
    state: Callable[[], dict[str, Any]]


async def audit(
    source: Log,
    target: Log,
    mapping: Translates,
    *,
    route_id: str,
    lanes: Sequence[Lane],
    on_progress: Callable[[Progress], None] | None = None,
    window_records: int = 2_000,
    resume: Mapping[str, Any] | None = None,
    starts: Mapping[Lane, Start] | None = None,
    is_settled: bool = False,
    quarantined: Mapping[Lane, Collection[str]] | None = None,
    extents: Mapping[Lane, Extent] | None = None,
    keep: Keeping | None = None,
    parts: int = 1,
) -> AuditReport:
    """Compare the lanes of an open source and target, one to one.

    `starts`: where the copy of a lane began (default: earliest; anything else is found from the first record on the
    target).
    `is_settled`: nothing is on its way any more, so what the target's end lacks is missing, not pending.
    `quarantined`: source positions that the route quarantined, by lane. `resume`: the `state` of an earlier audit.
    `extents`: the part of each source lane to compare, see `extents_of`; such an audit leaves no state to go on from.
    `keep`: how many differences are kept by name, and whether with their rows. `parts`: this is one of so many audits
    that run side by side; together they hold as many rows as one alone.
    Raises Unreachable, AccessRefused.
    """
    started_s = time.monotonic()
    target_bounds = await target.bounds(lanes)
    source_bounds = await source.bounds(lanes)
    report = AuditReport(source.name, target.name, {}, **(keep or {}))
    run = _Run(source, target, on_progress, max(1, parts))
    known = (resume or {}).get("lanes", {})
    for lane in lanes:
        one = LaneAudit(
            lane,
            source,
            target,
            mapping,
            report,
            source_bounds[lane],
            target_bounds[lane],
            route_id=route_id,
            window_rows=window_records,
            is_earliest=is_from_earliest(starts, lane),
            quarantined=frozenset((quarantined or {}).get(lane, ())),
            extent=None if extents is None else extents[lane],
        )
        if str(lane) in known:
            one.restore(known[str(lane)])
        run.lanes[lane] = one
    before = report.records
    with calm_collector():
        await run.to_the_end()
    for one in run.lanes.values():
        one.finish(is_settled=is_settled)
    if report.strays:
        await second_look(
            source,
            mapping,
            target.shape,
            report,
            source_bounds,
            route_id=route_id,
            quarantined=quarantined or {},
            ids_may_mark=True,
        )
    report.state = {} if extents is not None else run.state()
    report.seconds = time.monotonic() - started_s
    report.records_per_s = (report.records - before) / max(report.seconds, 1e-9)
    return report


def is_from_earliest(starts: Mapping[Lane, Start] | None, lane: Lane) -> bool:
    """Whether all that the source lane ever held was to be copied."""
    return (starts or {}).get(lane, Start()).where is From.EARLIEST


@contextmanager
def calm_collector() -> Iterator[None]:
    """Collect cycles rarely while rows stream by: rows hold none, and every full collection would walk all that are
    waiting, which doubles the cost of a record."""
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(1_000_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


class Watch:
    """Tells of progress, and notices when there is none."""

    def __init__(self, on_progress: Callable[[Progress], None] | None) -> None:
        self.records_before = 0
        self._on_progress = on_progress
        self._started_s = self._told_s = self._heard_s = time.monotonic()

    def heard(self, is_news: bool) -> None:
        """After each round of reads. Raises Unreachable when none has brought anything for too long."""
        now_s = time.monotonic()
        if is_news:
            self._heard_s = now_s
        elif now_s - self._heard_s > STALL_S_MAX:
            raise Unreachable(
                f"no records came for {STALL_S_MAX:.0f} s, though the bounds say that there are more",
                hint="check that the brokers serve reads (leaders, open transactions)",
            )

    def tell(self, records: int, total: int, differences: int, state: Callable[[], dict[str, Any]]) -> None:
        """Call back, but not too often."""
        now_s = time.monotonic()
        if self._on_progress is None or now_s - self._told_s < PROGRESS_EVERY_S:
            return
        self._told_s = now_s
        elapsed_s = now_s - self._started_s
        rate = (records - self.records_before) / max(elapsed_s, 1e-9)
        eta_s = max(0, total - records) / rate if rate else 0.0
        self._on_progress(Progress(records, total, differences, elapsed_s, rate, eta_s, state))


class _Run:
    """Reads whatever side any lane is waiting for, until all lanes are at their ends."""

    def __init__(self, source: Log, target: Log, on_progress: Callable[[Progress], None] | None, parts: int) -> None:
        self._limits = max(1, READ_RECORDS_MAX // parts), max(1, READ_BYTES_MAX // parts), READ_WAIT_S
        self._buffered_max = BUFFERED_ROWS_MAX // parts
        self.lanes: dict[Lane, LaneAudit] = {}
        self._source = source
        self._target = target
        self._watch = Watch(on_progress)

    async def to_the_end(self) -> None:
        """Raises Unreachable, AccessRefused."""
        lanes = self.lanes.values()
        self._watch.records_before = sum(one.records for one in lanes)
        for one in lanes:
            one.advance()
        while not all(one.is_done for one in lanes):
            from_source, from_target = self._wanted()
            invariant(bool(from_source or from_target), "an audit that is not done waits for one of its sides")
            taken = await asyncio.gather(self._read_source(from_source), self._read_target(from_target))
            self._watch.heard(any(taken))
            for one in lanes:
                while one.in_doubt is not None:
                    one.resolve(await self._record_behind(one.lane, one.in_doubt))
                one.advance()
            self._watch.tell(
                sum(one.records for one in lanes),
                sum(one.source.bounds.length for one in lanes),
                sum(one.differences for one in lanes),
                self.state,
            )

    def _wanted(self) -> tuple[list[Lane], list[Lane]]:
        """Which lanes to read on either side."""
        lanes = [one for one in self.lanes.values() if not one.is_done]
        source = [one.lane for one in lanes if one.wants_source]
        target = [one.lane for one in lanes if one.wants_target]
        # A side that has run ahead waits for the other: its lanes may come in large uneven pieces.
        source_is_full = sum(one.source_rows_waiting for one in lanes) > self._buffered_max
        target_is_full = sum(one.target_rows_waiting for one in lanes) > self._buffered_max
        if source_is_full and target and not target_is_full:
            return [], target
        if target_is_full and source and not source_is_full:
            return source, []
        # A Kafka consumer throws away what it has fetched of a lane that is left out: all are read while there is room.
        if source and self._source.shape is Shape.RECORD and not source_is_full:
            source = [one.lane for one in lanes if one.may_read_source]
        if target and self._target.shape is Shape.RECORD and not target_is_full:
            target = [one.lane for one in lanes if one.may_read_target]
        return source, target

    async def _read_source(self, lanes: list[Lane]) -> bool:
        if not lanes:
            return False
        places = {lane: self.lanes[lane].source.place for lane in lanes}
        outcomes = await self._source.read(places, *self._limits)
        for lane, outcome in outcomes.items():
            if isinstance(outcome, SourceTrimmed | SourceDeleted):
                bounds = await self._source.bounds([lane])
                self.lanes[lane].source_trimmed(bounds[lane])
            else:
                self.lanes[lane].take_source(outcome)
        return bool(outcomes)

    async def _record_behind(self, lane: Lane, place: Place) -> Batch | None:
        """The first record of the source behind a place; None = there is none, or the place is not in the source."""
        while True:
            outcome = (await self._source.read({lane: place}, 1, READ_BYTES_MAX, READ_WAIT_S)).get(lane)
            if isinstance(outcome, LaneError):
                return None
            if outcome is not None and (outcome.positions or outcome.at_end):
                return cut(outcome, slice(0, 1)) if outcome.positions else None
            if outcome is None and self._source.shape is Shape.ENTRY:
                return None  # it was told before that nothing is behind
            self._watch.heard(outcome is not None)
            place = place if outcome is None else outcome.place

    async def _read_target(self, lanes: list[Lane]) -> bool:
        if not lanes:
            return False
        places = {lane: self.lanes[lane].target.place for lane in lanes}
        outcomes = await self._target.read(places, *self._limits)
        for lane, outcome in outcomes.items():
            self.lanes[lane].take_target(outcome)
        return bool(outcomes)

    def state(self) -> dict[str, Any]:
        """What a later audit needs to go on from here; JSON."""
        return {"version": 1, "lanes": {str(lane): one.save() for lane, one in self.lanes.items()}}
