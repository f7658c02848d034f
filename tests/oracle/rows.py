"""What both sides are brought to before they are compared, and the columns that are kept of it.

A row is a Redis entry's field list, or a Kafka record seen as one: `key`, `value`, `header:<name>`,
`header-null:<name>`, or, where the value is a packed entry, the fields in it. The `xf` mark of the copier is taken off;
where it carries `t=`, that is the record's own time. Written from the documentation of the format, not from its code.
"""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass, field

PACKED = b"\xffxf-entry;1;"
MARK = re.compile(rb"1;[a-z0-9-]{1,63}/\d+@\d+(?:-\d+)?#\d+;\d+((?:;[a-z]+=[^;]*)*)")
OWN_TIME = re.compile(rb";t=(-?\d+)(?:;|$)")


@dataclass
class Lane:
    """One lane as read: position (two ints), content (64 bits, fields only), time, the workload's id (-1 = none)."""

    major: array[int] = field(default_factory=lambda: array("Q"))
    minor: array[int] = field(default_factory=lambda: array("Q"))
    content: array[int] = field(default_factory=lambda: array("q"))
    time_ms: array[int] = field(default_factory=lambda: array("q"))
    id: array[int] = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return len(self.content)

    def add(self, major: int, minor: int, fields: tuple[bytes, ...], time_ms: int) -> None:
        self.major.append(major)
        self.minor.append(minor)
        self.content.append(hash(fields))
        self.time_ms.append(time_ms)
        self.id.append(workload_id(fields))


def workload_id(fields: tuple[bytes, ...]) -> int:
    """The id that the workload wrote into one of the fields; -1 = none."""
    for part in reversed(fields):
        if part.startswith(b'{"id":"') and part[7:23].isdigit():
            return int(part[7:23])
    return -1


def _mark_time(mark: bytes) -> tuple[bool, int | None]:
    """(is it a mark of the copier, the own time it carries)."""
    match = MARK.fullmatch(mark)
    if match is None:
        return False, None
    time = OWN_TIME.search(match[1])
    return True, int(time[1]) if time else None


def entry_row(fields: list[bytes], id_ms: int) -> tuple[tuple[bytes, ...], int]:
    """Fields without marks, and the record's own time."""
    if b"xf" not in fields:
        return tuple(fields), id_ms
    kept: list[bytes] = []
    marks: list[tuple[bytes, int | None]] = []
    for name, value in zip(fields[::2], fields[1::2], strict=True):
        is_mark, own = _mark_time(value) if name == b"xf" else (False, None)
        if is_mark:
            marks.append((value, own))
        else:
            kept += (name, value)
    if not kept and marks:
        kept = [b"xf", marks.pop(0)[0]]  # an entry is never empty: the first mark was the application's
    for _, own in marks:
        id_ms = id_ms if own is None else own
    return tuple(kept), id_ms


def record_row(
    key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]], time_ms: int
) -> tuple[tuple[bytes, ...], int]:
    """A Kafka record as fields without marks, and its own time."""
    kept: list[tuple[str, bytes | None]] = []
    for name, content in headers:
        is_mark, own = _mark_time(content) if name == "xf" and content is not None else (False, None)
        if not is_mark:
            kept.append((name, content))
        elif own is not None:
            time_ms = own
    if not kept and value is not None:
        if key is not None and not value.startswith(PACKED):
            return (b"key", key, b"value", value), time_ms
        unpacked = _unpack(value)
        if unpacked is not None:
            return unpacked, time_ms
    fields: list[bytes] = []
    if key is not None:
        fields += (b"key", key)
    if value is not None:
        fields += (b"value", value)
    for name, content in kept:
        if content is None:
            fields += (b"header-null:" + name.encode(), b"")
        else:
            fields += (b"header:" + name.encode(), content)
    return tuple(fields) or (b"tombstone", b""), time_ms


def _unpack(value: bytes) -> tuple[bytes, ...] | None:
    if not value.startswith(PACKED):
        return None
    fields: list[bytes] = []
    at = len(PACKED)
    while at < len(value):
        size = int.from_bytes(value[at : at + 4], "big")
        fields.append(value[at + 4 : at + 4 + size])
        at += 4 + size
    return tuple(fields) if at == len(value) and fields and len(fields) % 2 == 0 else None
