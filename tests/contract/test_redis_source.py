"""Redis as a source, on real servers: births that belong to a route, and what is said when one is gone."""

import asyncio
import secrets

import pytest
from redis_fixture import RedisBackend, make_redis_log

from crossfade.brokers.protocol import From, Owner, Start
from crossfade.brokers.redis import RedisInspector
from crossfade.errors import Kind as Treatment
from crossfade.errors import SourceDeleted, SourceRegressed, SourceReset, Unreachable
from crossfade.model.mapping import mapping_named
from crossfade.model.record import Batch, Write
from crossfade.verify.audit import audit
from crossfade.verify.diff import Kind

pytestmark = pytest.mark.lab


@pytest.fixture(params=["valkey", "redis7"])
async def server(request):
    made = RedisBackend(request.getfixturevalue(f"{request.param}_lab"))
    yield made
    await made.close()


@pytest.fixture
async def routes(server):
    """Two routes that read the same stream keys."""
    name = f"source-{secrets.token_hex(4)}"
    made = [await make_redis_log(server.settings, 1, name, route=route) for route in ("one", "two")]
    yield made
    for log in made:
        await log.close()


async def add(server, log, *numbers):
    for number in numbers:
        await server.application.xadd(log.stream_keys[0], {"n": number}, id=f"{number}-0")


async def read(log, place, records=100):
    return (await log.read({0: place}, records, 1 << 20, 0.1)).get(0)


async def births(server, log):
    return sorted(group["name"].decode() for group in await server.application.xinfo_groups(log.stream_keys[0]))


async def test_what_one_route_leaves_is_not_anothers(server, routes):
    one, two = routes
    await add(server, one, 1, 2, 3)
    first, second = (await one.begin([0], Start()))[0], (await two.begin([0], Start()))[0]
    assert first.incarnation.startswith("crossfade.one.")
    assert second.incarnation.startswith("crossfade.two.")
    assert (await one.begin([0], Start()))[0] == first
    assert (await one.bounds([0]))[0].incarnation == first.incarnation
    second = (await read(two, second)).place

    inspector = RedisInspector(server.settings, one.stream_keys)
    left = await inspector.footprint("one")
    assert left == [f"group {one.lane_name(0)} {first.incarnation}"]
    await inspector.erase("one", left)
    await add(server, one, 4)
    batch = await read(two, second)
    assert isinstance(batch, Batch)
    assert batch.positions == [b"4-0"]


async def test_a_birth_of_an_earlier_release_is_kept_and_is_nobodys_own(server, routes):
    one, two = routes
    await add(server, one, 1, 2, 3)
    earlier = await make_redis_log(server.settings, 1, one.name)
    old = (await earlier.begin([0], Start(From.POSITION, "1-0")))[0]
    await earlier.close()
    batch = await read(one, old)
    assert batch.positions == [b"2-0", b"3-0"]
    assert batch.place.incarnation == old.incarnation
    # behind a loss that was accepted it stays the same: places of all paths can be compared
    assert (await one.begin([0], Start(From.POSITION, "2-0")))[0].incarnation == old.incarnation
    # a route that begins now has its own
    assert (await two.begin([0], Start()))[0].incarnation.startswith("crossfade.two.")
    inspector = RedisInspector(server.settings, one.stream_keys)
    assert await inspector.footprint("one") == [f"shared {one.lane_name(0)} {old.incarnation}"]
    await inspector.erase("one", await inspector.footprint("one"))
    assert await inspector.footprint("one") == []


async def test_a_birth_group_that_somebody_removed_is_made_again_behind_the_accepted_loss(server, routes):
    log, _ = routes
    await add(server, log, 1, 2, 3)
    place = (await read(log, (await log.begin([0], Start()))[0], records=2)).place
    await server.application.xgroup_destroy(log.stream_keys[0], place.incarnation)
    error = await read(log, place)
    assert isinstance(error, SourceDeleted)
    assert "entry 2-0 stands as it was read" in error.message
    assert await births(server, log) == []
    # nothing before the place comes again, and places before and after can be compared
    again = (await log.begin([0], Start(From.POSITION, error.position)))[0]
    assert again.incarnation == place.incarnation
    assert await births(server, log) == [place.incarnation]
    batch = await read(log, again)
    assert batch.positions == [b"3-0"]
    assert batch.place.incarnation == place.incarnation


async def test_a_key_that_is_made_anew_while_its_lane_is_halted_gets_no_old_birth(server, routes):
    log, _ = routes
    await add(server, log, 1, 2, 3)
    place = (await read(log, (await log.begin([0], Start()))[0], records=2)).place
    await server.application.xgroup_destroy(log.stream_keys[0], place.incarnation)
    assert isinstance(await read(log, place), SourceDeleted)
    await server.application.delete(log.stream_keys[0])
    await server.application.xadd(log.stream_keys[0], {"another": "life"}, id="2-0")
    error = (await log.begin([0], Start(From.POSITION, "2-0")))[0]
    assert isinstance(error, SourceReset)
    assert await births(server, log) == []
    place = (await log.begin([0], Start()))[0]
    assert len((await read(log, place)).rows) == 1


@pytest.mark.parametrize("start", [Start(From.POSITION, "3-0"), Start(From.TIME, "4")])
async def test_from_a_start_inside_a_stream_deletions_are_seen_before_its_end(server, routes, start):
    log, _ = routes
    await add(server, log, *range(1, 11))
    await server.application.xdel(log.stream_keys[0], "2-0", "5-0")  # before the copy began: no loss
    place = (await log.begin([0], start))[0]
    batch = await read(log, place, records=2)
    assert batch.positions == [b"4-0", b"6-0"]
    assert batch.place.count == -1
    await server.application.xdel(log.stream_keys[0], "6-0")  # it is copied
    batch = await read(log, batch.place, records=1)
    assert batch.positions == [b"7-0"]
    await server.application.xdel(log.stream_keys[0], "9-0")
    for earlier in (batch.place, place):
        error = await read(log, earlier)
        assert isinstance(error, SourceDeleted)
        assert "up to 9-0" in error.message
    again = (await log.begin([0], Start(From.POSITION, batch.place.position)))[0]
    rest = await read(log, again)
    assert rest.positions == [b"8-0", b"10-0"]
    assert rest.place.count == 10


async def test_what_an_accepted_loss_passes_over_behind_a_failover_is_named_by_verify(server, routes):
    log, _ = routes
    await add(server, log, 1, 2, 3, 4, 5)
    batch = await read(log, (await log.begin([0], Start()))[0])
    target = await server.log(1)
    taken = await target.claim(Owner("one", "me", "digest", paths=((0, 0),)), ((0, 0),))
    await target.append(taken, [Write((0, 0), batch.positions, batch.rows, batch.place)])
    await server.regress(log, 0, 2)
    await server.application.xadd(log.stream_keys[0], {"new": 1}, id="4-0")  # as one that is copied
    await server.application.xadd(log.stream_keys[0], {"new": 2}, id="4-1")
    error = await read(log, batch.place)
    assert isinstance(error, SourceRegressed)
    assert f"with ids up to {batch.place.position}" in error.message
    await add(server, log, 6)
    batch = await read(log, (await log.begin([0], Start(From.POSITION, error.position)))[0])
    assert batch.positions == [b"6-0"]
    await target.append(taken, [Write((0, 0), batch.positions, batch.rows, batch.place)])
    report = await audit(log, target, mapping_named("lossless"), route_id="one", lanes=[0])
    assert report.lanes[0].counts == {Kind.ALTERED: 1, Kind.MISSING: 1, Kind.EXTRA: 1}  # 4-0, 4-1; 5-0 was lost


async def test_a_source_without_memory_for_its_birth_is_waited_for_and_says_what_to_do(server, routes):
    if server.settings.mode != "standalone":
        pytest.skip("each server has a limit of its own")
    one, other = routes
    await add(server, one, 1)
    place = (await one.begin([0], Start()))[0]
    await server.application.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(Unreachable, match=r"used memory .*is above maxmemory") as told:
            await other.begin([0], Start())
        assert told.value.kind is Treatment.RETRY
        if "valkey_version" in await server.application.info("server"):  # Redis refuses transactions then, so all reads
            assert f"giving {one.lane_name(0)} a birth" in told.value.message
            assert "raise maxmemory" in told.value.hint
            assert "a few hundred bytes" in told.value.hint
            # what has its birth is copied all the same
            assert (await one.begin([0], Start()))[0] == place
            assert (await read(one, place)).positions == [b"1-0"]
    finally:
        await server.application.config_set("maxmemory", "0")
    assert (await other.begin([0], Start()))[0].incarnation.startswith("crossfade.two.")


async def test_a_source_key_of_another_type_takes_its_lane_out_alone(server):
    log = await server.log(2)
    places = await log.begin([0, 1], Start())
    await server.application.xadd(log.stream_keys[1], {"n": 1})
    await server.application.set(log.stream_keys[0], "text")
    outcomes = await log.read(places, 100, 1 << 20, 0.1)
    assert isinstance(outcomes[0], SourceReset)
    assert outcomes[0].message == f"{log.lane_name(0)}: the key holds something else than a stream"
    assert len(outcomes[1].rows) == 1
    # nobody who looks at all lanes falls over it; whoever reads is told
    bounds = await log.bounds([0, 1])
    assert (bounds[0].first, bounds[0].last, bounds[0].count, bounds[1].count) == ("", "", 0, 1)
    begun = await log.begin([0, 1], Start())
    assert isinstance(begun[0], SourceReset)
    assert begun[1] == places[1]
    report = await audit(log, log, mapping_named("lossless"), route_id="route", lanes=[0])
    assert isinstance(report.lanes[0].error, SourceReset)
    # behind the accepted loss all is new
    await server.application.delete(log.stream_keys[0])
    place = (await log.begin([0], Start()))[0]
    assert place.incarnation not in ("", places[0].incarnation)


async def test_the_end_of_a_lane_is_told_though_another_gets_a_record_meanwhile(server):
    """It is told once: who waits for it would wait for ever."""
    log = await make_redis_log(server.settings, 2, f"source-{secrets.token_hex(4)}", route="one")
    try:
        for key in log.stream_keys:
            await server.application.xadd(key, {"n": 1}, id="1-0")
        places = {}
        for lane in (0, 1):  # read to the end, which no read has told yet
            start = (await log.begin([lane], Start()))[lane]
            places[lane] = (await log.read({lane: start}, 1, 1 << 20, 0.0))[lane].place
        reading = asyncio.ensure_future(log.read(places, 100, 1 << 20, 60.0))
        await asyncio.sleep(0.3)
        await server.application.xadd(log.stream_keys[1], {"n": 2}, id="2-0")
        found = await reading
        assert found[1].positions == [b"2-0"]
        assert found[0].at_end
        assert found[0].positions == []
    finally:
        await log.close()
