"""The backends that the contract suite runs on: memory in both shapes, Valkey, Redis 7.0, Kafka."""

import os

import pytest
from backends import MemoryBackend

from crossfade.model.record import Shape


def _real(module, factory, *arguments):
    """A backend over a real server, or a skip (in CI a failure) where its fixture module is not there."""
    try:
        found = __import__(module)
    except ModuleNotFoundError as error:
        if error.name != module or os.environ.get("CI") == "true":
            raise
        pytest.skip(f"tests/contract/{module}.py is not there")
    return getattr(found, factory)(*arguments)


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
        made = _real("redis_fixture", "RedisBackend", request.getfixturevalue("valkey_lab"))
    elif request.param == "redis7":
        made = _real("redis_fixture", "RedisBackend", request.getfixturevalue("redis7_lab"))
    else:
        made = _real("kafka_fixture", "KafkaBackend", request.getfixturevalue("lab"))
    yield made
    await made.close()
