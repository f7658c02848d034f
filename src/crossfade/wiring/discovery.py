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
    from ..brokers.redis.discover import count_keys
    from ..brokers.redis.nodes import Nodes

    nodes = Nodes(redis_settings(at))
    try:
        return await count_keys(nodes, side.key_of, known=known)
    finally:
        await nodes.close()
