"""Reads both sides of a route itself and compares them, lane by lane, in bounded memory.

Only `read` and `bounds` of the two logs are used: nothing is claimed, nothing is written. Both are compared up to where
they end when the audit begins (see `ends`); what the source holds beyond is *pending*, never a difference. Called by
the CLI, the demo and gates.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..brokers.protocol import Log, Start
from ..errors import LaneError, SourceDeleted, SourceTrimmed, invariant
from ..model.position import Place
from ..model.record import Batch, Lane, Shape
from .ends import Ends, Quarantine, ends_of, made_anew_since
from .extent import Extent
from .lane import LaneAudit
from .progress import Progress, Watch, collector_calmed
from .reading import Translates, cut, is_from_earliest
from .report import AuditReport, Keeping
from .second_look import second_look

#: of what a later audit goes on from
STATE_VERSION = 1
#: one read, over all lanes
READ_RECORDS_MAX = 8_000
READ_BYTES_MAX = 8 << 20
READ_WAIT_S = 0.2
#: rows kept of one side while the other side is read on
BUFFERED_ROWS_MAX = 16_000


async def audit(
    source: Log,
    target: Log,
    mapping: Translates,
    *,
    route_id: str,
    lanes: Sequence[Lane],
    on_progress: Callable[[Progress], None] | None = None,
    window_rows: int = 2_000,
    resume: Mapping[str, Any] | None = None,
    starts: Mapping[Lane, Start] | None = None,
    is_settled: bool = False,
    quarantined: Quarantine | None = None,
    extents: Mapping[Lane, Extent] | None = None,
    keep: Keeping | None = None,
    parts: int = 1,
) -> AuditReport:
    """Compare the lanes of an open source and target, one to one.

    `starts`: where the copy of a lane began (default: earliest; anything else is found from the first record on the
    target).
    `is_settled`: nothing is on its way any more, so what the target's end lacks is missing, not pending.
    `quarantined`: asks for the source positions that the route quarantined. `resume`: the `state` of an earlier audit.
    `extents`: the part of each source lane to compare, see `extents_of`; such an audit leaves no state to go on from.
    `keep`: how many differences are kept by name, and whether with their rows. `parts`: this is one of so many audits
    that run side by side; together they hold as many rows as one alone.
    Raises Unreachable, AccessRefused.
    """
    started_s = time.monotonic()
    ends = await ends_of(source, target, lanes, lanes, quarantined, is_settled=is_settled)
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
            ends.source[lane],
            ends.target[lane],
            route_id=route_id,
            window_rows=window_rows,
            is_earliest=is_from_earliest(starts, lane),
            quarantined=ends.quarantined.get(lane, frozenset()),
            extent=None if extents is None else extents[lane],
        )
        report.lanes[lane].held_up = ends.held_up(lane, None if extents is None else extents[lane], [lane])
        if str(lane) in known:
            one.restore(known[str(lane)])
        run.lanes[lane] = one
    before = report.matched
    with collector_calmed():
        await run.to_the_end()
        await run.look_back(ends)
    for one in run.lanes.values():
        one.finish(is_settled=ends.is_settled_in(one.lane))
    if report.strays:
        await second_look(
            source,
            mapping,
            target.shape,
            report,
            ends.source,
            route_id=route_id,
            quarantined=ends.quarantined,
            ids_may_mark=True,
        )
    report.state = {} if extents is not None else run.state()
    report.seconds = time.monotonic() - started_s
    report.records_per_s = (report.matched - before) / max(report.seconds, 1e-9)
    return report


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
        self._watch.records_before = sum(one.matched for one in lanes)
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
                sum(one.matched for one in lanes),
                sum(one.source.bounds.length for one in lanes),
                sum(one.differences for one in lanes),
                self.state,
            )

    async def look_back(self, ends: Ends) -> None:
        """Fail the lanes that were made anew while they were read."""
        for log, bounds in ((self._source, ends.source), (self._target, ends.target)):
            asked = {lane: there for lane, there in bounds.items() if not self.lanes[lane].has_failed}
            for lane, error in (await made_anew_since(log, asked)).items():
                self.lanes[lane].fail(error, log.shape)

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
            if isinstance(outcome, SourceTrimmed | SourceDeleted):  # it is read as a source is
                bounds = await self._target.bounds([lane])
                self.lanes[lane].target_trimmed(bounds[lane])
            else:
                self.lanes[lane].take_target(outcome)
        return bool(outcomes)

    def state(self) -> dict[str, Any]:
        """What a later audit needs to go on from here; JSON."""
        return {"version": STATE_VERSION, "lanes": {str(lane): one.save() for lane, one in self.lanes.items()}}
