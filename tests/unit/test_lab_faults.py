"""Faults without servers: a topic that is made anew comes back though whoever deleted it dies; slips are named."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from crossfade.lab import admin, heals, state
from crossfade.lab.admin import KafkaAdmin
from crossfade.lab.errors import LabError, LabUsage
from crossfade.lab.faults import Faults
from crossfade.lab.lab import Lab
from crossfade.lab.state import Options, State

SHAPE = (4, 3, {"retention.ms": "600000"})


class Killed(BaseException):
    """Stands for the death of the caller."""


class Topics:
    """The admin client of a cluster with topics in memory."""

    def __init__(self) -> None:
        self.topics: dict[str, tuple[int, int, dict[str, str]]] = {"orders": SHAPE}
        self.created = 0
        self.trouble: list[BaseException] = []

    def leaders(self, topic: str) -> dict[int, int]:
        return dict.fromkeys(range(self.topics[topic][0]), 1) if topic in self.topics else {}

    def describe(self, topic: str) -> Any:
        partitions, replicas, _ = self.topics[topic]
        return SimpleNamespace(partitions=[SimpleNamespace(replicas=[1] * replicas)] * partitions)

    def configs_set(self, topic: str) -> dict[str, str]:
        return self.topics[topic][2]

    def topic_id(self, topic: str) -> str:
        return f"{topic}-{self.created}"

    def delete_topic(self, topic: str) -> None:
        del self.topics[topic]

    def create_topic(self, topic: str, partitions: int, replicas: int, settings: dict[str, str]) -> None:
        if self.trouble:
            raise self.trouble.pop(0)
        assert topic not in self.topics
        self.topics[topic] = (partitions, replicas, settings)
        self.created += 1


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> Topics:
    made = Topics()
    monkeypatch.setattr(Lab, "admin", made)
    monkeypatch.setattr(Lab, "ensure_watchdog", lambda lab: None)
    return made


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    state.write(tmp_path, State(name="x", options=Options()))
    return Lab(tmp_path)


def later() -> float:
    return time.monotonic() + 3600


def test_a_topic_made_anew_leaves_no_note(lab: Lab, topics: Topics) -> None:
    fault = Faults(lab).recreate_topic("orders")
    assert fault.observed == {"old_id": "orders-0", "new_id": "orders-1"}
    assert topics.topics == {"orders": SHAPE}
    assert heals.pending(lab.folder) == []


def test_the_watchdog_makes_the_topic_where_the_caller_died(lab: Lab, topics: Topics) -> None:
    topics.trouble = [Killed()]
    with pytest.raises(Killed):
        Faults(lab).recreate_topic("orders")
    assert topics.topics == {}
    assert heals.heal_due(lab.folder, time.monotonic()) == 0  # the caller may still be at it
    assert heals.heal_due(lab.folder, later()) == 1
    assert topics.topics == {"orders": SHAPE}
    assert heals.pending(lab.folder) == []


def test_the_watchdog_tries_again_where_the_brokers_do_not_answer(lab: Lab, topics: Topics) -> None:
    topics.trouble = [Killed(), LabError("Kafka refused")]
    with pytest.raises(Killed):
        Faults(lab).recreate_topic("orders")
    assert heals.heal_due(lab.folder, later()) == 0
    assert heals.heal_due(lab.folder, later()) == 1
    assert topics.topics == {"orders": SHAPE}


def test_the_watchdog_leaves_a_topic_alone_that_is_there_again(lab: Lab, topics: Topics) -> None:
    topics.trouble = [Killed()]
    with pytest.raises(Killed):
        Faults(lab).recreate_topic("orders")
    topics.create_topic("orders", 1, 1, {})
    assert heals.heal_due(lab.folder, later()) == 1
    assert topics.topics == {"orders": (1, 1, {})}


# -- slips of the caller


class Partitions(KafkaAdmin):
    """An admin client that knows one topic of two partitions; the second one has no leader."""

    def __init__(self) -> None:
        pass

    def describe(self, topic: str) -> Any:
        nodes = [SimpleNamespace(id=1), SimpleNamespace(id=2)]
        leaders = [nodes[0], None]
        return SimpleNamespace(
            partitions=[
                SimpleNamespace(id=at, leader=leader, isr=nodes, replicas=nodes) for at, leader in enumerate(leaders)
            ]
        )

    def leaders(self, topic: str) -> dict[int, int]:
        return {0: 1, 1: -1}

    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        return 10, 20


@pytest.mark.parametrize("partition", [99, -1, 2])
@pytest.mark.parametrize("fault", ["move_leader", "trim_topic", "kill_leader"])
def test_a_partition_that_is_not_there_is_named_with_the_range(
    fault: str, partition: int, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lab, "admin", Partitions())
    with pytest.raises(LabUsage, match=f"topic 'orders' has no partition {partition}") as caught:
        getattr(Faults(lab), fault)("orders", partition)
    assert caught.value.hint == "it has 0 to 1"


def test_a_partition_without_a_leader_cannot_hand_it_over(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lab, "admin", Partitions())
    with pytest.raises(LabError, match="orders/1 has no leader"):
        Faults(lab).move_leader("orders", 1)


def test_a_client_that_asks_the_killed_broker_asks_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([LabError("Kafka does not answer"), {0: 1}, {0: -1}, {0: 2}])

    class Asked(Partitions):
        def leaders(self, topic: str) -> dict[int, int]:
            answer = next(answers)
            if isinstance(answer, LabError):
                raise answer
            return answer

    monkeypatch.setattr(Lab, "admin", Asked())
    assert Faults(lab)._await_leader("orders", 0, lambda leader: leader != "kafka-1") == "kafka-2"


@pytest.mark.parametrize("before", [-1, 21])
def test_an_offset_that_is_not_there_is_named_with_the_range(
    before: int, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lab, "admin", Partitions())
    with pytest.raises(LabUsage, match=f"orders/0 has no offset {before}") as caught:
        Faults(lab).trim_topic("orders", before=before)
    assert caught.value.hint == "from 10 to 20"


class Refusing:
    """A Redis client that every command fails of."""

    def __init__(self, error: redis.RedisError) -> None:
        self.error = error

    def xrange(self, *_: object, **__: object) -> None:
        raise self.error

    xlen = xrange

    def close(self) -> None:
        pass


@pytest.mark.parametrize("fault", ["trim_stream", "recreate_key"])
def test_what_redis_refuses_is_no_mistake_of_ours(fault: str, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")
    monkeypatch.setattr(admin, "primary_of_key", lambda urls, key: Refusing(wrong))
    with pytest.raises(LabUsage, match="'orders' is no stream"):
        getattr(Faults(lab), fault)("orders")
    gone = redis.ConnectionError("closed")
    monkeypatch.setattr(admin, "primary_of_key", lambda urls, key: Refusing(gone))
    with pytest.raises(LabError, match="Redis about 'orders': closed"):
        getattr(Faults(lab), fault)("orders")
