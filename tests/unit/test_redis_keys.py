"""Slots as the Cluster specification gives them, and our own keys beside the stream keys."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from crossfade.brokers.redis.keys import check_slots, hash_tag, quarantine_key, slot_of, state_key
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
