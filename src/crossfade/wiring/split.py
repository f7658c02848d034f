"""A route that is split by hand over shards, on its Kafka target: for `crossfade relay reshard`.

Hides where the number of shards is kept. Called through `wiring`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ..config import Config, KafkaBroker
from ..errors import InvariantBroken, UsageError
from .opening import open_route
from .settings import route_settings

if TYPE_CHECKING:
    from ..brokers.kafka.log import KafkaLog


class Split:
    """How a route is split by hand, on its Kafka target."""

    def __init__(self, log: KafkaLog, route: str, lanes: int) -> None:
        self._log, self._route = log, route
        self.lanes = lanes

    async def shards(self) -> int:
        """Into how many shards; 0 = none was ever run."""
        return (await self._log.split(self._route))[0]

    async def is_unfinished(self) -> bool:
        """A change was cut short: writers of an earlier split may not be fenced."""
        return bool((await self._log.split(self._route))[1])

    async def reshard(self, count: int) -> None:
        """Publish the new number, then fence the writers of the old one. Raises Unreachable, AccessRefused."""
        await self._log.reshard(self._route, count)


@asynccontextmanager
async def open_split(config: Config, name: str) -> AsyncIterator[Split]:
    """What `relay reshard` needs of a route. Raises UsageError where its target is no Kafka, Unreachable."""
    settings = route_settings(config, name)
    if not isinstance(config.brokers[settings.target], KafkaBroker):
        raise UsageError(
            f"route {name!r} writes to Redis, where shards need no change of their own",
            hint="stop all its processes, then start them with the new --shard i/n: each claim fences its lanes",
        )
    async with open_route(config, name, instance="reshard") as opened:
        log: object = opened.target
        from ..brokers.kafka.log import KafkaLog

        if not isinstance(log, KafkaLog):
            raise InvariantBroken("a Kafka target is a KafkaLog")
        yield Split(log, settings.id, opened.route.source_lanes)
