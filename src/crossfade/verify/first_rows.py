"""The first entries of a Redis target, as long as only their ids say that they may be copies.

Hides what tells such an entry from one of another writer, which stands behind all copies that carry no mark: ids of
copies rise with their originals, none is ahead of the source's end, and what the source still has can be looked up. The
first of them and those to be looked up are all that is kept, so that any number may come before something decides.
Pure; called by `lane`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

from ..brokers.protocol import Bounds
from ..model.position import Place, order_of, position_order, position_text
from ..model.record import Mapped
from .origins import Copy

#: originals of a lane that are looked for, one by one, to know where its copy begins
_QUESTIONS_MAX = 8
#: rows at times of their own whose offsets rise on: ids that Redis chose begin anew with each millisecond
_RISES_MIN = 8


class Question(NamedTuple):
    """A look at one record of the source."""

    #: the entry that is a copy if the record is its original; between two Redis: if it stands behind the original of
    #: the entry before, which alone shows that a place in the source is one
    copy: Copy
    place: Place

    def is_about(self, original: Mapped) -> bool:
        """The record is the one that was asked for."""
        return bool(original.rows) and original.positions[0] == self.copy.origin

    def is_answered_by(self, original: Mapped) -> bool:
        """That record is the original. An id that is a mark has offset and time of it."""
        if isinstance(self.copy.origin, int):
            return self.is_about(original) and bool(original.rows[0][-1] == self.copy.row[-1])
        return self.is_about(original) and bool(original.rows[0] == self.copy.row)


class FirstRows:
    """What is known of the entries before the first mark."""

    def __init__(self, source: Bounds, *, is_source_numeric: bool) -> None:
        #: the first entry whose id may be a mark
        self.first: Copy | None = None
        #: the source was asked, and has another record there
        self.is_other = False
        #: rows from the first on whose origins rise; then one of another writer, where the run has ended
        self._run_rows = 0
        self._has_run_ended = False
        self._rises = 0
        self._last = (-1, -1)
        self._end = position_order(source.last) if source.last else (1 << 80, 0)
        self._begin = position_order(source.first) if source.first else self._end
        self._is_source_numeric = is_source_numeric
        self._questions_left = _QUESTIONS_MAX

    def take(self, copies: Sequence[Copy]) -> list[Question]:
        """The next entries without mark, in target order: what to ask about them."""
        run = list(self._rising(copies))
        if self.first is None and copies:
            self.first = copies[0]
        self._run_rows += len(run)
        if self._is_source_numeric:
            self._rises += sum(before.row[-1] != copy.row[-1] for before, copy in pairwise(run))
        questions = list(islice(self._questions(run), self._questions_left))
        self._questions_left -= len(questions)
        return questions

    @property
    def are_strangers(self) -> bool:
        """They are no copies, whatever comes behind them."""
        return self.is_other or (self._has_run_ended and not self._run_rows)

    @property
    def are_chosen(self) -> bool:
        """Nobody but a relay numbers entries like this."""
        return self._rises >= _RISES_MIN

    @property
    def may_be_long(self) -> bool:
        """Between two Redis: they may be a long stretch of copies whose originals are gone."""
        return not self._is_source_numeric and self.first is not None and _order(self.first) < self._begin

    def are_copies(self, marked: Copy | None) -> bool:
        """Whether they count as copies, now that the first mark is known, or that there is none."""
        if self.first is None or self.are_strangers:
            return False
        # One alone may be by chance what it looks like, most of all with the end that Redis gives to ids: -0. But all
        # copies of a path are counted, with a mark or without.
        if marked is None:
            return self._run_rows > 1 or not (self._has_run_ended or self.first.origin == 0)
        is_alone = self._run_rows == 1 and self._has_run_ended and marked.ordinal != 2
        return not is_alone and marked.ordinal != 1 and _order(self.first) < _order(marked)

    def _rising(self, copies: Sequence[Copy]) -> Iterator[Copy]:
        for copy in copies:
            if self._has_run_ended:
                return
            order = _order(copy)
            self._has_run_ended = not self._last < order <= self._end
            if not self._has_run_ended:
                self._last = order
                yield copy

    def _questions(self, run: Sequence[Copy]) -> Iterator[Question]:
        if self._is_source_numeric:
            for copy in run:
                if _order(copy) >= self._begin:
                    yield Question(copy, Place("", int(copy.origin or 0)))
            return
        for before, copy in pairwise(run):
            if before.origin is not None and order_of(before.origin) >= self._begin:
                yield Question(copy, Place(position_text(before.origin), -1))


def _order(copy: Copy) -> tuple[int, int]:
    assert copy.origin is not None  # only entries whose mark or id names one come here
    return order_of(copy.origin)
