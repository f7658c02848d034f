"""How much of which lane to read next. Pure: no I/O, no clock.

Hides that each lane of a read, and of the append that follows, costs something whatever it carries, so that many lanes
with a backlog take turns. Called by `source`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...model.record import Lane

#: assumed of a lane before its first read; small, because the first read may meet large entries
_ENTRY_BYTES_FIRST = 8 << 10
_COUNT_FIRST = 16
_READ_GROWTH = 4
#: lanes with a backlog in one read: always so many, and more where each gets so many records
_LANES_AT_ONCE = 16
_RECORDS_A_LANE = 1_500


@dataclass(slots=True)
class _Pace:
    """What is known of a lane."""

    entry_bytes: float = _ENTRY_BYTES_FIRST
    count_last: int = _COUNT_FIRST
    #: the last read did not reach the end; None = never read
    is_behind: bool | None = None


class Pacing:
    """Deals out reads to the lanes of one log."""

    def __init__(self) -> None:
        self._paces: dict[Lane, _Pace] = {}
        #: whose turn it is, where not all can be read at once
        self._next: Lane = 0

    def deal(self, lanes: Sequence[Lane], records_max: int, bytes_max: int) -> dict[Lane, tuple[int, int]]:
        """Records and bytes that each lane may read now: a lane that was at its end needs little.

        Of the lanes with a backlog some are left out where they are too many; they have their turn in a later call.
        """
        paces = {lane: self._paces.setdefault(lane, _Pace()) for lane in lanes}
        for lane in self._left_out([lane for lane, pace in paces.items() if pace.is_behind], records_max):
            del paces[lane]
        behind = sum(pace.is_behind is not False for pace in paces.values())
        small = max(1, records_max // (4 * len(paces))) if paces else 1
        large = max(1, (records_max - small * (len(paces) - behind)) // max(1, behind))
        shares = {}
        for lane, pace in paces.items():
            records = small if pace.is_behind is False else large
            size_bytes = max(1, bytes_max * records // max(1, records_max))
            count = min(records, int(size_bytes / pace.entry_bytes) + 1, pace.count_last * _READ_GROWTH)
            pace.count_last = max(_COUNT_FIRST, count)
            shares[lane] = (max(1, count), size_bytes)
        return shares

    def observe(self, lane: Lane, records: int, size_bytes: int, *, at_end: bool) -> None:
        """Learn from one read of a lane."""
        pace = self._paces[lane]
        pace.is_behind = not at_end
        if records:
            pace.entry_bytes = max(pace.entry_bytes * 0.5, size_bytes / records, 1.0)

    def _left_out(self, behind: list[Lane], records_max: int) -> list[Lane]:
        lanes = sorted(behind)
        first = next((index for index, lane in enumerate(lanes) if lane >= self._next), 0)
        in_turn, room = lanes[first:] + lanes[:first], records_max
        for index, lane in enumerate(in_turn):
            if room <= 0 and index >= _LANES_AT_ONCE:
                self._next = lane
                return in_turn[index:]
            room -= min(_RECORDS_A_LANE, self._paces[lane].count_last * _READ_GROWTH)
        return []
