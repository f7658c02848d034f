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


def asked(pacing, lanes=(0,), records_max=16_000):
    """What the next read asks of each lane."""
    return {lane: records for lane, (records, _) in pacing.deal(list(lanes), records_max, BYTES).items()}


def used_to_small_entries():
    """A lane with a backlog of 500 bytes each."""
    pacing = Pacing()
    for _ in range(10):
        records = asked(pacing)[0]
        pacing.observe(0, records, 500 * records, at_end=False)
    return pacing


def test_a_read_that_failed_is_asked_for_smaller_until_it_is_one_record():
    pacing, counts = used_to_small_entries(), []
    for _ in range(5):
        counts.append(asked(pacing)[0])
        pacing.failed([0])
    assert counts == [16_000, 1_000, 62, 3, 1]
    assert asked(pacing)[0] == 1  # and never none


def test_a_lane_grows_again_after_success_alone_and_by_what_its_entries_weigh_now():
    pacing = used_to_small_entries()
    for _ in range(6):
        asked(pacing)
        pacing.failed([0])
    assert [asked(pacing)[0] for _ in range(3)] == [1, 1, 1]  # asking is no success
    pacing.observe(0, 1, 1 << 20, at_end=False)
    assert 1 <= asked(pacing)[0] <= 2  # a read is 1 MB after so many failures
    for _ in range(200):
        records = asked(pacing)[0]
        pacing.observe(0, records, records << 20, at_end=False)
    assert asked(pacing)[0] == 65  # 64 MB, and the one that is cut


def test_behind_a_failure_a_lane_grows_from_what_came():
    pacing, counts = used_to_small_entries(), []
    for _ in range(6):
        asked(pacing)
        pacing.failed([0])
    for _ in range(4):
        counts.append(asked(pacing)[0])
        pacing.observe(0, counts[-1], 500 * counts[-1], at_end=False)
    assert counts == [1, 4, 16, 64]


def test_many_lanes_that_may_give_one_record_each_are_not_read_all_at_once():
    """An entry is asked for, and three come beside it."""
    pacing, lanes = Pacing(), range(1_000)
    for _ in range(3):
        for lane in pacing.deal(lanes, 16_000, BYTES):
            pacing.observe(lane, 1, 250_000, at_end=False)
    for _ in range(10):
        pacing.failed(pacing.deal(lanes, 16_000, BYTES))
    shares = pacing.deal(lanes, 16_000, BYTES)
    assert len(shares) * 250_000 * 4 <= 16 * 250_000 * 4 + (1 << 20)


def test_a_failure_concerns_the_lanes_that_were_asked_and_the_bytes_of_all():
    pacing = Pacing()
    for _ in range(10):
        read(pacing, [0, 1], 16_000, {0, 1})
    pacing.deal([0], 16_000, BYTES)
    pacing.failed([0])
    shares = pacing.deal([0, 1], 16_000, BYTES)
    assert shares[0][0] < 1_001 < shares[1][0]
    assert sum(size_bytes for _, size_bytes in shares.values()) == BYTES // 4
    for _ in range(40):
        shares = read(pacing, [0, 1], 16_000, {0, 1})
    assert shares == {0: (8_000, BYTES // 2), 1: (8_000, BYTES // 2)}


def test_a_lane_that_nothing_is_known_of_is_asked_for_little_and_one_that_was_looked_at_for_what_fits():
    pacing = Pacing()
    assert asked(pacing, [100]) == {100: 8}
    assert asked(pacing, [101, 102]) == {101: 4, 102: 4}
    pacing.guess(1, 700)
    pacing.guess(2, 4 << 20)
    assert asked(pacing, range(16)) == dict.fromkeys(range(16), 1) | {1: 64, 2: 2}
    pacing.observe(1, 64, 64 * 500, at_end=False)
    pacing.guess(1, 4 << 20)  # what was read says more
    assert asked(pacing, range(16))[1] == 256


def test_far_more_than_was_asked_for_is_too_much_but_not_where_one_record_is_asked():
    pacing = used_to_small_entries()
    shares = pacing.deal([0], 16_000, BYTES)
    assert 4 * BYTES <= pacing.excess_bytes(shares) <= 5 * BYTES
    assert pacing.excess_bytes(pacing.deal([0], 1, 1)) == 0
    # what is known to be large is no excess: its share is one entry, three come beside it
    pacing.observe(0, 1, 1 << 30, at_end=False)
    pacing.guess(1, 1 << 30)
    shares = pacing.deal([0, 1], 16_000, BYTES)
    shares[1] = (2, shares[1][1])
    assert pacing.excess_bytes(shares) > 9 << 30


def test_on_a_slow_line_a_read_is_as_large_as_comes_in_two_seconds():
    pacing, took_s = used_to_small_entries(), []
    for _ in range(100):
        records = asked(pacing)[0]
        pacing.observe(0, records, 500 * records, at_end=False)
        took_s.append(500 * records / 1.25e6)  # 10 Mbit/s
        pacing.lasted(500 * records, took_s[-1])
    assert took_s[0] > 6
    assert 1.9 < max(took_s[1:]) < 2.2
    for _ in range(100):
        pacing.lasted(500 * asked(pacing)[0], 0.1)
    assert asked(pacing)[0] == 16_000
