"""Order-sensitive digests over ranges of source records, at C speed. Pure.

Each column (positions, keys, values or fields, their lengths, headers, times) has a hash of its own, so that a digest
does not depend on the slices in which records came. Two audits of one source give the same digests. Called by `audit`.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any

from ..model.position import position_text
from ..model.record import Row
from .report import Range

RANGE_RECORDS = 100_000
_COLUMNS = ("position", "key", "key length", "content", "content length", "headers", "time")


#: updates that may wait for the hashing thread; each holds one column of a slice
_WAITING_MAX = 32


class Hasher:
    """Hashes in a thread of its own: hashing lets go of the interpreter, so it costs the audit nothing but the copy."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="verify-digest")
        self._waiting: deque[Future[None]] = deque()

    def update(self, hashed: Any, data: bytes) -> None:
        """Add to a hash, some time before `settle` returns; in the order of the calls."""
        if len(self._waiting) >= _WAITING_MAX:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(hashed.update, data))

    def settle(self) -> None:
        """Wait until everything was added."""
        while self._waiting:
            self._waiting.popleft().result()

    def close(self) -> None:
        self._thread.shutdown()


class RangeDigests:
    """Appends to `ranges` after every RANGE_RECORDS records; a slice may span ranges."""

    def __init__(self, ranges: list[Range], hasher: Hasher) -> None:
        self._hasher = hasher
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
        self._hasher.settle()
        digest = hashlib.sha256(b"".join(self._hashes[name].digest() for name in _COLUMNS)).hexdigest()[:32]
        new = differences - self._differences_before
        self._ranges.append(Range(position_text(self._last), self._records, digest, new))
        self._differences_before = differences
        self._records = 0
        self._hashes = self._fresh()

    def _hash(self, positions: Sequence[Any], rows: Sequence[Row]) -> None:
        hashes, update = self._hashes, self._hasher.update
        is_text = isinstance(positions[0], bytes)
        update(hashes["position"], b"\n".join([*positions, b""]) if is_text else array("Q", positions).tobytes())
        if len(rows[0]) == 4:
            self._hash_records(rows)
        else:
            fields, times = zip(*rows, strict=True)
            parts = list(chain.from_iterable(fields))
            update(hashes["content"], b"".join(parts))
            update(hashes["content length"], array("q", map(len, parts)).tobytes())
            update(hashes["headers"], array("q", map(len, fields)).tobytes())
            update(hashes["time"], array("q", times).tobytes())
        self._records += len(rows)
        self._last = positions[-1]

    def _hash_records(self, rows: Sequence[Row]) -> None:
        hashes, update = self._hashes, self._hasher.update
        keys, values, headers, times = zip(*rows, strict=True)
        for name, column in (("key", keys), ("content", values)):
            is_whole = None not in column
            parts = column if is_whole else [part or b"" for part in column]
            update(hashes[name], b"".join(parts))
            lengths = map(len, parts) if is_whole else [-1 if part is None else len(part) for part in column]
            update(hashes[f"{name} length"], array("q", lengths).tobytes())
        for index, header in enumerate(headers) if any(headers) else ():
            if header:
                text = f"{self._records + index}:{header!r}"
                update(hashes["headers"], text.encode("utf-8", "backslashreplace"))
        update(hashes["time"], array("q", times).tobytes())
