"""One lane of an audit: what was read of either side, where its ends are, and what is expected at all.

Hides where the copy began, the rows that are not to be compared (before the copy began, trimmed, quarantined, newer
than the audit) and what is kept so that an audit can go on later. Made by `audit`, which does the reading.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from ..brokers.protocol import Bounds, Log
from ..errors import LaneError, SourceReset, invariant
from ..model.position import Place, order_of, position_text
from ..model.record import Batch, Lane, Row, Shape
from .columns import Columns
from .diff import NO_MARK, Difference, Kind, LaneDiff
from .digests import RangeDigests
from .extent import Extent
from .first_rows import FirstRows, Question
from .one_way import leaves_out, read_again
from .origins import Copy, codec_for
from .reading import Once, Reading, Translates, cut, has_lost_behind, lost_before
from .report import AuditReport, LaneReport, Range

_BEFORE_ALL = (-2, 0)
_AFTER_ALL = (1 << 80, 0)


class LaneAudit:
    """Feeds one `LaneDiff` and keeps one `LaneReport`."""

    def __init__(
        self,
        lane: Lane,
        source: Log,
        target: Log,
        mapping: Translates,
        report: AuditReport,
        source_bounds: Bounds,
        target_bounds: Bounds,
        *,
        route_id: str,
        window_rows: int,
        is_earliest: bool,
        quarantined: frozenset[str],
        extent: Extent | None = None,
    ) -> None:
        self.lane = lane
        self._extent = extent
        self._first_rows = FirstRows(source_bounds, is_source_numeric=source.shape is Shape.RECORD)
        #: nothing has said so far whether they are copies: they are read again once something has
        self._is_put_off = False
        #: the last marked row of the target belongs to the extent: so does an unmarked one behind it
        self._is_inside = extent is None or extent.first < (0, 0)
        whole = source_bounds
        if extent is not None:
            source_bounds = extent.clip(source_bounds, source.shape)
        self.source = Reading(source_bounds, extent, source.shape)
        self.target = Reading(target_bounds)
        self.is_done = False
        self._source_shape, self._target_shape = source.shape, target.shape
        self._target = target
        self._mapping = mapping
        self._report = report
        self._mine = LaneReport(lane, source.lane_name(lane), target.lane_name(lane))
        report.lanes[lane] = self._mine
        self._codec = codec_for(
            target_shape=target.shape,
            route_id=route_id,
            lane=lane,
            is_source_numeric=source.shape is Shape.RECORD,
        )
        self._digests = RangeDigests(self._mine.ranges)
        self._diff = LaneDiff(
            self._codec,
            window_rows=window_rows,
            on_expected=self._expected_done,
            on_difference=self._differs,
            extent=extent,
            expects=lambda copy: copy.origin is not None and position_text(copy.origin) not in quarantined,
        )
        self._matched_before = 0
        self._counts_before: dict[Kind, int] = {}
        #: what the comparison counted stands in the report
        self._is_counted = False
        self._quarantined = quarantined
        self._rejected, self._left_out = Once(), Once()
        self._in_doubt: _InDoubt | None = None
        #: the state that stays as it is, so that no later audit passes over what this one cannot answer for
        self._stale: Mapping[str, Any] | None = None
        #: source rows before this are not on the target and need not be; None = not known before the target is read
        self._floor: tuple[int, int] | None = None
        #: the last source row that was left out because the copy begins behind it
        self._passed_over: Any = None
        #: source rows left out because nothing of the copy is on the target: a later audit reads them again
        self._before_nothing = 0
        self._is_whole = is_earliest and not self.target.is_trimmed
        #: the target lost its beginning since its bounds were taken
        self._has_lost = False
        if self._is_whole and target.shape is Shape.RECORD:
            self._floor = _BEFORE_ALL  # what is a copy on Kafka needs no finding out
        before, is_told = lost_before(whole, source.shape)
        #: what a route of a pair passes over is missing from its source on purpose
        self._seeks_holes = not leaves_out(source)
        holes_until = whole.holes_until if self._seeks_holes else ""
        self._diff.source_lost("", before, is_told=is_told, holes_until=holes_until)
        #: the state that this audit began from
        self._begun: Mapping[str, Any] = self.save()

    # ------------------------------------------------------------------------------------------------ what is wanted

    @property
    def wants_source(self) -> bool:
        return not self.source.is_ended and self._floor is not None and self._diff.wants_expected

    @property
    def wants_target(self) -> bool:
        return not self.target.is_ended and (self._floor is None or self._diff.wants_actual)

    @property
    def may_read_source(self) -> bool:
        return not self.source.is_ended and self._floor is not None

    @property
    def may_read_target(self) -> bool:
        return not self.target.is_ended

    @property
    def source_rows_waiting(self) -> int:
        return len(self._diff.expected)

    @property
    def target_rows_waiting(self) -> int:
        return len(self._diff.actual)

    @property
    def has_failed(self) -> bool:
        return self._mine.error is not None

    @property
    def matched(self) -> int:
        return self._mine.matched

    @property
    def differences(self) -> int:
        return self._mine.differences

    # ------------------------------------------------------------------------------------------------ what was read

    def take_source(self, outcome: Batch | LaneError) -> None:
        """More of the source, or why there is none."""
        if isinstance(outcome, LaneError):
            self.fail(outcome, self._source_shape)
            return
        other = self.source.not_what_it_was(outcome, self._mine.source)
        if other is not None:
            self.fail(other, self._source_shape)
            return
        rows = self.source.new_rows(outcome)
        self.source.take(outcome)
        mapped = self._mapping.translate(cut(outcome, rows), self._target_shape)
        self._mine.quarantined += self._rejected.count([reject.position for reject in mapped.rejects])
        positions, expected = self._without_quarantined(mapped.positions, mapped.rows)
        if self._seeks_holes:
            self._diff.source_has_holes(self.source.holes_until(outcome))
        self._diff.expect(*self._from_floor(positions, expected))

    def take_target(self, outcome: Batch | LaneError) -> None:
        """More of the target, or why there is none."""
        if isinstance(outcome, LaneError):
            self.fail(outcome, self._target_shape)
            return
        other = self.target.not_what_it_was(outcome, self._mine.target)
        if other is not None:
            self.fail(other, self._target_shape)
            return
        rows = self.target.new_rows(outcome)
        self.target.take(outcome)
        batch = cut(outcome, rows)
        if self._floor is None:
            self._find_floor(batch)
        if self._in_doubt is None:
            self._go_on(batch)

    def _go_on(self, batch: Batch) -> None:
        """Compare what was read; where it cannot be, because rows before it were put off, from those on."""
        if self._floor is None and self._first_rows.first is not None and self._codec.ids_may_mark:
            self.target.join()
            self._is_put_off = True
        elif self._is_put_off:
            self.target.go_back()
            self._is_put_off = False
        else:
            self._see(batch)

    def _see(self, batch: Batch) -> None:
        is_before_copy = self._floor is None and bool(batch.rows)
        positions = batch.positions
        if self._extent is not None:
            batch = self._of_extent(batch, self._extent)
        if not is_before_copy:
            self._diff.see(batch.positions, batch.rows)
            return
        # There may be any number of these: none of them waits for the first copy.
        for position, row in zip(batch.positions, batch.rows, strict=True):
            self._differs(Difference(Kind.EXTRA, None, position, NO_MARK, row))
        self.target.done_until = order_of(positions[-1])

    @property
    def in_doubt(self) -> Place | None:
        """Behind which place of the source a record says whether the first entries of the target are copies; None = no
        need."""
        return self._in_doubt.questions[0].place if self._in_doubt else None

    def resolve(self, original: Batch | None) -> None:
        """Tell the record behind the place that is `in_doubt`, None = there is none."""
        doubt, self._in_doubt = self._in_doubt, None
        invariant(doubt is not None, "only what is in doubt is resolved")
        assert doubt is not None
        question, *others = doubt.questions
        is_copy = False
        if original is not None:
            mapped = self._mapping.translate(original, self._target_shape)
            is_copy = question.is_answered_by(mapped)
            # An entry of another Redis may have been altered; an offset says little without the time of its record.
            if not is_copy and self._codec.is_source_numeric and question.is_about(mapped):
                self._first_rows.is_other = True
        if is_copy:
            first = question.copy if self._codec.is_source_numeric else self._first_rows.first
            assert first is not None
            self._begin_at(first)
        elif others:
            self._in_doubt = doubt._replace(questions=others)
            return
        else:
            self._decide_floor(doubt.marked)
        self._go_on(doubt.batch)

    def source_trimmed(self, bounds: Bounds) -> None:
        """The source was trimmed while it was read: go on behind the gap, whose copies cannot be verified."""
        waiting = self._diff.expected
        last = position_text(waiting.last) if waiting else self.source.place.position
        before, _ = lost_before(bounds, self._source_shape)
        self._diff.source_lost(last, before, holes_until=bounds.holes_until if self._seeks_holes else "")
        self.source.go_on_behind_loss(bounds, last, self._source_shape)

    def target_trimmed(self, bounds: Bounds) -> None:
        """Rows of the target were removed while it was read: go on with what is still there. What it lost at its
        beginning is not missing."""
        _, after = self._diff.resume_after()
        done = self.target.forget(after)
        self._diff.actual.drop(len(self._diff.actual))  # they are read again, if they are there
        self._is_put_off = False
        self.target.begin_again(bounds, done)
        read_again(self._target, self.lane, self._diff.copied()[-1])
        if has_lost_behind(done, bounds, self._target_shape):
            self._go_on_behind_loss()

    def _go_on_behind_loss(self) -> None:
        """The first copy that the target still has says where to go on."""
        self._is_whole = False
        self._has_lost = True
        self._diff.target_lost()

    def fail(self, error: LaneError, side: Shape) -> None:
        """The lane cannot be compared to its end, for what happened to the side of this shape.

        Only of a topic it is told some time later that it is another one, and what was read by then may be of either.
        """
        if isinstance(error, SourceReset) and side is Shape.RECORD:
            self._report.forget(self.lane, self._counts_before)
            self._digests.forget()
            self._diff.stale_epochs = 0
            self._stale = self._begun
        self._mine.error = error
        self.is_done = True

    def advance(self) -> bool:
        """Compare what is there; True where that changed anything."""
        if self.is_done:
            return False
        diff = self._diff
        before = len(diff.expected), len(diff.actual)
        if self.target.is_ended and self._floor is None:
            self._floor = _BEFORE_ALL if self._is_whole else _AFTER_ALL  # nothing of the copy is there
        diff.expected.is_ended, diff.actual.is_ended = self.source.is_ended, self.target.is_ended
        diff.advance()
        if self.source.has_many_places or self.target.has_many_places:
            for side, after in zip((self.source, self.target), self._compared(), strict=True):
                side.forget(after)
        self._mine.matched = self._matched_before + diff.matched
        self.is_done = self.source.is_ended and self.target.is_ended and not diff.expected and not diff.actual
        return self.is_done or before != (len(diff.expected), len(diff.actual))

    def finish(self, *, is_settled: bool) -> None:
        """Name what never came. The lane has been read to its ends, or failed."""
        mine, diff = self._mine, self._diff
        is_settled = is_settled or diff.has_seen_beyond
        if mine.error is None:
            unnamed = diff.finish(is_settled=is_settled)
            if is_settled:
                mine.counts[Kind.MISSING] += unnamed
            else:
                mine.pending = unnamed
            mine.is_done = True
        elif self._stale is None:
            diff.name_missing()
        mine.before_target += diff.before + diff.before_end
        mine.source_gone += diff.source_gone
        mine.stale_epochs += diff.stale_epochs
        self._is_counted = True
        self._digests.close(mine.differences - diff.again.total())  # these are told again, with a later range

    # ------------------------------------------------------------------------------------------------ going on later

    def save(self) -> dict[str, Any]:
        """What a later audit needs to go on from here."""
        if self._stale is not None:
            return dict(self._stale)
        mine, diff = self._mine, self._diff
        after_source, _ = diff.resume_after()
        done = _BEFORE_ALL if after_source is None else order_of(after_source)
        compared_source, compared_target = self._compared()
        return {
            "source": self.source.save(compared_source),
            "target": self.target.save(compared_target),
            "matched": mine.matched,
            "counts": {kind.value: count - diff.again[kind] for kind, count in mine.counts.items()},
            "quarantined": mine.quarantined,
            "quarantined_until": [list(self._rejected.until), list(self._left_out.until)],
            # what lies before a copy that is not there yet comes again
            "before_target": mine.before_target
            - self._before_nothing
            + (-diff.before_end if self._is_counted else diff.before),
            "source_gone": mine.source_gone + (0 if self._is_counted else diff.source_gone),
            "stale_epochs": mine.stale_epochs + (0 if self._is_counted else diff.stale_epochs),
            "missing": [position_text(place) for place in diff.missing if order_of(place) <= done],
            "taken": None if after_source is None else position_text(after_source),
            "early": [[position_text(origin), position_text(place)] for origin, place in diff.came_early()],
            "frontier": None if diff.frontier is None else position_text(diff.frontier),
            "epoch": diff.epoch,
            "copied": diff.copied(),
            "awaits_copy": diff.awaits_copy,
            "ids_may_mark": self._codec.ids_may_mark,
            "floor": None if self._floor in (None, _AFTER_ALL) else list(self._floor or ()),
            "ranges": msgspec.to_builtins(mine.ranges),
        }

    def _compared(self) -> tuple[Any, Any]:
        """Up to where both sides are dealt with."""
        source, target = self._diff.resume_after()
        return self._passed_over if source is None else source, target

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `save` gave."""
        mine = self._mine
        self._begun = saved
        self.source.restore(saved["source"])
        is_there = self.target.restore(saved["target"])
        self._matched_before = mine.matched = saved["matched"]
        self._counts_before = {Kind(kind): count for kind, count in saved["counts"].items()}
        mine.counts.update(self._counts_before)
        mine.quarantined, mine.before_target = saved["quarantined"], saved["before_target"]
        rejected, left_out = saved.get("quarantined_until", ((), ()))
        self._rejected, self._left_out = Once(rejected), Once(left_out)
        mine.source_gone, mine.stale_epochs = saved["source_gone"], saved["stale_epochs"]
        mine.ranges.extend(msgspec.convert(saved["ranges"], list[Range]))
        self._digests = RangeDigests(mine.ranges, mine.differences)
        self._codec.ids_may_mark = saved.get("ids_may_mark", True)
        if saved["floor"] is not None:
            self._floor = (saved["floor"][0], saved["floor"][1])
        self._diff.restore(
            frontier=None if saved["frontier"] is None else self._native(saved["frontier"]),
            missing=[self._native(text) for text in saved["missing"]],
            early=[(self._native(origin), place.encode()) for origin, place in saved["early"]],
            taken=None if saved.get("taken") is None else self._native(saved["taken"]),
            epoch=saved.get("epoch", -1),
            copied=saved.get("copied", ()),
            awaits_copy=saved.get("awaits_copy", False),
        )
        if not is_there and has_lost_behind(self.target.done_until, self.target.bounds, self._target_shape):
            self._go_on_behind_loss()
        for side, name, of_side in (
            (self.source, mine.source, saved["source"]),
            (self.target, mine.target, saved["target"]),
        ):
            lost = side.lost_since(of_side)
            if lost is not None:
                what = "was deleted and made anew" if lost is SourceReset else "was cut off at its end, or made anew,"
                self._stale = saved
                mine.error = lost(
                    self.lane,
                    f"{name} {what} since the audit that this one goes on from: audit the lane from its beginning, "
                    "without that state",
                )
                self.is_done = True

    def _native(self, text: str) -> Any:
        return int(text) if self._codec.is_source_numeric else text.encode()

    # ------------------------------------------------------------------------------------------------ what is expected

    def _of_extent(self, batch: Batch, extent: Extent) -> Batch:
        """The rows whose originals belong to the extent, and what stands unmarked among them.

        A batch that begins and ends inside is left as it is: what of it does not belong, the comparison leaves out.
        """
        if not batch.rows:
            return batch
        ends = self._codec.normal([batch.positions[0], batch.positions[-1]], [batch.rows[0], batch.rows[-1]])
        if all(copy.origin is not None and order_of(copy.origin) in extent for copy in ends):
            self._is_inside = True
            return batch
        kept = []
        for at, copy in enumerate(self._codec.normal(batch.positions, batch.rows)):
            if copy.origin is not None:
                order = order_of(copy.origin)
                is_stranger = (
                    self._is_inside and order < extent.first and not extent.leaves_out(order, copy.ordinal >= 0)
                )
                self._is_inside = is_stranger or order in extent
                self._diff.has_seen_beyond |= copy.ordinal >= 0 and order > extent.last
            if self._is_inside:
                kept.append(at)
        positions, rows = [batch.positions[at] for at in kept], [batch.rows[at] for at in kept]
        return Batch(batch.lane, batch.shape, positions, rows, batch.place, batch.at_end)

    def _find_floor(self, batch: Batch) -> None:
        """The first record of the copy that is on the target says where the comparison begins.

        An entry id looks like a mark, whoever chose it. One that is none stands behind all that are: from then on the
        lane has other writers, and the relay marks all that it writes. So the first entries decide, see `FirstRows`.
        """
        copies = [copy for copy in self._codec.normal(batch.positions, batch.rows) if copy.origin is not None]
        at = next((at for at, copy in enumerate(copies) if copy.ordinal >= 0), len(copies))
        marked = copies[at] if at < len(copies) else None
        questions = self._first_rows.take(copies[:at])
        if questions:
            self._in_doubt = _InDoubt(questions, marked, batch)
        else:
            self._decide_floor(marked)

    def _decide_floor(self, marked: Copy | None) -> None:
        """Nobody can tell, or nobody needs to: the first mark decides, or that there is none up to the end."""
        first = self._first_rows.first
        if first is not None and self._codec.ids_may_mark:
            is_sure = self._first_rows.are_strangers or self._first_rows.are_chosen
            if marked is None and not self.target.is_ended and not is_sure:
                if self._is_whole and self._first_rows.may_be_long:
                    self._begin_at(first)  # of a copy of everything it is known, and worth no second reading
                return
            self._codec.ids_may_mark = self._first_rows.are_copies(marked)
            if self._codec.ids_may_mark:
                self._begin_at(first)
                return
        if self._is_whole and first is not None:
            self._begin_at(first)
        elif marked is not None:
            self._begin_at(marked)
            self._check_beginning(marked, is_first=first is None and self._codec.ids_may_mark)

    def _begin_at(self, first: Copy) -> None:
        assert first.origin is not None
        self._floor = _BEFORE_ALL if self._is_whole else order_of(first.origin)

    def _check_beginning(self, copy: Copy, *, is_first: bool) -> None:
        """Nothing was trimmed on the target: then its first record is the first of the copy, and has ordinal 1."""
        is_trimmed = self.target.is_trimmed or self._has_lost
        if is_first and self._extent is None and not self._is_whole and not is_trimmed and copy.ordinal > 1:
            absent = copy.ordinal - 1
            self._differs(Difference(Kind.MISSING, None, None, f"the first {absent} records of the copy are gone"))
            self._mine.counts[Kind.MISSING] += absent - 1

    def _from_floor(self, positions: Sequence[Any], rows: Sequence[Row]) -> tuple[Sequence[Any], Sequence[Row]]:
        floor = self._floor
        if floor is None or not positions or order_of(positions[0]) >= floor:
            return positions, rows
        first = bisect_right(positions, (floor[0], floor[1] - 1), key=order_of)
        self._mine.before_target += first
        if floor == _AFTER_ALL:
            self._before_nothing += first
        elif first:
            self._passed_over = positions[first - 1]
        return positions[first:], rows[first:]

    def _without_quarantined(self, positions: list[Any], rows: Sequence[Row]) -> tuple[list[Any], Sequence[Row]]:
        if not self._quarantined:
            return positions, rows
        kept = [at for at, position in enumerate(positions) if position_text(position) not in self._quarantined]
        if len(kept) < len(positions):
            left_out = [position for position in positions if position_text(position) in self._quarantined]
            self._mine.quarantined += self._left_out.count(left_out)
        return [positions[at] for at in kept], [rows[at] for at in kept]

    def _expected_done(self, positions: Sequence[Any], columns: Columns) -> None:
        self._digests.add(positions, columns, self._mine.differences)

    def _differs(self, difference: Difference) -> None:
        self._report.add(self.lane, difference)


class _InDoubt(NamedTuple):
    """What waits for a look at the source: whether the first entries, with ids like those of copies, are any."""

    questions: list[Question]
    marked: Copy | None
    batch: Batch
