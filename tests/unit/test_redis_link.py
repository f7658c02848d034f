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


async def dripping(address, reply, step_bytes, commands=1):
    """What a link makes of a reply that comes so many bytes every 20 ms; also how long it took."""
    link = await connect(settings_for(address), address)
    began_s = asyncio.get_running_loop().time()
    future = link.send(pack([("SLOW",)] * commands), commands)

    async def drip():
        for at in range(0, len(reply), step_bytes):
            await asyncio.sleep(0.02)
            link.data_received(reply[at : at + step_bytes])

    dripper = asyncio.create_task(drip())
    try:
        return await link.wait(future), asyncio.get_running_loop().time() - began_s
    except LinkLost as error:
        assert not link.is_open
        return str(error), asyncio.get_running_loop().time() - began_s
    finally:
        dripper.cancel()
        link.abort("done")


def silent(command):
    return b"" if command[0] == b"SLOW" else polite(command)


async def test_an_answer_that_comes_slowly_is_waited_for_however_long_it_takes():
    async with server(silent) as (address, _):
        replies, took_s = await dripping(address, b"$60000\r\n" + b"x" * 60_000 + b"\r\n", 2_000)
    assert replies == [b"x" * 60_000]
    assert took_s > 0.6  # request_timeout_s is 0.3


async def test_silence_counts_from_the_last_byte():
    async with server(silent) as (address, _):
        said, took_s = await dripping(address, b"$60000\r\n" + b"x" * 20_000, 2_000)
    assert "stopped in an answer" in said
    assert 0.5 < took_s < 1.5


async def test_an_answer_that_drips_for_ever_is_given_up():
    async with server(silent) as (address, _):
        said, took_s = await dripping(address, b"$60000\r\n" + b"x" * 900, 1)
    assert "too little came" in said
    assert took_s < 1.0


async def test_what_comes_for_another_caller_keeps_the_link_alive():
    async with server(silent) as (address, _):
        replies, took_s = await dripping(address, (b"$9000\r\n" + b"x" * 9000 + b"\r\n") * 4, 1_000, commands=4)
    assert replies == [b"x" * 9000] * 4
    assert took_s > 0.6


async def test_an_answer_far_larger_than_was_asked_for_is_given_up():
    async with server(silent) as (address, _):
        link = await connect(settings_for(address), address)
        link.data_received(b"")
        future = link.send(pack([("SLOW",), ("SLOW",)]), 2, bytes_max=2 << 20)
        link.data_received(b"$1048576\r\n" + b"x" * (1 << 20) + b"\r\n$9999999\r\n" + b"x" * 500_000)
        assert link.is_open
        link.data_received(b"x" * 600_000)
        with pytest.raises(LinkLost, match="over 2 MB"):
            await link.wait(future)


async def test_a_caller_that_is_cancelled_leaves_the_link_to_the_others():
    async with server(silent) as (address, _):
        link = await connect(settings_for(address), address)
        mine, theirs = link.send(pack([("SLOW",)]), 1), link.send(pack([("SLOW",)]), 1)
        waiting = asyncio.create_task(link.wait(mine))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        link.data_received(b":1\r\n:2\r\n")
        assert await link.wait(theirs) == [2]
        link.abort("done")


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
