"""Which lane a key belongs to, by the rule that the application's own writers use.

Hides the hash functions and a bounded memory of keys already seen, so that a batch of keys costs a lookup each.
Invariant: the same name, key and lane count give the same lane everywhere and for ever; a rule is never guessed.
A record without a key has no lane of its own: it goes by the number of its source lane, so that a replay puts it
where it was. Called by the relay (N lanes to M), the auditor (keys on a wrong lane) and the lab (payloads).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

from ..errors import UsageError
from .record import Lane

#: keys remembered per rule and lane count; then the memory starts anew
KEYS_REMEMBERED_MAX = 65_536
#: longer keys are hashed each time instead of being remembered
KEY_REMEMBERED_BYTES_MAX = 256

_MASK = 0xFFFFFFFF


def murmur2(key: bytes) -> int:
    """Kafka's murmur2 of `key` (seed 0x9747b28c) as an unsigned 32-bit number; Java shows the same bits signed."""
    multiplier = 0x5BD1E995
    size = len(key)
    hashed = 0x9747B28C ^ size
    whole = size & ~3
    for at in range(0, whole, 4):
        word = (int.from_bytes(key[at : at + 4], "little") * multiplier) & _MASK
        word = ((word ^ (word >> 24)) * multiplier) & _MASK
        hashed = ((hashed * multiplier) & _MASK) ^ word
    if whole < size:
        hashed = ((hashed ^ int.from_bytes(key[whole:], "little")) * multiplier) & _MASK
    hashed = ((hashed ^ (hashed >> 13)) * multiplier) & _MASK
    return hashed ^ (hashed >> 15)


def murmur3(key: bytes) -> int:
    """MurmurHash3_x86_32 of `key` with seed 0, as an unsigned 32-bit number."""
    size = len(key)
    hashed = 0
    whole = size & ~3
    for at in range(0, whole, 4):
        hashed ^= _murmur3_word(int.from_bytes(key[at : at + 4], "little"))
        hashed = ((hashed << 13) | (hashed >> 19)) & _MASK
        hashed = (hashed * 5 + 0xE6546B64) & _MASK
    if whole < size:
        hashed ^= _murmur3_word(int.from_bytes(key[whole:], "little"))
    hashed ^= size
    hashed = ((hashed ^ (hashed >> 16)) * 0x85EBCA6B) & _MASK
    hashed = ((hashed ^ (hashed >> 13)) * 0xC2B2AE35) & _MASK
    return hashed ^ (hashed >> 16)


def _murmur3_word(word: int) -> int:
    word = (word * 0xCC9E2D51) & _MASK
    word = ((word << 15) | (word >> 17)) & _MASK
    return (word * 0x1B873593) & _MASK


def _murmur2_lane(key: bytes, lanes: int) -> Lane:
    """As Java's DefaultPartitioner: `toPositive` masks the sign away, it does not negate."""
    return (murmur2(key) & 0x7FFFFFFF) % lanes


def _murmur3_lane(key: bytes, lanes: int) -> Lane:
    """`Math.abs(murmur3(key)) % lanes` over the *signed* hash.

    The most negative hash, -2**31, is the one value that languages disagree on: JavaScript's `Math.abs`
    gives 2**31 and so a lane, Java's gives -2**31 again and so a negative lane that no writer can use
    (or 0, where the lane count is a power of two; 2**31 gives 0 there too). So the lane of 2**31 is taken.
    """
    hashed = murmur3(key)
    return (hashed if hashed <= 0x80000000 else 0x100000000 - hashed) % lanes


def _murmur3_unsigned_lane(key: bytes, lanes: int) -> Lane:
    """`murmur3(key) % lanes` over the *unsigned* hash: what `Math.abs` leaves where a library returns no sign."""
    return murmur3(key) % lanes


def _crc32_lane(key: bytes, lanes: int) -> Lane:
    """As librdkafka's `consistent`."""
    return zlib.crc32(key) % lanes


_RULES: dict[str, Callable[[bytes, int], Lane]] = {
    "murmur2": _murmur2_lane,
    "murmur3": _murmur3_lane,
    "murmur3-unsigned": _murmur3_unsigned_lane,
    "crc32": _crc32_lane,
}
#: names that `partition` knows
PARTITIONERS: tuple[str, ...] = tuple(_RULES)


class _Seen(dict[bytes, Lane]):
    """Lanes of keys already seen, bounded. A lookup of a new key computes it (`dict` calls `__missing__`)."""

    def __init__(self, rule: Callable[[bytes, int], Lane], lanes: int) -> None:
        super().__init__()
        self._rule = rule
        self._lanes = lanes

    def __missing__(self, key: bytes) -> Lane:
        lane = self._rule(key, self._lanes)
        if len(key) <= KEY_REMEMBERED_BYTES_MAX:
            # Starting anew costs a few hashes; keeping an order of use would cost every lookup.
            if len(self) >= KEYS_REMEMBERED_MAX:
                self.clear()
            self[key] = lane
        return lane


#: one memory per rule and lane count; both are configuration, so there are few
_SEEN: dict[tuple[str, int], _Seen] = {}


def _seen(name: str, lanes: int) -> _Seen:
    seen = _SEEN.get((name, lanes))
    if seen is None:
        rule = _RULES.get(name)
        if rule is None:
            raise UsageError(f"there is no partitioner named {name!r}", hint=f"name one of {', '.join(PARTITIONERS)}")
        if lanes < 1:
            raise UsageError(f"a stream cannot have {lanes} lanes", hint="name at least one lane")
        seen = _SEEN[name, lanes] = _Seen(rule, lanes)
    return seen


def partition(name: str, key: bytes | None, lanes: int, source_lane: Lane = 0) -> Lane:
    """Give the lane of `key` among `lanes`; without a key, `source_lane` decides.

    Raises UsageError for an unknown partitioner or fewer than one lane.
    """
    seen = _seen(name, lanes)
    return source_lane % lanes if key is None else seen[key]


def partition_many(name: str, keys: Sequence[bytes | None], lanes: int, source_lane: Lane = 0) -> list[Lane]:
    """Give the lane of every key, in order; keys that are None go by `source_lane`.

    Raises UsageError for an unknown partitioner or fewer than one lane.
    """
    seen = _seen(name, lanes)
    if None not in keys:
        return list(map(seen.__getitem__, keys))  # type: ignore[arg-type]
    keyless = source_lane % lanes
    return [keyless if key is None else seen[key] for key in keys]
