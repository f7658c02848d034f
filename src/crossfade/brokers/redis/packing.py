"""Rows of one append call in the form that `append.lua` reads: few large arguments instead of many small ones.

Hides the argument layout, shared with the script. Pure. Invariant: what is packed cannot fail in the script for its
shape: widths are even, at least 2, at most `VALUES_MAX`; times and offsets are exact in Lua's numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any

import msgspec

from ...model.position import Place, position_order, position_text
from ...model.record import Reject, Row, Shape

#: names and values of one record: Lua's `unpack` fails a little below 8,000, and `xf` takes two
VALUES_MAX = 7_800
#: Lua counts in doubles
NUMBER_MAX = 2**53 - 1
#: records in one call: larger ones block other clients for longer and are not faster
CALL_RECORDS_MAX = 500
#: bytes in one call, unless a single record is larger
CALL_BYTES_MAX = 1 << 20

_fields_of = itemgetter(0)
_time_of = itemgetter(1)
_pack = msgspec.msgpack.encode


@dataclass(slots=True)
class Rows:
    """The rows of one write, taken apart once."""

    positions: list[Any]
    rows: list[Row]
    #: names and values of each row
    fields: list[list[bytes]]
    #: how many each row has
    widths: list[int]
    times: list[int]

    @classmethod
    def of(cls, positions: list[Any], rows: list[Row]) -> Rows:
        fields = list(map(_fields_of, rows))
        return cls(positions, rows, fields, list(map(len, fields)), list(map(_time_of, rows)))


@dataclass(slots=True)
class Chunk:
    """What one call of the script carries."""

    positions: list[Any]
    rejects: list[Reject]
    place: Place
    #: ARGV[2]: all names and values, still apart; they are put together once, with the whole command
    values: list[bytes]
    size_bytes: int
    #: ARGV[3..6]
    packed: tuple[bytes, bytes, bytes, bytes]

    @property
    def last_position(self) -> str:
        """Source position of the last record, "" without records."""
        return position_text(self.positions[-1]) if self.positions else ""


def refuse(positions: list[Any], rows: list[Row]) -> tuple[Rows, list[Reject]]:
    """Split off the rows that a stream entry cannot hold, as rejects with the reason."""
    taken = Rows.of(positions, rows)
    times = taken.times
    if all(map(_width_fits, set(taken.widths))) and (
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
    return position.encode(), reason.encode(errors="replace"), shape.encode(), _pack(reject.row)


def chunks(taken: Rows, rejects: list[Reject], place: Place, *, counted_from: int) -> Iterator[Chunk]:
    """Cut one write into calls; each moves the marker to its own last record, the last one to `place`.

    `counted_from` is `place.count` of the marker before the write, see `between`.
    """
    rejects = sorted(rejects, key=_order_of)
    total = left = len(taken.rows) + len(rejects)
    is_linear = counted_from >= 0 and place.count - counted_from == total
    first, records_max = 0, CALL_RECORDS_MAX
    while True:
        stop = min(first + records_max, len(taken.rows))
        values = list(chain.from_iterable(taken.fields[first:stop]))
        lengths = list(map(len, values))
        size_bytes = sum(lengths)
        if size_bytes > CALL_BYTES_MAX and stop - first > 1:
            records_max = max(1, (stop - first) * CALL_BYTES_MAX // (2 * size_bytes))
            continue
        is_last = stop >= len(taken.rows)
        mine = rejects if is_last else _until(rejects, taken.positions[stop - 1])
        rejects = rejects[len(mine) :]
        left -= stop - first + len(mine)
        here = place if is_last else between(place, taken.positions[stop - 1], left if is_linear else None)
        positions = taken.positions[first:stop]
        packed = _pack_numbers(lengths, taken.widths[first:stop], taken.times[first:stop], positions)
        yield Chunk(positions, mine, here, values, size_bytes, packed)
        if is_last:
            return
        first = stop


def _pack_numbers(
    lengths: list[int], widths: list[int], times: list[int], positions: list[Any]
) -> tuple[bytes, bytes, bytes, bytes]:
    same = widths[0] if widths and widths.count(widths[0]) == len(widths) else widths
    if positions and isinstance(positions[0], bytes):
        positions = b",".join(positions).decode().split(",")
    return _pack(lengths), _pack(same), _pack(times), _pack(positions)


def pack_call(digest: str, keys: list[bytes], ask: bytes, chunk: Chunk) -> bytes:
    """The whole EVALSHA, as the server reads it. Put together in one piece: large values are copied once."""
    rejects = [part for reject in chunk.rejects for part in pack_reject(reject)]
    parts: list[bytes] = [b"*%d\r\n" % (9 + len(keys) + len(rejects))]
    for argument in (b"EVALSHA", digest.encode(), b"%d" % len(keys), *keys, ask):
        parts += (b"$%d\r\n" % len(argument), argument, b"\r\n")
    parts.append(b"$%d\r\n" % chunk.size_bytes)
    parts += chunk.values
    parts.append(b"\r\n")
    for argument in (*chunk.packed, *rejects):
        parts += (b"$%d\r\n" % len(argument), argument, b"\r\n")
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


def _order_of(reject: Reject) -> tuple[int, int]:
    return position_order(position_text(reject.position))


def _until(rejects: list[Reject], position: Any) -> list[Reject]:
    order = position_order(position_text(position))
    return [reject for reject in rejects if _order_of(reject) <= order]
