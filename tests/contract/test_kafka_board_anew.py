"""The board's topic deleted and made anew, under a process that has read it."""

import asyncio
import contextlib
import secrets
import time

import pytest
from confluent_kafka import TopicCollection
from confluent_kafka.admin import AdminClient
from kafka_fixture import _wait_known

from crossfade.brokers.kafka import KafkaBoard, KafkaSettings, names
from crossfade.brokers.protocol import VersionConflict
from crossfade.errors import Unreachable

pytestmark = pytest.mark.lab


@pytest.fixture
async def boards(lab, monkeypatch):
    """Those of a process that runs, and of an operator; on a topic of their own."""
    monkeypatch.setattr(names, "BOARD_TOPIC", f"crossfade.control.{secrets.token_hex(4)}")
    made = [KafkaBoard(KafkaSettings(lab.kafka_properties())) for _ in range(2)]
    yield made
    for board in made:
        await board.close()


def make_anew(lab):
    properties, topic = lab.kafka_properties(), names.BOARD_TOPIC
    admin = AdminClient(properties)
    old_id = str(admin.describe_topics(TopicCollection([topic]))[topic].result().topic_id)
    lab.faults.recreate_topic(topic)
    _wait_known(properties, topic, old_id)


async def test_a_board_that_is_deleted_is_made_anew_by_the_next_heartbeat(lab, boards):
    live, operator = boards
    for number in range(5):
        await live.put("status/x", b"%d" % number)
    await live.put("desired/x", b"old", 0)
    assert await live.get("desired/x") is not None
    await live._cluster.delete_topics([names.BOARD_TOPIC])
    await live._cluster.wait_gone(names.BOARD_TOPIC)
    found, until_s = None, time.monotonic() + 60
    while found is None and time.monotonic() < until_s:
        with contextlib.suppress(Unreachable):  # for some seconds it may be that the brokers do not know it yet
            found = await live.list("")
    assert found == await live.list("") == {}
    await beat(live)
    assert (await live.list("")).keys() == (await operator.list("")).keys() == {"status/x"}
    await operator.put("desired/x", b"paused", 0)
    assert (await live.get("desired/x")).body == b"paused"


@pytest.mark.long
async def test_a_heartbeat_outlives_a_board_that_is_deleted_after_a_while(lab, boards):
    """The client tells of a topic that it has known for half a minute at once that it is gone."""
    live, operator = boards
    until_s = time.monotonic() + 35
    while time.monotonic() < until_s:
        await live.put("status/x", b"here")
        await live.list("")
        await asyncio.sleep(1)
    await live._cluster.delete_topics([names.BOARD_TOPIC])
    written, until_s = 0, time.monotonic() + 60
    while not written and time.monotonic() < until_s:
        with contextlib.suppress(Unreachable):  # anything else would end the relay
            written = await live.put("status/x", b"still here")
        with contextlib.suppress(Unreachable):
            await live.list("")
        await asyncio.sleep(1)
    assert written
    for _ in range(30):
        with contextlib.suppress(Unreachable):
            if (await operator.list("")).keys() == {"status/x"}:
                break
        await live.put("status/x", b"still here")
        await asyncio.sleep(1)
    assert (await operator.get("status/x")).body == b"still here"


async def beat(board):
    """As a relay does: what is left of the producer from before may fail once, and the next try makes one."""
    try:
        return await board.put("status/x", b"still here")
    except Unreachable:
        return await board.put("status/x", b"still here")


@pytest.mark.parametrize("heartbeats", [0, 60], ids=["shorter", "longer"])
async def test_a_board_that_was_made_anew_is_read_from_its_start(lab, boards, heartbeats):
    live, operator = boards
    for number in range(20):
        await live.put("status/x", b"%d" % number)
    old = await live.put("desired/x", b"old", 0)
    await live.put("desired/gone", b"old", 0)
    assert (await live.get("desired/x")).version == old

    await asyncio.to_thread(make_anew, lab)
    version = await operator.put("desired/x", b"paused", 0)
    for number in range(heartbeats):
        await operator.put("status/y", b"%d" % number)
    found = await live.list("")
    assert found.keys() == {"desired/x"} | ({"status/y"} if heartbeats else set())
    assert (found["desired/x"].version, found["desired/x"].body) == (version, b"paused")

    # versions go on from there
    with pytest.raises(VersionConflict):
        await live.put("desired/x", b"lost", old)
    version = await live.put("desired/x", b"resumed", version)
    for board in boards:
        assert (await board.get("desired/x")).version == version
    assert await beat(live) > version
    assert (await operator.get("status/x")).body == b"still here"
