"""The least rights that routes need on their brokers: for `crossfade doctor --print-acls`.

Hides which names of a broker are one account on one service. Invariant: one account has one entry, however many routes
it serves: pasted commands must not take away what others gave. Asks no broker. Called through `wiring`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config import Config, RedisBroker, RedisSide
from ..config.shape import LANE_MARK
from .inspectors import kafka_inspector
from .settings import kafka_settings, kafka_side, redis_settings, redis_side, route_settings

if TYPE_CHECKING:
    from ..brokers.redis.settings import RedisSettings


@dataclass
class Rights:
    """The least rights of one account on one service, as commands an administrator can paste."""

    brokers: list[str]
    #: what it is for: (route, role)
    uses: list[tuple[str, str]]
    commands: list[str]


def least_rights(config: Config, names: Sequence[str]) -> list[Rights]:
    """What these routes need, one for each account, however many routes it serves. Asks no broker."""
    found: dict[tuple[object, ...], Rights] = {}
    patterns: dict[tuple[object, ...], dict[str, list[str]]] = {}
    databases: dict[tuple[object, ...], RedisSettings] = {}
    waiting: set[tuple[object, ...]] = set()
    for name in names:
        settings = route_settings(config, name)
        for broker, role in ((settings.source, "source"), (settings.target, "target")):
            side, at = config.streams[settings.stream].sides[broker], config.brokers[broker]
            if isinstance(at, RedisBroker):
                from ..brokers.redis.rights import account_of, acl_line

                redis = redis_settings(at)
                at_service = (redis.mode, redis.sentinel_name, frozenset(redis.addresses))
                who: tuple[object, ...] = (*at_service, account_of(redis))
                roles = patterns.setdefault(who, {})
                roles[role] = roles.get(role, []) + _key_patterns(redis_side(side))
                rights = found.setdefault(who, Rights([], [], []))
                # One line for all databases of the account: any but the first needs a right of its own.
                widest = databases[who] = max(redis, databases.get(who, redis), key=lambda each: each.db)
                if role == "source" and at.read == "replicated":
                    waiting.add(who)
                rights.commands = [acl_line(widest, roles, replicated=who in waiting)]
            else:
                kafka = kafka_settings(at)
                rights = found.setdefault((kafka.bootstrap, kafka.principal), Rights([], [], []))
                lines = kafka_inspector(config, settings, at, kafka_side(side)).acls(role)
                rights.commands = list(dict.fromkeys([*rights.commands, *lines]))
            rights.brokers = list(dict.fromkeys([*rights.brokers, broker]))
            rights.uses.append((name, role))
    return list(found.values())


def _key_patterns(side: RedisSide) -> list[str]:
    from ..brokers.redis.rights import key_patterns, numbered

    if side.is_discovered:
        return [numbered(*side.lanes.split(LANE_MARK))]
    return key_patterns([key.encode() for key in side.lane_keys])
