"""How birth groups follow the places of a route: never beyond what is on the target."""

import pytest
from hiredis import ReplyError

from crossfade.brokers.redis import births as births_module
from crossfade.brokers.redis.births import VOUCH_EVERY_S, Births
from crossfade.errors import Unreachable
from crossfade.model.position import Place

KEY, GROUP = b"orders:0", "crossfade.route-1.1"


class Looker:
    """Remembers to where the groups were moved."""

    def __init__(self):
        self.moved = []

    async def call(self, commands, doing):
        for verb, action, key, group, position in (command for asked in commands.values() for command in asked):
            assert (verb, action, key, group) == ("XGROUP", "SETID", KEY, GROUP)
            self.moved.append(position)
        return {}, {}


class Clock:
    now_s = 1000.0

    def monotonic(self):
        return self.now_s


@pytest.fixture
def reading(monkeypatch):
    """Read from a position, so many seconds after the read before it; gives all positions of the group so far."""
    clock, looker = Clock(), Looker()
    monkeypatch.setattr(births_module, "time", clock)
    births = Births(None, looker, [KEY], "route-1")

    async def read(position, after_s=0.0):
        clock.now_s += after_s
        await births.follow({0: Place(position, 1, GROUP)})
        return looker.moved

    return read


async def test_a_group_follows_one_round_behind(reading):
    assert await reading("1-0") == []
    assert await reading("9-0", VOUCH_EVERY_S - 1) == []
    assert await reading("10-0", 1) == ["1-0"]
    assert await reading("10-0", VOUCH_EVERY_S) == ["1-0", "10-0"]
    assert await reading("10-0", VOUCH_EVERY_S) == ["1-0", "10-0"], "where it stands already it is not put again"


async def test_what_was_read_ahead_of_a_failed_append_is_not_vouched_for(reading):
    """The target was full: the lane went back to its marker, and reads what comes behind it again and again."""
    await reading("9-0")  # the marker
    assert await reading("10-0", VOUCH_EVERY_S) == ["9-0"]  # ahead of the append that fails
    await reading("9-0", 1)
    assert await reading("9-0", VOUCH_EVERY_S - 1) == ["9-0"]
    await reading("10-0", 1)  # ahead again, and again it fails
    for _ in range(5):
        await reading("9-0", VOUCH_EVERY_S)
        assert await reading("10-0", 1) == ["9-0"]
    assert await reading("11-0", 1) == ["9-0"]  # the append went in
    assert await reading("12-0", VOUCH_EVERY_S) == ["9-0"]
    assert await reading("13-0", VOUCH_EVERY_S) == ["9-0", "12-0"]


async def test_a_retry_that_reads_more_than_before_vouches_for_nothing_early(reading):
    """More has been written meanwhile: the batch that is read again ends beyond the place that was noted."""
    await reading("5-0")
    assert await reading("10-0", VOUCH_EVERY_S) == ["5-0"]
    await reading("5-0", 1)
    assert await reading("20-0", VOUCH_EVERY_S - 1) == ["5-0"]


@pytest.mark.parametrize(("refusal", "birth"), [("NOPERM no", ""), ("READONLY no", None)])
async def test_a_lane_starts_without_a_birth_only_where_the_right_is_missing(monkeypatch, refusal, birth):
    """A server that has just become a replica refuses too: the lane is begun on the new primary, with one."""

    async def call_key(nodes, key, commands, doing):
        return [ReplyError(refusal)]

    monkeypatch.setattr(births_module, "call_key", call_key)
    births = Births(None, Looker(), [KEY], "route-1")
    if birth is None:
        with pytest.raises(Unreachable):
            await births._create(0, GROUP)
    else:
        assert await births._create(0, GROUP) == birth


async def test_a_move_that_got_no_answer_is_made_again(monkeypatch):
    clock, looker, refusals = Clock(), Looker(), [Unreachable("paused")]
    monkeypatch.setattr(births_module, "time", clock)
    births = Births(None, looker, [KEY], "route-1")
    answer = looker.call

    async def call(commands, doing):
        if refusals:
            raise refusals.pop()
        return await answer(commands, doing)

    looker.call = call
    place = Place("9-0", 1, GROUP)
    await births.follow({0: place})
    clock.now_s += VOUCH_EVERY_S
    with pytest.raises(Unreachable):
        await births.follow({0: place})
    clock.now_s += VOUCH_EVERY_S
    await births.follow({0: place})
    assert looker.moved == ["9-0"]
