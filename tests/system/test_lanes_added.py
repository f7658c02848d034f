"""Lanes that come while real relays run: a new stream key is discovered, a new partition is followed, loudly."""

from __future__ import annotations

import time
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions
from rig import Copy, KafkaSide, wait_for

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]


def _add_partition(side: KafkaSide) -> None:
    """One partition more, as an operator adds it; the side counts and writes it from now on."""
    side.lanes += 1
    admin = AdminClient(side.direct)
    admin.create_partitions([NewPartitions(side.topic, side.lanes)])[side.topic].result(30)

    def is_known() -> bool:
        for server in side.direct["bootstrap.servers"].split(","):  # each broker learns of it in its own time
            for _ in range(3):
                producer = Producer({**side.direct, "bootstrap.servers": server})
                partitions = producer.list_topics(side.topic, 10).topics[side.topic].partitions
                if len(partitions) < side.lanes or any(found.leader < 0 for found in partitions.values()):
                    return False
        return True

    wait_for(is_known, "the new partition")
    side.reopen()


def _discovering(copy: Copy, **side: Any) -> Copy:
    copy.document["streams"]["stream"]["old"].update(side)
    copy.document["routes"]["copy"]["discover_s"] = 0.5
    copy.write_config()
    return copy


def test_new_stream_keys_are_discovered_and_wait_for_a_partition(workshop) -> None:
    redis, kafka = workshop.redis(2), workshop.kafka(3)
    copy = _discovering(workshop.copy(redis, kafka), count="discover")
    none = copy.cli("relay", "start")
    assert none.code == 2
    assert f"there is no stream {redis.key(0)}" in none.err
    redis.write_numbers(0, range(50))
    redis.write_numbers(2, range(1))
    hole = copy.cli("relay", "start")
    assert hole.code == 2
    assert f"there is no stream {redis.key(1)}, but {redis.key(2)} is one" in hole.err
    redis.client.delete(redis.key(2))
    redis.write_numbers(1, range(50, 100))
    copy.start()
    relay = copy.run(by_hand=True)
    copy.wait_drained()

    redis.client.set(redis.key(2), "a key of another type is no lane, and ends nothing")
    time.sleep(2.0)  # some looks for new lanes
    redis.write_numbers(0, range(250, 260))
    copy.wait_drained(range(2))
    assert relay.is_running
    assert "new lanes" not in relay.said
    redis.client.delete(redis.key(2))

    redis.lanes = 3
    redis.write_numbers(2, range(100, 150))
    copy.wait_drained()
    relay.wait_said("new lanes followed")
    row = copy.wait_status(redis.key(2), lambda row: row["ordinal"] == 50, "was copied from its beginning")
    assert row["state"] != "halted"

    redis.lanes = 4
    redis.write_numbers(3, range(150, 200))
    row = copy.wait_status(redis.key(3), lambda row: row["state"] == "halted", "has no partition")
    assert row["error"] == "TargetTooNarrow"
    assert f"--topic {kafka.topic} --partitions 4" in row["hint"]
    redis.write_numbers(0, range(200, 250))
    copy.wait_drained(range(3))  # the others go on
    _add_partition(kafka)
    copy.wait_drained()
    assert relay.is_running
    assert relay.stop() == 0
    copy.check(260)


@pytest.mark.parametrize("way", ["kr", pytest.param("kk", marks=pytest.mark.long)])
def test_a_new_partition_of_a_source_is_followed(workshop, way: str) -> None:
    source = workshop.kafka(2)
    copy = _discovering(workshop.copy(source, workshop.side(way[1], 3)))
    source.write_numbers(0, range(40))
    copy.start()
    relay = copy.run()
    copy.wait_drained()
    _add_partition(source)
    source.write_numbers(2, range(40, 90))
    source.write_numbers(1, range(90, 120))
    copy.wait_drained()
    relay.wait_said("new lanes followed")
    relay.kill()
    again = copy.run()
    source.write_numbers(2, range(120, 140))
    copy.wait_drained()
    assert again.stop() == 0
    copy.check(140)


def test_a_process_that_dies_before_a_new_lane_was_handed_out_hands_it_out_when_it_is_back(workshop) -> None:
    source = workshop.kafka(2)
    copy = _discovering(workshop.copy(source, workshop.side("r", 3)))
    source.write_numbers(0, range(40))
    copy.start()
    relay = copy.run()
    copy.wait_drained()
    _add_partition(source)
    source.write_numbers(2, range(40, 90))
    relay.wait_said("waiting for the session to end")  # the lane is started, and its group does not know of it
    relay.kill()
    again = copy.run()
    copy.wait_drained()
    assert again.stop() == 0
    copy.check(90)


@pytest.mark.long
def test_two_processes_of_a_group_follow_a_new_lane_once(workshop) -> None:
    redis, kafka = workshop.redis(2), workshop.kafka(3)
    copy = _discovering(workshop.copy(redis, kafka), count="discover")
    for lane in range(2):
        redis.write_numbers(lane, range(lane, 60, 2))
    copy.start()
    relays = [copy.run(instance="one"), copy.run(instance="two")]
    copy.wait_drained()
    redis.lanes = 3
    redis.write_numbers(2, range(60, 100))
    copy.wait_drained()
    for relay in relays:
        wait_for(
            lambda relay=relay: "new source lanes" in relay.said or "opened anew" in relay.said,
            lambda: copy.said(),
        )
    redis.write_numbers(2, range(100, 120))
    copy.wait_drained()
    for relay in relays:
        assert relay.is_running, copy.said()
        assert relay.stop() == 0
    copy.check(120)
