"""Lane states, pace and fan-out: the relay's pure parts."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from crossfade.brokers.protocol import Bounds
from crossfade.errors import SourceReset, SourceTrimmed, TargetFull, UsageError
from crossfade.model.mapping import mapping_named
from crossfade.model.partitioner import partition
from crossfade.model.position import Marker, Place
from crossfade.model.record import Batch, Mapped, Shape
from crossfade.model.route import LaneMap, Route, make_route
from crossfade.relay.entering import claimed_lanes
from crossfade.relay.fanout import plan_writes
from crossfade.relay.lanes import LaneState, State, resume_place
from crossfade.relay.pace import BatchSize, Limits, RateLimit


def lane(*positions: str) -> LaneState:
    markers = {(0, i): Marker(Place(position, count=10 * (i + 1))) for i, position in enumerate(positions)}
    return LaneState(0, "lane-0", markers, resume_place(list(markers.values())))


def bounds(count: int, length: int) -> Bounds:
    return Bounds(first="1-0", last="9-0", count=count, length=length, incarnation="x")


def test_a_lane_resumes_from_its_smallest_marker() -> None:
    assert lane("10-0", "9-5", "11-0").settled.position == "9-5"
    assert lane("", "9-5").settled.position == ""


def test_positions_order_by_number_not_by_text() -> None:
    assert resume_place([Marker(Place("100")), Marker(Place("99"))]).position == "99"


def test_a_halted_lane_stays_out_and_a_waiting_one_comes_back() -> None:
    state = lane("10-0")
    state.place = Place("20-0")
    state.fail(TargetFull(0, "full"), now_s=100.0)
    assert state.state is State.WAITING
    assert state.retry_at_s > 100.0
    assert state.place.position == "10-0", "what was read but not appended is read again"
    state.fail(SourceTrimmed(0, "gone", lost_records=3), now_s=101.0)
    assert state.state is State.HALTED
    state.revive()
    assert state.state is State.COPYING
    assert state.error is None


def test_deleted_entries_are_counted_once_however_often_they_are_read_again() -> None:
    state = lane("10-0")
    before = state.settled
    for _ in range(3):
        state.pass_deleted(before, Place("15-0", count=15), 2)
        state.fail(TargetFull(0, "full"), now_s=0.0)
        state.settle_deleted()
    state.pass_deleted(before, Place("18-0", count=18), 3)  # one more was deleted meanwhile
    state.pass_deleted(Place("18-0", count=18), Place("20-0", count=20), 1)  # read while the append is under way
    state.pass_deleted(Place("20-0", count=20), Place("25-0", count=25), 0)
    state.markers[0, 0] = Marker(Place("18-0", count=18))
    for _ in range(2):
        state.settle_deleted()
        assert state.deleted_total == 3
    state.markers[0, 0] = Marker(Place("25-0", count=25))
    state.settle_deleted()
    assert state.deleted_total == 4


@pytest.mark.parametrize(("found", "counted"), [(603, 3), (-1, 3), (0, 0)])
async def test_deleted_entries_are_counted_where_the_answer_to_their_append_was_lost(found: int, counted: int) -> None:
    """`found`: the count in the marker that the next claim finds. Nothing behind a marker without one tells of them."""
    route = make_route(
        id="r1",
        name="r",
        source_identity="s",
        source_lanes=1,
        target_lanes=1,
        lane_map=LaneMap.ONE_TO_ONE,
        partitioner="murmur2",
        mapping_digest="",
        first_lanes=1,
    )
    before = lane("10-0")
    before.pass_deleted(Place("10-0", count=10), Place("700-0", count=603), 3)
    claim = SimpleNamespace(markers={(0, 0): Marker(Place("700-0", count=found))}, errors={})
    source = SimpleNamespace(lane_name=str)
    lanes = await claimed_lanes(route, source, None, claim, [0], {0: before})  # type: ignore[arg-type]
    assert lanes[0].deleted_total == counted


def test_waiting_grows_but_stays_bounded() -> None:
    state = lane("10-0")
    waits = []
    for _ in range(20):
        state.fail(TargetFull(0, "full"), now_s=0.0)
        waits.append(state.retry_at_s)
    assert waits == sorted(waits)
    assert waits[-1] == 30.0


def test_lag_counts_what_the_source_added_since_the_marker() -> None:
    state = lane("10-0")
    state.look(bounds(count=25, length=25), now_s=0.0)
    assert state.lag_records == 15


def test_lag_is_unknown_rather_than_zero_without_a_count() -> None:
    state = lane("5-0")
    state.markers[(0, 0)] = Marker(Place("5-0", count=-1))
    state.look(bounds(count=25, length=25), now_s=0.0)
    assert state.lag_records is None
    state.markers[(0, 0)] = Marker(Place("9-0", count=-1))
    assert state.lag_records == 0


def test_time_until_trimming_reaches_the_position() -> None:
    state = lane("5-0")  # accounts for 10 records
    state.look(bounds(count=100, length=100), now_s=0.0)  # nothing trimmed yet
    assert state.trimmed_in_s is None
    state.look(bounds(count=100, length=98), now_s=2.0)  # 1 record/s goes, 8 are left before ours
    assert state.trimmed_in_s == pytest.approx(8.0)


NOW_S = 1_700_000_000.0


def ends(count: int) -> Bounds:
    return bounds(count, count)


def test_nothing_to_copy_is_a_lag_of_no_seconds_and_nothing_known_is_none() -> None:
    state = lane("10-0")
    assert state.lag_s(NOW_S, 0.0) is None
    state.look(ends(10), now_s=0.0)
    assert state.lag_s(NOW_S, 0.0) == 0.0


def test_lag_in_seconds_is_the_age_of_the_last_relayed_record() -> None:
    state = lane("10-0")
    state.relayed_time_ms = int((NOW_S - 90) * 1000)
    state.look(ends(25), now_s=0.0)
    assert state.lag_s(NOW_S, 0.0) == pytest.approx(90)
    assert state.lag_s(NOW_S - 200, 0.0) == 0.0, "a record that says it comes from the future"


def test_one_record_after_an_idle_hour_is_not_an_hour_of_lag() -> None:
    state = lane("10-0")
    state.relayed_time_ms = int((NOW_S - 3600) * 1000)
    for loop_s in (0.0, 3599.0):
        state.look(ends(10), now_s=loop_s)
    state.look(ends(11), now_s=3600.0)
    assert state.lag_s(NOW_S, 3600.5) == pytest.approx(1.5)
    state.look(ends(12), now_s=3700.0)  # stuck: it grows
    assert state.lag_s(NOW_S + 100, 3700.0) == pytest.approx(101)


def test_a_lane_that_halted_before_this_process_tells_the_age_where_source_or_position_do() -> None:
    by_id = lane(f"{int(NOW_S - 70) * 1000}-3")
    by_id.look(ends(25), now_s=0.0)
    assert by_id.lag_s(NOW_S, 0.0) == pytest.approx(70)
    chosen = lane("10-0")  # an id that is no time
    chosen.look(ends(25), now_s=0.0)
    assert chosen.lag_s(NOW_S, 0.0) is None
    trimmed = lane("9")  # an offset; what the lane has left begins behind it
    first_ms = int((NOW_S - 40) * 1000)
    trimmed.look(replace(bounds(count=100, length=80), first_time_ms=first_ms), now_s=0.0)
    assert trimmed.lag_s(NOW_S, 0.0) == pytest.approx(40)
    copied = lane("9")  # its first record was copied: nobody knows the age of the eleventh
    copied.look(replace(bounds(count=100, length=95), first_time_ms=first_ms), now_s=0.0)
    assert copied.lag_s(NOW_S, 0.0) is None


def test_records_per_s_is_that_of_the_last_ten_seconds() -> None:
    state = lane("10-0")
    state.look(ends(10), now_s=0.0)
    assert state.records_per_s == 0.0
    for second in range(1, 31):
        state.records_total += 50 if second <= 15 else 200
        state.look(ends(10), now_s=float(second))
    assert state.records_per_s == pytest.approx(200)
    for second in range(31, 45):
        state.look(ends(10), now_s=float(second))
    assert state.records_per_s == 0.0


def test_a_held_up_lane_says_so_when_it_lasts_and_nothing_else_is_to_be_copied() -> None:
    state = lane("10-0")
    held = replace(bounds(count=10, length=10), held_up="an open transaction")
    for loop_s in (100.0, 101.0, 104.0):
        state.look(held, now_s=loop_s)
        assert state.held_up == ""
    state.look(held, now_s=105.0)
    assert state.held_up == "an open transaction"
    state.look(replace(held, count=11), now_s=106.0)  # it has ended; the next one is new
    assert state.held_up == ""
    for loop_s in (107.0, 112.0):
        state.look(replace(held, count=11), now_s=loop_s)
    assert state.held_up == "", "there is a record to copy before the transaction"


def test_batch_size_follows_measured_appends_within_its_limits() -> None:
    limits = Limits(batch_records_max=10_000, commit_interval_s=0.1)
    size = BatchSize(limits)
    for _ in range(50):
        size.observe(size.records, took_s=0.01)
    assert size.records == 10_000
    for _ in range(50):
        size.observe(size.records, took_s=5.0)
    assert size.records == 2_000


def test_the_batch_does_not_shrink_to_a_few_records_a_lane() -> None:
    for lanes, records_max, least in ((16, 48_000, 2_048), (256, 48_000, 32_768), (256, 8_000, 8_000)):
        size = BatchSize(Limits(batch_records_max=records_max), lanes)
        for _ in range(50):
            size.observe(size.records, took_s=0.01)
            assert size.records <= records_max
        for _ in range(50):
            size.observe(size.records, took_s=5.0)
        assert size.records == least


def test_an_append_in_doubt_makes_the_next_one_smaller() -> None:
    size = BatchSize(Limits(batch_size_bytes_max=64 << 20))
    size.halve()
    assert (size.records, size.size_bytes) == (2_000, 32 << 20)
    for _ in range(9):
        size.halve()
    assert (size.records, size.size_bytes) == (2_000, 1 << 20)  # what a slow broker needs is not less than this
    for _ in range(9):
        size.observe(10, took_s=0.01)
    assert (size.records, size.size_bytes) == (2_000, 64 << 20)


def test_small_quick_appends_do_not_grow_the_batch() -> None:
    size = BatchSize(Limits())
    before = size.records
    size.observe(10, took_s=0.001)
    size.observe(10, took_s=5.0)
    assert size.records == before


def test_rate_limit_allows_no_more_than_its_rate() -> None:
    rate = RateLimit(1000.0, now_s=0.0)
    passed = 0
    for tick in range(1, 101):  # ten seconds in steps of 0.1 s
        allowed = rate.allowance(5000, tick / 10)
        rate.spend(allowed)
        passed += allowed
    assert 9_900 <= passed <= 10_000
    rate.rate_records_per_s = 0
    assert rate.allowance(5000, 10.0) == 5000


@pytest.mark.parametrize("records_per_s", [0.2, 0.5, 1.0, 1.5])
def test_a_rate_of_less_than_a_record_a_second_copies_all_the_same(records_per_s: float) -> None:
    rate = RateLimit(records_per_s, now_s=0.0)
    passed = 0
    for tick in range(1, 1001):  # a hundred seconds in steps of 0.1 s
        allowed = rate.allowance(5000, tick / 10)
        assert allowed > 0 or rate.wait_s() > 0
        rate.spend(allowed)
        passed += allowed
    assert passed == pytest.approx(100 * records_per_s, abs=1)


def route(source: int, target: int, lanes: LaneMap = LaneMap.BY_KEY) -> Route:
    return make_route(
        id="r1",
        name="r",
        source_identity="s",
        source_lanes=source,
        target_lanes=target,
        lane_map=lanes,
        partitioner="murmur2",
        mapping_digest="m",
    )


def test_more_source_than_target_lanes_is_refused_one_to_one() -> None:
    with pytest.raises(UsageError, match="16 lanes, the target 8"):
        route(16, 8, LaneMap.ONE_TO_ONE)


def test_the_digest_binds_source_lane_map_and_mapping() -> None:
    assert route(4, 4).source != route(4, 8).source
    assert route(4, 4, LaneMap.ONE_TO_ONE).source == route(4, 8, LaneMap.ONE_TO_ONE).source


def keyed_batch(n: int) -> tuple[Batch, Mapped]:
    rows = [(f"k{i}".encode(), b"v", None, 5) for i in range(n)]
    positions = [f"{i + 1}-0".encode() for i in range(n)]
    batch = Batch(1, Shape.ENTRY, positions, rows, Place(f"{n}-0", count=n))
    return batch, Mapped(positions, rows, [])


def test_by_key_each_row_goes_to_its_keys_lane_in_order_and_all_markers_move() -> None:
    batch, mapped = keyed_batch(200)
    r = route(2, 3)
    markers = {path: Marker(Place()) for path in r.paths_of(1)}
    writes = plan_writes(r, mapping_named("lossless"), Shape.RECORD, batch, mapped, markers, 10)
    assert [write.path for write in writes] == [(1, 0), (1, 1), (1, 2)]
    assert sum(len(write.rows) for write in writes) == 200
    for write in writes:
        assert write.place == batch.place
        assert {partition("murmur2", row[0], 3) for row in write.rows} == {write.path[1]}
        orders = [int(position.split(b"-")[0]) for position in write.positions]
        assert orders == sorted(orders)


def test_by_key_a_path_that_was_ahead_drops_what_it_has() -> None:
    batch, mapped = keyed_batch(200)
    r = route(2, 3)
    markers = {path: Marker(Place()) for path in r.paths_of(1)}
    ahead = r.paths_of(1)[0]
    markers[ahead] = Marker(Place("150-0"))
    writes = {w.path: w for w in plan_writes(r, mapping_named("lossless"), Shape.RECORD, batch, mapped, markers, 10)}
    theirs = {at for at, row in enumerate(batch.rows) if partition("murmur2", row[0], 3) == ahead[1]}
    assert min(theirs) < 150 < max(theirs)  # it has some of them, and needs others
    assert writes[ahead].positions == [batch.positions[at] for at in sorted(theirs) if at >= 150]
    others = [w for path, w in writes.items() if path != ahead]
    assert min(int(w.positions[0].split(b"-")[0]) for w in others) < 150


def test_paths_that_went_on_behind_a_reset_stay_and_the_others_are_resumed_first() -> None:
    """A crash between the appends of two paths, behind a reset that an operator accepted."""
    old, new = Place("60", 61, "before"), Place("4", 5, "now")
    state = LaneState(0, "lane-0", {(0, 0): Marker(new), (0, 1): Marker(old)}, new)
    assert state.is_split
    state.incarnation = "now"
    assert state.settled == old
    state.fail(SourceReset(0, "made anew"), 0.0)
    begin = Place("", 0, "now")
    state.jump(begin)
    assert state.jumps == {(0, 0): new, (0, 1): begin}
    assert state.settled == begin


@pytest.mark.parametrize("told", [150, 200])
def test_ids_that_came_with_an_upgrade_of_the_brokers_are_no_second_life(told: int) -> None:
    """A lane all of whose paths have copied from one topic resumes at the smallest place, whoever has its id."""
    ids = {told: "topic-id"}
    markers = {(0, path): Marker(Place(str(at), at + 1, ids.get(at, "A" * 22))) for path, at in enumerate((200, 150))}
    state = LaneState(0, "lane-0", markers, Place())
    if state.is_split:
        state.incarnation = "topic-id"
    assert state.settled.position == "150"


def test_a_lane_comes_back_where_it_settled_not_where_it_stood_when_it_was_paused() -> None:
    state = lane("10-0")
    state.state, state.place = State.PAUSED, state.settled
    state.markers[0, 0] = Marker(Place("12-0", count=12))  # an append that was under way has ended
    state.revive()
    assert state.place.position == "12-0"
