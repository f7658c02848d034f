"""What every Board must do."""

import asyncio
import secrets

import pytest

from crossfade.brokers.protocol import VersionConflict


@pytest.fixture
async def board(backend):
    made = await backend.board()
    yield made
    await made.close()


@pytest.fixture
def name():
    return f"test/{secrets.token_hex(6)}"


async def test_a_document_comes_back(board, name):
    assert await board.get(name) is None
    body = bytes(range(256)) * 4
    version = await board.put(name, body)
    found = await board.get(name)
    assert (found.version, found.body) == (version, body)
    assert await board.put(name, b"") > version
    assert (await board.get(name)).body == b""


async def test_compare_and_set(board, name):
    first = await board.put(name, b"1", 0)
    with pytest.raises(VersionConflict):
        await board.put(name, b"2", 0)
    second = await board.put(name, b"2", first)
    assert second > first
    with pytest.raises(VersionConflict):
        await board.put(name, b"3", first)
    assert (await board.get(name)).body == b"2"


async def test_one_of_two_writers_wins(backend, name):
    boards = [await backend.board() for _ in range(2)]
    await boards[0].put(name, b"start", 0)
    version = (await boards[1].get(name)).version
    outcomes = await asyncio.gather(
        *(board.put(name, b"%d" % number, version) for number, board in enumerate(boards)), return_exceptions=True
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["VersionConflict", "int"]
    won = next(number for number, outcome in enumerate(outcomes) if isinstance(outcome, int))
    for board in boards:
        assert (await board.get(name)).body == b"%d" % won
        await board.close()


async def test_another_connection_sees_it_at_once(backend, name):
    one, two = await backend.board(), await backend.board()
    for number in range(5):
        await one.put(name, b"%d" % number)
        assert (await two.get(name)).body == b"%d" % number
    await one.close()
    await two.close()


async def test_listing_by_prefix(board, name):
    for part in ("b", "a", "c"):
        await board.put(f"{name}/{part}", part.encode())
    await board.put(f"{name}-other", b"x")
    found = await board.list(f"{name}/")
    assert {key: document.body for key, document in found.items()} == {
        f"{name}/a": b"a",
        f"{name}/b": b"b",
        f"{name}/c": b"c",
    }


async def test_deleting(board, name):
    await board.put(name, b"1")
    await board.delete(name)
    assert await board.get(name) is None
    assert await board.list(name) == {}
    await board.delete(name)
    await board.put(name, b"2", 0)
    assert (await board.get(name)).body == b"2"


async def test_a_body_of_64_kib_fits(board, name):
    body = secrets.token_bytes(65_536)
    await board.put(name, body)
    assert (await board.get(name)).body == body
    with pytest.raises(Exception, match=r"65537|65,537|64 KiB|large"):
        await board.put(name, body + b"x")
