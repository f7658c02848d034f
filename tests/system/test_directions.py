"""All four directions, N to M by key, and the shapes that other software writes: the oracle finds every byte in place.

Partition numbers by key are recomputed here with kafka-python's murmur2, not with the product's.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.partitioner.default import murmur2
from rig import Copy, KafkaSide, RedisSide, Side, Writer, plain_value

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

_WAYS = ["rk", "kr", "kk", "rr"]
#: a topic that takes any time of its records
_ANY_TIME = {"message.timestamp.after.max.ms": str(2**63 - 1), "message.timestamp.before.max.ms": str(2**63 - 1)}


@pytest.mark.parametrize("way", ["kk", "rr"])
def test_live_copy_between_brokers_of_one_kind(copy: Callable[..., Copy], way: str) -> None:
    made = copy(way[0], way[1])
    writer = Writer(made.source, records_max=4000)
    writer.start()
    first = made.run("--start", by_hand=True)
    made.wait_drained(records=500)
    first.kill()
    made.run(by_hand=True).wait_said('"claimed"')
    written = writer.stop()
    made.wait_drained()
    assert made.check(500).source_records == written


# -- N to M -----------------------------------------------------------------------------------------------------------


def _by_key(rows: dict[int, list[tuple[bytes, ...]]]) -> dict[bytes, list[tuple[int, tuple[bytes, ...]]]]:
    """Key -> (lane, row), in the order of each lane."""
    found: dict[bytes, list[tuple[int, tuple[bytes, ...]]]] = defaultdict(list)
    for lane in sorted(rows):
        for row in rows[lane]:
            assert row[0] == b"key"
            found[row[1]].append((lane, row))
    return found


_DAILY = [("rk", 2, 5), ("kr", 5, 2), ("kk", 5, 2), ("rr", 2, 5)]
_TURNED = [(way, target, source) for way, source, target in _DAILY]
#: one source lane alone: entry ids stand for the marks
_ALONE = [("rr", 1, 3), ("kr", 1, 3)]


@pytest.mark.parametrize(
    ("way", "source_lanes", "target_lanes"),
    [*_DAILY, _ALONE[0], *[pytest.param(*case, marks=pytest.mark.long) for case in [*_TURNED, _ALONE[1]]]],
)
def test_n_to_m_by_key_keeps_the_order_of_each_key(workshop, way: str, source_lanes: int, target_lanes: int) -> None:
    source: Side = workshop.side(way[0], source_lanes)
    target: Side = workshop.side(way[1], target_lanes)
    made: Copy = workshop.copy(source, target, lanes="by-key")
    made.start()
    keys = [b"user-%d" % number for number in range(40)]
    numbers = itertools.count()

    def write(rounds: int) -> None:
        for lane in range(source_lanes):
            mine = [key for at, key in enumerate(keys) if at % source_lanes == lane] * rounds
            if isinstance(source, RedisSide):
                source.write(lane, [[b"key", key, b"value", plain_value(next(numbers))] for key in mine])
            else:
                source.write(lane, [(key, plain_value(next(numbers)), None, 0) for key in mine])

    write(15)
    first = made.run(by_hand=True, kill_at="relay.append.after:2")
    first.wait_end()
    write(5)
    made.run(by_hand=True)
    made.wait_drained()
    here, there = _by_key(source.rows()), _by_key(target.rows())
    assert here.keys() == there.keys() == set(keys)
    for key in keys:
        assert [row for _, row in there[key]] == [row for _, row in here[key]], key
        assert {lane for lane, _ in there[key]} == {(murmur2(key) & 0x7FFFFFFF) % target_lanes}, key
    verdict = made.cli("verify")
    assert verdict.code == 0, verdict.out


# -- shapes -----------------------------------------------------------------------------------------------------------

_BINARY = bytes(range(256))
_ENTRIES: list[list[bytes]] = [
    [b"key", b"k", b"value", b"v"],
    [b"value", b"v", b"key", b"k"],
    [b"key", b"k"],
    [b"value", b""],
    [b"tombstone", b""],
    [b"tag", b"a", b"tag", b"b", b"tag", b"a"],
    [b"key", b"k", b"key", b"k2", b"value", b"v"],
    [b"key", b"k", b"value", b"v", b"header:a", b"1", b"header:a", b"2", b"header-null:b", b""],
    [b"header-null:b", b"not empty"],
    [b"", b"", b"", b"again"],
    [_BINARY, _BINARY, b"\r\n$-1\r\n", b"\xff\xfe"],
    [b"xf", b"an application's own"],
    [b"value", b"\xffxf-entry;1;\x00\x00"],
    [b"body", b'{"a": 1}', b"type", b"order.created", b"at", b"1700000000"],
    [part for n in range(600) for part in (b"f%d" % n, b"%d" % n)],
    [b"key", b"x" * 40_000, b"value", b"y" * 90_000],
]
_FAR_MS = 4_102_444_800_000  # the year 2100
_RECORDS: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]]]] = [
    (b"k", b"v", []),
    (None, b"no key", []),
    (b"tombstone", None, []),
    (b"", b"", []),
    (b"k", b"", [("a", b"1"), ("b", None), ("a", b"2"), ("a", b"1"), ("", b"")]),
    (None, b"v", [("only", b"headers")]),
    (_BINARY, _BINARY, [("bin", _BINARY), ("größe", "ü".encode())]),
    (b"k", b"v", [("xf", b"an application's own")]),
    (b"k", b"\xffxf-entry;1;", []),
    (b"k", b"v", [("key", b"k"), ("value", b"v"), ("header:a", b"b")]),
    (b"k" * 40_000, b"v" * 90_000, [("h" * 200, b"x" * 5_000)]),
]


def _write_hostile(side: Side, rounds: int) -> int:
    """Every shape on every lane, with times from 1970 to far ahead; how many records."""
    written = 0
    if isinstance(side, RedisSide):
        now_ms = int(time.time() * 1000)
        for lane in range(side.lanes):
            shapes = itertools.cycle(_ENTRIES)
            ids = ["0-1", "0-2", "1-0", "1-7", "86400000-0", "1000000000000-5", f"{now_ms - 5}-1"]
            entries: list[Any] = list(zip(ids, shapes, strict=False))
            entries += [next(shapes) for _ in range(rounds * len(_ENTRIES))]
            entries += [(f"{_FAR_MS}-{n}", next(shapes)) for n in range(5)]
            side.write(lane, entries)
            written += len(entries)
        return written
    # kafka-python takes time 0, librdkafka takes headers without a value: neither takes both.
    producer = KafkaProducer(
        bootstrap_servers=side.direct["bootstrap.servers"].split(","), acks="all", max_request_size=10_000_000
    )
    for lane in range(side.lanes):
        times = [0, 1, 86_400_000, 1_000_000_000_000, 0, _FAR_MS, 2]
        for at, (key, value, headers) in enumerate(_RECORDS * rounds):
            time_ms = times[at % len(times)]
            if time_ms or any(content is None for _, content in headers):
                side.write(lane, [(key, value, headers, time_ms)])
            else:
                producer.send(side.topic, value, key, headers, partition=lane, timestamp_ms=time_ms).get(60)
            written += 1
    producer.close()
    return written


@pytest.mark.parametrize("way", _WAYS)
def test_hostile_shapes_arrive_as_they_were(workshop, way: str) -> None:
    sides: list[Side] = [workshop.redis(2) if kind == "r" else workshop.kafka(2, _ANY_TIME) for kind in way]
    made: Copy = workshop.copy(*sides)
    written = _write_hostile(made.source, 4)
    relay = made.run("--start", by_hand=True)
    made.wait_drained()
    assert made.check().source_records == written
    assert relay.stop() == 0
    rows = [row for row in made.status().values() if row.get("quarantined")]
    assert rows == []


def test_round_trip_gives_back_the_same_entries(workshop) -> None:
    middle = workshop.kafka(3, _ANY_TIME)
    forth: Copy = workshop.copy(workshop.redis(3), middle)
    back: Copy = workshop.copy(middle, workshop.redis(3))
    _write_hostile(forth.source, 3)
    forth.start()
    back.start()
    relays = [forth.run(by_hand=True), back.run(by_hand=True)]
    forth.wait_drained()
    for lane in range(3):
        forth.source.write_numbers(lane, range(lane, 300, 3))
    forth.wait_drained()
    back.wait_drained(records=forth.source.count())
    assert [relay.stop() for relay in relays] == [0, 0]
    forth.check()
    back.check()
    assert isinstance(forth.source, RedisSide)
    assert isinstance(back.target, RedisSide)
    assert back.target.rows() == {
        lane: [tuple(fields) for _, fields in entries] for lane, entries in forth.source.raw().items()
    }


def test_a_record_without_time_stays_without(workshop) -> None:
    """A Kafka record may have time -1 (none); Redis ids cannot say that, the mark beside it does."""
    made: Copy = workshop.copy(workshop.kafka(1, _ANY_TIME), workshop.redis(1))
    assert isinstance(made.source, KafkaSide)
    made.source.write(0, [(b"k", b"with time", None, 1_600_000_000_000)])
    producer = KafkaProducer(bootstrap_servers=made.source.direct["bootstrap.servers"].split(","), acks="all")
    producer.send(made.source.topic, b"without time", b"k", None, 0, -1).get(60)
    producer.close()
    assert [record.timestamp for record in made.source.raw()[0]] == [1_600_000_000_000, -1]
    made.run("--start", by_hand=True)
    made.wait_drained()
    made.check(2)
