"""How much of which lane to read next. Pure: no I/O, no clock.

Hides that each lane of a read, and of the append that follows, costs something whatever it carries, so that many lanes
with a backlog take turns; and that a server counts entries, not bytes, so that how large they are has to be learned.
Invariant: a read that failed is not asked for again as it was. Lives as long as its log, through all claims. Called by
`source`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from ...model.record import Lane

#: assumed of a lane before its first read
_ENTRY_BYTES_FIRST = 8 << 10
#: records of a lane at first; and of all lanes together of which nothing is known: their entries may be of any size
_COUNT_FIRST = 64
_COUNT_UNKNOWN = 8
_READ_GROWTH = 4
_READ_SHRINK = 16
#: of the bytes of all lanes; after a failure they grow slowly, so that what was too much is seldom tried again
_BYTES_SHRINK = 4
_BYTES_GROWTH = 1.05
_BYTES_LEAST = 1 << 20
#: a read that takes longer was too large for its line: nothing is appended, and nobody sees progress, before it ends
_GOAL_S = 2.0
#: how many times what is expected may come before a read is given up
_EXCESS = 4
_EXCESS_BYTES_LEAST = 64 << 20
#: what comes of a lane beside its share: the entry of its place, the first and the last one of the stream
_ENTRIES_BESIDE = 3
#: lanes with a backlog in one read: always so many, and more where each gets so many records
_LANES_AT_ONCE = 16
_RECORDS_A_LANE = 1_500


@dataclass(slots=True)
class _Pace:
    """What is known of a lane."""

    entry_bytes: float = _ENTRY_BYTES_FIRST
    #: the most that the next read may ask for; 0 = nothing is known yet
    count_max: int = 0
    #: what the last read asked for
    asked: int = 0
    #: the last read did not reach the end; None = never read
    is_behind: bool | None = None


class Pacing:
    """Deals out reads to the lanes of one log."""

    def __init__(self) -> None:
        self._paces: dict[Lane, _Pace] = {}
        #: whose turn it is, where not all can be read at once
        self._next: Lane = 0
        #: of one read, and of the last one
        self._bytes_max: float = inf
        self._bytes_dealt = 0

    def deal(self, lanes: Sequence[Lane], records_max: int, bytes_max: int) -> dict[Lane, tuple[int, int]]:
        """Records and bytes that each lane may read now: a lane that was at its end needs little.

        Of the lanes with a backlog some are left out where they are too many; they have their turn in a later call.
        """
        paces = {lane: self._paces.setdefault(lane, _Pace()) for lane in lanes}
        self._bytes_dealt = bytes_max = int(min(bytes_max, self._bytes_max))
        self._bytes_max *= _BYTES_GROWTH
        for lane in self._left_out([lane for lane, pace in paces.items() if pace.is_behind], records_max):
            del paces[lane]
        behind = sum(pace.is_behind is not False for pace in paces.values())
        small = max(1, records_max // (4 * len(paces))) if paces else 1
        large = max(1, (records_max - small * (len(paces) - behind)) // max(1, behind))
        unknown = max(1, _COUNT_UNKNOWN // max(1, sum(pace.count_max == 0 for pace in paces.values())))
        shares = {}
        for lane, pace in paces.items():
            records = small if pace.is_behind is False else large
            size_bytes = max(1, bytes_max * records // max(1, records_max))
            count_max = pace.count_max or unknown
            pace.asked = max(1, min(records, int(size_bytes / pace.entry_bytes) + 1, count_max))
            shares[lane] = (pace.asked, size_bytes)
        return shares

    def excess_bytes(self, shares: Mapping[Lane, tuple[int, int]]) -> int:
        """So many bytes are far too many for a read of these shares; 0 = it cannot be smaller, whatever comes."""
        if all(records == 1 for records, _ in shares.values()):
            return 0
        beside = sum(self._paces[lane].entry_bytes * _ENTRIES_BESIDE for lane in shares)
        return max(_EXCESS_BYTES_LEAST, int(_EXCESS * (self._bytes_dealt + beside)))

    def guess(self, lane: Lane, ends_bytes: int) -> None:
        """Learn from a look at the first and the last entry of a lane, as long as none of it was read."""
        pace = self._paces.setdefault(lane, _Pace())
        if pace.count_max == 0:
            pace.entry_bytes = max(_ENTRY_BYTES_FIRST, ends_bytes)
            pace.count_max = _COUNT_FIRST

    def observe(self, lane: Lane, records: int, size_bytes: int, *, at_end: bool) -> None:
        """Learn from one read of a lane."""
        pace = self._paces[lane]
        pace.is_behind = not at_end
        # Behind a failure it grows from what has come: one success of a small read says nothing of a large one.
        has_failed = 0 < pace.count_max < _COUNT_FIRST
        pace.count_max = max(0 if has_failed else _COUNT_FIRST, pace.asked * _READ_GROWTH)
        if records:
            pace.entry_bytes = max(pace.entry_bytes * 0.5, size_bytes / records, 1.0)

    def failed(self, lanes: Iterable[Lane]) -> None:
        """A read of these lanes lost its connection: perhaps it was too much, so the next one is much smaller."""
        for lane in lanes:
            pace = self._paces[lane]
            pace.count_max = max(1, pace.asked // _READ_SHRINK)
        self._bytes_max = max(_BYTES_LEAST, self._bytes_dealt / _BYTES_SHRINK)

    def lasted(self, read_bytes: int, took_s: float) -> None:
        """Learn from how long a read took until all of its bytes were here."""
        if took_s > _GOAL_S:
            self._bytes_max = max(_BYTES_LEAST, min(self._bytes_max, read_bytes * _GOAL_S / took_s))

    def _left_out(self, behind: list[Lane], records_max: int) -> list[Lane]:
        lanes = sorted(behind)
        first = next((index for index, lane in enumerate(lanes) if lane >= self._next), 0)
        in_turn, room, room_bytes = lanes[first:] + lanes[:first], records_max, float(self._bytes_dealt)
        for index, lane in enumerate(in_turn):
            if (room <= 0 or room_bytes <= 0) and index >= _LANES_AT_ONCE:
                self._next = lane
                return in_turn[index:]
            pace = self._paces[lane]
            room -= min(_RECORDS_A_LANE, pace.count_max)
            # However few are asked for, some come: the entries that say where the lane stands.
            room_bytes -= pace.entry_bytes * (1 + _ENTRIES_BESIDE)
        return []
