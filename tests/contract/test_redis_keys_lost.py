"""A Redis target that has lost all of Crossfade's own keys and kept its streams: nothing is copied into it again."""

from dataclasses import replace

import pytest
from backends import MemoryBackend
from redis_fixture import RedisBackend

from crossfade.brokers.memory import MemoryBoard, MemoryBroker
from crossfade.brokers.protocol import From, Owner, Start
from crossfade.brokers.redis import RedisLog
from crossfade.errors import MarkerLost, TargetTorn
from crossfade.model.mapping import mapping_named
from crossfade.model.position import Place
from crossfade.model.record import Batch, Shape, Write
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


def rows(shape, first=0, last=RECORDS):
    if shape is Shape.ENTRY:
        return [([b"value", b"%d" % number], PAST + number) for number in range(first, last)]
    return [(b"k", b"%d" % number, None, PAST + number) for number in range(first, last)]


async def start(source, target, where, lanes=(0,), *, route=ROUTE, **how):
    board = RouteBoard(MemoryBoard(MemoryBroker()), route.id)
    return await start_lanes(route, source, target, board, where, list(lanes), **how)


async def copy(source, target, place, path=(0, 0)):
    """What a relay copies."""
    claim = await target.claim(Owner(ROUTE.id, "a", ROUTE.source, paths=(path,)), [path])
    is_end = False
    while not is_end:
        batch = (await source.read({path[0]: place}, 5000, 1 << 20, 2.0))[path[0]]
        copied = mapping_named("lossless").translate(batch, Shape.ENTRY)
        await target.append(claim, [Write(path, batch.positions, copied.rows, batch.place)])
        place, is_end = batch.place, batch.at_end


async def lose_keys(server, target):
    for key in target.stream_keys:
        await server.application.delete(b"crossfade:lane:{" + key + b"}")


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
    await lose_keys(server, target)
    await server.application.xtrim(target.stream_keys[0], maxlen=left, approximate=False)
    last = (await source.bounds([0]))[0].last
    await there.write_native(source, 0, rows(shape, RECORDS, RECORDS + 1))
    for where in (Start(), Start(From.LATEST)):
        with pytest.raises(MarkerLost, match="holds copies of"):
            await start(source, target, where)
    assert set(await start(source, target, Start(From.POSITION, last), by_hand=True)) == {0}


@pytest.mark.parametrize("shape", Shape)
async def test_a_start_that_goes_on_from_the_last_copy_is_none_anew(server, shape):
    """Between two Redis also the way back, with a route of its own."""
    there = server if shape is Shape.ENTRY else MemoryBackend(Shape.RECORD)
    source, target = await there.log(1), await server.log(1)
    await there.write_native(source, 0, rows(shape))
    await copy(source, target, (await start(source, target, Start()))[0])
    await lose_keys(server, target)
    if shape is Shape.ENTRY:
        with pytest.raises(MarkerLost, match="equal both in id and content"):
            await start(target, source, Start())
        assert set(await start(target, source, Start(From.LATEST))) == {0}
    assert set(await start(source, target, Start(From.LATEST))) == {0}


@pytest.mark.parametrize("before", [63, 64, 70, 900])
async def test_marks_are_found_behind_entries_of_others(server, before):
    """A server is asked for few entries at first, as they may be large."""
    source, target = await server.log(1), await server.log(1)
    for number in range(before):
        await server.application.xadd(target.stream_keys[0], {b"theirs": b"1"}, id=b"%d-7" % (PAST + number))
    await server.write_native(source, 0, rows(Shape.ENTRY))
    await copy(source, target, (await start(source, target, Start()))[0])
    await lose_keys(server, target)
    with pytest.raises(MarkerLost, match="carries the route's mark"):
        await start(source, target, Start())


@pytest.mark.parametrize("is_long", [False, True])
async def test_an_id_that_is_equal_by_chance_is_no_copy(server, is_long):
    """At the end of a target whose last entry is read, and of one whose last entry is far from its beginning."""
    source, target = await server.log(1), await server.log(1)
    await server.write_native(source, 0, rows(Shape.ENTRY))
    for number in range(1100 if is_long else 2):
        await server.application.xadd(target.stream_keys[0], {b"theirs": b"1"}, id=b"%d-0" % (PAST - 2000 + number))
    await server.application.xadd(target.stream_keys[0], {b"theirs": b"1"}, id=b"%d-0" % (PAST + 2))
    assert set(await start(source, target, Start())) == {0}


async def test_a_copy_far_from_the_beginning_is_known_by_id_and_content(server):
    """Where retention has taken the first originals, and the target is longer than what is looked through."""
    source, target = await server.log(1), await server.log(1)
    await server.write_native(source, 0, rows(Shape.ENTRY, 0, 1200))
    await copy(source, target, (await start(source, target, Start()))[0])
    await lose_keys(server, target)
    await server.trim(source, 0, 50)
    await server.write_native(source, 0, rows(Shape.ENTRY, 1200, 1210))
    with pytest.raises(MarkerLost, match=f"{PAST + 1199}-0 is equal both in id and content"):
        await start(source, target, Start())


async def test_by_key_a_new_lane_may_have_the_ids_of_others(server):
    """All lanes are written to at a time; their copies stand in every target lane."""
    route = replace(ROUTE, source_lanes=2, target_lanes=2, lane_map=LaneMap.BY_KEY)
    source, target = await server.log(2), await server.log(2)
    for lane in range(2):
        await server.write_native(source, lane, rows(Shape.ENTRY))
    places = await start(source, target, Start(), [0], route=route)
    for at in range(2):
        await copy(source, target, places[0], (0, at))
    assert set(await start(source, target, Start(), [1], route=route)) == {1}


@pytest.mark.parametrize("shape", Shape)
async def test_entries_of_others_do_not_hold_up_a_start(server, shape):
    there = server if shape is Shape.ENTRY else MemoryBackend(Shape.RECORD)
    source, target = await there.log(1), await server.log(1)
    await there.write_native(source, 0, rows(shape))
    for number in range(3):
        await server.application.xadd(target.stream_keys[0], {b"theirs": b"1"}, id=b"%d-7" % (PAST + number))
    assert set(await start(source, target, Start())) == {0}


async def write_others(server, key, count):
    for _ in range(count):
        await server.application.xadd(key, {"n": 1})


@pytest.mark.parametrize(
    "case", ["mixed", "exclusive", "by key", "others came since", "between others", "not begun", "long", "long before"]
)
async def test_an_older_marker_that_was_put_back_copies_nothing_twice(server, case):
    """From a backup of `crossfade:*`, say: the copies behind what it covers are seen, and the lane halts.

    A position to start behind is named only where the last copy was seen.
    """
    there, lanes, route = MemoryBackend(Shape.RECORD), [0], ROUTE
    if case == "by key":  # every copy carries a mark, also where nobody else writes
        lanes, route = [0, 1], replace(ROUTE, source_lanes=2, target_lanes=1, lane_map=LaneMap.BY_KEY)
    source, target = await there.log(len(lanes)), await server.log(1)
    key = target.stream_keys[0]
    state = b"crossfade:lane:{" + key + b"}"
    await write_others(server, key, 1 if case in ("mixed", "between others", "not begun", "long") else 0)
    for lane in lanes:
        await there.write_native(source, lane, rows(Shape.RECORD))
    places = await start(source, target, Start(), lanes, route=route)
    for lane in lanes if case != "not begun" else []:
        await copy(source, target, places[lane], (lane, 0))
    backup = await server.application.dump(state)
    owner, paths = Owner(ROUTE.id, "a", ROUTE.source), [(lane, 0) for lane in lanes]
    markers = (await target.claim(owner, paths)).markers
    await write_others(server, key, {"others came since": 1, "between others": 9, "long before": 1}.get(case, 0))
    last = RECORDS + (1100 if case.startswith("long") else 60)
    for lane in lanes:
        await there.write_native(source, lane, rows(Shape.RECORD, RECORDS, last))
        await copy(source, target, markers[lane, 0].place, (lane, 0))
    await write_others(server, key, {"others came since": 1, "between others": 9, "long": 1}.get(case, 0))
    count = await server.application.xlen(key)
    assert not (await target.claim(owner, paths)).errors
    await server.application.restore(state, 0, backup, replace=True)
    for _ in range(2):  # a claim that has seen it does not hide it from the next one
        claim = await target.claim(owner, paths)
        assert set(claim.errors) == set(paths)
        assert all(isinstance(error, TargetTorn) for error in claim.errors.values())
    *others, error = claim.errors.values()
    # Where not all was read, the copy at the end may be one that an application has moved there.
    is_told = case not in ("others came since", "long", "long before")
    assert ("at least up to" in error.message) is not is_told
    assert f"--from position:{last - 1 if is_told else '...'}`" in error.hint
    assert "crossfade verify" in error.hint
    for other in others:  # its last copy may be anywhere before those of the last lane
        assert "--from position:...`" in other.hint
        assert "markers of source lanes 0, 1:" in other.hint
    assert await server.application.xlen(key) == count


async def test_a_single_copy_behind_an_older_marker_is_known_by_its_offset(server):
    """No server gives out so high a number within one millisecond."""
    target = await server.log(1)
    key = target.stream_keys[0]
    state = b"crossfade:lane:{" + key + b"}"
    owner = Owner(ROUTE.id, "a", ROUTE.source)
    for offset in (200_000, 200_001):
        backup = await server.application.dump(state)
        claim = await target.claim(owner, [(0, 0)])
        row = (b"k", b"v", None, PAST + offset)
        batch = mapping_named("lossless").translate(
            Batch(0, Shape.RECORD, [offset], [row], Place(str(offset), offset + 1)), Shape.ENTRY
        )
        await target.append(claim, [Write((0, 0), [offset], batch.rows, Place(str(offset), offset + 1))])
    await server.application.restore(state, 0, backup, replace=True)
    claim = await target.claim(owner, [(0, 0)])
    assert "--from position:200001`" in claim.errors[0, 0].hint


async def test_by_key_the_last_copy_may_be_in_another_target_lane(server):
    there, route = MemoryBackend(Shape.RECORD), replace(ROUTE, target_lanes=2, lane_map=LaneMap.BY_KEY)
    source, target = await there.log(1), await server.log(2)
    paths = [(0, 0), (0, 1)]
    await write_others(server, target.stream_keys[0], 1)
    await there.write_native(source, 0, rows(Shape.RECORD))
    place = (await start(source, target, Start(), route=route))[0]
    state = b"crossfade:lane:{" + target.stream_keys[0] + b"}"
    backup = await server.application.dump(state)
    await copy(source, target, place)
    await server.application.restore(state, 0, backup, replace=True)
    errors = (await target.claim(Owner(ROUTE.id, "a", ROUTE.source), paths)).errors
    assert set(errors) == {(0, 0)}
    assert "--from position:...`" in errors[0, 0].hint


async def test_an_old_copy_that_is_queued_again_is_no_older_marker(server):
    """Ordinals start anew with the lane."""
    there = MemoryBackend(Shape.RECORD)
    source, target = await there.log(1), await server.log(1)
    key = target.stream_keys[0]
    owner = Owner(ROUTE.id, "a", ROUTE.source)
    await write_others(server, key, 1)
    await there.write_native(source, 0, rows(Shape.RECORD))
    await copy(source, target, (await start(source, target, Start()))[0])
    _, fields = (await server.application.xrange(key))[-1]
    assert b"xf" in fields
    await lose_keys(server, target)
    place = (await start(source, target, Start(From.POSITION, str(RECORDS - 1)), by_hand=True))[0]
    assert not (await target.claim(owner, [(0, 0)])).errors
    await there.write_native(source, 0, rows(Shape.RECORD, RECORDS, RECORDS + 2))
    await copy(source, target, place)
    await server.application.execute_command("XADD", key, "*", *fields)
    assert not (await target.claim(owner, [(0, 0)])).errors


async def test_by_key_a_copy_that_is_moved_to_another_lane_is_no_older_marker(server):
    """Each path has ordinals of its own."""
    there, route = MemoryBackend(Shape.RECORD), replace(ROUTE, target_lanes=2, lane_map=LaneMap.BY_KEY)
    source, target = await there.log(1), await server.log(2)
    owner, paths = Owner(ROUTE.id, "a", ROUTE.source), [(0, 0), (0, 1)]
    for key in target.stream_keys:
        await write_others(server, key, 1)
    await there.write_native(source, 0, rows(Shape.RECORD))
    place = (await start(source, target, Start(), route=route))[0]
    await copy(source, target, place, (0, 1))
    batch = (await source.read({0: place}, 5000, 1 << 20, 2.0))[0]
    copied = mapping_named("lossless").translate(batch, Shape.ENTRY)
    claim = await target.claim(owner, paths)
    await target.append(claim, [Write((0, 0), batch.positions[-1:], copied.rows[-1:], batch.place)])
    _, fields = (await server.application.xrange(target.stream_keys[1]))[-1]
    await server.application.execute_command("XADD", target.stream_keys[0], "*", *fields)
    assert not (await target.claim(owner, paths)).errors


@pytest.mark.parametrize("left", ["all", "before the last", "nothing"])
async def test_a_start_behind_the_last_copy_is_no_older_marker_though_its_original_is_gone(server, left):
    """The place of such a start lies before it."""
    source, target = await server.log(1), await server.log(1)
    key = target.stream_keys[0]
    await write_others(server, key, 1)
    await server.write_native(source, 0, rows(Shape.ENTRY))
    await copy(source, target, (await start(source, target, Start()))[0])
    last = (await source.bounds([0]))[0].last
    await lose_keys(server, target)
    if left == "nothing":
        await server.trim(source, 0, 0)
    elif left == "before the last":
        await server.delete(source, 0, last)
    await server.write_native(source, 0, rows(Shape.ENTRY, RECORDS, RECORDS + 2))
    await start(source, target, Start(From.POSITION, last), by_hand=True)
    assert not (await target.claim(Owner(ROUTE.id, "a", ROUTE.source), [(0, 0)])).errors


async def test_a_lane_that_nobody_else_writes_is_not_looked_at(server):
    there = MemoryBackend(Shape.RECORD)
    source, target = await there.log(1), await server.log(1)
    await there.write_native(source, 0, rows(Shape.RECORD))
    await copy(source, target, (await start(source, target, Start()))[0])
    before = await server.application.info("commandstats")
    await target.claim(Owner(ROUTE.id, "a", ROUTE.source), [(0, 0)])
    after = await server.application.info("commandstats")
    assert after.get("cmdstat_xrange") == before.get("cmdstat_xrange")


async def test_who_may_not_read_the_target_goes_without_the_look(server):
    if server.settings.mode == "cluster":
        pytest.skip("users are made on one server")
    there = MemoryBackend(Shape.RECORD)
    source, target = await there.log(1), await server.log(1)
    await there.write_native(source, 0, rows(Shape.RECORD))
    await copy(source, target, (await start(source, target, Start()))[0])
    await write_others(server, target.stream_keys[0], 20)
    await server.application.execute_command(
        "ACL", "SETUSER", "blind", "on", ">secret", "~*", "+@all", "-xrange", "-xrevrange"
    )
    keys = [key.decode() for key in target.stream_keys]
    blind = RedisLog(replace(server.settings, username="blind", password=lambda: "secret"), keys, name="blind")
    await blind.open()
    try:
        assert not (await blind.claim(Owner(ROUTE.id, "a", ROUTE.source), [(0, 0)])).errors
    finally:
        await blind.close()
        await server.application.acl_deluser("blind")


@pytest.mark.parametrize("form", ["mixed", "exclusive"])
async def test_what_others_write_behind_our_last_append_is_no_older_marker(server, form):
    there = MemoryBackend(Shape.RECORD)
    source, target = await there.log(1), await server.log(1)
    key = target.stream_keys[0]
    if form == "mixed":
        await server.application.xadd(key, {"n": 1})
    await there.write_native(source, 0, rows(Shape.RECORD))
    places = await start(source, target, Start())
    await copy(source, target, places[0])
    entries = await server.application.xrange(key)
    last_ms = int(entries[-1][0].partition(b"-")[0])
    for number in range(RECORDS, 3 * RECORDS):  # as servers give ids out within one millisecond
        await server.application.xadd(key, {"n": 1}, id=f"{last_ms}-{number}")
    marked = list(entries[-1][1]) if form == "mixed" else [b"n", b"1"]
    await server.application.execute_command("XADD", key, "*", *marked)  # an application copies one with its mark
    await write_others(server, key, 40)
    claim = await target.claim(Owner(ROUTE.id, "a", ROUTE.source, paths=((0, 0),)), [(0, 0)])
    assert not claim.errors


async def test_entries_of_others_whose_first_ones_were_removed_have_no_offsets_in_their_ids(server):
    """Workers remove what they have done: of one millisecond, 5-7 may be left, right behind our offset 4."""
    there = MemoryBackend(Shape.RECORD)
    source, target = await there.log(1), await server.log(1)
    await there.write_native(source, 0, rows(Shape.RECORD))
    await copy(source, target, (await start(source, target, Start()))[0])
    for number in range(RECORDS, RECORDS + 3):
        await server.application.xadd(target.stream_keys[0], {"n": 1}, id=f"{PAST + 1000}-{number}")
    assert not (await target.claim(Owner(ROUTE.id, "a", ROUTE.source), [(0, 0)])).errors
