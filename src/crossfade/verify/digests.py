"""Order-sensitive digests over ranges of source records, at C speed. Pure.

Each column (positions, keys, values or fields, their lengths, headers, times) has a hash of its own, so that a digest
does not depend on the slices in which records came. Two audits of one source give the same digests. Called by `audit`.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from itertools import chain
from typing import Any

from ..model.position import position_text
from ..model.record import Row
from .report import Range

RANGE_RECORDS = 100_000
_COLUMNS = ("position", "key", "key length", "content", "content length", "headers", "time")


class RangeDigests:
    """Appends to `ranges` after every RANGE_RECORDS records; a slice may span ranges."""

    def __init__(self, ranges: list[Range]) -> None:
        self._ranges = ranges
        self._records = 0
        self._last: Any = ""
        self._differences_before = sum(part.differences for part in ranges)
        self._hashes = self._fresh()

    @staticmethod
    def _fresh() -> dict[str, Any]:
        return {name: hashlib.sha256() for name in _COLUMNS}

    def add(self, positions: Sequence[Any], rows: Sequence[Row], differences: int) -> None:
        """Take in expected records, in order; `differences` = those of the lane so far."""
        at = 0
        while at < len(rows):
            room = RANGE_RECORDS - self._records
            self._hash(positions[at : at + room], rows[at : at + room])
            at += room
            if self._records == RANGE_RECORDS:
                self.close(differences)

    def close(self, differences: int) -> None:
        """End the open range here."""
        if not self._records:
            return
        digest = hashlib.sha256(b"".join(self._hashes[name].digest() for name in _COLUMNS)).hexdigest()[:32]
        new = differences - self._differences_before
        self._ranges.append(Range(position_text(self._last), self._records, digest, new))
        self._differences_before = differences
        self._records = 0
        self._hashes = self._fresh()

    def _hash(self, positions: Sequence[Any], rows: Sequence[Row]) -> None:
        hashes = self._hashes
        is_text = isinstance(positions[0], bytes)
        hashes["position"].update(b"\n".join([*positions, b""]) if is_text else array("Q", positions).tobytes())
        if len(rows[0]) == 4:
            self._hash_records(rows)
        else:
            fields, times = zip(*rows, strict=True)
            parts = list(chain.from_iterable(fields))
            hashes["content"].update(b"".join(parts))
            hashes["content length"].update(array("q", map(len, parts)).tobytes())
            hashes["headers"].update(array("q", map(len, fields)).tobytes())
            hashes["time"].update(array("q", times).tobytes())
        self._records += len(rows)
        self._last = positions[-1]

    def _hash_records(self, rows: Sequence[Row]) -> None:
        hashes = self._hashes
        keys, values, headers, times = zip(*rows, strict=True)
        for name, column in (("key", keys), ("content", values)):
            is_whole = None not in column
            parts = column if is_whole else [part or b"" for part in column]
            hashes[name].update(b"".join(parts))
            lengths = map(len, parts) if is_whole else [-1 if part is None else len(part) for part in column]
            hashes[f"{name} length"].update(array("q", lengths).tobytes())
        for index, header in enumerate(headers) if any(headers) else ():
            if header:
                text = f"{self._records + index}:{header!r}"
                hashes["headers"].update(text.encode("utf-8", "backslashreplace"))
        hashes["time"].update(array("q", times).tobytes())
