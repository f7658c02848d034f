"""Rows of one append call in the form that `append.lua` reads: few large arguments instead of many small ones.

Hides the argument layout, shared with the script. Pure. Invariant: what is packed cannot fail in the script for its
shape: widths are even, at least 2, at most `VALUES_MAX`; times and offsets are exact in Lua's numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
#: one record, with its quarantined form still below the server's limit of 512 MB an argument
ENTRY_BYTES_MAX = 400 << 20

_fields_of = itemgetter(0)
_time_of = itemgetter(1)
_pack = msgspec.msgpack.encode


@dataclass(slots=True)
class Chunk:
    """What one call of the script carries."""

    positions: list[Any]
    rows: list[Row]
    rejects: list[Reject]
    place: Place
    #: ARGV[2..6]
    packed: tuple[bytes, bytes, bytes, bytes, bytes]

    @property
    def last_position(self) -> str:
        """Source position of the last record, "" without records."""
        return position_text(self.positions[-1]) if self.positions else ""


def refuse(positions: list[Any], rows: list[Row]) -> tuple[list[Any], list[Row], list[Reject]]:
    """Split off the rows that a stream entry cannot hold, as rejects with the reason."""
    widths = {len(fields) for fields in map(_fields_of, rows)}
    times = list(map(_time_of, rows))
    if all(_width_fits(width) for width in widths) and (
        not times or (max(times) <= NUMBER_MAX and min(times) >= -NUMBER_MAX)
    ):
        return positions, rows, []
    kept_positions: list[Any] = []
    kept_rows: list[Row] = []
    rejects: list[Reject] = []
    for position, row in zip(positions, rows, strict=True):
        reason = _reason(row)
        if reason:
            rejects.append(Reject(position, row, reason, Shape.ENTRY))
        else:
            kept_positions.append(position)
            kept_rows.append(row)
    return kept_positions, kept_rows, rejects


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


def pack_rows(positions: Sequence[Any], rows: Sequence[Row]) -> tuple[tuple[bytes, bytes, bytes, bytes, bytes], int]:
    """ARGV[2..6] for these rows, and the payload bytes."""
    fields = list(map(_fields_of, rows))
    flat = list(chain.from_iterable(fields))
    blob = b"".join(flat)
    widths = list(map(len, fields))
    same = widths[0] if widths and widths.count(widths[0]) == len(widths) else widths
    if positions and isinstance(positions[0], bytes):
        positions = b",".join(positions).decode().split(",")
    packed = (blob, _pack(list(map(len, flat))), _pack(same), _pack(list(map(_time_of, rows))), _pack(positions))
    return packed, len(blob)


def pack_reject(reject: Reject) -> tuple[str, str, str, bytes]:
    """ARGV[7...] of one reject: position, reason, shape, row (msgpack)."""
    return (position_text(reject.position), reject.reason, reject.shape.value, _pack(reject.row))


def chunks(
    positions: list[Any],
    rows: list[Row],
    rejects: list[Reject],
    place: Place,
    *,
    counted_from: int,
) -> Iterator[Chunk]:
    """Cut one write into calls; each moves the marker to its own last record, the last one to `place`.

    `counted_from` is `place.count` of the marker before the write, see `between`.
    """
    spans = list(_spans(positions, rows))
    rejects = sorted(rejects, key=_order_of)
    total = len(rows) + len(rejects)
    linear = counted_from >= 0 and place.count - counted_from == total
    done = 0
    for number, (first, stop, packed) in enumerate(spans):
        is_last = number == len(spans) - 1
        mine = rejects if is_last else _until(rejects, positions[stop - 1])
        rejects = rejects[len(mine) :]
        done += stop - first + len(mine)
        here = place if is_last else between(place, positions[stop - 1], total - done if linear else None)
        yield Chunk(positions[first:stop], rows[first:stop], mine, here, packed)


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


def _spans(
    positions: list[Any], rows: list[Row]
) -> Iterator[tuple[int, int, tuple[bytes, bytes, bytes, bytes, bytes]]]:
    """(first, stop, packed) of each call; at least one, also without rows."""
    first, step = 0, CALL_RECORDS_MAX
    while True:
        stop = min(first + step, len(rows))
        packed, size_bytes = pack_rows(positions[first:stop], rows[first:stop])
        if size_bytes > CALL_BYTES_MAX and stop - first > 1:
            step = max(1, (stop - first) * CALL_BYTES_MAX // (2 * size_bytes))
            continue
        yield first, stop, packed
        first = stop
        if first >= len(rows):
            return
