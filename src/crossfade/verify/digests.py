"""Order-sensitive digests over ranges of source records, at C speed. Pure.

Each column (positions, keys, values or fields, their lengths, headers, times) has a checksum of its own, so that a
digest does not depend on the slices in which records came. Two audits of one source give the same digests. They tell
two audits apart, against chance and not against an enemy: whether the sides are equal is never decided by them.
Called by `lane`.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any
from zlib import crc32

from ..model.position import position_text
from .columns import Columns
from .report import Range

RANGE_RECORDS = 100_000
_COLUMNS = ("position", "key", "key length", "content", "content length", "headers", "time")


class RangeDigests:
    """Appends to `ranges` after every RANGE_RECORDS records; a slice may span ranges."""

    def __init__(self, ranges: list[Range], differences: int = 0) -> None:
        """`differences`: those of the lane up to here; who audits for ever does not keep all ranges."""
        self._ranges = ranges
        self._ranges_before = len(ranges)
        self._records = 0
        self._last: Any = ""
        self._differences_before = self._differences_at_first = differences
        self._sums = dict.fromkeys(_COLUMNS, 0)

    def add(self, positions: Sequence[Any], columns: Columns, differences: int) -> None:
        """Take in expected records, in order; `differences` = those of the lane so far."""
        at, count = 0, len(positions)
        while at < count:
            room = RANGE_RECORDS - self._records
            if at or count > room:
                part = slice(at, at + room)
                self._sum(positions[part], tuple(column[part] for column in columns))
            else:
                self._sum(positions, columns)
            at += room
            if self._records == RANGE_RECORDS:
                self.close(differences)

    def close(self, differences: int) -> None:
        """End the open range here."""
        if not self._records:
            return
        text = " ".join(str(self._sums[name]) for name in _COLUMNS)
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        new = differences - self._differences_before
        self._ranges.append(Range(position_text(self._last), self._records, digest, new))
        self._differences_before = differences
        self._records = 0
        self._sums = dict.fromkeys(_COLUMNS, 0)

    def forget(self) -> None:
        """Let go of the ranges that were closed here, and of the open one."""
        del self._ranges[self._ranges_before :]
        self._differences_before = self._differences_at_first
        self._records = 0

    def _sum(self, positions: Sequence[Any], columns: Columns) -> None:
        is_text = isinstance(positions[0], bytes)
        self._add("position", b"\n".join([*positions, b""]) if is_text else array("Q", positions).tobytes())
        if len(columns) == 4:
            keys, values, headers, times = columns
            self._add_parts("key", keys)
            self._add_parts("content", values)
            if headers.count(None) < len(headers):
                self._add_headers(headers)
        else:
            fields, times = columns
            self._add_parts("content", list(chain.from_iterable(fields)))
            self._add("headers", array("q", map(len, fields)).tobytes())
        self._add("time", _bytes_of_times(times))
        self._records += len(positions)
        self._last = positions[-1]

    def _add(self, name: str, data: bytes) -> None:
        self._sums[name] = crc32(data, self._sums[name])

    def _add_parts(self, name: str, parts: Sequence[bytes | None]) -> None:
        try:
            joined, lengths = b"".join(parts), array("q", map(len, parts))  # type: ignore[arg-type]
        except TypeError:  # some are None, which is not the same as empty
            joined = b"".join([part or b"" for part in parts])
            lengths = array("q", [-1 if part is None else len(part) for part in parts])
        self._add(name, joined)
        self._add(f"{name} length", lengths.tobytes())

    def _add_headers(self, headers: Sequence[Any]) -> None:
        for index, header in enumerate(headers):
            if header:
                text = f"{self._records + index}:{header!r}"
                self._add("headers", text.encode("utf-8", "backslashreplace"))


def _bytes_of_times(times: Sequence[int]) -> bytes:
    """Eight bytes each; sixteen for what only an entry id can hold (2^63 ms and more)."""
    try:
        return array("q", times).tobytes()
    except OverflowError:
        sizes = [8 if time_ms < 1 << 63 else 16 for time_ms in times]  # each by itself, or digests depended on slices
        return b"".join(
            time_ms.to_bytes(size, sys.byteorder, signed=True) for time_ms, size in zip(times, sizes, strict=True)
        )
