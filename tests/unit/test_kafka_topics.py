"""What is known of a target's topic between two looks, and what becomes of it when an append failed."""

import asyncio

import pytest
from confluent_kafka import KafkaError, KafkaException

from crossfade.brokers.kafka import group as group_module
from crossfade.brokers.kafka import topics as topics_module
from crossfade.brokers.kafka.cluster import ConfigValue, TopicFacts, are_two_topics, is_told
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


@pytest.mark.parametrize(
    ("one", "other", "are_two"),
    [
        ("one", "two", True),
        ("one", "one", False),
        ("A" * 22, "one", False),
        ("one", "A" * 22, False),
        ("", "one", False),
    ],
)
def test_an_id_that_is_not_told_proves_nothing(one, other, are_two):
    assert are_two_topics(one, other) is are_two
    assert is_told(one) is (one == "one")


def facts(topic_id):
    return TopicFacts("t", topic_id, ((1, 2, 3),), ((1, 2, 3),), (1,))


class Told(Asked):
    """A cluster whose topic is there, or is not known."""

    def __init__(self):
        super().__init__()
        self.facts = facts("one")

    async def existing_topic(self, name):
        if self.facts is None:
            raise AccessRefused("topic t does not exist")
        return self.facts

    async def config(self, name):
        return {"min.insync.replicas": ConfigValue("2", False)}


async def test_an_id_that_comes_with_an_upgrade_is_no_other_topic(monkeypatch):
    monkeypatch.setattr(topics_module, "_LIMITS_S", 0.0)
    cluster = Told()
    cluster.facts = facts("A" * 22)
    topics = TargetTopics(cluster, "t", None, allow_weak=False)
    await topics.guarantee()
    topics._is_ready = True
    for cluster.id in ("A" * 22, "one", "A" * 22, "one"):  # brokers are upgraded one by one
        await topics.limits()
    assert topics.topic_id == "one"
    cluster.id = "two"
    with pytest.raises(Indeterminate, match="made anew"):
        await topics.limits()


async def test_a_topic_that_was_there_is_waited_for_and_one_that_was_not_is_missed_at_once(monkeypatch):
    """Brokers that have just started know no topics for a moment."""
    clock = [100.0]
    monkeypatch.setattr(topics_module.time, "monotonic", lambda: clock[0])
    cluster = Told()
    cluster.facts, cluster.id = None, ""
    topics = TargetTopics(cluster, "t", None, allow_weak=False)
    with pytest.raises(AccessRefused):
        await topics.guarantee()
    cluster.facts = facts("one")
    await topics.guarantee()
    for _ in range(2):  # hours apart
        clock[0] += 10_000.0
        cluster.facts = None
        for at in (0.0, 30.0, 29.0):
            clock[0] += at
            with pytest.raises(Unreachable, match="not known"):
                await topics.guarantee()
        cluster.facts = facts("one")
        await topics.guarantee()
    cluster.facts = None
    with pytest.raises(Unreachable):
        await topics.guarantee()
    clock[0] += 61.0
    with pytest.raises(AccessRefused, match="does not exist"):
        await topics.guarantee()
    cluster.id = "one"  # another broker knows it
    with pytest.raises(Unreachable):
        await topics.guarantee()


async def test_a_right_that_is_missing_is_told_at_once():
    cluster = Told()
    topics = TargetTopics(cluster, "t", None, allow_weak=False)
    await topics.guarantee()

    async def refused(name):
        raise AccessRefused("no right")

    cluster.existing_topic = cluster.topic_id = refused
    with pytest.raises(AccessRefused, match="no right"):
        await topics.guarantee()


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
