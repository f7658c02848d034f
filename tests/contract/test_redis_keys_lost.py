"""A Redis target that has lost all of Crossfade's own keys and kept its streams: nothing is copied into it again."""

import pytest
from backends import MemoryBackend
from redis_fixture import RedisBackend

from crossfade.brokers.memory import MemoryBoard, MemoryBroker
from crossfade.brokers.protocol import From, Owner, Start
from crossfade.errors import MarkerLost
from crossfade.model.mapping import mapping_named
from crossfade.model.record import Shape, Write
from crossfade.model.route import LaneMap, Route
from crossfade.relay.beginning import start_lanes
from crossfade.relay.documents import RouteBoard

pytestmark = pytest.mark.lab

PAST = 1_600_000_000_000
ROUTE = Route("route-1", "forward", 1, 1, LaneMap.ONE_TO_ONE, "murmur2", "digest")
RECORDS = 5


@pytest.fixture
async def server(valkey_lab):
    made = RedisBackend(valkey_lab)
    yield made
    await made.close()


def rows(shape):
    if shape is Shape.ENTRY:
        return [([b"value", b"%d" % number], PAST + number) for number in range(RECORDS)]
    return [(b"k", b"%d" % number, None, PAST + number) for number in range(RECORDS)]


async def start(source, target, where, **how):
    return await start_lanes(
        ROUTE, source, target, RouteBoard(MemoryBoard(MemoryBroker()), ROUTE.id), where, [0], **how
    )


async def copy(source, target, place):
    """What a relay copies in one go."""
    claim = await target.claim(Owner(ROUTE.id, "a", ROUTE.source, paths=((0, 0),)), [(0, 0)])
    batch = (await source.read({0: place}, 100, 1 << 20, 2.0))[0]
    copied = mapping_named("lossless").translate(batch, Shape.ENTRY)
    await target.append(claim, [Write((0, 0), batch.positions, copied.rows, batch.place)])


@pytest.mark.parametrize("shape", Shape)
@pytest.mark.parametrize("left", [1, 2, RECORDS])
async def test_a_stream_with_copies_is_not_started_anew(server, shape, left):
    """Ids that carry the position, and no mark: after a trim too."""
    there = server if shape is Shape.ENTRY else MemoryBackend(Shape.RECORD)
    source, target = await there.log(1), await server.log(1)
    await there.write_native(source, 0, rows(shape))
    places = await start(source, target, Start())
    await copy(source, target, places[0])
    entries = await server.application.xrange(target.stream_keys[0])
    assert len(entries) == RECORDS
    assert not any(b"xf" in fields for _, fields in entries)
    await server.application.delete(*await server.application.keys(b"crossfade:lane:{" + target.stream_keys[0] + b"}"))
    await server.application.xtrim(target.stream_keys[0], maxlen=left, approximate=False)
    for where in (Start(), Start(From.LATEST)):
        with pytest.raises(MarkerLost, match="holds copies of"):
            await start(source, target, where)
    last = (await source.bounds([0]))[0].last
    assert set(await start(source, target, Start(From.POSITION, last), by_hand=True)) == {0}


@pytest.mark.parametrize("shape", Shape)
async def test_entries_of_others_do_not_hold_up_a_start(server, shape):
    there = server if shape is Shape.ENTRY else MemoryBackend(Shape.RECORD)
    source, target = await there.log(1), await server.log(1)
    await there.write_native(source, 0, rows(shape))
    for number in range(3):
        await server.application.xadd(target.stream_keys[0], {b"theirs": b"1"}, id=b"%d-7" % (PAST + number))
    assert set(await start(source, target, Start())) == {0}
