"""What the lab asks Kafka is asked again where the client gave up the connection under the request."""

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from crossfade.lab.admin import KafkaAdmin
from crossfade.lab.errors import LabError

GAVE_UP = KafkaException(KafkaError(KafkaError._DESTROY_BROKER, "of a test"))
EXISTS = KafkaException(KafkaError(KafkaError.TOPIC_ALREADY_EXISTS, "of a test"))


class Client:
    """Answers to `create_topics`, each once, in order; the topic is there."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    def create_topics(self, new: list[Any], **_: Any) -> dict[str, Future[Any]]:
        answer: Future[Any] = Future()
        found = self.answers.pop(0)
        if isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result(found)
        return {"t": answer}

    def list_topics(self, topic: str, timeout: float) -> Any:
        parts = {0: SimpleNamespace(leader=1)}
        return SimpleNamespace(topics={"t": SimpleNamespace(error=None, partitions=parts)})


def admin_of(*answers: Any) -> tuple[KafkaAdmin, Client]:
    made, client = KafkaAdmin({"bootstrap.servers": "127.0.0.1:1"}), Client(*answers)
    made._client = client
    return made, client


@pytest.mark.parametrize("second", [None, EXISTS])
def test_a_topic_is_created_though_the_client_gave_up_a_connection(second: Any) -> None:
    admin, client = admin_of(GAVE_UP, second)
    admin.create_topic("t", 1, 1, {})
    assert client.answers == []


@pytest.mark.parametrize("answers", [[EXISTS], [GAVE_UP] * 5])
def test_what_stays_refused_is_told(answers: list[Any]) -> None:
    admin, client = admin_of(*answers)
    with pytest.raises(LabError, match="refused to create topic t"):
        admin.create_topic("t", 1, 1, {})
    assert client.answers == []
