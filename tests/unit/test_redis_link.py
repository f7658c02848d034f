"""The connection itself, against a server of a few lines that misbehaves on demand."""

import asyncio
import contextlib

import hiredis
import pytest

from crossfade.brokers.redis.link import LinkLost, connect, pack
from crossfade.brokers.redis.nodes import Nodes
from crossfade.brokers.redis.settings import Address, RedisSettings
from crossfade.errors import AccessRefused, Unreachable


@contextlib.asynccontextmanager
async def server(answer):
    """Call `answer(command)` for each command; it returns raw bytes, or None to close."""
    seen, tasks = [], set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        parser = hiredis.Reader()
        while data := await reader.read(65536):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                seen.append(command)
                reply = answer(command)
                if reply is None:
                    writer.close()
                    return
                writer.write(reply)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield Address("127.0.0.1", port), seen
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def settings_for(address, **options):
    return RedisSettings(addresses=(address,), request_timeout_s=0.3, connect_timeout_s=0.3, **options)


def polite(command):
    """Answer as an idle primary does."""
    name = command[0].upper()
    if name == b"ROLE":
        return b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n"
    return b"+PONG\r\n" if name == b"PING" else b"+OK\r\n"


async def test_many_callers_share_a_connection_and_get_their_own_replies():
    def answer(command):
        return b":%s\r\n" % command[1] if command[0] == b"ECHO" else polite(command)

    async with server(answer) as (address, _):
        link = await connect(settings_for(address), address)
        futures = [link.send(pack([("ECHO", n), ("ECHO", n + 1)]), 2) for n in range(0, 200, 2)]
        assert [await link.wait(future) for future in futures] == [[n, n + 1] for n in range(0, 200, 2)]
        link.abort("done")


async def test_error_replies_are_values():
    def answer(command):
        return b"-ERR no\r\n" if command[0] == b"BAD" else polite(command)

    async with server(answer) as (address, _):
        link = await connect(settings_for(address), address)
        bad, good = await link.call([("BAD",), ("PING",)])
        assert isinstance(bad, hiredis.ReplyError)
        assert good == b"PONG"
        link.abort("done")


async def test_silence_ends_the_connection_for_all():
    async with server(lambda command: b"" if command[0] == b"SLOW" else polite(command)) as (address, _):
        link = await connect(settings_for(address), address)
        other = link.send(pack([("SLOW",)]), 1)
        with pytest.raises(LinkLost, match="did not answer within"):
            await link.call([("SLOW",)])
        with pytest.raises(LinkLost):
            await other
        assert not link.is_open
        with pytest.raises(LinkLost):
            await link.call([("PING",)])


async def test_a_closed_connection_fails_what_waits():
    async with server(lambda command: None if command[0] == b"DIE" else polite(command)) as (address, _):
        link = await connect(settings_for(address), address)
        with pytest.raises(LinkLost, match="closed"):
            await link.call([("DIE",)])


async def test_garbage_ends_the_connection():
    async with server(lambda command: b"?what\r\n" if command[0] == b"X" else polite(command)) as (address, _):
        link = await connect(settings_for(address), address)
        with pytest.raises(LinkLost, match="Redis protocol"):
            await link.call([("X",)])


async def test_the_secret_is_asked_for_at_every_connection():
    secrets = iter(["first", "second"])
    async with server(polite) as (address, seen):
        options = settings_for(address, username="me", password=lambda: next(secrets))
        for _ in range(2):
            (await connect(options, address)).abort("done")
        assert [command[1:] for command in seen if command[0] == b"AUTH"] == [[b"me", b"first"], [b"me", b"second"]]


async def test_a_wrong_password_is_named():
    async with server(lambda command: b"-WRONGPASS invalid username-password pair\r\n") as (address, _):
        with pytest.raises(AccessRefused, match="WRONGPASS"):
            await connect(settings_for(address, password="no"), address)


async def test_nobody_there_and_somebody_silent_are_unreachable():
    async with server(lambda command: b"") as (address, _):
        with pytest.raises(Unreachable, match="no answer within"):
            await connect(settings_for(address), address)
    with pytest.raises(Unreachable, match="cannot be reached"):
        await connect(settings_for(address), address)


async def test_a_replica_is_refused_until_it_is_a_primary():
    roles = iter([b"*1\r\n$5\r\nslave\r\n", polite([b"ROLE"])])
    async with server(lambda command: next(roles) if command[0] == b"ROLE" else polite(command)) as (address, _):
        nodes = Nodes(settings_for(address))
        with pytest.raises(Unreachable, match="replica"):
            await nodes.of_key(b"k")
        assert (await nodes.of_key(b"k")).is_open
        await nodes.close()


async def test_the_next_call_connects_again():
    async with server(lambda command: None if command[0] == b"DIE" else polite(command)) as (address, _):
        nodes = Nodes(settings_for(address))
        first = await nodes.of_key(b"k")
        with pytest.raises(LinkLost):
            await first.call([("DIE",)])
        second = await nodes.of_key(b"k")
        assert second is not first
        assert await second.call([("PING",)]) == [b"PONG"]
        await nodes.close()


async def test_a_cluster_is_found_by_any_seed_that_answers():
    slots = b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n"

    async with server(lambda c: slots % port if c[0] == b"CLUSTER" else polite(c)) as (address, _):
        port = address.port
        dead = Address("127.0.0.1", 1)
        nodes = Nodes(RedisSettings(addresses=(dead, address), mode="cluster", connect_timeout_s=0.3))
        assert (await nodes.of_key(b"k")).address == address
        assert [link.address for link in await nodes.primaries()] == [address]
        await nodes.close()


@pytest.mark.parametrize(
    ("username", "password", "sent"),
    [
        ("app", "pw", [[b"AUTH", b"app", b"pw"]]),
        ("app", "", [[b"AUTH", b"app", b""]]),  # a nopass user takes any; left out, it would be the default user
        ("", "pw", [[b"AUTH", b"pw"]]),
        ("", "", []),
    ],
)
async def test_whoever_is_named_is_logged_in(username, password, sent):
    async with server(polite) as (address, seen):
        link = await connect(settings_for(address, username=username, password=password), address)
        assert [command for command in seen if command[0] == b"AUTH"] == sent
        link.abort("done")
