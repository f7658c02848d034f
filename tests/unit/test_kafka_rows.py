"""What a Kafka topic takes of a record, and what happens to the rest."""

import hashlib

import msgspec
import pytest

from crossfade.brokers.kafka.cluster import ConfigValue, TopicFacts
from crossfade.brokers.kafka.guarantee import guarantee_of, read_limits
from crossfade.brokers.kafka.rows import QUARANTINE_BODY_BYTES_MAX, QuarantineBody, prepare, quarantine_body
from crossfade.errors import GuaranteeRefused
from crossfade.model.position import Place
from crossfade.model.record import Reject, Shape, Write

NOW = 1_700_000_000_000
DAY = 86_400_000


def config(**values):
    return {name.replace("_", "."): ConfigValue(str(value), False) for name, value in values.items()}


def limits(**values):
    return read_limits(config(**values)).rows(NOW)


def write(rows, positions=None):
    return Write((0, 0), positions or list(range(len(rows))), rows, Place(str(len(rows)), len(rows)))


def test_plain_rows_pass_untouched_and_uncopied():
    rows = [(b"k", b"v", None, NOW), (None, None, None, NOW - 1)]
    given = write(rows)
    found = prepare(given, limits())
    assert found.rows is given.rows
    assert found.positions is given.positions
    assert found.rejects == []
    assert found.own_times == {}


def test_redis_positions_become_text():
    assert prepare(write([(b"k", b"v", None, NOW)], [b"17-3"]), limits()).positions == ["17-3"]


@pytest.mark.parametrize(
    ("settings", "time_ms", "is_redated"),
    [
        ({}, 0, True),  # librdkafka takes 0 for "now"
        ({}, -1, True),
        ({}, NOW, False),
        ({}, NOW + 3_500_000, False),
        ({}, NOW + 3_600_000, True),
        ({"message_timestamp_after_max_ms": 1 << 62}, 4_102_444_800_000, False),
        ({"retention_ms": DAY}, NOW - DAY // 2, False),
        ({"retention_ms": DAY}, NOW - DAY, True),  # retention would delete it at once
        ({"retention_ms": DAY}, NOW - DAY + 60_000, True),
        ({"retention_ms": -1}, 1, False),
        ({"retention_ms": DAY, "cleanup_policy": "compact"}, 1, False),
        ({"retention_ms": -1, "message_timestamp_before_max_ms": DAY}, NOW - 2 * DAY, True),
        ({"retention_ms": 60_000}, NOW - 20_000, False),  # a short retention does not redate everything
        ({"message_timestamp_type": "LogAppendTime"}, NOW, True),
    ],
)
def test_a_time_that_the_topic_does_not_keep_travels_in_the_header(settings, time_ms, is_redated):
    found = prepare(write([(b"a", b"1", None, NOW), (b"b", b"2", None, time_ms)]), limits(**settings))
    assert [row[:3] for row in found.rows] == [(b"a", b"1", None), (b"b", b"2", None)]
    if is_redated:
        assert found.rows[1][3] == NOW
        assert found.own_times[1] == time_ms
    else:
        assert found.rows[1][3] == time_ms
        assert found.own_times == {}
    assert found.rejects == []


@pytest.mark.parametrize("name", ["\ud800", "a\udcffb", "n\0l"])
def test_a_header_name_that_is_no_text_never_reaches_the_client_library(name):
    rows = [(b"a", b"1", None, NOW), (b"b", b"2", [("ok", b"x"), (name, b"y")], NOW), (b"c", b"3", None, NOW)]
    found = prepare(write(rows), limits())
    assert [row[0] for row in found.rows] == [b"a", b"c"]
    assert found.positions == [0, 2]
    (reject,) = found.rejects
    assert reject.position == 1
    assert reject.row is rows[1]
    assert "header name" in reject.reason
    body = msgspec.msgpack.decode(quarantine_body(reject, hashlib.sha256), type=QuarantineBody)
    assert body.row[0:2] == [b"b", b"2"]


def test_own_times_follow_their_rows_past_rejects():
    rows = [(b"a", b"x" * 5000, None, NOW), (b"b", b"2", None, 0), (b"c", b"3", None, 5)]
    rows[0] = (b"a", b"x" * 50_000, None, NOW)
    found = prepare(write(rows), limits(max_message_bytes=8192))
    assert [row[0] for row in found.rows] == [b"b", b"c"]
    assert found.own_times == {0: 0, 1: 5}
    assert [reject.position for reject in found.rejects] == [0]
    assert "50" in found.rejects[0].reason


def test_sizes_count_headers_keys_and_their_own_header():
    sizes = limits(max_message_bytes=25_000)
    assert sizes.size_bytes_max == 4 * 25_000 - 1024
    large = sizes.size_bytes_max - 300
    assert prepare(write([(None, b"x" * large, None, NOW)]), sizes).rejects == []
    for row in [
        (b"k" * 400, b"x" * large, None, NOW),
        (None, b"x" * large, [("n", b"y" * 400)], NOW),
        (b"x" * (large + 300), None, None, NOW),
    ]:
        assert len(prepare(write([row]), sizes).rejects) == 1


def test_after_a_refusal_by_the_broker_the_exact_limit_counts():
    found = read_limits(config(max_message_bytes=25_000))
    row = (None, b"x" * 30_000, None, NOW)
    assert prepare(write([row]), found.rows(NOW)).rejects == []  # it may compress
    found.is_exact = True
    assert len(prepare(write([row]), found.rows(NOW)).rejects) == 1


def test_what_is_too_large_for_a_small_topic_is_isolated_whatever_its_shape():
    found = read_limits(config(max_message_bytes=4000))
    found.is_exact = True
    rows = [(b"k", b"x" * size, None, NOW) for size in (100, 3700, 4100, 8000)] + [(b"x" * 5000, None, None, NOW)]
    prepared = prepare(write(rows), found.rows(NOW))
    assert prepared.positions == [0, 1]
    assert [reject.position for reject in prepared.rejects] == [2, 3, 4]
    both = prepare(write([(b"k" * 2000, b"x" * 2000, None, NOW)]), found.rows(NOW))
    assert len(both.rejects) == 1


def test_no_batch_and_no_record_is_larger_than_a_segment():
    found = read_limits(config(segment_bytes=20_000))
    assert found.batch_bytes_max < 20_000
    found.is_exact = True
    rows = [(None, b"x" * size, None, NOW) for size in (19_000, 20_000)]
    assert prepare(write(rows), found.rows(NOW)).positions == [0]
    assert read_limits(config(segment_bytes=1 << 30)).message_bytes_max == 1_048_588


@pytest.mark.parametrize("end", ["\0", "\ud800"])
def test_a_long_header_name_has_room_in_the_reason(end):
    rows = [(b"a", b"1", [("n" * 1_000_000 + end, b"y")], NOW)]
    (reject,) = prepare(write(rows), limits()).rejects
    assert "header name 'nnn" in reject.reason
    assert len(reject.reason) < 200


def test_batches_fit_even_when_nothing_compresses():
    assert read_limits(config(max_message_bytes=65_536)).batch_bytes_max < 65_536
    assert read_limits(config()).batch_bytes_max == 1_000_000


def test_rejects_of_the_mapping_stay_first():
    reject = Reject(b"1-1", (["a"], 1), "no", Shape.ENTRY)
    given = write([(b"b", b"2", [("\ud800", b"")], NOW)])
    given.rejects.append(reject)
    assert next(r.reason for r in prepare(given, limits()).rejects) == "no"
    assert given.rejects == [reject]  # the caller's list is not touched


def test_quarantine_keeps_small_rows_whole_and_large_ones_by_digest():
    row = (b"k", b"v" * 1000, [("h", None)], 5)
    small = msgspec.msgpack.decode(
        quarantine_body(Reject(7, row, "no", Shape.RECORD), hashlib.sha256), type=QuarantineBody
    )
    assert (small.shape, small.row[0], small.row[1], small.row[3]) == ("record", b"k", b"v" * 1000, 5)
    large = quarantine_body(Reject(7, (b"k", b"v" * 1_000_000, None, 5), "no", Shape.RECORD), hashlib.sha256)
    assert len(large) < QUARANTINE_BODY_BYTES_MAX + 200
    cut = msgspec.msgpack.decode(large, type=QuarantineBody)
    assert cut.row is None
    assert cut.size_bytes > 1_000_000
    assert len(cut.cut) == QUARANTINE_BODY_BYTES_MAX
    assert len(cut.sha256) == 64


def facts(replication=3):
    return TopicFacts("t", "id", (tuple(range(replication)),), (tuple(range(replication)),), (0,))


def test_the_guarantee_is_refused_where_a_lost_broker_loses_records():
    (fit,) = guarantee_of(facts(), config(min_insync_replicas=2), allow_weak=False)
    assert "exactly once" in fit
    (untold,) = guarantee_of(facts(), config(), allow_weak=False)  # a service that has no such setting
    assert "as many as the service asks for" in untold
    for about, told, names in [
        (facts(1), config(min_insync_replicas=2), "it has 1 replica"),
        (facts(), config(min_insync_replicas=1), "min.insync.replicas is 1"),
        (
            facts(),
            config(min_insync_replicas=2, unclean_leader_election_enable="true"),
            "unclean.leader.election.enable is true",
        ),
    ]:
        with pytest.raises(GuaranteeRefused, match=f"exactly once cannot be kept on topic t: {names}$"):
            guarantee_of(about, told, allow_weak=False)
        (weak,) = guarantee_of(about, told, allow_weak=True)
        assert weak == f"exactly once while no broker is lost ({names})"


def test_all_that_is_wrong_with_a_topic_is_told_at_once():
    wrong = config(min_insync_replicas=1, unclean_leader_election_enable="true")
    (weak,) = guarantee_of(facts(1), wrong, allow_weak=True)
    assert all(name in weak for name in ("1 replica", "min.insync.replicas", "unclean.leader"))
