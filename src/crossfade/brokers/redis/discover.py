"""Which lanes a pattern of stream keys has: for streams whose number of lanes is not written down.

Lanes are the keys 0, 1, 2 ... of the pattern, without a hole. Hides that a hole can only be seen by looking beyond it:
so many keys further, no more. Called by `wiring` when a stream is opened, and by `log` while it is read.
What a route left is looked for on every lane that has anything, holes or not: see `count_left`.
"""

from __future__ import annotations

from collections.abc import Callable

from ...errors import UsageError
from .keys import state_key
from .nodes import Nodes, call_key
from .replies import check, code_of, is_error
from .settings import RedisSettings

#: how far beyond the first missing key others are looked for
BEYOND_AT_OPEN = 256
BEYOND_LATER = 16


async def count_keys(
    nodes: Nodes, key_of: Callable[[int], str], *, known: int = 0, beyond: int = BEYOND_AT_OPEN
) -> int:
    """How many lanes there are; the first `known` are taken for granted (a lane that is gone shows when it is read).

    Those that came behind `known` ones are told before any hole is: they can be followed. Raises UsageError where there
    are none, or naming the key that is missing before others, Unreachable, AccessRefused.
    """
    count = known
    while await _is_stream(nodes, key_of(count)):
        count += 1
    if count > known > 0:
        return count
    for later in range(count + 1, count + 1 + beyond):
        if await _is_stream(nodes, key_of(later)):
            raise UsageError(
                f"there is no stream {key_of(count)}, but {key_of(later)} is one: lanes are counted from 0 without a "
                "hole",
                hint=f"create {key_of(count)}, remove {key_of(later)}, or set `count` to a number",
            )
    if count == 0:
        raise UsageError(
            f"there is no stream {key_of(0)}, so no lane can be discovered",
            hint="let the application write first, or set `count` to a number",
        )
    return count


async def count_left(settings: RedisSettings, key_of: Callable[[int], str], *, known: int = 0) -> int:
    """How many lanes may hold something that a route left: `known`, and up to the last one that has anything.

    A target's lane that has no record yet has no stream key, but what the claim wrote beside it; and an application may
    have removed the source's stream keys. Raises Unreachable, AccessRefused.
    """
    nodes = Nodes(settings)
    try:
        count = lane = known
        while lane < count + BEYOND_AT_OPEN:
            key = key_of(lane)
            lane += 1
            if await _exists(nodes, key, state_key(key.encode())):
                count = lane
        return count
    finally:
        await nodes.close()


async def _is_stream(nodes: Nodes, key: str) -> bool:
    """Whether a stream is there: a key of another type is no lane, and must not end the copy of those that are."""
    name, doing = key.encode(), f"looking for {key}"
    (reply,) = await call_key(nodes, name, [("XINFO", "STREAM", name)], doing)
    if is_error(reply) and (code_of(reply) == "WRONGTYPE" or "no such key" in str(reply)):
        return False
    check(reply, doing)
    return True


async def _exists(nodes: Nodes, key: str, *beside: bytes) -> bool:
    """Whether there is such a key, or one of those beside it."""
    name, doing = key.encode(), f"looking for {key}"
    replies = await call_key(nodes, name, [("EXISTS", each) for each in (name, *beside)], doing)
    return any(check(reply, doing) for reply in replies)
