"""What looks at the brokers of a route, without opening it: for `crossfade doctor` and `crossfade uninstall`.

Hides that the Kafka of a route may hold its group though it is not the target. Called through `wiring`, and by
`wiring.rights`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ..brokers.protocol import Inspector
from ..config import Config, KafkaBroker, KafkaSide, RedisBroker, RedisSide, RouteSettings
from .discovery import discovered_lanes
from .settings import kafka_settings, kafka_side, redis_settings, redis_side, route_settings

if TYPE_CHECKING:
    from ..brokers.kafka.doctor import KafkaInspector


@asynccontextmanager
async def open_inspectors(
    config: Config,
    name: str,
    roles: tuple[str, ...] = ("source", "target"),
    source_lanes: int = 0,
    *,
    known_lanes: int | None = None,
) -> AsyncIterator[list[tuple[str, str, Inspector]]]:
    """(broker name, role, inspector) of the brokers of a route, both unless `roles` says which.

    `source_lanes`, where known: so many lanes has a target whose stream keys are discovered.
    `known_lanes`, for what is left of a route: it had so many at least; stream keys that are missing are no error then.
    Raises UsageError, Unreachable, AccessRefused where lanes are to be discovered.
    """
    settings = route_settings(config, name)
    ends = {"source": settings.source, "target": settings.target}
    yield [
        (
            ends[role],
            role,
            await _open_inspector(config, settings, ends[role], source_lanes * (role == "target"), known_lanes),
        )
        for role in roles
    ]


async def _open_inspector(
    config: Config, settings: RouteSettings, broker: str, lanes: int, known_lanes: int | None
) -> Inspector:
    """`lanes`: so many has a stream whose keys are discovered; 0 = look. `known_lanes`: see `open_inspectors`."""
    side, at = config.streams[settings.stream].sides[broker], config.brokers[broker]
    if isinstance(at, RedisBroker):
        from ..brokers.redis.doctor import RedisInspector

        redis = redis_side(side)
        inspector: Inspector = RedisInspector(
            redis_settings(at),
            redis.first_keys(lanes or await _count_lanes(at, redis, known_lanes)),
            read=at.read,
            memory_bytes_max=at.memory_bytes_max,
        )
    else:
        inspector = kafka_inspector(config, settings, at, kafka_side(side))
    return inspector


async def _count_lanes(at: RedisBroker, side: RedisSide, known_lanes: int | None) -> int:
    """How many lanes a stream has whose keys are discovered; 0 where their number is configured."""
    if known_lanes is None or not side.is_discovered:
        return await discovered_lanes(at, side, 0)
    from ..brokers.redis.discover import count_left

    return await count_left(redis_settings(at), side.key_of, known=known_lanes)


def kafka_inspector(config: Config, settings: RouteSettings, at: KafkaBroker, side: KafkaSide) -> KafkaInspector:
    """What looks at one of the Kafka clusters of a route; it asks nothing yet."""
    from ..brokers.kafka.doctor import KafkaInspector

    # The group is in the target cluster; in the source's only where the target has none, see `wiring.opening`.
    has_group = at is config.brokers[settings.target] or not isinstance(config.brokers[settings.target], KafkaBroker)
    return KafkaInspector(kafka_settings(at), side.topic, settings.id, has_group=has_group)
