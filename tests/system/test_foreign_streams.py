"""Streams that other software wrote and goes on writing: job queues on Redis, and every kind of Kafka producer.

The software here does what it does in the world: it trims, acknowledges and deletes, compresses in its own way, aborts
transactions, leaves keys and values out. The relay must copy all of it and touch none of it.
"""

from __future__ import annotations

import base64
import gzip
import json
import secrets
import struct
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from kafka import KafkaProducer
from rig import Copy, KafkaSide, RedisSide, Side, wait_for
from tests.oracle.judge import judge
from tests.oracle.rows import Lane, record_row

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

Row = tuple[bytes, ...]


# -- job queues on Redis ----------------------------------------------------------------------------------------------


def _jobs(numbers: range) -> list[list[bytes]]:
    """Entries as task queues write them: one JSON field, many fields, packed bodies, events, empty ones, repeats."""
    out: list[list[bytes]] = []
    for number in numbers:
        body = base64.b64encode(json.dumps([[number], {}, {"callbacks": None}]).encode())
        task = {"body": body.decode(), "headers": {"task": "tasks.add", "id": f"{number:032x}"}, "properties": {}}
        shapes: list[list[bytes]] = [
            [b"payload", json.dumps(task).encode()],
            [b"event", b"waiting", b"jobId", b"%d" % number, b"prev", b""],
            [b"job_id", b"%d" % number, b"data", gzip.compress(b"x" * 50, mtime=0), b"attempt", b"1", b"", b""],
            [b"message", struct.pack(">I", number) + bytes(range(256))],
            [b"arg", b"1", b"arg", b"2", b"arg", b"%d" % number],
            [b"key", b"k-%d" % (number % 7), b"value", b"%d" % number],
        ]
        out.append(shapes[number % len(shapes)])
    return out


class JobQueue:
    """A queue over the lanes of a side: producers that trim, workers that acknowledge and delete."""

    def __init__(self, side: RedisSide) -> None:
        self.side = side
        self.client = side.client
        #: what must arrive, per lane
        self.written: dict[int, list[Row]] = {lane: [] for lane in range(side.lanes)}

    def add(self, lane: int, jobs: list[list[bytes]], *options: str, entry_id: str = "*") -> None:
        pipe = self.client.pipeline(transaction=False)
        for job in jobs:
            pipe.execute_command("XADD", self.side.key(lane), *options, entry_id, *job)
        assert None not in pipe.execute()
        self.written[lane] += [tuple(job) for job in jobs]

    def work(self, lane: int, count: int, *, delete: bool = False) -> None:
        """A worker takes jobs, acknowledges them and, as many libraries do, deletes them."""
        key = self.side.key(lane)
        reply = self.client.xreadgroup("workers", "w-1", {key: ">"}, count)
        ids = [entry[0] for entry in reply[0][1]]
        assert len(ids) == count
        assert self.client.xack(key, "workers", *ids) == count
        if delete:
            assert self.client.xdel(key, *ids) == count

    def group(self, lane: int) -> dict[str, Any]:
        """What the server says about the workers' group."""
        found = self.client.xinfo_groups(self.side.key(lane))
        return next(dict(info) for info in found if info["name"] == b"workers")


@pytest.mark.parametrize("way", ["rk", "rr"])
def test_a_job_queue_is_copied_while_it_is_worked_off(workshop: Any, way: str) -> None:
    made: Copy = workshop.copy(workshop.redis(3), workshop.side(way[1], 3))
    assert isinstance(made.source, RedisSide)
    queue = JobQueue(made.source)
    # Long before anybody thought of copying: trimmed, worked off, deleted; explicit ids as old exports have them.
    for lane in range(3):
        queue.add(lane, _jobs(range(5)), entry_id=f"1-{'*'}")
        queue.client.xgroup_create(made.source.key(lane), "workers", "0")
        queue.add(lane, _jobs(range(60)))
        queue.work(lane, 40, delete=lane == 1)
        queue.work(lane, 5)
    queue.client.xtrim(made.source.key(0), maxlen=45, approximate=False)
    queue.client.xdel(made.source.key(2), made.source.raw()[2][10][0])
    left = made.source.rows()
    assert [len(left[lane]) for lane in range(3)] == [45, 25, 64]
    queue.written = dict(left)
    relay = made.run("--start", by_hand=True)
    made.wait_drained()
    # From now on it is copied while producers trim generously and workers delete what they have done.
    for turn in range(4):
        for lane in range(3):
            queue.add(lane, _jobs(range(100 * turn, 100 * turn + 90)), "NOMKSTREAM", "MAXLEN", "~", "100000")
        expected = sum(map(len, queue.written.values()))
        made.wait_drained(records=expected)
        for lane in range(3):
            queue.work(lane, 60, delete=True)
        queue.client.xtrim(made.source.key(0), maxlen=100, approximate=True)
    groups = [queue.group(lane) for lane in range(3)]
    assert [(info["consumers"], info["pending"]) for info in groups] == [(1, 0)] * 3
    queue.add(0, _jobs(range(1)))
    made.wait_drained(records=expected + 1)
    assert relay.stop() == 0
    assert made.target.rows() == queue.written
    # The workers' own books are as they left them, and they go on.
    assert [queue.group(lane)["last-delivered-id"] for lane in range(3)] == [i["last-delivered-id"] for i in groups]
    queue.work(0, 30)


# -- producers of every kind on Kafka ---------------------------------------------------------------------------------


def _committed(side: KafkaSide) -> dict[int, Lane]:
    """A topic as the oracle's rows, read by librdkafka: the oracle's own client knows neither snappy nor zstd."""
    consumer = Consumer(
        {
            **side.direct,
            "group.id": f"foreign-{secrets.token_hex(4)}",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    consumer.assign([TopicPartition(side.topic, lane, 0) for lane in range(side.lanes)])
    found = {lane: Lane() for lane in range(side.lanes)}
    ended: set[int] = set()

    def at_end() -> bool:
        for message in consumer.consume(500, 0.2):
            if message.error() is not None:
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                ended.add(message.partition())
                continue
            headers = [(name, value) for name, value in message.headers() or []]
            row, time_ms = record_row(message.key(), message.value(), headers, message.timestamp()[1])
            found[message.partition()].add(message.offset(), 0, row, time_ms)
        return len(ended) == side.lanes

    wait_for(at_end, f"the end of {side.topic}", pause_s=0)
    consumer.close()
    return found


def _by_kafka_python(side: KafkaSide, lane: int) -> int:
    """gzip, null keys, null values, empty ones, the same header twice."""
    producer = KafkaProducer(
        bootstrap_servers=side.direct["bootstrap.servers"].split(","), compression_type="gzip", linger_ms=20, acks="all"
    )
    records: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]] = [
        (None, b"no key", []),
        (b"deleted", None, []),
        (b"", b"", [("h", b"1"), ("h", b"2"), ("", b"")]),
        (b"user-1", b"x" * 5000, [("content-type", b"application/json"), ("traceparent", b"00-ab-cd-01")]),
    ]
    for number, (key, value, headers) in enumerate(records * 25):
        producer.send(side.topic, value, key, headers, partition=lane, timestamp_ms=1_700_000_000_000 + number)
    producer.flush(60)
    producer.close()
    return 100


def _by_each_codec(side: KafkaSide, lane: int) -> int:
    """One batch after the other, each compressed in another way; headers without a value."""
    for codec in ("snappy", "zstd", "gzip", "lz4", "none"):
        producer = Producer({**side.direct, "compression.type": codec, "linger.ms": 50})
        for number in range(40):
            value = f"{codec}-{number}-".encode() + b"abc" * 300
            producer.produce(
                side.topic, value, b"k-%d" % number, lane, headers=[("codec", codec.encode()), ("n", None)]
            )
        assert producer.flush(60) == 0
    return 200


def _by_transactions(side: KafkaSide, lane: int) -> int:
    """Committed and aborted transactions of one application, between plain records of another."""
    name = f"app-{secrets.token_hex(4)}"
    app = Producer({**side.direct, "transactional.id": name, "linger.ms": 5})
    other = Producer({**side.direct, "linger.ms": 5})
    app.init_transactions(30)
    kept = 0
    for turn in range(6):
        app.begin_transaction()
        for number in range(15):
            app.produce(side.topic, f"turn-{turn}-{number}".encode(), b"tx", lane)
        app.flush(30)
        for number in range(5):
            other.produce(side.topic, f"between-{turn}-{number}".encode(), None, lane)
        assert other.flush(30) == 0
        kept += 5
        if turn % 2:
            app.abort_transaction(30)
        else:
            app.commit_transaction(30)
            kept += 15
    return kept


def _by_connectors(side: KafkaSide, lane: int) -> int:
    """Connect's JSON with its schema, a registry's frame around Avro, Debezium's tombstones."""
    producer = Producer({**side.direct, "linger.ms": 5})
    schema = {"type": "struct", "optional": False, "fields": [{"field": "id", "type": "int64", "optional": False}]}
    for number in range(40):
        key = json.dumps({"schema": schema, "payload": {"id": number}}).encode()
        value = json.dumps({"schema": schema, "payload": {"before": None, "after": {"id": number}, "op": "c"}}).encode()
        producer.produce(side.topic, value, key, lane)
        producer.produce(side.topic, None, key, lane)
        framed = b"\x00" + struct.pack(">I", 7) + bytes([2 * number]) + b"\x00\xff"
        producer.produce(side.topic, framed, framed[:6], lane, headers=[("__connect.errors.topic", b"dead")])
    assert producer.flush(60) == 0
    return 120


_PRODUCERS: list[Callable[[KafkaSide, int], int]] = [_by_kafka_python, _by_each_codec, _by_transactions, _by_connectors]
_KINDS = {
    "plain": {},
    "broker's time": {"message.timestamp.type": "LogAppendTime"},
    "compacted": {"cleanup.policy": "compact", "segment.ms": "1000", "min.cleanable.dirty.ratio": "0.01"},
}


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        ("kr", "broker's time"),
        pytest.param("kr", "plain", marks=pytest.mark.long),
        pytest.param("kk", "plain", marks=pytest.mark.long),
        pytest.param("kk", "broker's time", marks=pytest.mark.long),
    ],
)
def test_what_other_clients_produced_arrives_as_it_was(workshop: Any, way: str, kind: str) -> None:
    source: KafkaSide = workshop.kafka(4, _KINDS[kind])
    target: Side = workshop.side(way[1], 4)
    made: Copy = workshop.copy(source, target)
    early = sum(produce(source, lane) for lane, produce in enumerate(_PRODUCERS))
    relay = made.run("--start", by_hand=True)
    made.wait_drained(records=early)
    # The same once more while it copies, and an application that sits on an open transaction.
    app = Producer({**source.direct, "transactional.id": f"app-{secrets.token_hex(4)}"})
    app.init_transactions(30)
    app.begin_transaction()
    app.produce(source.topic, b"in the open transaction", b"tx", 0)
    app.flush(30)
    late = sum(produce(source, lane) for lane, produce in enumerate(_PRODUCERS))
    made.wait_drained([1, 2, 3], records=sum(len(lane) for number, lane in _committed(source).items() if number))
    assert made.target.count([0]) == 100  # nothing is read past an open transaction
    app.commit_transaction(30)
    made.wait_drained(records=early + late + 1)
    assert relay.stop() == 0
    result = judge(_committed(source), target.read())
    assert result.differences == 0, result.as_dict()
    assert result.source_records == result.records == early + late + 1


class _Latin(str):
    """A header name as clients write it that take names for bytes: nobody on the way to the log checks it."""

    def encode(self, *_: str) -> bytes:
        return b"caf\xe9"


@pytest.mark.parametrize("way", ["kr", "kk"])
def test_a_header_name_that_is_no_text_puts_its_record_aside(workshop: Any, way: str) -> None:
    source: KafkaSide = workshop.kafka(2)
    made: Copy = workshop.copy(source, workshop.side(way[1], 2))
    producer = KafkaProducer(bootstrap_servers=source.direct["bootstrap.servers"].split(","), acks="all", linger_ms=20)
    expected: dict[int, list[bytes]] = {0: [], 1: []}
    for number in range(300):
        lane, value, headers = number % 2, b"%d" % number, [("h", b"1")] if number % 3 else []
        if number % 100 == 50:  # in lane 0
            headers.append((_Latin("cafe"), b"au lait"))
        else:
            expected[lane].append(value)
        producer.send(source.topic, value, b"k", headers, partition=lane)
    producer.flush(60)
    producer.close()
    relay = made.run("--start", by_hand=True)
    made.wait_drained(records=297)
    row = made.wait_status(f"{source.topic}[0]", lambda row: row["quarantined"] == 3, "shows the quarantine")
    assert row["state"] in ("idle", "copying")
    assert {lane: [_value(row) for row in rows] for lane, rows in made.target.rows().items()} == expected
    verdict = made.cli("verify")
    assert verdict.code == 0, verdict.out
    assert relay.stop() == 0


def _value(row: Row) -> bytes:
    """The value of an oracle's row."""
    return dict(zip(row[::2], row[1::2], strict=True))[b"value"]


@pytest.mark.long
def test_a_compacted_topic_with_holes_is_copied(workshop: Any) -> None:
    """After the cleaner has been there offsets are missing; what is left is copied, and that is all."""
    source: KafkaSide = workshop.kafka(1, _KINDS["compacted"])
    made: Copy = workshop.copy(source, workshop.redis(1))

    def holes() -> bool:
        source.write(0, [(b"tick", b"", None, 0)])  # a segment rolls only when something is written
        offsets = list(_committed(source)[0].major)
        return len(offsets) < offsets[-1] + 1 - 500

    source.write(0, [(b"k-%d" % (n % 50), b"%d" % n, None, 0) for n in range(2000)])
    wait_for(holes, "the cleaner", pause_s=1.0)
    relay = made.run("--start", by_hand=True)
    wait_for(lambda: judge(_committed(source), made.target.read()).differences == 0, made.said, pause_s=0.5)
    source.write(0, [(b"k-%d" % n, b"late", None, 0) for n in range(50)])
    wait_for(lambda: made.target.count() >= 100 and made.target.rows()[0][-1][1] == b"k-49", made.said)
    assert relay.stop() == 0
