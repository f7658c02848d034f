"""What lies in lanes of a target that have no lane in the source, one to one: no relay wrote it there.

Hides that the source may have got more lanes meanwhile: the bounds of the target are taken before these are counted, so
what was copied from a new lane is never named. Called by the CLI, at the end of an audit of all lanes.
"""

from __future__ import annotations

from ..brokers.protocol import Log
from ..errors import LaneError, SourceDeleted, SourceTrimmed
from ..model.position import position_order
from ..model.record import Batch, Lane
from .audit import READ_BYTES_MAX, READ_RECORDS_MAX, READ_WAIT_S
from .diff import Difference, Kind
from .progress import Watch
from .reading import Reading, cut
from .report import AuditReport, LaneReport, Named


async def add_beyond(source: Log, target: Log, report: AuditReport) -> None:
    """Name every record of such a lane as `extra` in the report. Raises UsageError, Unreachable, AccessRefused."""
    if target.lanes <= source.lanes:  # nothing to ask for, and a topic that is gone would be asked for all the same
        return
    bounds = await target.bounds(range(source.lanes, target.lanes))
    if not any(there.length for there in bounds.values()):
        return
    lanes = await source.count_lanes()
    readings = {lane: Reading(there) for lane, there in bounds.items() if lane >= lanes}
    watch = Watch(None)
    while places := {lane: one.place for lane, one in readings.items() if not one.is_ended}:
        outcomes = await target.read(places, READ_RECORDS_MAX, READ_BYTES_MAX, READ_WAIT_S)
        watch.heard(bool(outcomes))
        for lane, outcome in outcomes.items():
            reading = readings[lane]
            if isinstance(outcome, SourceTrimmed | SourceDeleted):  # it is read as a source is
                done = max(position_order(reading.place.position), reading.done_until or position_order(""))
                reading.begin_again((await target.bounds([lane]))[lane], done)
            elif isinstance(outcome, LaneError):
                _lane_of(report, lane, target).error = outcome
                reading.is_ended = True
            else:
                kept = cut(outcome, reading.new_rows(outcome))
                reading.take(outcome)
                _name(report, kept, target)


def _name(report: AuditReport, batch: Batch, target: Log) -> None:
    for position, row in zip(batch.positions, batch.rows, strict=True):
        _lane_of(report, batch.lane, target).counts[Kind.EXTRA] += 1
        words = "the source has no such lane"
        report.keep(Named(batch.lane, Difference(Kind.EXTRA, None, position, words, row), batch.lane))


def _lane_of(report: AuditReport, lane: Lane, target: Log) -> LaneReport:
    return report.lanes.setdefault(lane, LaneReport(lane, "", target.lane_name(lane), is_done=True))
