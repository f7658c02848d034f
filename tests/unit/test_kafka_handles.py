"""Handles end when they are let go of, also where their calls have failed: an outage must not pile up connections."""

import asyncio
import gc
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import OffsetSpec

from crossfade.brokers.kafka import KafkaLog, cluster, writer
from crossfade.brokers.kafka.cluster import Cluster
from crossfade.brokers.kafka.settings import KafkaSettings
from crossfade.brokers.kafka.writer import Writer
from crossfade.errors import BrokerError, CrossfadeError

_NOBODY = {"bootstrap.servers": "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3", "log_level": 0}


def _handles() -> int:
    """How many handles live: each has one thread of this name."""
    names = []
    for comm in Path("/proc/self/task").glob("*/comm"):
        try:
            names.append(comm.read_text().strip())
        except OSError:  # it has just ended
            continue
    return names.count("rdk:main")


@asynccontextmanager
async def _nothing_stays():
    """No handle more than before, without a collection of cycles: a relay makes one every few hours."""
    gc.collect()
    before = _handles()
    gc.disable()
    try:
        yield
        deadline = time.monotonic() + 30
        while _handles() > before:
            assert time.monotonic() < deadline, f"{_handles() - before} handles are left"
            await asyncio.sleep(0.05)
    finally:
        gc.enable()


async def test_writers_whose_transactions_fail_leave_nothing(monkeypatch):
    monkeypatch.setattr(writer, "_INIT_S", 0.2)
    kept = []  # as the state of a halted lane keeps its error
    async with _nothing_stays():
        for _ in range(3):
            made = Writer(KafkaSettings(_NOBODY), "crossfade.r.i", "t", message_bytes_max=1_000_000)
            with pytest.raises(BrokerError) as refused:
                await made.open()
            with pytest.raises(BrokerError) as failed:
                await made.commit([], [], None, None)
            kept += [refused.value, failed.value]
            await asyncio.to_thread(made.join, 30)
        del made


async def test_requests_that_fail_leave_nothing(monkeypatch):
    monkeypatch.setattr(cluster, "_PERSIST_S", 1.0)
    monkeypatch.setattr(cluster, "_REQUEST_S", 0.3)
    async with _nothing_stays():
        asked = Cluster(KafkaSettings(_NOBODY))
        for _ in range(2):
            with pytest.raises(CrossfadeError):
                await asked.offsets("t", [0], OffsetSpec.latest())
            with pytest.raises(CrossfadeError):
                await asked.topic("t")
        asked.close()


async def test_a_log_that_is_away_leaves_nothing(monkeypatch):
    monkeypatch.setattr(cluster, "_PERSIST_S", 1.0)
    monkeypatch.setattr(cluster, "_REQUEST_S", 0.3)
    async with _nothing_stays():
        log = KafkaLog(KafkaSettings(_NOBODY), "t")
        for _ in range(3):
            with pytest.raises(CrossfadeError):
                await log.bounds([0])
        await log.close()


async def test_a_handle_ends_in_a_thread_of_its_own():
    """Its end waits for the threads of the brokers, one of which may be resolving a name."""
    ended_in, has_ended = [], threading.Event()

    class Handle:
        def __del__(self):
            ended_in.append(threading.current_thread().name)
            has_ended.set()

    asked = Cluster(KafkaSettings(_NOBODY))
    asked._admin = Handle()
    asked.close()
    assert await asyncio.to_thread(has_ended.wait, 30)
    assert ended_in == ["kafka-admin-end"]
