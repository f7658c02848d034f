"""What the rest of this folder asks of a cluster through the admin API: topics, configurations, offsets, groups.

Hides futures, the traps of list_offsets (-1001 without an error while a leader is away) and the creation of
Crossfade's own topics. Nothing here is on the path of records.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from confluent_kafka import (
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from ...errors import AccessRefused, Unreachable
from .failures import TOPIC_MISSING, HandleHealth, error_of, is_topic_missing, translate
from .settings import KafkaSettings
from .threads import settle

T = TypeVar("T")

#: what to ask `Cluster.offsets` for: the log start, the end, or the first record at or after a time
EARLIEST: Any = OffsetSpec._earliest
LATEST: Any = OffsetSpec._latest
at_time: Callable[[int], Any] = OffsetSpec.for_timestamp

_REQUEST_S = 8.0
_ID_REQUEST_S = 2.0
_TRIES = 4
#: trying again ends after this long
_PERSIST_S = 5.0
#: what one broker knows the others know by then; before Kafka 4 an idle cluster takes half a second
_NEWS_S = 2.0
SETTLE_S = 1.0
_LISTEN_S = 0.2
_PAUSE_S = 0.3
#: a group is emptied of its last static member by then (session timeout 6 s, and the broker's sweep)
_MEMBERS_GONE_S = 20.0
#: a broker calls a static member by its name, a hyphen and a UUID
_MEMBER_SUFFIX = 37


@dataclass(frozen=True, slots=True)
class TopicFacts:
    name: str
    topic_id: str
    #: per partition: replicas, in-sync replicas, leader id (-1 = none)
    replicas: tuple[tuple[int, ...], ...]
    in_sync: tuple[tuple[int, ...], ...]
    leaders: tuple[int, ...]
    operations: frozenset[str] = frozenset()

    @property
    def lanes(self) -> int:
        return len(self.replicas)

    @property
    def replication(self) -> int:
        """The smallest number of replicas of any partition."""
        return min((len(replicas) for replicas in self.replicas), default=0)


def is_told(topic_id: str) -> bool:
    """Whether this is the id of a topic: brokers before 2.8, or that speak as such a one, tell zeros."""
    return topic_id.strip("A") != ""


def are_two_topics(one: str, other: str) -> bool:
    """Whether two ids are those of different topics; an id that is not told proves nothing."""
    return is_told(one) and is_told(other) and one != other


@dataclass(frozen=True, slots=True)
class ConfigValue:
    value: str
    is_default: bool


#: a time from here on is no limit: brokers tell 2^63 - 1
FOREVER_MS = 1 << 62


def number_in(config: Mapping[str, ConfigValue], name: str, default: int) -> int:
    """A number of a configuration; `default` where it tells none."""
    entry = config.get(name)
    return int(entry.value) if entry is not None and entry.value else default


def text_in(config: Mapping[str, ConfigValue], name: str, default: str) -> str:
    """A text of a configuration; `default` where it tells none."""
    entry = config.get(name)
    return entry.value if entry is not None and entry.value else default


class Cluster:
    """One admin handle. Its calls never block the event loop."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings
        self.health = HandleHealth("admin")
        self._admin: AdminClient | None = None

    @property
    def admin(self) -> AdminClient:
        if self._admin is None:
            self._admin = self.settings.make(AdminClient, self.settings.admin(self.health))
        return self._admin

    def close(self) -> None:
        """Let go of the handle."""
        handles, self._admin = [self._admin], None
        if handles[0] is not None:
            self.settings.untrack(handles[0])
            _end_aside(handles)

    # --- topics ---------------------------------------------------------------------------------------------------

    async def topic(self, name: str, *, operations: bool = False) -> TopicFacts | None:
        """Facts about a topic, or None where it does not exist. Raises Unreachable, AccessRefused."""

        async def ask() -> TopicFacts | None:
            futures = self.admin.describe_topics(
                TopicCollection([name]), request_timeout=_REQUEST_S, include_authorized_operations=operations
            )
            try:
                found = await self._wait(futures[name])
            except KafkaException as failure:
                if is_topic_missing(error_of(failure)):
                    return None
                raise
            partitions = sorted(found.partitions, key=lambda p: p.id)
            return TopicFacts(
                name,
                str(found.topic_id),
                tuple(tuple(n.id for n in p.replicas) for p in partitions),
                tuple(tuple(n.id for n in p.isr) for p in partitions),
                tuple(p.leader.id if p.leader is not None else -1 for p in partitions),
                frozenset(operation.name for operation in found.authorized_operations or ()),
            )

        return await self._persist(ask, f"asking about topic {name}")

    async def existing_topic(self, name: str) -> TopicFacts:
        """Facts about a topic that must be there. Raises AccessRefused where it is not, Unreachable.

        A broker may not know yet what was just created elsewhere: it is asked a few times.
        """
        for left in reversed(range(_TRIES)):
            facts = await self.topic(name)
            if facts is not None:
                return facts
            if left:
                await asyncio.sleep(_PAUSE_S)
        raise AccessRefused(f"topic {name} does not exist", hint="create it, or correct its name")

    async def topic_id(self, name: str, *, tries: int = 3) -> str | None:
        """The topic's id, "" where it does not exist; None where a broker could not tell. Raises AccessRefused."""
        for left in reversed(range(tries)):  # a broker may just have gone: ask another one
            try:
                futures = self.admin.describe_topics(TopicCollection([name]), request_timeout=_ID_REQUEST_S)
                return str((await self._wait(futures[name])).topic_id)
            except KafkaException as failure:
                error = error_of(failure)
                if is_topic_missing(error):
                    return ""
                translated = translate(error, f"asking about topic {name}", self.health)
                if isinstance(translated, AccessRefused):
                    raise translated from failure
            except Unreachable:  # files of a handle are just being replaced
                return None
            if left:
                await asyncio.to_thread(self._learn_leaders)
        return None

    async def config(self, name: str, kind: str = "topic") -> dict[str, ConfigValue]:
        """The configuration of a topic or broker. Raises Unreachable, AccessRefused."""
        resource = ConfigResource(ResourceType.TOPIC if kind == "topic" else ResourceType.BROKER, name)

        async def ask() -> dict[str, ConfigValue]:
            entries = await self._wait(self.admin.describe_configs([resource], request_timeout=_REQUEST_S)[resource])
            return {key: ConfigValue(entry.value or "", bool(entry.is_default)) for key, entry in entries.items()}

        return await self._persist(ask, f"reading the configuration of {kind} {name}")

    async def ensure_topic(
        self, name: str, lanes: int, replication: int, config: dict[str, str], *, settle_s: float = 0.0
    ) -> TopicFacts:
        """The facts of one of our own topics, created where it is missing; then `settle_s` for all brokers to know it.

        Raises Unreachable, AccessRefused.
        """
        facts = await self.topic(name)
        if facts is None:
            new = NewTopic(name, lanes, replication, config=config)
            await self._change(
                lambda: self.admin.create_topics([new], request_timeout=_REQUEST_S),
                f"creating topic {name}",
                KafkaError.TOPIC_ALREADY_EXISTS,
            )
            for _ in range(50):  # the answer of another broker can lag behind the creation
                facts = await self.topic(name)
                if facts is not None and facts.lanes > 0 and -1 not in facts.leaders:
                    break
                await asyncio.sleep(0.1)
            await asyncio.sleep(settle_s)
        if facts is None:
            raise Unreachable(f"topic {name} was created but no broker shows it")
        return facts

    async def add_partitions(self, name: str, lanes: int) -> TopicFacts:
        """Let one of our own topics have `lanes` partitions. Raises Unreachable, AccessRefused."""
        await self._change(
            lambda: self.admin.create_partitions([NewPartitions(name, lanes)], request_timeout=_REQUEST_S),
            f"adding partitions to {name}",
            KafkaError.INVALID_PARTITIONS,  # another process was first: what counts is what the topic has now
        )
        for _ in range(50):
            facts = await self.topic(name)
            if facts is not None and facts.lanes >= lanes and -1 not in facts.leaders:
                return facts
            await asyncio.sleep(0.1)
        raise Unreachable(f"partitions were added to {name} but no broker shows them")

    async def delete_topics(self, names: Sequence[str]) -> None:
        """Delete topics; one that is already gone is no error. Raises Unreachable, AccessRefused."""
        if names:
            await self._change(
                lambda: self.admin.delete_topics(list(names), request_timeout=_REQUEST_S),
                f"deleting topics {', '.join(names)}",
                *TOPIC_MISSING,
            )

    async def wait_gone(self, name: str) -> None:
        """Wait until a deleted topic is shown no more. Raises Unreachable."""
        for _ in range(100):
            if await self.topic(name) is None:
                return
            await asyncio.sleep(0.1)
        raise Unreachable(f"topic {name} was deleted but is still shown")

    async def topic_names(self, prefix: str) -> list[str]:
        """Names of the topics that begin with `prefix`."""
        metadata = await asyncio.to_thread(self._metadata)
        return sorted(name for name in metadata.topics if name.startswith(prefix))

    def _metadata(self) -> Any:
        try:
            return self.admin.list_topics(timeout=_REQUEST_S)
        except KafkaException as failure:
            raise translate(failure, "listing topics", self.health) from failure

    async def describe(self) -> Any:
        """The cluster: id, controller, nodes, and what we may do there."""

        async def ask() -> Any:
            return await self._wait(
                self.admin.describe_cluster(request_timeout=_REQUEST_S, include_authorized_operations=True)
            )

        return await self._persist(ask, "asking about the cluster")

    # --- offsets --------------------------------------------------------------------------------------------------

    async def offsets(self, topic: str, lanes: Iterable[int], spec: Any, *, committed: bool = True) -> dict[int, int]:
        """The offset per lane for EARLIEST, LATEST or `at_time(ms)`; -1 = none (a time behind the end).

        Latest is the last stable offset where `committed`, else the high watermark. Raises Unreachable, AccessRefused.
        """
        wanted = sorted(set(lanes))
        if not wanted:
            return {}
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        is_time = spec not in (EARLIEST, LATEST)

        async def ask() -> dict[int, int]:
            futures = self.admin.list_offsets(
                {TopicPartition(topic, lane): spec for lane in wanted},
                isolation_level=level,
                request_timeout=_ID_REQUEST_S,  # a leader that is gone does not answer: soon ask who leads now
            )
            found: dict[int, int] = {}
            for partition, future in futures.items():
                offset = (await self._wait(future)).offset
                if offset < (-1 if is_time else 0):  # -1001: the leader is away, and no error says so
                    raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE, f"{topic}[{partition.partition}]"))
                found[partition.partition] = offset
            return found

        return await self._persist(ask, f"asking for the offsets of {topic}")

    async def delete_records(self, topic: str, before: dict[int, int]) -> None:
        """Delete the records of each lane below an offset. Raises Unreachable, AccessRefused."""
        asked = [TopicPartition(topic, lane, offset) for lane, offset in before.items()]
        await self._change(
            lambda: self.admin.delete_records(asked, request_timeout=_REQUEST_S), f"deleting records of {topic}"
        )

    # --- groups ---------------------------------------------------------------------------------------------------

    async def live_instances(self, group: str) -> frozenset[str]:
        """The static member names of a group that are members now; the group must have stored offsets before.

        Not by describe_consumer_groups: librdkafka (2.16, its issue 4605) aborts the process where the connection to
        the coordinator ends while that is asked, as it does in any outage. Raises Unreachable, AccessRefused.
        """

        async def ask() -> frozenset[str]:
            await self._renew()  # a handle also asks the brokers that it knew before, and gone ones do not answer
            found = await asyncio.to_thread(self._listed, self.admin, group)
            if found is None:
                raise KafkaException(KafkaError(KafkaError.COORDINATOR_NOT_AVAILABLE, f"no broker has group {group}"))
            return frozenset(member.id[:-_MEMBER_SUFFIX] for member in found.members)

        return await self._persist(ask, f"asking about group {group}")

    @staticmethod
    def _listed(handle: AdminClient, group: str) -> Any:
        """A group as the brokers list it, None where none does."""
        try:
            found = next(iter(handle.list_groups(group, timeout=_ID_REQUEST_S)), None)
        finally:
            handle.poll(0)  # what is wrong with the connection is told to a handle only while it polls
        if found is not None and found.error is not None:
            raise KafkaException(found.error)
        return found

    async def group_names(self, prefix: str) -> list[str]:
        """Names of the consumer groups that begin with `prefix`. Raises Unreachable, also for one silent broker."""

        async def ask() -> list[str]:
            found = await self._wait(self.admin.list_consumer_groups(request_timeout=_ID_REQUEST_S))
            if found.errors:  # a broker that could not answer may have the group that is looked for
                raise KafkaException(found.errors[0])  # a KafkaError, whatever the library's documentation says
            return sorted(group.group_id for group in found.valid if group.group_id.startswith(prefix))

        return await self._persist(ask, "listing groups")

    async def delete_group(self, group: str) -> None:
        """Delete a group without members; one that is already gone is no error. Raises Unreachable, AccessRefused.

        A static member says no goodbye: a group counts it until its session ends, so this waits for that.
        """
        deadline = time.monotonic() + _MEMBERS_GONE_S

        async def ask() -> None:
            while True:
                try:
                    await self._wait(self.admin.delete_consumer_groups([group], request_timeout=_REQUEST_S)[group])
                    return
                except KafkaException as failure:
                    code = error_of(failure).code()
                    if code == KafkaError.GROUP_ID_NOT_FOUND:
                        return
                    if code != KafkaError.NON_EMPTY_GROUP or time.monotonic() > deadline:
                        raise
                await asyncio.sleep(_PAUSE_S)

        await self._persist(ask, f"deleting group {group}")

    async def _change(self, ask: Callable[[], Mapping[Any, Future[Any]]], doing: str, *done: int) -> None:
        """Change something on the brokers, which may be repeated; the codes of `done` say that it is so already.

        A request fails also where nothing is wrong with the brokers: the client gives up the connection that it was
        made on, when it comes to know a broker by its name (_DESTROY_BROKER). Raises Unreachable, AccessRefused.
        """

        async def change() -> None:
            for future in ask().values():
                try:
                    await self._wait(future)
                except KafkaException as failure:
                    if error_of(failure).code() not in done:
                        raise

        await self._persist(change, doing)

    async def _persist(self, ask: Callable[[], Awaitable[T]], doing: str) -> T:
        """Ask a few times: metadata, leaders and coordinators are away for moments.

        A topic that was just created is unknown for a moment to brokers that hear of it later.
        """
        started = time.monotonic()
        while True:
            try:
                return await ask()
            except KafkaException as failure:
                error = error_of(failure)
                translated = translate(error, doing, self.health)
                passes = _NEWS_S if is_topic_missing(error) else _PERSIST_S * isinstance(translated, Unreachable)
                if time.monotonic() > started + passes:
                    raise translated from failure
            await asyncio.sleep(_PAUSE_S)
            await self._renew()

    async def _renew(self) -> None:
        """Let go of the handle; the next call makes a new one, with metadata of its own.

        A handle whose connection to a coordinator was once reset never reaches that coordinator again: each request
        times out, though the broker is there.
        """
        handles, self._admin = [self._admin], None
        if handles[0] is not None:
            self.settings.untrack(handles[0])
            await asyncio.to_thread(handles.clear)  # the end of a handle joins its threads

    def _learn_leaders(self) -> None:
        """Ask who leads what, and who is the controller. The handle does not do so by itself when they have moved: it
        would go on asking the old ones, or the new ones with the old epoch (FENCED_LEADER_EPOCH), for minutes."""
        with contextlib.suppress(KafkaException, Unreachable):  # nobody answers: the next try says so
            self.admin.list_topics(timeout=_ID_REQUEST_S)

    async def _wait(self, future: Future[Any]) -> Any:
        """The result of an admin call. What is wrong with the connection is told to a handle only while it polls."""
        answer = _answer_of(future)
        handles = [self.admin]  # the request ends with its handle
        try:
            while not (await asyncio.wait({answer}, timeout=_LISTEN_S))[0]:
                handles[0].poll(0)
                if (refusal := self.health.refusal()) is not None:
                    raise KafkaException(refusal)
            return answer.result()
        finally:
            answer.cancel()  # where it is not here yet, nobody looks at it any more
            if handles[0] is not self._admin:  # a new one was made meanwhile, and this may be the last to know the old
                _end_aside(handles)
            # An error is held by both, and holds this frame: the handle would live until a collection of cycles.
            del answer, future, handles


def _answer_of(future: Future[Any]) -> asyncio.Future[Any]:
    """What comes of an admin call, for the event loop. It may be cancelled: `asyncio.wrap_future` would cancel the
    library's own future too, which fails when the library ends the call later on."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()

    def tell(done: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, answer, None if done.exception() else done.result(), done.exception())

    future.add_done_callback(tell)
    return answer


def _end_aside(handles: list[Any]) -> None:
    """Drop the only reference to a handle in a thread: its end joins threads, one of which may be resolving a name."""
    try:
        threading.Thread(target=handles.clear, name="kafka-admin-end", daemon=True).start()
    except RuntimeError:  # no more threads
        handles.clear()
