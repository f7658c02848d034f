"""What a claim on a Kafka topic finds: torn transactions, expired markers, re-created targets, and who may write."""

import asyncio
import dataclasses
import secrets
import time

import msgspec
import pytest
from confluent_kafka import Consumer, KafkaException, Producer
from kafka_copy import NOW, Copy, keys
from kafka_fixture import KafkaBackend

from crossfade.brokers.kafka import KafkaLog, KafkaSettings, names, tail
from crossfade.brokers.kafka import markers as kafka_markers
from crossfade.brokers.kafka.claims import Claims
from crossfade.brokers.kafka.cluster import Cluster
from crossfade.brokers.kafka.edges import EdgeReader
from crossfade.brokers.kafka.writer import Writer
from crossfade.brokers.protocol import Appended, Start
from crossfade.errors import (
    Fenced,
    GuaranteeRefused,
    Indeterminate,
    RouteConflict,
    SourceReset,
    TargetReset,
    TargetTorn,
)
from crossfade.model.position import Place
from crossfade.model.record import Write
from crossfade.model.wire import XF, Origin, encode_origin

pytestmark = pytest.mark.lab

ZEROS = "A" * 22


@pytest.fixture
async def backend(lab):
    made = KafkaBackend(lab)
    yield made
    await made.close()


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


def halted_append(copy, first, count):
    """An append of a relay that stands still behind its records; what is left of it, to be called later."""
    claim, producer = copy.claim, copy.claim.writer._producer
    last, offsets = first + count - 1, []
    producer.begin_transaction()
    for n in range(first, first + count):
        origin = encode_origin(Origin(copy.route, 0, str(n), n + 1, claim.epoch))
        producer.produce(
            copy.log.name,
            b"v",
            b"%d" % n,
            0,
            lambda _, message: offsets.append(message.offset()),
            headers=[(XF, origin)],
        )
    until = time.monotonic() + 20
    while len(offsets) < count:
        assert time.monotonic() < until
        producer.poll(0.1)
    marker = msgspec.structs.replace(
        claim.markers[0, 0],
        place=Place(str(last), last + 1, "source-id"),
        ordinal=last + 1,
        relayed=str(last),
        target=str(offsets[-1]),
    )

    def finish():
        stored = kafka_markers.offsets(copy.route, {(0, 0): marker}, {0}, [(0, 0)])
        producer.send_offsets_to_transaction(stored, claim.group, 10)
        producer.commit_transaction(10)

    return finish


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


async def test_who_has_copied_nothing_does_not_take_a_topic_made_anew_for_who_has(backend):
    """Nor copies into it: the way out copies the whole route anew."""
    log = await backend.log(2)
    copy = Copy(log, paths=((0, 0), (1, 1)), shard=(0, 1))
    await copy.take()
    began = Write((1, 1), [], [], Place("", 0, "source-id"), [], 10)
    await log.append(copy.claim, [copy.write(0, 10), began])
    await backend.recreate(log, 0)
    other = Copy(await backend.other(log), copy.route, paths=((1, 1),), shard=(0, 1))
    again = await backend.other(log)
    for taker, at, records in ((other, other.log, {(1, 1): 0}), (copy, again, {(0, 0): 10, (1, 1): 0})):
        for _ in range(2):
            claim = await taker.take(at)
            for path in set(taker.paths) - set(claim.errors):  # what goes on copies
                await at.append(claim, [taker.write(0, 5, path)])
            assert claim.errors.keys() == records.keys()
            for path, copied in records.items():
                assert f"had copied into it ({copied} records of this lane)" in claim.errors[path].message
    assert [await keys(backend, log, lane) for lane in (0, 1)] == [[], []]


async def test_all_processes_take_a_topic_made_anew_before_anything_was_copied(backend):
    log = await backend.log(2)
    one = Copy(log, paths=((0, 0),), shard=(0, 2))
    two = Copy(await backend.other(log), one.route, "two", paths=((1, 1),), shard=(1, 2))
    for copy in (one, two):
        await copy.take()
    await backend.recreate(log, 0)
    for first in (0, 3):
        for copy in (one, two):  # whoever comes second finds records that the first one has copied since
            assert (await copy.take()).errors == {}
            await copy.log.append(copy.claim, [copy.write(first, 3, copy.paths[0])])
    assert [await keys(backend, log, lane) for lane in (0, 1)] == [[0, 1, 2, 3, 4, 5]] * 2


async def test_a_topic_made_anew_that_another_process_takes_meanwhile_halts_nobody(backend, monkeypatch):
    log = await backend.log(2)
    one = Copy(log, paths=((0, 0),), shard=(0, 2))
    two = Copy(await backend.other(log), one.route, "two", paths=((1, 1),), shard=(1, 2))
    for copy in (one, two):
        await copy.take()
        (path,) = copy.paths
        await copy.log.append(copy.claim, [Write(path, [], [], Place("", 0, "source-id"), [], 10)])
    await backend.recreate(log, 0)
    look = Claims._has_copied

    async def late(claims, route):
        monkeypatch.setattr(Claims, "_has_copied", look)
        await one.take()
        await log.append(one.claim, [one.write(0, 3)])
        return await look(claims, route)

    monkeypatch.setattr(Claims, "_has_copied", late)
    assert (await two.take()).errors == {}
    assert await keys(backend, log) == [0, 1, 2]


async def test_ids_that_come_with_an_upgrade_of_the_brokers_halt_nothing(backend, monkeypatch):
    """Before 2.8, or while the brokers speak as such ones, they tell zeros."""
    log = await backend.log(1)
    copy = Copy(log)
    told, facts = Cluster.topic, await log.cluster.topic(log.name)

    async def topic(cluster, name, **options):
        found = await told(cluster, name, **options)
        return None if found is None else dataclasses.replace(found, topic_id=ZEROS)

    async def topic_id(cluster, name):
        return ZEROS

    with monkeypatch.context() as old:
        old.setattr(Cluster, "topic", topic)
        old.setattr(Cluster, "topic_id", topic_id)
        await copy.begin()
        place = (await log.begin([0], Start()))[0]
        assert place.incarnation == ZEROS
    log._target._topics._limits_at = -1000.0  # asked again in the next append
    await copy.append(10, 1)
    batch = (await log.read({0: place}, 5, 100_000, 10.0))[0]
    assert batch.place.incarnation == facts.topic_id
    with monkeypatch.context() as old:
        old.setattr(Cluster, "topic_id", topic_id)
        batch = (await log.read({0: batch.place}, 3, 100_000, 10.0))[0]
    assert batch.place.incarnation == facts.topic_id
    for found in (log, await backend.other(log), await backend.other(log)):
        assert (await copy.take(found)).errors == {}
    await backend.recreate(log, 0)
    error = (await copy.take(await backend.other(log))).errors[0, 0]
    assert f"made anew (id {facts.topic_id} is now" in error.message
    assert isinstance((await log.read({0: batch.place}, 100, 100_000, 10.0))[0], SourceReset)


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


async def test_who_wrote_last_under_another_id_can_commit_nothing_behind_the_claim(backend):
    """`relay start` and each `relay run --shard` have ids of their own: no id of theirs fences another one."""
    log = await backend.log(1)
    older = Copy(log, shard=(0, 2))
    await older.begin()
    finish = await asyncio.to_thread(halted_append, older, 10, 5)
    newer = Copy(await backend.other(log), older.route, "two")
    claim = await newer.take()
    assert claim.markers[0, 0].ordinal == 10
    with pytest.raises(KafkaException) as late:
        await asyncio.to_thread(finish)
    assert late.value.args[0].fatal()
    await newer.append(10, 5)
    assert await keys(backend, log) == list(range(15))


async def test_what_is_committed_before_the_fence_is_seen_by_the_claim(backend, monkeypatch):
    """Nothing of an older claim becomes visible once the producer is initialised; until then anything may."""
    log = await backend.log(1)
    older = Copy(log)
    await older.begin()
    finish = await asyncio.to_thread(halted_append, older, 10, 5)
    unfinished, opened = [finish], Writer.open

    async def open_after_a_commit(writer):
        while unfinished:
            await asyncio.to_thread(unfinished.pop())
        await opened(writer)

    monkeypatch.setattr(Writer, "open", open_after_a_commit)
    newer = Copy(await backend.other(log), older.route, "two")
    claim = await newer.take()
    assert not unfinished
    assert (claim.markers[0, 0].ordinal, claim.alarms) == (15, [])
    await newer.append(15, 2)
    assert await keys(backend, log) == list(range(17))


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
