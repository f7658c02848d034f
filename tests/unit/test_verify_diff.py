"""The comparison is sound: every planted damage is found and has its name, and an exact copy is silent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossfade.verify.diff import Difference, Kind, LaneDiff
from crossfade.verify.origins import Copy

Row = tuple[bytes | None, bytes]
#: a target row: the source position it claims, and its content
Marked = tuple[int | None, Row]


class PlainCodec:
    """Target rows are (origin, row)."""

    def equal(
        self, positions: Sequence[Any], expected: Sequence[Any], targets: Sequence[Any], actual: Sequence[Any]
    ) -> int | None:
        rows = zip(*expected, strict=True)
        return 0 if [*zip(positions, rows, strict=True)] == [*actual] else None

    def normal(self, targets: Sequence[Any], actual: Sequence[Any]) -> list[Copy]:
        return [Copy(origin, row, 1, 0) for origin, row in actual]


class Outcome:
    def __init__(self, diff: LaneDiff, differences: list[Difference], pending: int) -> None:
        self.diff = diff
        self.differences = differences
        self.pending = pending
        self.counts = Counter(difference.kind for difference in differences)


def source(records: int) -> list[tuple[int, Row]]:
    """Positions with gaps, as Kafka's offsets have them."""
    return [(at * 3 + 1, (b"k%d" % (at % 5), b"value %d" % at)) for at in range(records)]


def compare(
    expected: list[tuple[int, Row]],
    actual: list[Marked],
    *,
    window: int = 10,
    chunks: Sequence[int] = (7, 3, 11),
    settled: bool = True,
    remembered: int = 1000,
) -> Outcome:
    found: list[Difference] = []
    taken: list[int] = []
    diff = LaneDiff(
        PlainCodec(),
        window_rows=window,
        on_expected=lambda positions, _: taken.extend(positions),
        on_difference=found.append,
        remembered_max=remembered,
    )
    left = right = turn = 0
    while left < len(expected) or right < len(actual):
        assert diff.wants_expected or diff.wants_actual, "it waits for nothing, yet it is not done"
        size = chunks[turn % len(chunks)]
        turn += 1
        if diff.wants_expected:
            part = expected[left : left + size]
            left += len(part)
            diff.expect([position for position, _ in part], [row for _, row in part])
        if diff.wants_actual:
            rows = actual[right : right + size]
            diff.see(list(range(right, right + len(rows))), rows)
            right += len(rows)
        diff.expected.is_ended = left == len(expected)
        diff.actual.is_ended = right == len(actual)
        diff.advance()
        assert len(diff.expected) <= window + 2 * max(chunks)
        assert len(diff.actual) <= window + 2 * max(chunks)
    diff.expected.is_ended = diff.actual.is_ended = True
    pending = diff.finish(is_settled=settled)
    assert taken == sorted(set(taken)), "source slices are told once and in order"
    return Outcome(diff, found, pending)


def drop(rows: list[Marked], at: int) -> None:
    del rows[at]


def double(rows: list[Marked], at: int) -> None:
    rows.insert(at + 1, rows[at])


def double_later(rows: list[Marked], at: int) -> None:
    rows.append(rows[at])


def swap(rows: list[Marked], at: int) -> None:
    rows[at], rows[at + 1] = rows[at + 1], rows[at]


def swap_under_their_marks(rows: list[Marked], at: int) -> None:
    (first, left), (second, right) = rows[at], rows[at + 1]
    rows[at], rows[at + 1] = (first, right), (second, left)


def move_back(rows: list[Marked], at: int) -> None:
    rows.append(rows.pop(at))


def move_forward(rows: list[Marked], at: int) -> None:
    rows.insert(0, rows.pop(at))


def alter(rows: list[Marked], at: int) -> None:
    origin, (key, value) = rows[at]
    rows[at] = (origin, (key, value[:-1] + bytes([value[-1] ^ 1])))


def invent(rows: list[Marked], at: int) -> None:
    rows.insert(at, (None, (b"new", b"record")))


def invent_ahead(rows: list[Marked], at: int) -> None:
    rows.insert(at, (10**9, (b"new", b"record")))


DAMAGES: list[tuple[Callable[[list[Marked], int], None], Kind]] = [
    (drop, Kind.MISSING),
    (double, Kind.DUPLICATE),
    (double_later, Kind.DUPLICATE),
    (swap, Kind.REORDERED),
    (swap_under_their_marks, Kind.REORDERED),
    (move_back, Kind.REORDERED),
    (move_forward, Kind.REORDERED),
    (alter, Kind.ALTERED),
    (invent, Kind.EXTRA),
    (invent_ahead, Kind.EXTRA),
]


@given(
    records=st.integers(0, 200),
    window=st.integers(1, 30),
    chunks=st.lists(st.integers(1, 40), min_size=1, max_size=4),
)
def test_exact_copy_is_silent(records: int, window: int, chunks: list[int]) -> None:
    rows = source(records)
    outcome = compare(rows, list(rows), window=window, chunks=chunks)
    assert outcome.differences == []
    assert outcome.diff.matched == records
    assert outcome.pending == 0


@pytest.mark.parametrize(("damage", "kind"), DAMAGES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_one_damage_is_named(damage: Callable[[list[Marked], int], None], kind: Kind, data: st.DataObject) -> None:
    records = data.draw(st.integers(3, 150))
    at = data.draw(st.integers(1, records - 2))
    # An exchange under the marks is seen where both halves are in the part of the window that is decided at once.
    window = data.draw(st.integers(6 if damage is swap_under_their_marks else 2, 30))
    chunks = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    rows = source(records)
    actual: list[Marked] = list(rows)
    damage(actual, at)
    if actual == rows:  # moved to where it was
        return
    outcome = compare(rows, actual, window=window, chunks=chunks)
    far = damage in (move_forward,) and at > window // 2
    if not far:  # what came early by more than a window may be told as those before it being late: never unnoticed
        assert outcome.counts == {kind: 1}, outcome.differences
    assert outcome.counts[kind] >= 1
    assert set(outcome.counts) == {kind}


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_every_record_is_accounted_for(data: st.DataObject) -> None:
    """Whatever is done to the target, each expected and each actual record is in exactly one count."""
    records = data.draw(st.integers(0, 60))
    rows = source(records)
    actual: list[Marked] = list(rows)
    for _ in range(data.draw(st.integers(0, 8))):
        if len(actual) > 2:
            damage, _ = data.draw(st.sampled_from(DAMAGES))
            damage(actual, data.draw(st.integers(0, len(actual) - 2)))
    window = data.draw(st.integers(2, 30))
    outcome = compare(rows, actual, window=window, chunks=data.draw(st.lists(st.integers(1, 20), min_size=1)))
    counts = outcome.counts
    there = outcome.diff.matched + counts[Kind.REORDERED] + counts[Kind.ALTERED]
    assert there + counts[Kind.MISSING] == records
    assert there + counts[Kind.DUPLICATE] + counts[Kind.EXTRA] == len(actual)
    assert bool(outcome.differences) == (actual != rows)


@given(records=st.integers(1, 100), cut=st.integers(0, 100), remembered=st.sampled_from([0, 5, 1000]))
def test_what_the_target_does_not_have_yet_is_pending(records: int, cut: int, remembered: int) -> None:
    rows = source(records)
    outcome = compare(rows, rows[:cut], settled=False, remembered=remembered)
    assert outcome.differences == []
    assert outcome.pending == max(0, records - cut)
    settled = compare(rows, rows[:cut], settled=True)
    assert settled.counts[Kind.MISSING] == max(0, records - cut)


def test_long_gap_is_missing_and_what_follows_is_matched() -> None:
    rows = source(500)
    outcome = compare(rows, rows[:100] + rows[350:], window=10)
    assert outcome.counts == {Kind.MISSING: 250}
    assert outcome.diff.matched == 250


@pytest.mark.parametrize("at", range(15))
def test_a_stranger_that_claims_a_place_does_not_take_it_from_the_record_there(at: int) -> None:
    """Whether it stands before the record or behind it, the record is matched and the stranger is the stray."""
    rows = source(40)
    stranger = (rows[at][0], (b"k", b"never sent"))
    for actual in ([*rows[:at], stranger, *rows[at:]], [*rows[: at + 1], stranger, *rows[at + 1 :]]):
        outcome = compare(rows, actual, window=10)
        assert outcome.diff.matched == 40
        assert outcome.counts == {Kind.DUPLICATE: 1}  # the auditor's second look names it by its content
        assert outcome.differences[0].row == stranger[1]


def test_long_repeat_is_duplicate() -> None:
    rows = source(500)
    outcome = compare(rows, rows[:300] + rows[100:], window=10)
    assert outcome.counts == {Kind.DUPLICATE: 200}
    assert outcome.diff.matched == 500


def test_zombie_writes_show_as_an_older_epoch() -> None:
    class EpochCodec(PlainCodec):
        def equal(self, *_: Any) -> None:
            return None

        def normal(self, targets: Sequence[Any], actual: Sequence[Any]) -> list[Copy]:
            return [
                Copy(origin, row, 1, 1 if target == 5 else 2)
                for target, (origin, row) in zip(targets, actual, strict=True)
            ]

    rows = source(20)
    diff = LaneDiff(EpochCodec(), window_rows=5, on_difference=lambda _: None)
    diff.expect([position for position, _ in rows], [row for _, row in rows])
    diff.see(range(20), rows)
    diff.expected.is_ended = diff.actual.is_ended = True
    diff.finish(is_settled=True)
    assert diff.stale_epochs == 1


def test_what_is_pending_is_held_by_position_alone() -> None:
    rows = source(100)
    diff = LaneDiff(PlainCodec(), window_rows=5, on_difference=lambda _: None)
    diff.expect([position for position, _ in rows], [row for _, row in rows])
    diff.see(range(20), rows[:20])
    diff.expected.is_ended = diff.actual.is_ended = True
    diff.advance()
    assert diff.missing == dict.fromkeys(position for position, _ in rows[20:])
