"""How people write a Redis address down, and what becomes of it."""

import pytest

from crossfade.brokers.redis import Address, RedisSettings, TlsSettings
from crossfade.brokers.redis.rights import acl_line, key_patterns
from crossfade.errors import UsageError


@pytest.mark.parametrize(
    ("url", "address", "db", "user"),
    [
        ("redis://h", Address("h", 6379), 0, ""),
        ("redis://h:7000/3", Address("h", 7000), 3, ""),
        ("h:7000", Address("h", 7000), 0, ""),
        ("redis://me:p%40ss@h/1", Address("h", 6379), 1, "me"),
        ("redis://[::1]:7000", Address("::1", 7000), 0, ""),
        ("unix:///run/redis.sock", Address("", 0, "/run/redis.sock"), 0, ""),
    ],
)
def test_urls(url, address, db, user):
    found = RedisSettings.from_urls(url)
    assert (found.addresses, found.db, found.username, found.tls) == ((address,), db, user, None)


def test_a_password_is_decoded_and_never_shown():
    found = RedisSettings.from_urls("redis://me:p%40ss@h/1", sentinel_password="other")
    assert found.password == "p@ss"
    assert "p@ss" not in repr(found)
    assert "other" not in repr(found)


def test_rediss_means_tls_and_sentinels_have_their_own_port():
    assert RedisSettings.from_urls("rediss://h").tls == TlsSettings()
    found = RedisSettings.from_urls(["a", "b:1"], mode="sentinel", sentinel_name="m")
    assert found.addresses == (Address("a", 26379), Address("b", 1))


@pytest.mark.parametrize(
    ("urls", "options", "words"),
    [
        ("http://h", {}, "http"),
        ("redis://h:port", {}, "port"),
        ("redis://h/db", {}, "number"),
        ("redis://", {}, "host"),
        ([], {}, "at least one"),
        (["a", "b"], {}, "one url"),
        ("h", {"mode": "sentinel"}, "sentinel_name"),
        ("redis://h/1", {"mode": "cluster"}, "database 0"),
    ],
)
def test_what_is_wrong_is_said(urls, options, words):
    with pytest.raises(UsageError, match=words) as caught:
        RedisSettings.from_urls(urls, **options)
    assert caught.value.hint


def test_tls_files_that_are_not_there_are_named():
    with pytest.raises(UsageError, match="No such file"):
        TlsSettings(ca_file="/nowhere/ca.pem").context()


def test_the_identity_survives_a_failover():
    seeds = [RedisSettings.from_urls(urls, mode="sentinel", sentinel_name="m") for urls in (["a", "b"], ["c"])]
    assert seeds[0].identity == seeds[1].identity
    cluster = [RedisSettings.from_urls(urls, mode="cluster").identity for urls in (["a", "b"], ["b", "a"])]
    assert cluster[0] == cluster[1]
    assert RedisSettings.from_urls("h/1").identity != RedisSettings.from_urls("h/2").identity
    assert (
        RedisSettings.from_urls("h", server_id="old").identity == RedisSettings.from_urls("g", server_id="old").identity
    )


@pytest.mark.parametrize(
    ("keys", "patterns"),
    [
        ([b"msg:0", b"msg:1", b"msg:15"], ["msg:*"]),
        ([b"only:0"], ["only:0"]),
        ([b"a:0", b"b:0"], ["a:0", "b:0"]),
        ([b"0", b"1"], ["0", "1"]),
        ([b"what?:0", b"what?:1"], ["what\\?:*"]),
    ],
)
def test_key_patterns_are_no_wider_than_the_numbering(keys, patterns):
    assert key_patterns(keys) == patterns


def test_a_source_gets_no_right_to_write_records():
    words = acl_line(RedisSettings.from_urls("redis://h"), {"source": ["msg:*"]}).split()
    assert not {"+xadd", "+del", "~crossfade:*", "+cluster|slots", "+select"} & set(words)
    cluster = RedisSettings.from_urls("redis://h", mode="cluster")
    assert "+cluster|slots" in acl_line(cluster, {"target": ["a"]}).split()
    assert "+select" in acl_line(RedisSettings.from_urls("redis://h/2"), {"target": ["a"]}).split()
