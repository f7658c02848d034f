"""What the lab asks its own servers, always over the direct listeners, past every fault.

The only module of the lab that imports client libraries, so that the proxy and the watchdog start quickly. Made by
lab and launch; faults asks through the lab.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import redis
from confluent_kafka import ElectionType, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ConfigResource,
    ConfigSource,
    NewTopic,
    OffsetSpec,
    ResourcePatternType,
    ResourceType,
)

from crossfade.lab.errors import LabError, LabUsage, no_partition
from crossfade.lab.process import wait_until

_REQUEST_S = 15.0
_SPREAD_S = 30.0
_TRIES = 5
_TRY_PAUSE_S = 0.5


class KafkaAdmin:
    """A Kafka admin client that answers within seconds or says why not."""

    def __init__(self, properties: Mapping[str, str]) -> None:
        # Restarts are the lab's daily bread: reconnect quickly, and do not print every refused connection.
        quick = {"reconnect.backoff.max.ms": "300", "socket.timeout.ms": "10000", "log_level": "0"}
        self._client = AdminClient({**quick, **properties})

    def brokers(self, wait_s: float = 2.0) -> list[int]:
        """The ids of the live brokers, empty when none answers."""
        try:
            return sorted(self._client.list_topics(timeout=wait_s).brokers)
        except KafkaException:
            return []

    def topics(self, wait_s: float = 2.0) -> list[str]:
        """The names of the topics, those of Kafka itself left out; empty when no broker answers."""
        try:
            return sorted(name for name in self._client.list_topics(timeout=wait_s).topics if not name.startswith("__"))
        except KafkaException:
            return []

    def wait_brokers(self, count: int, wait_s: float) -> bool:
        """Wait until this many brokers are registered and unfenced."""
        return wait_until(lambda: len(self.brokers()) >= count, wait_s)

    def create_topic(self, name: str, partitions: int, replicas: int, configs: Mapping[str, str]) -> None:
        """Create a topic and wait until every partition has a leader.  Raises LabError."""
        new = NewTopic(name, num_partitions=partitions, replication_factor=replicas, config=dict(configs))
        self._one(
            lambda: self._client.create_topics([new], operation_timeout=_REQUEST_S),
            f"create topic {name}",
            done=KafkaError.TOPIC_ALREADY_EXISTS,
        )
        ready = wait_until(
            lambda: len(leaders := self.leaders(name)) == partitions and all(node >= 0 for node in leaders.values()),
            _REQUEST_S,
        )
        if not ready:
            raise LabError(f"topic {name} has partitions without a leader after {_REQUEST_S:.0f} s")

    def delete_topic(self, name: str) -> None:
        """Delete a topic and wait until the brokers no longer know it.  Raises LabError."""
        self._one(
            lambda: self._client.delete_topics([name], operation_timeout=_REQUEST_S),
            f"delete topic {name}",
            done=KafkaError.UNKNOWN_TOPIC_OR_PART,
        )
        if not wait_until(lambda: name not in self._client.list_topics(timeout=_REQUEST_S).topics, _REQUEST_S):
            raise LabError(f"topic {name} is still there {_REQUEST_S:.0f} s after its deletion")

    def leaders(self, topic: str) -> dict[int, int]:
        """The leader's node id of each partition, -1 where there is none; empty when there is no such topic."""
        try:
            found = self._client.list_topics(topic, timeout=_REQUEST_S).topics[topic]
        except KafkaException as error:
            raise LabError(f"Kafka does not answer: {error}") from error
        return {} if found.error is not None else {number: part.leader for number, part in found.partitions.items()}

    def describe(self, topic: str) -> Any:
        """The topic's description: id, and replicas and in-sync replicas per partition.  Raises LabError."""

        def ask() -> Mapping[Any, Future[Any]]:
            return self._client.describe_topics(TopicCollection([topic]), request_timeout=_REQUEST_S)

        return self._one_of_topic(ask, topic)

    def partition(self, topic: str, number: int) -> Any:
        """The description of one partition.  Raises LabUsage where the topic has no such one, LabError."""
        partitions = self.describe(topic).partitions
        for found in partitions:
            if found.id == number:
                return found
        raise no_partition(topic, number, len(partitions))

    def topic_id(self, topic: str) -> str:
        """What tells a topic from a re-created one of the same name."""
        return str(self.describe(topic).topic_id)

    def configs_set(self, topic: str) -> dict[str, str]:
        """The settings that were given to this topic itself.  Raises LabError."""
        resource = ConfigResource(ResourceType.TOPIC, topic)
        entries = self._one_of_topic(lambda: self._client.describe_configs([resource]), topic)
        own = ConfigSource.DYNAMIC_TOPIC_CONFIG.value
        return {name: entry.value for name, entry in entries.items() if entry.source == own}

    def allow_all(self, principals: list[str]) -> None:
        """Let these principals use every topic, group and transactional id.  Raises LabError."""
        everything = [
            (ResourceType.TOPIC, "*", AclOperation.ALL),
            (ResourceType.GROUP, "*", AclOperation.ALL),
            (ResourceType.TRANSACTIONAL_ID, "*", AclOperation.ALL),
            (ResourceType.BROKER, "kafka-cluster", AclOperation.DESCRIBE),
            (ResourceType.BROKER, "kafka-cluster", AclOperation.IDEMPOTENT_WRITE),
        ]
        rules = [
            AclBinding(kind, name, ResourcePatternType.LITERAL, principal, "*", operation, AclPermissionType.ALLOW)
            for principal in principals
            for kind, name, operation in everything
        ]
        self._all(lambda: self._client.create_acls(rules, request_timeout=_REQUEST_S), "create ACLs")

    def ends(self, topic: str, partition: int) -> tuple[int, int]:
        """First and next offset of a partition.  Raises LabError."""
        place = TopicPartition(topic, partition)
        spec: Any = OffsetSpec
        first = self._one(lambda: self._client.list_offsets({place: spec.earliest()}), "list offsets").offset
        after = self._one(lambda: self._client.list_offsets({place: spec.latest()}), "list offsets").offset
        return int(first), int(after)

    def delete_records(self, topic: str, partition: int, before: int) -> int:
        """Trim a partition below an offset; the answer is its new first offset.  Raises LabError."""
        place = TopicPartition(topic, partition, before)
        return int(self._one(lambda: self._client.delete_records([place]), "delete records").low_watermark)

    def elect_preferred(self, topic: str, partition: int) -> None:
        """Make the first replica of the list the leader.  Raises LabError."""
        asked = [TopicPartition(topic, partition)]
        results = self._one(lambda: {0: self._client.elect_leaders(ElectionType.PREFERRED, asked)}, "elect leaders")
        for place, error in results.items():
            if error is not None and error.name() != "ELECTION_NOT_NEEDED":
                raise LabError(f"electing a leader of {place.topic}/{place.partition}: {error}")

    def _one_of_topic(self, ask: Callable[[], Mapping[Any, Future[Any]]], topic: str) -> Any:
        """The answer about a topic: each broker learns of a new one by itself, and the one that is asked may be the
        last."""
        deadline = time.monotonic() + _SPREAD_S
        while True:
            try:
                return self._one(ask, f"describe topic {topic}")
            except LabError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def _one(self, ask: Callable[[], Mapping[Any, Future[Any]]], what: str, *, done: int | None = None) -> Any:
        """The only answer; see `_all`."""
        (answer,) = self._all(ask, what, done=done)
        return answer

    def _all(self, ask: Callable[[], Mapping[Any, Future[Any]]], what: str, *, done: int | None = None) -> list[Any]:
        """The answers to a request, None where an earlier try of it has done the work, as the code `done` says.

        It is made again where the client gave up the connection that it was made on. That happens with a new client,
        when it comes to know by name a broker of which it had only the address. So is one that found no leader: the
        broker that was asked may not know of the topic yet. Raises LabError.
        """
        for tried in itertools.count(1):
            try:
                return [self._answer(future, done if tried > 1 else None) for future in ask().values()]
            except KafkaException as error:
                if error.args[0].code() not in (KafkaError._DESTROY_BROKER, KafkaError._NOENT) or tried == _TRIES:
                    raise LabError(f"Kafka refused to {what}: {error}") from error
                time.sleep(_TRY_PAUSE_S)
            except TimeoutError as error:
                raise LabError(f"Kafka refused to {what}: {error}") from error
        raise AssertionError("the count has no end")

    @staticmethod
    def _answer(future: Future[Any], done: int | None) -> Any:
        try:
            return future.result(timeout=_REQUEST_S * 2)
        except KafkaException as error:
            if done is not None and error.args[0].code() == done:
                return None
            raise


def redis_client(url: str, **options: Any) -> Any:
    """A plain client of one server, with short timeouts."""
    return redis.Redis.from_url(url, socket_timeout=5.0, socket_connect_timeout=2.0, **options)


def redis_answers(url: str) -> bool:
    """Whether the server answers PING with PONG: not while it loads its append-only file."""
    client = redis_client(url)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()


def primary_of_key(urls: list[str], key: str) -> Any:
    """A client of the primary that holds this key.  Raises LabError when none answers for it."""
    for url in urls:
        client = redis_client(url)
        try:
            if client.info("replication")["role"] == "master":
                client.exists(key)  # a cluster node that does not hold the key says so
                return client
        except redis.RedisError:
            pass
        client.close()
    raise LabError(f"no running Redis primary holds {key!r}", hint="see `crossfade lab status`")


@contextlib.contextmanager
def in_words_of_the_lab(key: str) -> Iterator[None]:
    """What a server says about a key, as an error of the lab."""
    try:
        yield
    except redis.RedisError as error:
        if str(error).startswith("WRONGTYPE"):
            raise LabUsage(f"{key!r} is no stream", hint="name a stream key") from error
        raise LabError(f"Redis about {key!r}: {error}", hint="see `crossfade lab status`") from error


def primary_port(sentinel_urls: list[str], service: str) -> int:
    """The port of the primary as the first sentinel that answers names it; 0 when none does."""
    for url in sentinel_urls:
        client = redis_client(url)
        try:
            found: Any = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
        except redis.RedisError:
            continue
        finally:
            client.close()
        if found:
            return int(found[1])
    return 0


def form_cluster(urls: list[str], shown_ports: list[int], ports: list[tuple[int, int]], wait_s: float) -> None:
    """Tie fresh cluster nodes together: the first half are primaries, each of the others replicates one.

    `ports` are (own port, bus port) pairs. Nodes that already are a cluster are left alone. Raises LabError.
    """
    nodes = [redis_client(url, decode_responses=True) for url in urls]
    try:
        if _cluster_is_ok(nodes, len(nodes)):
            return
        primaries = len(nodes) // 2
        slots = [16384 * index // primaries for index in range(primaries + 1)]
        if _cluster_info(nodes[0]).get("cluster_known_nodes") == "1":
            for index in range(primaries):
                nodes[index].execute_command("CLUSTER ADDSLOTSRANGE", slots[index], slots[index + 1] - 1)
                nodes[index].execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
            for port, bus in ports[1:]:
                nodes[0].execute_command("CLUSTER MEET", "127.0.0.1", port, bus)
            ids = [str(node.execute_command("CLUSTER MYID")) for node in nodes]
            for index in range(primaries, len(nodes)):
                _replicate(nodes[index], ids[index - primaries], wait_s)
        if not wait_until(lambda: _cluster_is_ok(nodes, len(nodes)), wait_s):
            raise LabError(f"the cluster did not form in {wait_s:.0f} s: ports {shown_ports}")
    except redis.RedisError as error:
        raise LabError(f"forming the cluster: {error}") from error
    finally:
        for node in nodes:
            node.close()


def _replicate(node: Any, primary_id: str, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            node.execute_command("CLUSTER REPLICATE", primary_id)
            return
        except redis.ResponseError:  # the gossip has not brought the primary's name yet
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _cluster_info(node: Any) -> dict[str, str]:
    found = node.execute_command("CLUSTER INFO")
    if isinstance(found, dict):  # newer client libraries parse it themselves
        return {str(name): str(value) for name, value in found.items()}
    return dict(line.split(":", 1) for line in str(found).splitlines() if ":" in line)


def _cluster_is_ok(nodes: list[Any], count: int) -> bool:
    for node in nodes:
        try:
            info = _cluster_info(node)
        except redis.RedisError:
            return False
        if info.get("cluster_state") != "ok" or info.get("cluster_known_nodes") != str(count):
            return False
    return all(_replica_is_linked(node) for node in nodes)


def _replica_is_linked(node: Any) -> bool:
    info: Any = node.info("replication")
    return bool(info["role"] == "master" or info.get("master_link_status") == "up")


def wait_replicas(url: str, count: int, wait_s: float) -> bool:
    """Wait until this many replicas are online at the primary."""
    client = redis_client(url)

    def linked() -> bool:
        try:
            info: Any = client.info("replication")
        except redis.RedisError:
            return False
        online = [info.get(f"slave{index}", {}) for index in range(int(info.get("connected_slaves", 0)))]
        return len([replica for replica in online if replica.get("state") == "online"]) >= count

    try:
        return wait_until(linked, wait_s)
    finally:
        client.close()


def sentinels_know_all(urls: list[str], service: str, replicas: int) -> bool:
    """Whether every sentinel knows all the others and all replicas: before that a failover does not happen."""
    for url in urls:
        client = redis_client(url, decode_responses=True)
        try:
            found = client.sentinel_master(service)
        except redis.RedisError:
            return False
        finally:
            client.close()
        if found.get("num-other-sentinels") != len(urls) - 1 or found.get("num-slaves") != replicas:
            return False
    return True
