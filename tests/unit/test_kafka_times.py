"""The times of records as the reader of a Kafka source gives them."""

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME, TIMESTAMP_NOT_AVAILABLE, Message

from crossfade.brokers.kafka.settings import KafkaSettings
from crossfade.brokers.kafka.source import SourceReader


@pytest.fixture
def reader():
    made = SourceReader(
        KafkaSettings({"bootstrap.servers": "127.0.0.1:1", "log_level": 0}), "t", group="g", queue_kbytes_max=1024
    )
    yield made
    made.close()


def test_a_record_without_a_time_has_none_rather_than_the_epoch(reader):
    """Message format v0 has no times; the client gives 0 for one, which is a time that a record may have."""
    given = [
        (TIMESTAMP_NOT_AVAILABLE, 0),
        (TIMESTAMP_CREATE_TIME, 0),
        (TIMESTAMP_CREATE_TIME, 1_700_000_000_000),
        (TIMESTAMP_LOG_APPEND_TIME, 1_700_000_000_001),
    ]
    messages = [
        Message(topic="t", partition=0, offset=offset, value=b"v", timestamp=timestamp)
        for offset, timestamp in enumerate(given)
    ]
    taken = {}
    reader._sort(messages, taken, 10, 1000)
    assert taken[0].times == [-1, 0, 1_700_000_000_000, 1_700_000_000_001]
