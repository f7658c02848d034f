"""Rows of one side that are not compared yet. Pure; called by `diff`."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from ..model.record import EntryColumns, RecordColumns, Row, joined

#: a piece with fewer rows takes those that come next: slices of a few rows would cost more than joining them
_PIECE_ROWS_MIN = 256


class Waiting:
    """Positions and rows, in the pieces in which they came.

    Every pass over rows touches each of them in memory, so whole pieces are given as they are, and joined only where
    a stretch spans them.
    """

    def __init__(self) -> None:
        #: nothing more will come
        self.is_ended = False
        self._pieces: deque[tuple[list[Any], Sequence[Row]]] = deque()
        #: rows of the first piece that are dealt with
        self._head = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def last(self) -> Any:
        """Position of the last row; there must be one."""
        return self._pieces[-1][0][-1]

    @property
    def at_hand(self) -> int:
        """How many rows `first` gives without joining pieces."""
        return len(self._pieces[0][1]) - self._head if self._pieces else 0

    def add(self, positions: Sequence[Any], rows: Sequence[Row]) -> None:
        """More rows, behind all others."""
        if not len(rows):
            return
        self._count += len(rows)
        positions = positions if isinstance(positions, list) else list(positions)
        rows = rows if isinstance(rows, list | RecordColumns | EntryColumns) else list(rows)
        if self._pieces and len(self._pieces[-1][1]) < _PIECE_ROWS_MIN:
            before, rows_before = self._pieces.pop()
            positions, rows = [*before, *positions], joined(rows_before, rows)
        self._pieces.append((positions, rows))

    def first(self, count: int) -> tuple[list[Any], Sequence[Row]]:
        """The first rows, `count` of them where there are as many."""
        count = min(count, self._count)
        if not count:
            return [], []
        while self.at_hand < count:
            positions, rows = self._pieces.popleft()
            more_positions, more_rows = self._pieces.popleft()
            left = slice(self._head, None)
            self._pieces.appendleft(([*positions[left], *more_positions], joined(rows[left], more_rows)))
            self._head = 0
        positions, rows = self._pieces[0]
        if not self._head and count == len(rows):
            return positions, rows
        stretch = slice(self._head, self._head + count)
        return positions[stretch], rows[stretch]

    def drop(self, count: int) -> None:
        """Let go of the first rows."""
        self._count -= count
        self._head += count
        while self._pieces and self._head >= len(self._pieces[0][1]):
            self._head -= len(self._pieces.popleft()[1])
