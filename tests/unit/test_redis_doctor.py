"""What the doctor makes of servers that tell less: older ones, and those that refuse INFO or CONFIG."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import hiredis
import pytest

from crossfade.brokers.protocol import Finding, Level
from crossfade.brokers.redis import Address, RedisInspector, RedisSettings

_NOW_MS = int(time.time() * 1000)
_REFUSED = hiredis.ReplyError("NOPERM this user has no permissions to run this command")
_UNKNOWN_COMMAND = hiredis.ReplyError("ERR unknown command or wrong number of arguments")
_CONFIG = ["appendfsync", "everysec", "save", "", "min-replicas-to-write", "1"]
#: what XINFO STREAM tells since 5.0; later servers put more behind it
_STREAM = ["length", 1, "radix-tree-keys", 1, "radix-tree-nodes", 2, "last-generated-id", f"{_NOW_MS}-0", "groups", 0]
_STREAM += ["first-entry", [f"{_NOW_MS}-0", ["f", "v"]], "last-entry", [f"{_NOW_MS}-0", ["f", "v"]]]
_COUNTED = ["max-deleted-entry-id", "0-0", "entries-added", 1, "recorded-first-entry-id", f"{_NOW_MS}-0"]


def info(version: str) -> str:
    fields = f"redis_version:{version}\r\n" if version else ""
    fields += "role:master\r\nconnected_slaves:1\r\naof_enabled:1\r\n"
    return fields + "maxmemory_policy:noeviction\r\nused_memory:1\r\nmaxmemory:100\r\n"


def packed(reply: Any) -> bytes:
    if isinstance(reply, hiredis.ReplyError):
        return f"-{reply}\r\n".encode()
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, list):
        return b"*%d\r\n" % len(reply) + b"".join(map(packed, reply))
    return b"$%d\r\n%s\r\n" % (len(reply.encode()), reply.encode())


@contextlib.asynccontextmanager
async def server(answers: dict[str, Any]) -> AsyncIterator[RedisSettings]:
    """A primary that answers by the first word of a command; one that it does not know is an error."""
    told = {"PING": "PONG", "CLIENT": "OK", "ROLE": ["master", 0, []], "TYPE": "stream", "CONFIG": _CONFIG}
    told |= {"TIME": [str(int(time.time())), "0"], "XINFO": _STREAM} | answers

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        while data := await reader.read(65536):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                writer.write(packed(told.get(command[0].decode().upper(), _UNKNOWN_COMMAND)))
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield RedisSettings(addresses=(Address("127.0.0.1", listening.sockets[0].getsockname()[1]),))
    finally:
        listening.close()


async def findings(role: str = "source", **answers: Any) -> dict[str, Finding]:
    async with server(answers) as settings:
        found = await RedisInspector(settings, ["a", "b"]).inspect(role, 3600.0)
    return {finding.check: finding for finding in found}


@pytest.mark.parametrize("version", ["5.0.14", "6.0.16", "6.2.14"])
@pytest.mark.parametrize("role", ["source", "target"])
async def test_an_older_server_is_told_by_its_version(version: str, role: str) -> None:
    found = await findings(role, INFO=info(version))
    assert (found["redis.version"].level, found["redis.version"].found) == (Level.FAIL, f"Redis {version}")
    assert found["redis.acl"].level is Level.UNKNOWN
    assert found["redis.keys"].level is found["redis.ids"].level is Level.OK
    if role == "source":
        assert found["redis.trimming"].level is Level.UNKNOWN


async def test_a_server_that_counts_is_judged_by_it() -> None:
    found = await findings(INFO=info("7.0.0"), XINFO=[*_STREAM, *_COUNTED])
    assert found["redis.version"].level is found["redis.trimming"].level is Level.OK


async def test_what_info_leaves_out_is_unknown() -> None:
    found = await findings(INFO="used_memory:1\r\n")
    for check in ("version", "eviction", "maxmemory", "persistence", "replicas"):
        assert found[f"redis.{check}"].level is Level.UNKNOWN, check
        assert found[f"redis.{check}"].fix, check


@pytest.mark.parametrize("version", ["255.x", "unstable"])
async def test_a_version_that_is_no_number_is_unknown(version: str) -> None:
    assert (await findings(INFO=info(version)))["redis.version"].level is Level.UNKNOWN


async def test_refused_commands_are_unknown() -> None:
    found = await findings(INFO=_REFUSED, CONFIG=_REFUSED, TIME=_REFUSED, XINFO=_REFUSED, ACL=_REFUSED)
    assert {finding.level for finding in found.values()} == {Level.UNKNOWN}
    found = await findings(INFO=info("7.2.4"), CONFIG=_REFUSED)
    assert found["redis.persistence"].level is found["redis.replicas"].level is Level.UNKNOWN
