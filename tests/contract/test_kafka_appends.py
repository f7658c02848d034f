"""What can go wrong in an append to Kafka: doubtful commits, spent producers, records that the broker refuses."""

import asyncio
import os
import time

import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaError, KafkaException, Producer
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource
from kafka_copy import NOW, Copy, keys
from kafka_fixture import KafkaBackend

from crossfade.brokers.kafka import markers as kafka_markers
from crossfade.errors import Fenced, Indeterminate, RouteConflict, TargetReset
from crossfade.model.position import Place
from crossfade.model.record import Write
from crossfade.model.wire import decode_origin

pytestmark = pytest.mark.lab


@pytest.fixture
async def backend(lab):
    made = KafkaBackend(lab)
    yield made
    await made.close()


# ------------------------------------------------------------------------------------------------- doubt


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

    monkeypatch.setattr(log.cluster, "live_instances", live)
    with pytest.raises(RouteConflict):
        await copy.append(11, 1)
    with pytest.raises(Fenced):
        await copy.append(11, 1)
    with pytest.raises(RouteConflict):
        await copy.take()
    assert await keys(backend, log) == list(range(11))


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
    log = await backend.log(1, {"cleanup.policy": "compact"})
    copy = Copy(log)
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


# ------------------------------------------------------------------------------------------ topics that change under it


async def append_at_last(copy, number, **more):
    """As the relay does: doubt is answered by a claim. A broker may know of a change to a topic later than others."""
    deadline = time.monotonic() + 90
    while True:
        try:
            return await copy.append(number, 1, **more)
        except (Indeterminate, Fenced):
            assert time.monotonic() < deadline
            await copy.take()


@pytest.mark.parametrize("count", [3, 30])  # fewer and more than the topic had
async def test_nothing_is_committed_into_a_topic_that_was_made_anew_under_a_claim(backend, count):
    """The client follows the name, and the brokers take what it goes on with."""
    log = await backend.log(1)
    copy = Copy(log)
    await copy.begin()
    await backend.recreate(log, 0)
    with pytest.raises((Indeterminate, Fenced)):
        await copy.append(10, count)
    assert await keys(backend, log) == []
    claim = await copy.take()
    assert isinstance(claim.errors[0, 0], TargetReset)


async def test_a_quarantine_that_was_deleted_is_made_again(backend):
    log = await backend.log(1)
    copy = Copy(log)
    await copy.begin()

    too_large = os.urandom(100_000)
    # The size is looked at once a broker has refused it.
    assert (await append_at_last(copy, 10, value=too_large)).quarantined == 1
    await log.cluster.delete_topics([f"crossfade.{copy.route}.quarantine"])
    await log.cluster.wait_gone(f"crossfade.{copy.route}.quarantine")
    assert (await append_at_last(copy, 11, value=too_large)).quarantined == 1
    kept: list[str] = []
    deadline = time.monotonic() + 60
    while not kept and time.monotonic() < deadline:  # who is asked first may not know the new topic yet
        kept = [position for _, position, _ in await backend.quarantined(log, copy.route)]
    assert kept == ["11"]


async def test_records_keep_their_times_where_the_topic_begins_to_give_its_own(backend):
    log = await backend.log(1)
    copy = Copy(log)
    await copy.begin()
    change = ConfigResource(ConfigResource.Type.TOPIC, log.name)
    change.add_incremental_config(
        ConfigEntry("message.timestamp.type", "LogAppendTime", incremental_operation=AlterConfigOpType.SET)
    )
    log.cluster.admin.incremental_alter_configs([change])[change].result(30)
    number, told = 10, ""
    deadline = time.monotonic() + 60
    while not told and time.monotonic() < deadline:  # the leader hears of it in a moment
        try:
            await copy.append(number, 1)
            number += 1
        except Indeterminate as error:
            told = error.message
    assert "its own time" in told
    await append_at_last(copy, number)
    rows = await backend.read_all(log, 0)
    assert [int(row[0]) for row in rows] == list(range(number + 1))
    for _, _, headers, time_ms in rows:
        own = decode_origin(dict(headers)["xf"]).time_ms
        assert (time_ms if own is None else own) == NOW


async def test_a_broker_tells_the_latest_time_of_a_batch_that_it_has_already(backend, lab):
    """As if the topic gave records its own time: what the writer has to tell from a topic that does."""
    log = await backend.log(1)
    told = []

    def lose_the_answer():
        producer = Producer(
            backend.properties | {"enable.idempotence": True, "linger.ms": 50, "retry.backoff.ms": 200, "retries": 9}
        )

        def produce(*times):
            for time_ms in times:
                producer.produce(
                    log.name, b"v", b"k", 0, timestamp=time_ms, callback=lambda _, message: told.append(message)
                )
            return producer.flush(30)

        assert produce(NOW) == 0
        lost = lab.faults.drop_replies(lab.kafka_leader(log.name), heal_after_s=1.5)
        assert produce(NOW - 7, NOW - 5, NOW - 6) == 0
        lost.wait_healed()

    await asyncio.to_thread(lose_the_answer)
    assert [message.timestamp() for message in told[1:]] == [(TIMESTAMP_LOG_APPEND_TIME, NOW - 5)] * 3
    assert [time_ms for _, _, _, time_ms in await backend.read_all(log, 0)] == [NOW, NOW - 7, NOW - 5, NOW - 6]
