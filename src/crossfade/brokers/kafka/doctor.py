"""What operators ask of a Kafka cluster: its fitness, the least rights, what we left there, and its removal."""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Sequence
from typing import Any

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ...errors import AccessRefused, BrokerError, UsageError
from ..protocol import Document, Finding, route_of_document
from . import names, verdicts
from .board import KafkaBoard
from .cluster import EARLIEST, LATEST, SETTLE_S, Cluster, ConfigValue, TopicFacts
from .edges import EdgeReader
from .failures import HandleHealth, error_of
from .settings import KafkaSettings

_INTERNAL = (("kafka.offsets-topic", "__consumer_offsets"), ("kafka.transactions-topic", "__transaction_state"))
#: the first records of all lanes are read by then
_LOOK_S = 5.0
#: a group's coordinator answers by then
_COORDINATOR_TRIES = 6
_COORDINATOR_S = 1.0
_GROUP_REFUSED = KafkaError.GROUP_AUTHORIZATION_FAILED


class KafkaInspector:
    """Inspects the cluster of one topic. Implements `brokers.protocol.Inspector`."""

    def __init__(self, settings: KafkaSettings, topic: str, route: str = "", *, has_group: bool = True) -> None:
        """`has_group`: the group of the route that hands out its lanes is in this cluster; a target's always is."""
        self._settings = settings
        self._topic = topic
        self._route = route
        self._has_group = has_group
        self.lanes = 0
        self.oldest_s: float | None = None

    async def inspect(self, role: str, retention_needed_s: float, oldest_s: float | None = None) -> list[Finding]:
        """Check the live cluster for `role`. Raises Unreachable, and AccessRefused for wrong credentials."""
        cluster = Cluster(self._settings)
        try:
            described = await cluster.describe()
            facts = await cluster.topic(self._topic, operations=True)
            if facts is None:
                return [verdicts.topic_missing(self._topic), *verdicts.unaskable(role)]
            self.lanes = facts.lanes
            if role == "source":
                self.oldest_s = await self._oldest_s(cluster, range(facts.lanes))
            found = verdicts.topic_findings(
                role, facts, await _config(cluster, self._topic, "topic"), retention_needed_s, oldest_s
            )
            found += await self._own_rights(cluster, role, described, facts)
            if role == "target":
                if await _facts(cluster, names.BOARD_TOPIC) is not None:
                    config = await _config(cluster, names.BOARD_TOPIC, "topic")
                    found.append(verdicts.board_finding(config, self._settings.bootstrap))
                for check, name in _INTERNAL:
                    internal = await _facts(cluster, name)
                    config = await _config(cluster, name, "topic") if internal is not None else None
                    found += verdicts.internal_findings(name, check, internal, config)
            node = str(described.nodes[0].id)
            return [
                *found,
                *verdicts.broker_findings(role, await _config(cluster, node, "broker")),
                *verdicts.unaskable(role),
            ]
        finally:
            cluster.close()

    async def _oldest_s(self, cluster: Cluster, lanes: range) -> float | None:
        """Age of the oldest committed record, 0 where there is none, None where it cannot be read."""
        edges = EdgeReader(self._settings, self._topic, names.group(self._route))
        try:
            low = await cluster.offsets(self._topic, lanes, EARLIEST)
            end = await cluster.offsets(self._topic, lanes, LATEST)
            firsts = await edges.first({lane: at for lane, at in low.items() if at < end[lane]}, _LOOK_S)
        except BrokerError:
            return None
        finally:
            edges.close()
        times_ms = [time_ms for _, time_ms in firsts.values() if time_ms >= 0]
        return max((time.time() - time_ms / 1000 for time_ms in times_ms), default=0.0)

    async def _own_rights(self, cluster: Cluster, role: str, described: Any, facts: TopicFacts) -> list[Finding]:
        """About what the stream's topic does not tell: our own topics, transactional ids and group."""
        cluster_wide = frozenset(operation.name for operation in described.authorized_operations or ())
        if verdicts.is_unrestricted(cluster_wide, facts):
            return [verdicts.own_rights([], [])]
        refused: list[str] = []
        unasked: list[str] = []
        if role == "target":
            for name in (names.BOARD_TOPIC, names.lanes_topic(self._route)):
                try:
                    own = await cluster.topic(name, operations=True)
                except AccessRefused:
                    refused.append(f"Describe on topic {name}")
                    continue
                missing = verdicts.missing_on_own(own) if own is not None else []
                refused += [f"{operation} on topic {name}" for operation in missing]
            unasked += [f"Create on topics {names.PREFIX}*", f"Write on transactional ids {names.PREFIX}*"]
        if role == "target" or self._has_group:
            group = names.group(self._route)
            if await asyncio.to_thread(self._is_group_refused, group):
                refused.append(f"Describe on group {group}")
            else:
                unasked.append(f"Read on group {group}")
        return [verdicts.own_rights(refused, unasked)] if refused or unasked else []

    def _is_group_refused(self, group: str) -> bool:
        """Whether brokers say that we may not look at a group; it need not exist.

        Not by the admin API: its calls about groups can crash the process, see `MarkerReader.peek` and
        `Cluster.live_instances`.
        """
        health = HandleHealth(f"rights {group}")
        consumer = Consumer(
            self._settings.consumer(
                health, group_id=group, enable_auto_commit=False, isolation_level="read_uncommitted"
            )
        )
        try:
            for _ in range(_COORDINATOR_TRIES):  # a coordinator may be away, or load, for a moment
                try:
                    consumer.committed([TopicPartition(self._topic, 0)], _COORDINATOR_S)
                    return False
                except KafkaException as failure:
                    told = consumer.poll(0.1)  # who may not look for the coordinator is told here, and above times out
                    errors = [error_of(failure), told.error() if told is not None else None]
                    if any(error is not None and error.code() == _GROUP_REFUSED for error in errors):
                        return True
            return False
        finally:
            consumer.close()

    def acls(self, role: str) -> list[str]:
        """The least rights in `role`, as lines for kafka-acls.sh. Asks no broker."""
        add = (
            f"kafka-acls.sh --bootstrap-server {shlex.quote(self._settings.bootstrap)} --add "
            f"--allow-principal {shlex.quote(self._settings.principal)}"
        )
        own = "--resource-pattern-type prefixed --topic crossfade."
        lines = [
            f"{add} --operation Read --operation Describe --operation DescribeConfigs --topic {self._topic}",
            f"{add} --operation Read --operation Describe {own}",  # uninstall looks for what is ours
        ]
        if role == "target":
            lines = [
                f"{add} --operation Read --operation Write --operation Describe --operation DescribeConfigs "
                f"--topic {self._topic}",
                f"{add} --operation Create --operation Read --operation Write --operation Describe --operation Delete "
                f"--operation DescribeConfigs {own}",
                f"{add} --operation Write --operation Describe --resource-pattern-type prefixed "
                "--transactional-id crossfade.",
            ]
        if role == "source" and not self._has_group:
            return lines
        return [
            *lines,
            f"{add} --operation Read --operation Describe --operation Delete --resource-pattern-type prefixed "
            "--group crossfade",
        ]

    async def routes(self) -> set[str]:
        """The ids of the routes that left something here. Raises Unreachable, AccessRefused."""
        cluster = Cluster(self._settings)
        board = KafkaBoard(self._settings, cluster)
        try:
            topics = await cluster.topic_names(names.PREFIX)
            found = {names.route_of_topic(topic) for topic in topics}
            found |= {names.route_of_group(group) for group in await cluster.group_names(names.PREFIX)}
            for name, document in (await board.list("")).items():
                found.add(_owner(name, document))
            return found - {""}
        finally:
            await board.close()
            cluster.close()

    async def footprint(self, route: str) -> list[str]:
        """What the route left: `topic X`, `group X`, `document X`. Raises Unreachable, AccessRefused."""
        cluster = Cluster(self._settings)
        board = KafkaBoard(self._settings, cluster)
        try:
            topics = await cluster.topic_names(names.PREFIX)
            found = [f"topic {name}" for name in topics if names.route_of_topic(name) == route]
            if names.group(route) in await cluster.group_names(names.group(route)):
                found.append(f"group {names.group(route)}")
            documents = await board.list("")
            mine = [name for name, document in documents.items() if _owner(name, document) == route]
            found += [f"document {name}" for name in mine]
            # Nobody else has anything there. An earlier removal may have ended between the documents and the topic.
            if len(mine) == len(documents) and names.BOARD_TOPIC in topics:
                found.append(f"topic {names.BOARD_TOPIC}")
            return found
        finally:
            await board.close()
            cluster.close()

    async def erase(self, route: str, erased: Sequence[str]) -> None:
        """Remove exactly these. Raises UsageError, Unreachable, AccessRefused."""
        wanted = [name.split(" ", 1) for name in erased]
        for parts in wanted:
            if len(parts) != 2 or parts[0] not in ("topic", "group", "document"):
                raise UsageError(f"{' '.join(parts)!r} is not a name that `footprint` gives")
            if parts[0] != "document" and not parts[1].startswith(names.PREFIX):
                raise UsageError(f"{parts[1]!r} is not Crossfade's own")
        cluster = Cluster(self._settings)
        board = KafkaBoard(self._settings, cluster)
        try:
            for kind, name in wanted:
                if kind == "document":
                    await board.delete(name)
            for kind, name in wanted:
                if kind == "group":
                    await cluster.delete_group(name)
            await cluster.delete_topics([name for kind, name in wanted if kind == "topic"])
            for kind, name in wanted:
                if kind == "topic":
                    await cluster.wait_gone(name)
            await asyncio.sleep(SETTLE_S)  # the other brokers show them a little longer
        finally:
            await board.close()
            cluster.close()


def _owner(name: str, document: Document) -> str:
    """The route that a document belongs to, "" where neither its name nor what it says tells."""
    return route_of_document(name) or _route_of(document.body)


class _WithRoute(msgspec.Struct):
    route: str = ""


def _route_of(body: bytes) -> str:
    """The route that a document about a target names."""
    try:
        return msgspec.json.decode(body, type=_WithRoute).route
    except msgspec.DecodeError:
        return ""


async def _facts(cluster: Cluster, name: str) -> TopicFacts | None:
    try:
        return await cluster.topic(name)
    except AccessRefused:
        return None


async def _config(cluster: Cluster, name: str, kind: str) -> dict[str, ConfigValue] | None:
    """A configuration, or None where the broker does not let us ask."""
    try:
        return await cluster.config(name, kind)
    except BrokerError:
        return None
