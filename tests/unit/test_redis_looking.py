"""What a look makes of servers that tell too little: from before Redis 7.0, though no version is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import hiredis
import pytest

from crossfade.brokers.protocol import Start
from crossfade.brokers.redis import Address, RedisLog, RedisSettings
from crossfade.errors import UsageError

#: what XINFO STREAM tells since 5.0; later servers put more behind it
_STREAM = [b"length", 1, b"radix-tree-keys", 1, b"radix-tree-nodes", 2, b"last-generated-id", b"1-0", b"groups", 0]
_STREAM += [b"first-entry", [b"1-0", [b"f", b"v"]], b"last-entry", [b"1-0", [b"f", b"v"]]]
_COUNTED = [b"max-deleted-entry-id", b"0-0", b"entries-added", 1]
_OLD = (
    "{} is too old: Redis 7.0 or any Valkey is needed",
    "older servers do not count the entries ever added, so a loss could not be seen; upgrade it",
)


def packed(reply: Any) -> bytes:
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, list):
        return b"*%d\r\n" % len(reply) + b"".join(map(packed, reply))
    return b"$%d\r\n%s\r\n" % (len(reply), reply)


@contextlib.asynccontextmanager
async def server(stream: list[Any], version: bytes = b"") -> AsyncIterator[RedisSettings]:
    """A primary with one stream."""
    told: dict[bytes, Any] = {b"INFO": version + b"role:master\r\n", b"XRANGE": [], b"XREVRANGE": []}
    told |= {b"ROLE": [b"master", 0, []], b"EXEC": [[], stream, []]}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser = hiredis.Reader()
        while data := await reader.read(65536):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                writer.write(packed(told.get(command[0].upper(), b"OK")))
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield RedisSettings(addresses=(Address("127.0.0.1", listening.sockets[0].getsockname()[1]),))
    finally:
        listening.close()


@pytest.mark.parametrize("counted", [[], _COUNTED[:2], _COUNTED[2:]])
async def test_a_server_that_does_not_count_is_too_old_though_it_tells_no_version(counted: list[Any]) -> None:
    async with server(_STREAM + counted) as settings:
        log = RedisLog(settings, ["orders:0"], name="s")
        await log.open()
        for asked in (log.bounds([0]), log.begin([0], Start())):
            with pytest.raises(UsageError) as refused:
                await asked
            assert (refused.value.message, refused.value.hint) == (_OLD[0].format("the server of orders:0"), _OLD[1])
        await log.close()


async def test_a_server_that_counts_needs_no_version() -> None:
    async with server(_STREAM + _COUNTED) as settings:
        log = RedisLog(settings, ["orders:0"], name="s")
        await log.open()
        assert (await log.bounds([0]))[0].count == 1
        await log.close()


async def test_a_server_that_tells_an_old_version_is_refused_in_the_same_words() -> None:
    async with server(_STREAM, b"redis_version:6.2.14\r\n") as settings:
        log = RedisLog(settings, ["orders:0"], name="s")
        with pytest.raises(UsageError) as refused:
            await log.open()
        at = f"Redis 6.2.14 at {settings.addresses[0]}"
        assert (refused.value.message, refused.value.hint) == (_OLD[0].format(at), _OLD[1])
        await log.close()
