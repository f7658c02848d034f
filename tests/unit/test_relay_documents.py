"""What the board keeps of a route: which lanes were started, where each was begun, heartbeats and decisions."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest

from crossfade.brokers.memory import MemoryBoard, MemoryBroker
from crossfade.brokers.protocol import Document, From, Start, VersionConflict
from crossfade.errors import UsageError
from crossfade.relay.documents import AcceptedLoss, Desired, LaneReport, Report, RouteBoard

LATEST, POSITION = Start(From.LATEST), Start(From.POSITION, "17-3")
SIZE_BYTES_MAX = 64 << 10


@pytest.fixture
def stored() -> MemoryBoard:
    return MemoryBoard(MemoryBroker())


@pytest.fixture
def board(stored: MemoryBoard) -> RouteBoard:
    return RouteBoard(stored, "r1")


async def test_each_lane_has_the_beginning_that_it_had_last(board: RouteBoard) -> None:
    assert await board.beginnings() == {}
    await board.note_beginning({0, 1, 2}, LATEST)
    assert (await board.started(), await board.first_lanes()) == (frozenset(), 0)  # not begun yet
    await board.add_started({0, 1, 2})
    await board.note_beginning({3}, Start())
    await board.add_started({0, 1, 2, 3})
    await board.note_beginning({1}, POSITION)
    assert await board.beginnings() == {0: LATEST, 1: POSITION, 2: LATEST, 3: Start()}
    assert (await board.started(), await board.first_lanes()) == (frozenset(range(4)), 3)


async def test_starting_again_at_the_same_beginning_writes_nothing(board: RouteBoard, stored: MemoryBoard) -> None:
    await board.note_beginning({0, 1}, LATEST)
    await board.add_started({0, 1})
    before = await stored.get("started/r1")
    await board.note_beginning({1}, LATEST)
    await board.add_started({0})
    assert await stored.get("started/r1") == before


async def test_a_document_without_beginnings_is_read_and_kept(board: RouteBoard, stored: MemoryBoard) -> None:
    await stored.put("started/r1", b'{"lanes":[0,1]}')
    assert (await board.beginnings(), await board.started(), await board.first_lanes()) == ({}, frozenset({0, 1}), 2)
    await board.note_beginning({2}, Start())
    await board.add_started({2})
    assert await board.beginnings() == {2: Start()}
    assert (await board.started(), await board.first_lanes()) == (frozenset({0, 1, 2}), 2)


async def test_lanes_that_the_first_start_left_out_are_unstarted_and_no_later_ones(board: RouteBoard) -> None:
    await board.add_started(set(), 4)
    assert (await board.known(), await board.first_lanes()) == (frozenset(), 0), "nothing was started"
    await board.add_started({1}, 4)
    assert (await board.started(), await board.unstarted()) == ({1}, {0, 2, 3})
    assert (await board.known(), await board.first_lanes()) == (frozenset(range(4)), 4)
    await board.add_started({4}, 5)  # a later one
    await board.add_started({0, 1}, 5)
    await board.add_started({5}, 6)
    assert (await board.started(), await board.unstarted()) == ({0, 1, 4, 5}, {2, 3})
    assert (await board.unowned(), await board.first_lanes()) == ({4, 5}, 4)
    await board.add_started({2, 3}, 6)
    assert (await board.started(), await board.unstarted(), await board.unowned()) == (set(range(6)), set(), {4, 5})


async def test_lanes_of_an_earlier_release_are_all_started(board: RouteBoard, stored: MemoryBoard) -> None:
    await stored.put("started/r1", b'{"lanes":[0,1,2],"first_lanes":2,"unowned":[2]}')
    assert (await board.started(), await board.unstarted(), await board.known()) == ({0, 1, 2}, set(), {0, 1, 2})
    assert (await board.unowned(), await board.first_lanes()) == ({2}, 2)


async def test_thousands_of_lanes_fit_a_document(board: RouteBoard, stored: MemoryBoard) -> None:
    lanes = set(range(4_096))
    await board.note_beginning(lanes, Start(From.POSITION, f"{2**64 - 1}-{2**64 - 1}"))
    await board.add_started(lanes)
    found = await stored.get("started/r1")
    assert found is not None
    assert len(found.body) < SIZE_BYTES_MAX
    assert json.loads(found.body)["lanes"] == sorted(lanes)


async def test_thousands_of_lanes_fit_a_document_where_each_was_begun_elsewhere(
    board: RouteBoard, stored: MemoryBoard
) -> None:
    for lane in range(4_096 - 256, 4_096):
        await board.note_beginning({lane}, Start(From.POSITION, f"{1_700_000_000_000 + lane}-0"))
        await board.add_started({lane}, 4_096)
    found = await stored.get("started/r1")
    assert found is not None
    assert len(found.body) < SIZE_BYTES_MAX


@pytest.mark.parametrize("body", [b'{"version":2,"lanes":{}}', b'{"version":2}', b"{"])
async def test_a_document_that_this_release_cannot_read_is_told_by_its_name(
    board: RouteBoard, stored: MemoryBoard, body: bytes
) -> None:
    await stored.put("started/r1", body)
    with pytest.raises(UsageError, match="document 'started/r1'") as told:
        await board.first_lanes()
    assert told.value.hint == "run the newest release of Crossfade everywhere"


# -- documents that would be too large -----------------------------------------------------------------------------


def idle(lane: int) -> LaneReport:
    return LaneReport(
        lane, f"orders[{lane}]", "idle", position="123456789", ordinal=123456789, lag_records=0, lag_s=0.0
    )


def halted(lane: int) -> LaneReport:
    said = "records were removed before they were copied, from 1700000000000-3 on; " * 3
    return LaneReport(
        lane,
        f"m:{lane}",
        "halted",
        "17-3",
        9,
        5,
        error="SourceTrimmed",
        lost_records=4,
        reason=said,
        hint="accept" * 30,
    )


def copying(lane: int) -> LaneReport:
    return LaneReport(lane, f"orders[{lane}]", "copying", "123456789", 123456789, 7, 0.123456, records_per_s=1234.5)


async def heard(board: RouteBoard, stored: MemoryBoard, lanes: list[LaneReport], **more: Any) -> Report:
    """What is read of a heartbeat that was stored."""
    await board.report(Report("one", 1.0, lanes=lanes, **more))
    document = await stored.get("status/r1/one")
    assert document is not None
    assert len(document.body) <= SIZE_BYTES_MAX
    [report] = await board.reports()
    assert report.idle == []
    return report


async def test_a_report_that_fits_is_stored_as_it_is(board: RouteBoard, stored: MemoryBoard) -> None:
    lanes = [halted(0), copying(1), *(idle(lane) for lane in range(2, 200))]
    assert (await heard(board, stored, lanes)).lanes == lanes


async def test_lanes_that_halt_together_keep_what_an_operator_decides_by(
    board: RouteBoard, stored: MemoryBoard
) -> None:
    report = await heard(board, stored, [halted(lane) for lane in range(256)])
    assert [(one.lane, one.error, one.position) for one in report.lanes] == [
        (lane, "SourceTrimmed", "17-3") for lane in range(256)
    ]
    assert {(one.reason, one.hint) for one in report.lanes} == {(halted(0).reason[:80], "")}


@pytest.mark.parametrize("lanes", [600, 4_096])
async def test_every_idle_lane_of_many_is_still_told(board: RouteBoard, stored: MemoryBoard, lanes: int) -> None:
    busy = [halted(0), copying(1)]
    report = await heard(board, stored, [*busy, *(idle(lane) for lane in range(2, lanes))])
    assert [one.lane for one in report.lanes] == list(range(lanes))
    assert {(one.state, one.lag_records) for one in report.lanes[2:]} == {("idle", 0)}
    assert report.lanes[1] == copying(1)
    assert report.lanes[0].reason == halted(0).reason[:80]


async def test_of_too_many_lanes_those_that_are_halted_come_first(board: RouteBoard, stored: MemoryBoard) -> None:
    lanes = [*(copying(lane) for lane in range(800)), *(halted(lane) for lane in range(800, 900))]
    report = await heard(board, stored, lanes, reason="why " * 100, alarms=["an alarm " * 20] * 5)
    assert [one.lane for one in report.lanes[:100]] == list(range(800, 900))
    assert {one.error for one in report.lanes[:100]} == {"SourceTrimmed"}
    assert report.lanes[100] == LaneReport(0, "orders[0]", "copying", lag_records=7)
    assert len(report.lanes) > 500


async def test_a_report_fits_however_many_lanes_and_words_there_are(board: RouteBoard, stored: MemoryBoard) -> None:
    long = LaneReport(0, "k" * 70_000, "copying")
    report = await heard(board, stored, [long, *(idle(lane) for lane in range(1, 20_000))], reason="x" * 70_000)
    assert (report.instance, report.lanes) == ("one", [])


def loss(at: int, reason: str = "test data, trimmed on purpose") -> AcceptedLoss:
    return AcceptedLoss("SourceTrimmed", f"1700000000000-{at}", "somebody@relay-1", "2026-01-01T00:00:00+00:00", reason)


def accept(taken: list[AcceptedLoss]) -> Callable[[Desired], None]:
    def change(desired: Desired) -> None:
        desired.accepted, desired.journal = {str(n): one for n, one in enumerate(taken)}, taken

    return change


@pytest.mark.parametrize("others", [1, 4, 5])
async def test_what_others_decide_meanwhile_is_seen_and_stays(others: int) -> None:
    broker = MemoryBroker()
    board = RouteBoard(MemoryBoard(broker), "r1")
    seen: list[list[int]] = []

    def pause(desired: Desired) -> None:
        seen.append(list(desired.paused_lanes))
        if len(seen) <= others:
            theirs = Desired(paused_lanes=list(range(len(seen))))
            broker.documents["desired/r1"] = Document(len(seen), msgspec.json.encode(theirs))
        desired.paused = True

    if others == 5:
        with pytest.raises(VersionConflict, match="the route's desired state keeps changing"):
            await board.change_desired(pause)
        assert not (await board.desired()).paused
        return
    wanted = Desired(paused=True, paused_lanes=list(range(others)))
    assert await board.change_desired(pause) == wanted == await board.desired()
    assert seen == [list(range(n)) for n in range(others + 1)]


async def test_a_change_that_is_refused_changes_nothing(board: RouteBoard) -> None:
    def refuse(desired: Desired) -> None:
        desired.paused = True
        raise UsageError("no such lane")

    with pytest.raises(UsageError, match="no such lane"):
        await board.change_desired(refuse)
    assert await board.desired() == Desired()


async def test_all_lanes_of_a_route_are_accepted_at_once(board: RouteBoard, stored: MemoryBoard) -> None:
    taken = [loss(lane) for lane in range(256)]
    await board.change_desired(accept(taken))
    document = await stored.get("desired/r1")
    assert document is not None
    assert SIZE_BYTES_MAX - 200 < len(document.body) <= SIZE_BYTES_MAX
    found = await board.desired()
    assert len(found.accepted) == 256
    assert found.journal == taken[-len(found.journal) :]


async def test_decisions_can_be_taken_for_ever(board: RouteBoard) -> None:
    def take(desired: Desired, number: int) -> None:
        desired.accepted = {"0": loss(number)}
        desired.journal = [*desired.journal, loss(number)][-1000:]

    for number in range(700):
        await board.change_desired(partial(take, number=number))
    found = await board.desired()
    assert found.journal[-1] == found.accepted["0"] == loss(699)
    assert len(found.journal) > 400


async def test_decisions_that_do_not_fit_are_refused_with_what_to_do(board: RouteBoard) -> None:
    taken = [loss(lane) for lane in range(600)]
    with pytest.raises(UsageError, match="accepted losses of 600 lanes do not fit") as told:
        await board.change_desired(accept(taken))
    assert "fewer lanes at a time, with a short reason" in told.value.hint
