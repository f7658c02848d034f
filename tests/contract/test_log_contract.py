"""What every Log must do, whatever broker stands behind it. The hostile cases are the point."""

import asyncio
import contextlib
import random
import secrets
import time

import msgspec
import pytest
from backends import make_rows, plain

from crossfade.brokers.protocol import Appended, From, Owner, Start
from crossfade.errors import (
    Fenced,
    Indeterminate,
    LaneError,
    QuarantineFull,
    RouteConflict,
    SourceDeleted,
    SourceRegressed,
    SourceReset,
    SourceTrimmed,
)
from crossfade.model.position import Place, position_order, position_text
from crossfade.model.record import Batch, Reject, Shape, Write
from crossfade.model.wire import XF, XF_FIELD, decode_origin

MANY = 10_000
BIG = 1 << 24


class Relay:
    """The least that writes to a target: a route, a claim, and the source's numbering of one stream."""

    def __init__(self, log, lanes, *, route=None, source="digest-1", instance="one", paths=None, positions=int):
        self.log = log
        self.route = route or f"route-{secrets.token_hex(4)}"
        self.source = source
        self.instance = instance
        self.paths = paths or [(lane, lane) for lane in range(lanes)]
        self.position = positions
        self.claim = None

    def owner(self):
        return Owner(self.route, self.instance, self.source, paths=tuple(self.paths))

    async def take(self, log=None):
        self.log = log or self.log
        self.claim = await self.log.claim(self.owner(), self.paths)
        return self.claim

    def write(self, path, numbers, rows=None, *, rejects=(), quarantine_left=100):
        """The write that carries source records `numbers`, whose positions are their numbers."""
        numbers = list(numbers)
        rows = make_rows(self.log.shape, numbers) if rows is None else rows
        reached = max([*numbers, *(int(position_text(r.position).split("-")[0]) for r in rejects)], default=-1)
        place = Place(position_text(self.position(reached)) if reached >= 0 else "", reached + 1, "incarnation-x", "w")
        return Write(path, [self.position(n) for n in numbers], rows, place, list(rejects), quarantine_left)

    async def append(self, *writes):
        return await self.log.append(self.claim, writes)

    async def start(self):
        """Claim and write the first markers, as `relay start` does."""
        await self.take()
        outcomes = await self.append(*(Write(path, [], [], Place("", 0, "incarnation-x")) for path in self.paths))
        assert all(isinstance(outcome, Appended) for outcome in outcomes.values())
        return self


def entry_id(number):
    return b"%d-1" % number


def origins(rows):
    """The origins that relayed rows carry, in order; rows that carry none are left out."""
    found = []
    for row in rows:
        if len(row) == 4:
            values = [value for name, value in row[2] or () if name == XF]
        else:
            values = [row[0][at + 1] for at in range(0, len(row[0]), 2) if row[0][at] == XF_FIELD]
        found += [decode_origin(value) for value in values]
    return found


# --------------------------------------------------------------------------------------------------- target: markers


async def test_a_fresh_lane_has_no_marker(backend):
    relay = Relay(await backend.log(2), 2)
    claim = await relay.take()
    assert claim.markers == {}
    assert claim.errors == {}
    assert claim.alarms == []
    assert claim.epoch >= 1


async def test_a_marker_alone_comes_back_exactly(backend):
    log = await backend.log(2)
    relay = await Relay(log, 2).start()
    place = Place("17-4", 12, "incarnation-ü-\x7f", "witness")
    outcome = (await relay.append(Write((1, 1), [], [], place)))[1, 1]
    assert outcome.marker.place == place
    assert (outcome.marker.ordinal, outcome.records, outcome.quarantined) == (0, 0, 0)
    claim = await Relay(await backend.other(log), 2, route=relay.route).take()
    assert claim.markers[1, 1] == outcome.marker
    assert claim.markers[0, 0].place == Place("", 0, "incarnation-x")
    assert await backend.read_all(log, 1) == []


@pytest.mark.parametrize("positions", [int, entry_id])
async def test_records_and_marker_are_there_together(backend, positions):
    log = await backend.log(2)
    relay = await Relay(log, 2, positions=positions).start()
    first = (await relay.append(relay.write((0, 0), [5, 6, 9])))[0, 0]
    second = (await relay.append(relay.write((0, 0), [10]), relay.write((1, 1), [3])))[0, 0]
    assert (first.records, first.marker.ordinal, second.records, second.marker.ordinal) == (3, 3, 1, 4)
    assert first.marker.relayed == position_text(positions(9))
    assert second.marker.place == relay.write((0, 0), [10]).place
    assert second.marker.epoch == relay.claim.epoch
    assert second.marker.claim_id == relay.claim.claim_id
    assert position_order(second.marker.target) > position_order(first.marker.target)
    rows = await backend.read_all(log, 0)
    assert plain(rows) == make_rows(log.shape, [5, 6, 9, 10])
    assert plain(await backend.read_all(log, 1)) == make_rows(log.shape, [3])
    for origin in origins(rows):
        assert (origin.route, origin.lane, origin.epoch) == (relay.route, 0, relay.claim.epoch)
    if log.shape is Shape.RECORD or positions is entry_id:
        assert [origin.ordinal for origin in origins(rows)] == [1, 2, 3, 4]
        assert [origin.position for origin in origins(rows)] == [position_text(positions(n)) for n in (5, 6, 9, 10)]
    claim = await Relay(await backend.other(log), 2, route=relay.route).take()
    assert claim.markers[0, 0] == second.marker
    assert claim.alarms == []


async def test_the_marker_names_the_last_record_of_the_lane(backend):
    log = await backend.log(1)
    relay = await Relay(log, 1).start()
    outcome = (await relay.append(relay.write((0, 0), range(20))))[0, 0]
    await backend.read_all(log, 0)  # a commit may be answered before readers see it
    seen = (await log.bounds([0]))[0]
    assert position_order(outcome.marker.target) <= position_order(seen.last)
    other = await backend.other(log)
    place = (await other.begin([0], Start()))[0]
    batches = await read_until(other, {0: place}, 20)
    assert position_text(batches.positions[0][-1]) == outcome.marker.target


async def test_ordinals_go_on_over_claims_and_epochs_rise(backend):
    log = await backend.log(1)
    relay = await Relay(log, 1).start()
    epochs, ordinals = [], []
    for number in range(6):
        claim = await relay.take(await backend.other(log) if number % 2 else None)
        epochs.append(claim.epoch)
        ordinals.append((await relay.append(relay.write((0, 0), [2 * number, 2 * number + 1])))[0, 0].marker.ordinal)
    assert epochs == sorted(set(epochs))
    assert ordinals == [2, 4, 6, 8, 10, 12]
    rows = await backend.read_all(log, 0)
    assert plain(rows) == make_rows(log.shape, range(12))
    found = [origin.epoch for origin in origins(rows)]
    assert found == sorted(found)


async def test_two_source_lanes_share_a_target_lane_without_sharing_markers(backend):
    log = await backend.log(2)
    paths = [(0, 0), (0, 1), (1, 0), (1, 1)]
    relay = await Relay(log, 2, paths=paths).start()
    outcomes = await relay.append(relay.write((0, 0), [1, 2]), relay.write((1, 0), [1]), relay.write((0, 1), []))
    assert [outcomes[path].marker.ordinal for path in [(0, 0), (1, 0), (0, 1)]] == [2, 1, 0]
    await relay.append(relay.write((1, 0), [2]))
    claim = await Relay(await backend.other(log), 2, paths=paths, route=relay.route).take()
    assert {path: marker.ordinal for path, marker in claim.markers.items()} == {
        (0, 0): 2,
        (0, 1): 0,
        (1, 0): 2,
        (1, 1): 0,
    }
    assert len(await backend.read_all(log, 0)) == 4


async def test_an_append_of_many_records_keeps_its_order(backend):
    log = await backend.log(2)
    relay = await Relay(log, 2).start()
    for start in (0, 2500):
        told = []  # before the answer, when all is on its way
        writes = relay.write((0, 0), range(start, start + 2500)), relay.write((1, 1), [start])
        await log.append(relay.claim, writes, lambda told=told: told.append("sent"))
        assert told == ["sent"]
    assert plain(await backend.read_all(log, 0)) == make_rows(log.shape, range(5000))
    claim = await relay.take()
    assert claim.markers[0, 0].ordinal == 5000


# --------------------------------------------------------------------------------------------------- target: fencing


async def test_a_newer_claim_fences_the_older_one(backend):
    log = await backend.log(2)
    older = await Relay(log, 2).start()
    await older.append(older.write((0, 0), [0]))
    newer = Relay(await backend.other(log), 2, route=older.route, instance="two")
    await newer.take()
    assert newer.claim.epoch > older.claim.epoch
    assert newer.claim.claim_id != older.claim.claim_id
    with pytest.raises((Fenced, Indeterminate)):
        await older.append(older.write((0, 0), [1]), older.write((1, 1), [1]))
    assert plain(await backend.read_all(log, 0)) == make_rows(log.shape, [0])
    assert await backend.read_all(log, 1) == []
    await newer.append(newer.write((0, 0), [1]))
    assert plain(await backend.read_all(log, 0)) == make_rows(log.shape, [0, 1])


async def test_the_same_instance_back_fences_its_predecessor(backend):
    log = await backend.log(1)
    older = await Relay(log, 1).start()
    newer = Relay(await backend.other(log), 1, route=older.route)
    await newer.take()
    with pytest.raises((Fenced, Indeterminate)):
        await older.append(older.write((0, 0), [0]))
    await newer.append(newer.write((0, 0), [0]))
    assert plain(await backend.read_all(log, 0)) == make_rows(log.shape, [0])


async def test_a_fenced_claim_stays_fenced_and_a_marker_alone_is_refused_too(backend):
    log = await backend.log(1)
    older = await Relay(log, 1).start()
    newer = Relay(await backend.other(log), 1, route=older.route, instance="two")
    await newer.take()
    await newer.append(newer.write((0, 0), [0]))
    for _ in range(2):
        with pytest.raises((Fenced, Indeterminate)):
            await older.append(Write((0, 0), [], [], Place("99", 100, "incarnation-x")))
    claim = await newer.take()
    assert claim.markers[0, 0].place == newer.write((0, 0), [0]).place


async def test_who_was_fenced_may_claim_again(backend):
    log = await backend.log(1)
    one = await Relay(log, 1).start()
    two = Relay(await backend.other(log), 1, route=one.route, instance="two")
    for number, relay in enumerate((two, one, two, one)):
        claim = await relay.take()
        assert claim.markers[0, 0].ordinal == number
        await relay.append(relay.write((0, 0), [number]))
    assert plain(await backend.read_all(log, 0)) == make_rows(log.shape, range(4))


async def test_two_relays_that_fight_write_every_record_once(backend):
    log = await backend.log(2)
    one = await Relay(log, 2).start()
    two = Relay(await backend.other(log), 2, route=one.route, instance="two")

    async def copy(relay, seed):
        chance = random.Random(seed)
        while True:
            try:
                claim = await relay.take()
                done = {path: marker.place.count for path, marker in claim.markers.items()}
                while min(done.values()) < 40:
                    writes = []
                    for path, at in done.items():
                        numbers = range(at, min(at + chance.randint(1, 5), 40))
                        if numbers:
                            writes.append(relay.write(path, numbers))
                    for path, outcome in (await relay.append(*writes)).items():
                        done[path] = outcome.marker.place.count
                    await asyncio.sleep(chance.random() * 0.02)
                return
            except (Fenced, Indeterminate):
                await asyncio.sleep(chance.random() * 0.5)

    await asyncio.wait_for(asyncio.gather(copy(one, 1), copy(two, 2)), 120)
    for lane in (0, 1):
        rows = await backend.read_all(log, lane)
        assert plain(rows) == make_rows(log.shape, range(40))
        epochs = [origin.epoch for origin in origins(rows)]
        assert epochs == sorted(epochs)


async def test_another_source_digest_is_refused(backend):
    log = await backend.log(1)
    relay = await Relay(log, 1).start()
    await relay.append(relay.write((0, 0), [0]))
    with pytest.raises(RouteConflict):
        await Relay(await backend.other(log), 1, route=relay.route, source="digest-2").take()
    claim = await Relay(await backend.other(log), 1, route=relay.route).take()
    assert claim.markers[0, 0].ordinal == 1


async def test_a_second_route_is_refused(backend):
    log = await backend.log(1)
    relay = await Relay(log, 1).start()
    with pytest.raises(RouteConflict):
        await Relay(await backend.other(log), 1).take()
    # and the first goes on undisturbed
    await relay.append(relay.write((0, 0), [0]))


# --------------------------------------------------------------------------------------------------- target: doubts


@pytest.mark.parametrize("applied", [True, False])
async def test_a_cut_reply_is_indeterminate_and_a_new_claim_settles_it(backend, applied):
    if not backend.can_cut_reply:
        pytest.skip("this backend cannot lose a reply on purpose")
    log = await backend.log(2)
    relay = await Relay(log, 2).start()
    await relay.append(relay.write((0, 0), [0]), relay.write((1, 1), [0]))
    async with backend.cut_reply(log, applied=applied):
        with pytest.raises(Indeterminate):
            await asyncio.wait_for(relay.append(relay.write((0, 0), [1, 2]), relay.write((1, 1), [1, 2])), 60)
    claim = await relay.take(await backend.other(log))
    for lane in (0, 1):
        marker = claim.markers[lane, lane]
        rows = await backend.read_all(log, lane)
        assert marker.ordinal == len(rows)  # marker == last committed record
        assert plain(rows) == make_rows(log.shape, range(len(rows)))
        assert marker.place.count == len(rows)
        assert len(rows) == 3 if applied else len(rows) in (1, 3)
    await relay.append(*(relay.write(path, range(m.place.count, 5)) for path, m in claim.markers.items()))
    for lane in (0, 1):
        assert plain(await backend.read_all(log, lane)) == make_rows(log.shape, range(5))


async def test_an_append_that_is_dropped_at_any_moment_leaves_all_or_nothing(backend):
    log = await backend.log(2)
    relay = await Relay(log, 2).start()
    chance = random.Random(7)
    done = {(0, 0): 0, (1, 1): 0}
    took_s = []  # of appends that were not dropped

    async def append():
        began_s = time.monotonic()
        await relay.append(*(relay.write(path, range(at, at + 50)) for path, at in done.items()))
        took_s.append(time.monotonic() - began_s)

    await append()
    done = dict.fromkeys(done, 50)
    dropped = 0
    for _ in range(8):
        task = asyncio.create_task(append())
        # in memory an append is over in less time than a timer takes: there it is dropped at its first step
        await asyncio.sleep(chance.random() * min(took_s) if min(took_s) > 0.001 else 0)
        dropped += task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Fenced, Indeterminate):
            await task
        claim = await relay.take(await backend.other(log))
        for path, marker in claim.markers.items():
            assert marker.place.count in (done[path], done[path] + 50)
            assert marker.ordinal == marker.place.count == len(await backend.read_all(log, path[1]))
            done[path] = marker.place.count
    assert dropped
    await append()  # behind whatever the dropped ones left
    for lane in (0, 1):
        assert plain(await backend.read_all(log, lane)) == make_rows(log.shape, range(done[lane, lane] + 50))


# --------------------------------------------------------------------------------------------------- target: rejects


def reject(shape, number, reason="no good"):
    (row,) = make_rows(shape, [number])
    return Reject(number, row, reason, shape)


async def test_rejects_go_to_quarantine_in_the_same_step(backend):
    log = await backend.log(2)
    relay = await Relay(log, 2).start()
    rejects = [reject(log.shape, 1, "no good: ü"), reject(log.shape, 3)]
    outcome = (await relay.append(relay.write((1, 1), [0, 2, 4], rejects=rejects)))[1, 1]
    assert (outcome.records, outcome.quarantined) == (3, 2)
    assert (outcome.marker.ordinal, outcome.marker.quarantined) == (3, 2)
    assert plain(await backend.read_all(log, 1)) == make_rows(log.shape, [0, 2, 4])
    assert await backend.quarantined(log, relay.route) == [(1, "1", "no good: ü"), (1, "3", "no good")]
    assert await log.quarantined(relay.route) == {1: frozenset({"1", "3"})}
    assert await log.quarantined("another-route") == {}
    # a batch of nothing but rejects moves the marker too
    outcome = (await relay.append(relay.write((1, 1), [], rejects=[reject(log.shape, 5)])))[1, 1]
    assert (outcome.marker.ordinal, outcome.marker.quarantined, outcome.marker.place.position) == (3, 3, "5")
    claim = await relay.take(await backend.other(log))
    assert claim.markers[1, 1] == outcome.marker


async def test_more_rejects_than_the_budget_halt_their_lane_alone(backend):
    log = await backend.log(2)
    relay = await Relay(log, 2).start()
    rejects = [reject(log.shape, 0), reject(log.shape, 1)]
    outcomes = await relay.append(
        relay.write((0, 0), [2], rejects=rejects, quarantine_left=1), relay.write((1, 1), [0, 1])
    )
    assert isinstance(outcomes[0, 0], QuarantineFull)
    assert outcomes[0, 0].lane == 0
    assert outcomes[1, 1].records == 2
    assert await backend.read_all(log, 0) == []
    assert await backend.quarantined(log, relay.route) == []
    outcomes = await relay.append(relay.write((0, 0), [2], rejects=rejects, quarantine_left=2))
    assert outcomes[0, 0].quarantined == 2


async def test_a_record_too_large_for_the_target_is_quarantined_and_order_is_kept(backend):
    if backend.oversize_bytes is None:
        pytest.skip("this broker takes records larger than a test can carry")
    log = await backend.log(1)
    relay = await Relay(log, 1).start()
    rows = make_rows(log.shape, range(5))
    rows[2] = make_rows(log.shape, [2], size_bytes=backend.oversize_bytes)[0]
    outcome = (await relay.append(relay.write((0, 0), range(5), rows)))[0, 0]
    assert (outcome.records, outcome.quarantined, outcome.marker.ordinal) == (4, 1, 4)
    assert outcome.marker.place.position == "4"
    assert plain(await backend.read_all(log, 0)) == make_rows(log.shape, [0, 1, 3, 4])
    ((lane, position, reason),) = await backend.quarantined(log, relay.route)
    assert (lane, position) == (0, "2")
    assert reason
    found = [origin.ordinal for origin in origins(await backend.read_all(log, 0))]
    assert found in ([], [1, 2, 3, 4])


async def test_an_oversize_record_at_the_end_of_an_append_is_no_loss_either(backend):
    if backend.oversize_bytes is None:
        pytest.skip("this broker takes records larger than a test can carry")
    log = await backend.log(1)
    relay = await Relay(log, 1).start()
    rows = make_rows(log.shape, [0], size_bytes=backend.oversize_bytes)
    outcome = (await relay.append(relay.write((0, 0), [0], rows)))[0, 0]
    assert (outcome.records, outcome.quarantined) == (0, 1)
    outcome = (await relay.append(relay.write((0, 0), [1], rows, quarantine_left=0)))[0, 0]
    assert isinstance(outcome, QuarantineFull)
    outcome = (await relay.append(relay.write((0, 0), [1])))[0, 0]
    assert outcome.marker.ordinal == 1


# --------------------------------------------------------------------------------------------------- fidelity

NASTY = bytes(range(256))
RECORDS = [
    (None, None, None, 1_600_000_000_000),
    (b"", b"", None, 1_600_000_000_001),
    (NASTY, NASTY, None, 1_600_000_000_002),
    (b"k", None, None, 1_600_000_000_003),
    (None, b"v", None, 1_600_000_000_004),
    (b"k", b"v", [("a", b"1"), ("a", b"1"), ("", b""), ("ü", NASTY), ("n", None)], 1_600_000_000_005),
    (b"k", b"v", [("xf", b"mine")], 1_600_000_000_006),
]
ENTRIES = [
    ([b"", b""], 1_600_000_000_000),
    ([NASTY, NASTY], 1_600_000_000_001),
    ([b"a", b"1", b"a", b"1", b"b", b"", b"a", b"2"], 1_600_000_000_002),
    ([b"xf", b"mine", b"a", b"1"], 1_600_000_000_003),
    ([b"%d" % n for n in range(400)], 1_600_000_000_004),
    ([b"k", b"x" * 100_000], 1_600_000_000_005),
]


def fidelity_rows(shape):
    return RECORDS if shape is Shape.RECORD else ENTRIES


async def read_until(log, places, count, wait_s=10.0):
    """Read until `count` records came; what `Found` holds is joined per lane."""
    found = Found(dict(places))
    until = time.monotonic() + wait_s
    while sum(map(len, found.rows.values())) < count:
        assert time.monotonic() < until, f"{found.rows} instead of {count} records"
        found.add(await log.read(found.places, MANY, BIG, 1.0))
    return found


class Found:
    def __init__(self, places):
        self.places = places
        self.rows = {lane: [] for lane in places}
        self.positions = {lane: [] for lane in places}
        self.errors = {}

    def add(self, batches):
        for lane, batch in batches.items():
            if isinstance(batch, LaneError):
                self.errors[lane] = batch
                self.places.pop(lane)
                continue
            assert batch.lane == lane
            assert len(batch.rows) == len(batch.positions)
            self.places[lane] = batch.place
            self.rows[lane] += batch.rows
            self.positions[lane] += batch.positions


async def test_relayed_records_are_byte_for_byte_what_was_given(backend):
    log = await backend.log(1)
    relay = await Relay(log, 1).start()
    rows = fidelity_rows(log.shape)
    small = [row for row in rows if backend.oversize_bytes is None or len(repr(row)) < backend.oversize_bytes]
    await relay.append(relay.write((0, 0), range(len(small)), small))
    place = (await log.begin([0], Start()))[0]
    found = await read_until(log, {0: place}, len(small))
    assert plain(found.rows[0]) == small


async def test_native_records_are_byte_for_byte_what_was_given(backend):
    log = await backend.log(1)
    place = (await log.begin([0], Start()))[0]
    rows = fidelity_rows(log.shape)
    await backend.write_native(log, 0, rows)
    found = await read_until(log, {0: place}, len(rows))
    assert plain(found.rows[0]) == rows


@pytest.mark.parametrize(
    "times",
    [
        [1_600_000_000_000, 1_600_000_000_000, 1_600_000_000_000],  # equal
        [1_600_000_000_009, 1_600_000_000_003, 1_600_000_000_006],  # falling
        [0, 0, 1],
        [-1, 5, -1],
        [4_102_444_800_000, 1_600_000_000_000, 4_102_444_800_000],  # the year 2100
    ],
    ids=["equal", "falling", "zero", "none", "future"],
)
async def test_a_records_own_time_comes_back(backend, times):
    log = await backend.log(1)
    relay = await Relay(log, 1).start()
    rows = [(*row[:-1], time_ms) for row, time_ms in zip(make_rows(log.shape, range(3)), times, strict=True)]
    outcome = (await relay.append(relay.write((0, 0), range(3), rows)))[0, 0]
    assert outcome.records == 3
    # applications can still write, and their records come behind
    native_ms = int(time.time() * 1000) if log.shape is Shape.ENTRY else 1_600_000_000_000
    await backend.write_native(log, 0, make_rows(log.shape, [9], time_ms=native_ms))
    place = (await log.begin([0], Start()))[0]
    found = await read_until(log, {0: place}, 4)
    assert plain(found.rows[0])[:3] == rows
    assert [row[:-1] for row in plain(found.rows[0])] == [row[:-1] for row in [*rows, *make_rows(log.shape, [9])]]


async def test_records_between_those_of_applications_keep_order_and_origin(backend):
    log = await backend.log(1)
    await backend.write_native(log, 0, make_rows(log.shape, [100]))
    relay = await Relay(log, 1).start()
    await relay.append(relay.write((0, 0), [0, 1]))
    await backend.write_native(log, 0, make_rows(log.shape, [200]))
    await relay.append(relay.write((0, 0), [2]))
    place = (await log.begin([0], Start()))[0]
    found = await read_until(log, {0: place}, 5)
    keyed = [row[0] if log.shape is Shape.RECORD else row[0][1] for row in plain(found.rows[0])]
    assert keyed == [b"key-100", b"key-0", b"key-1", b"key-200", b"key-2"]
    assert [origin.ordinal for origin in origins(found.rows[0])] == [1, 2, 3]
    claim = await relay.take(await backend.other(log))
    assert claim.markers[0, 0].ordinal == 3
    assert claim.alarms == []


# --------------------------------------------------------------------------------------------------- source: reading


async def test_an_empty_lane_reads_as_empty_and_later_records_arrive(backend):
    log = await backend.log(2)
    places = await log.begin([0, 1], Start())
    started = time.monotonic()
    found = Found(places)
    found.add(await log.read(found.places, MANY, BIG, 0.2))
    assert found.rows == {0: [], 1: []}
    assert found.errors == {}
    assert time.monotonic() - started < 5

    async def later():
        await asyncio.sleep(0.1)
        await backend.write_native(log, 1, make_rows(log.shape, [0, 1]))

    task = asyncio.create_task(later())
    while not found.rows[1]:
        found.add(await log.read(found.places, MANY, BIG, 5.0))
        assert time.monotonic() - started < 20
    await task
    more = await read_until(log, found.places, 2 - len(found.rows[1]))
    assert plain(found.rows[1] + more.rows[1]) == make_rows(log.shape, [0, 1])
    assert found.rows[0] == more.rows[0] == []


async def test_reading_goes_on_where_it_ended_on_another_connection_too(backend):
    log = await backend.log(2)
    places = await log.begin([0, 1], Start())
    seen = {0: [], 1: []}
    for turn in range(4):
        for lane in (0, 1):
            await backend.write_native(log, lane, make_rows(log.shape, range(turn * 3, turn * 3 + 3)))
        reader = log if turn % 2 else await backend.other(log)
        kept = msgspec.json.decode(msgspec.json.encode(places), type=dict[int, Place])  # as a marker keeps it
        assert kept == places
        found = await read_until(reader, kept, 6)
        places = found.places
        for lane in (0, 1):
            seen[lane] += found.rows[lane]
            order = [position_order(position_text(position)) for position in found.positions[lane]]
            assert order == sorted(set(order))
            assert found.places[lane].position == position_text(found.positions[lane][-1])
    for lane in (0, 1):
        assert plain(seen[lane]) == make_rows(log.shape, range(12))


async def test_limits_bound_a_read_and_no_lane_starves(backend):
    log = await backend.log(4)
    places = await log.begin(range(4), Start())
    for lane in range(4):
        await backend.write_native(log, lane, make_rows(log.shape, range(50)))
    found = Found(dict(places))
    for _ in range(200):
        batches = await log.read(found.places, 7, BIG, 0.5)
        assert sum(len(batch.rows) for batch in batches.values()) <= 7
        found.add(batches)
        if len(found.rows[0]) >= 25:
            break
    assert min(map(len, found.rows.values())) > 0
    rest = await read_until(log, found.places, 200 - sum(map(len, found.rows.values())))
    for lane in range(4):
        assert plain(found.rows[lane] + rest.rows[lane]) == make_rows(log.shape, range(50))


async def test_bytes_bound_a_read_but_one_record_always_passes(backend):
    log = await backend.log(1)
    places = await log.begin([0], Start())
    rows = make_rows(log.shape, range(12), size_bytes=2000)
    await backend.write_native(log, 0, rows)
    found, batches_read = Found(dict(places)), 0
    while len(found.rows[0]) < 12:
        batches = await log.read(found.places, MANY, 5000, 1.0)
        if 0 in batches and batches[0].rows:
            batches_read += 1
            # the limit may be passed by one record: brokers count in their own units
            assert sum(len(b"".join(part or b"" for part in _bytes_of(row))) for row in batches[0].rows) <= 7100
        found.add(batches)
    assert plain(found.rows[0]) == rows
    assert batches_read >= 4
    lone = Found(dict(places))
    while len(lone.rows[0]) < 2:
        lone.add(await log.read(lone.places, MANY, 10, 1.0))
    assert plain(lone.rows[0])[:2] == rows[:2]


def _bytes_of(row):
    return row[0] if len(row) == 2 else row[:2]


async def test_going_back_is_a_seek(backend):
    log = await backend.log(1)
    start = (await log.begin([0], Start()))[0]
    await backend.write_native(log, 0, make_rows(log.shape, range(5)))
    first = await read_until(log, {0: start}, 5)
    again = await read_until(log, {0: start}, 5)
    assert plain(first.rows[0]) == plain(again.rows[0]) == make_rows(log.shape, range(5))
    assert first.places == again.places


async def test_the_end_of_a_lane_is_news_once(backend):
    log = await backend.log(1)
    place = (await log.begin([0], Start()))[0]
    await backend.write_native(log, 0, make_rows(log.shape, range(3)))
    found = await read_until(log, {0: place}, 3)
    told = 0
    for _ in range(20):
        batches = await log.read(found.places, MANY, BIG, 0.1)
        told += sum(batch.at_end for batch in batches.values())
        found.add(batches)
    assert told <= 1
    again = await read_until(log, {0: place}, 3)
    assert again.rows[0]
    # The same rows once more, as after an append that failed: the end behind them is news again.
    told_again = 0
    for _ in range(20):
        batches = await log.read(again.places, MANY, BIG, 0.1)
        told_again += sum(batch.at_end and not batch.rows for batch in batches.values())
        again.add(batches)
    assert told_again == 1
    batches = await log.read({0: place}, MANY, BIG, 0.5)
    assert told or batches[0].at_end
    limited = await log.read({0: place}, 1, BIG, 0.5)
    assert not limited[0].at_end


# --------------------------------------------------------------------------------------------------- source: beginnings


async def test_beginnings(backend):
    log = await backend.log(1)
    base = 1_600_000_000_000
    await backend.write_native(log, 0, make_rows(log.shape, range(0, 60, 10)))
    all_there = await read_until(log, await log.begin([0], Start()), 6)
    third = position_text(all_there.positions[0][2])

    latest = await log.begin([0], Start(From.LATEST))
    at_time = await log.begin([0], Start(From.TIME, str(base + 25)))
    exactly = await log.begin([0], Start(From.TIME, str(base + 30)))
    behind_all = await log.begin([0], Start(From.TIME, str(base + 1000)))
    before_all = await log.begin([0], Start(From.TIME, str(base - 1000)))
    at_position = await log.begin([0], Start(From.POSITION, third))
    await backend.write_native(log, 0, make_rows(log.shape, [2000]))
    for places, expected in [
        (latest, [2000]),
        (at_time, [30, 40, 50, 2000]),
        (exactly, [30, 40, 50, 2000]),
        (behind_all, [2000]),
        (before_all, [0, 10, 20, 30, 40, 50, 2000]),
        (at_position, [30, 40, 50, 2000]),
    ]:
        found = await read_until(log, places, len(expected))
        assert plain(found.rows[0]) == make_rows(log.shape, expected)
        assert found.errors == {}


async def test_beginning_is_idempotent_and_behind_what_was_trimmed(backend):
    log = await backend.log(2)
    await backend.write_native(log, 0, make_rows(log.shape, range(10)))
    await backend.trim(log, 0, 4)
    first = await log.begin([0, 1], Start())
    assert await log.begin([0, 1], Start()) == first
    other = await backend.other(log)
    assert await other.begin([0, 1], Start()) == first
    found = await read_until(other, first, 4)
    assert plain(found.rows[0]) == make_rows(log.shape, range(6, 10))
    assert found.errors == {}


async def test_bounds_tell_what_is_there(backend):
    log = await backend.log(2)
    places = await log.begin([0, 1], Start())
    empty = await log.bounds([0, 1])
    assert (empty[0].first, empty[0].last, empty[0].length) == ("", "", 0)
    await backend.write_native(log, 1, make_rows(log.shape, range(10)))
    found = await read_until(log, places, 10)
    bounds = (await log.bounds([1]))[1]
    assert bounds.first == position_text(found.positions[1][0])
    assert position_order(bounds.last) >= position_order(position_text(found.positions[1][-1]))
    assert bounds.count - places[1].count >= 10
    assert bounds.count == found.places[1].count  # nothing is missing
    assert bounds.length >= 10
    assert bounds.incarnation == found.places[1].incarnation != ""
    assert bounds.first_time_ms == 1_600_000_000_000
    await backend.trim(log, 1, 3)
    later = (await log.bounds([1]))[1]
    assert position_order(later.first) == position_order(position_text(found.positions[1][7]))
    assert later.count == bounds.count


# --------------------------------------------------------------------------------------------------- source: damage


async def read_error(log, places, wait_s=30.0):
    """Read on until some lane's error comes."""
    found = Found(dict(places))
    until = time.monotonic() + wait_s
    while not found.errors:
        assert time.monotonic() < until, "no error came"
        found.add(await log.read(found.places, MANY, BIG, 0.2))
    return found


async def begun(backend, lanes=2):
    """A log with ten records in lane 0, and places that have read the first four."""
    log = await backend.log(lanes)
    places = await log.begin(range(lanes), Start())
    await backend.write_native(log, 0, make_rows(log.shape, range(4)))
    found = await read_until(log, places, 4)
    await backend.write_native(log, 0, make_rows(log.shape, range(4, 10)))
    return log, found.places


async def test_trimming_behind_the_place_is_no_loss(backend):
    log, places = await begun(backend)
    await backend.trim(log, 0, 7)  # the place's own record stays
    found = await read_until(await backend.other(log), places, 6)
    assert plain(found.rows[0]) == make_rows(log.shape, range(4, 10))


async def test_trimming_up_to_the_place_is_no_loss(backend):
    log, places = await begun(backend)
    await backend.trim(log, 0, 6)  # the place's own record is gone, nothing behind it
    found = await read_until(await backend.other(log), places, 6)
    assert plain(found.rows[0]) == make_rows(log.shape, range(4, 10))
    assert found.errors == {}


@pytest.mark.parametrize("keep", [5, 1, 0])
async def test_trimming_past_the_place_halts_the_lane_and_no_other(backend, keep):
    log, places = await begun(backend)
    await backend.trim(log, 0, keep)
    await backend.write_native(log, 1, make_rows(log.shape, [0]))
    reader = await backend.other(log)
    found = await read_error(reader, places)
    error = found.errors[0]
    assert isinstance(error, SourceTrimmed)
    assert error.lost_records == 6 - keep
    assert error.position == places[0].position
    assert error.hint
    assert found.rows[0] == []
    rest = await read_until(reader, found.places, 1 - len(found.rows[1]))
    assert len(found.rows[1]) + len(rest.rows[1]) == 1


async def test_trimming_under_a_running_reader_is_seen(backend):
    log, places = await begun(backend)
    found = Found({0: places[0]})
    found.add(await log.read(found.places, 2, BIG, 1.0))
    read_so_far = len(found.rows[0])
    await backend.write_native(log, 0, make_rows(log.shape, range(10, 20)))
    await backend.trim(log, 0, 2)
    later = Found(dict(found.places))
    until = time.monotonic() + 30
    while not later.errors and read_so_far + len(later.rows[0]) < 16:  # all of them, if they were fetched in time
        assert time.monotonic() < until, "neither an error nor all records came"
        later.add(await log.read(later.places, MANY, BIG, 0.2))
    if later.errors:
        assert isinstance(later.errors[0], SourceTrimmed)
    # what a reader had fetched before may still come, but never anything behind the hole
    rows = plain(found.rows[0] + later.rows[0])
    assert rows == make_rows(log.shape, range(4, 4 + len(rows)))
    assert len(rows) >= read_so_far


async def test_a_trimmed_lane_that_grew_again_is_still_seen(backend):
    log, places = await begun(backend)
    await backend.trim(log, 0, 0)
    await backend.write_native(log, 0, make_rows(log.shape, range(10, 20)))
    found = await read_error(await backend.other(log), places)
    assert isinstance(found.errors[0], SourceTrimmed)
    assert found.errors[0].lost_records == 6
    assert found.rows[0] == []


@pytest.mark.parametrize("written", [0, 2, 30])
async def test_a_lane_made_anew_halts(backend, written):
    log, places = await begun(backend)
    await backend.recreate(log, 0)
    if written:
        await backend.write_native(log, 0, make_rows(log.shape, range(written), time_ms=1_600_000_100_000))
    found = await read_error(await backend.other(log), places)
    assert isinstance(found.errors[0], (SourceReset, SourceRegressed))
    if written:
        assert isinstance(found.errors[0], SourceReset)
    assert found.rows[0] == []


async def test_a_lane_made_anew_under_a_running_reader_halts(backend):
    log, places = await begun(backend)
    found = await read_until(log, places, 6)
    await backend.recreate(log, 0)
    await backend.write_native(log, 0, make_rows(log.shape, range(50), time_ms=1_600_000_100_000))
    later = await read_error(log, found.places)
    assert isinstance(later.errors[0], SourceReset)
    assert later.rows[0] == []


async def test_a_record_deleted_before_it_was_copied_halts_where_it_can_be_seen(backend):
    log, places = await begun(backend, lanes=1)
    ahead = await read_until(log, places, 6)
    await backend.delete(log, 0, position_text(ahead.positions[0][2]))
    if backend.deletes_are_seen:
        found = await read_error(await backend.other(log), places)
        assert isinstance(found.errors[0], SourceDeleted)
        assert found.errors[0].lost_records == 1
        assert found.rows[0] == []
        # and it is none of the reader's business who has copied it
        assert (await log.read(ahead.places, MANY, BIG, 0.1)).keys() <= {0}
    else:
        found = await read_until(await backend.other(log), places, 5)
        assert plain(found.rows[0]) == make_rows(log.shape, [4, 5, 7, 8, 9])


async def test_a_lane_that_lost_what_was_copied_halts(backend):
    if not backend.can_regress:
        pytest.skip("losing a suffix needs a failover here")
    log, places = await begun(backend, lanes=1)
    found = await read_until(log, places, 6)
    await backend.regress(log, 0, 3)
    error = (await read_error(await backend.other(log), found.places)).errors[0]
    assert isinstance(error, SourceRegressed)
    await backend.write_native(log, 0, make_rows(log.shape, range(100, 120)))
    error = (await read_error(await backend.other(log), found.places)).errors[0]
    assert isinstance(error, SourceRegressed)
    # a reader that had not come so far is not concerned
    again = await read_until(await backend.other(log), places, 23)
    assert plain(again.rows[0])[:3] == make_rows(log.shape, [4, 5, 6])


# --------------------------------------------------------------------------------------------------- both at once


async def test_a_copy_of_a_copy(backend):
    """Source and target roles of one adapter meet: what one relay wrote, another one reads and writes."""
    first, second = await backend.log(2), await backend.log(2)
    relay = await Relay(first, 2).start()
    await relay.append(relay.write((0, 0), range(30)), relay.write((1, 1), range(5)))
    places = await first.begin([0, 1], Start())
    found = await read_until(first, places, 35)
    onward = await Relay(second, 2, route=f"onward-{secrets.token_hex(4)}").start()
    writes = [
        Write((lane, lane), found.positions[lane], plain(found.rows[lane]), found.places[lane]) for lane in (0, 1)
    ]
    await onward.append(*writes)
    for lane, count in ((0, 30), (1, 5)):
        assert plain(await backend.read_all(second, lane)) == make_rows(first.shape, range(count))
    claim = await onward.take()
    resumed = {lane: claim.markers[lane, lane].place for lane in (0, 1)}
    assert resumed == found.places
    await relay.append(relay.write((0, 0), [30]))
    more = await read_until(await backend.other(first), resumed, 1)
    assert plain(more.rows[0]) == make_rows(first.shape, [30])


async def test_closing_twice_is_safe(backend):
    log = await backend.log(1)
    await log.close()
    await log.close()


async def test_a_batch_is_what_it_says(backend):
    log = await backend.log(1)
    place = (await log.begin([0], Start()))[0]
    await backend.write_native(log, 0, make_rows(log.shape, range(3), size_bytes=1000))
    batches = {}
    while not (0 in batches and batches[0].rows):
        batches = await log.read({0: place}, MANY, BIG, 1.0)
    batch = batches[0]
    assert isinstance(batch, Batch)
    assert batch.shape is log.shape
    assert batch.size_bytes >= 1000 * len(batch.rows)
    assert all(isinstance(position, int if log.shape is Shape.RECORD else bytes) for position in batch.positions)
