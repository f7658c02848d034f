"""Where the reading of one side of a lane stands: which rows are new, and what is kept so that it can go on later.

Hides places of batches that are not compared yet, and what an extent or an earlier audit lets a reader pass over.
Beside it stands what all who read a side need. Called by `audit`, `lane`, `by_key` and `second_look`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from ..brokers.protocol import Bounds, From, Start
from ..errors import LaneError, SourceRegressed, SourceReset
from ..model.position import Place, order_of, position_order, position_text
from ..model.record import Batch, Lane, Mapped, Shape
from .ends import is_made_anew, made_anew
from .extent import Extent

#: places of batches that are remembered before those that are dealt with are let go
_PLACES_MAX = 64
_BEFORE_ALL = position_order("")


class Translates(Protocol):
    """What is needed of a mapping."""

    def translate(self, batch: Batch, target: Shape) -> Mapped: ...


class Reading:
    """Where the reading of one side stands."""

    def __init__(self, bounds: Bounds, begin: Extent | None = None, shape: Shape = Shape.ENTRY) -> None:
        """`begin`: what lies before this extent counts as dealt with; a Kafka topic is read from there."""
        self.bounds = bounds
        #: everything that was removed from the beginning counts as read. The incarnation is left out on purpose: a
        #: Redis source moves its birth group along with a place that names it, and an audit writes nothing.
        self.place = Place("", bounds.count - bounds.length)
        self.is_ended = bounds.length <= 0
        #: rows up to here were dealt with by an earlier audit
        self.done_until: tuple[int, int] | None = None
        if begin is not None:
            self.done_until = begin.before
            if shape is Shape.RECORD and begin.first[0] > self.place.count:
                self.place = Place("", min(begin.first[0], bounds.count))
        #: place before each batch that is not yet compared whole, and the last position in it
        self._batches: deque[tuple[Place, tuple[int, int]]] = deque()

    @property
    def is_trimmed(self) -> bool:
        return self.bounds.count > self.bounds.length

    def take(self, batch: Batch) -> None:
        if batch.positions:
            self._batches.append((self.place, order_of(batch.positions[-1])))
        self.place = msgspec.structs.replace(batch.place, incarnation="")
        self.is_ended = ends_with(batch, self.bounds)

    def not_what_it_was(self, batch: Batch, name: str) -> LaneError | None:
        """Why the lane has no verdict, where a batch to be taken is of another lane than the bounds are."""
        if is_made_anew(self.bounds.incarnation, batch.place.incarnation):
            return made_anew(batch.lane, name)
        # A Redis key that goes before anything of it was read is read like one that never held more.
        is_all = batch.shape is Shape.ENTRY and not self.place.position and batch.at_end
        if is_all and 0 <= batch.place.count < self.bounds.count:
            return SourceReset(
                batch.lane, f"{name} was deleted, and perhaps made anew, or its server went back, while it was read"
            )
        return None

    def new_rows(self, batch: Batch) -> slice:
        """Which rows of a batch were not dealt with before and are not newer than the bounds."""
        positions = batch.positions
        first, last = 0, len(positions)
        if self.done_until is not None and positions and order_of(positions[0]) <= self.done_until:
            first = bisect_right(positions, self.done_until, key=order_of)
        end = position_order(self.bounds.last)
        if positions and order_of(positions[-1]) > end:
            last = bisect_right(positions, end, key=order_of)
        return slice(first, last)

    def holes_until(self, batch: Batch) -> str:
        """Up to where single records may be gone, as this batch tells, of those that the bounds know of: a target row
        that names a newer one is no copy."""
        told = [batch.holes_until]
        if batch.deleted:  # what was trimmed is counted there too: it lay before the first entry that is left
            told.append(position_text(batch.positions[0]) if batch.positions else self.bounds.last)
        return min(max(told, key=position_order), self.bounds.last, key=position_order)

    def join(self) -> None:
        """Remember all batches that are not compared yet by the place before the first of them alone."""
        if len(self._batches) > 1:
            first, last = self._batches[0][0], self._batches[-1][1]
            self._batches.clear()
            self._batches.append((first, last))

    def go_back(self) -> None:
        """Read again what is not compared yet."""
        if self._batches:
            self.place = self._batches[0][0]
            self._batches.clear()
            self.is_ended = False

    def reanchor(self, bounds: Bounds) -> None:
        """Go on from what is still there, unless that is newer than the bounds."""
        self.place = Place("", bounds.count - bounds.length)
        self.is_ended = bounds.length <= 0 or position_order(bounds.first) > position_order(self.bounds.last)

    def go_on_behind_loss(self, bounds: Bounds, last: str, shape: Shape) -> None:
        """Something behind the place is gone: read what is still there and was not read; `last`: so far it was."""
        place = self.place
        read_until = max(position_order(last), position_order(place.position))
        self.done_until = max(read_until, self.done_until or _BEFORE_ALL)
        # What is left before the place shows that nothing was trimmed there: then a Redis source reads on without the
        # count, which accounts for no single entries that were deleted. (A live queue deletes all the time.)
        is_there = bool(bounds.first) and position_order(bounds.first) <= position_order(place.position)
        was_tried = place.count < 0 and not place.witness
        if shape is Shape.ENTRY and is_there and not was_tried:
            self.place = msgspec.structs.replace(place, count=-1, witness="")
        else:
            self.reanchor(bounds)

    def begin_again(self, bounds: Bounds, done: tuple[int, int] | None) -> None:
        """Read what is still there anew, but for what was dealt with."""
        self._batches.clear()
        self.done_until = done
        self.reanchor(bounds)

    def forget(self, after: Any) -> tuple[int, int] | None:
        """Let go of the places of batches that are compared whole; `after`: the last row that is. Gives its order."""
        done = self.done_until if after is None else order_of(after)
        while self._batches and done is not None and self._batches[0][1] <= done:
            self._batches.popleft()
        return done

    @property
    def has_many_places(self) -> bool:
        return len(self._batches) > _PLACES_MAX

    def save(self, after: Any) -> dict[str, Any]:
        done = self.forget(after)
        place = self._batches[0][0] if self._batches else self.place
        end = self.bounds
        return {
            "place": msgspec.to_builtins(place),
            "after": None if done is None else list(done),
            "bounds": {"incarnation": end.incarnation, "count": end.count, "last": end.last},
        }

    def lost_since(self, saved: Mapping[str, Any]) -> type[LaneError] | None:
        """Whether this is another lane than the one that was saved, or one whose end was cut off since: then what was
        dealt with says nothing about what is there. States of older versions do not tell."""
        before, now = saved.get("bounds"), self.bounds
        if before is None:
            return None
        if before["incarnation"] and now.incarnation and before["incarnation"] != now.incarnation:
            return SourceReset
        place = msgspec.convert(saved["place"], Place)  # a read may have gone on behind the bounds
        last = max(position_order(before["last"]), position_order(place.position))
        is_other = bool(before["last"] and now.last) and now.count == before["count"] and now.last != before["last"]
        is_cut = now.count < max(before["count"], place.count) or (bool(now.last) and position_order(now.last) < last)
        return SourceRegressed if is_cut or is_other else None

    def restore(self, saved: Mapping[str, Any]) -> bool:
        """Go on from what `save` gave. Gives False where that was trimmed meanwhile."""
        place = msgspec.convert(saved["place"], Place)
        is_there = place.count >= self.place.count or place.count < 0  # not known: the next read tells
        if is_there:
            self.place = place
        if saved["after"] is not None:
            self.done_until = (saved["after"][0], saved["after"][1])
            self.is_ended = self.is_ended or self.place.count >= self.bounds.count
        return is_there


class Once:
    """Counts rows of a lane that may be read again: each once. They come in order."""

    def __init__(self, until: Sequence[int] = ()) -> None:
        #: order of the last row that was counted
        self.until: tuple[int, int] = (until[0], until[1]) if until else _BEFORE_ALL

    def count(self, positions: Sequence[Any]) -> int:
        """How many of these were not counted yet."""
        orders = [order for position in positions if (order := order_of(position)) > self.until]
        self.until = max(orders, default=self.until)
        return len(orders)


def lost_before(source: Bounds, shape: Shape) -> tuple[str, bool]:
    """Up to where the beginning of a source lane is gone ("" = all of it), and whether the source itself tells so.

    In Kafka up to where the log starts: what stands before the first record that can be read was aborted, or is not
    committed, and was never to be copied. A Redis key that has nothing tells that all is gone: it was emptied, the key
    was removed, or there never was anything to copy.
    """
    if shape is Shape.RECORD:
        start = source.count - source.length
        return str(start), start > 0
    return source.first, source.count > source.length or not source.first


def has_lost_behind(done: tuple[int, int] | None, bounds: Bounds, shape: Shape) -> bool:
    """Whether rows behind these may be gone from a lane's beginning, not single ones from between others."""
    first, is_told = lost_before(bounds, shape)
    if done is None or not first:
        return is_told
    behind = (done[0] + 1, 0) if shape is Shape.RECORD else done
    return is_told and position_order(first) > behind


def ends_with(batch: Batch, bounds: Bounds) -> bool:
    """Whether nothing that the bounds know of stands behind the batch.

    In Kafka only they tell: a new leader may name an end before theirs, and comes to know in a moment how far the log
    was committed. In Redis their count tells nothing: that of a place takes in what was deleted ahead of it.
    """
    is_all = batch.place.count >= bounds.count if batch.shape is Shape.RECORD else batch.at_end
    return is_all or position_order(batch.place.position) >= position_order(bounds.last)


def cut(batch: Batch, rows: slice) -> Batch:
    """The batch with only these rows; itself where that is all."""
    if rows.start == 0 and rows.stop == len(batch.rows):
        return batch
    return Batch(batch.lane, batch.shape, batch.positions[rows], batch.rows[rows], batch.place, batch.at_end)


def is_from_earliest(starts: Mapping[Lane, Start] | None, lane: Lane) -> bool:
    """Whether all that the source lane ever held was to be copied."""
    return (starts or {}).get(lane, Start()).where is From.EARLIEST
