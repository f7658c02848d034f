"""A Kafka topic that is deleted and made anew while an audit reads it: no verdict, whatever it holds by then."""

import pytest

from crossfade.brokers.kafka import KafkaLog, KafkaSettings
from crossfade.brokers.kafka import log as log_module
from crossfade.brokers.kafka.cluster import TopicFacts
from crossfade.brokers.kafka.source import Taken
from crossfade.brokers.protocol import Bounds
from crossfade.cli.verify_words import exit_code_of
from crossfade.errors import SourceReset
from crossfade.model.mapping import mapping_named
from crossfade.verify.audit import audit
from crossfade.verify.by_key import audit_by_key

ROUTE, RECORDS, STEP, CHANGED = "0a1b2c3d", 2_000, 400, 800

ORIGINALS = [(b"k", b"v%d" % at, None, 1000 + at) for at in range(RECORDS)]
COPIES = [
    (b"k", b"v%d" % at, [("xf", b"1;%s/0@%d#%d;1" % (ROUTE.encode(), at, at + 1))], 1000 + at) for at in range(RECORDS)
]


class Topic:
    """What the brokers hold; `rows_anew` takes the place of its rows just before the third read."""

    def __init__(self, rows, rows_anew=None):
        self.id, self.rows, self.rows_anew, self.reads = "one", rows, rows_anew, 0

    def take(self, after, *_):
        self.reads += 1
        if self.reads == 3 and self.rows_anew is not None:
            self.id, self.rows = "two", self.rows_anew
        taken = {}
        for lane, place in after.items():
            rows = self.rows[place.count : place.count + STEP]
            if rows:
                positions = list(range(place.count, place.count + len(rows)))
                taken[lane] = Taken(positions, *map(list, zip(*rows, strict=True)), positions[-1] + 1, 0)
        return taken, {}

    def forget(self):
        pass


class Thread:
    """Runs at once what the reader's own thread would."""

    async def call(self, function, *arguments):
        return function(*arguments)


def log_of(topic):
    log = KafkaLog(KafkaSettings({"bootstrap.servers": "127.0.0.1:1"}), "t", checks_reads=False)
    log.lanes, log._facts = 1, TopicFacts("t", topic.id, ((1,),), ((1,),), (1,))

    async def topic_id(name, **_):
        return topic.id

    async def bounds(lanes):
        count = len(topic.rows)
        return {0: Bounds("0", str(count - 1), count, count, topic.id)}

    log.cluster.topic_id, log.bounds, log._source = topic_id, bounds, lambda: (topic, Thread())
    return log


GARBAGE = [(b"k", b"garbage", None, 1)] * CHANGED


@pytest.fixture(params=["one to one", "by key"])
def verdict(request):
    async def verified(source, target):
        source, target = log_of(source), log_of(target)
        if request.param == "by key":
            return await audit_by_key(source, target, mapping_named("lossless"), route_id=ROUTE, partitioner="murmur2")
        return await audit(source, target, mapping_named("lossless"), route_id=ROUTE, lanes=[0])

    return verified


async def test_two_topics_that_stay_are_equal(verdict):
    report = await verdict(Topic(ORIGINALS), Topic(COPIES))
    assert (exit_code_of([report]), report.is_complete, report.matched) == (0, True, RECORDS)


@pytest.mark.parametrize("asks", ["at the end alone", "while it reads"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        (Topic, lambda rows: Topic(rows, GARBAGE + rows[CHANGED:])),
        (lambda rows: Topic(rows, GARBAGE + rows[CHANGED:]), Topic),
        (lambda rows: Topic(rows, [(b"k", b"other", None, 5000)] * RECORDS), Topic),
        (lambda rows: Topic(rows, [(b"k", b"other", None, 5000)] * CHANGED), Topic),
        (lambda rows: Topic(rows, []), Topic),
    ],
    ids=["target begins otherwise", "source begins otherwise", "other records", "shorter", "empty"],
)
async def test_a_topic_that_is_made_anew_gives_no_verdict(verdict, monkeypatch, source, target, asks):
    is_short = source(ORIGINALS).rows_anew is not None and len(source(ORIGINALS).rows_anew) < RECORDS
    if asks == "while it reads" or is_short:  # nothing comes of it any more: the log asks then
        monkeypatch.setattr(log_module, "_IDLE_CHECK_S", 0.0)
    else:
        monkeypatch.setattr(log_module, "_IDLE_CHECK_S", 3600.0)
    report = await verdict(source(ORIGINALS), target(COPIES))
    assert exit_code_of([report]) == 1
    assert isinstance(report.lanes[0].error, SourceReset)
    assert (report.differences, report.strays, [one for kept in report.named.values() for one in kept]) == (0, [], [])
    assert not report.is_complete
