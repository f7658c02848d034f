"""How the rows of a target tell which source record each is a copy of, and what they are without that mark.

Hides the two places of a mark: the last `xf` header of a Kafka record; on Redis the last `xf` field, or the entry id
(`<ms>-<source offset>`, or the source entry's own), which leaves the fields as they were. `equal` decides a whole slice
at C speed by predicting the marks; it may miss that rows are equal, but never says so where they are not. `normal` then
says it row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any, NamedTuple, Protocol, TypeAlias

from ..model.position import position_text
from ..model.record import Lane, Row, Shape
from ..model.wire import XF, XF_FIELD, Origin, decode_origin
from .columns import Columns, columns_of

#: a source position as the source's own batches give it
SourcePosition: TypeAlias = Any


class Copy(NamedTuple):
    """One target row without its mark."""

    origin: SourcePosition | None  # None = it carries no mark of this route and lane
    row: Row
    ordinal: int  # -1 = the mark does not say
    epoch: int  # -1 = the mark does not say


class Codec(Protocol):
    """Reads the marks of one lane of one route."""

    #: source positions are numbers (Kafka offsets), not texts
    is_source_numeric: bool
    #: an entry without mark may be a copy by its id; set it to False where another writer is known to write there
    ids_may_mark: bool

    def equal(
        self,
        source_positions: Sequence[SourcePosition],
        expected: Columns,
        target_positions: Sequence[Any],
        actual: Sequence[Row],
    ) -> int | None:
        """The epoch of the slice (-1 = unknown) where each actual row is an exact copy of the expected one beside it,
        mark included; else None. The expected rows come as columns."""
        ...

    def normal(self, target_positions: Sequence[Any], actual: Sequence[Row]) -> list[Copy]:
        """Every actual row without its mark."""
        ...


def codec_for(*, target_shape: Shape, route_id: str, lane: Lane, is_source_numeric: bool) -> Codec:
    """The codec of a lane; `is_source_numeric` where source positions are numbers (Kafka offsets)."""
    kind = RecordMarks if target_shape is Shape.RECORD else EntryMarks
    return kind(route_id, lane, is_source_numeric)


class _Marks:
    """What both places share: the text of a mark, and its prediction."""

    def __init__(self, route_id: str, lane: Lane, is_source_numeric: bool) -> None:
        self._route_id = route_id
        self._lane = lane
        self.is_source_numeric = is_source_numeric
        self.ids_may_mark = True
        prefix = f"1;{route_id}/{lane}@".encode()
        self._template = prefix + (b"%d" if is_source_numeric else b"%b") + b"#%d;"

    def _origin(self, mark: bytes | None) -> Origin | None:
        origin = decode_origin(mark)
        return origin if origin and origin.route == self._route_id and origin.lane == self._lane else None

    def _source_position(self, origin: Origin) -> SourcePosition:
        if self.is_source_numeric:
            return int(origin.position) if origin.position.isdigit() else None
        return origin.position.encode()

    def _predicted_epoch(
        self,
        positions: Sequence[SourcePosition],
        times: Sequence[int],
        marks: Sequence[bytes],
        actual_times: Sequence[int],
    ) -> int | None:
        """The epoch, where the marks are those of these positions and times, with rising ordinals and one epoch."""
        first = decode_origin(marks[0])
        if first is None:
            return None
        count = len(marks)
        one = self._template + b"%d" % first.epoch
        columns: list[Any] = [positions, range(first.ordinal, first.ordinal + count)]
        if first.time_ms is not None:
            one += b";t=%d"
            columns.append(times)
        elif times != actual_times:
            return None
        predicted = b"\n".join([one] * count) % tuple(chain.from_iterable(zip(*columns, strict=True)))
        return first.epoch if predicted == b"\n".join(marks) else None


class RecordMarks(_Marks):
    """Kafka targets: the last header named `xf`."""

    def equal(
        self,
        source_positions: Sequence[SourcePosition],
        expected: Columns,
        target_positions: Sequence[Any],
        actual: Sequence[Row],
    ) -> int | None:
        keys, values, headers, times = expected
        actual_keys, actual_values, actual_headers, actual_times = columns_of(actual)
        if keys != actual_keys or values != actual_values:
            return None
        try:
            if headers.count(None) == len(headers):
                marks = [mark for (mark,) in actual_headers]
            elif [list(header or ()) for header in headers] == [header[:-1] for header in actual_headers]:
                marks = [header[-1] for header in actual_headers]
            else:
                return None
        except (TypeError, ValueError, IndexError):  # no headers, or more than the mark
            return None
        names, contents = zip(*marks, strict=True)
        if names.count(XF) != len(names) or None in contents:
            return None
        return self._predicted_epoch(source_positions, times, contents, actual_times)

    def normal(self, target_positions: Sequence[Any], actual: Sequence[Row]) -> list[Copy]:
        return [self._copy(row) for row in actual]

    def _copy(self, row: Row) -> Copy:
        key, value, headers, time_ms = row
        for at in range(len(headers) - 1 if headers else -1, -1, -1):
            name, content = headers[at]
            origin = self._origin(content) if name == XF else None
            if origin is not None:
                if origin.time_ms is not None:
                    time_ms = origin.time_ms
                rest = [*headers[:at], *headers[at + 1 :]] or None
                return Copy(self._source_position(origin), (key, value, rest, time_ms), origin.ordinal, origin.epoch)
        return Copy(None, (key, value, headers, time_ms), -1, -1)


class EntryMarks(_Marks):
    """Redis targets: the last field `xf`, else the entry id.

    Its sequence is the offset in Kafka, or it is the very id of the source entry.
    """

    def equal(
        self,
        source_positions: Sequence[SourcePosition],
        expected: Columns,
        target_positions: Sequence[Any],
        actual: Sequence[Row],
    ) -> int | None:
        fields, times = expected
        actual_fields, actual_times = columns_of(actual)
        if fields == actual_fields:
            is_exact = times == actual_times and self._are_exact_ids(source_positions, times, target_positions)
            return -1 if is_exact else None
        marks = [field[-1] for field in actual_fields if field[-2] == XF_FIELD]
        if len(marks) != len(actual_fields) or [list(field) for field in fields] != [
            field[:-2] for field in actual_fields
        ]:
            return None
        return self._predicted_epoch(source_positions, times, marks, actual_times)

    def _are_exact_ids(
        self, source_positions: Sequence[SourcePosition], times: Sequence[int], target_positions: Sequence[Any]
    ) -> bool:
        if not self.is_source_numeric:
            return list(source_positions) == list(target_positions)
        template = b"\n".join(repeat(b"%d-%d", len(times)))
        predicted = template % tuple(chain.from_iterable(zip(times, source_positions, strict=True)))
        return predicted == b"\n".join(target_positions)

    def normal(self, target_positions: Sequence[Any], actual: Sequence[Row]) -> list[Copy]:
        return [self._copy(position, row) for position, row in zip(target_positions, actual, strict=True)]

    def _copy(self, position: Any, row: Row) -> Copy:
        fields, time_ms = row
        if XF_FIELD in fields:
            for at in range(len(fields) - 2, -1, -2):
                origin = self._origin(fields[at + 1]) if fields[at] == XF_FIELD else None
                if origin is not None:
                    if origin.time_ms is not None:
                        time_ms = origin.time_ms
                    rest = [*fields[:at], *fields[at + 2 :]]
                    return Copy(self._source_position(origin), (rest, time_ms), origin.ordinal, origin.epoch)
        if not self.ids_may_mark:
            return Copy(None, row, -1, -1)
        if not self.is_source_numeric:
            return Copy(position_text(position).encode(), row, -1, -1)
        return Copy(int(position_text(position).partition("-")[2] or 0), row, -1, -1)
