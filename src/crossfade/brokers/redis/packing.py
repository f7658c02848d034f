"""Rows of one append call in the form that `append.lua` reads, and the guess that saves it most of its work.

Hides the argument layout, shared with the script. In an exclusive lane the entry id can say where a record came from:
`<ms>-<offset>` of a Kafka record, the very id of a Redis entry. Where the ids of a whole call follow from the rows
alone they are *direct*: the script takes them as they are, if the lane is as we think. Pure. Invariants: what is packed
cannot fail in the script for its shape (widths are even, at least 2, at most `VALUES_MAX`; times and offsets are exact
in Lua's numbers), and direct ids rise strictly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter, lt
from typing import Any

import hiredis
import msgspec

from ...model.position import Place, order_of, position_text
from ...model.record import EntryColumns, Reject, Row, Shape, portable

#: names and values of one record: Lua's `unpack` fails a little below 8,000, and `xf` takes two
VALUES_MAX = 7_800
#: Lua counts in doubles
NUMBER_MAX = 2**53 - 1
#: records in one call: larger ones block other clients for longer and are not faster
CALL_RECORDS_MAX = 500
#: bytes in one call, unless a single record is larger; most calls have a few hundred thousand
CALL_BYTES_MAX = 2 << 20
#: names and values in one call, unless a single record has more
CALL_VALUES_MAX = 100_000

_fields_of = itemgetter(0)
_time_of = itemgetter(1)
_pack = msgspec.msgpack.encode
_to_json = msgspec.json.encode
_COMMA_TO_HYPHEN = bytes.maketrans(b",", b"-")


@dataclass(slots=True)
class Rows:
    """The rows of one write, taken apart once."""

    positions: list[Any]
    #: names and values of each row
    fields: list[list[bytes]] | EntryColumns
    #: how many each row has, 0 = not all as many
    width: int
    widths: list[int]
    times: list[int]

    @classmethod
    def of(cls, positions: list[Any], rows: Sequence[Row]) -> Rows:
        if isinstance(rows, EntryColumns):
            return cls(positions, rows, 2 * len(rows.names), [], rows.times)
        fields = list(map(_fields_of, rows))
        widths = list(map(len, fields))
        width = widths[0] if widths and widths.count(widths[0]) == len(widths) else 0
        return cls(positions, fields, width, widths, list(map(_time_of, rows)))


@dataclass(slots=True)
class Layout:
    """How the records of a call are told to the script."""

    #: what stands before the fields of each record: its source position, with its time where that fits
    tags: list[bytes]
    #: msgpack of the times; empty where the tags tell them
    times: bytes = b""
    #: the tags are good as entry ids; this is the highest time in them, -1 = they are not
    top_ms: int = -1
    #: the names of every record, where all have the same in the same order: then the values travel alone
    names: list[bytes] = field(default_factory=list)
    #: what travels behind the tags, column by column; None where the records have different widths
    columns: list[Sequence[bytes]] | None = None


@dataclass(slots=True)
class Chunk:
    """What one call of the script carries."""

    positions: list[Any]
    rejects: list[Reject]
    place: Place
    #: names and values of each record
    fields: list[list[bytes]] | EntryColumns
    #: how many each record has, 0 = not all as many
    width: int
    widths: list[int]
    times: list[int]

    @property
    def last_position(self) -> str:
        """Source position of the last record, "" without records."""
        return position_text(self.positions[-1]) if self.positions else ""


def refuse(positions: list[Any], rows: Sequence[Row]) -> tuple[Rows, list[Reject]]:
    """Split off the rows that a stream entry cannot hold, as rejects with the reason."""
    taken = Rows.of(positions, rows)
    times = taken.times
    if all(map(_width_fits, {taken.width} if taken.width else set(taken.widths))) and (
        not times or -NUMBER_MAX <= min(times) <= max(times) <= NUMBER_MAX
    ):
        return taken, []
    rejects = [
        Reject(position, row, reason, Shape.ENTRY)
        for position, row in zip(positions, rows, strict=True)
        if (reason := _reason(row))
    ]
    kept = [(position, row) for position, row in zip(positions, rows, strict=True) if not _reason(row)]
    return Rows.of([position for position, _ in kept], [row for _, row in kept]), rejects


def _width_fits(width: int) -> bool:
    return 2 <= width <= VALUES_MAX and width % 2 == 0


def _reason(row: Row) -> str:
    width = len(row[0])
    if width > VALUES_MAX:
        return f"{width // 2} fields; a relayed Redis entry holds at most {VALUES_MAX // 2}"
    if not _width_fits(width):
        return f"{width} names and values do not make an entry"
    if abs(row[1]) > NUMBER_MAX:
        return f"time {row[1]} ms is beyond what the target can keep exactly"
    return ""


def pack_reject(reject: Reject) -> tuple[bytes, bytes, bytes, bytes]:
    """ARGV[7...] of one reject: position, reason, shape, row (msgpack)."""
    position, reason, shape = position_text(reject.position), reject.reason, reject.shape.value
    return position.encode(), reason.encode(errors="replace"), shape.encode(), _pack(portable(reject.row))


def chunks(
    taken: Rows, rejects: list[Reject], place: Place, *, counted_from: int, size_bytes: int = 0
) -> Iterator[Chunk]:
    """Cut one write into calls; each moves the marker to its own last record, the last one to `place`.

    `counted_from` is `place.count` of the marker before the write, see `between`; `size_bytes` is what is known of the
    whole write (0 = nothing): one that fits into a call needs no look at every value.
    """
    rejects = sorted(rejects, key=lambda reject: order_of(reject.position))
    total = left = len(taken.times) + len(rejects)
    is_linear = counted_from >= 0 and place.count - counted_from == total
    first, records_max = 0, CALL_RECORDS_MAX
    while True:
        stop = min(first + records_max, len(taken.times))
        fields = taken.fields[first:stop]
        is_small = 0 < size_bytes <= CALL_BYTES_MAX
        values = taken.width * (stop - first) or sum(taken.widths[first:stop])
        over = max(0 if is_small else _bytes_of(fields) / CALL_BYTES_MAX, values / CALL_VALUES_MAX)
        if over > 1 and stop - first > 1:
            records_max = max(1, int((stop - first) / (2 * over)))
            continue
        is_last = stop >= len(taken.times)
        mine = rejects if is_last else _until(rejects, taken.positions[stop - 1])
        rejects = rejects[len(mine) :]
        left -= stop - first + len(mine)
        here = place if is_last else between(place, taken.positions[stop - 1], left if is_linear else None)
        positions = taken.positions[first:stop]
        yield Chunk(positions, mine, here, fields, taken.width, taken.widths[first:stop], taken.times[first:stop])
        if is_last:
            return
        first = stop


def _bytes_of(fields: list[list[bytes]] | EntryColumns) -> int:
    return sum(map(len, chain.from_iterable(fields.values if isinstance(fields, EntryColumns) else fields)))


def lay_out(chunk: Chunk) -> Layout:
    """The layout of one call. Its tags are `direct` (see above) where `top_ms` is not -1."""
    positions, times = chunk.positions, chunk.times
    if not positions:
        return Layout([])
    layout = _tag_offsets(positions, times) if isinstance(positions[0], int) else _tag_ids(positions, times)
    if isinstance(chunk.fields, EntryColumns):
        layout.names, layout.columns = chunk.fields.names, list(chunk.fields.values)
    elif chunk.width:
        columns: list[Sequence[bytes]] = list(zip(*chunk.fields, strict=True))
        names = [column[0] for column in columns[::2]]
        if all(column.count(name) == len(column) for name, column in zip(names, columns[::2], strict=True)):
            layout.names, columns = names, columns[1::2]
        layout.columns = columns
    return layout


def _tag_offsets(offsets: list[int], times: list[int]) -> Layout:
    if min(times) < 0:
        return Layout([b"%d" % offset for offset in offsets], _pack(times))
    # [[1,2],[3,4]] becomes 1-2, 3-4: faster than a format for each.
    tags = _to_json(list(zip(times, offsets, strict=True)))[2:].translate(_COMMA_TO_HYPHEN, b"]").split(b"-[")
    rises = times == sorted(times) and all(map(lt, offsets, offsets[1:]))
    return Layout(tags, top_ms=times[-1] if rises else -1)


def _tag_ids(ids: list[bytes], times: list[int]) -> Layout:
    """Entry ids of the source. They tell the time, unless an older hop carried another one."""
    known: int | None = None
    prefix = sequence = b""
    rises = True
    for entry_id, time_ms in zip(ids, times, strict=True):
        if time_ms != known:
            rises = rises and (known is None or time_ms > known)
            known, prefix, sequence = time_ms, b"%d-" % time_ms, b""
        if not entry_id.startswith(prefix):
            return Layout(ids, _pack(times))
        # Within a millisecond a longer id is higher; among equally long ones the bytes decide.
        if sequence and (len(entry_id), entry_id) <= (len(sequence), sequence):
            rises = False
        sequence = entry_id
    return Layout(ids, top_ms=times[-1] if rises else -1)


def pack_call(digest: str, keys: list[bytes], ask: bytes, layout: Layout, chunk: Chunk) -> bytes:
    """The whole EVALSHA, as the server reads it."""
    rejects = [part for reject in chunk.rejects for part in pack_reject(reject)]
    widths = b"" if chunk.width else _pack(chunk.widths)
    head = ["EVALSHA", digest, len(keys), *keys, ask, widths, layout.times, *layout.names, *rejects]
    if layout.columns is None:
        head += chain.from_iterable(chain.from_iterable(zip(zip(layout.tags, strict=True), chunk.fields, strict=True)))
        packed: bytes = hiredis.pack_command(tuple(head))  # type: ignore[arg-type]  # its stub knows one-tuples only
        return packed
    announced = b"*%d\r\n" % (len(head) + len(layout.tags) * (1 + len(layout.columns)))
    # The head as a command, with the number of all arguments in place of its own.
    packed = hiredis.pack_command(tuple(head))  # type: ignore[arg-type]
    return _join_columns(announced + packed[packed.index(b"\n") + 1 : -2], [layout.tags, *layout.columns])


class _Announcements(dict[int, bytes]):
    """The end of one argument and the size of the next, by that size: looked up faster than formatted."""

    def __missing__(self, size_bytes: int) -> bytes:
        if len(self) >= _ANNOUNCEMENTS_MAX:
            self.clear()
        announced = self[size_bytes] = b"\r\n$%d\r\n" % size_bytes
        return announced


_ANNOUNCEMENTS_MAX = 10_000
_announcements = _Announcements()


def _join_columns(head: bytes, columns: Sequence[Sequence[bytes]]) -> bytes:
    """Arguments behind `head` (which lacks its last line end): one of each column after the other, in one join."""
    rows, step = len(columns[0]), 2 * len(columns)
    parts = [head] * (1 + rows * step) + [b"\r\n"]
    for index, column in enumerate(columns):
        sizes = list(map(len, column))
        is_even = sizes.count(sizes[0]) == rows
        before = [_announcements[sizes[0]]] * rows if is_even else list(map(_announcements.__getitem__, sizes))
        parts[1 + 2 * index : -1 : step] = before
        parts[2 + 2 * index : -1 : step] = column
    return b"".join(parts)


def between(place: Place, position: Any, uncounted: int | None) -> Place:
    """The place at a record inside a write that ends at `place`.

    A Kafka offset says all: the leader epoch of the end is kept, a newer one checks as well. For a Redis entry the
    digest of the end would be wrong, and the count is known only where every counted entry is in this write.
    """
    if isinstance(position, int):
        return Place(str(position), position + 1, place.incarnation, place.witness)
    count = -1 if uncounted is None else place.count - uncounted
    _, dot, history = place.witness.partition(".")
    return Place(position_text(position), count, place.incarnation, dot + history)


def _until(rejects: list[Reject], position: Any) -> list[Reject]:
    order = order_of(position)
    return [reject for reject in rejects if order_of(reject.position) <= order]
