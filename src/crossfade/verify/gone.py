"""What of a source lane is gone, and whether a target row may be a copy of it. Pure; called by `diff` alone.

Hides the two ways in which a source loses records: everything up to a position (retention, a trim, a key that was made
anew), or single ones between others (XDEL, compaction). Invariant: the bounds of the target were taken before those of
the source, so where nothing is left of a source, whatever the target has had its original there.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..model.position import position_order
from .extent import Order

NOWHERE: Order = (-1, -1)
EVERYTHING: Order = (1 << 80, 0)


class Gone:
    """What one lane of the source no longer has, and how many copies of it were seen."""

    def __init__(self) -> None:
        #: copies whose originals are gone
        self.rows = 0
        #: behind the first and before the second position; and whether the source's own counters tell so
        self._gaps: list[tuple[Order, Order, bool]] = []
        self._holes_until = NOWHERE
        #: order and ordinal of the last copy that stands where it should
        self._last = NOWHERE
        self._ordinal = -1

    def lose(self, after: str, first: str, *, is_told: bool, holes_until: str) -> None:
        """Nothing of what was between these positions is there ("" = the beginning, and the end): the source says so
        (`is_told`), or nothing says so but marked copies. Up to `holes_until` single records may be gone."""
        before = position_order(first) if first else EVERYTHING
        self._gaps.append((position_order(after), before, is_told))
        self.widen(holes_until)

    def widen(self, holes_until: str) -> None:
        """Single records may be gone up to here, as far as the source tells by now."""
        self._holes_until = max(self._holes_until, position_order(holes_until))

    def place(self, order: Order, ordinal: int) -> None:
        """A copy of what the source has stands in its place."""
        self._last, self._ordinal = max(self._last, order), max(self._ordinal, ordinal)

    def save(self) -> list[int]:
        """What `restore` takes."""
        return [*self._last, self._ordinal]

    def restore(self, saved: Sequence[int]) -> None:
        """Go on behind the last copy of an earlier comparison."""
        self.place((saved[0], saved[1]), saved[2])

    def is_in_gap(self, order: Order, *, is_marked: bool) -> bool:
        """The record at this position lay in a part that is gone as a whole."""
        return any(after < order < before and (is_told or is_marked) for after, before, is_told in self._gaps)

    def count_of_gap(self, order: Order, ordinal: int) -> bool:
        """Count a copy of what lay in a gap, if it rises by its position or by the number in its mark (both rise, but
        positions begin anew in a source that was made anew). False = it came before, or is no copy."""
        if order <= self._last and ordinal <= self._ordinal:
            return False
        self._count(order, ordinal)
        return True

    def is_in_hole(self, order: Order, ordinal: int) -> bool:
        """A row that names a record which the source does not have may be the copy of one that was removed: it stands
        where that copy should."""
        return self._last < order <= self._holes_until and (ordinal < 0 or ordinal > self._ordinal)

    def count_of_hole(self, order: Order, ordinal: int) -> None:
        """Count a copy of what was removed from between others."""
        self._count(order, ordinal)

    def _count(self, order: Order, ordinal: int) -> None:
        self.rows += 1
        self.place(order, ordinal)
