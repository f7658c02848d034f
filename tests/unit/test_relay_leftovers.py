"""Copies without keys beside them, as `relay start` looks for them: what is one, what is none, what cannot be told."""

import asyncio
from dataclasses import replace

import pytest

from crossfade.brokers.memory import MemoryBoard, MemoryBroker, MemoryLog
from crossfade.brokers.protocol import From, Start
from crossfade.errors import MarkerLost, SourceDamaged, SourceTrimmed, Unreachable
from crossfade.model.record import Batch, Shape
from crossfade.model.route import LaneMap, Route
from crossfade.relay import beginning, leftovers
from crossfade.relay.beginning import start_lanes
from crossfade.relay.documents import RouteBoard

ENTRY, RECORD = Shape.ENTRY, Shape.RECORD
ROUTE = Route("r1", "forward", 1, 1, LaneMap.ONE_TO_ONE, "murmur2", "digest")
LATEST = Start(From.LATEST)
T = 1_600_000_000_000


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(leftovers, "_WAIT_S", 0.001)
    monkeypatch.setattr(leftovers, "_PAUSE_S", 0.0)
    monkeypatch.setattr(beginning, "_START_TRIES", 1)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(leftovers, "_ANSWER_S", 0.05)


class Pair:
    """A source and a target; `answers` says what comes of a read before the log itself is asked (None = nothing)."""

    def __init__(self, shape=ENTRY, lanes=1, target_lanes=None):
        self.shape = shape
        self.lanes, self.target_lanes = lanes, target_lanes or lanes
        self.brokers = MemoryBroker(), MemoryBroker()
        self.source = Log(self.brokers[0], "source", lanes, shape)
        self.target = Log(self.brokers[1], "target", self.target_lanes, ENTRY)
        for log in (self.source, self.target):
            assert log._stream

    def write(self, first, last, lane=0, what=b"ours"):
        """At the source, one millisecond after the other."""
        for number in range(first, last):
            value = b"%b %d" % (what, number)
            row = ([b"value", value], T + number) if self.shape is ENTRY else (None, value, None, T)
            self.brokers[0].write("source", lane, [row])

    def stands(self, first, last, at=0, what=b"ours", mark=None, age_ms=0):
        """At the target, as a copy whose id alone says where it comes from stands there; or others' with such ids."""
        for number in range(first, last):
            fields = [b"value", b"%b %d" % (what, number)]
            fields += [b"xf", f"1;r1/{mark}@{T + number}-0#{number + 1};1".encode()] if mark is not None else []
            self.brokers[1].write("target", at, [(fields, T - age_ms + (number if self.shape is ENTRY else 0))])

    def start(self, start=Start(), lanes=(0,), route=ROUTE, **how):
        board = RouteBoard(MemoryBoard(MemoryBroker()), route.id)
        route = replace(route, source_lanes=self.lanes, target_lanes=self.target_lanes)
        run = start_lanes(route, self.source, self.target, board, start, list(lanes), **how)
        return set(asyncio.run(run))


class Log(MemoryLog):
    rows_max = 1 << 30

    def __init__(self, *args):
        super().__init__(*args)
        self.answers = []

    async def read(self, after, records_max, bytes_max, wait_s):
        if self.answers:
            answer = self.answers.pop(0)
            answer = answer() if callable(answer) else answer
            await asyncio.sleep(0)
            return {} if answer is None else dict.fromkeys(after, answer)
        return await super().read(after, min(records_max, self.rows_max), bytes_max, wait_s)


# --- the beginning of the target --------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [63, 64, 300, 999])
def test_marks_are_found_behind_as_many_entries_as_promised(before):
    """A read gives as much as it likes, not all that it is asked for."""
    pair = Pair()
    pair.target.rows_max = 64
    pair.stands(0, before, what=b"theirs", age_ms=5000)
    pair.stands(0, 1, mark=0)
    pair.stands(before + 1, before + 80, what=b"theirs")
    with pytest.raises(MarkerLost, match=r"target:0 holds copies of source:0 .* carries the route's mark"):
        pair.start()


def test_a_target_that_is_trimmed_meanwhile_is_looked_at_anew():
    pair = Pair()
    pair.target.rows_max = 2
    pair.stands(0, 9, what=b"theirs", age_ms=5000)
    pair.stands(0, 1, mark=0)
    pair.target.answers = [lambda: pair.brokers[1].trim("target", 0, 3) or SourceTrimmed(0, "trimmed"), None]
    with pytest.raises(MarkerLost, match="carries the route's mark"):
        pair.start()


def test_a_target_that_never_stands_still_is_not_started():
    pair = Pair()
    pair.stands(0, 9, what=b"theirs")
    pair.target.answers = [SourceTrimmed(0, "trimmed")] * 100
    with pytest.raises(Unreachable, match="whether target:0 holds copies of route 'forward' cannot be told"):
        pair.start()
    pair.target.answers = []
    assert pair.start() == {0}


def test_a_target_that_was_emptied_holds_no_copies():
    pair = Pair()
    pair.write(0, 5)
    pair.stands(0, 5)
    pair.brokers[1].trim("target", 0, 0)
    assert pair.start() == {0}


# --- ids --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [3, 2000])
@pytest.mark.parametrize("shape", [ENTRY, RECORD])
@pytest.mark.parametrize("kept", [0, 1])
def test_an_entry_that_is_equal_in_id_and_content_is_a_copy(shape, length, kept):
    """At either end: also where the first originals are gone from the source, and the last copy is far."""
    pair = Pair(shape)
    pair.write(0, length)
    pair.stands(0, length - 1)
    if kept:
        pair.brokers[0].trim("source", 0, 2)
    with pytest.raises(
        MarkerLost, match=r"holds copies of .* \(\d+-\d+ is equal (both in id|in time and offset)"
    ) as refused:
        pair.start()
    assert "--lane 0 --from position:" in refused.value.hint
    last = pair.brokers[0].rows("source", 0)[-2][0]
    assert pair.start(Start(From.POSITION, last), by_hand=True) == {0}


@pytest.mark.parametrize("length", [3, 2000])
@pytest.mark.parametrize("where", [Start(), LATEST])
def test_an_id_alone_is_none(length, where):
    """Two applications may write in one millisecond."""
    pair = Pair()
    pair.write(0, length)
    pair.stands(0, length, what=b"theirs")
    assert pair.start(where) == {0}


def test_an_offset_alone_is_none():
    pair = Pair(RECORD)
    pair.write(0, 5)
    pair.stands(0, 5, what=b"theirs", age_ms=1)
    assert pair.start() == {0}


@pytest.mark.parametrize("length", [3, 2000])
def test_a_mark_of_an_older_hop_is_no_difference(length):
    pair = Pair()
    for number in range(length):
        fields = [b"value", b"ours %d" % number, b"xf", f"1;older/0@{number}#{number + 1};1".encode()]
        pair.brokers[0].write("source", 0, [(fields, T + number)])
    pair.stands(0, length - 1)
    pair.brokers[0].trim("source", 0, 2)
    with pytest.raises(MarkerLost, match="equal both in id and content"):
        pair.start()


@pytest.mark.parametrize("shape", [ENTRY, RECORD])
def test_a_start_that_goes_on_from_the_last_copy_is_none_anew(shape):
    """The route back behind a copy that is done: nothing is copied twice, and nothing is passed over."""
    pair = Pair(shape)
    pair.write(0, 5)
    pair.stands(0, 5)
    with pytest.raises(MarkerLost, match="equal"):
        pair.start()
    with pytest.raises(MarkerLost, match="equal"):
        pair.start(Start(From.POSITION, pair.brokers[0].rows("source", 0)[3][0]))
    assert pair.start(LATEST) == {0}
    marker = pair.brokers[1].marker("target", "r1", (0, 0))
    assert marker.place.position == pair.brokers[0].rows("source", 0)[-1][0]


@pytest.mark.parametrize("shape", [ENTRY, RECORD])
def test_a_start_behind_the_last_copy_would_pass_over_what_is_between(shape):
    pair = Pair(shape)
    pair.write(0, 6)
    pair.stands(0, 5)
    with pytest.raises(MarkerLost, match="equal"):
        pair.start(LATEST)


# --- by key -----------------------------------------------------------------------------------------------------------


BY_KEY = replace(ROUTE, lane_map=LaneMap.BY_KEY)


def test_by_key_a_new_lane_is_started_whatever_its_ids_are():
    """They are those of other lanes' copies, when all are written to at a time."""
    pair = Pair(lanes=3, target_lanes=2)
    for lane in range(3):
        pair.write(0, 20, lane)
    for at in range(2):
        pair.stands(0, 20, at, mark=at)
    assert pair.start(lanes=[2], route=BY_KEY) == {2}
    with pytest.raises(MarkerLost, match="target:1 holds copies of source:1"):
        pair.start(lanes=[1], route=BY_KEY)


def test_by_key_the_second_lane_of_a_source_that_had_one_is_started():
    """With one alone copies carry no mark; by their ids they are of the first lane."""
    pair = Pair(lanes=2, target_lanes=2)
    for lane in range(2):
        pair.write(0, 20, lane)
    for at in range(2):
        pair.stands(0, 20, at)
    assert pair.start(lanes=[1], route=BY_KEY) == {1}
    with pytest.raises(MarkerLost, match="target:0 holds copies of source:0"):
        pair.start(lanes=[0], route=BY_KEY)


@pytest.mark.parametrize("shape", [ENTRY, RECORD])
def test_what_carries_a_mark_is_no_copy_for_its_id(shape):
    pair = Pair(shape, lanes=2, target_lanes=2)
    for lane in range(2):
        pair.write(0, 20, lane)
    for at in range(2):
        pair.stands(0, 20, at, mark=1)
    assert pair.start(lanes=[0], route=BY_KEY) == {0}


# --- a source that does not tell --------------------------------------------------------------------------------------


def a_copy(shape):
    pair = Pair(shape)
    pair.write(0, 5)
    pair.stands(0, 4)
    return pair


@pytest.mark.parametrize("shape", [ENTRY, RECORD])
def test_no_answer_is_asked_for_again(shape):
    pair = a_copy(shape)
    pair.source.answers = [None, None, None]
    with pytest.raises(MarkerLost, match="equal"):
        pair.start()


@pytest.mark.parametrize("shape", [ENTRY, RECORD])
def test_a_source_without_an_answer_is_no_source_without_copies(shape, impatient):
    pair = a_copy(shape)
    pair.source.answers = [None] * 100_000
    with pytest.raises(
        Unreachable, match=r"whether the target holds a copy of source\S+ \S+ cannot be told"
    ) as refused:
        pair.start()
    assert "--lane 0 --from position:" in refused.value.hint
    last = pair.brokers[0].rows("source", 0)[3][0]
    assert pair.start(Start(From.POSITION, last), by_hand=True) == {0}  # asks nothing


def test_an_original_that_is_trimmed_meanwhile_is_not_copied_again():
    pair = a_copy(RECORD)

    def trim():
        pair.brokers[0].trim("source", 0, 1)
        return SourceTrimmed(0, "trimmed")

    pair.source.answers = [None, trim]
    assert pair.start() == {0}


def test_a_source_that_was_trimmed_behind_all_copies_is_started():
    pair = a_copy(RECORD)
    pair.brokers[0].trim("source", 0, 1)
    assert pair.start() == {0}


def test_a_record_that_cannot_be_read_leaves_a_way_out(impatient):
    pair = a_copy(RECORD)
    pair.source.answers = [SourceDamaged(0, "source[0] at 3 cannot be read: bad CRC")] * 100_000
    with pytest.raises(MarkerLost, match=r"cannot be told: source\[0\] at 3 cannot be read: bad CRC") as refused:
        pair.start()
    assert "--lane 0 --from position:" in refused.value.hint
    assert pair.start(Start(From.POSITION, "3"), by_hand=True) == {0}


def test_an_original_that_was_compacted_away_is_not_copied_again():
    pair = a_copy(RECORD)
    pair.brokers[1].trim("target", 0, 1)
    pair.brokers[0].delete("source", 0, "3")
    assert pair.start() == {0}


def test_an_original_that_was_the_last_one_is_read_for_until_the_end():
    pair = a_copy(RECORD)
    place = pair.brokers[0]._streams["source"].lanes[0]._place("3", 4)
    pair.source.answers = [Batch(0, RECORD, [], [], place), Batch(0, RECORD, [], [], place, at_end=True)]
    pair.brokers[1].trim("target", 0, 1)
    assert pair.start() == {0}
    assert not pair.source.answers
