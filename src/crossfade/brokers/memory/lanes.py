"""Storage of one lane: offsets, transactions and leader epochs as Kafka keeps them; ids and counts as Redis does.

Hides how each broker shows (or hides) that records were removed, truncated or re-created. Invariant: a batch that
`read` returns continues its place without a hole; whatever is missing is a LaneError that names how many are gone.
Called by `broker` and `log`.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from typing import Any

from ...errors import LaneError, SourceDeleted, SourceRegressed, SourceReset, SourceTrimmed
from ...model.position import Marker, Place, offset_behind, position_order
from ...model.record import Batch, Lane, Path, Row, Shape
from ..protocol import Bounds, From, Start

_HINT = "compare both sides with `crossfade verify`, then `crossfade relay resume --accept-loss`"


def row_size_bytes(row: Row) -> int:
    """Payload bytes of a row of either shape."""
    if len(row) == 2:
        return sum(map(len, row[0]))
    key, value, headers, _ = row
    return len(key or b"") + len(value or b"") + sum(len(n.encode()) + len(v or b"") for n, v in headers or ())


def _taken(stored: list[Any], records_max: int, bytes_max: int) -> tuple[list[Any], int]:
    """The first stored rows within the limits (one at least, where `records_max` allows any), and their bytes."""
    size_bytes = 0
    for count, (_, row) in enumerate(stored[:records_max]):
        row_bytes = row_size_bytes(row)
        if count and size_bytes + row_bytes > bytes_max:
            return stored[:count], size_bytes
        size_bytes += row_bytes
    return stored[:records_max], size_bytes


class RecordLane:
    """A Kafka partition: offsets with gaps, open transactions hold readers back, leader epochs show truncation."""

    def __init__(self, lane: Lane, incarnation: str) -> None:
        self.lane = lane
        self.incarnation = incarnation
        self.committed: list[tuple[int, Row]] = []
        self.start = 0
        self.end = 0
        #: claim id -> offset -> row: written, but neither committed nor aborted
        self.open: dict[str, dict[int, Row]] = {}
        #: (leader epoch, its first offset), rising
        self.leaders: list[tuple[int, int]] = [(0, 0)]
        self.is_compacted = False

    @property
    def stable_end(self) -> int:
        """Readers see offsets below this one."""
        return min((offset for rows in self.open.values() for offset in rows), default=self.end)

    # -- as source ---------------------------------------------------------------------------------------------------

    def bounds(self) -> Bounds:
        seen = self.committed[: bisect_left(self.committed, (self.stable_end,))]
        last = str(self.stable_end - 1) if self.stable_end > self.start else ""
        return Bounds(
            first=str(seen[0][0]) if seen else "",
            last=last,
            count=self.stable_end,
            length=self.stable_end - self.start,
            incarnation=self.incarnation,
            first_time_ms=seen[0][1][3] if seen else -1,
            held_up="an open transaction holds up readers" if self.stable_end < self.end else "",
            holes_until=last if self.is_compacted else "",
        )

    def begin(self, start: Start) -> Place:
        count = self.start
        if start.where is From.LATEST:
            count = self.stable_end
        elif start.where is From.POSITION:
            count = int(start.value) + 1
        elif start.where is From.TIME:
            later = (offset for offset, row in self.committed if row[3] >= int(start.value))
            count = next(later, self.stable_end)
        return self._place(str(count - 1) if count > self.start else "", count)

    def _place(self, position: str, count: int) -> Place:
        return Place(position, count, self.incarnation, str(self._leader(int(position))) if position else "")

    def _leader(self, offset: int) -> int:
        return max(epoch for epoch, first in self.leaders if first <= max(offset, 0))

    def _leader_end(self, epoch: int) -> int:
        return next((first for later, first in self.leaders if later > epoch), self.end)

    def read(self, place: Place, records_max: int, bytes_max: int) -> Batch | LaneError:
        """The committed records behind `place`, or why they cannot be told."""
        error = self._check(place)
        if error is not None:
            return error
        stable_end = self.stable_end
        behind = self.committed[
            bisect_left(self.committed, (offset_behind(place),)) : bisect_left(self.committed, (stable_end,))
        ]
        taken, size_bytes = _taken(behind, records_max, bytes_max)
        at_end = len(taken) == len(behind)
        count = stable_end if at_end else taken[-1][0] + 1 if taken else place.count
        position = str(taken[-1][0]) if taken else place.position
        moved = place if not taken and count == place.count else self._place(position, count)
        return Batch(self.lane, Shape.RECORD, [o for o, _ in taken], [r for _, r in taken], moved, at_end, size_bytes)

    def _check(self, place: Place) -> LaneError | None:
        if place.incarnation and place.incarnation != self.incarnation:
            return SourceReset(
                self.lane, "the partition's topic was deleted and made anew", hint=_HINT, position=place.position
            )
        reached = self.end
        if place.witness:
            reached = min(reached, self._leader_end(int(place.witness)))
        if reached < offset_behind(place):
            lost = offset_behind(place) - reached
            return SourceRegressed(
                self.lane,
                f"the log was cut to offset {reached}, but offset {offset_behind(place) - 1} was copied",
                hint=_HINT,
                position=place.position,
                lost_records=lost,
                ends_at=reached,
            )
        if place.count < self.start:
            return SourceTrimmed(
                self.lane,
                f"the log starts at offset {self.start}, but offset {place.count} was not copied",
                hint=_HINT,
                position=place.position,
                lost_records=self.start - place.count,
            )
        return None

    # -- as target and as an application's log -----------------------------------------------------------------------

    def write(self, row: Row) -> int:
        """Append one committed record, as an application does."""
        self.committed.append((self.end, row))
        self.end += 1
        return self.end - 1

    def write_open(self, claim_id: str, row: Row) -> int:
        """Append one record of an open transaction."""
        self.open.setdefault(claim_id, {})[self.end] = row
        self.end += 1
        return self.end - 1

    def finish(self, claim_id: str, *, commit: bool) -> None:
        """End the open transaction of `claim_id` here; either way a control record takes an offset."""
        rows = self.open.pop(claim_id, None)
        if rows is None:
            return
        if commit:
            for stored in rows.items():
                insort(self.committed, stored, key=lambda pair: pair[0])
        self.end += 1

    # -- data faults -------------------------------------------------------------------------------------------------

    def trim(self, keep: int) -> None:
        kept = self.committed[len(self.committed) - keep :] if keep else []
        self.start = kept[0][0] if kept else self.end
        self.committed = kept

    def delete(self, position: int) -> None:
        """As compaction does: the offset stays a gap, which is no loss."""
        self.committed = [stored for stored in self.committed if stored[0] != position]
        self.is_compacted = True

    def recreate(self, incarnation: str) -> None:
        self.__init__(self.lane, incarnation)  # type: ignore[misc]

    def regress(self, records: int) -> None:
        """An unclean leader election: the last `records` offsets are gone, a new leader goes on."""
        self.end = max(self.start, self.end - records)
        self.committed = self.committed[: bisect_left(self.committed, (self.end,))]
        self.open = {
            claim_id: kept
            for claim_id, rows in self.open.items()
            if (kept := {offset: row for offset, row in rows.items() if offset < self.end})
        }
        epoch = self.leaders[-1][0] + 1
        self.leaders = [*((e, first) for e, first in self.leaders if first < self.end or e == 0), (epoch, self.end)]


EntryId = tuple[int, int]


class EntryLane:
    """A Redis stream key, with the relay's markers and claims in its slot: a failover undoes them all together."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.entries: list[tuple[EntryId, Row]] = []
        self.last: EntryId = (0, 0)
        self.added = 0
        self.max_deleted: EntryId = (0, 0)
        #: name of the empty consumer group that dies with the key; "" = the key was never started from
        self.birth = ""
        #: (route, path) -> marker
        self.markers: dict[tuple[str, Path], Marker] = {}
        #: (route, path) -> (epoch, claim id)
        self.claims: dict[tuple[str, Path], tuple[int, str]] = {}
        #: earlier states, one per change, newest last; kept only where asked for
        self.history: list[dict[str, Any]] = []
        self.history_max = 0

    def remember(self) -> None:
        """Note the state before a change, so that `regress` can go back to it."""
        if self.history_max:
            state = {name: value for name, value in vars(self).items() if not name.startswith("history")}
            copied = {name: value.copy() if hasattr(value, "copy") else value for name, value in state.items()}
            self.history = [*self.history[1 - self.history_max :], copied]

    # -- as source ---------------------------------------------------------------------------------------------------

    def bounds(self) -> Bounds:
        first = self.entries[0][0] if self.entries else None
        return Bounds(
            first=_text(first) if first else "",
            last=_text(self.last) if self.added else "",
            count=self.added,
            length=len(self.entries),
            incarnation=self.birth,
            first_time_ms=first[0] if first else -1,
            holes_until=self._holes_until(),
        )

    def _holes_until(self) -> str:
        return _text(self.max_deleted) if self.max_deleted > (0, 0) else ""

    def begin(self, start: Start, birth: str) -> Place:
        if not self.birth:
            self.remember()
            self.birth = birth
        if start.where is From.EARLIEST:
            return Place("", self.added - len(self.entries), self.birth)
        position = self.last
        if start.where is From.POSITION:
            position = position_order(start.value)
        elif start.where is From.TIME:
            before = [entry_id for entry_id, _ in self.entries if entry_id[0] < int(start.value)]
            if not before:
                return Place("", self.added - len(self.entries), self.birth)
            position = before[-1]
        if not self.added:
            return Place("", 0, self.birth)
        behind = len(self.entries) - self._index_behind(position)
        return Place(_text(position), self.added - behind, self.birth, self._witness(position))

    def _index_behind(self, position: EntryId) -> int:
        return bisect_left(self.entries, ((position[0], position[1] + 1),))

    def _witness(self, position: EntryId) -> str:
        at = bisect_left(self.entries, (position,))
        if at == len(self.entries) or self.entries[at][0] != position:
            return ""
        digest = hashlib.blake2b(digest_size=8)
        for part in self.entries[at][1][0]:
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.hexdigest()

    def read(self, place: Place, records_max: int, bytes_max: int) -> Batch | LaneError:
        """The entries behind `place`, or why they cannot be told."""
        position = position_order(place.position) if place.position else (0, 0)
        behind = self.entries[self._index_behind(position) :]
        error = self._check(place, position, len(behind))
        if error is not None:
            return error
        taken, size_bytes = _taken(behind, records_max, bytes_max)
        moved = place
        if taken:
            count = self.added - len(behind) + len(taken)
            moved = Place(_text(taken[-1][0]), count, self.birth, self._witness(taken[-1][0]))
        return Batch(
            self.lane,
            Shape.ENTRY,
            [_text(entry_id).encode() for entry_id, _ in taken],
            [row for _, row in taken],
            moved,
            len(taken) == len(behind),
            size_bytes,
            holes_until=self._holes_until(),
        )

    def _check(self, place: Place, position: EntryId, behind: int) -> LaneError | None:
        """What the counts tell. `entries-added` minus what the place accounts for must all lie behind it."""
        at = place.position
        if place.incarnation and place.incarnation != self.birth:
            return SourceReset(self.lane, "the stream key was deleted or made anew", hint=_HINT, position=at)
        witness = self._witness(position)
        rewritten = bool(witness and place.witness and witness != place.witness)
        if self.last < position or rewritten or 0 <= self.added < place.count:
            lost = max(place.count - self.added, -1) or -1
            sentence = f"entry {at} was copied, but the stream now ends or differs before it"
            return SourceRegressed(self.lane, sentence, hint=_HINT, position=at, lost_records=lost)
        if place.count < 0:
            if witness or not place.position:
                return None
            return SourceTrimmed(
                self.lane, f"entry {at} is gone, and what followed it cannot be told", hint=_HINT, position=at
            )
        missing = self.added - place.count - behind
        if missing < 0:
            sentence = f"{-missing} more entries lie behind {at} than were ever added: it was copied before a failover"
            return SourceRegressed(self.lane, sentence, hint=_HINT, position=at)
        if missing == 0:
            return None
        if witness or self.max_deleted > position:
            sentence = f"{missing} entries behind {at or 'the beginning'} were deleted before they were copied"
            return SourceDeleted(self.lane, sentence, hint=_HINT, position=at, lost_records=missing)
        sentence = f"{missing} entries behind {at or 'the beginning'} were trimmed before they were copied"
        return SourceTrimmed(self.lane, sentence, hint=_HINT, position=at, lost_records=missing)

    # -- as target and as an application's log -----------------------------------------------------------------------

    def next_id(self, time_ms: int, now_ms: int) -> EntryId:
        """The id of a new entry: its own time where that is possible, never ahead of the clock or behind the last."""
        ms = max(min(time_ms, now_ms), self.last[0], 0)
        return (ms, self.last[1] + 1 if ms == self.last[0] else 0)

    def write(self, fields: list[bytes], entry_id: EntryId) -> None:
        self.entries.append((entry_id, (fields, entry_id[0])))
        self.last = entry_id
        self.added += 1

    # -- data faults -------------------------------------------------------------------------------------------------

    def trim(self, keep: int) -> None:
        self.remember()
        self.entries = self.entries[len(self.entries) - keep :] if keep else []

    def delete(self, position: EntryId) -> None:
        self.remember()
        self.entries = [stored for stored in self.entries if stored[0] != position]
        self.max_deleted = max(self.max_deleted, position)

    def recreate(self) -> None:
        """DEL of the stream key alone: markers and claims live beside it and stay."""
        self.remember()
        self.entries, self.last, self.added, self.max_deleted, self.birth = [], (0, 0), 0, (0, 0), ""

    def regress(self, changes: int) -> None:
        """A failover to a replica that lacks the last `changes` changes, markers and claims included."""
        back = min(changes, len(self.history))
        if back:
            vars(self).update(self.history[-back])
            self.history = self.history[:-back]


def _text(entry_id: EntryId) -> str:
    return f"{entry_id[0]}-{entry_id[1]}"
