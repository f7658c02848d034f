"""What only a real Redis can show: entry ids, rights, refusals, leases, and what doctor and uninstall say of it."""

import asyncio
import dataclasses
import secrets
import time

import pytest
from redis_fixture import RedisBackend, make_redis_log

from crossfade.brokers.protocol import Appended, Level, Owner, Start
from crossfade.brokers.redis import RedisBoard, RedisInspector, RedisLease, RedisLog, RedisSettings
from crossfade.brokers.redis.discover import count_keys
from crossfade.brokers.redis.keys import state_key
from crossfade.brokers.redis.nodes import Nodes
from crossfade.brokers.redis.packing import VALUES_MAX
from crossfade.brokers.redis.removal import RedisRemover
from crossfade.brokers.redis.rights import acl_line, key_patterns
from crossfade.brokers.removal import Removal
from crossfade.config.shape import RedisBroker, RedisSide
from crossfade.errors import (
    AccessRefused,
    Fenced,
    Indeterminate,
    SourceDeleted,
    TargetFull,
    TargetReset,
    TargetTorn,
    Unreachable,
    UsageError,
)
from crossfade.model.mapping import mapping_named
from crossfade.model.position import Place
from crossfade.model.record import Batch, Write
from crossfade.model.wire import decode_origin
from crossfade.verify.audit import audit
from crossfade.wiring.discovery import discovered_lanes

pytestmark = pytest.mark.lab

PAST = 1_600_000_000_000
DIGEST = "digest-1"


@pytest.fixture(params=["valkey", "redis7"])
async def server(request):
    made = RedisBackend(request.getfixturevalue(f"{request.param}_lab"))
    yield made
    await made.close()


@pytest.fixture
def one_server(server):
    """The same, and a skip where Sentinels or a Cluster with replicas stand in for it."""
    if server.settings.mode != "standalone":
        pytest.skip("only one server is without replicas, and becomes one itself on command")
    return server


async def on_every_node(server, *command):
    """What holds for a server alone, such as users and limits, is said to each primary and replica of a Cluster."""
    client, where = server.application, {}
    if server.settings.mode == "cluster":
        where["target_nodes"] = (await client.initialize()).get_nodes()
    await client.execute_command(*command, **where)


async def claim(log, *paths, route="route-1"):
    paths = paths or ((0, 0),)
    return await log.claim(Owner(route, "one", DIGEST, paths=paths), paths)


def write(numbers, times, *, path=(0, 0), entries=False, fields=None):
    numbers = list(numbers)
    rows = [(fields or [b"v", b"%d" % number], at) for number, at in zip(numbers, times, strict=True)]
    positions = [b"%d-%d" % (PAST + number, number) if entries else number for number in numbers]
    last = positions[-1] if positions else 0
    place = Place(last.decode(), -1, "x") if entries else Place(str(last), last + 1, "x")
    return Write(path, positions, rows, place)


async def there(server, log, lane=0):
    """(id, fields) of everything in a lane."""
    return await server.application.execute_command("XRANGE", log.stream_keys[lane], "-", "+")


def origin_of(fields):
    assert fields[-2] == b"xf"
    return decode_origin(fields[-1])


# --------------------------------------------------------------------------------------------------- entry ids


async def test_an_id_carries_time_and_offset_and_nothing_is_added(server):
    log = await server.log(1)
    taken = await claim(log)
    await log.append(taken, [write([5, 6, 9], [PAST, PAST, PAST + 3])])
    expected = [(PAST, 5), (PAST, 6), (PAST + 3, 9)]
    assert [entry_id for entry_id, _ in await there(server, log)] == [b"%d-%d" % pair for pair in expected]
    assert [fields for _, fields in await there(server, log)] == [[b"v", b"5"], [b"v", b"6"], [b"v", b"9"]]


async def test_a_time_that_falls_travels_in_xf(server):
    log = await server.log(1)
    await log.append(await claim(log), [write([1, 2, 3], [PAST, PAST - 5, PAST + 1])])
    entries = await there(server, log)
    assert [entry_id for entry_id, _ in entries] == [b"%d-1" % PAST, b"%d-2" % PAST, b"%d-3" % (PAST + 1)]
    assert len(entries[0][1]) == len(entries[2][1]) == 2
    origin = origin_of(entries[1][1])
    assert (origin.position, origin.ordinal, origin.time_ms) == ("2", 2, PAST - 5)


async def test_ids_never_run_ahead_of_the_clock(server):
    log = await server.log(1)
    ahead = int(time.time() * 1000) + 10_000_000
    await log.append(await claim(log), [write([1, 2, 3], [ahead, ahead * 1000, PAST])])
    entries = await there(server, log)
    now_ms = time.time() * 1000
    assert all(int(entry_id.partition(b"-")[0]) <= now_ms + 1000 for entry_id, _ in entries)
    assert [origin_of(fields).time_ms for _, fields in entries] == [ahead, ahead * 1000, PAST]
    await server.application.execute_command("XADD", log.stream_keys[0], "*", "an", "application")
    assert len(await there(server, log)) == 4


@pytest.mark.parametrize("time_ms", [0, -1])
async def test_offset_zero_without_a_time_is_no_refused_id(server, time_ms):
    log = await server.log(1)
    await log.append(await claim(log), [write([0, 1], [time_ms, time_ms])])
    entries = await there(server, log)
    assert [entry_id for entry_id, _ in entries] == [b"1-0", b"1-1"]
    assert [origin_of(fields).time_ms for _, fields in entries] == [time_ms, time_ms]


async def test_offsets_beyond_what_lua_prints_stay_exact(server):
    log = await server.log(1)
    numbers = [123_456_789_012_345, 2**53 - 2]
    await log.append(await claim(log), [write(numbers, [PAST, PAST - 1])])
    entries = await there(server, log)
    assert [int(entry_id.partition(b"-")[2]) for entry_id, _ in entries] == numbers
    assert origin_of(entries[1][1]).position == str(numbers[1])


async def test_entries_from_another_redis_keep_their_time_and_carry_xf(server):
    log = await server.log(1)
    await log.append(await claim(log), [write([1, 2, 3], [PAST, PAST, PAST + 7], entries=True)])
    entries = await there(server, log)
    assert [entry_id for entry_id, _ in entries] == [b"%d-0" % PAST, b"%d-1" % PAST, b"%d-0" % (PAST + 7)]
    origins = [origin_of(fields) for _, fields in entries]
    assert [origin.ordinal for origin in origins] == [1, 2, 3]
    assert [origin.position for origin in origins] == [f"{PAST + n}-{n}" for n in (1, 2, 3)]
    assert [origin.time_ms for origin in origins] == [None, None, None]


@pytest.mark.parametrize("times", [[-1], [-1, -1], [-1, PAST + 2]])
async def test_entries_from_another_redis_that_have_no_time_stay_without(server, times):
    """Their first source was a Kafka, whose records may have none (-1): only `xf` told that, and tells it on."""
    log = await server.log(1)
    await log.append(await claim(log), [write(range(1, 1 + len(times)), times, entries=True)])
    entries = await there(server, log)
    assert len(entries) == len(times)
    for (entry_id, fields), time_ms in zip(entries, times, strict=True):
        origin = origin_of(fields)
        assert time_ms == (int(entry_id.partition(b"-")[0]) if origin.time_ms is None else origin.time_ms)


async def test_a_lane_with_records_of_others_gets_ids_of_now_and_xf(server):
    log = await server.log(1)
    await server.application.execute_command("XADD", log.stream_keys[0], "*", "native", "1")
    await log.append(await claim(log), [write([7], [PAST])])
    _, (entry_id, fields) = await there(server, log)
    assert abs(int(entry_id.partition(b"-")[0]) - time.time() * 1000) < 5000
    origin = origin_of(fields)
    assert (origin.position, origin.ordinal, origin.time_ms) == ("7", 1, PAST)


async def test_another_writer_changes_the_form_and_the_next_claim_says_so(server):
    log = await server.log(1)
    first = await claim(log)
    await log.append(first, [write([1], [PAST])])
    await server.application.execute_command("XADD", log.stream_keys[0], "*", "native", "1")
    again = await claim(log)
    assert len(again.alarms) == 1
    assert "1 records by other writers" in again.alarms[0]
    assert again.errors == {}
    await log.append(again, [write([2], [PAST + 1])])
    assert origin_of((await there(server, log))[-1][1]).position == "2"


async def test_several_source_lanes_share_a_target_lane_by_xf(server):
    log = await server.log(1)
    taken = await claim(log, (0, 0), (1, 0))
    await log.append(taken, [write([1], [PAST]), write([1], [PAST], path=(1, 0))])
    assert sorted(origin_of(fields).lane for _, fields in await there(server, log)) == [0, 1]


async def test_processes_that_own_one_source_lane_each_know_of_the_others(server):
    log = await server.log(1)
    await claim(log, (0, 0), (1, 0))  # as `relay start` does
    for source in (0, 1):
        await log.append(await claim(log, (source, 0)), [write([1], [PAST], path=(source, 0))])
    assert [origin_of(fields).lane for _, fields in await there(server, log)] == [0, 1]


# --------------------------------------------------------------------------------------------------- refusals


async def test_the_widest_entry_goes_in_and_a_wider_one_into_quarantine(server):
    log = await server.log(1)
    route = f"route-{secrets.token_hex(4)}"
    taken = await claim(log, route=route)
    for width, entries in ((VALUES_MAX, True), (VALUES_MAX, False)):
        job = write([len(await there(server, log)) + 1], [PAST], entries=entries, fields=[b"f"] * width)
        outcome = (await log.append(taken, [job]))[0, 0]
        assert (outcome.records, outcome.quarantined) == (1, 0)
    wide = write([2**40], [PAST], fields=[b"f"] * (VALUES_MAX + 2))
    wide.quarantine_left = 1
    outcome = (await log.append(taken, [wide]))[0, 0]
    assert (outcome.records, outcome.quarantined, outcome.marker.place) == (0, 1, wide.place)
    ((lane, position, reason),) = await server.quarantined(log, route)
    assert (lane, position) == (0, str(2**40))
    assert "at most" in reason


async def test_a_forgotten_script_is_loaded_again(server):
    log = await server.log(2)
    taken = await claim(log, (0, 0), (1, 1))
    await log.append(taken, [write([1], [PAST])])
    await server.application.script_flush()
    many = write(range(2, 1602), [PAST] * 1600)
    outcomes = await log.append(taken, [many, write([1], [PAST], path=(1, 1))])
    assert [outcome.records for outcome in outcomes.values()] == [1600, 1]
    assert [fields[1] for _, fields in await there(server, log)] == [b"%d" % n for n in range(1, 1602)]
    await server.application.script_flush()
    assert (await claim(log, (0, 0), (1, 1))).epoch == taken.epoch + 1


async def test_out_of_memory_is_the_lanes_trouble_and_writes_nothing(server):
    log = await server.log(1)
    taken = await claim(log)
    await log.append(taken, [write([1], [PAST])])
    await on_every_node(server, "CONFIG", "SET", "maxmemory", "1mb")
    try:
        outcome = (await log.append(taken, [write(range(2, 2002), [PAST] * 2000)]))[0, 0]
        assert isinstance(outcome, TargetFull)
        assert len(await there(server, log)) == 1
        other = await server.log(1)
        outcome = (await other.append(await claim(other), [write([], [])]))[0, 0]
        assert isinstance(outcome, Appended)  # a lane can be started all the same: its marker takes a few bytes
        assert await there(server, other) == []
        taken = await claim(log)  # a full lane waits; claims of the others go on
        board = await server.board()
        assert await board.put(f"test/{secrets.token_hex(4)}", b"1") >= 1
        await board.close()
    finally:
        await on_every_node(server, "CONFIG", "SET", "maxmemory", "0")
    outcome = (await log.append(taken, [write(range(2, 2002), [PAST] * 2000)]))[0, 0]
    assert outcome.records == 2000


async def test_a_memory_budget_stops_before_the_server_does(server):
    log = await server.log(1)
    bounded = await make_redis_log(server.settings, 1, log.name, memory_bytes_max=1000)
    outcome = (await bounded.append(await claim(bounded), [write([1], [PAST])]))[0, 0]
    assert isinstance(outcome, TargetFull)
    assert "budget" in outcome.message
    assert isinstance((await bounded.append(await claim(bounded), [write([], [])]))[0, 0], Appended)
    assert await there(server, log) == []
    await bounded.close()


async def test_a_target_key_that_was_deleted_is_reset(server):
    log = await server.log(1)
    taken = await claim(log)
    await log.append(taken, [write([1, 2], [PAST, PAST])])
    await server.application.delete(log.stream_keys[0])
    outcome = (await log.append(taken, [write([3], [PAST])]))[0, 0]
    assert isinstance(outcome, TargetReset)
    assert isinstance((await claim(log)).errors[0, 0], TargetReset)
    # made anew and grown past the marker: fewer entries were ever added than we added
    await server.application.execute_command("XADD", log.stream_keys[0], "*", "other", "1")
    assert isinstance((await claim(log)).errors[0, 0], TargetReset)


@pytest.mark.parametrize("way", ["deleted", "renamed", "deleted and trimmed"])
async def test_a_target_key_that_others_have_filled_anew_is_reset(server, way):
    """More was added to it than the marker covers, and it ends behind the marker: as beside other writers."""
    log = await server.log(1)
    key = log.stream_keys[0]
    taken = await claim(log)
    await log.append(taken, [write([1, 2, 3], [PAST] * 3)])
    filled = key if way != "renamed" else b"{%b}:new" % key
    await server.application.delete(filled)
    for number in range(5):
        await server.application.xadd(filled, {"other": number})
    if way == "renamed":
        await server.application.execute_command("RENAME", filled, key)
    if way == "deleted and trimmed":
        await server.application.xtrim(key, maxlen=3, approximate=False)
    assert isinstance((await log.append(taken, [write([4], [PAST])]))[0, 0], TargetReset)
    again = await claim(log)
    assert isinstance(again.errors[0, 0], TargetReset)
    assert again.alarms == []
    assert all(fields[0] == b"other" for _, fields in await there(server, log))


async def test_beside_other_writers_whatever_is_removed_is_no_reset(server):
    """What others add, trim and delete around our records: the key is the same one, and the counters say so."""
    log = await server.log(1)
    key, client = log.stream_keys[0], server.application

    async def others(number):
        for _ in range(number):
            await client.xadd(key, {"other": 1})

    async def delete_all():
        await client.xdel(key, *[entry_id for entry_id, _ in await there(server, log)])

    async def restore():
        dump = await client.dump(key)
        await client.delete(key)
        await client.restore(key, 0, dump)

    async def skip_ids():
        ms, _, number = (await client.xinfo_stream(key))["last-generated-id"].partition(b"-")
        await client.execute_command("XSETID", key, b"%b-%d" % (ms, int(number) + 1))

    removals = [
        lambda: client.xtrim(key, maxlen=2, approximate=False),
        lambda: client.xtrim(key, maxlen=0, approximate=False),
        lambda: client.xadd(key, {"other": 2}, maxlen=1, approximate=False),
        lambda: client.xadd(key, {"other": 2}, maxlen=0, approximate=False),
        delete_all,
        restore,
        skip_ids,
    ]
    offset = 0
    for behind in (0, 1, 4):  # what others write behind the removal
        for remove in removals:
            taken = await claim(log)
            for again in (False, True):
                offset += 3
                outcome = (await log.append(taken, [write(range(offset, offset + 3), [PAST] * 3)]))[0, 0]
                assert isinstance(outcome, Appended), (behind, again)
                await others(3)
                await remove()
                await others(behind)
            assert (await claim(log)).errors == {}


async def test_a_marker_ahead_of_its_stream_is_torn(server):
    log = await server.log(1)
    taken = await claim(log)
    await log.append(taken, [write([1, 2, 3], [PAST] * 3)])
    await server.regress(log, 0, 1)
    counters = ("ENTRIESADDED", 3, "MAXDELETEDID", "0-0")
    await server.application.execute_command("XSETID", log.stream_keys[0], f"{PAST}-2", *counters)
    assert isinstance((await log.append(taken, [write([4], [PAST])]))[0, 0], TargetTorn)
    assert isinstance((await claim(log)).errors[0, 0], TargetTorn)


async def test_a_target_key_of_another_type_takes_its_lane_out_alone(server):
    log = await server.log(2)
    older = await claim(log, (0, 0), (1, 1))
    await log.append(older, [write([1], [PAST]), write([1], [PAST], path=(1, 1))])
    await server.application.set(log.stream_keys[0], "text")
    taken = await claim(log, (0, 0), (1, 1))
    assert list(taken.errors) == [(0, 0)]
    error = taken.errors[0, 0]
    assert isinstance(error, TargetTorn)
    assert log.lane_name(0) in error.message
    assert "WRONGTYPE" in error.message
    assert taken.markers[0, 0].ordinal == 1
    assert (await log.append(taken, [write([2], [PAST], path=(1, 1))]))[1, 1].records == 1
    # the older claim is fenced there as well, whatever stands at the key by then
    await server.application.delete(log.stream_keys[0])
    with pytest.raises(Fenced):
        await log.append(older, [write([2], [PAST])])
    assert isinstance((await claim(log, (0, 0), (1, 1))).errors[0, 0], TargetReset)


async def test_state_that_vanished_fences(server):
    log = await server.log(1)
    taken = await claim(log)
    await log.append(taken, [write([1], [PAST])])
    await server.application.delete(state_key(log.stream_keys[0]))
    with pytest.raises(Fenced):
        await log.append(taken, [write([2], [PAST])])
    assert len(await there(server, log)) == 1
    assert (await claim(log)).markers == {}


async def test_behind_another_marker_than_the_one_left_nothing_is_written(server):
    """The claim stands, but its last write does not: a server that lost it must get it again, not the next one."""
    log = await server.log(1)
    taken = await claim(log)
    await log.append(taken, [write([1], [PAST])])
    key = state_key(log.stream_keys[0])
    before = await server.application.hget(key, "m:0")
    await log.append(taken, [write([2], [PAST])])
    await server.application.hset(key, "m:0", before)
    with pytest.raises(Indeterminate):
        await log.append(taken, [write([3], [PAST])])
    assert len(await there(server, log)) == 2


async def test_markers_can_be_read_without_a_claim(server):
    log = await server.log(2)
    taken = await claim(log, (0, 0), (1, 1))
    outcome = (await log.append(taken, [write([4], [PAST])]))[0, 0]
    alone = await make_redis_log(server.settings, 2, log.name, route=taken.owner.route)
    assert await alone.markers_of(taken.owner.route, [(0, 0), (1, 1)]) == {(0, 0): outcome.marker}
    await alone.close()
    assert isinstance((await log.append(taken, [write([5], [PAST])]))[0, 0], Appended)


# --------------------------------------------------------------------------------------------------- source


async def test_deletions_are_counted_where_the_policy_says_so(server):
    strict = await server.log(1)
    lenient = await make_redis_log(server.settings, 1, strict.name, deleted="count")
    place = (await strict.begin([0], Start()))[0]
    ids = [await server.application.xadd(strict.stream_keys[0], {"n": n}) for n in range(10)]
    await server.application.xdel(strict.stream_keys[0], ids[3], ids[9])
    error = (await strict.read({0: place}, 100, 1 << 20, 0.1))[0]
    assert isinstance(error, SourceDeleted)
    assert error.lost_records == 2
    batch = (await lenient.read({0: place}, 100, 1 << 20, 0.1))[0]
    assert isinstance(batch, Batch)
    assert (len(batch.rows), batch.place.count, batch.deleted) == (8, 10, 2)
    assert (await lenient.bounds([0]))[0].count == 10
    await lenient.close()


async def test_a_restart_of_the_counters_is_no_loss_when_the_place_is_still_there(server):
    log = await server.log(1)
    place = (await log.begin([0], Start()))[0]
    for number in range(5):
        await server.application.xadd(log.stream_keys[0], {"n": number})
    batch = (await log.read({0: place}, 3, 1 << 20, 0.1))[0]
    digest, _, history = batch.place.witness.partition(".")
    assert len(history) == 8
    other = Place(batch.place.position, batch.place.count, batch.place.incarnation, f"{digest}.00000000")
    rest = (await log.read({0: other}, 10, 1 << 20, 0.1))[0]
    assert len(rest.rows) == 2


async def test_times_are_read_from_ids_as_large_as_they_come(server):
    log = await server.log(1)
    ids = [b"0-1", b"7-0", b"%d-3" % PAST, b"18446744073709551615-18446744073709551615"]
    for entry_id in ids:
        await server.application.execute_command("XADD", log.stream_keys[0], entry_id, "v", "1")
    batch = (await log.read({0: Place()}, 10, 1 << 20, 1.0))[0]
    assert list(batch.positions) == ids
    assert [time_ms for _, time_ms in batch.rows] == [0, 7, PAST, 2**64 - 1]


async def test_a_large_entry_passes_and_small_ones_are_not_starved(server):
    log = await server.log(2)
    places = await log.begin([0, 1], Start())
    await server.application.xadd(log.stream_keys[0], {"v": b"x" * 3_000_000})
    for number in range(50):
        await server.application.xadd(log.stream_keys[1], {"n": number})
    counts = {0: 0, 1: 0}
    for _ in range(20):
        for lane, batch in (await log.read(places, 10, 10_000, 0.1)).items():
            counts[lane] += len(batch.rows)
            places[lane] = batch.place
    assert counts == {0: 1, 1: 50}


async def test_a_reader_wakes_up_within_milliseconds(server):
    log = await server.log(4)
    places = await log.begin(range(4), Start())
    waits = []
    for _ in range(10):
        reading = asyncio.create_task(log.read(places, 100, 1 << 20, 5.0))
        await asyncio.sleep(0.1)
        written = time.monotonic()
        await server.application.xadd(log.stream_keys[2], {"n": 1})
        batches = await reading
        waits.append(time.monotonic() - written)
        places |= {lane: batch.place for lane, batch in batches.items()}
    assert sorted(waits)[5] < 0.2


async def test_reading_what_replicas_have_needs_a_replica(one_server):
    server = one_server
    log = await server.log(1)
    impatient = RedisSettings(server.settings.addresses, request_timeout_s=0.5)
    careful = RedisLog(impatient, log.stream_keys, name=log.name, read="replicated")
    place = (await careful.begin([0], Start()))[0]
    await server.application.xadd(log.stream_keys[0], {"n": 1})
    with pytest.raises(Unreachable, match="0 of 1 replicas"):
        await careful.read({0: place}, 10, 1 << 20, 0.1)
    await careful.close()


# --------------------------------------------------------------------------------------------------- rights


@pytest.fixture
async def users(server):
    """Settings of two users who have exactly what `--print-acls` lists, for source and target."""
    prefix = f"acl-{secrets.token_hex(4)}"
    keys = [f"{prefix}:{lane}" for lane in range(2)]
    made = {}
    for role in ("source", "target"):
        name = f"{role}-{secrets.token_hex(4)}"
        made[role] = dataclasses.replace(server.settings, username=name, password=lambda: "secret")
        line = acl_line(made[role], {role: key_patterns([key.encode() for key in keys])})
        await on_every_node(server, *line.split(), ">secret")
    yield keys, made
    for settings in made.values():
        await on_every_node(server, "ACL", "DELUSER", settings.username)


async def test_the_printed_rights_are_enough(server, users):
    keys, settings = users
    source = RedisLog(settings["source"], keys, name="acl")
    target = RedisLog(settings["target"], keys, name="acl")
    board = RedisBoard(settings["target"])
    await source.open()
    await target.open()
    places = await source.begin([0, 1], Start())
    assert all(place.incarnation for place in places.values())
    taken = await claim(target, (0, 1))
    job = write([1], [PAST], path=(0, 1), fields=[b"f"] * (VALUES_MAX + 2))
    job.quarantine_left = 1
    assert (await target.append(taken, [job]))[0, 1].quarantined == 1
    assert (await target.append(taken, [write([2], [PAST], path=(0, 1))]))[0, 1].records == 1
    assert len((await source.read(places, 10, 1 << 20, 0.1))[1].rows) == 1
    await source.bounds([0, 1])
    await board.put("name", b"1")
    assert (await board.list("na"))["name"].body == b"1"
    await board.delete("name")
    for made in (source, target, board):
        await made.close()


async def test_a_hole_keeps_no_lane_before_it_from_being_discovered(server, monkeypatch):
    """Producers make their keys in any order: what has no gap before it is followed, the hole is told beside it."""
    stem = f"{{discovered}}:{secrets.token_hex(4)}:"

    def key_of(lane):
        return f"{stem}{lane}"

    for lane in (0, 1, 5, 2):
        await server.application.xadd(key_of(lane), {"n": 1})
    nodes = Nodes(server.settings)
    with pytest.raises(UsageError, match=rf"no stream {stem}3, but {stem}5 is one"):
        await count_keys(nodes, key_of)
    assert await count_keys(nodes, key_of, known=2) == 3
    with pytest.raises(UsageError, match=rf"no stream {stem}3, but {stem}5 is one"):
        await count_keys(nodes, key_of, known=3)
    await nodes.close()
    log = RedisLog(server.settings, [key_of(lane).encode() for lane in range(2)], name="a", key_of=key_of)
    await log.open()
    assert await log.count_lanes() == 3
    await log.close()
    monkeypatch.setattr("crossfade.wiring.discovery.redis_settings", lambda at: server.settings)
    side, at = RedisSide(lanes=f"{stem}<lane>"), RedisBroker(url="redis://unused")
    assert await discovered_lanes(at, side, known=3) == 3
    with pytest.raises(UsageError):
        await discovered_lanes(at, side, known=0)


async def test_the_printed_rights_are_enough_to_discover_verify_repair_and_uninstall(server, users):
    """The source's account reads a stream, the target's account writes another: all that the README does with them."""
    keys, settings = users
    route = f"route-{secrets.token_hex(4)}"
    await server.application.xadd(keys[0], {"n": 1})
    nodes = Nodes(settings["source"])
    assert await count_keys(nodes, lambda lane: f"{keys[0][:-1]}{lane}") == 1
    await nodes.close()

    source = RedisLog(settings["source"], keys[:1], name="acl", route=route)
    target = RedisLog(settings["target"], keys[1:], name="acl")
    board = RedisBoard(settings["target"])
    await source.open()
    await target.open()
    places = await source.begin([0], Start())
    batch = (await source.read(places, 10, 1 << 20, 0.1))[0]
    taken = await claim(target, route=route)
    wide = write([1], [PAST], entries=True, fields=[b"f"] * (VALUES_MAX + 2))
    wide.quarantine_left = 1
    await target.append(taken, [wide])
    await target.append(taken, [Write((0, 0), batch.positions, batch.rows, batch.place)])
    await board.put(f"started/{route}", b"1")

    quarantined = await target.quarantined(route)
    assert quarantined == {0: {f"{PAST + 1}-1"}}
    report = await audit(source, target, mapping_named("lossless"), route_id=route, lanes=[0], is_settled=True)
    assert report.lanes[0].matched == 1
    remover = RedisRemover(target.nodes, target.stream_keys)
    (entry,) = await there(server, target)
    found = await remover.entries(0, [entry[0].decode()])
    assert list((await remover.remove(0, found)).values()) == [Removal.REMOVED]
    for made in (source, target, board):
        await made.close()

    for role, own in (("target", keys[1:]), ("source", keys[:1])):  # as uninstall goes
        inspector = RedisInspector(settings[role], own)
        assert route in await inspector.routes()
        board = RedisBoard(settings[role])
        await board.list(f"status/{route}/")  # it is refused while a relay reports
        await board.close()
        left = await inspector.footprint(route)
        assert left
        await inspector.erase(route, left)
        assert await inspector.footprint(route) == []


async def test_a_missing_right_is_named(server, users):
    keys, settings = users
    source = RedisLog(settings["source"], keys, name="acl")
    with pytest.raises(AccessRefused, match="script") as caught:
        await claim(source)
    assert "+script|load" in caught.value.hint
    await source.close()

    target = RedisLog(settings["target"], keys, name="acl")
    taken = await claim(target)
    await on_every_node(server, "ACL", "SETUSER", settings["target"].username, "-xadd")
    with pytest.raises(AccessRefused, match="XADD"):
        await target.append(taken, [write([1], [PAST])])
    assert await there(server, target) == []
    await target.close()


async def test_without_the_right_to_make_groups_the_birth_is_empty(server, users):
    keys, settings = users
    user = settings["source"].username
    await on_every_node(server, "ACL", "SETUSER", user, "-xgroup")
    await server.application.xadd(keys[0], {"n": 1})
    source = RedisLog(settings["source"], keys, name="acl")
    place = (await source.begin([0], Start()))[0]
    assert place == Place("", 0, "")
    assert len((await source.read({0: place}, 10, 1 << 20, 0.1))[0].rows) == 1
    await on_every_node(server, "ACL", "SETUSER", user, "+acl")
    findings = {found.check: found for found in await RedisInspector(settings["source"], keys).inspect("source", 0)}
    assert findings["redis.acl"].level is Level.WARN
    assert "xgroup|create" in findings["redis.acl"].found
    await source.close()


# --------------------------------------------------------------------------------------------------- operations


async def test_doctor_names_what_is_wrong(server):
    prefix = f"doctor-{secrets.token_hex(4)}"
    keys = [f"{prefix}:{lane}" for lane in range(4)]
    old_ms = int(time.time() * 1000) - 60_000
    for number in range(20):
        await server.application.execute_command("XADD", keys[0], f"{old_ms + number}-0", "n", number)
    await server.application.xtrim(keys[0], maxlen=5, approximate=False)
    await server.application.execute_command("XADD", keys[1], f"{old_ms * 2}-0", "n", 1)
    await server.application.set(keys[2], "text")
    await on_every_node(server, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        inspector = RedisInspector(server.settings, keys)
        findings = await inspector.inspect("source", 3600.0)
    finally:
        await on_every_node(server, "CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert inspector.oldest_s == pytest.approx(60, abs=30)
    levels = {found.check: found.level for found in findings}
    assert levels["redis.version"] is Level.OK
    assert levels["redis.eviction"] is Level.FAIL
    assert levels["redis.keys"] is Level.FAIL
    assert levels["redis.trimming"] is Level.WARN
    assert levels["redis.ids"] is Level.WARN
    assert levels["redis.clock"] is Level.OK
    assert levels["redis.acl"] is Level.OK
    assert levels["redis.replicas"] is Level.WARN
    assert all(found.fix for found in findings if found.level is not Level.OK)


async def test_what_may_not_be_asked_is_unknown(server, users):
    keys, settings = users
    findings = await RedisInspector(settings["target"], keys).inspect("target", 0.0)
    levels = {found.check: found.level for found in findings}
    assert levels["redis.acl"] is Level.UNKNOWN
    assert levels["redis.version"] is Level.OK
    await on_every_node(server, "ACL", "SETUSER", settings["target"].username, "-info", "-time")
    findings = await RedisInspector(settings["target"], keys).inspect("target", 0.0)
    levels = {found.check: found.level for found in findings}
    assert (levels["redis.version"], levels["redis.clock"]) == (Level.UNKNOWN, Level.UNKNOWN)


async def test_everything_that_was_left_is_listed_and_goes(server):
    target = await server.log(2)
    route = f"route-{secrets.token_hex(4)}"
    source = await make_redis_log(server.settings, 1, f"source-{secrets.token_hex(4)}", route=route)
    board = await server.board()
    await source.begin([0], Start())
    taken = await claim(target, (0, 0), (1, 1), route=route)
    wide = write([1], [PAST], fields=[b"f"] * (VALUES_MAX + 2))
    wide.quarantine_left = 1
    await target.append(taken, [wide, write([1], [PAST], path=(1, 1))])
    await board.put(f"started/{route}", b"1")
    await board.put(f"status/{route}/one", b"1")
    await board.put("started/other-route", b"1")
    listener = _Owned()
    leases = asyncio.create_task(RedisLease(server.settings, route=route, lanes=2, instance="one").run(listener))
    await until(lambda: len(listener.lanes) == 2)

    sides = [RedisInspector(server.settings, log.stream_keys) for log in (source, target)]
    named = [name for side in sides for name in await side.footprint(route)]
    leases.cancel()
    assert sorted({name.split(" ")[0] for name in named}) == ["document", "group", "key"]
    assert len([name for name in named if name.startswith("document")]) == 4  # both sides see the same board
    assert not any("other-route" in name for name in named)
    assert any("quarantine" in name for name in named)
    assert any("lease" in name for name in named)
    for side in sides:
        assert {route, "other-route"} <= await side.routes()
    for side in sides:
        await side.erase(route, await side.footprint(route))
    assert [name for side in sides for name in await side.footprint(route)] == []
    for side in sides:
        assert route not in await side.routes()
    assert len(await there(server, target, 1)) == 1, "records are never removed"
    assert await board.get("started/other-route") is not None
    with pytest.raises(Exception, match="nothing that Crossfade made"):
        await sides[0].erase(route, [f"key {source.lane_name(0)}"])
    await board.close()
    await source.close()


class _Owned:
    """A listener that remembers."""

    def __init__(self):
        self.lanes = frozenset()
        self.lost_lanes = frozenset()

    async def assigned(self, lanes, token):
        self.lanes = lanes

    async def revoked(self, lanes):
        self.lanes -= lanes

    async def lost(self, lanes):
        self.lanes -= lanes
        self.lost_lanes |= lanes


async def until(fact, wait_s=20.0):
    """Wait until `fact()` holds."""
    end = time.monotonic() + wait_s
    while not fact():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_leases_share_lanes_and_hand_them_over(server):
    route = secrets.token_hex(4)

    def member(name):
        listener = _Owned()
        lease = RedisLease(server.settings, route=route, lanes=5, instance=name, ttl_s=1.0)
        return listener, asyncio.create_task(lease.run(listener))

    one, one_task = member("one")
    await until(lambda: one.lanes == frozenset(range(5)))
    two, two_task = member("two")
    await until(lambda: len(two.lanes) == 2 and len(one.lanes) == 3)
    assert one.lanes | two.lanes == frozenset(range(5))
    two_task.cancel()  # leaves
    await until(lambda: len(one.lanes) == 5)
    again, again_task = member("one")  # the same name back
    with pytest.raises(Fenced, match="took the name 'one'"):
        await one_task
    assert one.lost_lanes == frozenset(range(5))
    await until(lambda: len(again.lanes) == 5)
    again_task.cancel()
    await asyncio.gather(two_task, again_task, return_exceptions=True)


async def test_a_lease_that_is_not_renewed_runs_out(server):
    route = secrets.token_hex(4)
    dead = RedisLease(server.settings, route=route, lanes=3, instance="dead", ttl_s=1.0)
    await dead._tick(_Owned(), "join")
    alive = _Owned()
    task = asyncio.create_task(
        RedisLease(server.settings, route=route, lanes=3, instance="alive", ttl_s=1.0).run(alive)
    )
    await until(lambda: len(alive.lanes) == 3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await dead._nodes.close()


async def test_a_lease_from_before_the_clock_went_back_runs_out_too(server):
    route = secrets.token_hex(4)
    key, far_ms = f"crossfade:lease:{route}", int(time.time() * 1000) + 3_600_000
    fields = dict.fromkeys(("m:dead", "m:living"), f"nonce {far_ms}") | {"l:0": "dead", "l:1": "living"}
    await server.application.hset(key, mapping=fields)
    joining, waiting = time.monotonic(), _Owned()
    lease = RedisLease(server.settings, route=route, lanes=2, instance="anew", ttl_s=1.0)
    task = asyncio.create_task(lease.run(waiting))
    living = RedisLease(server.settings, route=route, lanes=2, instance="living", ttl_s=1.0)
    living._nonce = "nonce"
    while not waiting.lanes:
        assert time.monotonic() - joining < 20
        # who still renews is no more cut off than waited for
        assert (await living._call("renew", frozenset()))[0] >= {1}
        await asyncio.sleep(0.1)
    assert time.monotonic() - joining > 0.9
    assert b"m:dead" not in await server.application.hgetall(key)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await living._nodes.close()


async def test_a_replica_is_not_taken_for_the_primary(one_server):
    server = one_server
    nodes = Nodes(server.settings)
    log = await server.log(1)
    await server.application.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(Unreachable, match="replica"):
            await nodes.of_key(b"k")
        # a connection from before the change notices it too
        with pytest.raises(Unreachable, match="replica"):
            await log.bounds([0])
    finally:
        await server.application.execute_command("REPLICAOF", "NO", "ONE")
    assert (await log.bounds([0]))[0].length == 0
    await nodes.close()
