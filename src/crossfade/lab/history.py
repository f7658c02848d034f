"""The history of a workload: what was sent, and what is known about each send (ok, fail, unknown).

A record is intended in the file *before* it is sent, so that a killed workload leaves its last sends as unknown and
never as records from nowhere. The file is append-only binary, about 25 bytes a record; a block cut by a crash is
dropped on reading. Written by `lab.workload`, read by `lab.checker`.
"""

from __future__ import annotations

import json
import os
import re
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from .errors import LabUsage

_MAGIC = b"crossfade-history 1 "
_INTENT = struct.Struct("<cQI")  # tag, first id, count; then lanes (H), digests (I)
_OUTCOME = struct.Struct("<cQII")  # tag, first id, count, size; then positions joined by spaces
#: in place of a position: the broker refused the record; nobody knows
FAILED, UNKNOWN = b"-", b"?"

_ID = re.compile(rb'\{"id":"(\d{16})"')

_OTHER_FILE = "name a file that is not there yet, or the history of an earlier workload"

NOT_SENT, OK, FAIL, INFO = 0, 1, 2, 3


def digest_of(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]] | None = None) -> int:
    """32 bits over a record; equal for a record and the Redis entry `key`, key, `value`, value."""
    if not headers and key is not None and value is not None:
        return crc32(value, crc32(key))
    parts = [key, value]
    for name, header in headers or ():
        parts += [name.encode(), header]
    return crc32(b"".join(b"~" if part is None else b"%d:%b" % (len(part), part) for part in parts))


def digest_of_entry(fields: Sequence[bytes]) -> int:
    """32 bits over an entry's fields, order and repeats included."""
    if len(fields) == 4 and fields[0] == b"key" and fields[2] == b"value":
        return crc32(fields[3], crc32(fields[1]))
    return crc32(b"".join(b"%d:%b" % (len(part), part) for part in fields))


def id_in(data: bytes) -> int | None:
    """The record id that the workload put into a value (or into joined fields); None = not of this workload."""
    found = _ID.search(data)
    return int(found[1]) if found else None


@dataclass(slots=True)
class Sent:
    """A history in memory: column arrays indexed by record id, 24 bytes a record."""

    header: dict[str, object]
    status: bytearray
    lane: array[int]
    digest: array[int]
    #: of ok sends: Redis `<major>-<minor>`, Kafka offset and 0
    major: array[int]
    minor: array[int]

    def __len__(self) -> int:
        return len(self.status)

    def count(self, status: int) -> int:
        """How many sends ended as OK, FAIL or INFO."""
        return self.status.count(status)


class HistoryWriter:
    """Appends to a history file; every block reaches the kernel before `intend` or `settle` returns."""

    def __init__(self, path: Path, header: dict[str, object]) -> None:
        """Raises LabUsage for a place that cannot be written, and for a file that is no history."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            known = _scan_end(path) if path.exists() else 0
            self._file = open(path, "r+b" if known else "wb", buffering=0)  # noqa: SIM115
            if known:
                self._file.truncate(known)  # a block that a crash cut in half
                self._file.seek(0, os.SEEK_END)
            else:
                self._file.write(_MAGIC + json.dumps(header).encode() + b"\n")
        except OSError as error:
            raise LabUsage(f"cannot write the history {path}: {error.strerror}", hint=_OTHER_FILE) from None

    def intend(self, first: int, lanes: array[int], digests: array[int]) -> None:
        """Say that records `first`, `first` + 1 ... are about to be sent."""
        self._file.write(_INTENT.pack(b"I", first, len(lanes)) + lanes.tobytes() + digests.tobytes())

    def settle(self, first: int, positions: Sequence[bytes]) -> None:
        """Say what became of them: a position, FAILED or UNKNOWN each."""
        blob = b" ".join(positions)
        self._file.write(_OUTCOME.pack(b"R", first, len(positions), len(blob)) + blob)

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def read_history(path: Path) -> Sent:
    """The whole history; sends without an outcome are INFO (unknown).  Raises LabUsage for what is no history."""
    data = _read(path)
    try:
        header = json.loads(data[len(_MAGIC) : data.index(b"\n")])
        sent = Sent(header, bytearray(), array("H"), array("I"), array("Q"), array("Q"))
        for tag, first, count, body in _blocks(data):
            if tag == b"I":
                _take_intent(sent, first, count, body)
            else:
                _take_outcome(sent, first, body)
    except (ValueError, IndexError, OverflowError, MemoryError) as error:
        raise LabUsage(f"the history {path} is damaged: {error}", hint=_OTHER_FILE) from None
    return sent


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise LabUsage(f"cannot read the history {path}: {error.strerror}", hint=_OTHER_FILE) from None
    if data and not data.startswith(_MAGIC):
        raise LabUsage(f"{path} is no history of a workload", hint=_OTHER_FILE)
    return data


def _take_intent(sent: Sent, first: int, count: int, body: memoryview) -> None:
    lanes, digests = array("H"), array("I")
    lanes.frombytes(body[: 2 * count])
    digests.frombytes(body[2 * count :])
    gap = first - len(sent)
    if gap > 0:  # ids that were never used
        sent.status += bytes(gap)
        for column in (sent.lane, sent.digest, sent.major, sent.minor):
            column.frombytes(bytes(gap * column.itemsize))
    sent.status += bytes([INFO]) * count
    sent.lane += lanes
    sent.digest += digests
    for column in (sent.major, sent.minor):
        column.frombytes(bytes(count * column.itemsize))


def _take_outcome(sent: Sent, first: int, body: memoryview) -> None:
    status, major, minor = sent.status, sent.major, sent.minor
    for id, position in enumerate(bytes(body).split(b" "), first):
        if position == UNKNOWN:
            continue
        if position == FAILED:
            status[id] = FAIL
            continue
        left, _, right = position.partition(b"-")
        status[id], major[id], minor[id] = OK, int(left), int(right or 0)


def _blocks(data: bytes) -> Iterator[tuple[bytes, int, int, memoryview]]:
    """(tag, first id, count, body) of every whole block."""
    view, at = memoryview(data), data.index(b"\n") + 1
    while at < len(data):
        tag = data[at : at + 1]
        form = _INTENT if tag == b"I" else _OUTCOME
        if at + form.size > len(data):
            return
        _, first, count, *rest = form.unpack_from(data, at)
        at += form.size
        size = rest[0] if rest else 6 * count
        if at + size > len(data):
            return
        yield tag, first, count, view[at : at + size]
        at += size


def _scan_end(path: Path) -> int:
    """Where the last whole block ends; 0 = no history yet."""
    data = _read(path)
    if b"\n" not in data:
        return 0
    end = data.index(b"\n") + 1
    for tag, _, _, body in _blocks(data):
        end += (_INTENT if tag == b"I" else _OUTCOME).size + len(body)
    return end
