"""Whether two ends of routes may be one stream under two names, as far as the file tells.

Hides the forms of an address, and which stream keys a pattern can name. Asks no broker: that two addresses lead to one
server is found when a route is opened, see `wiring.opening`. Called by `circles`, and by `crossfade uninstall`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from .addresses import KAFKA_ADDRESSES
from .secret import Secret
from .shape import LANE_MARK, Broker, Config, KafkaBroker, KafkaSide, RedisBroker, RedisSide, Side

_SERVER = re.compile(r"(?:\w+://)?(?:\[([^\]]+)\]|([^:/]*))(?::(\d+))?(?:/.*)?")
_REDIS_PORT, _SENTINEL_PORT = 6379, 26379
_THIS_HOST = frozenset({"localhost", "127.0.0.1", "::1"})


class End(NamedTuple):
    """One side of a stream, and the broker that keeps it."""

    at: Broker
    side: Side


def may_meet(one: End, other: End) -> bool:
    """Whether what is written at one end may be read at the other. Raises UsageError for a secret that went away."""
    match one, other:
        case (RedisBroker() as redis, RedisSide() as keys), (RedisBroker() as its_redis, RedisSide() as its_keys):
            return _is_one_redis(redis, its_redis) and _share_a_key(keys, its_keys)
        case (KafkaBroker() as kafka, KafkaSide() as topic), (KafkaBroker() as its_kafka, KafkaSide() as its_topic):
            return topic == its_topic and not _kafka_servers(kafka).isdisjoint(_kafka_servers(its_kafka))
    return False


def may_read_of(config: Config, reader: str, name: str, broker: str) -> bool:
    """Whether route `reader` may read what route `name` has on `broker`: what they share stays while one of them does.

    Raises UsageError for a secret that went away.
    """
    route = config.routes[reader]
    one, other = (
        End(config.brokers[on], config.streams[settings.stream].sides[on])
        for settings, on in ((config.routes[name], broker), (route, route.source))
    )
    if _has_name_of_master(one.at, other.at):
        # Unlike for circles the name is enough here: what was removed and is needed is worse than what stays.
        other = End(one.at, other.side)
    return may_meet(one, other)


def _has_name_of_master(one: Broker, other: Broker) -> bool:
    """Whether both are the same database of a Sentinel's master of one name, wherever its Sentinels are."""
    if not (isinstance(one, RedisBroker) and isinstance(other, RedisBroker) and _database(one) == _database(other)):
        return False
    return one.sentinel_master == other.sentinel_master != ""


def _is_one_redis(one: RedisBroker, other: RedisBroker) -> bool:
    """Whether both are the same database of one service.

    The name of a Sentinel's master is not enough: services of several sites often have the same.
    """
    if _database(one) != _database(other):
        return False
    if one.server_id and one.server_id == other.server_id:
        return True
    return one.sentinel_master == other.sentinel_master and not _redis_servers(one).isdisjoint(_redis_servers(other))


def _database(at: RedisBroker) -> int:
    return 0 if at.url.startswith("unix:") else int(at.url.partition("://")[2].partition("/")[2] or 0)


def _redis_servers(at: RedisBroker) -> set[tuple[str, int]]:
    if at.url.startswith("unix:"):
        return {(at.url, 0)}
    port = _SENTINEL_PORT if at.mode == "sentinel" else _REDIS_PORT
    return {_server(url, port) for url in at.urls}


def _kafka_servers(at: KafkaBroker) -> set[tuple[str, int]]:
    values = [value for name, value in at.properties.items() if name in KAFKA_ADDRESSES]
    texts = [value.get() if isinstance(value, Secret) else value for value in values]
    return {_server(server.strip()) for text in texts for server in text.split(",") if server.strip()}


def _server(text: str, port: int = 0) -> tuple[str, int]:
    """Host and port of an address, in one form for all names of this host; `port`: where it has none."""
    found = _SERVER.fullmatch(text)
    if found is None:  # of a form that the reader does not let pass: it is only itself
        return text, port
    host = (found[1] or found[2]).lower()
    return ("localhost" if host in _THIS_HOST else host), int(found[3] or port)


def _share_a_key(one: RedisSide, other: RedisSide) -> bool:
    """Whether a stream key is in both; where they are discovered, whether one that may come is."""
    if one.is_discovered and other.is_discovered:
        (before, behind), (its_before, its_behind) = (side.lanes.split(LANE_MARK) for side in (one, other))
        return _begins_alike(before, its_before) and _begins_alike(behind[::-1], its_behind[::-1])
    if other.is_discovered:
        one, other = other, one
    if one.is_discovered:
        before, behind = map(re.escape, one.lanes.split(LANE_MARK))
        return any(re.fullmatch(f"{before}[0-9]+{behind}", key) for key in other.lane_keys)
    return not set(one.lane_keys).isdisjoint(other.lane_keys)


def _begins_alike(one: str, other: str) -> bool:
    """Whether what one text has more than the other may belong to a number."""
    short, long = sorted((one, other), key=len)
    return long.startswith(short) and re.fullmatch("[0-9]*", long[len(short) :]) is not None
