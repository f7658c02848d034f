"""The backends that the contract suite runs on: memory in both shapes, Valkey, Redis 7.0, Kafka."""

import pytest
from backends import MemoryBackend
from kafka_fixture import KafkaBackend
from redis_fixture import RedisBackend

from crossfade.model.record import Shape


@pytest.fixture(
    params=[
        pytest.param("memory-record"),
        pytest.param("memory-entry"),
        pytest.param("valkey", marks=pytest.mark.lab),
        pytest.param("redis7", marks=pytest.mark.lab),
        pytest.param("kafka", marks=pytest.mark.lab),
    ]
)
async def backend(request):
    if request.param == "memory-record":
        made = MemoryBackend(Shape.RECORD)
    elif request.param == "memory-entry":
        made = MemoryBackend(Shape.ENTRY)
    elif request.param == "valkey":
        made = RedisBackend(request.getfixturevalue("valkey_lab"))
    elif request.param == "redis7":
        made = RedisBackend(request.getfixturevalue("redis7_lab"))
    else:
        made = KafkaBackend(request.getfixturevalue("lab"))
    yield made
    await made.close()
