"""A Kafka topic that is deleted and made anew while an audit reads it: no verdict, whatever it holds by then."""

import pytest

from crossfade.brokers.kafka import KafkaLog, KafkaSettings
from crossfade.brokers.kafka import log as log_module
from crossfade.brokers.kafka.cluster import TopicFacts
from crossfade.brokers.kafka.source import Taken
from crossfade.brokers.protocol import Bounds
from crossfade.cli.verify_words import exit_code_of
from crossfade.errors import AccessRefused, SourceReset, Unreachable
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
        source, target = (one if isinstance(one, KafkaLog) else log_of(one) for one in (source, target))
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
    assert report.lanes[0].is_mixed  # "what was compared is equal" would be too much


async def test_older_epochs_of_another_topic_are_forgotten_too(verdict):
    older = [(key, value, [("xf", xf[0][1][:-1] + b"0")], time_ms) for key, value, xf, time_ms in COPIES]
    report = await verdict(Topic(ORIGINALS), Topic(COPIES, older))
    assert (exit_code_of([report]), report.total("stale_epochs")) == (1, 0)
    assert not any(lane["stale_epochs"] for lane in report.state.get("lanes", {}).values())


def fails_at_last(log, error):
    """Asked again what it holds, it fails: nothing is there any more, or nobody answers."""
    bounds, asked = log.bounds, []

    async def then(lanes):
        asked.append(list(lanes))
        if len(asked) > 1:
            raise error
        return await bounds(lanes)

    log.bounds = then
    return asked


LOST = COPIES[:700] + COPIES[703:]


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize(
    "error", [AccessRefused("topic t does not exist"), Unreachable("no broker")], ids=["deleted", "nobody answers"]
)
async def test_a_topic_that_cannot_be_asked_about_at_last_costs_its_lanes_alone(verdict, side, error):
    logs = {"source": log_of(Topic(ORIGINALS)), "target": log_of(Topic(LOST))}
    fails_at_last(logs[side], error)
    report = await verdict(logs["source"], logs["target"])
    assert isinstance(report.lanes[0].error, SourceReset)
    assert error.message in str(report.lanes[0].error)
    assert (exit_code_of([report]), report.total("missing")) == (1, 0)


async def test_a_lane_that_has_failed_is_not_asked_about_at_last(verdict, monkeypatch):
    monkeypatch.setattr(log_module, "_IDLE_CHECK_S", 0.0)
    logs = [log_of(Topic(ORIGINALS)), log_of(Topic(COPIES, []))]
    asked = [fails_at_last(log, Unreachable("no broker")) for log in logs]
    report = await verdict(*logs)
    assert isinstance(report.lanes[0].error, SourceReset)
    assert asked == [[[0]], [[0]]]


@pytest.mark.parametrize("resumes", [False, True])
async def test_what_was_forgotten_of_a_topic_that_is_there_after_all_is_found_again(resumes):
    """A right was missing for a moment, or a broker that had just started did not know the topic."""
    altered = [*COPIES[:700], (b"k", b"other", *COPIES[700][2:]), *COPIES[701:]]

    async def audited(originals, target, state):
        source, mapping = log_of(Topic(originals)), mapping_named("lossless")
        return await audit(source, target, mapping, route_id=ROUTE, lanes=[0], resume=state)

    state = (await audited(ORIGINALS[:400], log_of(Topic(altered[:400])), None)).state if resumes else None
    target = log_of(Topic(altered))
    fails_at_last(target, AccessRefused("no right to look at topic t"))
    report = await audited(ORIGINALS, target, state)
    assert (exit_code_of([report]), report.total("altered")) == (1, 0)
    report = await audited(ORIGINALS, log_of(Topic(altered)), report.state)
    assert (report.lanes[0].error, report.total("altered"), report.matched) == (None, 1, RECORDS - 1)
