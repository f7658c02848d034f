"""A route that spread one source lane by key over Redis streams: its copies carry no mark, only an id that tells."""

from __future__ import annotations

from typing import Any

import pytest
from test_verify_audit import RECORD, ROUTE, TIME_MS, found

from crossfade.brokers.memory import MemoryBroker, MemoryLog
from crossfade.brokers.protocol import From, Start
from crossfade.model.mapping import mapping_named
from crossfade.model.partitioner import partition_many
from crossfade.model.record import Row, Shape
from crossfade.model.wire import Origin, encode_origin
from crossfade.verify.by_key import audit_by_key
from crossfade.verify.report import AuditReport

TARGETS, RECORDS = 3, 90


def records(first: int = 0, last: int = RECORDS) -> list[Row]:
    return [(b"k%d" % (at % 7), b"v%d" % at, None, TIME_MS + at // 3) for at in range(first, last)]


class Spread:
    """What a relay leaves: `copy` as long as one source lane is all that there is, `copy_marked` behind that."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.broker.stream("source", 1, RECORD)
        self.targets = self.broker.stream("target", TARGETS, Shape.ENTRY).lanes
        self.source_lanes = 1

    def written(self, rows: list[Row], lane: int = 0) -> list[tuple[int, int, Row]]:
        """Write rows to the source: offset, target lane, row."""
        first = len(self.broker.rows("source", lane))
        self.broker.write("source", lane, rows)
        lanes = partition_many("murmur2", [row[0] for row in rows], TARGETS, lane)
        return list(zip(range(first, first + len(rows)), lanes, rows, strict=True))

    def copy(self, rows: list[Row]) -> None:
        for offset, to, (key, value, _, time_ms) in self.written(rows):
            self.put(to, (time_ms, offset), [b"key", key, b"value", value])

    def copy_marked(self, lane: int, rows: list[Row]) -> None:
        ordinals = dict.fromkeys(range(TARGETS), 0)
        for offset, to, (key, value, _, time_ms) in self.written(rows, lane):
            ordinals[to] += 1
            mark = encode_origin(Origin(ROUTE, lane, str(offset), ordinals[to], 2, time_ms)).encode()
            self.put(to, (TIME_MS + 10**6, 10 * offset + lane), [b"key", key, b"value", value, b"xf", mark])

    def put(self, to: int, entry_id: tuple[int, int], fields: list[bytes]) -> None:
        lane: Any = self.targets[to]
        lane.entries.append((entry_id, (fields, entry_id[0])))
        lane.added, lane.last = lane.added + 1, entry_id

    def add_lane(self) -> int:
        self.source_lanes += 1
        return self.broker.add_lane("source")

    async def audit(self, **options: Any) -> AuditReport:
        source = MemoryLog(self.broker, "source", self.source_lanes, RECORD)
        target = MemoryLog(self.broker, "target", TARGETS, Shape.ENTRY)
        mapping = mapping_named("lossless")
        return await audit_by_key(
            source, target, mapping, route_id=ROUTE, partitioner="murmur2", window_rows=40, **options
        )


@pytest.mark.parametrize("is_settled", [True, False])
async def test_ids_stay_marks_of_the_first_lane_when_the_source_has_more(is_settled: bool) -> None:
    spread = Spread()
    spread.copy(records())
    assert (await spread.audit(is_settled=is_settled)).ok
    lane = spread.add_lane()
    spread.copy_marked(lane, records(0, 20))
    report = await spread.audit(first_lanes=1, is_settled=is_settled)
    assert report.ok, report.as_dict()["differences"]
    assert (report.is_complete, report.matched) == (True, RECORDS + 20)
    # of a route that always had two lanes every copy carries a mark
    assert found(await spread.audit(first_lanes=2, is_settled=True)) == {"missing": RECORDS, "duplicate": RECORDS}


async def test_damage_among_them_is_named() -> None:
    spread = Spread()
    spread.copy(records())
    spread.copy_marked(spread.add_lane(), records(0, 20))
    entries: Any = spread.targets[1].entries  # type: ignore[union-attr]
    del entries[3]
    spread.put(1, (TIME_MS + 10**7, 0), [b"mine", b"x"])
    report = await spread.audit(first_lanes=1, is_settled=True)
    assert found(report) == {"missing": 1, "extra": 1}


@pytest.mark.parametrize("first_lanes", [0, 1])
async def test_an_entry_of_another_writer_is_not_where_the_copy_began(first_lanes: int) -> None:
    spread = Spread()
    spread.written(records(0, 30))
    for to in range(TARGETS):
        spread.put(to, (TIME_MS + 500, 0), [b"mine", b"x"])  # before the copy, with an offset that the source has
    spread.copy([(key, value, None, time_ms + 1000) for key, value, _, time_ms in records(30)])
    starts = {0: Start(From.LATEST)}
    report = await spread.audit(starts=starts, first_lanes=first_lanes, is_settled=True)
    assert found(report) == {"extra": TARGETS}, report.as_dict()["differences"]
    assert (report.matched, report.total("before_target")) == (RECORDS - 30, 30)
