"""The connection itself, against a server of a few lines that misbehaves on demand."""

import asyncio
import contextlib
import itertools
import socket
import ssl

import hiredis
import pytest

from crossfade.brokers.redis.link import Link, LinkLost, connect, pack
from crossfade.brokers.redis.nodes import Nodes
from crossfade.brokers.redis.settings import Address, RedisSettings, TlsSettings
from crossfade.config import Secret
from crossfade.errors import AccessRefused, InvariantBroken, Unreachable
from crossfade.lab import pki


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


@contextlib.asynccontextmanager
async def slow_server(bytes_per_s, taken_max=1 << 40, tls=None):
    """It takes in commands at this rate, and no more than so much after the first moment; then it answers."""
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        parser, taken = hiredis.Reader(), 0
        while taken < taken_max and (data := await reader.read(1 << 14)):
            parser.feed(data)
            taken += len(data)
            await asyncio.sleep(len(data) / bytes_per_s)
            while (command := parser.gets()) is not False:
                writer.write(polite(command))
        await asyncio.Event().wait()

    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    served = await asyncio.start_server(serve, sock=listening, ssl=tls)
    try:
        yield Address("127.0.0.1", listening.getsockname()[1])
    finally:
        served.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    pki.make(folder, [])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    return context, TlsSettings(ca_file=str(folder / "ca.pem"))


async def send_large(address, size_bytes, *, held_back_bytes=0, **options):
    """How long it took until a large command was taken and answered, or why it was not, though it may take 0.5 s.

    `held_back_bytes`: what the system takes in before it went out, 0 = as it likes.
    """
    loop = asyncio.get_running_loop()
    link = await connect(settings_for(address, **options), address)
    link.timeout_s = 0.5
    if held_back_bytes:
        link._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, held_back_bytes)
    began_s = loop.time()
    answer = link.send(pack([("SET", "k", bytes(size_bytes))]), 1)
    try:
        await link.drain()
        drained_s = loop.time() - began_s
        assert await link.wait(answer) == [b"OK"]
        return drained_s, loop.time() - began_s
    except LinkLost as error:
        return str(error), loop.time() - began_s
    finally:
        link.abort("done")


async def test_a_large_command_is_sent_however_long_it_takes():
    async with slow_server(12e6) as address:
        drained_s, took_s = await send_large(address, 12 << 20, held_back_bytes=1 << 16)
    assert drained_s > 0.7
    assert took_s > 0.9


async def test_what_the_system_holds_back_is_waited_for():
    """Nothing waits in the process any more, but on the way out."""
    async with slow_server(1e6) as address:
        drained_s, took_s = await send_large(address, 1 << 20)
    assert drained_s < 0.1
    assert took_s > 0.9


async def test_a_large_command_under_tls_too(certificates):
    context, tls = certificates
    async with slow_server(6e6, tls=context) as address:
        _, took_s = await send_large(address, 6 << 20, tls=tls)
    assert took_s > 0.9


async def test_whoever_waits_may_look_while_a_connection_under_tls_is_just_lost(certificates):
    """asyncio lets go of the socket a turn of the loop before it tells that the connection is lost."""
    context, tls = certificates
    async with slow_server(1e9, taken_max=1, tls=context) as address:
        link = Link(address, 2.0)
        await asyncio.get_running_loop().create_connection(
            lambda: link, address.host, address.port, ssl=tls.context_now(), server_hostname=address.host
        )
        answer = link.send(pack([("PING",)]), 1)
        link._transport._ssl_protocol._transport._force_close(ConnectionResetError("reset by peer"))
        for _ in range(3):
            if link._transport.get_extra_info("socket") is None:
                break
            await asyncio.sleep(0)
        assert link.is_open
        assert link._sent_bytes() >= 0
        with pytest.raises(LinkLost, match="reset by peer"):
            await link.wait(answer)
        assert link._sent_bytes() == 0


@pytest.mark.parametrize(
    ("size_bytes", "why"), [(32 << 20, "took no data for"), (1 << 20, "did not answer within")], ids=["drain", "wait"]
)
async def test_who_takes_nothing_any_more_is_given_up(size_bytes, why):
    async with slow_server(1e9, taken_max=1 << 16) as address:
        said, took_s = await send_large(address, size_bytes)
    assert why in said
    assert took_s < 1.5


async def test_what_goes_out_in_drips_for_ever_is_given_up():
    async with server(silent) as (address, _):
        link = await connect(settings_for(address), address)
        link._sent_bytes = itertools.count().__next__
        async with asyncio.timeout(1):
            with pytest.raises(LinkLost, match="did not answer within"):
                await link.call([("SLOW",)])


async def test_an_answer_that_nobody_asked_for_does_not_become_the_next_ones():
    async with server(lambda command: b"+A\r\n+B\r\n" if command[0] == b"X" else polite(command)) as (address, _):
        link = await connect(settings_for(address), address)
        assert await link.call([("X",)]) == [b"A"]
        with pytest.raises(LinkLost, match="more answers than were asked for"):
            await link.call([("PING",)])


async def test_why_a_server_does_not_talk_is_heard_though_nothing_was_asked_yet():
    async with server(polite) as (address, _):
        loop = asyncio.get_running_loop()
        _, link = await loop.create_connection(lambda: Link(address, 0.3), address.host, address.port)
        link.data_received(b"-DENIED protected mode\r\n")
        (reply,) = await link.call([("PING",)])
        assert str(reply) == "DENIED protected mode"
        link.abort("done")


async def test_whoever_sends_is_answered():
    async with server(polite) as (address, _):
        link = await connect(settings_for(address), address)
        with pytest.raises(InvariantBroken):
            link.send(b"", 0)
        link.abort("done")


@pytest.mark.parametrize(
    ("says", "kind"),
    [(b"MISCONF Errors writing to the AOF file: No space left on device", None), (b"LOADING it loads", Unreachable)],
)
async def test_a_server_whose_disk_is_full_can_be_read(says, kind):
    async with server(lambda command: b"-%s\r\n" % says if command[0] == b"PING" else polite(command)) as (address, _):
        with pytest.raises(kind) if kind else contextlib.nullcontext():
            (await connect(settings_for(address), address)).abort("done")


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


async def test_a_password_that_cannot_be_read_now_is_tried_again_and_nobody_logs_in_without(tmp_path):
    file = tmp_path / "password"
    secret = Secret("${file:password}", {}, tmp_path)
    async with server(polite) as (address, seen):
        for user in ("", "me"):
            options = settings_for(address, username=user, password=secret.get)
            file.unlink(missing_ok=True)
            with pytest.raises(Unreachable, match=r"cannot be read now: cannot read .* No such file") as gone:
                await connect(options, address)
            assert "tries again" in gone.value.hint
            file.write_text("\n")
            with pytest.raises(Unreachable, match="cannot be read now: it is empty"):
                await connect(options, address)
            assert seen == []
        file.write_text("new\n")
        (await connect(options, address)).abort("done")
        assert [command for command in seen if command[0] == b"AUTH"] == [[b"AUTH", b"me", b"new"]]


async def test_a_sentinel_password_that_cannot_be_read_now_is_tried_again():
    async with server(polite) as (address, seen):
        options = settings_for(address, password="of the server", sentinel_password=lambda: "")
        with pytest.raises(Unreachable, match="cannot be read now"):
            await connect(options, address, sentinel=True)
        assert seen == []


async def test_tls_files_that_cannot_be_read_now_are_tried_again(tmp_path):
    async with server(polite) as (address, _):
        options = settings_for(address, tls=TlsSettings(ca_file=str(tmp_path / "ca.pem")))
        with pytest.raises(Unreachable, match=r"ca\.pem.*No such file") as gone:
            await connect(options, address)
        assert "tls.ca" in gone.value.hint
        assert "tries again" in gone.value.hint
        (tmp_path / "ca.pem").write_text("")
        with pytest.raises(Unreachable, match=r"ca\.pem"):
            await connect(options, address)


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
