"""What only Kafka can do to a relay: torn transactions, expired markers, re-created targets, stuck readers, groups."""

import asyncio
import contextlib
import os
import secrets
import sys
import time

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource
from kafka_fixture import KafkaBackend, make_kafka_log, open_kafka_log

from crossfade.brokers.kafka import KafkaGroup, KafkaInspector, KafkaLog, KafkaSettings, names, tail
from crossfade.brokers.kafka import markers as kafka_markers
from crossfade.brokers.kafka.cluster import LATEST
from crossfade.brokers.kafka.edges import EdgeReader
from crossfade.brokers.protocol import Appended, Owner, Start
from crossfade.errors import (
    AccessRefused,
    Fenced,
    GuaranteeRefused,
    Indeterminate,
    LaneError,
    RouteConflict,
    SourceRegressed,
    SourceReset,
    TargetReset,
    TargetTorn,
    Unreachable,
)
from crossfade.model.position import Place
from crossfade.model.record import Write
from crossfade.model.wire import XF, Origin, encode_origin

pytestmark = pytest.mark.lab
NOW = int(time.time() * 1000)


@pytest.fixture
async def backend(lab):
    made = KafkaBackend(lab)
    yield made
    await made.close()


class Copy:
    """One path copied from a made-up Kafka source whose offsets are 0, 1, 2 ..."""

    def __init__(self, log, route=None, instance="one", paths=((0, 0),), **owner):
        self.log, self.route, self.instance, self.paths = log, route or f"route-{secrets.token_hex(4)}", instance, paths
        self.more = owner

    async def take(self, log=None):
        self.log = log or self.log
        owner = Owner(self.route, self.instance, "digest", paths=tuple(self.paths), **self.more)
        self.claim = await self.log.claim(owner, self.paths)
        return self.claim

    def write(self, first, count, path=(0, 0), value=b"v", **more):
        numbers = range(first, first + count)
        rows = [(b"%d" % n, value, None, NOW) for n in numbers]
        return Write(
            path, list(numbers), rows, Place(str(first + count - 1), first + count, "source-id"), [], 1000, **more
        )

    async def append(self, first, count, **more):
        return (await self.log.append(self.claim, [self.write(first, count, **more)]))[0, 0]

    async def begin(self, first=0, count=10):
        await self.take()
        return await self.append(first, count)


async def keys(backend, log, lane=0):
    return [int(row[0]) for row in await backend.read_all(log, lane)]


def commit_marker(properties, route, marker, lane=0):
    """What a late TxnOffsetCommit does: another marker than the one that belongs to the data."""
    consumer = Consumer(properties | {"group.id": names.group(route)})
    (offset,) = kafka_markers.offsets(route, {(lane, lane): marker}, {lane}, [(lane, lane)])
    consumer.commit(offsets=[offset], asynchronous=False)
    consumer.close()


def write_relayed(properties, topic, route, ordinals, lane=0, epoch=1):
    """What a transaction leaves whose marker was lost."""
    producer = Producer(properties | {"enable.idempotence": True})
    for n in ordinals:
        origin = encode_origin(Origin(route, lane, str(n - 1), n, epoch))
        producer.produce(topic, b"v", b"%d" % (n - 1), lane, headers=[(XF, origin)])
    assert producer.flush(20) == 0


# ------------------------------------------------------------------------------------------------- marker and data


async def test_records_whose_marker_was_put_back_are_not_copied_again(backend):
    log = await backend.log(1)
    copy = Copy(log)
    first = await copy.begin()
    await copy.append(10, 5)
    await asyncio.to_thread(commit_marker, backend.properties, copy.route, first.marker)
    claim = await copy.take(await backend.other(log))
    assert claim.markers[0, 0].ordinal == 15
    assert claim.markers[0, 0].place.count == 15
    assert len(claim.alarms) == 1
    await copy.append(15, 2)
    assert await keys(backend, log) == list(range(17))
    claim = await copy.take()
    assert claim.alarms == []


async def test_a_marker_without_its_records_gives_way_and_nothing_is_lost(backend):
    log = await backend.log(1)
    copy = Copy(log)
    first = await copy.begin()
    ahead = msgspec.structs.replace(
        first.marker,
        ordinal=15,
        place=Place("14", 15, "source-id"),
        relayed="14",
        target=str(int(first.marker.target) + 6),
    )
    await asyncio.to_thread(commit_marker, backend.properties, copy.route, ahead)
    claim = await copy.take(await backend.other(log))
    assert claim.markers[0, 0].ordinal == 10
    assert claim.markers[0, 0].place.count == 10
    assert len(claim.alarms) == 1
    assert claim.errors == {}
    await copy.append(10, 5)
    assert await keys(backend, log) == list(range(15))


async def test_a_hole_in_the_data_halts_the_lane_and_no_other(backend):
    log = await backend.log(2)
    copy = Copy(log, paths=((0, 0), (1, 1)))
    await copy.take()
    await log.append(copy.claim, [copy.write(0, 3), copy.write(0, 3, (1, 1))])
    await asyncio.to_thread(write_relayed, backend.properties, log.name, copy.route, [6, 7])
    claim = await copy.take(await backend.other(log))
    assert isinstance(claim.errors[0, 0], TargetTorn)
    assert claim.errors[0, 0].hint
    assert list(claim.errors) == [(0, 0)]
    assert isinstance((await copy.log.append(claim, [copy.write(3, 1, (1, 1))]))[1, 1], Appended)


async def test_expired_markers_are_rebuilt_from_the_headers(backend):
    log = await backend.log(1)
    copy = Copy(log)
    await copy.begin()
    await log.close()
    other = await backend.other(log)
    await other.cluster.delete_group(names.group(copy.route))
    claim = await copy.take(other)
    assert claim.markers[0, 0].ordinal == 10
    assert claim.markers[0, 0].place.count == 10
    assert "rebuilt" in claim.alarms[0]
    assert claim.epoch == 2
    await copy.append(10, 1)
    assert await keys(backend, log) == list(range(11))


async def test_the_marker_decides_where_the_target_was_trimmed(backend):
    log = await backend.log(1)
    copy = Copy(log)
    await copy.begin()
    await backend.trim(log, 0, 0)
    claim = await copy.take(await backend.other(log))
    assert (claim.markers[0, 0].ordinal, claim.alarms, claim.errors) == (10, [], {})
    await copy.append(10, 2)
    assert await keys(backend, log) == [10, 11]


@pytest.mark.parametrize("is_first", [False, True])
async def test_records_behind_somebodys_open_transaction_are_not_taken_for_absent(backend, is_first):
    log = await backend.log(1)
    copy = Copy(log)
    if is_first:
        await copy.take()
    else:
        await copy.begin()
    stranger = Producer(
        backend.properties | {"transactional.id": secrets.token_hex(4), "transaction.timeout.ms": 60_000}
    )
    await asyncio.to_thread(stranger.init_transactions, 20)
    stranger.begin_transaction()
    stranger.produce(log.name, b"v", b"stranger", 0)
    until = time.monotonic() + 20
    while not await log.conditions([0]):
        assert time.monotonic() < until
        stranger.poll(0.1)
    first = 0 if is_first else 10
    await copy.append(first, 5)
    claiming = asyncio.create_task(copy.take(await backend.other(log)))
    done, _ = await asyncio.wait([claiming], timeout=3.0)
    await asyncio.to_thread(stranger.abort_transaction, 20)
    claim = await claiming
    assert not done, "what stands behind the transaction cannot be compared before it ends"
    assert (claim.markers[0, 0].ordinal, claim.alarms, claim.errors) == (first + 5, [], {})
    await copy.append(first + 5, 2)
    assert await keys(backend, log) == list(range(first + 7))


async def test_a_path_that_rested_for_long_is_found_at_its_record(backend, monkeypatch):
    """Others wrote more since than the tail that is searched: the claim looks where the marker says."""
    monkeypatch.setattr(tail, "SCAN_OFFSETS_MAX", 50)
    log = await backend.log(1)
    copy = Copy(log, paths=((0, 0), (1, 0), (2, 0)))
    await copy.take()
    for source in (0, 1):
        await log.append(copy.claim, [copy.write(0, 5, (source, 0))])
    for first in range(0, 500, 100):
        await log.append(copy.claim, [copy.write(first, 100, (2, 0))])
    looks = []
    other = await backend.other(log)
    whole = EdgeReader.look

    async def look(self, ranges, *rest):
        looks.append(dict(ranges))
        await whole(self, ranges, *rest)

    monkeypatch.setattr(EdgeReader, "look", look)
    claim = await copy.take(other)
    assert [claim.markers[path].ordinal for path in copy.paths] == [5, 5, 500]
    assert (claim.alarms, claim.errors) == ([], {})
    assert sum(stop - start for ranges in looks for start, stop in ranges.values()) < 100
    await other.append(claim, [copy.write(5, 2), copy.write(5, 2, (1, 0))])
    assert len(await keys(backend, log)) == 514


@pytest.mark.parametrize("refilled", [False, True])
async def test_a_target_made_anew_is_named(backend, refilled):
    log = await backend.log(1)
    copy = Copy(log)
    await copy.begin()
    await log.close()
    await backend.recreate(other := await backend.other(log), 0)
    if refilled:
        await backend.write_native(log, 0, [(b"%d" % n, b"native", None, NOW) for n in range(40)])
    claim = await copy.take(await backend.other(other))
    assert isinstance(claim.errors[0, 0], TargetReset)


async def test_a_target_made_anew_under_a_running_process_is_named(backend):
    log = await backend.log(1)
    copy = Copy(log)
    await copy.begin()
    await backend.recreate(log, 0)
    await backend.write_native(log, 0, [(b"%d" % n, b"native", None, NOW) for n in range(40)])
    claim = await copy.take()
    assert isinstance(claim.errors[0, 0], TargetReset)


async def test_a_target_made_anew_before_anything_was_copied_is_taken(backend):
    log = await backend.log(1)
    copy = Copy(log)
    await copy.take()
    await backend.recreate(log, 0)
    for first in (0, 3, 6):
        claim = await copy.take()
        assert (claim.alarms, claim.errors) == ([], {})
        await copy.append(first, 3)
    assert await keys(backend, log) == list(range(9))


class Disturbed:
    """A real producer; something happens behind one of its steps, before the step comes back."""

    def __init__(self, producer, step, behind):
        self._producer, self._step, self._behind = producer, step, behind

    def __getattr__(self, name):
        call = getattr(self._producer, name)
        if name != self._step:
            return call

        def disturbed(*arguments):
            call(*arguments)
            self._behind()

        return disturbed


def slow(producer, step):
    """The step takes as long as a retry inside the client."""
    return Disturbed(producer, step, lambda: time.sleep(0.5))


def lost(producer, step):
    """The step is carried out, and its answer is lost."""

    def no_answer():
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    return Disturbed(producer, step, no_answer)


async def test_a_commit_in_doubt_ends_the_claim_and_is_read_back(backend):
    log = await backend.log(1)
    copy = Copy(log)
    await copy.begin()
    for first in (10, 11):
        copy.claim.writer._producer = lost(copy.claim.writer._producer, "commit_transaction")
        with pytest.raises(Indeterminate):
            await copy.append(first, 1)
        with pytest.raises(Fenced):
            await copy.append(first, 1)
        claim = await copy.take()
        assert claim.markers[0, 0].ordinal == first + 1
        assert claim.alarms == []
    assert await keys(backend, log) == list(range(12))


@pytest.mark.parametrize("step", ["send_offsets_to_transaction", "commit_transaction"])
async def test_a_step_that_took_as_long_as_a_retry_costs_the_producer(backend, step):
    """The transaction happened; but what was sent twice of it may come late, and must not meet the next one."""
    log = await backend.log(2)
    copy = Copy(log, paths=((0, 0), (0, 1), (1, 1)))
    await copy.begin()
    spent, real = copy.claim.writer, copy.claim.writer._producer
    spent._producer = slow(real, step)
    assert (await copy.append(10, 2)).marker.ordinal == 12
    old_offsets = kafka_markers.offsets(copy.route, dict(copy.claim.markers), {0}, copy.paths)
    assert copy.claim.writer is spent
    assert (await copy.append(12, 1)).marker.ordinal == 13
    assert spent.is_dead
    assert copy.claim.writer is not spent
    real.begin_transaction()
    with pytest.raises(KafkaException) as late:
        await asyncio.to_thread(real.send_offsets_to_transaction, old_offsets, copy.claim.group, 10)
    assert late.value.args[0].fatal()
    claim = await copy.take()
    assert (claim.markers[0, 0].ordinal, claim.alarms) == (13, [])
    assert await keys(backend, log) == list(range(13))


async def test_a_producer_is_not_renewed_after_another_claim_has_written(backend):
    log = await backend.log(1)
    older = Copy(log)
    await older.begin()
    older.claim.writer._producer = slow(older.claim.writer._producer, "commit_transaction")
    await older.append(10, 1)
    newer = Copy(await backend.other(log), older.route)
    await newer.take()
    await newer.append(11, 1)
    with pytest.raises(Fenced):
        await older.append(11, 1)
    assert await keys(backend, log) == list(range(12))


async def test_a_producer_is_not_renewed_beside_a_group_that_has_taken_over(backend, monkeypatch):
    """The group's claim fences the one by hand; its renewal must not lift that fence again."""
    log = await backend.log(1)
    copy = Copy(log, shard=(0, 1))
    await copy.begin()
    copy.claim.writer._producer = slow(copy.claim.writer._producer, "commit_transaction")
    await copy.append(10, 1)

    async def live(group):
        return {"two"}

    monkeypatch.setattr(log._target._cluster, "live_instances", live)
    with pytest.raises(RouteConflict):
        await copy.append(11, 1)
    with pytest.raises(Fenced):
        await copy.append(11, 1)
    with pytest.raises(RouteConflict):
        await copy.take()
    assert await keys(backend, log) == list(range(11))


# ------------------------------------------------------------------------------------------------- who may write


async def test_a_released_topic_may_be_taken_by_another_route(backend):
    log = await backend.log(1)
    copy = Copy(log)
    await copy.begin()
    with pytest.raises(RouteConflict, match=copy.route):
        await Copy(await backend.other(log)).take()
    await log.release(copy.route)
    await Copy(await backend.other(log)).begin(0, 1)


async def test_a_split_by_hand_is_published_and_kept(backend):
    log = await backend.log(4)
    route = f"route-{secrets.token_hex(4)}"
    one = Copy(log, route, "a", paths=((0, 0), (2, 2)), shard=(0, 2))
    two = Copy(await backend.other(log), route, "b", paths=((1, 1), (3, 3)), shard=(1, 2))
    await one.take()
    await two.take()
    for copy in (one, two):
        await copy.log.append(copy.claim, [copy.write(0, 2, path) for path in copy.paths])
    third = Copy(await backend.other(log), route, "c", paths=((2, 2),), shard=(2, 4))
    with pytest.raises(RouteConflict, match="2 shards"):
        await third.take()
    assert (await one.log.append(one.claim, [one.write(2, 1, (2, 2))]))[2, 2].marker.ordinal == 3
    # a changed split is published first; then every id of the old one is fenced
    await third.log.reshard(route, 4)
    for copy in (one, two):
        with pytest.raises((Fenced, Indeterminate)):
            await copy.log.append(copy.claim, [copy.write(3, 1, copy.paths[0])])
    claim = await third.take()
    assert claim.markers[2, 2].ordinal == 3


async def test_a_handle_without_generation_is_refused(backend):
    log = await backend.log(1)
    copy = Copy(log, token=b"CGMDv2:\xff\xff\xff\xffgroup\x00\x00\x01")
    with pytest.raises(Fenced, match="no member"):
        await copy.take()


async def test_one_replica_is_no_exactly_once(backend):
    settings = KafkaSettings(backend.properties)
    log = KafkaLog(settings, f"weak-{secrets.token_hex(4)}")
    await log.cluster.ensure_topic(log.name, 1, 1, {"min.insync.replicas": "1"})
    await log.open()
    with pytest.raises(GuaranteeRefused, match="1 replica"):
        await Copy(log).take()
    weak = KafkaLog(settings, log.name, allow_weak=True)
    await weak.open()
    assert "while no broker is lost" in (await weak.guarantee())[0]
    await Copy(weak).begin(0, 1)
    await log.close()
    await weak.close()


# ------------------------------------------------------------------------------------------------- poison


async def test_what_the_broker_refuses_for_its_size_is_isolated(backend):
    log = await backend.log(1)
    copy = Copy(log)
    await copy.begin()
    rows = [(b"%d" % n, os.urandom(70_000) if n == 12 else b"v", None, NOW) for n in range(10, 15)]
    write = Write((0, 0), list(range(10, 15)), rows, Place("14", 15, "source-id"), [], 10)
    with pytest.raises(Indeterminate):
        await log.append(copy.claim, [write])
    await copy.take()
    outcome = (await log.append(copy.claim, [write]))[0, 0]
    assert (outcome.records, outcome.quarantined) == (4, 1)
    assert await keys(backend, log) == [*range(10), 10, 11, 13, 14]
    assert [(lane, position) for lane, position, _ in await backend.quarantined(log, copy.route)] == [(0, "12")]


async def test_a_record_without_key_goes_to_quarantine_where_the_topic_is_compacted(backend):
    """The broker refuses the whole batch with it, again and again."""
    log = await backend.log(1)
    changed = ConfigResource(
        ConfigResource.Type.TOPIC,
        log.name,
        incremental_configs=[ConfigEntry("cleanup.policy", "compact", incremental_operation=AlterConfigOpType.SET)],
    )
    admin = AdminClient(backend.properties)
    await asyncio.to_thread(admin.incremental_alter_configs([changed])[changed].result, 20)
    copy = Copy(await backend.other(log))
    await copy.take()
    rows = [(None if n == 2 else b"%d" % n, b"v", None, NOW) for n in range(5)]
    write = Write((0, 0), list(range(5)), rows, Place("4", 5, "s"), [], 10)
    outcome = (await copy.log.append(copy.claim, [write]))[0, 0]
    assert (outcome.records, outcome.quarantined) == (4, 1)
    assert await keys(backend, log) == [0, 1, 3, 4]
    assert [(lane, position) for lane, position, _ in await backend.quarantined(log, copy.route)] == [(0, "2")]


async def test_lanes_of_any_length_arrive_whole_when_batches_take_turns(backend):
    counts = [4001, 0, 1, 1500, 1501, 3000]
    paths = [(lane, lane) for lane in range(len(counts))]
    log = await backend.log(len(counts))
    copy = Copy(log, paths=paths)
    await copy.take()
    writes = [copy.write(0, count, path) for path, count in zip(paths, counts, strict=True) if count]
    for number in range(2000, 2020):  # what the first records tell of the size is wrong for these
        writes[0].rows[number] = (b"%d" % number, os.urandom(30_000), None, NOW)
    outcomes = await log.append(copy.claim, writes)
    assert {path[0]: outcome.records for path, outcome in outcomes.items()} == {
        0: 4001,
        2: 1,
        3: 1500,
        4: 1501,
        5: 3000,
    }
    for lane, count in enumerate(counts):
        assert await keys(backend, log, lane) == list(range(count))


async def test_what_is_refused_in_the_middle_of_a_lane_does_not_hold_up_the_others(backend):
    paths = [(lane, lane) for lane in range(5)]
    log = await backend.log(len(paths))
    copy = Copy(log, paths=paths)
    await copy.take()
    writes = [copy.write(0, 9000, path) for path in paths]
    writes[1].rows[1700] = (b"1700", os.urandom(70_000), None, NOW)
    with pytest.raises(Indeterminate):  # learned while others are produced, or later: either way it tells the size
        await log.append(copy.claim, writes)
    await copy.take()
    outcomes = await log.append(copy.claim, writes)
    assert [outcomes[path].quarantined for path in paths] == [0, 1, 0, 0, 0]
    for lane, _ in paths:
        assert await keys(backend, log, lane) == [n for n in range(9000) if (lane, n) != (1, 1700)]


async def test_a_header_name_that_would_crash_the_client_is_quarantined(backend):
    log = await backend.log(1)
    copy = Copy(log)
    await copy.take()
    rows = [(b"0", b"v", None, NOW), (b"1", b"v", [("\ud800", b"x")], NOW), (b"2", b"v", [("n", None)], NOW)]
    outcome = (await log.append(copy.claim, [Write((0, 0), [0, 1, 2], rows, Place("2", 3, "s"), [], 1)]))[0, 0]
    assert (outcome.records, outcome.quarantined) == (2, 1)
    assert await keys(backend, log) == [0, 2]


# ------------------------------------------------------------------------------------------------- the source


async def test_an_open_transaction_that_holds_up_readers_is_named(backend):
    log = await backend.log(1)
    assert await log.conditions([0]) == {}
    stuck = Producer(backend.properties | {"transactional.id": secrets.token_hex(4), "transaction.timeout.ms": 60_000})
    stuck.init_transactions(20)
    stuck.begin_transaction()
    stuck.produce(log.name, b"v", b"k", 0)
    stuck.poll(1)
    until = time.monotonic() + 10
    while not (found := await log.conditions([0])):
        assert time.monotonic() < until
        stuck.poll(0.1)
    assert "open transaction" in found[0]
    await backend.write_native(log, 0, [(b"1", b"behind", None, NOW)])
    places = await log.begin([0], Start())
    assert all(not batch.rows for batch in (await log.read(places, 10, 1 << 20, 0.5)).values())
    await asyncio.to_thread(stuck.abort_transaction, 10)
    rows = []
    while not rows:
        for batch in (await log.read(places, 10, 1 << 20, 1.0)).values():
            rows += batch.rows
            places = {0: batch.place}
    assert [row[0] for row in rows] == [b"1"]


async def test_aborted_records_are_never_read_and_the_place_passes_them(backend):
    log = await backend.log(1)
    places = await log.begin([0], Start())
    producer = Producer(backend.properties | {"transactional.id": secrets.token_hex(4)})
    producer.init_transactions(20)
    for is_kept in (False, True, False):
        producer.begin_transaction()
        for _ in range(3):
            producer.produce(log.name, b"kept" if is_kept else b"aborted", b"k", 0)
        await asyncio.to_thread(producer.flush, 10)
        await asyncio.to_thread(producer.commit_transaction if is_kept else producer.abort_transaction, 10)
    values, until = [], time.monotonic() + 20
    while places[0].count < 12:
        assert time.monotonic() < until, places
        for batch in (await log.read(places, 100, 1 << 20, 0.5)).values():
            values += [row[1] for row in batch.rows]
            places = {0: batch.place}
    assert values == [b"kept"] * 3
    assert places[0].position == "6"
    assert places[0].count == (await log.cluster.offsets(log.name, [0], LATEST))[0] == 12


async def until_stable(log, end, wait_s=20.0):
    """The marks of a transaction are written after its commit was answered."""
    until = time.monotonic() + wait_s
    while (await log.cluster.offsets(log.name, [0], LATEST))[0] < end:
        assert time.monotonic() < until
        await asyncio.sleep(0.05)


async def read_until(log, place, wait_s=20.0):
    """Values of the rows behind a place, and where their lane was read to: up to its end."""
    values, until = [], time.monotonic() + wait_s
    while True:
        assert time.monotonic() < until, place
        for batch in (await log.read({0: place}, 100, 1 << 20, 0.5)).values():
            assert not isinstance(batch, LaneError), batch
            values += [row[1] for row in batch.rows]
            place = batch.place
            if place.count == (await log.cluster.offsets(log.name, [0], LATEST))[0]:
                return values, place


@pytest.mark.parametrize("is_kept", [False, True])
async def test_the_mark_of_a_transaction_in_a_later_epoch_is_no_cut(lab, backend, is_kept):
    """The leader moved between a record and the end of its transaction; then the relay starts anew behind both."""
    log = await backend.log(1)
    await backend.write_native(log, 0, [(b"k", b"before", None, NOW)])
    begin = (await log.begin([0], Start()))[0]
    producer = Producer(backend.properties | {"transactional.id": secrets.token_hex(4)})
    await asyncio.to_thread(producer.init_transactions, 20)
    producer.begin_transaction()
    producer.produce(log.name, b"within", b"k", 0)
    await asyncio.to_thread(producer.flush, 10)
    await asyncio.to_thread(lab.faults.move_leader, log.name, 0)
    await asyncio.to_thread(producer.commit_transaction if is_kept else producer.abort_transaction, 20)
    await until_stable(log, 3)
    values, place = await read_until(log, begin)
    assert values == [b"before", *([b"within"] if is_kept else [])]
    assert (place.position, place.count) == ("1" if is_kept else "0", 3)
    other = await backend.other(log)
    assert await read_until(other, place) == ([], place)
    await backend.write_native(log, 0, [(b"k", b"behind", None, NOW)])
    values, _ = await read_until(await backend.other(log), place)
    assert values == [b"behind"]


@pytest.mark.parametrize("position", [4, 20])
async def test_a_log_that_was_cut_off_and_has_grown_since_halts_whoever_asks(lab, backend, position):
    """The place names a record of an epoch that ended before it. The handle that was told once is told again, and the
    cut is where that epoch ended, also while the log has not grown as far again."""
    log = await backend.log(1)
    await backend.write_native(log, 0, [(b"k", b"before", None, NOW)])
    incarnation = (await log.begin([0], Start()))[0].incarnation
    await asyncio.to_thread(lab.faults.move_leader, log.name, 0)
    await backend.write_native(log, 0, [(b"k", b"since", None, NOW)] * 9)
    other = await backend.other(log)
    assert (await read_until(other, Place("6", 7, incarnation, "1")))[0] == [b"since"] * 3
    for reader in (other, other, await backend.other(log)):
        found, until = {}, time.monotonic() + 20
        while not found:
            assert time.monotonic() < until
            place = Place(str(position), position + 1, incarnation, "0")
            found = await reader.read({0: place}, 100, 1 << 20, 0.5)
        assert isinstance(found[0], SourceRegressed), found
        assert (found[0].ends_at, found[0].lost_records) == (1, position)


async def test_a_place_whose_last_record_was_deleted_is_no_loss(backend):
    """Retention took what was copied, and the marks of its transaction stand between it and the place."""
    log = await backend.log(1)
    begin = (await log.begin([0], Start()))[0]
    producer = Producer(backend.properties | {"transactional.id": secrets.token_hex(4)})
    await asyncio.to_thread(producer.init_transactions, 20)
    producer.begin_transaction()
    producer.produce(log.name, b"copied", b"k", 0)
    await asyncio.to_thread(producer.commit_transaction, 20)
    await until_stable(log, 2)
    values, place = await read_until(log, begin)
    assert (values, place.position, place.count) == ([b"copied"], "0", 2)
    await log.cluster.delete_records(log.name, {0: 2})
    await backend.write_native(log, 0, [(b"k", b"behind", None, NOW)])
    values, _ = await read_until(await backend.other(log), place)
    assert values == [b"behind"]


async def test_a_deleted_topic_halts_its_reader(backend):
    log = await backend.log(1)
    places = await log.begin([0], Start())
    await log.read(places, 10, 1 << 20, 0.5)
    await log.cluster.delete_topics([log.name])
    until = time.monotonic() + 20
    found = {}
    while not found:
        assert time.monotonic() < until
        found = dict((await log.read(places, 10, 1 << 20, 0.5)).items())
    assert isinstance(found[0], SourceReset)


async def test_memory_is_bounded_by_the_read_not_by_the_backlog(backend):
    log = await open_kafka_log(backend.properties, (await backend.log(1)).name, queue_kbytes_max=1024)
    for first in range(0, 400, 2):  # small batches: the topic takes 64 KiB
        await backend.write_native(log, 0, [(b"%d" % n, b"x" * 20_000, None, NOW) for n in (first, first + 1)])
    places, rows = await log.begin([0], Start()), 0
    while rows < 400:
        for batch in (await log.read(places, 10_000, 100_000, 1.0)).values():
            assert batch.size_bytes <= 130_000
            rows += len(batch.rows)
            places = {0: batch.place}
    await log.close()


async def test_nobody_at_the_address_and_no_topic_are_named(backend):
    lost = KafkaLog(KafkaSettings({"bootstrap.servers": "127.0.0.1:1"}), "t")
    with pytest.raises(Unreachable):
        await lost.open()
    await lost.close()
    missing = KafkaLog(KafkaSettings(backend.properties), "no-such-topic")
    with pytest.raises(AccessRefused, match="no-such-topic"):
        await missing.open()
    await missing.close()


# ------------------------------------------------------------------------------------------------- groups


class Member:
    """A listener that keeps what it was told."""

    def __init__(self):
        self.lanes, self.token, self.told = frozenset(), None, []

    async def assigned(self, lanes, token):
        self.lanes, self.token = lanes, token
        self.told.append(("assigned", lanes))

    async def revoked(self, lanes):
        self.lanes -= lanes
        self.told.append(("revoked", lanes))

    async def lost(self, lanes):
        self.lanes -= lanes
        self.told.append(("lost", lanes))


@contextlib.asynccontextmanager
async def member(properties, route, lanes, instance, **more):
    listener = Member()
    group = KafkaGroup(KafkaSettings(properties), route=route, lanes=lanes, instance=instance, **more)
    listener.task = asyncio.create_task(group.run(listener))
    try:
        yield listener
    finally:
        listener.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Fenced):
            await listener.task


async def until_true(condition, wait_s=30.0):
    until = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < until
        await asyncio.sleep(0.05)


async def test_lanes_move_between_processes_and_an_old_generation_cannot_write(backend):
    log, other = await backend.log(4), None
    route = f"route-{secrets.token_hex(4)}"
    async with member(backend.properties, route, 4, "a") as one:
        await until_true(lambda: len(one.lanes) == 4)
        copy = Copy(log, route, "a", paths=tuple((lane, lane) for lane in range(4)), token=one.token)
        await copy.take()
        await log.append(copy.claim, [copy.write(0, 2, path) for path in copy.paths])
        async with member(backend.properties, route, 4, "b") as two:
            await until_true(lambda: len(two.lanes) == 2 and len(one.lanes) == 2)
            assert not one.lanes & two.lanes
            given_away = min(two.lanes)
            with pytest.raises((Fenced, Indeterminate)):
                await log.append(copy.claim, [copy.write(2, 1, (given_away, given_away))])
            other = await backend.other(log)
            taken = Copy(other, route, "b", paths=tuple((lane, lane) for lane in two.lanes), token=two.token)
            claim = await taken.take()
            assert {marker.ordinal for marker in claim.markers.values()} == {2}
            kept = Copy(log, route, "a", paths=tuple((lane, lane) for lane in one.lanes), token=one.token)
            await kept.take()
            # neither fences the other: both are live members
            for each in (taken, kept):
                await each.log.append(each.claim, [each.write(2, 1, path) for path in each.paths])
        gone = time.monotonic()
        await until_true(lambda: len(one.lanes) == 4)
        assert time.monotonic() - gone < 12
        again = Copy(log, route, "a", paths=tuple((lane, lane) for lane in range(4)), token=one.token)
        claim = await again.take()
        assert {marker.ordinal for marker in claim.markers.values()} == {3}
        with pytest.raises((Fenced, Indeterminate)):  # the one that left is fenced by its own id
            await other.append(taken.claim, [taken.write(3, 1, (given_away, given_away))])
        # lanes by hand do not mix with a live group
        with pytest.raises(RouteConflict, match="group mode"):
            await Copy(await backend.other(log), route, "hand").take()
    for lane in range(4):
        assert await keys(backend, log, lane) == [0, 1, 2]


async def test_a_second_process_of_the_same_name_takes_over_and_the_first_says_so(backend):
    route = f"route-{secrets.token_hex(4)}"
    async with member(backend.properties, route, 2, "a") as one:
        await until_true(lambda: len(one.lanes) == 2)
        async with member(backend.properties, route, 2, "a") as two:
            await until_true(lambda: len(two.lanes) == 2)
            with pytest.raises(Fenced, match="instance 'a'"):
                await asyncio.wait_for(one.task, 30)


async def test_a_group_on_the_source_topic_commits_nothing(backend):
    log = await backend.log(3)
    await backend.write_native(log, 0, [(b"k", b"v", None, NOW)])
    route = f"route-{secrets.token_hex(4)}"
    async with member(backend.properties, route, 3, "a", topic=log.name) as one:
        await until_true(lambda: len(one.lanes) == 3)
        await asyncio.sleep(1)
    consumer = Consumer(backend.properties | {"group.id": names.group(route)})
    committed = await asyncio.to_thread(consumer.committed, [TopicPartition(log.name, lane) for lane in range(3)], 10)
    assert {partition.offset for partition in committed} == {-1001}
    consumer.close()
    assert await log.cluster.topic(names.lanes_topic(route)) is None


_ASKING = """
import asyncio, sys
from crossfade.brokers.kafka import KafkaSettings
from crossfade.brokers.kafka.cluster import Cluster
from crossfade.errors import Unreachable

async def ask():
    cluster = Cluster(KafkaSettings({"bootstrap.servers": sys.argv[1]}))
    while True:
        try:
            print("members:", *await cluster.live_instances(sys.argv[2]), flush=True)
        except Unreachable:
            print("members unknown", flush=True)
        await asyncio.sleep(0.05)

asyncio.run(ask())
"""


@pytest.mark.long
async def test_asking_who_runs_survives_brokers_that_come_and_go(lab, backend):
    """The way of asking that the library recommends aborts the process here."""
    route = f"route-{secrets.token_hex(4)}"
    log = await backend.log(1)
    await Copy(log, route).begin(0, 1)
    links = ["kafka-1", "kafka-2", "kafka-3"]
    async with member(backend.properties, route, 1, "a.b-c") as one:
        await until_true(lambda: len(one.lanes) == 1)
        address = lab.kafka_properties()["bootstrap.servers"]
        asking = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _ASKING, address, names.group(route), stdout=asyncio.subprocess.PIPE
        )
        said: list[bytes] = []

        async def hear():
            async for line in asking.stdout:  # among its log
                if line.startswith(b"members"):
                    said.append(line)

        heard = asyncio.create_task(hear())
        try:
            for break_link in (lab.faults.cut, lab.faults.half_open) * 3:
                await asyncio.gather(*(asyncio.to_thread(break_link, link, heal_after_s=3.0) for link in links))
                await asyncio.sleep(4.0)
                await asyncio.gather(*(asyncio.to_thread(lab.faults.reset, link) for link in links))
                await asyncio.sleep(1.0)
            assert asking.returncode is None
            # The member may have been counted out for a moment.
            assert set(said) <= {b"members: a.b-c\n", b"members:\n", b"members unknown\n"}
            said.clear()
            await until_true(lambda: said[-1:] == [b"members: a.b-c\n"])
        finally:
            if asking.returncode is None:
                asking.kill()
            await heard


# ------------------------------------------------------------------------------------------------- operators


async def test_what_is_left_is_listed_and_removed(backend):
    log = await backend.log(1)
    copy = Copy(log)
    await copy.take()
    bad = Write((0, 0), [0], [(b"1", b"v", [("\ud800", b"x")], NOW)], Place("0", 1, "s"), [], 1)
    await log.append(copy.claim, [bad])
    await log.close()
    inspector = KafkaInspector(KafkaSettings(backend.properties), log.name)
    found = await inspector.footprint(copy.route)
    assert set(found) >= {
        f"topic crossfade.{copy.route}.lanes",
        f"topic crossfade.{copy.route}.quarantine",
        f"group crossfade.{copy.route}",
        f"document target/{log.name}",
    }
    await inspector.erase(copy.route, found)
    assert await inspector.footprint(copy.route) == []
    assert await (await backend.other(log)).cluster.topic(log.name) is not None


async def test_the_doctor_finds_a_fit_target_fit(lab, backend):
    log = await make_kafka_log(backend.properties, 2, f"doctor-{secrets.token_hex(4)}")
    inspector = KafkaInspector(KafkaSettings(backend.properties), log.name)
    await Copy(log).begin(0, 1)  # Kafka makes its own topics at the first transaction
    found = {finding.check: finding for finding in await inspector.inspect("target", 86_400)}
    assert {check for check, finding in found.items() if finding.level.value == "fail"} == set()
    assert found["kafka.min-insync-replicas"].level.value == "ok"
    assert found["kafka.transactions-topic"].level.value == "ok"
    assert found["kafka.clock"].level.value == "by-hand"
    assert {check for check, finding in found.items() if finding.level.value == "unknown"} == set()
    missing = KafkaInspector(KafkaSettings(backend.properties), "no-such-topic")
    assert next(f.level.value for f in await missing.inspect("source", 1)) == "fail"
    await log.close()
