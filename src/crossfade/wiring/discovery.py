"""How many lanes a stream has whose stream keys are discovered.

Invariant: no connection outlives the question. Called by `wiring.opening` and `wiring.inspectors`.
"""

from __future__ import annotations

from ..config import RedisBroker, RedisSide
from .settings import redis_settings


async def discovered_lanes(at: RedisBroker, side: RedisSide, known: int) -> int:
    """How many lanes a stream has whose count is not configured; 0 where it is. Raises UsageError, Unreachable."""
    if not side.is_discovered:
        return 0
    from ..brokers.redis.discover import BEYOND_AT_OPEN, count_keys
    from ..brokers.redis.nodes import Nodes

    nodes = Nodes(redis_settings(at))
    try:
        # Behind lanes that are copied already a hole keeps nobody from opening: the relay tells it as it copies.
        return await count_keys(nodes, side.key_of, known=known, beyond=0 if known else BEYOND_AT_OPEN)
    finally:
        await nodes.close()
