"""Lanes handed out by Kafka's own group protocol: classic, static members, cooperative.

Hides a consumer that never consumes: it is subscribed to the lanes topic (or a source topic), its partitions are
paused, it commits nothing. Invariant: the group handle is taken inside each rebalance callback and nowhere else. A
handle that was refreshed while a transaction is open would let a member commit lanes that it has given away: the
broker checks membership, not ownership.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ...errors import BrokerError, NameLost
from ...model.record import Lane
from ..protocol import Listener
from . import names
from .cluster import Cluster
from .failures import HandleHealth, error_of, is_topic_missing, translate
from .lanes import ensure_lanes_topic, generation_of
from .settings import KafkaSettings
from .threads import HandleThread

#: the broker's own minimum (group.min.session.timeout.ms)
SESSION_TIMEOUT_MS = 6000
_HEARTBEAT_MS = 2000
#: after this long without a member, its session has ended
_AWAY_S = SESSION_TIMEOUT_MS / 1000 + 1.5
_TOPIC_LOOK_MS = 3000
#: a rebalance waits this long for the listener; then the lanes count as lost
_LISTENER_S = 5.0
_POLL_S = 0.2
_TRIES = 4
_PAUSE_S = 0.5
#: a member of so long has found the topic everywhere
_MEMBER_S = 60.0
#: the copier may hold up a rebalance for one transaction, never for this long
_MAX_POLL_MS = 30_000


class KafkaGroup:
    """One member of a route's group. `topic`: subscribe to this one instead of the route's lanes topic.

    `has_new_lanes`: lanes came since the group last handed them out.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        route: str,
        lanes: int,
        instance: str,
        topic: str | None = None,
        has_new_lanes: bool = False,
    ) -> None:
        self._settings = settings
        self._route = route
        self._lanes = lanes
        self._instance = instance
        self._own_topic = topic is None
        self._has_new_lanes = has_new_lanes
        self._topic = topic or names.lanes_topic(route)
        self._health = self._new_health()
        self._log = structlog.get_logger("kafka.group").bind(group=names.group(route), instance=instance)

    async def run(self, listener: Listener) -> None:
        """Be a member until cancelled (see `Assignment.run`). Raises NameLost, Unreachable, AccessRefused."""
        await self._prepare()
        if self._has_new_lanes:
            # A member that comes back under its name gets the lanes that it had, and nobody hands out the new ones. So
            # it stays away until its session has ended.
            self._log.info("waiting for the session to end, so that new lanes are handed out", wait_s=_AWAY_S)
            await asyncio.sleep(_AWAY_S)
        misses = 0
        while True:
            began_s = time.monotonic()
            try:
                await self._be_member(listener)
            except KafkaException as failure:
                # The topic exists: brokers other than the one that was asked hear of it a little later.
                misses = misses + 1 if time.monotonic() - began_s < _MEMBER_S else 1
                if misses >= _TRIES or not is_topic_missing(error_of(failure)):
                    raise self._translate(failure) from failure
            await asyncio.sleep(_PAUSE_S)

    async def _be_member(self, listener: Listener) -> None:
        """Be a member until something is raised."""
        self._health = self._new_health()  # what an earlier handle died of is not said of this one
        member = _Member(self._settings, self._health, names.group(self._route), self._topic, self._instance)
        thread = HandleThread(f"group-{self._route}")
        try:
            await thread.call(member.join, listener, asyncio.get_running_loop(), self._log)
            while True:
                await thread.call(member.poll, _POLL_S)
        except KafkaException as failure:
            if member.owned and error_of(failure).code() == KafkaError.FENCED_INSTANCE_ID:
                await listener.lost(member.owned)
            raise
        finally:
            member.stop()
            thread.post(member.leave)
            thread.stop()

    def _new_health(self) -> HandleHealth:
        return HandleHealth(f"group {names.group(self._route)}")

    async def _prepare(self) -> None:
        if self._own_topic:
            cluster = Cluster(self._settings)
            try:
                replication = min(3, len((await cluster.describe()).nodes))
                await ensure_lanes_topic(cluster, self._route, self._lanes, replication)
            finally:
                cluster.close()

    def _translate(self, failure: KafkaException) -> BrokerError:
        error = error_of(failure)
        if error.code() == KafkaError.FENCED_INSTANCE_ID:
            # An answer to a join that an outage swallowed gives this name to our own next try. The group cannot tell
            # that from another process; who looks at the heartbeats can.
            return NameLost(
                f"another process runs as instance {self._instance!r} of route {self._route}",
                hint="give every process its own --instance; the newer one goes on",
            )
        return translate(error, f"being a member of group {names.group(self._route)}", self._health)


class _Member:
    """The consumer handle; every method but `stop` runs in its thread, callbacks inside `poll`."""

    def __init__(self, settings: KafkaSettings, health: HandleHealth, group: str, topic: str, instance: str) -> None:
        self._settings = settings
        self._health = health
        self._topic = topic
        self._properties = settings.consumer(
            health,
            group_id=group,
            group_instance_id=instance,
            enable_auto_commit=False,
            enable_auto_offset_store=False,
            auto_offset_reset="latest",
            partition_assignment_strategy="cooperative-sticky",
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=_HEARTBEAT_MS,
            max_poll_interval_ms=_MAX_POLL_MS,
            queued_min_messages=1,
            # partitions that come are handed out this soon
            topic_metadata_refresh_interval_ms=_TOPIC_LOOK_MS,
        )
        self._listener: Listener
        self._loop: asyncio.AbstractEventLoop
        self._log: Any = None
        self._consumer: Any = None
        self.owned: frozenset[Lane] = frozenset()
        self._failure: BaseException | None = None
        self._is_stopping = False

    def join(self, listener: Listener, loop: asyncio.AbstractEventLoop, log: Any) -> None:
        self._listener, self._loop, self._log = listener, loop, log
        self._consumer = self._settings.make(Consumer, self._properties)
        self._consumer.subscribe(
            [self._topic], on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )

    def poll(self, wait_s: float) -> None:
        """Serve heartbeats and rebalances. Raises KafkaException for what the group refuses."""
        message = self._consumer.poll(wait_s)
        if self._failure is not None:
            raise self._failure
        if self._health.fatal is not None:
            raise KafkaException(self._health.fatal)
        if message is not None and message.error() is not None:
            error = message.error()
            if error.code() == KafkaError._FATAL and "fenced" in error.str().lower():
                # The message says "fatal" and hides the code; only the words tell a fenced instance.
                error = KafkaError(KafkaError.FENCED_INSTANCE_ID, error.str())
            # While the identity provider is away nobody can log in; the library goes on trying.
            is_outage = error.code() == KafkaError._AUTHENTICATION and self._health.no_token()
            is_final = error.fatal() or error.code() == KafkaError._FATAL or error.code() in _GROUP_ERRORS
            if is_final and not is_outage:
                raise KafkaException(error)
            self._log.debug("group event", error=error.str())
        refusal = self._health.refusal()
        if refusal is not None:
            raise KafkaException(refusal)

    def stop(self) -> None:
        """From now on callbacks tell nobody."""
        self._is_stopping = True

    def leave(self) -> None:
        """Close the handle. A static member keeps its lanes for a session, so that its return moves nothing."""
        if self._consumer is not None:
            self._settings.untrack(self._consumer)
            self._consumer.close()
            self._consumer = None

    # --- rebalance callbacks: librdkafka calls assign, even empty, once per generation --------------------------------

    def _on_assign(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        places = [TopicPartition(p.topic, p.partition, 0) for p in partitions]  # nothing is fetched: any offset does
        consumer.incremental_assign(places)
        if places:
            consumer.pause(places)
        self.owned |= {p.partition for p in partitions}
        handle = consumer.consumer_group_metadata()
        if generation_of(handle) < 0 or not consumer.memberid():
            self._log.warning("a rebalance without a generation is ignored")
            return
        self._tell(lambda: self._listener.assigned(self.owned, handle), "assigned")

    def _on_revoke(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        lanes = frozenset(p.partition for p in partitions)
        self._tell(lambda: self._listener.revoked(lanes), "revoked")
        self.owned -= lanes
        consumer.incremental_unassign(partitions)

    def _on_lost(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        lanes = frozenset(p.partition for p in partitions)
        self.owned -= lanes
        self._tell(lambda: self._listener.lost(lanes), "lost")
        consumer.incremental_unassign(partitions)

    def _tell(self, what: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Call the listener on its loop, and hold up the rebalance until it is done or too late."""
        if self._is_stopping:
            return
        try:
            future = asyncio.run_coroutine_threadsafe(what(), self._loop)
        except RuntimeError:  # the loop is closed
            return
        deadline = time.monotonic() + _LISTENER_S
        while not self._is_stopping:
            try:
                future.result(0.1)
                return
            except TimeoutError:
                if time.monotonic() > deadline:
                    # Its transaction carries the old generation's handle: the broker refuses it from now on.
                    self._log.warning("the rebalance goes on without the listener", step=name, waited_s=_LISTENER_S)
                    return
            except Exception as error:  # noqa: BLE001 - raised again by poll(), in the caller's task
                self._failure = error
                return


_GROUP_ERRORS = frozenset(
    {
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.INCONSISTENT_GROUP_PROTOCOL,
        KafkaError.INVALID_SESSION_TIMEOUT,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._AUTHENTICATION,
    }
)
