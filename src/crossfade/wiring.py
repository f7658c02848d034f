"""The only place where concrete classes meet: from a configuration to open brokers.

Adapters are imported when a broker of their kind is opened, so `crossfade --help` stays quick.
"""

from __future__ import annotations

import difflib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .brokers.protocol import Assignment, Board, From, Inspector, Log, Start
from .brokers.removal import Remover
from .config import Broker, Config, KafkaBroker, KafkaSide, RedisBroker, RedisSide, RouteSettings, Secret, Side
from .config.shape import LANE_MARK
from .errors import GuaranteeRefused, InvariantBroken, UsageError
from .model.mapping import Mapping, mapping_named
from .model.record import Lane, Shape
from .model.route import LaneMap, Route, make_route
from .relay.documents import RouteBoard
from .relay.pace import Limits
from .relay.service import ByHand

if TYPE_CHECKING:
    from .brokers.kafka.doctor import KafkaInspector
    from .brokers.kafka.log import KafkaLog
    from .brokers.kafka.settings import KafkaSettings
    from .brokers.redis.settings import RedisSettings


@dataclass(frozen=True)
class OpenRoute:
    """A route with its brokers connected."""

    route: Route
    source: Log
    target: Log
    mapping: Mapping
    board: RouteBoard
    start: Start
    limits: Limits
    #: lanes that came after the route was started: they are followed from their beginning
    new_lanes: tuple[Lane, ...]
    #: makes what hands out this route's lanes to this process
    assignment: Callable[[], Assignment]


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


def refuse_loop(config: Config, name: str) -> None:
    """Refuse a route whose copies would come back to its own source, unless a declared pair passes over its echoes.

    Raises GuaranteeRefused.
    """
    copies: dict[object, list[tuple[str, object]]] = {}
    for other, settings in config.routes.items():
        sides = config.streams[settings.stream].sides
        source, target = (settings.source, sides[settings.source]), (settings.target, sides[settings.target])
        copies.setdefault(source, []).append((other, target))
    settings = config.routes[name]
    home = (settings.source, config.streams[settings.stream].sides[settings.source])
    reached: list[tuple[list[str], object]] = [([other], end) for other, end in copies[home] if other == name]
    seen: set[str] = set()
    while reached:
        way, end = reached.pop()
        if end == home:
            hint = "let one of them write to other stream keys or another topic"
            if len(way) == 2 and _could_be_pair(config, *way):
                hint = f"add `reverse_of: {way[0]}` to route {way[1]}, so that each passes over what the other wrote"
            raise GuaranteeRefused(
                f"routes {' -> '.join(way)} copy in a circle: each record would come back and be copied again for ever",
                hint=hint,
            )
        if way[-1] not in seen:
            seen.add(way[-1])
            back = config.pair_of(way[-1])
            reached += [([*way, other], further) for other, further in copies.get(end, []) if other != back]


def _could_be_pair(config: Config, name: str, other: str) -> bool:
    mine, its = config.routes[name], config.routes[other]
    return (mine.stream, mine.source, mine.target) == (its.stream, its.target, its.source)


@asynccontextmanager
async def open_route(
    config: Config, name: str, *, shard: tuple[int, int] | None = None, instance: str = "crossfade"
) -> AsyncIterator[OpenRoute]:
    """Connect both brokers of a route and its board.

    Raises UsageError, GuaranteeRefused, Unreachable, AccessRefused.
    """
    settings = route_settings(config, name)
    refuse_loop(config, name)
    stream = config.streams[settings.stream]
    async with AsyncExitStack() as stack:
        board = _make_board(config.brokers[settings.target])
        stack.push_async_callback(board.close)
        routes_board = RouteBoard(board, settings.id)
        started = await routes_board.started()
        known = max(started, default=-1) + 1
        source = await _open_log(stack, config, settings, settings.source, known_lanes=known)
        target = await _open_log(stack, config, settings, settings.target, source.lanes)
        mapping = mapping_named(stream.mapping.name, **stream.mapping.options)
        route = make_route(
            id=settings.id,
            name=name,
            source_identity=source.identity,
            source_lanes=source.lanes,
            target_lanes=target.lanes,
            lane_map=LaneMap(settings.lanes),
            partitioner=stream.partitioner,
            mapping_digest=mapping.digest(),
            first_lanes=await routes_board.first_lanes(),
            pair=config.routes[pair].id if (pair := config.pair_of(name)) else "",
        )
        new_lanes = tuple(lane for lane in range(route.source_lanes) if started and lane not in started)
        yield OpenRoute(
            route=route,
            source=source,
            target=target,
            mapping=mapping,
            board=routes_board,
            new_lanes=new_lanes,
            start=Start(From(stream.from_.where), stream.from_.value),
            limits=_limits(settings, target.shape, has_gaps=stream.deleted == "count"),
            assignment=lambda: _make_assignment(
                config, settings, route, shard, instance, has_new_lanes=bool(new_lanes)
            ),
        )


@asynccontextmanager
async def open_board(config: Config, name: str) -> AsyncIterator[RouteBoard]:
    """The board of one route alone: what status, pause, resume and rate need."""
    settings = route_settings(config, name)
    board = _make_board(config.brokers[settings.target])
    try:
        yield RouteBoard(board, settings.id)
    finally:
        await board.close()


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
        from .brokers.kafka.log import KafkaLog

        if not isinstance(log, KafkaLog):
            raise InvariantBroken("a Kafka target is a KafkaLog")
        yield Split(log, settings.id, opened.route.source_lanes)


def fit_lanes(config: Config, name: str, source_lanes: int, target_lanes: int, first_lanes: int) -> Route:
    """The route as `open_route` would make it of so many lanes. Raises UsageError, RouteConflict where they do not fit.

    `first_lanes`: how many the source had when the route was first started, 0 = it never was.
    """
    settings = route_settings(config, name)
    return make_route(
        id=settings.id,
        name=name,
        source_identity="",
        source_lanes=source_lanes,
        target_lanes=target_lanes,
        lane_map=LaneMap(settings.lanes),
        partitioner=config.streams[settings.stream].partitioner,
        mapping_digest="",
        first_lanes=first_lanes,
    )


@asynccontextmanager
async def open_inspectors(
    config: Config, name: str, roles: tuple[str, ...] = ("source", "target"), source_lanes: int = 0
) -> AsyncIterator[list[tuple[str, str, Inspector]]]:
    """(broker name, role, inspector) of the brokers of a route, both unless `roles` says which.

    `source_lanes`, where known: so many lanes has a target whose stream keys are discovered.
    Raises UsageError, Unreachable, AccessRefused where lanes are to be discovered.
    """
    settings = route_settings(config, name)
    ends = {"source": settings.source, "target": settings.target}
    yield [
        (ends[role], role, await _open_inspector(config, settings, ends[role], source_lanes * (role == "target")))
        for role in roles
    ]


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
    for name in names:
        settings = route_settings(config, name)
        for broker, role in ((settings.source, "source"), (settings.target, "target")):
            side, at = config.streams[settings.stream].sides[broker], config.brokers[broker]
            if isinstance(at, RedisBroker):
                from .brokers.redis.rights import account_of, acl_line

                redis = _redis(at)
                at_service = (redis.mode, redis.sentinel_name, frozenset(redis.addresses))
                who: tuple[object, ...] = (*at_service, account_of(redis))
                roles = patterns.setdefault(who, {})
                roles[role] = roles.get(role, []) + _key_patterns(_redis_side(side))
                rights = found.setdefault(who, Rights([], [], []))
                # One line for all databases of the account: any but the first needs a right of its own.
                widest = databases[who] = max(redis, databases.get(who, redis), key=lambda each: each.db)
                rights.commands = [acl_line(widest, roles)]
            else:
                kafka = _kafka(at)
                rights = found.setdefault((kafka.bootstrap, kafka.principal), Rights([], [], []))
                lines = _kafka_inspector(config, settings, at, _kafka_side(side)).acls(role)
                rights.commands = list(dict.fromkeys([*rights.commands, *lines]))
            rights.brokers = list(dict.fromkeys([*rights.brokers, broker]))
            rights.uses.append((name, role))
    return list(found.values())


def _key_patterns(side: RedisSide) -> list[str]:
    from .brokers.redis.rights import key_patterns, numbered

    if side.is_discovered:
        return [numbered(*side.lanes.split(LANE_MARK))]
    return key_patterns([key.encode() for key in side.lane_keys])


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
        return _redis(at).may_be(_redis(other)) and _may_share(_redis_side(side), _redis_side(other_side))
    return at == other and side == other_side


def _may_share(one: RedisSide, other: RedisSide) -> bool:
    if not one.is_discovered and not other.is_discovered:
        return not set(one.lane_keys).isdisjoint(other.lane_keys)
    # A discovered key begins with what stands before its number.
    ones, others = (
        [side.lanes.partition(LANE_MARK)[0]] if side.is_discovered else side.lane_keys for side in (one, other)
    )
    return any(a.startswith(b) or b.startswith(a) for a in ones for b in others)


def remover_of(target: Log) -> Remover | None:
    """What removes single entries from an open target; None where its broker cannot."""
    if target.kind != "redis":
        return None
    from .brokers.redis.log import RedisLog
    from .brokers.redis.removal import RedisRemover

    return RedisRemover(target.nodes, target.stream_keys) if isinstance(target, RedisLog) else None


async def _open_log(
    stack: AsyncExitStack,
    config: Config,
    settings: RouteSettings,
    broker: str,
    source_lanes: int | None = None,
    known_lanes: int = 0,
) -> Log:
    """The stream of a route on one of its brokers, connected.

    `source_lanes` is given for a target. `known_lanes`: so many are there, whatever is found.
    """
    stream = config.streams[settings.stream]
    side, at = stream.sides[broker], config.brokers[broker]
    log: Log
    if isinstance(at, RedisBroker):
        from .brokers.redis.log import RedisLog

        redis = _redis_side(side)
        log = RedisLog(
            _redis(at),
            redis.first_keys(source_lanes or await _discovered(at, redis, known_lanes)),
            name=redis.name,
            route=settings.id,
            deleted=stream.deleted,
            key_of=redis.key_of if redis.is_discovered and source_lanes is None else None,
        )
    else:
        from .brokers.kafka.log import KafkaLog

        log = KafkaLog(
            _kafka(at),
            _kafka_side(side).topic,
            route=settings.id,
            source_lanes=source_lanes,
            allow_weak=settings.allow_weak,
        )
    stack.push_async_callback(log.close)
    await log.open()
    return log


async def _open_inspector(config: Config, settings: RouteSettings, broker: str, lanes: int) -> Inspector:
    """`lanes`: so many has a stream whose keys are discovered; 0 = look."""
    side, at = config.streams[settings.stream].sides[broker], config.brokers[broker]
    if isinstance(at, RedisBroker):
        from .brokers.redis.doctor import RedisInspector

        redis = _redis_side(side)
        inspector: Inspector = RedisInspector(_redis(at), redis.first_keys(lanes or await _discovered(at, redis, 0)))
    else:
        inspector = _kafka_inspector(config, settings, at, _kafka_side(side))
    return inspector


def _kafka_inspector(config: Config, settings: RouteSettings, at: KafkaBroker, side: KafkaSide) -> KafkaInspector:
    from .brokers.kafka.doctor import KafkaInspector

    # The group is in the target cluster; in the source's only where the target has none, see `_make_assignment`.
    has_group = at is config.brokers[settings.target] or not isinstance(config.brokers[settings.target], KafkaBroker)
    return KafkaInspector(_kafka(at), side.topic, settings.id, has_group=has_group)


async def _discovered(at: RedisBroker, side: RedisSide, known: int) -> int:
    """How many lanes a stream has whose count is not configured; 0 where it is. Raises UsageError, Unreachable."""
    if not side.is_discovered:
        return 0
    from .brokers.redis.discover import count_keys
    from .brokers.redis.nodes import Nodes

    nodes = Nodes(_redis(at))
    try:
        return await count_keys(nodes, side.key_of, known=known)
    finally:
        await nodes.close()


def _make_board(at: Broker) -> Board:
    if isinstance(at, RedisBroker):
        from .brokers.redis.board import RedisBoard

        return RedisBoard(_redis(at))
    from .brokers.kafka.board import KafkaBoard

    return KafkaBoard(_kafka(at))


def _make_assignment(
    config: Config,
    settings: RouteSettings,
    route: Route,
    shard: tuple[int, int] | None,
    instance: str,
    *,
    has_new_lanes: bool,
) -> Assignment:
    """Lanes by hand where asked; else a Kafka group in the target cluster, else in the source's, else Redis leases."""
    if shard is not None:
        return ByHand(route.source_lanes, shard)
    stream = config.streams[settings.stream]
    target, source = config.brokers[settings.target], config.brokers[settings.source]
    if isinstance(target, KafkaBroker):
        from .brokers.kafka.group import KafkaGroup

        return KafkaGroup(
            _kafka(target), route=route.id, lanes=route.source_lanes, instance=instance, has_new_lanes=has_new_lanes
        )
    if isinstance(source, KafkaBroker):
        from .brokers.kafka.group import KafkaGroup

        side = stream.sides[settings.source]
        return KafkaGroup(
            _kafka(source),
            route=route.id,
            lanes=route.source_lanes,
            instance=instance,
            topic=_kafka_side(side).topic,
            has_new_lanes=has_new_lanes,
        )
    from .brokers.redis.lease import RedisLease

    return RedisLease(_redis(target), route=route.id, lanes=route.source_lanes, instance=instance)


def _redis(at: RedisBroker) -> RedisSettings:
    from .brokers.redis.settings import RedisSettings, TlsSettings

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


def _kafka(at: KafkaBroker) -> KafkaSettings:
    from .brokers.kafka.settings import KafkaSettings

    return KafkaSettings(
        {name: value.get if isinstance(value, Secret) else value for name, value in at.properties.items()}
    )


def _redis_side(side: Side) -> RedisSide:
    if not isinstance(side, RedisSide):
        raise InvariantBroken("a Redis broker has the Redis side of a stream")
    return side


def _kafka_side(side: Side) -> KafkaSide:
    if not isinstance(side, KafkaSide):
        raise InvariantBroken("a Kafka broker has the Kafka side of a stream")
    return side


def _secret(value: Secret | None) -> Callable[[], str] | str:
    return value.get if value is not None else ""


#: a transaction costs the brokers something whatever its size, an append to Redis next to nothing
_BATCH_RECORDS = {Shape.RECORD: 48_000, Shape.ENTRY: 16_000}


def _limits(settings: RouteSettings, target: Shape, *, has_gaps: bool) -> Limits:
    return Limits(
        source_has_gaps=has_gaps,
        discover_s=settings.discover_s,
        batch_records_max=settings.batch_records or _BATCH_RECORDS[target],
        batch_size_bytes_max=settings.batch_size_bytes_max,
        commit_interval_s=settings.commit_interval_ms / 1000,
        quarantine_records_max=settings.quarantine_records_max,
        rate_records_per_s=settings.rate_records_per_s,
    )
