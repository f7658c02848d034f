"""What a read of a topic asks beside its records: its id, which a copy needs each time and an audit does not."""

import msgspec
import pytest

from crossfade.brokers.kafka import KafkaLog, KafkaSettings
from crossfade.brokers.kafka import log as log_module
from crossfade.brokers.kafka.cluster import TopicFacts
from crossfade.brokers.kafka.source import Taken
from crossfade.errors import SourceReset
from crossfade.model.position import Place


class Thread:
    """Answers for the reader's thread: one record more each time, and none once `is_over`."""

    def __init__(self):
        self.offset, self.is_over = 0, False

    async def call(self, function, *_):
        if function is None:  # forget
            return None
        if self.is_over:
            return {}, {}
        self.offset += 1
        return {0: Taken([self.offset - 1], [None], [b"v"], [None], [0], self.offset)}, {}


class Reader:
    forget, take = None, "take"


@pytest.fixture
def read(monkeypatch):
    async def reads(times, *, begins="one", until_over=False, **options):
        log = KafkaLog(KafkaSettings({"bootstrap.servers": "127.0.0.1:1"}), "t", **options)
        log._facts = TopicFacts("t", "one", (), (), ())
        thread, told = Thread(), []

        async def topic_id(name, **_):
            told.append("one" if len(told) < 1 else "two")
            return told[-1]

        monkeypatch.setattr(log, "_source", lambda: (Reader, thread))
        monkeypatch.setattr(log.cluster, "topic_id", topic_id)
        place, found = Place("", 0, begins), {}
        for _ in range(times):
            found = (await log.read({0: place}, 5, 1000, 0.0))[0]
            if isinstance(found, SourceReset):
                break
            place = found.place if begins else msgspec.structs.replace(found.place, incarnation="")
        if until_over:
            thread.is_over = True
            monkeypatch.setattr(log_module, "_IDLE_CHECK_S", -1.0)
            found = (await log.read({0: place}, 5, 1000, 0.0))[0]
        return found, len(told)

    return reads


async def test_a_copy_asks_for_the_topic_behind_every_read(read):
    found, asked = await read(10)
    assert isinstance(found, SourceReset)
    assert asked == 2


async def test_an_audit_asks_when_it_begins_and_when_nothing_comes(read, monkeypatch):
    monkeypatch.setattr(log_module, "_IDLE_CHECK_S", 3600.0)
    found, asked = await read(10, begins="", checks_reads=False)
    assert (found.place.count, found.place.incarnation, asked) == (10, "one", 1)
    found, asked = await read(10, begins="", checks_reads=False, until_over=True)
    assert isinstance(found, SourceReset)
    assert asked == 2
