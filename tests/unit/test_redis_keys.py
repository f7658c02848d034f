"""Slots as the Cluster specification gives them, and our own keys beside the stream keys."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from crossfade.brokers.redis.keys import (
    check_slots,
    hash_tag,
    is_birth,
    new_birth,
    quarantine_key,
    route_of_birth,
    slot_of,
    state_key,
)
from crossfade.errors import UsageError


@pytest.mark.parametrize(
    ("key", "slot"),
    [(b"123456789", 0x31C3), (b"foo", 12182), (b"bar", 5061), (b"hello", 866), (b"{user1000}.following", 3443)],
)
def test_published_slots(key, slot):
    assert slot_of(key) == slot


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        (b"{user1000}.following", b"user1000"),
        (b"foo{}{bar}", b"foo{}{bar}"),
        (b"foo{{bar}}zap", b"{bar"),
        (b"foo{bar}{zap}", b"bar"),
        (b"a{b", b"a{b"),
        (b"a}b", b"a}b"),
    ],
)
def test_hash_tags_as_the_specification_shows_them(key, tag):
    assert hash_tag(key) == tag


@given(st.binary(min_size=1, max_size=30))
def test_our_keys_share_the_slot_or_the_stream_key_is_refused(key):
    mates = (state_key(key), quarantine_key(key, "route-1"))
    if all(slot_of(mate) == slot_of(key) for mate in mates):
        check_slots([key])
    else:
        assert b"}" in key
        with pytest.raises(UsageError):
            check_slots([key])


@given(st.binary(min_size=1, max_size=12), st.binary(min_size=1, max_size=12))
def test_two_stream_keys_never_share_a_state(left, right):
    assume(left != right)
    assert state_key(left) != state_key(right)


def test_the_refusal_names_the_key():
    with pytest.raises(UsageError, match="odd}key"):
        check_slots([b"fine", b"odd}key"])


@pytest.mark.parametrize("route", ["", "mine", "a-b"])
def test_a_birth_is_known_by_the_name_that_it_is_given(route):
    assert is_birth(new_birth(route))
    assert route_of_birth(new_birth(route)) == route


@pytest.mark.parametrize(
    "name",
    [
        "crossfade.",
        "crossfade.billing",
        "crossfade.mine.billing",
        "crossfade.mine.0123456789ab0",
        "0123456789ab",
        "crossfade.mine.0123456789AB",
        "crossfade..0123456789a",
        "other.crossfade.mine.0123456789ab",
    ],
)
def test_what_only_begins_like_a_birth_is_none(name):
    assert not is_birth(name)
