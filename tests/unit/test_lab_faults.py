"""A topic that is made anew comes back even where whoever deleted it dies before it is there again."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from crossfade.lab import heals, state
from crossfade.lab.errors import LabError
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
