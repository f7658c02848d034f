"""What real servers say when they are demoted, paused or have a script ended, and how the next call gets on."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets

import pytest
from redis_fixture import RedisBackend, make_redis_log

from crossfade.brokers.protocol import Owner, Start
from crossfade.brokers.redis import births, nodes
from crossfade.brokers.redis.link import connect, pack
from crossfade.brokers.redis.replies import as_error
from crossfade.errors import Unreachable
from crossfade.model.position import Place
from crossfade.model.record import Batch, Write

pytestmark = pytest.mark.lab


@pytest.fixture(params=["valkey", "redis7"])
async def server(request):
    made = RedisBackend(request.getfixturevalue(f"{request.param}_lab"))
    if made.settings.mode != "standalone":
        pytest.skip("one server becomes a replica on command")
    yield made
    await made.close()


@pytest.fixture
async def others(request, server):
    made = RedisBackend(request.getfixturevalue("redis7_lab" if "valkey" in request.node.name else "valkey_lab"))
    if made.settings.mode != "standalone":
        pytest.skip("one server becomes a replica on command")
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def demoted(server):
    await server.application.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        yield
    finally:
        await server.application.execute_command("REPLICAOF", "NO", "ONE")


async def test_what_is_written_follows_a_name_that_was_moved(server, others, monkeypatch):
    """Also where the connection to the old primary, now a replica, stays open: Redis does not close it."""
    leads_to = [server.settings.addresses[0]]
    monkeypatch.setattr(nodes, "connect", lambda settings, _: connect(settings, leads_to[-1]))
    log = await make_redis_log(server.settings, 1, f"failover-{secrets.token_hex(4)}")
    owner, one = (
        Owner("r", "one", "digest", paths=((0, 0),)),
        Write((0, 0), [1], [([b"v", b"1"], 1)], Place("1", 2, "x")),
    )
    taken = await log.claim(owner, [(0, 0)])
    await log.append(taken, [one])
    async with demoted(server):
        leads_to.append(others.settings.addresses[0])
        with pytest.raises(Unreachable, match="become a replica"):
            await log.append(taken, [dataclasses.replace(one, positions=[2], place=Place("2", 3, "x"))])
        taken = await log.claim(owner, [(0, 0)])
        await log.append(taken, [one])
        assert await others.application.xlen(log.stream_keys[0]) == 1
    await log.close()
    assert await server.application.xlen(log.stream_keys[0]) == 1


async def test_who_waits_for_replicas_while_the_server_becomes_one_may_try_again(server):
    address = server.settings.addresses[0]
    waiting = await connect(server.settings, address)
    reply = waiting.send(pack([("WAIT", 1, 0)]), 1)
    await asyncio.sleep(0.05)
    async with demoted(server):
        (unblocked,) = await waiting.wait(reply)
        link = await connect(server.settings, address)
        (refused,) = await link.call([("WAIT", 1, 10)])
    assert str(unblocked).startswith("UNBLOCKED ")
    assert str(refused).startswith("ERR WAIT ")
    for told in (unblocked, refused):
        assert isinstance(as_error(told, "waiting"), Unreachable)
    link.abort("done")


async def test_a_script_that_somebody_ended_may_be_run_again(server):
    client = server.application
    before = (await client.config_get("lua-time-limit"))["lua-time-limit"]
    await client.config_set("lua-time-limit", 20)
    link = await connect(server.settings, server.settings.addresses[0])
    reply = link.send(pack([("EVAL", "while true do end", 0)]), 1)
    await asyncio.sleep(0.2)
    await client.script_kill()
    (killed,) = await link.wait(reply)
    assert isinstance(as_error(killed, "running"), Unreachable)
    assert "SCRIPT KILL" in str(killed)
    link.abort("done")
    await client.config_set("lua-time-limit", before)


async def test_what_was_read_is_handed_out_though_a_paused_server_takes_no_birth(server, monkeypatch):
    monkeypatch.setattr(births, "VOUCH_EVERY_S", 0.0)
    settings = dataclasses.replace(server.settings, request_timeout_s=0.5)
    log = await make_redis_log(settings, 1, f"failover-{secrets.token_hex(4)}")
    key, client = log.stream_keys[0], server.application
    place = (await log.begin([0], Start()))[0]
    for number in range(3):
        await client.xadd(key, {"n": number})
    for _ in range(2):
        place = (await log.read({0: place}, 1, 1 << 20, 0.1))[0].place
    await client.execute_command("CLIENT", "PAUSE", 30_000, "WRITE")
    try:
        batch = (await log.read({0: place}, 1, 1 << 20, 0.1))[0]
        assert isinstance(batch, Batch)
        assert len(batch.rows) == 1
        assert not log.nodes._links[settings.addresses[0]].is_open  # nothing was said to the birth
    finally:
        await client.execute_command("CLIENT", "UNPAUSE")
    assert not (await log.read({0: batch.place}, 1, 1 << 20, 0.1))[0].rows
    await log.close()
    await client.delete(key)
