"""Many places that are gone at once: what they died of is found without holding up the other lanes for long."""

import asyncio

import pytest
from confluent_kafka import KafkaError

from crossfade.brokers.kafka import KafkaLog, KafkaSettings
from crossfade.brokers.kafka import log as log_module
from crossfade.brokers.protocol import Bounds
from crossfade.errors import SourceDamaged, SourceRegressed, SourceTrimmed
from crossfade.model.position import Place

_GONE = KafkaError(KafkaError._AUTO_OFFSET_RESET, "Offset out of range")


class Thread:
    """Answers for the reader's thread: the broker says that the place is out of range, and no more."""

    def __init__(self):
        self.examined = []

    async def call(self, function, lane, *_):
        self.examined.append(lane)
        return _GONE


class Reader:
    examine = trust = is_trusted = None


@pytest.fixture
def make(monkeypatch):
    def made(thread, *, low, end, slept):
        log = KafkaLog(KafkaSettings({"bootstrap.servers": "127.0.0.1:1"}), "t")
        log.asked = []

        async def bounds(lanes):
            log.asked.append(sorted(lanes))
            return {lane: Bounds(str(low), str(end - 1), end, end - low, "topic-id") for lane in lanes}

        sleep = asyncio.sleep

        async def no_sleep(wait_s):
            slept.append(wait_s)
            await sleep(0)

        monkeypatch.setattr(log, "bounds", bounds)
        monkeypatch.setattr(log, "_source", lambda: (Reader, thread))
        monkeypatch.setattr(log_module.asyncio, "sleep", no_sleep)
        return log

    return made


def troubled(lanes):
    return {lane: Place("6", 7, "topic-id", "1") for lane in range(lanes)}, dict.fromkeys(range(lanes), _GONE)


async def test_trimmed_lanes_are_told_at_once(make):
    slept = []
    thread = Thread()
    log = make(thread, low=100, end=200, slept=slept)
    found = await log._diagnose(*troubled(32))
    assert {type(error) for error in found.values()} == {SourceTrimmed}
    assert len(found) == len(thread.examined) == 32
    assert sum(slept) == 0


async def test_lanes_that_became_shorter_are_looked_at_together(make):
    slept = []
    log = make(Thread(), low=0, end=3, slept=slept)
    found = await log._diagnose(*troubled(3))
    assert {type(error) for error in found.values()} == {SourceRegressed}
    assert log.asked == [[0, 1, 2], [0, 1, 2]]
    assert slept.count(1.0) == 1


class Trusting(Thread):
    """Remembers which places are trusted, as the reader does."""

    def __init__(self):
        super().__init__()
        self.trusted = {}

    async def call(self, function, lane, place, *_):
        if function == "trust":
            self.trusted[lane] = place
        return self.trusted.get(lane) == place


async def test_a_damaged_batch_behind_a_trusted_place_is_told(make, monkeypatch):
    monkeypatch.setattr(Reader, "trust", "trust")
    monkeypatch.setattr(Reader, "is_trusted", "is_trusted")
    place = Place("6", 10, "topic-id", "1")  # the log starts between its last record and it
    thread = Trusting()
    log = make(thread, low=9, end=200, slept=[])
    assert await log._diagnose({0: place}, {0: _GONE}) == {}
    assert thread.trusted == {0: place}
    damaged = KafkaError(KafkaError._BAD_MSG, "CRC check failed")
    found = await log._diagnose({0: place}, {0: damaged})
    assert isinstance(found[0], SourceDamaged)
    assert "CRC check failed" in found[0].message


@pytest.mark.parametrize("answers", [True, False])
async def test_what_there_is_no_time_for_is_left_for_the_next_read(make, monkeypatch, answers):
    clock = [0.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: clock[0])
    thread = Thread()
    log = make(thread, low=0, end=3, slept=[])
    call = thread.call

    async def slow(*arguments):
        clock[0] += 1.0
        return await call(*arguments) if answers else None

    thread.call = slow
    found = await log._diagnose(*troubled(32))
    assert len(found) <= 3
    assert bool(found) is answers
    assert clock[0] <= 10
