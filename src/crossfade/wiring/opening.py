"""A route with its brokers connected, or its board alone.

Hides which adapter stands for which broker, and who hands out the lanes. Invariant: a route that would copy in a
circle, or whose lanes do not fit, is refused before anything is written. Called by the commands through `wiring`, and
by `wiring.split`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..brokers.protocol import Assignment, Board, From, Log, Start
from ..brokers.removal import Remover
from ..config import Broker, Config, KafkaBroker, RedisBroker, RouteSettings
from ..config.circles import copies_into_itself, refuse_loop
from ..model.mapping import Mapping, mapping_named
from ..model.record import Lane
from ..model.route import LaneMap, Route, make_route
from ..relay.documents import RouteBoard
from ..relay.pace import Limits
from .discovery import discovered_lanes
from .settings import kafka_settings, kafka_side, limits_of, redis_settings, redis_side, route_settings

if TYPE_CHECKING:
    from ..brokers.redis.log import RedisLog


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
    #: these, and those that were followed and that no process has owned yet
    unowned: frozenset[Lane]
    #: makes what hands out this route's lanes to this process
    assignment: Callable[[], Assignment]


@asynccontextmanager
async def open_route(
    config: Config,
    name: str,
    *,
    shard: tuple[int, int] | None = None,
    instance: str = "crossfade",
    copies: bool = True,
) -> AsyncIterator[OpenRoute]:
    """Connect both brokers of a route and its board.

    `copies`: False = it is only compared, which writes nothing and so cannot wait for replicas of the source.
    Raises UsageError, GuaranteeRefused, Unreachable, AccessRefused.
    """
    settings = route_settings(config, name)
    refuse_loop(config, name)
    stream = config.streams[settings.stream]
    async with AsyncExitStack() as stack:
        board = _make_board(config.brokers[settings.target])
        stack.push_async_callback(board.close)
        routes_board = RouteBoard(board, settings.id)
        started = await routes_board.known()  # a lane that waits for its start came no later than the others
        known = max(started, default=-1) + 1
        source = await _open_log(stack, config, settings, settings.source, known_lanes=known, copies=copies)
        pair = config.pair_of(name)
        target = await _open_log(
            stack, config, settings, settings.target, source.lanes, copies=copies, is_paired=bool(pair)
        )
        if await _are_one(source, target):
            raise copies_into_itself(name)
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
            pair=config.routes[pair].id if pair else "",
        )
        if copies and not started:
            _refuse_crowded(config, settings, route)
        new_lanes = tuple(lane for lane in range(route.source_lanes) if started and lane not in started)
        unowned = frozenset(new_lanes) | await routes_board.unowned()
        yield OpenRoute(
            route=route,
            source=source,
            target=target,
            mapping=mapping,
            board=routes_board,
            new_lanes=new_lanes,
            unowned=unowned,
            start=Start(From(stream.from_.where), stream.from_.value),
            limits=limits_of(
                settings,
                target.shape,
                has_gaps=stream.deleted == "count" or (bool(route.pair) and await _is_compacted(source)),
            ),
            assignment=lambda: _make_assignment(config, settings, route, shard, instance, has_new_lanes=bool(unowned)),
        )


def load_adapters(config: Config) -> None:
    """Import what the configured brokers need, for a process that is about to fork."""
    kinds = {type(broker) for broker in config.brokers.values()}
    if RedisBroker in kinds:
        from ..brokers.redis import board as redis_board  # noqa: F401
        from ..brokers.redis import log as redis_log  # noqa: F401
    if KafkaBroker in kinds:
        from ..brokers.kafka import board as kafka_board  # noqa: F401
        from ..brokers.kafka import log as kafka_log  # noqa: F401


@asynccontextmanager
async def open_board(config: Config, name: str) -> AsyncIterator[RouteBoard]:
    """The board of one route alone: what status, pause, resume and rate need."""
    settings = route_settings(config, name)
    board = _make_board(config.brokers[settings.target])
    try:
        yield RouteBoard(board, settings.id)
    finally:
        await board.close()


def fit_lanes(config: Config, name: str, source_lanes: int, target_lanes: int, first_lanes: int) -> Route:
    """The route as `open_route` would make it of so many lanes.

    Raises UsageError, RouteConflict, GuaranteeRefused where they do not fit.

    `first_lanes`: how many the source had when the route was first started, 0 = it never was.
    """
    settings = route_settings(config, name)
    route = make_route(
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
    if not first_lanes:
        _refuse_crowded(config, settings, route)
    return route


def _refuse_crowded(config: Config, settings: RouteSettings, route: Route) -> None:
    """Refuse more target lanes for a source lane than a Kafka target can keep markers of. Raises GuaranteeRefused."""
    if isinstance(config.brokers[settings.target], KafkaBroker):
        from ..brokers.kafka.room import refuse_crowded

        refuse_crowded(route, config.brokers[settings.source].kind)


def remover_of(target: Log) -> Remover | None:
    """What removes single entries from an open target; None where its broker cannot."""
    if target.kind != "redis":
        return None
    from ..brokers.redis.log import RedisLog
    from ..brokers.redis.removal import RedisRemover

    return RedisRemover(target.nodes, target.stream_keys) if isinstance(target, RedisLog) else None


async def _open_log(
    stack: AsyncExitStack,
    config: Config,
    settings: RouteSettings,
    broker: str,
    source_lanes: int | None = None,
    known_lanes: int = 0,
    copies: bool = True,
    is_paired: bool = False,
) -> Log:
    """The stream of a route on one of its brokers, connected.

    `source_lanes` is given for a target. `known_lanes`: so many are there, whatever is found.
    """
    stream = config.streams[settings.stream]
    side, at = stream.sides[broker], config.brokers[broker]
    is_source = source_lanes is None
    log: Log
    if isinstance(at, RedisBroker):
        from ..brokers.redis.log import RedisLog

        redis = redis_side(side)
        log = RedisLog(
            redis_settings(at),
            redis.first_keys(source_lanes or await discovered_lanes(at, redis, known_lanes)),
            name=redis.name,
            route=settings.id,
            deleted=stream.deleted,
            read=at.read if is_source and copies else "at_once",
            memory_bytes_max=0 if is_source else at.memory_bytes_max,
            key_of=redis.key_of if redis.is_discovered and is_source else None,
            is_paired=is_paired,
        )
    else:
        from ..brokers.kafka.log import KafkaLog

        log = KafkaLog(
            kafka_settings(at),
            kafka_side(side).topic,
            route=settings.id,
            source_lanes=source_lanes,
            allow_weak=settings.allow_weak,
            checks_reads=copies,
        )
    stack.push_async_callback(log.close)
    await log.open()
    return log


async def _is_compacted(source: Log) -> bool:
    """Whether a source may lose single records, echoes among them, without anybody who deletes. Raises Unreachable."""
    if source.kind != "kafka":
        return False
    from ..brokers.kafka.log import KafkaLog

    return isinstance(source, KafkaLog) and await source.is_compacted()


async def _are_one(source: Log, target: Log) -> bool:
    """Whether both ends of a route are one stream, by what the servers say of themselves. Raises Unreachable.

    The file shows it only where both have an address in common, see `config.overlap`.
    """
    if source.kind != target.kind:
        return False
    if source.kind == "kafka":
        from ..brokers.kafka.log import KafkaLog

        if not isinstance(source, KafkaLog) or not isinstance(target, KafkaLog) or source.identity != target.identity:
            return False
        # Clusters that were made from one template may have one id; topics have an id of their own.
        topic_id = await source.cluster.topic_id(source.name) or ""
        is_told = topic_id.strip("A") != ""  # brokers before 2.8 know none: all zeros
        return is_told and topic_id == await target.cluster.topic_id(target.name)
    from ..brokers.redis.log import RedisLog

    if not isinstance(source, RedisLog) or not isinstance(target, RedisLog) or source.settings.db != target.settings.db:
        return False
    both = set(target.stream_keys).intersection(source.stream_keys)
    if not both:
        return False
    key = min(both)  # in a Cluster, one that has it at the same server has all
    run_id = await _run_id(source, key)
    return bool(run_id) and run_id == await _run_id(target, key)


async def _run_id(log: RedisLog, key: bytes) -> str:
    """What tells the server that holds `key` from any other, "" where it does not say. Raises Unreachable."""
    from ..brokers.redis.nodes import call_key
    from ..brokers.redis.replies import info_fields, is_error

    (reply,) = await call_key(log.nodes, key, [("INFO", "server")], "asking which server it is")
    told = "" if is_error(reply) else info_fields(reply).get("run_id", "")
    return told if told.strip("0") else ""


def _make_board(at: Broker) -> Board:
    if isinstance(at, RedisBroker):
        from ..brokers.redis.board import RedisBoard

        return RedisBoard(redis_settings(at))
    from ..brokers.kafka.board import KafkaBoard

    return KafkaBoard(kafka_settings(at))


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
        from ..relay.service import ByHand

        return ByHand(route.source_lanes, shard)
    stream = config.streams[settings.stream]
    target, source = config.brokers[settings.target], config.brokers[settings.source]
    if isinstance(target, KafkaBroker):
        from ..brokers.kafka.group import KafkaGroup

        return KafkaGroup(
            kafka_settings(target),
            route=route.id,
            lanes=route.source_lanes,
            instance=instance,
            has_new_lanes=has_new_lanes,
        )
    if isinstance(source, KafkaBroker):
        from ..brokers.kafka.group import KafkaGroup

        side = stream.sides[settings.source]
        return KafkaGroup(
            kafka_settings(source),
            route=route.id,
            lanes=route.source_lanes,
            instance=instance,
            topic=kafka_side(side).topic,
            has_new_lanes=has_new_lanes,
        )
    from ..brokers.redis.lease import RedisLease

    return RedisLease(redis_settings(target), route=route.id, lanes=route.source_lanes, instance=instance)
