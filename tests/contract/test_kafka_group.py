"""Lanes that a Kafka group hands out: moves, members of one name, and who may write beside a group."""

import asyncio
import contextlib
import secrets
import sys
import time

import pytest
from confluent_kafka import Consumer, TopicPartition
from kafka_copy import NOW, Copy, keys
from kafka_fixture import KafkaBackend

from crossfade.brokers.kafka import KafkaGroup, KafkaSettings, names
from crossfade.errors import Fenced, Indeterminate, RouteConflict

pytestmark = pytest.mark.lab


@pytest.fixture
async def backend(lab):
    made = KafkaBackend(lab)
    yield made
    await made.close()


class Member:
    """A listener that keeps what it was told."""

    def __init__(self):
        self.lanes, self.token, self.told = frozenset(), None, []

    async def assigned(self, lanes, token):
        self.lanes, self.token = lanes, token
        self.told.append(("assigned", lanes))

    async def revoked(self, lanes):
        self.lanes -= lanes
        self.told.append(("revoked", lanes))

    async def lost(self, lanes):
        self.lanes -= lanes
        self.told.append(("lost", lanes))


@contextlib.asynccontextmanager
async def member(properties, route, lanes, instance, **more):
    listener = Member()
    group = KafkaGroup(KafkaSettings(properties), route=route, lanes=lanes, instance=instance, **more)
    listener.task = asyncio.create_task(group.run(listener))
    try:
        yield listener
    finally:
        listener.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Fenced):
            await listener.task


async def until_true(condition, wait_s=30.0):
    until = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < until
        await asyncio.sleep(0.05)


async def test_lanes_move_between_processes_and_an_old_generation_cannot_write(backend):
    log, other = await backend.log(4), None
    route = f"route-{secrets.token_hex(4)}"
    async with member(backend.properties, route, 4, "a") as one:
        await until_true(lambda: len(one.lanes) == 4)
        copy = Copy(log, route, "a", paths=tuple((lane, lane) for lane in range(4)), token=one.token)
        await copy.take()
        await log.append(copy.claim, [copy.write(0, 2, path) for path in copy.paths])
        async with member(backend.properties, route, 4, "b") as two:
            await until_true(lambda: len(two.lanes) == 2 and len(one.lanes) == 2)
            assert not one.lanes & two.lanes
            given_away = min(two.lanes)
            with pytest.raises((Fenced, Indeterminate)):
                await log.append(copy.claim, [copy.write(2, 1, (given_away, given_away))])
            other = await backend.other(log)
            taken = Copy(other, route, "b", paths=tuple((lane, lane) for lane in two.lanes), token=two.token)
            claim = await taken.take()
            assert {marker.ordinal for marker in claim.markers.values()} == {2}
            kept = Copy(log, route, "a", paths=tuple((lane, lane) for lane in one.lanes), token=one.token)
            await kept.take()
            # neither fences the other: both are live members
            for each in (taken, kept):
                await each.log.append(each.claim, [each.write(2, 1, path) for path in each.paths])
        gone = time.monotonic()
        await until_true(lambda: len(one.lanes) == 4)
        assert time.monotonic() - gone < 12
        again = Copy(log, route, "a", paths=tuple((lane, lane) for lane in range(4)), token=one.token)
        claim = await again.take()
        assert {marker.ordinal for marker in claim.markers.values()} == {3}
        with pytest.raises((Fenced, Indeterminate)):  # the one that left is fenced by its own id
            await other.append(taken.claim, [taken.write(3, 1, (given_away, given_away))])
        # lanes by hand do not mix with a live group
        with pytest.raises(RouteConflict, match="group mode"):
            await Copy(await backend.other(log), route, "hand").take()
    for lane in range(4):
        assert await keys(backend, log, lane) == [0, 1, 2]


async def test_a_second_process_of_the_same_name_takes_over_and_the_first_says_so(backend):
    route = f"route-{secrets.token_hex(4)}"
    async with member(backend.properties, route, 2, "a") as one:
        await until_true(lambda: len(one.lanes) == 2)
        async with member(backend.properties, route, 2, "a") as two:
            await until_true(lambda: len(two.lanes) == 2)
            with pytest.raises(Fenced, match="instance 'a'"):
                await asyncio.wait_for(one.task, 30)


async def test_a_group_on_the_source_topic_commits_nothing(backend):
    log = await backend.log(3)
    await backend.write_native(log, 0, [(b"k", b"v", None, NOW)])
    route = f"route-{secrets.token_hex(4)}"
    async with member(backend.properties, route, 3, "a", topic=log.name) as one:
        await until_true(lambda: len(one.lanes) == 3)
        await asyncio.sleep(1)
    consumer = Consumer(backend.properties | {"group.id": names.group(route)})
    committed = await asyncio.to_thread(consumer.committed, [TopicPartition(log.name, lane) for lane in range(3)], 10)
    assert {partition.offset for partition in committed} == {-1001}
    consumer.close()
    assert await log.cluster.topic(names.lanes_topic(route)) is None


_ASKING = """
import asyncio, sys
from crossfade.brokers.kafka import KafkaSettings
from crossfade.brokers.kafka.cluster import Cluster
from crossfade.errors import Unreachable

async def ask():
    cluster = Cluster(KafkaSettings({"bootstrap.servers": sys.argv[1]}))
    while True:
        try:
            print("members:", *await cluster.live_instances(sys.argv[2]), flush=True)
        except Unreachable:
            print("members unknown", flush=True)
        await asyncio.sleep(0.05)

asyncio.run(ask())
"""


@pytest.mark.long
async def test_asking_who_runs_survives_brokers_that_come_and_go(lab, backend):
    """The way of asking that the library recommends aborts the process here."""
    route = f"route-{secrets.token_hex(4)}"
    log = await backend.log(1)
    await Copy(log, route).begin(0, 1)
    links = ["kafka-1", "kafka-2", "kafka-3"]
    async with member(backend.properties, route, 1, "a.b-c") as one:
        await until_true(lambda: len(one.lanes) == 1)
        address = lab.kafka_properties()["bootstrap.servers"]
        asking = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _ASKING, address, names.group(route), stdout=asyncio.subprocess.PIPE
        )
        said: list[bytes] = []

        async def hear():
            async for line in asking.stdout:  # among its log
                if line.startswith(b"members"):
                    said.append(line)

        heard = asyncio.create_task(hear())
        try:
            for break_link in (lab.faults.cut, lab.faults.half_open) * 3:
                await asyncio.gather(*(asyncio.to_thread(break_link, link, heal_after_s=3.0) for link in links))
                await asyncio.sleep(4.0)
                await asyncio.gather(*(asyncio.to_thread(lab.faults.reset, link) for link in links))
                await asyncio.sleep(1.0)
            assert asking.returncode is None
            # The member may have been counted out for a moment.
            assert set(said) <= {b"members: a.b-c\n", b"members:\n", b"members unknown\n"}
            said.clear()
            await until_true(lambda: said[-1:] == [b"members: a.b-c\n"])
        finally:
            if asking.returncode is None:
                asking.kill()
            await heard
