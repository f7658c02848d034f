"""`relay start` on a Redis target whose lanes were started: it claims, and so fences, only what has no marker."""

import pytest
from redis_fixture import RedisBackend, make_redis_log

from crossfade.brokers.memory import MemoryBoard, MemoryBroker
from crossfade.brokers.protocol import From, Owner, Start
from crossfade.errors import RouteConflict
from crossfade.model.mapping import mapping_named
from crossfade.model.record import Shape, Write
from crossfade.model.route import LaneMap, Route
from crossfade.relay.beginning import start_lanes
from crossfade.relay.documents import RouteBoard

pytestmark = pytest.mark.lab

PAST = 1_600_000_000_000
PATHS = ((0, 0), (1, 1))


def route(**about):
    return Route("route-1", "forward", 2, 2, LaneMap.ONE_TO_ONE, "murmur2", **{"source": "digest"} | about)


@pytest.fixture
async def server(valkey_lab):
    made = RedisBackend(valkey_lab)
    yield made
    await made.close()


class Streams:
    """A source and a target, the latter opened as the wiring does, and a board."""

    def __init__(self, server, source, target):
        self.server, self.source, self.target = server, source, target
        self.board = RouteBoard(MemoryBoard(MemoryBroker()), "route-1")

    async def start(self, lanes, where=None, **about):
        """The lanes that were started now."""
        made = route(**about)
        name = self.target.name
        log = await make_redis_log(self.server.settings, 2, name, route=made.id, is_paired=bool(made.pair))
        try:
            return set(await start_lanes(made, self.source, log, self.board, where or Start(), lanes))
        finally:
            await log.close()

    async def copy(self, claim, place):
        batch = (await self.source.read({0: place}, 100, 1 << 20, 2.0))[0]
        copied = mapping_named("lossless").translate(batch, Shape.ENTRY)
        return (await self.target.append(claim, [Write((0, 0), batch.positions, copied.rows, batch.place)]))[0, 0]

    async def state(self, lane, field):
        key = b"crossfade:lane:{" + self.target.stream_keys[lane] + b"}"
        return await self.server.application.hget(key, field)


@pytest.fixture
async def streams(server):
    return Streams(server, await server.log(2), await server.log(2))


@pytest.mark.parametrize("native", [0, 1], ids=["exclusive", "mixed"])
async def test_starting_again_leaves_a_running_relay_its_claim(server, streams, native):
    for lane in range(2):
        if native:
            await server.write_native(streams.target, lane, [([b"theirs", b"1"], PAST)])
        await server.write_native(streams.source, lane, [([b"value", b"%d" % lane], PAST + 1)])
    assert await streams.start([0]) == {0}
    assert await streams.state(0, "form") == (b"mixed" if native else b"exclusive")
    claim = await streams.target.claim(Owner("route-1", "a", "digest", paths=PATHS[:1]), PATHS[:1])
    epoch = await streams.state(0, "e:0")
    assert await streams.start([0, 1], Start(From.LATEST)) == {1}  # and only the lane that has none
    assert await streams.state(0, "e:0") == epoch
    assert (await streams.copy(claim, claim.markers[0, 0].place)).records == 1


async def test_starting_again_with_another_source_is_refused_as_before(streams):
    assert await streams.start([0, 1]) == {0, 1}
    with pytest.raises(RouteConflict, match="another source"):
        await streams.start([0, 1], source="other")


async def test_starting_again_as_one_of_a_pair_makes_the_route_mark_what_it_writes(streams):
    assert await streams.start([0, 1]) == {0, 1}
    assert await streams.start([0, 1], pair="other") == set()
    assert [await streams.state(lane, "form") for lane in range(2)] == [b"mixed", b"mixed"]
