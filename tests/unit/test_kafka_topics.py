"""What is known of a target's topic between two looks, and what becomes of it when an append failed."""

import asyncio

import pytest
from confluent_kafka import KafkaError, KafkaException

from crossfade.brokers.kafka import group as group_module
from crossfade.brokers.kafka import topics as topics_module
from crossfade.brokers.kafka.group import KafkaGroup
from crossfade.brokers.kafka.settings import KafkaSettings
from crossfade.brokers.kafka.topics import TargetTopics
from crossfade.errors import AccessRefused, Indeterminate, Unreachable


class Asked:
    """A cluster that answers as told."""

    def __init__(self):
        self.fails = None
        self.id = "one"
        self.configs = 0

    async def config(self, name):
        self.configs += 1
        if self.fails:
            raise self.fails
        return {}

    async def topic_id(self, name):
        return self.id


@pytest.fixture
def known(monkeypatch):
    """A topic that was looked at a while ago."""
    monkeypatch.setattr(topics_module, "_LIMITS_S", 0.0)
    monkeypatch.setattr(TargetTopics, "topic_id", "one")
    cluster = Asked()
    topics = TargetTopics(cluster, "t", None, allow_weak=False)
    topics._is_ready = True
    asyncio.run(topics.limits())
    return cluster, topics


@pytest.mark.parametrize("error", [Unreachable("away"), AccessRefused("no more")])
async def test_known_limits_hold_while_they_are_not_told(known, error):
    cluster, topics = known
    before = await topics.limits()
    cluster.fails = error
    assert await topics.limits() is before
    assert cluster.configs == 3
    with pytest.raises(type(error)):
        await TargetTopics(cluster, "t", None, allow_weak=False).limits()


async def test_a_topic_made_anew_under_a_claim_ends_it(known):
    cluster, topics = known
    cluster.id = None  # nobody can tell
    await topics.limits()
    cluster.id = "two"
    with pytest.raises(Indeterminate, match="made anew"):
        await topics.limits()
    assert not topics._is_ready


async def test_a_member_may_miss_its_topic_for_moments_again_and_again(monkeypatch):
    """Brokers that were just started do not know it: that is counted anew after a minute of membership."""
    monkeypatch.setattr(group_module, "_PAUSE_S", 0.0)
    clock, misses = [0.0], []
    monkeypatch.setattr(group_module.time, "monotonic", lambda: clock[0])
    group = KafkaGroup(
        KafkaSettings({"bootstrap.servers": "127.0.0.1:1"}), route="r", lanes=1, instance="one", topic="t"
    )

    async def member(listener):
        misses.append(clock[0])
        clock[0] += 100.0 if len(misses) < 10 else 1.0
        raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))

    monkeypatch.setattr(group, "_be_member", member)
    with pytest.raises(AccessRefused):
        await group.run(None)
    assert len(misses) == 12
