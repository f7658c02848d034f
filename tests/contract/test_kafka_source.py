"""What only Kafka can do to a reader: open and aborted transactions, logs that were cut off, deleted topics."""

import asyncio
import secrets
import time

import msgspec
import pytest
from confluent_kafka import Producer
from kafka_copy import NOW
from kafka_fixture import KafkaBackend, open_kafka_log

from crossfade.brokers.kafka import KafkaLog, KafkaSettings
from crossfade.brokers.kafka.cluster import LATEST
from crossfade.brokers.kafka.source import SourceReader
from crossfade.brokers.protocol import Start
from crossfade.errors import (
    AccessRefused,
    LaneError,
    SourceDamaged,
    SourceRegressed,
    SourceReset,
    SourceTrimmed,
    Unreachable,
)
from crossfade.model.position import Place

pytestmark = pytest.mark.lab


@pytest.fixture
async def backend(lab):
    made = KafkaBackend(lab)
    yield made
    await made.close()


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
    assert "open transaction" in (await log.bounds([0]))[0].held_up
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


async def until_all_know(lab, topic, leader):
    """Each broker learns of a new leader in its own time; till then the old one takes records in its epoch."""
    until = time.monotonic() + 20
    for server in lab.kafka_properties(direct=True)["bootstrap.servers"].split(","):
        while True:
            client = Producer({"bootstrap.servers": server})  # a new one asks the server that it is given
            found = await asyncio.to_thread(client.list_topics, topic, 10)
            if found.topics[topic].partitions[0].leader == leader:
                break
            assert time.monotonic() < until
            await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)  # what a broker says it does a moment later


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


@pytest.mark.parametrize(("position", "sought_after_s"), [(4, 0.0), (20, 0.0), (20, 0.3)])
async def test_a_log_that_was_cut_off_and_has_grown_since_halts_whoever_asks(
    lab, backend, monkeypatch, position, sought_after_s
):
    """The place names a record of an epoch that ended before it. The handle that was told once is told again, and the
    cut is where that epoch ended, also while the log has not grown as far again, and where a fetch that is refused for
    its offset comes before the seek that lets the broker look at the epoch."""
    check_epochs = SourceReader._check_epochs

    def late(reader, partitions):
        time.sleep(sought_after_s)
        check_epochs(reader, partitions)

    monkeypatch.setattr(SourceReader, "_check_epochs", late)
    log = await backend.log(1)
    await backend.write_native(log, 0, [(b"k", b"before", None, NOW)])
    incarnation = (await log.begin([0], Start()))[0].incarnation
    moved = await asyncio.to_thread(lab.faults.move_leader, log.name, 0)
    await until_all_know(lab, log.name, int(moved.observed["new_leader"].removeprefix("kafka-")))
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


@pytest.mark.parametrize(
    ("at", "what"), [(16, "MagicByte"), (66, "CRC32C")], ids=["a format of another time", "a checksum that is wrong"]
)
async def test_nothing_is_read_past_a_damaged_batch(backend, lab, at, what):
    """The client tells of the batch, passes over it and goes on behind; the relay must not."""
    log = await backend.log(2)
    for number in range(4):  # a batch each
        await backend.write_native(log, 0, [(b"k", b"%d" % number, None, NOW)])
    await backend.write_native(log, 1, [(b"k", b"other", None, NOW)])
    whole = _copies(lab, f"{log.name}-0")
    for path, data in whole.items():
        second = 12 + int.from_bytes(data[8:12], "big")
        assert int.from_bytes(data[second : second + 8], "big") == 1
        _overwrite(path, second + at, bytes([data[second + at] ^ 0x55]))
    places, values, errors = await log.begin([0, 1], Start()), {0: [], 1: []}, []
    until = time.monotonic() + 30
    while len(errors) < 3:
        assert time.monotonic() < until
        for lane, found in (await log.read(places, 10, 1 << 20, 0.5)).items():
            if isinstance(found, LaneError):
                assert lane == 0
                errors.append(found)
            else:
                values[lane] += [row[1] for row in found.rows]
                places[lane] = found.place
    assert values == {0: [b"0"], 1: [b"other"]}
    assert all(isinstance(error, SourceDamaged) and what in error.message for error in errors)
    for path, data in whole.items():
        _overwrite(path, 0, data)
    until = time.monotonic() + 30
    while len(values[0]) < 4:
        assert time.monotonic() < until
        for lane, found in (await log.read(places, 10, 1 << 20, 0.5)).items():
            if not isinstance(found, LaneError):
                values[lane] += [row[1] for row in found.rows]
                places[lane] = found.place
    assert values[0] == [b"0", b"1", b"2", b"3"]


def _copies(lab, partition):
    """The log of a partition on every broker, with what it holds."""
    paths = lab.folder.glob(f"data/kafka-*/{partition}/00000000000000000000.log")
    found = {path: path.read_bytes() for path in paths}
    assert len(found) == 3
    return found


def _overwrite(path, at, data):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


async def test_a_place_that_is_refused_before_it_is_sought_is_named(backend, monkeypatch):
    """The assignment alone has asked for it, and nothing can be sought in a lane that was refused."""
    log = await backend.log(1)
    await backend.write_native(log, 0, [(b"k", b"%d" % number, None, NOW) for number in range(6)])
    values, place = await read_until(log, (await log.begin([0], Start()))[0])
    assert (values[0], place.witness) == (b"0", "0")
    place = msgspec.structs.replace(place, position="2", count=3)
    await log.cluster.delete_records(log.name, {0: 5})
    seek = SourceReader._check_epochs

    def late(reader, partitions):
        time.sleep(1)
        seek(reader, partitions)

    monkeypatch.setattr(SourceReader, "_check_epochs", late)
    reader, found = await backend.other(log), {}
    until = time.monotonic() + 20
    while not found:
        assert time.monotonic() < until
        found = await reader.read({0: place}, 10, 1 << 20, 0.5)
    assert isinstance(found[0], SourceTrimmed)


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
