"""Records as the hot path moves them: lists of plain tuples, one list per lane.

Two shapes exist, because copying between two brokers of one kind must not pay for a translation:
a *record* is Kafka-shaped, an *entry* is Redis-shaped. `model.mapping` turns one into the other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain, repeat
from typing import Any, NamedTuple, TypeAlias

from .position import NativePosition, Place

#: Index of a lane within its stream: the Kafka partition, or the place of the Redis stream key in its stream.
Lane: TypeAlias = int
#: (source lane, target lane): what a marker, an ordinal and an epoch belong to.
Path: TypeAlias = tuple[int, int]
#: Kafka headers, in order; names repeat; a value may be None.
Headers: TypeAlias = list[tuple[str, bytes | None]]


class Shape(Enum):
    RECORD = "record"  # rows are `Record`: what Kafka keeps
    ENTRY = "entry"  # rows are `Entry`: what a Redis stream keeps


class Record(NamedTuple):
    """A Kafka-shaped row. Adapters may move plain 4-tuples of the same layout."""

    key: bytes | None
    value: bytes | None
    headers: Headers | None  # None = no headers
    time_ms: int  # CreateTime, milliseconds since the epoch; -1 = none


class Entry(NamedTuple):
    """A Redis-shaped row. Adapters may move plain 2-tuples of the same layout."""

    fields: list[bytes]  # name, value, name, value ... in order, names may repeat; never empty
    time_ms: int  # of the record; where no `xf` field says otherwise, the milliseconds of the entry id


#: Record or Entry, or a plain tuple of the same layout.
Row: TypeAlias = Any


class _Columns(Sequence[Row]):
    """Rows that lie column by column: what moves them as columns need not make a row for each."""

    @abstractmethod
    def _rows(self) -> Iterator[Row]:
        """All rows, one by one."""

    @abstractmethod
    def _part(self, part: slice) -> _Columns:
        """Some neighbours, as columns."""

    def __iter__(self) -> Iterator[Row]:
        return self._rows()

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return self._part(at)
        at = range(len(self))[at]
        return next(self._part(slice(at, at + 1))._rows())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class RecordColumns(_Columns):
    """Records as columns."""

    def __init__(self, keys: list[Any], values: list[Any], headers: list[Any], times: list[int]) -> None:
        self.keys, self.values, self.headers, self.times = keys, values, headers, times

    def __len__(self) -> int:
        return len(self.times)

    def _rows(self) -> Iterator[Row]:
        return zip(self.keys, self.values, self.headers, self.times, strict=True)

    def _part(self, part: slice) -> RecordColumns:
        return RecordColumns(self.keys[part], self.values[part], self.headers[part], self.times[part])


class EntryColumns(_Columns):
    """Entries that all have the same names in the same order; `values` has one column for each name."""

    def __init__(self, names: list[bytes], values: list[list[bytes]], times: list[int]) -> None:
        self.names, self.values, self.times = names, values, times

    def __len__(self) -> int:
        return len(self.times)

    def _rows(self) -> Iterator[Row]:
        parts = chain.from_iterable(zip(map(repeat, self.names), self.values, strict=True))
        return zip(map(list, zip(*parts, strict=False)), self.times, strict=True)

    def _part(self, part: slice) -> EntryColumns:
        return EntryColumns(self.names, [column[part] for column in self.values], self.times[part])


def joined(first: Sequence[Row], second: Sequence[Row]) -> Sequence[Row]:
    """Rows behind rows; as columns where both are columns of the same kind."""
    if isinstance(first, RecordColumns) and isinstance(second, RecordColumns):
        headers = first.headers + second.headers
        return RecordColumns(
            first.keys + second.keys, first.values + second.values, headers, first.times + second.times
        )
    if isinstance(first, EntryColumns) and isinstance(second, EntryColumns) and first.names == second.names:
        values = [one + other for one, other in zip(first.values, second.values, strict=True)]
        return EntryColumns(first.names, values, first.times + second.times)
    return [*first, *second]


@dataclass(slots=True)
class Batch:
    """What one read gives for one source lane.

    `positions[i]` is the place of `rows[i]`. `place` is where the reader stands after the batch; it can be ahead of
    the last row (control records, aborted data, deleted entries) and is what the next read goes on from.
    """

    lane: Lane
    shape: Shape
    positions: list[Any]
    rows: Sequence[Row]
    place: Place
    #: True when the read saw the end of the lane: nothing more was there at that moment
    at_end: bool = False
    #: payload bytes of all rows, for limits and metrics
    size_bytes: int = 0
    #: records before `place` that were deleted from the source, which the reader was told to count and not to miss
    deleted: int = 0
    #: up to this position single records were gone from between others when it was read (XDEL); "" = none, or not told
    holes_until: str = ""


class Reject(NamedTuple):
    """A record that the target does not take, on its way to quarantine."""

    position: NativePosition
    row: Row  # in the *source's* shape, so that it can be replayed
    reason: str  # one sentence
    shape: Shape


def portable(row: Row) -> list[Any]:
    """A row as quarantine keeps it: header names that are no UTF-8 as bytes, which msgpack text could not hold."""
    out = list(row)
    if len(out) == 4 and out[2]:
        out[2] = [
            [name if _is_text(name) else name.encode("utf-8", "surrogatepass"), content] for name, content in out[2]
        ]
    return out


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class Mapped(NamedTuple):
    """A batch in the target's shape: `positions[i]` belongs to `rows[i]`, source order kept."""

    positions: list[Any]
    rows: Sequence[Row]
    rejects: list[Reject]


@dataclass(slots=True)
class Write:
    """What one append carries for one path, in source order.

    `rows` are in the target's shape; `rejects` were refused by the mapping (a target adds those that it refuses
    itself). Rows and rejects of one write cover everything between the path's marker and `place`.
    A write without rows and rejects moves the marker alone.
    """

    path: Path
    positions: list[Any]
    rows: Sequence[Row]
    place: Place
    rejects: list[Reject] = field(default_factory=list)
    #: how many more records this path may still quarantine before the lane halts
    quarantine_left: int = 0
    #: on a route that is one of a pair: (order of a source position, echo, echoes) for the place before the first row
    #: and behind each echo that was left out, for targets that store markers in mid-write; None = no pair
    passed: list[tuple[tuple[int, int], int, int]] | None = None
    #: payload bytes of the rows as they were read, 0 = not known
    size_bytes: int = 0
