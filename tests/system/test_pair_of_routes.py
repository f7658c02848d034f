"""Two routes that copy one stream both ways, on real brokers, with applications that write on both sides at once.

The judge is the oracle, on what lies on either side: applications' records are numbered per side, so it is known which
records belong there and which are copies.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable

import pytest
from rig import Copy, KafkaSide, RedisSide, wait_for
from tests.oracle.judge import judge
from tests.oracle.rows import Lane

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

LANES = 2
PER_LANE = 400
#: numbers of the Kafka side begin here
KAFKA_FROM = 1_000_000


def _pair(workshop) -> tuple[Copy, Copy]:
    """Both routes in one file; `copy` is the one that a rig's relay runs."""
    redis, kafka = workshop.redis(LANES), workshop.kafka(LANES)
    forth: Copy = workshop.copy(redis, kafka)
    back: Copy = workshop.copy(kafka, redis)
    stream = {"old": redis.side(), "new": kafka.side()}
    route = forth.document["routes"]["copy"]
    for made, mine, name in ((forth, "copy", "back"), (back, "copy", "forth")):
        document = forth.document
        other = {**route, "id": (back if made is forth else forth).id}
        own = {**route, "id": made.id}
        if made is forth:
            routes = {mine: own, name: {**other, "source": "new", "target": "old", "reverse_of": mine}}
        else:
            routes = {mine: {**own, "source": "new", "target": "old", "reverse_of": name}, name: other}
        made.document = {**document, "streams": {"stream": stream}, "routes": routes}
        made.write_config()
    return forth, back


def _write(side: RedisSide | KafkaSide, numbers: Iterable[int]) -> None:
    for number in numbers:
        for lane in range(LANES):
            side.write_numbers(lane, [number * LANES + lane])


def _start(copy: Copy) -> None:
    answer = copy.cli("relay", "start", "copy")
    assert answer.code == 0, answer.err


def test_both_ways_at_once_nothing_goes_round_and_nothing_is_lost(workshop) -> None:
    forth, back = _pair(workshop)
    redis, kafka = forth.source, forth.target
    assert isinstance(redis, RedisSide)
    assert isinstance(kafka, KafkaSide)
    _start(forth)
    _start(back)
    relays = [forth.run(by_hand=True, instance="forth"), back.run(by_hand=True, instance="back")]
    writers = [
        threading.Thread(target=_write, args=(redis, range(PER_LANE))),
        threading.Thread(target=_write, args=(kafka, range(KAFKA_FROM, KAFKA_FROM + PER_LANE // 4))),
    ]
    for writer in writers:
        writer.start()
    relays[0].wait_said('"claimed"')
    relays[1].wait_said('"claimed"')
    wait_for(lambda: kafka.count() > 150, "records on the Kafka side")
    relays[0].kill()
    relays[1].kill()
    relays += [forth.run(by_hand=True, instance="forth"), back.run(by_hand=True, instance="back")]
    for writer in writers:
        writer.join(120)
        assert not writer.is_alive()
    native = LANES * (PER_LANE + PER_LANE // 4)
    wait_for(lambda: redis.count() >= native and kafka.count() >= native, lambda: f"{native} records\n{forth.said()}")

    # Applications write again what a relay wrote, marks and all: a replayed dead letter, a task queued again.
    fields = next(fields for _, fields in redis.raw()[0] if b"xf" in fields)
    redis.write(0, [fields])
    record = next(r for r in kafka.raw()[1] if any(name == "xf" for name, _ in r.headers))
    kafka.write(1, [(record.key, record.value, list(record.headers), 0)])
    native += 2
    wait_for(lambda: redis.count() >= native and kafka.count() >= native, lambda: f"{native} records\n{forth.said()}")

    for relay, copy in zip(relays[2:], (forth, back), strict=True):
        name = copy.source.key(0) if isinstance(copy.source, RedisSide) else f"{copy.source.topic}[0]"
        row = copy.wait_status(name, lambda row: row["lag_records"] == 0, "has no lag")
        assert row["echoes"] >= PER_LANE // 4
        assert relay.is_running
    assert (redis.count(), kafka.count()) == (native, native)  # nothing went round meanwhile
    for relay in relays[2:]:
        assert relay.stop() == 0

    # The oracle: what each side's applications wrote lies on the other side, exactly and in order.
    here, there = redis.read(), kafka.read()
    for is_kafka in (False, True):
        parts = {
            side: {lane: _part(content[lane], is_kafka) for lane in content}
            for side, content in (("redis", here), ("kafka", there))
        }
        source, target = ("kafka", "redis") if is_kafka else ("redis", "kafka")
        result = judge(parts[source], parts[target])
        assert result.differences == 0, result.as_dict()
        assert result.records == LANES * (PER_LANE // 4 if is_kafka else PER_LANE) + 1

    # And the product's own auditor agrees, in both directions, and knows the echoes.
    for copy in (forth, back):
        answer = copy.cli("verify", "copy", "--settled")
        assert answer.code == 0, answer.out + answer.err


def _part(lane: Lane, is_kafka: bool) -> Lane:
    """The rows of a lane that applications of one side wrote first."""
    wanted = [at for at in range(len(lane)) if (lane.id[at] >= KAFKA_FROM) == is_kafka]
    columns = (lane.major, lane.minor, lane.content, lane.time_ms, lane.id)
    return Lane(*(array(column.typecode, [column[at] for at in wanted]) for column in columns))


def test_a_circle_that_is_not_declared_is_refused_with_the_way_out(workshop) -> None:
    forth, _ = _pair(workshop)
    del forth.document["routes"]["back"]["reverse_of"]
    forth.write_config()
    answer = forth.cli("relay", "start", "copy")
    assert answer.code == 2
    assert "reverse_of" in answer.err
