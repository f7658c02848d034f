"""Which rows a Kafka topic takes as they are, which need care, and which it refuses. Pure.

Hides the limits of topics and of librdkafka: a time of 0 means "now" to it, a time outside the topic's window refuses
the whole batch or makes retention delete the record at once, a header name that is no UTF-8 crashes the client.
Invariant: what `prepare` lets through, `produce()` and the broker take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ...model.record import Reject, Row, Shape, Write, portable

#: an upper bound of what a record batch and one record add to key, value and headers
_BATCH_OVERHEAD_BYTES = 61
_RECORD_OVERHEAD_BYTES = 32
_HEADER_OVERHEAD_BYTES = 10
#: our own header: `xf` and its text
_XF_BYTES = 160
_FIXED_BYTES = _BATCH_OVERHEAD_BYTES + _RECORD_OVERHEAD_BYTES + _XF_BYTES
#: a key and a value up to this need no exact arithmetic, unless the topic takes less than two of them
_SMALL_BYTES = 8192
#: a body in quarantine is cut to this
QUARANTINE_BODY_BYTES_MAX = 256 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What the target topic takes."""

    #: upper bound of a serialised record
    size_bytes_max: int
    #: a record time must lie strictly between these (ms since the epoch), else it gets the time of the copy
    time_after_ms: int
    time_before_ms: int
    now_ms: int
    #: a compacted topic refuses records without a key, and the whole batch with them
    needs_key: bool = False


@dataclass(slots=True)
class Prepared:
    """One write, ready to be produced: `rows[i]` has the text position `positions[i]`."""

    rows: Sequence[Row]
    positions: list[Any]
    #: index -> the record's own time, where the row carries the time of the copy
    own_times: dict[int, int] = field(default_factory=dict)
    rejects: list[Reject] = field(default_factory=list)


def prepare(write: Write, limits: Limits) -> Prepared:
    """Split a write into what can be produced and what goes to quarantine; source order is kept."""
    rows, positions = write.rows, write.positions
    after, before = limits.time_after_ms, limits.time_before_ms
    small = min(_SMALL_BYTES, max(0, (limits.size_bytes_max - _FIXED_BYTES) // 2))
    special = [
        index
        for index, (key, value, headers, time_ms) in enumerate(rows)
        if headers
        or not after < time_ms < before
        or (value is not None and len(value) > small)
        or (key is not None and len(key) > small)
    ]
    if limits.needs_key:
        special = sorted({*special, *(index for index, row in enumerate(rows) if row[0] is None)})
    if positions and isinstance(positions[0], bytes):
        positions = [position.decode() for position in positions]
    prepared = Prepared(rows, positions, rejects=list(write.rejects))
    if special:
        _examine(write, special, limits, prepared)
    return prepared


def _examine(write: Write, special: list[int], limits: Limits, prepared: Prepared) -> None:
    refused: set[int] = set()
    changed: dict[int, Row] = {}
    for index in special:
        key, value, headers, time_ms = write.rows[index]
        reason = _refusal(key, value, headers, limits)
        if reason:
            refused.add(index)
            prepared.rejects.append(Reject(write.positions[index], write.rows[index], reason, Shape.RECORD))
        elif not limits.time_after_ms < time_ms < limits.time_before_ms:
            changed[index] = (key, value, headers, limits.now_ms)
    if not refused and not changed:
        return
    rows: list[Row] = []
    positions: list[Any] = []
    for index, (row, position) in enumerate(zip(prepared.rows, prepared.positions, strict=True)):
        if index in refused:
            continue
        if index in changed:
            prepared.own_times[len(rows)] = row[3]
            row = changed[index]
        rows.append(row)
        positions.append(position)
    prepared.rows, prepared.positions = rows, positions


def _refusal(key: bytes | None, value: bytes | None, headers: Any, limits: Limits) -> str:
    """Why the target refuses a record, "" where it does not."""
    if key is None and limits.needs_key:
        return "the topic is compacted and takes no record without a key (`key_field` of the mapping gives it one)"
    size = _FIXED_BYTES + (len(key) if key is not None else 0) + (len(value) if value is not None else 0)
    for name, content in headers or ():
        try:
            encoded = name.encode()
        except UnicodeEncodeError:
            return f"the header name {_shown(name)} is not text (UTF-8)"
        if b"\0" in encoded:
            return f"the header name {_shown(name)} contains a NUL"
        size += len(encoded) + (len(content) if content is not None else 0) + _HEADER_OVERHEAD_BYTES
    if size > limits.size_bytes_max:
        most = limits.size_bytes_max
        return f"the record has {size} bytes, the topic takes {most} (max.message.bytes, or segment.bytes)"
    return ""


def _shown(name: str) -> str:
    """A header name for people: the reason must have room in a header of the quarantined record."""
    return repr(name[:80])


class QuarantineBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is kept of a refused record; `row` is as it was in the source, unless it is cut."""

    shape: str
    row: Any = None
    #: where the row was too large: its msgpack form, cut, with the digest and size of the whole
    cut: bytes = b""
    sha256: str = ""
    size_bytes: int = 0


def quarantine_body(reject: Reject, digest: Any) -> bytes:
    """The msgpack value of a quarantined record; `digest` is a hash constructor."""
    row = portable(reject.row)
    plain = msgspec.msgpack.encode(QuarantineBody(reject.shape.value, row))
    if len(plain) <= QUARANTINE_BODY_BYTES_MAX:
        return plain
    whole = msgspec.msgpack.encode(row)
    return msgspec.msgpack.encode(
        QuarantineBody(
            reject.shape.value,
            cut=whole[:QUARANTINE_BODY_BYTES_MAX],
            sha256=digest(whole).hexdigest(),
            size_bytes=len(whole),
        )
    )
