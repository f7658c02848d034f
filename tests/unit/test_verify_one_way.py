"""What an audit of one direction of a pair leaves out, and what it still sees."""

import asyncio

from crossfade.brokers.memory import MemoryBroker, MemoryLog
from crossfade.model.mapping import mapping_named
from crossfade.model.record import Shape
from crossfade.verify.audit import audit
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
