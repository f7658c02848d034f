"""What a configuration says of a Redis broker reaches the log: `read: replicated` and `memory_bytes_max`."""

import json
import os
import secrets

import pytest
from redis_fixture import application, redis_settings

from crossfade import wiring
from crossfade.brokers.protocol import Level, Owner, Start
from crossfade.brokers.redis import RedisLog, RedisSettings
from crossfade.brokers.redis.rights import acl_line, key_patterns
from crossfade.config import load
from crossfade.errors import AccessRefused, TargetFull, Unreachable
from crossfade.lab import Lab
from crossfade.model.position import Place
from crossfade.model.record import Batch, Write

pytestmark = pytest.mark.lab


@pytest.fixture
async def server(valkey_lab):
    settings = redis_settings(valkey_lab)
    if settings.mode != "standalone":
        pytest.skip("these have replicas")
    client = application(settings)
    yield settings, client
    await client.aclose()


@pytest.fixture(scope="module")
def replicated_lab():
    """A primary with replicas."""
    started = Lab.up(f"tests-replicated-{os.getpid()}", brokers=0, redis="sentinel", owner_pid=os.getpid())
    yield started
    started.down()


def config_of(tmp_path, settings, *, source=None, target=None):
    """A route from two stream keys to two others of one server."""
    url = f"redis://{settings.addresses[0]}"
    stem = f"options-{secrets.token_hex(4)}"
    document = {
        "version": 1,
        "brokers": {
            "old": {"kind": "redis", "url": url, "request_timeout_s": 0.5, **(source or {})},
            "new": {"kind": "redis", "url": url, **(target or {})},
        },
        "streams": {
            "s": {"old": {"lanes": f"{stem}:<lane>", "count": 2}, "new": {"lanes": f"copy:{stem}:<lane>", "count": 2}}
        },
        "routes": {"r": {"id": stem, "stream": "s", "source": "old", "target": "new", "metrics_port": 0}},
    }
    path = tmp_path / "crossfade.yaml"
    path.write_text(json.dumps(document))
    return load(path, {}, {})


async def test_a_configured_source_waits_for_replicas_and_says_that_there_are_none(server, tmp_path):
    settings, client = server
    config = config_of(tmp_path, settings, source={"read": "replicated"})
    async with wiring.open_route(config, "r") as opened:
        places = await opened.source.begin([0, 1], Start())
        await client.xadd(opened.source.stream_keys[0], {"n": 1})
        with pytest.raises(Unreachable, match="0 of 1 replicas") as told:
            await opened.source.read(places, 10, 1 << 20, 0.1)
        assert "read: at_once" in told.value.hint


async def test_an_audit_of_such_a_source_writes_nothing_and_so_waits_for_nobody(server, tmp_path):
    settings, client = server
    config = config_of(tmp_path, settings, source={"read": "replicated"})
    async with wiring.open_route(config, "r", copies=False) as opened:
        await client.xadd(opened.source.stream_keys[0], {"n": 1})
        batch = (await opened.source.read({0: Place()}, 10, 1 << 20, 0.1))[0]
        assert len(batch.rows) == 1


async def test_a_source_is_read_at_once_where_nothing_is_said_or_the_target_says_it(server, tmp_path):
    settings, client = server
    config = config_of(tmp_path, settings, target={"read": "replicated"})
    async with wiring.open_route(config, "r") as opened:
        for log in (opened.source, opened.target):
            places = await log.begin([0, 1], Start())
            await client.xadd(log.stream_keys[0], {"n": 1})
            assert len((await log.read(places, 10, 1 << 20, 0.1))[0].rows) == 1


@pytest.mark.parametrize(("budget", "is_full"), [(1000, True), (1 << 40, False), (0, False)])
async def test_a_configured_memory_budget_holds_the_target(server, tmp_path, budget, is_full):
    settings, client = server
    config = config_of(tmp_path, settings, target={"memory_bytes_max": budget}, source={"memory_bytes_max": 1000})
    async with wiring.open_route(config, "r") as opened:
        claim = await opened.target.claim(Owner("r", "one", "digest", paths=((0, 0),)), ((0, 0),))
        write = Write((0, 0), [b"1-1"], [([b"v", b"1"], 1)], Place("1-1", -1, "x"))
        outcome = (await opened.target.append(claim, [write]))[0, 0]
        assert isinstance(outcome, TargetFull) == is_full
        assert await client.xlen(opened.target.stream_keys[0]) == (0 if is_full else 1)
        if is_full:
            assert "memory_bytes_max" in outcome.hint


async def test_doctor_says_what_the_options_need(server, tmp_path):
    settings, _ = server
    config = config_of(tmp_path, settings, source={"read": "replicated"}, target={"memory_bytes_max": 1000})
    found = {}
    for role in ("source", "target"):
        async with wiring.open_inspectors(config, "r", (role,)) as [(_, _, inspector)]:
            found[role] = {finding.check: finding for finding in await inspector.inspect(role, 60.0)}
    replicas, memory = found["source"]["redis.replicas"], found["target"]["redis.maxmemory"]
    assert (replicas.level, memory.level) == (Level.FAIL, Level.FAIL)
    assert "read: at_once" in replicas.fix
    assert "memory_bytes_max" in memory.found + memory.fix
    assert found["target"]["redis.replicas"].level is Level.WARN
    assert found["source"]["redis.maxmemory"].level is Level.OK


async def test_with_replicas_a_source_gives_what_all_of_them_have(replicated_lab):
    """Under the printed rights; never where the write that WAIT stands behind was refused, or the primary changed."""
    admin = redis_settings(replicated_lab)
    client = application(admin)
    name, user = f"options-{secrets.token_hex(4)}", f"least-{secrets.token_hex(4)}"
    least = RedisSettings(
        admin.addresses, mode="sentinel", sentinel_name=admin.sentinel_name, username=user, password="secret"
    )
    line = acl_line(least, {"source": key_patterns([name.encode()])}, replicated=True)
    await client.execute_command(*line.split(), ">secret")
    log = RedisLog(least, [name], name=name, read="replicated")
    place = (await log.begin([0], Start()))[0]
    await client.xadd(name, {"n": 1})
    batch = (await log.read({0: place}, 10, 1 << 20, 0.5))[0]
    assert isinstance(batch, Batch)
    assert len(batch.rows) == 1

    look = log.source._looker.look

    async def cut_after_the_read(*asked):
        found = await look(*asked)
        (await log.nodes.of_key(name.encode())).abort("the primary changed")
        return found

    log.source._looker.look = cut_after_the_read
    with pytest.raises(Unreachable):
        await log.read({0: place}, 10, 1 << 20, 0.1)
    log.source._looker.look = look

    await client.execute_command("ACL", "SETUSER", user, "-xgroup|setid")
    with pytest.raises(AccessRefused, match="setid"):
        await log.read({0: place}, 10, 1 << 20, 0.1)
    await log.close()
    await client.acl_deluser(user)
    await client.delete(name)
    await client.aclose()
