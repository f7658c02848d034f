"""Which server a link leads to, when the one it led to is not the right one any more."""

from __future__ import annotations

import asyncio

import pytest
from test_redis_link import polite, server

from crossfade.brokers.redis import nodes as nodes_module
from crossfade.brokers.redis.board import RedisBoard
from crossfade.brokers.redis.link import LinkLost, connect, pack
from crossfade.brokers.redis.looking import Looker, Range
from crossfade.brokers.redis.nodes import Nodes, call_key
from crossfade.brokers.redis.replies import is_error
from crossfade.brokers.redis.settings import Address, RedisSettings
from crossfade.errors import AccessRefused, Unreachable

REPLICA = b"*1\r\n$5\r\nslave\r\n"
MAY_NOT = b"-NOPERM this user has no permissions to run the 'role' command\r\n"
READONLY = b"-READONLY You can't write against a read only replica.\r\n"
DOWN = b"-CLUSTERDOWN The cluster is down\r\n"
NOBODY = Address("127.0.0.1", 1)
NAME = Address("redis.example", 6379)


@pytest.fixture
def name(monkeypatch):
    """Where a host name leads: the last one. Who is connected stays where he is."""
    leads_to = []
    monkeypatch.setattr(nodes_module, "connect", lambda settings, _: connect(settings, leads_to[-1]))
    return leads_to


def settings_for(*addresses, **options):
    return RedisSettings(addresses=addresses, request_timeout_s=0.3, connect_timeout_s=0.3, **options)


class Primary:
    """A primary until it is told to be none; answers what was written with its name."""

    def __init__(self, name, role=polite([b"ROLE"])):
        self.name, self.role, self.is_demoted = name, role, False
        self.slots = self.says = b""

    def __call__(self, command):
        match command[0].upper():
            case b"ROLE":
                return REPLICA if self.is_demoted and self.role != MAY_NOT else self.role
            case b"HGET":
                return b"$-1\r\n"
            case b"SET" | b"EVALSHA":
                return self.says or (READONLY if self.is_demoted else b"+%s\r\n" % self.name)
            case b"CLUSTER":
                return self.slots
        return polite(command)


async def write(nodes, key=b"k"):
    return (await call_key(nodes, key, [("SET", key, "v")], "writing"))[0]


# -- one name ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [polite([b"ROLE"]), MAY_NOT], ids=["", "ROLE is not allowed"])
async def test_a_name_that_was_moved_is_followed_though_the_old_connection_stays_open(role, name):
    old, new = Primary(b"old", role), Primary(b"new", role)
    async with server(old) as (first, _), server(new) as (second, _):
        name.append(first)
        nodes = Nodes(settings_for(NAME))
        assert await write(nodes) == b"old"
        old.is_demoted = True
        name.append(second)
        assert is_error(await write(nodes))
        assert await write(nodes) == b"new"
        await nodes.close()


async def test_a_script_that_finds_a_replica_makes_the_next_one_follow_the_name(name):
    old, new = Primary(b"old"), Primary(b"new")
    new.says = b"*2\r\n$2\r\nOK\r\n:7\r\n"
    async with server(old) as (first, _), server(new) as (second, _):
        name.append(first)
        board = RedisBoard(settings_for(NAME))
        assert await board.get("document") is None
        old.is_demoted = True
        name.append(second)
        with pytest.raises(Unreachable, match="become a replica"):
            await board.put("document", b"body")
        assert await board.put("document", b"body") == 7
        await board.close()


async def test_a_link_that_leads_to_a_primary_still_is_kept():
    async with server(Primary(b"one")) as (address, seen):
        nodes = Nodes(settings_for(address))
        link = await nodes.of_key(b"k")
        nodes.distrust()
        under_way = link.send(pack([("PING",)]), 1)
        assert await nodes.of_key(b"k") is link
        assert await link.wait(under_way) == [b"PONG"]
        asked = len(seen)
        assert await nodes.of_key(b"k") is link
        assert len(seen) == asked  # once is enough
        await nodes.close()


async def test_who_asks_while_a_link_is_looked_at_waits_for_it(name):
    old, new = Primary(b"old"), Primary(b"new")
    async with server(old) as (first, _), server(new) as (second, _):
        name.append(first)
        nodes = Nodes(settings_for(NAME))
        await nodes.of_key(b"k")
        old.is_demoted = True
        name.append(second)
        nodes.distrust()
        assert await asyncio.gather(*(write(nodes) for _ in range(3))) == [b"new"] * 3
        await nodes.close()


async def test_without_the_right_to_multi_that_right_is_named():
    refused = b"-NOPERM User app has no permissions to run the 'multi' command\r\n"

    def answer(command):
        match command[0].upper():
            case b"MULTI":
                return refused
            case b"EXEC":
                return b"-ERR EXEC without MULTI\r\n"
            case b"INFO":
                return b"$13\r\nrole:master\r\n\r\n"
        return polite(command)

    async with server(answer) as (address, _):
        nodes = Nodes(settings_for(address))
        with pytest.raises(AccessRefused) as told:
            await Looker(nodes, [b"k"]).look([0], {0: Range(b"-", 1, reverse=False)})
        assert "+multi" in told.value.hint
        await nodes.close()


# -- Sentinel ------------------------------------------------------------------------------------------------------


def sentinel(address):
    named = b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%d\r\n" % (len(str(address.port)), address.port)
    return lambda command: named if command[0] == b"SENTINEL" else polite(command)


@pytest.mark.parametrize("is_gone", [True, False], ids=["a dead one", "a replica"])
async def test_a_sentinel_that_names_no_primary_is_not_the_last_that_is_asked(is_gone):
    old, new = Primary(b"old"), Primary(b"new")
    old.is_demoted = True
    async with server(old) as (first, _), server(new) as (second, _):
        cut_off = sentinel(NOBODY if is_gone else first)
        async with server(cut_off) as (s1, _), server(cut_off) as (s2, _), server(sentinel(second)) as (s3, _):
            nodes = Nodes(settings_for(s1, s2, s3, mode="sentinel", sentinel_name="main"))
            assert await write(nodes) == b"new"
            assert (await nodes.of_key(b"k")).address == second
            await nodes.close()


async def test_where_all_sentinels_name_what_is_no_primary_it_is_asked_once_and_said():
    old = Primary(b"old")
    old.is_demoted = True
    async with (
        server(old) as (first, seen),
        server(sentinel(first)) as (s1, _),
        server(sentinel(first)) as (s2, _),
    ):
        nodes = Nodes(settings_for(s1, s2, mode="sentinel", sentinel_name="main"))
        with pytest.raises(Unreachable, match="is a replica, not a primary"):
            await nodes.of_key(b"k")
        assert [command[0] for command in seen].count(b"ROLE") == 1
        await nodes.close()


# -- Cluster -------------------------------------------------------------------------------------------------------


def slots(address, host=b"$9\r\n127.0.0.1\r\n"):
    return b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n%s:%d\r\n" % (host, address.port)


async def test_a_node_that_is_cut_off_is_not_asked_again_before_the_others():
    old, new, third = Primary(b"old"), Primary(b"new"), Primary(b"third")
    async with server(old) as (first, _), server(new) as (second, _), server(third) as (last, _):
        old.slots = slots(first)
        nodes = Nodes(settings_for(first, second, last, mode="cluster"))
        assert await write(nodes) == b"old"
        old.says, new.slots, third.slots = DOWN, slots(second), slots(second)
        assert is_error(await write(nodes))
        assert await write(nodes) == b"new"
        await nodes.close()


@pytest.mark.parametrize("told", [slots(NOBODY), b"*0\r\n"], ids=["who is gone", "nobody"])
async def test_nodes_that_are_cut_off_from_the_first_contact_do_not_keep_the_others_from_being_asked(told):
    lost, other, new = Primary(b"lost"), Primary(b"other"), Primary(b"new")
    async with server(lost) as (first, _), server(other) as (second, _), server(new) as (last, _):
        lost.slots = other.slots = told
        new.slots = slots(last)
        nodes = Nodes(settings_for(first, second, last, mode="cluster"))
        for _ in range(2):
            with pytest.raises(Unreachable):
                await nodes.of_key(b"k")
        assert await write(nodes) == b"new"
        await nodes.close()


async def test_all_primaries_are_found_though_a_node_that_is_cut_off_is_asked_first():
    lost, new = Primary(b"lost"), Primary(b"new")
    async with server(lost) as (first, _), server(new) as (last, _):
        lost.slots, new.slots = slots(NOBODY), slots(last)
        nodes = Nodes(settings_for(first, last, mode="cluster"))
        with pytest.raises(Unreachable):
            await nodes.primaries()
        assert [link.address for link in await nodes.primaries()] == [last]
        await nodes.close()


async def test_a_node_that_nobody_can_replace_is_asked_again():
    one = Primary(b"one")
    async with server(one) as (address, _):
        one.slots = slots(address)
        nodes = Nodes(settings_for(NOBODY, address, mode="cluster"))
        for _ in range(2):
            one.says = DOWN
            assert is_error(await write(nodes))
            one.says = b""
            assert await write(nodes) == b"one"
        await nodes.close()


async def test_a_key_that_has_moved_is_found_by_the_next_call():
    old, new = Primary(b"old"), Primary(b"new")
    async with server(old) as (first, _), server(new) as (second, _):
        old.slots = new.slots = slots(first)
        nodes = Nodes(settings_for(first, second, mode="cluster"))
        assert await write(nodes) == b"old"
        old.says, old.slots, new.slots = b"-MOVED 1 127.0.0.1:%d\r\n" % second.port, slots(second), slots(second)
        assert is_error(await write(nodes))
        assert await write(nodes) == b"new"
        await nodes.close()


@pytest.mark.parametrize("host", [b"$-1\r\n", b"$0\r\n\r\n"], ids=["NULL", "empty"])
async def test_a_node_without_a_name_is_where_it_was_asked(host):
    one = Primary(b"one")
    async with server(one) as (address, _):
        one.slots = slots(address, host)
        nodes = Nodes(settings_for(address, mode="cluster"))
        assert (await nodes.of_key(b"k")).address == address
        await nodes.close()


async def test_a_link_that_is_lost_meanwhile_is_made_anew():
    async with server(lambda c: None if c[0] == b"DIE" else polite(c)) as (address, _):
        nodes = Nodes(settings_for(address))
        link = await nodes.of_key(b"k")
        nodes.distrust()
        dying = link.send(pack([("DIE",)]), 1)
        assert await nodes.of_key(b"k") is not link
        with pytest.raises(LinkLost):
            await link.wait(dying)
        await nodes.close()
