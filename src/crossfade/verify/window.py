"""Solves one stretch of both sides in which something differs. Pure; called by `diff` alone.

Rows meet by source position. The longest run that keeps source order stays where it is; what else has a partner was
moved, and what has none is left to `diff`, which knows what lies outside of the window.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from ..model.record import Row
from .origins import Copy, SourcePosition

#: altered rows of one window among which exchanged contents are sought (the search is quadratic)
EXCHANGED_MAX = 64


class Window:
    """Two stretches that differ somewhere, matched by source position."""

    def __init__(
        self, positions: list[SourcePosition], rows: Sequence[Row], targets: list[Any], copies: list[Copy]
    ) -> None:
        self.positions, self.rows, self.targets, self.copies = positions, rows, targets, copies
        #: where each expected row stands
        self.index = {position: at for at, position in enumerate(positions)}
        #: per copy: the expected row that it is of; -1 = none here, or another copy is it
        self.partner = [-1] * len(copies)
        #: per expected row: the copy of it
        self.seen_at = [-1] * len(positions)
        for at, copy in enumerate(copies):
            expected = self.index.get(copy.origin, -1)
            if expected < 0:
                continue
            before = self.seen_at[expected]
            if before < 0 or (copies[before].row != rows[expected] and copy.row == rows[expected]):
                # of several copies with one origin the first that is equal is the record; the others are strangers
                self.partner[at] = expected
                self.seen_at[expected] = at
                if before >= 0:
                    self.partner[before] = -1
        #: copies that stay where they are: a longest run in source order
        self.in_order = set(longest_rise(self.partner))

    def cut(self, *, is_last: bool) -> tuple[int, int]:
        """How much of either side can be decided now: at the end all of the target and what it has of the source, else
        up to a record that is in order, so far from the end of the window that what moved a little is seen whole."""
        if is_last:
            return max(self.partner, default=-1) + 1, len(self.copies)
        best = (0, 0)
        for at in sorted(self.in_order):
            if best != (0, 0) and (at >= len(self.copies) // 2 or self.partner[at] >= len(self.positions) // 2):
                break
            best = (self.partner[at] + 1, at + 1)
        return best


def exchanged(window: Window, altered: list[tuple[int, int]]) -> dict[int, int]:
    """Of altered pairs that hold each other's records (contents that changed places under their marks): which copy
    holds the record of which expected row."""
    holds: dict[int, int] = {}
    if not 2 <= len(altered) <= EXCHANGED_MAX:
        return holds
    # Without the time, the last part of a row: on Redis it may belong to the entry id, and so stay where it is.
    contents = {left: window.rows[left][:-1] for left, _ in altered}
    for left, right in altered:
        found = window.copies[right].row[:-1]
        for other, content in contents.items():
            if content == found and contents[left] != found and other not in holds.values():
                holds[right] = other
                break
    # A whole exchange only: each of these rows is held by another of them. Anything else is altered.
    lefts = {left for left, right in altered if right in holds}
    return holds if lefts == set(holds.values()) else {}


def keeping_order(holds: dict[int, int]) -> list[tuple[int, int]]:
    pairs = sorted(holds.items())
    return [pairs[at] for at in longest_rise([held for _, held in pairs])]


def longest_rise(values: Sequence[int]) -> list[int]:
    """Indexes of one longest rising subsequence of the values that are not negative."""
    tails: list[int] = []
    tail_at: list[int] = []
    before = [-1] * len(values)
    for index, value in enumerate(values):
        if value < 0:
            continue
        depth = bisect_left(tails, value)
        before[index] = tail_at[depth - 1] if depth else -1
        tails[depth : depth + 1] = [value]
        tail_at[depth : depth + 1] = [index]
    chain: list[int] = []
    last = tail_at[-1] if tail_at else -1
    while last >= 0:
        chain.append(last)
        last = before[last]
    return chain[::-1]
