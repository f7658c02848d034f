"""From what the file says to what the adapters and the relay take.

Hides how secrets are handed on unread, and that each broker kind has its own side of a stream. Invariant: nothing here
asks a broker. Called by the other modules of `wiring`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..config import Config, KafkaBroker, KafkaSide, RedisBroker, RedisSide, RouteSettings, Secret, Side
from ..errors import InvariantBroken, UsageError
from ..model.record import Shape
from ..relay.pace import Limits

if TYPE_CHECKING:
    from ..brokers.kafka.settings import KafkaSettings
    from ..brokers.redis.settings import RedisSettings


def unknown_route(config: Config, name: str) -> UsageError:
    """The error for a route that the file does not have, with the nearest name."""
    near = difflib.get_close_matches(name, list(config.routes), 1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(config.routes) or 'none'}"
    return UsageError(f"{config.path} has no route {name!r}", hint=hint)


def route_settings(config: Config, name: str) -> RouteSettings:
    """The settings of one route. Raises UsageError with the nearest name."""
    if name not in config.routes:
        raise unknown_route(config, name)
    return config.routes[name]


def redis_settings(at: RedisBroker) -> RedisSettings:
    """What the Redis adapter takes; its passwords are read when it connects."""
    from ..brokers.redis.settings import RedisSettings, TlsSettings

    return RedisSettings.from_urls(
        at.urls,
        mode=at.mode,
        sentinel_name=at.sentinel_master,
        username=at.username,
        password=_secret(at.password),
        sentinel_username=at.sentinel_username,
        sentinel_password=_secret(at.sentinel_password),
        tls=TlsSettings(at.tls.ca, at.tls.cert, at.tls.key, at.tls.verify) if at.tls else None,
        request_timeout_s=at.request_timeout_s,
        server_id=at.server_id,
    )


def kafka_settings(at: KafkaBroker) -> KafkaSettings:
    """What the Kafka adapter takes; its secrets are read when it connects."""
    from ..brokers.kafka.settings import KafkaSettings

    return KafkaSettings(
        {name: value.get if isinstance(value, Secret) else value for name, value in at.properties.items()}
    )


def _secret(value: Secret | None) -> Callable[[], str] | str:
    return value.get if value is not None else ""


def redis_side(side: Side) -> RedisSide:
    """The side of a stream that a Redis broker has."""
    if not isinstance(side, RedisSide):
        raise InvariantBroken("a Redis broker has the Redis side of a stream")
    return side


def kafka_side(side: Side) -> KafkaSide:
    """The side of a stream that a Kafka broker has."""
    if not isinstance(side, KafkaSide):
        raise InvariantBroken("a Kafka broker has the Kafka side of a stream")
    return side


#: a transaction costs the brokers something whatever its size, an append to Redis next to nothing
_BATCH_RECORDS = {Shape.RECORD: 48_000, Shape.ENTRY: 16_000}


def limits_of(settings: RouteSettings, target: Shape, *, has_gaps: bool) -> Limits:
    """What the relay of a route keeps to; `target`: the shape of what it writes."""
    return Limits(
        source_has_gaps=has_gaps,
        discover_s=settings.discover_s,
        batch_records_max=settings.batch_records or _BATCH_RECORDS[target],
        batch_size_bytes_max=settings.batch_size_bytes_max,
        commit_interval_s=settings.commit_interval_ms / 1000,
        quarantine_records_max=settings.quarantine_records_max,
        rate_records_per_s=settings.rate_records_per_s,
    )
