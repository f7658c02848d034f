"""Compares what a lane should hold with what it holds, record by record, in bounded memory. Pure.

Both sides come in slices, in lane order, as fast as they are read. Equal slices are told at C speed and forgotten.
Where they differ, a window of both sides is solved exactly (`window`). Missing rows and rows that came early are
remembered (bounded), so that a record that moved further than a window is still `reordered`, not missing plus extra.

Made by `lane` and `by_key`, which know where the sides end; nothing here knows brokers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from ..errors import invariant
from ..model.position import order_of, position_text
from ..model.record import Row
from .columns import Columns, columns_of
from .describe import describe
from .extent import Extent
from .gone import EVERYTHING, NOWHERE, Gone
from .origins import Codec, Copy, SourcePosition
from .waiting import Waiting
from .window import Window, exchanged, keeping_order

#: differing rows remembered per lane so that they can be told apart later; beyond it they are only counted
REMEMBERED_MAX = 20_000
#: rows compared in one go: fewer where differences are dense, so that they cost in proportion
SLICE_ROWS_MAX = 1_024
SLICE_ROWS_MIN = 256
NO_MARK = "carries no mark of this route"
_CAME_BEFORE = "its id names a record that came before"


class Kind(Enum):
    """What can be wrong with a record, and what Jepsen calls it."""

    MISSING = "missing"  # in the source, not on the target
    EXTRA = "extra"  # on the target, not in the source
    DUPLICATE = "duplicate"  # on the target more often than in the source
    REORDERED = "reordered"  # behind a record that it should precede
    ALTERED = "altered"  # bytes, key, headers or time are others

    @property
    def jepsen(self) -> str:
        return _JEPSEN[self]


_JEPSEN = {
    Kind.MISSING: "lost-write",
    Kind.EXTRA: "G1a",
    Kind.DUPLICATE: "duplicate",
    Kind.REORDERED: "nonmonotonic",
    Kind.ALTERED: "altered",
}


class Claim(NamedTuple):
    """What is known of the record that a row without partner names by its mark, or by its id."""

    origin: SourcePosition | None  # None = it has no mark, and its id was not taken for one
    is_marked: bool
    #: if the source holds that record, then another row is the copy of it
    is_taken: bool
    #: order of the last certain copy before the row: what it names lies behind, if it is a copy
    after: tuple[int, int]


class Difference(NamedTuple):
    """One record that is not as it should be."""

    kind: Kind
    source: SourcePosition | None  # None = there is none
    target: Any | None  # None = it is not there
    detail: str
    #: of what may be `extra` or `duplicate`: the row, so that the auditor can look for its like in the source
    row: Row | None = None
    claim: Claim | None = None


class LaneDiff:
    """The comparison of one lane. Feed `expected` and `actual`, call `advance`, at last `finish`."""

    def __init__(
        self,
        codec: Codec,
        *,
        window_rows: int = 2_000,
        on_expected: Callable[[Sequence[SourcePosition], Columns], None] | None = None,
        on_difference: Callable[[Difference], None],
        remembered_max: int = REMEMBERED_MAX,
        begins_late: bool = False,
        extent: Extent | None = None,
        expects: Callable[[Copy], bool] = lambda _: True,
    ) -> None:
        """`on_expected` is told every expected slice once it is done with, in source order; `on_difference` every
        difference as soon as it is certain. `begins_late`: what is expected before the first row of the target was
        never copied, or is trimmed there, and is only counted. `extent`: copies of what lies outside are left out.
        `expects`: the record that a row names belongs here, if the source holds it."""
        self.expected = Waiting()
        self.actual = Waiting()
        #: records of the source that are on the target exactly once, in order and unchanged
        self.matched = 0
        #: source position of the last record found on the target, None = none yet
        self.frontier: SourcePosition | None = None
        #: target rows of an epoch older than one before them: a fenced relay has written
        self.stale_epochs = 0
        #: expected rows behind the last row of the target, too many to remember
        self.tail = 0
        #: expected rows before the first of the target, where it `begins_late`
        self.before = 0
        #: expected rows before the first of the target where nothing of the target is behind them: they come again
        self.before_end = 0
        #: what was reported of rows that come again, where a later comparison goes on from here
        self.again: Counter[Kind] = Counter()
        #: a marked copy of what lies behind the extent: the extent was copied to its end
        self.has_seen_beyond = False
        #: the next copy tells from where on records are expected: what is before it was never copied, or is trimmed
        self._awaits_copy = begins_late
        self._extent = extent
        self._expects = expects
        self._gone = Gone()
        #: order of the last copy that is certainly one: it is equal to its original
        self._sure = NOWHERE
        #: last row of a slice that was equal: asked for its ordinal only where that matters
        self._equal_last: tuple[SourcePosition, Any, Row] | None = None
        #: first expected row; and whether any was too much to be remembered
        self._begun: tuple[int, int] | None = None
        self._has_forgotten = False
        #: last rows taken of either side, None = none yet; those behind the target's end are not taken but waiting
        self.taken: SourcePosition | None = None
        self.taken_target: Any | None = None
        self._codec = codec
        self._window = window_rows
        self._on_expected = on_expected
        self._report = on_difference
        self._remembered_max = remembered_max
        #: expected and not seen so far: source position -> row (None = known from an earlier run only by position)
        self.missing: dict[SourcePosition, Row | None] = {}
        #: seen, but not expected so far: it came before its turn
        self._early: dict[SourcePosition, tuple[Any, Copy]] = {}
        #: the same, expected behind the last row of the target: their originals come again
        self._early_of_tail: dict[SourcePosition, tuple[Any, Copy]] = {}
        self._epoch = -1
        self._slice = SLICE_ROWS_MAX

    # ------------------------------------------------------------------------------------------------ feeding

    def expect(self, positions: Sequence[SourcePosition], rows: Sequence[Row]) -> None:
        """More of what should be there, in source order."""
        self.expected.add(positions, rows)

    def see(self, positions: Sequence[Any], rows: Sequence[Row]) -> None:
        """More of what is there, in target order."""
        self.actual.add(positions, rows)

    def source_lost(self, after: str, first: str, *, is_told: bool = True, holes_until: str = "") -> None:
        """The source no longer has what was between these positions (see `Gone.lose`): copies of it are not
        verifiable."""
        self._gone.lose(after, first, is_told=is_told, holes_until=holes_until)

    def source_has_holes(self, until: str) -> None:
        """Tell before `expect` that single records may be gone from what comes, up to here (`Reading.holes_until`)."""
        self._gone.widen(until)

    def target_lost(self) -> None:
        """The target no longer has what stood behind the last copy that was found: what is expected before the next
        copy is only counted, and so is what was read and not yet compared."""
        self.actual.drop(len(self.actual))
        last = NOWHERE if self.frontier is None else order_of(self.frontier)
        for position in [position for position in self.missing if order_of(position) > last]:
            del self.missing[position]
            self.before += 1
        self._awaits_copy = True

    @property
    def awaits_copy(self) -> bool:
        """No copy was found since the beginning of the target was lost."""
        return self._awaits_copy

    @property
    def source_gone(self) -> int:
        """Target rows whose originals the source no longer has."""
        return self._gone.rows

    @property
    def wants_expected(self) -> bool:
        """True where nothing more can be decided before more of the source is read."""
        return not self.expected.is_ended and len(self.expected) < max(self._window, len(self.actual))

    @property
    def wants_actual(self) -> bool:
        """True where nothing more can be decided before more of the target is read."""
        return not self.actual.is_ended and len(self.actual) < max(self._window, len(self.expected))

    def restore(
        self,
        *,
        frontier: SourcePosition | None,
        missing: Sequence[SourcePosition],
        early: Sequence[tuple[SourcePosition, Any]],
        taken: SourcePosition | None = None,
        epoch: int = -1,
        copied: Sequence[int] = (),
        awaits_copy: bool = False,
    ) -> None:
        """Go on behind what an earlier comparison has decided; of rows in doubt only the places are known. States of
        older versions have no more than the first three."""
        self.frontier, self.taken = frontier, frontier if taken is None else taken
        self._epoch = epoch
        self._awaits_copy = awaits_copy
        if frontier is not None:
            self._gone.place(order_of(frontier), -1)
        if copied:
            self._gone.restore(copied)
        self.missing = dict.fromkeys(missing)
        self._early = {origin: (target, Copy(origin, None, -1, -1)) for origin, target in early}

    def came_early(self) -> list[tuple[SourcePosition, Any]]:
        """Origin and target position of rows that came before their turn."""
        return [(origin, target) for origin, (target, _) in (self._early | self._early_of_tail).items()]

    @property
    def epoch(self) -> int:
        """The highest epoch so far, -1 = none."""
        return self._epoch

    def copied(self) -> list[int]:
        """Where the last copy that stands where it should is; for `restore`."""
        self._place_equal()
        return self._gone.save()

    def resume_after(self) -> tuple[SourcePosition | None, Any | None]:
        """Source and target position behind which a later comparison goes on; rows that are only pending come again."""
        if self._awaits_copy:
            return self.taken, self.taken_target
        if self.frontier is None:
            return None, self.taken_target
        is_tail = self.taken is not None and order_of(self.frontier) < order_of(self.taken)
        return (self.frontier if is_tail and self.actual.is_ended else self.taken), self.taken_target

    # ------------------------------------------------------------------------------------------------ comparing

    def advance(self) -> None:
        """Decide all that can be decided."""
        while True:
            self._equal_slices()
            if self.actual.is_ended and not self.actual:
                self._take_tail()
            if not self._can_solve():
                return
            self._solve()

    def finish(self, *, is_settled: bool) -> int:
        """Both sides have ended: name what never came. Gives the count of expected records behind the last record of
        the target that were not named: all of them, or, where `is_settled` says that nothing is still on its way,
        those that were too many to remember."""
        invariant(self.expected.is_ended and self.actual.is_ended, "a lane is finished only when both sides have ended")
        self.advance()
        for origin, (position, copy) in self._early.items():
            self._too_much(Kind.EXTRA, origin, position, "the source holds no such record", copy)
        self._early.clear()
        self.name_missing(is_settled=is_settled)
        self.again[Kind.MISSING] += self.tail if is_settled else 0
        pending = self.tail + len(self.missing)
        self.missing.clear()
        return pending

    def name_missing(self, *, is_settled: bool = False) -> None:
        """Name what is missing before the last copy that was found, or, where it `is_settled`, all that is. Alone where
        the lane cannot be read on."""
        last = EVERYTHING if is_settled else NOWHERE if self.frontier is None else order_of(self.frontier)
        after, _ = self.resume_after()
        done = NOWHERE if after is None else order_of(after)
        for position in [position for position in self.missing if order_of(position) < last]:
            del self.missing[position]
            self._report(Difference(Kind.MISSING, position, None, "not on the target"))
            self.again[Kind.MISSING] += order_of(position) > done

    def _take_tail(self) -> None:
        """The target has ended: what is expected now is its tail, however long it is. Some of it is remembered by
        position, so that it can be named if it is settled."""
        positions, rows = self.expected.first(len(self.expected))
        if self._awaits_copy and not self._early:
            self.before_end += len(positions)  # nothing of the copy is there that says where it began
            self.expected.drop(len(positions))
            return
        for position, row in zip(positions, rows, strict=True):
            if position in self._early:
                self._early_of_tail[position] = self._early[position]
                self.again[self._came_early(position, row)] += 1
            elif len(self.missing) < self._remembered_max:
                self.missing[position] = None  # no copy of it can come any more that would be compared with it
            else:
                self.tail += 1
        self.expected.drop(len(positions))

    def _equal_slices(self) -> None:
        """Let go of equal heads, at C speed."""
        while True:
            count = min(self.expected.at_hand, self.actual.at_hand, self._slice)
            if not count:
                return
            positions, rows = self.expected.first(count)
            targets, actual = self.actual.first(count)
            columns = columns_of(rows)
            epoch = self._codec.equal(positions, columns, targets, actual)
            if epoch is None:
                head = self._equal_head(positions, rows, targets, actual)
                if head:
                    self._matched(positions[:head], columns_of(rows[:head]), targets[:head], actual[head - 1])
                if head < count:
                    self._slice = max(SLICE_ROWS_MIN, self._slice // 8)
                    return
            else:
                self._see_epoch(epoch, count)
                self._matched(positions, columns, targets, actual[-1])
            self._slice = min(SLICE_ROWS_MAX, self._slice * 2)

    def _equal_head(
        self,
        positions: Sequence[SourcePosition],
        rows: Sequence[Row],
        targets: Sequence[Any],
        actual: Sequence[Row],
    ) -> int:
        """How many rows at the head are equal, decided row by row."""
        count = 0
        for position, row, copy in zip(positions, rows, self._codec.normal(targets, actual), strict=True):
            if copy.origin != position or copy.row != row:
                break
            self._see_epoch(copy.epoch, 1)
            count += 1
        return count

    def _matched(
        self, positions: Sequence[SourcePosition], columns: Columns, targets: Sequence[Any], last: Row
    ) -> None:
        count = len(positions)
        self._equal_last = (positions[-1], targets[-1], last)
        self._begun = self._begun or order_of(positions[0])
        self.matched += count
        if self._early:
            for position in self._early.keys() & set(positions):
                self._came_twice(position)
        self.frontier = self.taken = positions[-1]
        self._awaits_copy = False
        self.taken_target = targets[-1]
        if self._on_expected:
            self._on_expected(positions, columns)
        self.expected.drop(count)
        self.actual.drop(count)

    def _can_solve(self) -> bool:
        """A window can be solved when both sides fill it, or have ended."""
        if not self.actual and not (self.actual.is_ended and self.expected):
            return False
        if not self.expected and not (self.expected.is_ended and self.actual):
            return False
        return all(side.is_ended or len(side) >= self._window for side in (self.expected, self.actual))

    def _solve(self) -> None:
        """Decide at least the first half of a window in which the heads differ."""
        positions, rows = self.expected.first(self._window)
        targets, actual = self.actual.first(self._window)
        copies = self._codec.normal(targets, actual)
        if self._awaits_copy:
            copies = _without_chance(copies, dict(zip(positions, rows, strict=True)))
        window = Window(positions, rows, targets, copies)
        at_end = len(positions) == len(self.expected) and len(targets) == len(self.actual)
        take_expected, take_actual = window.cut(is_last=at_end and self.expected.is_ended and self.actual.is_ended)
        if not take_expected and not take_actual:
            # No record of this window is on both sides in order: the target's part is judged by itself, or a gap in
            # the target is longer than the window.
            take_actual = self._leading_strangers(copies, positions)
            take_expected = 0 if take_actual else max(1, len(positions) // 2)
            if not positions:
                take_actual = len(copies)
        self._judge(window, take_expected, take_actual)

    def _leading_strangers(self, copies: Sequence[Copy], positions: Sequence[SourcePosition]) -> int:
        """How many copies at the head have their place before the end of the expected window, or none at all."""
        if not positions:
            return len(copies)
        end = order_of(positions[-1])
        count = 0
        for copy in copies:
            if copy.origin is not None and order_of(copy.origin) > end:
                break
            count += 1
        return count

    def _judge(self, window: Window, take_expected: int, take_actual: int) -> None:
        """Decide the first rows of both sides of a window."""
        positions, rows = window.positions, window.rows
        self._place_equal()
        late = 0
        if self._awaits_copy:
            seen = [index for index in range(take_expected) if 0 <= window.seen_at[index] < take_actual]
            late = min(seen, default=take_expected)
            self.before += late
        if late < take_expected:
            self._begun = self._begun or order_of(positions[late])
        is_all = self.expected.is_ended and len(positions) == len(self.expected)
        reach = EVERYTHING if is_all else order_of(positions[-1]) if positions else NOWHERE
        for index in range(late, take_expected):
            if not 0 <= window.seen_at[index] < take_actual:
                self._not_here(positions[index], rows[index])
            elif positions[index] in self._early:
                self._came_twice(positions[index])
        if take_expected:
            self.taken = positions[take_expected - 1]
        fresh: list[tuple[int, int]] = []
        for index in range(take_actual):
            copy, target = window.copies[index], window.targets[index]
            self._see_epoch(copy.epoch, 1)
            partner = window.partner[index]
            if 0 <= partner < take_expected:
                fresh.append((partner, index))
                if index in window.in_order:
                    self._place(positions[partner], copy, is_sure=copy.row == rows[partner])
            else:
                self._stray(copy, target, window, reach)
        self._compare(window, fresh)
        if self._on_expected and take_expected:
            self._on_expected(positions[:take_expected], columns_of(rows[:take_expected]))
        if take_actual:
            self.taken_target = window.targets[take_actual - 1]
        self.expected.drop(take_expected)
        self.actual.drop(take_actual)

    def _compare(self, window: Window, pairs: list[tuple[int, int]]) -> None:
        """Pairs of one source position: in place or moved, equal or altered."""
        altered = [(left, right) for left, right in pairs if window.rows[left] != window.copies[right].row]
        holds = exchanged(window, altered)
        in_place = {right for right, _ in keeping_order(holds)}
        is_altered = {right for _, right in altered}
        for left, right in pairs:
            position, target = window.positions[left], window.targets[right]
            self._advance_frontier(position)
            if right in holds and right not in in_place:
                other = position_text(window.positions[holds[right]])
                self._report(Difference(Kind.REORDERED, position, target, f"holds the record of {other}"))
            elif right in is_altered and right not in holds:
                self._altered(position, target, window.rows[left], window.copies[right].row)
            elif right not in window.in_order:
                self._report(Difference(Kind.REORDERED, position, target, "came behind a later record, or too early"))
            else:
                self.matched += 1

    def _altered(self, position: SourcePosition, target: Any, row: Row, found: Row) -> None:
        self._report(Difference(Kind.ALTERED, position, target, describe(row, found)))

    def _not_here(self, position: SourcePosition, row: Row) -> None:
        """An expected row without partner so far: it came early, it comes later, or never."""
        if position in self._early:
            self._came_early(position, row)
        elif len(self.missing) < self._remembered_max:
            self.missing[position] = row
        else:
            self._has_forgotten = True
            self._report(Difference(Kind.MISSING, position, None, "not on the target"))

    def _came_early(self, position: SourcePosition, row: Row) -> Kind:
        target, copy = self._early.pop(position)
        return self._moved(position, target, row, copy, "came too early")

    def _stray(self, copy: Copy, target: Any, window: Window, reach: tuple[int, int]) -> None:
        """An actual row without partner in its window; `reach`: all that is expected up to here was taken, or is in the
        window."""
        origin = copy.origin
        if origin is None:
            self._too_much(Kind.EXTRA, None, target, NO_MARK, copy)
            return
        order, is_marked = order_of(origin), copy.ordinal >= 0
        is_absent = order <= reach and not any(origin in known for known in (window.index, self.missing, self._early))
        if self._extent is not None and self._extent.leaves_out(order, is_marked):
            self.has_seen_beyond |= is_marked and order > self._extent.last
            return
        if self._gone.is_in_gap(order, is_marked=is_marked):
            if not self._gone.count_of_gap(order, copy.ordinal):
                self._too_much(Kind.EXTRA, origin, target, "came before" if is_marked else _CAME_BEFORE, copy)
        elif is_absent and self._gone.is_in_hole(order, copy.ordinal) and self._expects(copy):
            self._gone.count_of_hole(order, copy.ordinal)
        elif origin in self.missing:
            row = self.missing.pop(origin)
            self._moved(origin, target, row, copy, "came too late")
        elif origin in self._early:
            self._too_much(Kind.DUPLICATE, origin, target, "came before", copy)
        elif self.taken is not None and order <= order_of(self.taken):
            kind, detail = (Kind.DUPLICATE, "came before") if is_marked else (Kind.EXTRA, _CAME_BEFORE)
            self._too_much(kind, origin, target, detail, copy)
        elif len(self._early) < self._remembered_max:
            self._early[origin] = (target, copy)
        else:
            self._too_much(Kind.EXTRA, origin, target, "far ahead of its turn", copy)

    def _too_much(self, kind: Kind, origin: SourcePosition | None, target: Any, detail: str, copy: Copy) -> None:
        """Name a row that may be too much, with what is known of the record that it names."""
        is_taken = origin is not None and self._is_taken(origin) and self._expects(copy)
        claim = Claim(origin, copy.ordinal >= 0, is_taken, self._sure)
        told = None if detail is _CAME_BEFORE else origin  # such an id is no mark
        self._report(Difference(kind, told, target, detail, copy.row, claim))

    def _is_taken(self, origin: SourcePosition) -> bool:
        """If the source holds this record, it was compared, and has another row as its copy."""
        if self._begun is None or self.taken is None or self._has_forgotten or origin in self._early:
            return False
        return self._begun <= order_of(origin) <= order_of(self.taken)

    def _place_equal(self) -> None:
        """Take note of where the last equal slice ended."""
        if self._equal_last is not None:
            position, target, row = self._equal_last
            self._equal_last = None
            (copy,) = self._codec.normal([target], [row])
            self._place(position, copy, is_sure=True)

    def _place(self, position: SourcePosition, copy: Copy, *, is_sure: bool) -> None:
        order = order_of(position)
        self._gone.place(order, copy.ordinal)
        if is_sure:
            self._sure = max(self._sure, order)

    def _moved(self, position: SourcePosition, target: Any, row: Row | None, copy: Copy, how: str) -> Kind:
        self._advance_frontier(position)
        if row is not None and copy.row is not None and row != copy.row:
            kind, how = Kind.ALTERED, f"{how}; {describe(row, copy.row)}"
        else:
            kind = Kind.REORDERED
        self._report(Difference(kind, position, target, how))
        return kind

    def _came_twice(self, position: SourcePosition) -> None:
        """A copy that came early has come again, in its place."""
        target, copy = self._early.pop(position)
        claim = Claim(position, copy.ordinal >= 0, not self._has_forgotten, NOWHERE)
        self._report(Difference(Kind.DUPLICATE, position, target, "comes again in its place", copy.row, claim))

    def _see_epoch(self, epoch: int, rows: int) -> None:
        if 0 <= epoch < self._epoch:
            self.stale_epochs += rows
        self._epoch = max(self._epoch, epoch)

    def _advance_frontier(self, position: SourcePosition) -> None:
        if self.frontier is None or order_of(position) > order_of(self.frontier):
            self.frontier = position
            self._awaits_copy = False


def _without_chance(copies: list[Copy], expected: Mapping[SourcePosition, Row]) -> list[Copy]:
    """The copies, but where the copy begins is not told by an entry id that only looks like one's: that has its time
    from the record too."""
    return [
        copy._replace(origin=None)
        if copy.ordinal < 0 and copy.origin in expected and expected[copy.origin][-1] != copy.row[-1]
        else copy
        for copy in copies
    ]
