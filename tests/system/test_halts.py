"""A source that lost records, a target that refuses them, markers that are gone: the relay stops loudly, never skips.

Each source case does the same: copy, stop, write more, take something away behind the relay's back, start again. The
hurt lane halts with a named error and the count of what is gone, the other lanes go on, nothing behind the hole is
copied, and only `relay resume --accept-loss` goes on. The oracle reads which records arrived, and in which order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from kafka import KafkaConsumer
from rig import Copy, KafkaSide, RedisSide, Relay, plain_value, wait_for

from crossfade.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

_LANES = 3
_HURT = 1
_COPIED, _LATE, _LAST = 200, 100, 50


@dataclass
class Scene:
    """A route whose source was written in three parts: copied, late (uncopied), last (after the damage)."""

    copy: Copy
    numbers: Any
    written: dict[int, list[int]]

    def write(self, lane: int, records: int) -> list[int]:
        """New records on a lane; their numbers."""
        numbers = list(itertools.islice(self.numbers, records))
        self.copy.source.write_numbers(lane, numbers)
        self.written[lane] += numbers
        return numbers

    def lane_name(self, lane: int) -> str:
        source = self.copy.source
        return source.key(lane) if isinstance(source, RedisSide) else f"{source.topic}[{lane}]"

    def copied(self, lane: int) -> list[int]:
        """Numbers in the target lane, in its order."""
        return list(self.copy.target.read()[lane].id)

    def run(self) -> Relay:
        relay = self.copy.run(by_hand=True)
        relay.wait_said('"claimed"')
        return relay


@pytest.fixture
def scene(workshop) -> Callable[..., Scene]:
    """`scene("rk")`: copied part done, relay stopped, late part written."""

    def make(way: str, **route: Any) -> Scene:
        copy: Copy = workshop.copy(workshop.side(way[0], _LANES), workshop.side(way[1], _LANES), **route)
        made = Scene(copy, itertools.count(), {lane: [] for lane in range(_LANES)})
        copy.start()
        for lane in range(_LANES):
            made.write(lane, _COPIED)
        relay = made.run()
        copy.wait_drained(records=_LANES * _COPIED)
        assert relay.stop() == 0
        for lane in range(_LANES):
            made.write(lane, _LATE)
        return made

    return make


def _expect_halt(scene: Scene, error: str, lost: int | None, *, left: Callable[[], list[int]] | None = None) -> None:
    """Start the relay: the hurt lane halts as said, the others go on, nothing behind the hole is there.

    Single deletions show in the counters only at the end of the lane: there `left` says which records are left, and
    some of them may have been copied, in their order.
    """
    copy = scene.copy
    for lane in range(_LANES):
        scene.write(lane, _LAST)
    scene.run()
    row = copy.wait_status(scene.lane_name(_HURT), lambda row: row["state"] == "halted", f"halts with {error}")
    assert row["error"] == error, row
    assert row["lost_records"] == lost, row
    assert lost is None or str(lost) in row["reason"], row
    assert row["hint"], row
    assert copy.cli("relay", "status").code == 3
    others = [lane for lane in range(_LANES) if lane != _HURT]
    copy.wait_drained(others, records=len(others) * (_COPIED + _LATE + _LAST))
    for lane in others:
        assert scene.copied(lane) == scene.written[lane]
    copied = scene.copied(_HURT)
    if left is None:
        assert copied == scene.written[_HURT][:_COPIED]
    else:
        assert len(copied) >= _COPIED
        assert copied == left()[: len(copied)]


def _accept(scene: Scene, expected: list[int]) -> None:
    """The operator accepts the loss; the lane then holds exactly what is left."""
    copy = scene.copy
    refused = copy.cli("relay", "resume", "copy", "--lane", "0", "--accept-loss", "nothing is lost there")
    assert refused.code == 4, refused
    answer = copy.cli("relay", "resume", "copy", "--lane", str(_HURT), "--accept-loss", "taken away on purpose")
    assert answer.code == 0, answer.err
    copy.wait_drained([_HURT], records=len(expected))
    more = scene.write(_HURT, 20)
    copy.wait_drained([_HURT], records=len(expected) + 20)
    assert scene.copied(_HURT) == expected + more
    copy.wait_status(scene.lane_name(_HURT), lambda row: row["state"] in ("idle", "copying"), "goes on")
    assert copy.relays[-1].stop() == 0


def test_redis_source_trimmed_past_the_position(scene: Callable[..., Scene], lab: Lab) -> None:
    made = scene("rk")
    lab.faults.trim_stream(made.lane_name(_HURT), keep_records=30)
    _expect_halt(made, "SourceTrimmed", _LATE - 30)
    written = made.written[_HURT]
    _accept(made, written[:_COPIED] + written[_COPIED + _LATE - 30 :])


def test_redis_source_key_deleted_and_made_anew(scene: Callable[..., Scene]) -> None:
    made = scene("rk")
    assert isinstance(made.copy.source, RedisSide)
    made.copy.source.client.delete(made.lane_name(_HURT))
    _expect_halt(made, "SourceReset", None)
    written = made.written[_HURT]
    _accept(made, written[:_COPIED] + written[_COPIED + _LATE :])


def test_redis_source_birth_group_removed_by_somebody(scene: Callable[..., Scene]) -> None:
    made = scene("rk")
    assert isinstance(made.copy.source, RedisSide)
    client, key = made.copy.source.client, made.lane_name(_HURT)
    (group,) = client.xinfo_groups(key)
    client.xgroup_destroy(key, group["name"])
    _expect_halt(made, "SourceDeleted", None)
    _accept(made, list(made.written[_HURT]))
    assert [again["name"] for again in client.xinfo_groups(key)] == [group["name"]]


def test_redis_source_key_replaced_by_another_type(scene: Callable[..., Scene]) -> None:
    """The other lanes go on; with the stream back and the relay started again so does the lane."""
    made = scene("rk")
    assert isinstance(made.copy.source, RedisSide)
    client, key = made.copy.source.client, made.lane_name(_HURT)
    relay = made.run()
    made.copy.wait_drained(records=_LANES * (_COPIED + _LATE))
    client.rename(key, f"{key}:aside")
    client.set(key, "text")
    for lane in range(_LANES):
        if lane != _HURT:
            made.write(lane, _LAST)
    made.copy.wait_status(key, lambda row: row["error"] == "SourceReset", "halts")
    others = [lane for lane in range(_LANES) if lane != _HURT]
    made.copy.wait_drained(others, records=len(others) * (_COPIED + _LATE + _LAST))
    assert relay.stop() == 0
    client.delete(key)
    client.rename(f"{key}:aside", key)
    made.write(_HURT, _LAST)
    made.run()
    made.copy.wait_drained()
    for lane in range(_LANES):
        assert made.copied(lane) == made.written[lane]
    assert made.copy.relays[-1].stop() == 0


@pytest.mark.parametrize("policy", ["halt", "count"])
def test_redis_source_entries_deleted_before_they_were_copied(scene: Callable[..., Scene], policy: str) -> None:
    made = scene("rk", deleted=policy)
    source = made.copy.source
    assert isinstance(source, RedisSide)
    ids = [entry_id for entry_id, _ in source.raw()[_HURT]]
    gone = range(_COPIED + 10, _COPIED + 15)
    assert source.client.xdel(made.lane_name(_HURT), *[ids[at] for at in gone]) == len(gone)
    if policy == "halt":

        def left() -> list[int]:
            return [n for at, n in enumerate(made.written[_HURT]) if at not in gone]

        _expect_halt(made, "SourceDeleted", len(gone), left=left)
        _accept(made, left())
        return
    for lane in range(_LANES):
        made.write(lane, _LAST)
    made.run()
    made.copy.wait_drained()
    for lane in range(_LANES):
        rest = [n for at, n in enumerate(made.written[lane]) if lane != _HURT or at not in gone]
        assert made.copied(lane) == rest
    row = made.copy.wait_status(
        made.lane_name(_HURT), lambda row: row["deleted"] == len(gone), "tells what was deleted"
    )
    assert row["number"] == _HURT
    assert made.copy.cli("relay", "status").code == 0


def test_redis_source_flushed_under_a_running_relay(scene: Callable[..., Scene]) -> None:
    made = scene("rk")
    source = made.copy.source
    assert isinstance(source, RedisSide)
    relay = made.run()
    made.copy.wait_drained()
    source.client.flushall()
    for lane in range(_LANES):
        made.write(lane, _LAST)
    for lane in range(_LANES):
        row = made.copy.wait_status(made.lane_name(lane), lambda row: row["state"] == "halted", "halts")
        assert row["error"] == "SourceReset", row
        assert made.copied(lane) == made.written[lane][:-_LAST]
    assert made.copy.cli("relay", "status").code == 3
    answer = made.copy.cli(
        "relay", "resume", "copy", *(w for lane in range(_LANES) for w in ("--lane", str(lane))), "--accept-loss", "why"
    )
    assert answer.code == 0, answer.err
    made.copy.wait_drained(records=_LANES * (_COPIED + _LATE + _LAST))
    assert {lane: made.copied(lane) for lane in range(_LANES)} == made.written
    assert relay.stop() == 0


def test_kafka_source_records_deleted_beyond_the_position(scene: Callable[..., Scene], lab: Lab) -> None:
    made = scene("kr")
    assert isinstance(made.copy.source, KafkaSide)
    lab.faults.trim_topic(made.copy.source.topic, _HURT, before=_COPIED + 70)
    _expect_halt(made, "SourceTrimmed", 70)
    written = made.written[_HURT]
    _accept(made, written[:_COPIED] + written[_COPIED + 70 :])


def test_kafka_source_topic_deleted_and_made_anew(scene: Callable[..., Scene], lab: Lab) -> None:
    made = scene("kr")
    source = made.copy.source
    assert isinstance(source, KafkaSide)
    lab.faults.recreate_topic(source.topic)
    source.reopen()
    for lane in range(_LANES):
        made.write(lane, _LAST)
    made.run()
    for lane in range(_LANES):
        row = made.copy.wait_status(made.lane_name(lane), lambda row: row["state"] == "halted", "halts")
        assert row["error"] == "SourceReset", row
        assert made.copied(lane) == made.written[lane][:_COPIED]
    answer = made.copy.cli(
        "relay", "resume", "copy", *(w for lane in range(_LANES) for w in ("--lane", str(lane))), "--accept-loss", "why"
    )
    assert answer.code == 0, answer.err
    made.copy.wait_drained(records=_LANES * (_COPIED + _LAST))
    for lane in range(_LANES):
        assert made.copied(lane) == made.written[lane][:_COPIED] + made.written[lane][-_LAST:]


def test_redis_target_out_of_memory_waits_and_goes_on(scene: Callable[..., Scene]) -> None:
    made = scene("kr")
    target = made.copy.target
    assert isinstance(target, RedisSide)
    assert target.client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
    target.client.config_set("maxmemory", "1mb")
    try:
        relay = made.copy.run(by_hand=True)
        wait_for(lambda: "TargetFull" in relay.said or not relay.is_running, lambda: f"TargetFull\n{relay.said}")
        assert relay.is_running, relay.said[-2000:]
        # the board's documents are small and allowed, so that people see why nothing moves
        row = made.copy.wait_status(made.lane_name(0), lambda row: row["state"] == "waiting", "waits for memory")
        assert row["error"] == "TargetFull", row
        assert target.count() == _LANES * _COPIED
    finally:
        target.client.config_set("maxmemory", "0")
    made.copy.wait_drained()
    made.copy.check(_LANES * (_COPIED + _LATE))
    assert relay.stop() == 0


def _oversize(scene: Scene, records: int) -> None:
    """Records in the late part of the hurt lane that the target topic does not take, good ones around them."""
    assert isinstance(scene.copy.source, RedisSide)
    for _ in range(records):
        number = next(scene.numbers)
        scene.copy.source.write(_HURT, [[b"key", b"big", b"value", plain_value(number, 200_000)]])
        scene.write(_HURT, 5)


@pytest.fixture
def small_topic(workshop) -> Callable[..., Scene]:
    """A route into a topic that takes records of at most 50 kB."""

    def make(**route: Any) -> Scene:
        target = workshop.kafka(_LANES, {"max.message.bytes": "50000"})
        copy: Copy = workshop.copy(workshop.redis(_LANES), target, **route)
        copy.start()
        made = Scene(copy, itertools.count(), {lane: [] for lane in range(_LANES)})
        for lane in range(_LANES):
            made.write(lane, _LATE)
        return made

    return make


def test_records_that_the_target_refuses_are_put_aside_and_the_rest_keeps_its_order(
    small_topic: Callable[..., Scene], lab: Lab
) -> None:
    made = small_topic()
    _oversize(made, 3)
    for lane in range(_LANES):
        made.write(lane, _LAST)
    made.run()
    made.copy.wait_drained(records=sum(map(len, made.written.values())))
    assert {lane: made.copied(lane) for lane in range(_LANES)} == made.written
    row = made.copy.wait_status(made.lane_name(_HURT), lambda row: row["quarantined"] == 3, "shows the quarantine")
    assert row["state"] in ("idle", "copying")
    consumer = KafkaConsumer(
        f"crossfade.{made.copy.id}.quarantine",
        bootstrap_servers=lab.kafka_properties(direct=True)["bootstrap.servers"].split(","),
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    found: list[Any] = []
    wait_for(lambda: found.extend(r for rs in consumer.poll(200).values() for r in rs) or len(found) >= 3, "3 records")
    consumer.close()
    assert [dict(record.headers)["lane"] for record in found] == [b"%d" % _HURT] * 3
    assert all(dict(record.headers)["reason"] for record in found)


def test_a_full_quarantine_halts_its_lane_alone(small_topic: Callable[..., Scene]) -> None:
    made = small_topic(quarantine_records_max=2)
    before = len(made.written[_HURT])
    _oversize(made, 3)
    made.run()
    row = made.copy.wait_status(made.lane_name(_HURT), lambda row: row["state"] == "halted", "halts")
    assert row["error"] == "QuarantineFull", row
    assert row["hint"]
    others = [lane for lane in range(_LANES) if lane != _HURT]
    made.copy.wait_drained(others)
    for lane in others:
        assert made.copied(lane) == made.written[lane]
    copied = made.copied(_HURT)
    assert copied == made.written[_HURT][: len(copied)]
    # at the most up to the third refused record, which the budget does not cover
    assert len(copied) <= before + 10


def test_a_lost_marker_in_redis_refuses_to_run(scene: Callable[..., Scene]) -> None:
    made = scene("kr")
    target = made.copy.target
    assert isinstance(target, RedisSide)
    state = [key for key in target.client.scan_iter("crossfade:lane:*") if target.key(_HURT).encode() in key]
    assert len(state) == 1
    target.client.delete(*state)
    relay = made.copy.run(by_hand=True)
    assert relay.wait_end() == 4, relay.said[-2000:]
    assert "MarkerLost" in relay.said
    assert made.lane_name(_HURT) in relay.said
    assert target.count([_HURT]) == _COPIED


def _delete_group(copy: Copy, lab: Lab) -> None:
    admin = AdminClient(lab.kafka_properties(direct=True))
    admin.delete_consumer_groups([f"crossfade.{copy.id}"])[f"crossfade.{copy.id}"].result(60)


def test_lost_markers_in_kafka_are_rebuilt_from_the_records(scene: Callable[..., Scene], lab: Lab) -> None:
    made = scene("rk")
    _delete_group(made.copy, lab)
    made.run()
    made.copy.wait_drained()
    made.copy.check(_LANES * (_COPIED + _LATE))


def test_lost_markers_in_kafka_without_records_refuse_to_run(workshop, lab: Lab) -> None:
    copy: Copy = workshop.copy("r", "k")
    copy.start()
    _delete_group(copy, lab)
    copy.source.write_numbers(0, range(10))
    relay = copy.run(by_hand=True)
    assert relay.wait_end() == 4, relay.said[-2000:]
    assert "MarkerLost" in relay.said
    assert copy.target.count() == 0


def test_a_route_that_was_never_started_refuses_to_run(workshop) -> None:
    copy: Copy = workshop.copy("r", "k")
    copy.source.write_numbers(0, range(10))
    relay = copy.run(by_hand=True)
    assert relay.wait_end() == 4, relay.said[-2000:]
    assert "NotStarted" in relay.said
    assert "relay start" in relay.said
    assert copy.target.count() == 0


@pytest.mark.parametrize("way", ["rk", "kr"])
def test_a_second_route_to_the_same_target_is_refused(workshop, way: str) -> None:
    first: Copy = workshop.copy(way[0], way[1])
    first.start()
    second: Copy = workshop.copy(workshop.side(way[0]), first.target)
    answer = second.cli("relay", "start")
    assert answer.code == 4, answer
    assert "RouteConflict" in answer.out + answer.err
    assert first.id in answer.out + answer.err


@pytest.mark.parametrize("way", ["rk", "kr"])
def test_a_changed_mapping_is_refused(scene: Callable[..., Scene], way: str) -> None:
    made = scene(way)
    made.copy.document["streams"]["stream"]["mapping"] = "json"
    made.copy.write_config()
    relay = made.copy.run(by_hand=True)
    assert relay.wait_end() == 4, relay.said[-2000:]
    assert "RouteConflict" in relay.said
    assert made.copy.target.count() == _LANES * _COPIED
