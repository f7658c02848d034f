"""The rights that `--print-acls` prints are enough, over TLS and SCRAM, and a missing one is named.

One secured broker: TLS, SASL, ACLs. The user has exactly what is printed.
"""

import asyncio
import itertools
import os
import secrets
import shlex

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)
from kafka_fixture import read_committed

from crossfade.brokers.kafka import KafkaBoard, KafkaGroup, KafkaInspector, KafkaLog, KafkaSettings, failures
from crossfade.brokers.protocol import Level, Owner, Start
from crossfade.errors import AccessRefused, Indeterminate
from crossfade.lab.lab import Lab
from crossfade.lab.secure import NOBODY, kafka_client
from crossfade.model.position import Place
from crossfade.model.record import Write

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def secured():
    started = Lab.up(f"tests-rights-{os.getpid()}", brokers=1, redis="none", secure=True, owner_pid=os.getpid())
    yield started
    started.down()


@pytest.fixture
def user(secured):
    """Properties of an account that may log in and nothing else."""
    return secured.kafka_properties() | kafka_client(secured.folder, secured.state, "CLIENT", NOBODY)


@pytest.fixture
def administrator(secured):
    return secured.kafka_properties(direct=True)


_KINDS = {
    "--topic": ResourceType.TOPIC,
    "--group": ResourceType.GROUP,
    "--transactional-id": ResourceType.TRANSACTIONAL_ID,
}


def grant(administrator, lines):
    """Do what the printed lines of kafka-acls.sh do."""
    bindings = []
    for line in lines:
        words = shlex.split(line)
        assert words[0] == "kafka-acls.sh"
        pattern, operations = ResourcePatternType.LITERAL, []
        for flag, value in itertools.pairwise(words):
            if flag == "--operation":
                operations.append(AclOperation["_".join(_split(value)).upper()])
            elif flag == "--resource-pattern-type":
                pattern = ResourcePatternType[value.upper()]
            elif flag == "--allow-principal":
                principal = value
            elif flag in _KINDS:
                kind, name = _KINDS[flag], value
        bindings += [
            AclBinding(kind, name, pattern, principal, "*", operation, AclPermissionType.ALLOW)
            for operation in operations
        ]
    admin = AdminClient(administrator)
    for future in admin.create_acls(bindings).values():
        future.result()


def _split(camel):
    words = []
    for letter in camel:
        if letter.isupper():
            words.append("")
        words[-1] += letter
    return words


async def acl_of(inspector, role):
    return next(found for found in await inspector.inspect(role, 60) if found.check == "kafka.acl-own")


async def test_what_is_printed_is_enough(user, administrator):
    source, target = f"source-{secrets.token_hex(4)}", f"target-{secrets.token_hex(4)}"
    config = {"retention.ms": "-1"}
    for topic in (source, target):
        _create_single(administrator, topic, config)
    settings = KafkaSettings(user)
    stranger = KafkaLog(settings, source)
    with pytest.raises(AccessRefused):
        await stranger.open()
    await stranger.close()
    route = f"route-{secrets.token_hex(4)}"
    read_and_write = f"--allow-principal {settings.principal} --operation Read --operation Write --operation Describe"
    grant(administrator, [f"kafka-acls.sh {read_and_write} --topic {target}"])
    found = await acl_of(KafkaInspector(settings, target, route), "target")
    assert found.level is Level.FAIL
    assert "topic crossfade.control" in found.found
    assert f"group crossfade.{route}" in found.found
    sourced = KafkaInspector(settings, source, route)
    grant(administrator, sourced.acls("source"))
    assert (await sourced.routes(), await sourced.footprint(route)) == (set(), [])  # uninstall may look
    grant(administrator, KafkaInspector(settings, target).acls("target"))
    found = await acl_of(KafkaInspector(settings, target, route), "target")
    assert found.level is Level.UNKNOWN
    assert "transactional ids" in found.found

    reading = KafkaLog(settings, source)
    await reading.open()
    places = await reading.begin([0], Start())
    async with asyncio.timeout(30):
        while not (batches := await reading.read(places, 10, 1 << 20, 1.0)):
            pass
    assert batches[0].at_end

    writing = KafkaLog(settings, target, allow_weak=True)
    await writing.open()

    class Listener:
        def __init__(self):
            self.token = asyncio.get_running_loop().create_future()

        async def assigned(self, lanes, token):
            if lanes and not self.token.done():
                self.token.set_result(token)

    listener = Listener()
    membership = asyncio.create_task(KafkaGroup(settings, route=route, lanes=1, instance="a").run(listener))
    await asyncio.wait({membership, listener.token}, timeout=60, return_when=asyncio.FIRST_COMPLETED)
    rows = [(b"k", b"v", None, 1_700_000_000_000), (b"k", b"v", [("\ud800", b"")], 1_700_000_000_000)]
    write = Write((0, 0), [0, 1], rows, Place("1", 2, "i"), [], 1)
    while True:
        claim = await writing.claim(Owner(route, "a", "s", token=listener.token.result()), [(0, 0)])
        try:
            outcome = (await writing.append(claim, [write]))[0, 0]
            break
        except Indeterminate:  # the first transaction of a cold broker may take as long as a retry
            assert claim.markers == {}
    assert (outcome.records, outcome.quarantined) == (1, 1)
    async with asyncio.timeout(30):
        while await writing.conditions([0]):  # noqa: ASYNC110 - a commit is answered before readers see it
            await asyncio.sleep(0.05)
    assert len(read_committed(administrator, target, 0)) == 1

    membership.cancel()
    await asyncio.gather(membership, return_exceptions=True)
    board = KafkaBoard(settings)
    version = await board.put(f"{route}/x", b"1", 0)
    assert (await board.get(f"{route}/x")).version == version
    await board.put(f"{route}/x", b"2")
    await board.close()

    for topic, role in ((source, "source"), (target, "target")):
        found = {f.check: f for f in await KafkaInspector(settings, topic, route).inspect(role, 60)}
        assert found["kafka.acl"].level is Level.OK
        assert found["kafka.acl-own"].level is Level.UNKNOWN
    assert found["kafka.board"].level is Level.OK
    for topic, is_old in ((source, False), (target, True)):
        inspector = KafkaInspector(settings, topic, route)
        assert inspector.oldest_s is None
        await inspector.inspect("source", 60)
        assert inspector.oldest_s is not None
        assert (inspector.oldest_s > 86_400) is is_old
    # Who is asked for no right (an administrator, or anybody on a cluster without ACLs) has nothing to compare.
    assert (await acl_of(KafkaInspector(KafkaSettings(administrator), target, route), "target")).level is Level.OK
    assert found["kafka.replication"].level is Level.FAIL
    assert found["kafka.offsets-topic"].level is Level.UNKNOWN  # its description is not among the least rights
    await writing.close()
    inspector = KafkaInspector(settings, target)
    assert await inspector.routes() == {route}
    left = await inspector.footprint(route)
    assert len(left) >= 4
    await inspector.erase(route, [name for name in left if not name.startswith("group")])
    await reading.close()


def _create_single(administrator, topic, config):
    admin = AdminClient(administrator)
    admin.create_topics([NewTopic(topic, 1, 1, config=config)])[topic].result()


async def test_a_wrong_password_is_named(user):
    log = KafkaLog(KafkaSettings(user | {"sasl.password": "wrong"}), "t")
    with pytest.raises(AccessRefused, match="credentials"):
        await log.open()
    await log.close()


async def test_new_credentials_are_used_by_live_handles(user, monkeypatch):
    monkeypatch.setattr(failures, "_EXPLAINS_S", 0.5)  # so long the old refusal explains whatever fails
    password = ["old"]
    settings = KafkaSettings(user | {"sasl.password": lambda: password[0]})
    log = KafkaLog(settings, "t")
    with pytest.raises(AccessRefused, match="credentials"):
        await log.open()
    handle = log.cluster.admin
    password[0] = user["sasl.password"]
    told = "credentials"
    async with asyncio.timeout(30):
        while "credentials" in told:
            with pytest.raises(AccessRefused) as caught:
                await log.open()
            told = str(caught.value)
    assert "topic t" in told
    assert log.cluster.admin is handle
    await log.close()
