"""Whether two routes read the same stream keys: what they have there together stays while one of them does.

Hides that a service has many names, and stream keys that are only found by looking. Asks no broker. Called by
`crossfade uninstall` through `wiring`.
"""

from __future__ import annotations

from ..config import Config, RedisBroker, RedisSide
from ..config.shape import LANE_MARK
from .settings import redis_settings, redis_side


def may_read_of(config: Config, reader: str, name: str, broker: str) -> bool:
    """Whether route `reader` reads a stream key that route `name` has on `broker`, by any of the service's names.

    True where stream keys are discovered and may be the same.
    """
    route = config.routes[reader]
    (at, side), (other, other_side) = (
        (config.brokers[on], config.streams[settings.stream].sides[on])
        for settings, on in ((config.routes[name], broker), (route, route.source))
    )
    if isinstance(at, RedisBroker) and isinstance(other, RedisBroker):
        return redis_settings(at).may_be(redis_settings(other)) and _may_share(redis_side(side), redis_side(other_side))
    return at == other and side == other_side


def _may_share(one: RedisSide, other: RedisSide) -> bool:
    if not one.is_discovered and not other.is_discovered:
        return not set(one.lane_keys).isdisjoint(other.lane_keys)
    # A discovered key begins with what stands before its number.
    ones, others = (
        [side.lanes.partition(LANE_MARK)[0]] if side.is_discovered else side.lane_keys for side in (one, other)
    )
    return any(a.startswith(b) or b.startswith(a) for a in ones for b in others)
