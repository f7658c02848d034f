"""A Redis target of a paired route, on a real server: every entry carries `xf`, every stored marker its echoes."""

import pytest
from redis_fixture import RedisBackend, make_redis_log

from crossfade.brokers.protocol import Owner
from crossfade.errors import Fenced, GuaranteeRefused
from crossfade.model.position import Place
from crossfade.model.record import Write
from crossfade.model.wire import decode_origin

pytestmark = pytest.mark.lab

PAST = 1_600_000_000_000
ROWS = 1200


@pytest.fixture
async def server(valkey_lab):
    made = RedisBackend(valkey_lab)
    yield made
    await made.close()


def owner(pair="other"):
    return Owner("route-1", "test", "digest", paths=((0, 0),), pair=pair)


def write(numbers, passed, echo, echoes):
    """One row for each source offset, then a place behind all of them."""
    end = numbers[-1] + 1
    rows = [([b"key", b"k", b"value", b"%d" % number], PAST) for number in numbers]
    place = Place(str(end), end + 1, "life", "1", echo, echoes)
    return Write((0, 0), list(numbers), rows, place, quarantine_left=10, passed=passed)


async def test_a_long_write_stores_markers_that_know_their_echoes(server):
    log = await server.log(1)
    claim = await log.claim(owner(), [(0, 0)])
    # every third record of the source was an echo: rows have the offsets between
    numbers = [number for number in range(ROWS * 3 // 2) if number % 3 != 2]
    passed = [((-1, -1), 0, 0)] + [((number, 0), number // 3 + 1, number // 3 + 1) for number in range(2, 1800, 3)]
    outcome = (await log.append(claim, [write(numbers, passed, 600, 600)]))[0, 0]
    assert (outcome.records, outcome.marker.ordinal) == (ROWS, ROWS)
    assert (outcome.marker.place.echo, outcome.marker.place.echoes) == (600, 600)
    assert (await log.markers_of("route-1", [(0, 0)]))[0, 0] == outcome.marker
    entries = await server.application.xrange(log.stream_keys[0])
    origins = [decode_origin(fields[-1]) for _, fields in entries]
    assert [(origin.position, origin.ordinal) for origin in origins] == [
        (str(number), at + 1) for at, number in enumerate(numbers)
    ]


async def test_a_write_cut_between_two_calls_leaves_a_marker_that_knows_its_echoes(server):
    log = await server.log(1)
    claim = await log.claim(owner(), [(0, 0)])
    passed = [((-1, -1), 0, 0)] + [((number, 0), number // 3 + 1, number // 3 + 1) for number in range(2, 1800, 3)]
    numbers = [number for number in range(ROWS * 3 // 2) if number % 3 != 2]
    one = write(numbers, passed, 600, 600)
    sent = log.target.append
    rounds = []

    async def cut(claim, writes, *rest):
        rounds.append(writes)
        if len(rounds) == 2:
            await other.claim(owner(), [(0, 0)])  # a newer claim comes between the pieces
        return await sent(claim, writes, *rest)

    other = await make_redis_log(server.settings, 1, log.name)
    log.target.append = cut
    with pytest.raises(Fenced):
        await log.append(claim, [one])
    marker = (await log.markers_of("route-1", [(0, 0)]))[0, 0]
    reached = int(marker.place.position)
    assert marker.ordinal == len(await server.application.xrange(log.stream_keys[0])) < ROWS
    assert numbers[marker.ordinal - 1] == reached
    assert marker.place.echo == sum(1 for number in range(2, 1800, 3) if number < reached)
    await other.close()


async def test_a_route_that_does_not_mark_its_records_cannot_be_passed_over(server):
    log = await server.log(1)
    alone = await log.claim(owner(pair=""), [(0, 0)])
    row = ([b"a", b"1"], PAST)
    await log.append(alone, [Write((0, 0), [0], [row], Place("0", 1, "life"))])
    with pytest.raises(GuaranteeRefused, match="without marks of its own"):
        await log.markers_of("route-1", [(0, 0)])
    assert await log.markers_of("another-route", [(0, 0)]) == {}
    paired = await log.claim(owner(), [(0, 0)])
    await log.append(paired, [Write((0, 0), [1], [row], Place("1", 2, "life"), passed=[((0, 0), 0, 0)])])
    assert (await log.markers_of("route-1", [(0, 0)]))[0, 0].ordinal == 2
    entries = await server.application.xrange(log.stream_keys[0])
    assert [b"xf" in fields for _, fields in entries] == [False, True]
