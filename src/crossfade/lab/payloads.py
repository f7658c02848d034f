"""The records of the workload: a function of seed and id, so that nothing has to be kept to make or know one again.

Values carry their id, are unique, and LZ4 halves them; the `mixed` shapes are what other software writes. Called by
`senders`; benchmarks take their data from here too.
"""

from __future__ import annotations

import random

from ..model.partitioner import partition_many

_HEAD, _TAIL = b'{"id":"', b'"}'


class Values:
    """Makes the records: 512-byte texts that LZ4 halves, a few thousand keys, all a function of seed and id."""

    def __init__(self, *, seed: int, keys: int, lanes: int, value_bytes: int) -> None:
        rng = random.Random(seed)
        self.keys = [b"user-%06d" % number for number in range(keys)]
        self.lane_of = partition_many("murmur2", self.keys, lanes)
        self._body = max(0, value_bytes - len(_HEAD) - 16 - len(b'","body":"') - len(_TAIL))
        self._text = _half_compressible_text(rng, 1 << 21)
        self._span = len(self._text) - self._body

    def key_index(self, id: int) -> int:
        """Which key record `id` has: spread evenly, neighbours differ."""
        return (id * 2654435761 >> 7) % len(self.keys)

    def value(self, id: int) -> bytes:
        """The value of record `id`."""
        at = id * 40503 % self._span
        return b'{"id":"%016d","body":"%b"}' % (id, self._text[at : at + self._body])


def _half_compressible_text(rng: random.Random, size_bytes: int) -> bytes:
    letters = "abcdefghijklmnopqrstuvwxyz"
    noise = letters + letters.upper() + "0123456789+-"
    words = ["".join(rng.choices(letters, k=rng.randint(4, 10))) for _ in range(400)]
    parts: list[str] = []
    size = 0
    while size < size_bytes:
        part = "".join(rng.choices(noise, k=20)) if rng.random() < 0.18 else " ".join(rng.choices(words, k=3))
        parts.append(part)
        size += len(part) + 1
    return " ".join(parts)[:size_bytes].encode()


def mixed_entry(id: int, key: bytes, value: bytes) -> list[bytes]:
    """Fields as other software writes them: the canonical form is one shape of eight."""
    tag = b'{"id":"%016d"}' % id
    shapes: list[list[bytes]] = [
        [b"key", key, b"value", value],
        [b"user", key, b"amount", b"12.50", b"note", value, b"at", b"1700000000"],
        [b"tag", b"a", b"tag", b"b", b"tag", b"a", b"id", tag],
        [b"\xff\x00bin", bytes(range(256)), b"id", tag, b"\r\n", b"$-1\r\n"],
        [b"", b"", b"empty", b"", b"id", tag, b"", b"again"],
        [b"value", value, b"key", key],
        [b"key", key, b"value", value, b"trace", b"00-4bf92f3577b34da6"],
        [b"body", value],
    ]
    return shapes[id % len(shapes)]


def mixed_record(
    id: int, key: bytes, value: bytes
) -> tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]] | None]:
    """Key, value, headers as other software writes them: nulls, tombstones, repeated and binary headers."""
    tag = b'{"id":"%016d"}' % id
    shapes: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes | None]] | None]] = [
        (key, value, None),
        (key, value, [("trace", b"00-4bf92f3577b34da6")]),
        (key, value, [("a", b"1"), ("b", b"2"), ("a", b"1"), ("none", None), ("", b"")]),
        (bytes(range(256)), tag + bytes(range(256)), None),
        (key, b"", [("id", tag)]),
        (key, None, [("id", tag)]),
        (None, value, None),
        (b"", value, [("größe", "ü".encode())]),
    ]
    return shapes[id % len(shapes)]
