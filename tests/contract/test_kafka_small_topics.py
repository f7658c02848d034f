"""A topic that takes small records alone: what is too large for it is isolated, and the rest is copied."""

import asyncio
import os

import pytest
from kafka_copy import NOW, Copy, keys
from kafka_fixture import KafkaBackend

from crossfade.errors import Indeterminate
from crossfade.model.position import Place
from crossfade.model.record import Write

pytestmark = pytest.mark.lab


@pytest.fixture
async def backend(lab):
    made = KafkaBackend(lab)
    yield made
    await made.close()


async def test_a_plain_record_of_a_few_thousand_bytes_does_not_hold_up_a_small_topic(backend):
    log = await backend.log(1, {"max.message.bytes": "4000"})
    copy = Copy(log)
    await copy.take()
    rows = [(b"%d" % n, os.urandom(6_000) if n == 2 else b"v", None, NOW) for n in range(5)]
    write = Write((0, 0), list(range(5)), rows, Place("4", 5, "source-id"), [], 10)
    for _ in range(3):
        try:
            outcome = (await asyncio.wait_for(log.append(copy.claim, [write]), 60))[0, 0]
            break
        except Indeterminate:  # refused for its size: from now on sizes are looked at
            await copy.take()
    assert (outcome.records, outcome.quarantined) == (4, 1)
    assert await keys(backend, log) == [0, 1, 3, 4]
    assert [(lane, position) for lane, position, _ in await backend.quarantined(log, copy.route)] == [(0, "2")]
