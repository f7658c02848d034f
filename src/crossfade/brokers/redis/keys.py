"""The names of our own keys, and the hash slots of all keys.

Hides how a name is built that lands in the same hash slot as the stream key it belongs to, so that one script may touch
both, on Redis Cluster too. Every key of ours starts with `crossfade:`.
"""

from __future__ import annotations

import binascii
import re
import uuid
from functools import lru_cache

from ...errors import UsageError

SLOTS = 16384
#: documents of the board
BOARD_KEY = b"crossfade:board"
#: the field of the board that is no document: the highest version that a removed one ever had
VERSIONS_FIELD = b"\0versions"
#: names of the empty consumer groups that tell a stream key from a re-created one: `crossfade.<route>.<random>`
BIRTH_PREFIX = "crossfade."
_BIRTH_DIGITS = 12
_BIRTH = re.compile(rf"{re.escape(BIRTH_PREFIX)}(.+\.)?[0-9a-f]{{{_BIRTH_DIGITS}}}", re.DOTALL)


def hash_tag(key: bytes) -> bytes:
    """The part of `key` that decides its slot: what stands in the first braces, else the whole key."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            return key[start + 1 : end]
    return key


@lru_cache(maxsize=65536)
def slot_of(key: bytes) -> int:
    """The Cluster hash slot of `key`."""
    return binascii.crc_hqx(hash_tag(key), 0) % SLOTS


def _beside(prefix: bytes, key: bytes) -> bytes:
    tag = hash_tag(key)
    rest = b"" if tag == key else b":" + key
    return prefix + b"{" + tag + b"}" + rest


def state_key(key: bytes) -> bytes:
    """The hash that keeps route, claims and markers of the target lane at `key`."""
    return _beside(b"crossfade:lane:", key)


def quarantine_key(key: bytes, route: str) -> bytes:
    """The stream that takes what the target lane at `key` refused."""
    return _beside(b"crossfade:quarantine:" + route.encode() + b":", key)


def lease_key(route: str) -> bytes:
    """The hash that says which process works on which lane of a route."""
    return b"crossfade:lease:" + route.encode()


def new_birth(route: str) -> str:
    """A name for a birth group of `route`; a group that several routes shared would go with the first of them."""
    return BIRTH_PREFIX + (f"{route}." if route else "") + uuid.uuid4().hex[:_BIRTH_DIGITS]


def is_birth(name: str) -> bool:
    """Whether it is a name as `new_birth` makes them; an application may have a group with our prefix too."""
    return _BIRTH.fullmatch(name) is not None


def route_of_birth(name: str) -> str:
    """The route that a birth group belongs to; "" = an earlier release made it, for every route that reads the key."""
    return name.removeprefix(BIRTH_PREFIX).rpartition(".")[0]


def check_slots(stream_keys: list[bytes]) -> None:
    """Refuse stream keys beside which no key of ours can live on a Cluster. Raises UsageError naming the first."""
    for key in stream_keys:
        if slot_of(state_key(key)) != slot_of(key):
            raise UsageError(
                f"no other key can share the hash slot of stream key {key.decode(errors='replace')!r}",
                hint="on Redis Cluster a stream key with `}` needs a hash tag, like `{a}b`; rename it",
            )
