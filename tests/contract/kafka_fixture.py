"""Kafka for the contract suite: applications by the plain client library, damage by the admin API."""

import asyncio
import contextlib
import itertools
import secrets
import time

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from crossfade.brokers.kafka import KafkaBoard, KafkaLog, KafkaSettings
from crossfade.brokers.kafka.cluster import LATEST
from crossfade.model.record import Shape

_numbers = itertools.count()
_MESSAGE_BYTES_MAX = 65_536
_PASSING = (KafkaError.TOPIC_ALREADY_EXISTS, KafkaError._DESTROY_BROKER)


async def make_kafka_log(properties, lanes, prefix, topic_config=None, **options):
    """An open log over a new topic of `lanes` partitions, three replicas and endless retention."""
    config = {"min.insync.replicas": "2", "retention.ms": "-1", "max.message.bytes": str(_MESSAGE_BYTES_MAX)}
    await asyncio.to_thread(_create, properties, prefix, lanes, config | (topic_config or {}))
    return await open_kafka_log(properties, prefix, **options)


async def open_kafka_log(properties, topic, **options):
    made = KafkaLog(KafkaSettings(properties), topic, **options)
    await made.open()
    return made


def _create(properties, topic, lanes, config, wait_s=20.0):
    admin = AdminClient(properties)
    until = time.monotonic() + wait_s
    is_doubtful = False  # the client gave up the connection under the request, which may have arrived
    while True:
        try:
            admin.create_topics([NewTopic(topic, lanes, 3, config=config)])[topic].result()
            break
        except KafkaException as failure:
            code = failure.args[0].code()
            if is_doubtful and code == KafkaError.TOPIC_ALREADY_EXISTS:
                break
            is_doubtful = is_doubtful or code == KafkaError._DESTROY_BROKER
            # or the old topic of that name is still being deleted
            if code not in _PASSING or time.monotonic() > until:
                raise
            time.sleep(0.1)
    while True:
        found = admin.list_topics(topic, timeout=10).topics[topic]
        if len(found.partitions) == lanes and all(p.leader >= 0 for p in found.partitions.values()):
            return
        assert time.monotonic() < until, f"{topic} got no leaders"
        time.sleep(0.05)


def _wait_known(properties, topic, old_id, wait_s=20.0):
    """Wait until no broker takes the topic for the old one of that name any more."""
    until = time.monotonic() + wait_s
    for address in properties["bootstrap.servers"].split(","):
        while True:  # a fresh client knows this broker alone
            admin = AdminClient(properties | {"bootstrap.servers": address})
            try:
                if str(admin.describe_topics(TopicCollection([topic]))[topic].result().topic_id) != old_id:
                    break
            except KafkaException as failure:
                if failure.args[0].code() not in (*_PASSING, KafkaError.UNKNOWN_TOPIC_OR_PART):
                    raise
            assert time.monotonic() < until, f"{address} still shows the old {topic}"
            time.sleep(0.05)


def read_committed(properties, topic, lane, wait_s=20.0):
    """All committed messages of one partition, by a plain consumer."""
    consumer = Consumer(
        properties
        | {
            "group.id": f"reader-{secrets.token_hex(4)}",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 10,
        }
    )
    found, until = [], time.monotonic() + wait_s
    try:
        consumer.assign([TopicPartition(topic, lane, 0)])
        while time.monotonic() < until:
            message = consumer.poll(0.5)
            if message is None:
                continue
            if message.error() is None:
                found.append(message)
            elif message.error().code() == KafkaError._PARTITION_EOF:
                return found
            else:
                raise KafkaException(message.error())
    finally:
        consumer.close()
    raise AssertionError(f"{topic}[{lane}] has no end")


class KafkaBackend:
    """Topics on a real cluster; every test gets topics of its own."""

    shape = Shape.RECORD
    oversize_bytes = 5 * _MESSAGE_BYTES_MAX
    can_regress = False  # losing acknowledged records needs an unclean election
    can_cut_reply = True
    deletes_are_seen = False

    def __init__(self, lab):
        self.properties = lab.kafka_properties()
        self.application = Producer(self.properties | {"acks": "all", "enable.idempotence": True, "linger.ms": 0})
        self._logs = []

    async def log(self, lanes, topic_config=None):
        name = f"contract-{secrets.token_hex(4)}-{next(_numbers)}"
        made = await make_kafka_log(self.properties, lanes, name, topic_config)
        self._logs.append(made)
        return made

    async def other(self, log):
        made = await open_kafka_log(self.properties, log.name)
        self._logs.append(made)
        return made

    async def board(self):
        return KafkaBoard(KafkaSettings(self.properties))

    async def write_native(self, log, lane, rows):
        def write():
            failed = []
            for key, value, headers, time_ms in rows:
                self.application.produce(
                    log.name,
                    value,
                    key,
                    lane,
                    headers=headers,
                    timestamp=time_ms,
                    callback=lambda error, _: failed.append(error) if error is not None else None,
                )
            assert self.application.flush(20) == 0
            assert failed == []

        await asyncio.to_thread(write)

    async def read_all(self, log, lane):
        await self._settled(log, lane)
        found = await asyncio.to_thread(read_committed, self.properties, log.name, lane)
        return [(m.key(), m.value(), m.headers(), m.timestamp()[1]) for m in found]

    async def _settled(self, log, lane, wait_s=30.0):
        """A commit is answered before readers see it: wait until no transaction is open."""
        until = time.monotonic() + wait_s
        while await log.conditions([lane]):
            assert time.monotonic() < until, "a transaction stays open"
            await asyncio.sleep(0.01)

    async def trim(self, log, lane, keep):
        await self._settled(log, lane)
        end = (await log.cluster.offsets(log.name, [lane], LATEST))[lane]
        await log.cluster.delete_records(log.name, {lane: end - keep})

    async def delete(self, log, lane, position):
        pytest.skip("one record in the middle of a Kafka topic goes by compaction alone")

    async def recreate(self, log, lane):
        config = {"min.insync.replicas": "2", "retention.ms": "-1", "max.message.bytes": str(_MESSAGE_BYTES_MAX)}
        old_id = await log.cluster.topic_id(log.name)
        await log.cluster.delete_topics([log.name])
        await asyncio.to_thread(_create, self.properties, log.name, log.lanes, config)
        await asyncio.to_thread(_wait_known, self.properties, log.name, old_id)
        # the application's producer must not hold the old topic's sequence numbers
        self.application = Producer(self.properties | {"acks": "all", "enable.idempotence": True, "linger.ms": 0})

    async def regress(self, log, lane, records):
        raise AssertionError("guarded by can_regress")

    async def quarantined(self, log, route):
        topic = f"crossfade.{route}.quarantine"
        # A broker may not know yet what was just created elsewhere.
        for pause_s in (0.2, 0.5, 1.0, 0.0):
            if await log.cluster.topic(topic) is not None:
                break
            await asyncio.sleep(pause_s)
        else:
            return []
        found = []
        for message in await asyncio.to_thread(read_committed, self.properties, topic, 0):
            headers = dict(message.headers())
            found.append((int(headers["lane"]), headers["position"].decode(), headers["reason"].decode()))
        return found

    @contextlib.asynccontextmanager
    async def cut_reply(self, log, *, applied):
        writer = log._target._claims._writers[-1]
        writer._producer = _CutCommit(writer._producer, applied=applied)
        yield

    async def close(self):
        for made in self._logs:
            await made.close()


class _CutCommit:
    """A producer whose commit is not answered: the request is served, or it is lost."""

    def __init__(self, producer, *, applied):
        self._producer = producer
        self._applied = applied

    def __getattr__(self, name):
        return getattr(self._producer, name)

    def commit_transaction(self, timeout):
        if self._applied:
            self._producer.commit_transaction(timeout)
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "the reply was cut on its way", retriable=True))
