"""What the board keeps of a route's lanes: which were started, and where each was begun."""

from __future__ import annotations

import json

import pytest

from crossfade.brokers.memory import MemoryBoard, MemoryBroker
from crossfade.brokers.protocol import From, Start
from crossfade.errors import UsageError
from crossfade.relay.documents import RouteBoard

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


async def test_thousands_of_lanes_fit_a_document(board: RouteBoard, stored: MemoryBoard) -> None:
    lanes = set(range(4_096))
    await board.note_beginning(lanes, Start(From.POSITION, f"{2**64 - 1}-{2**64 - 1}"))
    await board.add_started(lanes)
    found = await stored.get("started/r1")
    assert found is not None
    assert len(found.body) < SIZE_BYTES_MAX
    assert json.loads(found.body)["lanes"] == sorted(lanes)


@pytest.mark.parametrize("body", [b'{"version":2,"lanes":{}}', b'{"version":2}', b"{"])
async def test_a_document_that_this_release_cannot_read_is_told_by_its_name(
    board: RouteBoard, stored: MemoryBoard, body: bytes
) -> None:
    await stored.put("started/r1", body)
    with pytest.raises(UsageError, match="document 'started/r1'") as told:
        await board.first_lanes()
    assert told.value.hint == "run the newest release of Crossfade everywhere"
