"""What an audit of one direction of a pair leaves out, and what it still sees."""

import asyncio

from crossfade.brokers.memory import MemoryBroker, MemoryLog
from crossfade.model.mapping import mapping_named
from crossfade.model.record import Shape
from crossfade.verify.audit import audit
from crossfade.verify.diff import Kind
from crossfade.verify.one_way import copies_only, without_echoes

RECORD = Shape.RECORD


def xf(route, ordinal, position, epoch=1):
    return [("xf", f"1;{route}/0@{position}#{ordinal};{epoch}".encode())]


def audited(source_rows, target_rows):
    broker = MemoryBroker()
    for name, rows in (("source", source_rows), ("target", target_rows)):
        broker.stream(name, 1, RECORD)
        broker.write(name, 0, rows)
    source, target = (MemoryLog(broker, name, 1, RECORD) for name in ("source", "target"))
    seen, echoes = without_echoes(source, "back")
    report = asyncio.run(
        audit(
            seen, copies_only(target, "forth"), mapping_named("lossless"), route_id="forth", lanes=[0], is_settled=True
        )
    )
    return report.lanes[0], echoes.get(0, 0)


def row(number, headers=None):
    return (b"k", b"%d" % number, headers, 1000 + number)


SOURCE = [row(0), row(100, xf("back", 1, 0)), row(1), row(101, xf("back", 2, 3)), row(100, xf("back", 1, 0))]
#: natives of the target, copies of what is native in the source, and one of them written again by an application
TARGET = [
    row(100),
    row(0, xf("forth", 1, 0)),
    row(1, xf("forth", 2, 2)),
    row(101),
    row(0, xf("forth", 1, 0)),
    row(100, xf("forth", 3, 4)),
]


def test_echoes_and_natives_are_no_differences():
    lane, echoes = audited(SOURCE, TARGET)
    assert (lane.matched, lane.differences, echoes) == (3, 0, 2)


def test_a_lost_copy_is_still_missing():
    lane, _ = audited(SOURCE, [found for at, found in enumerate(TARGET) if at != 2])
    assert lane.differences == 1


def test_a_record_that_a_newer_claim_wrote_again_is_still_a_difference():
    again = [*TARGET[:3], row(1, xf("forth", 2, 2, epoch=2)), *TARGET[3:]]
    lane, _ = audited(SOURCE, again)
    assert lane.differences >= 1


def test_a_native_record_that_was_passed_over_is_missing():
    lane, _ = audited([*SOURCE, row(101, xf("back", 2, 3))], TARGET)
    assert lane.differences == 1


def test_what_is_read_again_of_a_target_is_no_copy_of_itself(monkeypatch):
    monkeypatch.setattr("crossfade.verify.audit.READ_RECORDS_MAX", 300)
    broker = MemoryBroker(clock_ms=lambda: 10_000)
    rows = [([b"v", b"%d" % at], 1000 + at) for at in range(1000)]
    broker.stream("source", 1, Shape.ENTRY)
    broker.write("source", 0, rows)
    marks = [xf("forth", at + 1, f"{1000 + at}-0", 1 + at // 400)[0][1] for at in range(1000)]
    broker.stream("target", 1, Shape.ENTRY)
    broker.write("target", 0, [([*fields, b"xf", mark], ms) for (fields, ms), mark in zip(rows, marks, strict=True)])
    source, target = (MemoryLog(broker, name, 1, Shape.ENTRY) for name in ("source", "target"))
    read, read_target, turns = source.read, target.read, iter(range(1000))

    async def slowly(places, records_max, *others):
        return await read(places, min(records_max, 10), *others)

    async def deleting(*options):
        if next(turns) == 2:
            broker.delete("target", 0, broker.rows("target", 0)[900][0])
        return await read_target(*options)

    monkeypatch.setattr(source, "read", slowly)
    monkeypatch.setattr(target, "read", deleting)
    seen, _ = without_echoes(source, "back")
    report = asyncio.run(
        audit(seen, copies_only(target, "forth"), mapping_named("lossless"), route_id="forth", lanes=[0])
    )
    lane = report.lanes[0]
    assert (lane.error, dict(lane.counts), lane.matched) == (None, {Kind.MISSING: 1}, 999)
