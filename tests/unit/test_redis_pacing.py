"""Who is read next, and how much of it."""

from hypothesis import given
from hypothesis import strategies as st

from crossfade.brokers.redis.pacing import Pacing

BYTES = 64 << 20


def read(pacing, lanes, records_max, behind):
    """One read in which the lanes of `behind` give all that they may, and the others nothing."""
    shares = pacing.deal(lanes, records_max, BYTES)
    for lane, (records, _) in shares.items():
        given = records if lane in behind else 0
        pacing.observe(lane, given, 100 * given, at_end=lane not in behind)
    return shares


def test_sixteen_lanes_with_a_backlog_are_read_at_once_and_share_what_there_is():
    pacing = Pacing()
    for _ in range(10):
        shares = read(pacing, range(16), 16_000, set(range(16)))
    assert {records for records, _ in shares.values()} == {1_000}
    assert len(shares) == 16


def test_many_lanes_with_a_backlog_take_turns_so_that_each_read_of_one_is_worth_it():
    pacing, turns = Pacing(), []
    for _ in range(40):
        turns.append(read(pacing, range(256), 48_000, set(range(256))))
    assert len(turns[0]) == 256  # what was never read is looked at first
    assert len(turns[1]) == 256  # a little of each does not fill a read
    assert [len(shares) for shares in turns[-8:]] == [32] * 8
    assert {lane for shares in turns[-8:] for lane in shares} == set(range(256))
    assert {records for records, _ in turns[-1].values()} == {1_500}


def test_lanes_without_a_backlog_are_read_every_time_beside_those_that_take_turns():
    pacing, behind = Pacing(), set(range(100, 256))
    for _ in range(20):
        shares = read(pacing, range(256), 24_000, behind)
    assert set(range(100)) <= set(shares)
    assert len(shares) == 116


@given(
    st.sets(st.integers(0, 400), min_size=1, max_size=300),
    st.integers(1, 60_000),
    st.randoms(use_true_random=False),
)
def test_no_lane_waits_for_ever_and_no_read_is_larger_than_its_limit(lanes, records_max, random):
    pacing = Pacing()
    read(pacing, sorted(lanes), records_max, lanes)
    waited = dict.fromkeys(lanes, 0)
    for _ in range(40):
        paused = {lane for lane in lanes if random.random() < 0.1}
        here = sorted(lanes - paused) or sorted(lanes)
        shares = read(pacing, here, records_max, lanes)
        assert shares.keys() <= set(here)
        assert sum(records for records, _ in shares.values()) <= max(records_max, len(shares))
        assert len(shares) >= min(len(here), 16)
        for lane in lanes:
            waited[lane] = 0 if lane in shares or lane in paused else waited[lane] + 1
    assert max(waited.values()) <= 20
