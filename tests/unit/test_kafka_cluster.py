"""Requests to a cluster that fail for a moment are made again; what they find is not half of the truth."""

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from confluent_kafka import KafkaError, KafkaException

from crossfade.brokers.kafka import cluster as cluster_module
from crossfade.brokers.kafka.cluster import Cluster
from crossfade.brokers.kafka.settings import KafkaSettings
from crossfade.errors import AccessRefused, Unreachable


def future(result):
    made = Future()
    if isinstance(result, Exception):
        made.set_exception(result)
    else:
        made.set_result(result)
    return made


def failure(code):
    return KafkaException(KafkaError(code, "of a test"))


class Admin:
    """Gives each answer once, in order, and the last one for ever."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), 0

    def answer(self):
        self.asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def list_consumer_groups(self, **_):
        valid, errors = self.answer()
        return future(SimpleNamespace(valid=[SimpleNamespace(group_id=name) for name in valid], errors=errors))

    def delete_topics(self, names, **_):
        return {name: future(self.answer()) for name in names}

    def create_partitions(self, new, **_):
        return {"t": future(self.answer())}

    def describe_topics(self, *_, **__):
        node = SimpleNamespace(id=1)
        partition = SimpleNamespace(id=0, replicas=[node], isr=[node], leader=node)
        return {"t": future(SimpleNamespace(partitions=[partition], topic_id="i", authorized_operations=None))}

    def poll(self, _):
        return 0


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(cluster_module, "_PERSIST_S", 0.3)
    monkeypatch.setattr(cluster_module, "_PAUSE_S", 0.01)

    def made(*answers):
        admin = Admin(*answers)
        monkeypatch.setattr(Cluster, "admin", property(lambda self: admin))
        return Cluster(KafkaSettings({"bootstrap.servers": "127.0.0.1:1"})), admin

    return made


async def test_groups_of_a_broker_that_could_not_answer_are_asked_for_again(make):
    loading = KafkaError(KafkaError.COORDINATOR_LOAD_IN_PROGRESS)
    cluster, _ = make((["crossfade.a"], [loading]), (["crossfade.a", "crossfade.b", "x"], []))
    assert await cluster.group_names("crossfade.") == ["crossfade.a", "crossfade.b"]


async def test_groups_of_a_broker_that_stays_silent_are_not_taken_for_absent(make):
    cluster, _ = make(([], [KafkaError(KafkaError._TIMED_OUT)]))
    with pytest.raises(Unreachable):
        await cluster.group_names("crossfade.")


async def test_a_change_whose_connection_the_client_gave_up_is_made_again(make):
    cluster, admin = make(failure(KafkaError._DESTROY_BROKER), failure(KafkaError.UNKNOWN_TOPIC_OR_PART))
    await cluster.delete_topics(["t"])  # the first request had arrived
    assert admin.asked == 2
    cluster, admin = make(failure(KafkaError._DESTROY_BROKER), None)
    assert (await cluster.add_partitions("t", 1)).lanes == 1
    assert admin.asked == 2


async def test_a_change_that_is_forbidden_is_told_at_once(make):
    cluster, admin = make(failure(KafkaError.TOPIC_AUTHORIZATION_FAILED))
    with pytest.raises(AccessRefused):
        await cluster.delete_topics(["t"])
    assert admin.asked == 1
