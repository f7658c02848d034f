"""Marker against data: every way in which the two can differ, and who decides."""

import pytest
from confluent_kafka import TopicPartition

from crossfade.brokers.kafka import markers
from crossfade.brokers.kafka.tail import LaneExtent, PathTail, origin_of, resolve
from crossfade.errors import GuaranteeRefused, RouteConflict, TargetReset, TargetTorn, UsageError
from crossfade.model.position import Marker, Place
from crossfade.model.wire import Origin, encode_marker, encode_origin

PATH = (3, 5)


def marker(ordinal, target, **changes):
    values = {
        "place": Place(str(100 + ordinal), 101 + ordinal, "topic-id", "7"),
        "ordinal": ordinal,
        "relayed": str(100 + ordinal) if ordinal else "",
        "target": str(target) if target is not None else "",
        "epoch": 4,
        "claim_id": "c",
        "transactional_id": "crossfade.r.a",
        "source": "s",
    }
    return Marker(**(values | changes))


def origin(ordinal, epoch=4):
    return Origin("r", 3, str(100 + ordinal), ordinal, epoch)


def settle(given, records, *, low=0, end=None, compacted=False):
    """Resolve as a claim does: the tail from the marker's record on, then, where asked for, from the log start."""
    end = end if end is not None else max([offset for offset, _ in records], default=-1) + 2
    extent = LaneExtent(low, end, compacted)
    start = int(given.target) if given is not None and given.target else low
    tail = PathTail(given)
    for offset, found in records:
        if offset >= max(start, low):
            tail.feed(offset, found)
    resolved = resolve(PATH, tail, extent, "t[5]", is_back_scanned=False)
    if resolved.needs_back_scan:
        tail = PathTail(given)
        for offset, found in records:
            if offset >= low:
                tail.feed(offset, found)
        resolved = resolve(PATH, tail, extent, "t[5]", is_back_scanned=True)
        assert not resolved.needs_back_scan
    return resolved


def run(first, last, offset=0, epoch=4):
    return [(offset + n - first, origin(n, epoch)) for n in range(first, last + 1)]


def test_equal_ordinals_are_normal():
    given = marker(10, 9)
    found = settle(given, run(1, 10))
    assert found.marker is given
    assert (found.alarm, found.error) == ("", None)


def test_an_unused_path_is_normal():
    given = marker(0, None)
    assert settle(given, []).marker is given
    assert settle(None, []).marker is None


def test_data_ahead_of_the_marker_decides():
    found = settle(marker(10, 9), run(1, 14, epoch=6))
    assert found.error is None
    assert found.alarm
    assert (found.marker.ordinal, found.marker.relayed, found.marker.target) == (14, "114", "13")
    assert (found.marker.place.position, found.marker.place.count) == ("114", 115)
    assert found.marker.place.incarnation == "topic-id"
    assert (found.marker.epoch, found.marker.source) == (6, "s")


def test_data_ahead_of_a_marker_that_has_relayed_nothing_decides():
    found = settle(marker(0, None), run(1, 2))
    assert found.alarm
    assert found.marker.ordinal == 2


def test_a_marker_ahead_of_the_data_gives_way():
    """The records of the marker's transaction were aborted by a late EndTxn; the marker was not."""
    found = settle(marker(10, 9), run(1, 7), end=12)
    assert found.error is None
    assert found.alarm
    assert (found.marker.ordinal, found.marker.target, found.marker.relayed) == (7, "6", "107")


def test_a_target_that_was_cut_off_gives_way_too():
    found = settle(marker(10, 9), run(1, 7), end=7)
    assert (found.marker.ordinal, bool(found.alarm)) == (7, True)


def test_another_record_at_the_markers_place_is_no_match():
    records = [*run(1, 7), (9, origin(10)._replace(position="999"))]
    found = settle(marker(10, 9), records)
    assert found.marker.relayed == "999"
    assert found.alarm


def test_a_hole_in_the_ordinals_halts():
    found = settle(marker(10, 9), [*run(1, 10), *run(13, 15, offset=12)])
    assert isinstance(found.error, TargetTorn)
    assert found.error.lane == 3
    found = settle(marker(10, 9), [*run(1, 7), *run(11, 12, offset=12)])
    assert isinstance(found.error, TargetTorn)


def test_nothing_left_to_decide_with_halts():
    assert isinstance(settle(marker(10, 9), [], end=30).error, TargetTorn)


def test_an_emptied_target_is_named():
    assert isinstance(settle(marker(10, 9), [], end=0).error, TargetReset)


def test_the_marker_decides_where_the_log_starts_behind_its_record():
    given = marker(10, 9)
    found = settle(given, [], low=20, end=25)
    assert found.marker is given
    assert (found.alarm, found.error) == ("", None)


def test_compaction_may_take_the_markers_record():
    given = marker(10, 9)
    found = settle(given, [], end=30, compacted=True)
    assert found.marker is given
    assert found.error is None
    assert found.alarm


def test_copies_of_our_records_by_applications_change_nothing():
    given = marker(10, 9)
    copies = [(20, origin(4)), (21, origin(10)), (22, origin(9))]
    found = settle(given, [*run(1, 10), *copies])
    assert found.marker is given
    assert found.alarm == ""


def test_without_marker_the_newest_header_rebuilds_it():
    found = settle(None, [*run(1, 12, epoch=9), (40, origin(3))])
    assert found.alarm
    assert (found.marker.ordinal, found.marker.epoch, found.marker.target) == (12, 9, "11")


def test_a_redis_source_has_no_count_in_a_rebuilt_place():
    found = settle(None, [(0, Origin("r", 3, "1700-4", 1, 2))])
    assert found.marker.place == Place("1700-4", -1, echo=-1)


def test_only_the_last_header_of_this_route_is_ours():
    ours = encode_origin(origin(4)).encode()
    other = encode_origin(origin(9)._replace(route="other")).encode()
    assert origin_of([("xf", other), ("a", b""), ("xf", ours)], b"1;r/") == origin(4)
    assert origin_of([("xf", ours), ("xf", other)], b"1;r/") is None
    assert origin_of([("xf", None)], b"1;r/") is None
    assert origin_of(None, b"1;r/") is None
    assert origin_of([("xf", ours + b"junk;")], b"1;r/") is None


# ------------------------------------------------------------------------------------------------ markers as offsets


def test_one_path_keeps_the_plain_form():
    given = {(3, 5): marker(10, 9)}
    text = markers.encode(given, is_alone=True)
    assert text == encode_marker(given[3, 5])
    assert markers.decode(text, 3, [(3, 5), (4, 1)]) == given


def test_many_target_lanes_share_one_text():
    given = {(3, lane): marker(lane, lane, place=Place(f"17-{lane}", lane, "birth", f"w{lane}")) for lane in range(25)}
    text = markers.encode(given, is_alone=False)
    assert len(text) <= 4095
    assert markers.decode(text, 3, list(given)) == given


def test_one_marker_of_several_target_lanes_says_which():
    given = {(3, 7): marker(1, 1)}
    text = markers.encode(given, is_alone=False)
    assert markers.decode(text, 3, [(3, 5), (3, 7)]) == given


def test_a_lane_that_has_more_target_lanes_than_before_is_another_route():
    text = markers.encode({(3, 0): marker(1, 1)}, is_alone=True)
    with pytest.raises(RouteConflict, match="source lane 3 was copied into one target lane before") as told:
        markers.decode(text, 3, [(3, 0), (3, 1), (3, 2)])
    assert told.value.hint == "use the configuration that the route was started with, or start a new route"


@pytest.mark.parametrize("text", ["1;x", "1;", "1;{}", "1;[x", "1;[[],[]]", "1;[1]", "host-1;2", "x"])
def test_what_another_tool_stored_is_told_as_such(text):
    with pytest.raises(UsageError, match="the offset of source lane 3 in the route's group is no marker") as told:
        markers.decode(text, 3, [(3, 5)])
    assert "--delete-offsets" in told.value.hint


def test_a_plain_offset_is_told_with_the_way_out():
    class Group:
        def committed(self, partitions, wait_s):
            return [TopicPartition(partition.topic, partition.partition, 7) for partition in partitions]

    reader = object.__new__(markers.MarkerReader)
    reader._route = "r1"
    with pytest.raises(UsageError, match=r"group crossfade\.r1 has a plain offset on lane 3, and") as told:
        reader._read(Group(), [3], 1.0)
    assert "--delete-offsets --group crossfade.r1 --topic crossfade.r1.lanes:3`" in told.value.hint
    with pytest.raises(UsageError, match=r"group crossfade\.r1 has a plain offset on lanes 3,5, and") as told:
        reader._read(Group(), [5, 3], 1.0)
    assert "--delete-offsets --group crossfade.r1 --topic crossfade.r1.lanes:3,5`" in told.value.hint


def test_too_many_target_lanes_are_refused_by_name():
    given = {(3, lane): marker(10**9 + lane, 10**12) for lane in range(80)}
    with pytest.raises(GuaranteeRefused, match="source lane 3 has 80 target lanes"):
        markers.encode(given, is_alone=False)


def test_units_are_counted_as_kafka_counts():
    wide = marker(1, 1, place=Place("1", 1, "\U0001f600" * 2000))
    with pytest.raises(GuaranteeRefused):
        markers.encode({(3, 5): wide}, is_alone=True)


def test_offsets_carry_the_ordinal_and_all_paths_of_a_lane():
    given = {(0, 0): marker(4, 1), (0, 1): marker(3, 1), (1, 0): marker(9, 1)}
    (found,) = markers.offsets("r", given, {0}, given)
    assert (found.topic, found.partition, found.offset) == ("crossfade.r.lanes", 0, 7)
    assert markers.decode(found.metadata, 0, list(given)) == {path: given[path] for path in [(0, 0), (0, 1)]}
