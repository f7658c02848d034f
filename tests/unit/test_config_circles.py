"""Copies in a circle through servers and topics that the file names twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossfade.config import Config, load
from crossfade.config.circles import refuse_loop
from crossfade.errors import GuaranteeRefused

_FILE = """\
version: 1
brokers:
  a: {{{0}}}
  b: {{{1}}}
streams:
  one:
    a: {2}
    b: {3}
routes:
  copy: {{id: abc, stream: one, source: a, target: b}}
"""
_KEYS = '{lanes: "m:<lane>", count: 4}'
_TOPIC = "{topic: t}"


def redis(url: str, more: str = "") -> str:
    return f'kind: redis, url: "{url}"{more}'


def kafka(servers: str) -> str:
    return f'kind: kafka, properties: {{bootstrap.servers: "{servers}"}}'


def sentinel(name: str) -> str:
    return f", mode: sentinel, sentinel_master: {name}"


def config(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> Config:
    (tmp_path / "crossfade.yaml").write_text(text)
    return load(tmp_path / "crossfade.yaml", {}, environ or {})


def refused(found: Config, name: str = "copy") -> bool:
    try:
        refuse_loop(found, name)
    except GuaranteeRefused:
        return True
    return False


@pytest.mark.parametrize(
    ("a", "b", "is_one"),
    [
        (redis("redis://h:1/0"), redis("redis://h:1/0"), True),
        (redis("redis://h/0"), redis("rediss://H:6379"), True),
        (redis("redis://localhost:1"), redis("redis://127.0.0.1:1"), True),
        (redis("redis://[::1]:1"), redis("redis://127.0.0.1:1"), True),
        (redis("redis://h:1/0"), redis("redis://h:1/1"), False),
        (redis("redis://h:1/0"), redis("redis://h:2/0"), False),
        (redis("redis://h:1/0"), redis("redis://i:1/0"), False),
        (redis("redis://h:1", ", server_id: s"), redis("redis://i:1", ", server_id: s"), True),
        (redis("redis://h:1", ", server_id: s"), redis("redis://i:1", ", server_id: t"), False),
        (redis("redis://h:1/1", ", server_id: s"), redis("redis://i:1", ", server_id: s"), False),
        (redis("redis://h:1,i:1", ", mode: cluster"), redis("redis://i:1,j:1", ", mode: cluster"), True),
        (redis("redis://h,i", sentinel("x")), redis("redis://i:26379", sentinel("x")), True),
        (redis("redis://h,i", sentinel("x")), redis("redis://i", sentinel("y")), False),
        # Two sites: their masters may well have the same name.
        (redis("redis://h", sentinel("x")), redis("redis://i", sentinel("x")), False),
        (redis("unix:///run/r.sock"), redis("unix:///run/r.sock"), True),
        (redis("unix:///run/r.sock"), redis("unix:///run/s.sock"), False),
    ],
)
def test_a_redis_of_two_names_is_not_copied_into_itself(tmp_path: Path, a: str, b: str, is_one: bool) -> None:
    assert refused(config(tmp_path, _FILE.format(a, b, _KEYS, _KEYS))) is is_one


@pytest.mark.parametrize(
    ("a", "b", "is_one"),
    [
        (kafka("h:1,i:1"), kafka("j:1, i:1"), True),
        (kafka("h:9092"), kafka("H:9092"), True),
        (kafka("h:1"), kafka("PLAINTEXT://h:1"), True),
        (kafka("h:1"), kafka("${env:KAFKA}"), True),
        (kafka("h:1"), kafka("h:2"), False),
    ],
)
def test_a_topic_of_two_names_is_not_copied_into_itself(tmp_path: Path, a: str, b: str, is_one: bool) -> None:
    environ = {"KAFKA": "g:1,h:1"}
    assert refused(config(tmp_path, _FILE.format(a, b, _TOPIC, _TOPIC), environ)) is is_one
    assert not refused(config(tmp_path, _FILE.format(a, b, _TOPIC, "{topic: u}"), environ))


@pytest.mark.parametrize(
    ("one", "other", "shares"),
    [
        (_KEYS, '{lanes: "m:<lane>", count: discover}', True),
        (_KEYS, '{lanes: "m:<lane>", count: 2}', True),
        (_KEYS, '{keys: [x, "m:3"]}', True),
        (_KEYS, '{keys: [x, "m:4"]}', False),
        (_KEYS, '{lanes: "copy:<lane>", count: discover}', False),
        ('{lanes: "m:<lane>", count: discover}', '{keys: ["m:400"]}', True),
        ('{lanes: "m:<lane>", count: discover}', '{keys: ["m:copy"]}', False),
        # A key of the one begins with the other's pattern, and is still no key of it.
        ('{lanes: "m:<lane>", count: discover}', '{lanes: "m:copy:<lane>", count: discover}', False),
        ('{lanes: "m:<lane>", count: discover}', '{lanes: "m:<lane>:copy", count: discover}', False),
        ('{lanes: "m:<lane>", count: discover}', '{lanes: "m:copy:<lane>", count: 4}', False),
        ('{lanes: "m.<lane>", count: discover}', '{lanes: "m:<lane>", count: 4}', False),
        ('{lanes: "m:<lane>", count: discover}', '{lanes: "m:1<lane>", count: discover}', True),
        ('{lanes: "m:1<lane>", count: discover}', '{lanes: "m:2<lane>", count: discover}', False),
    ],
)
def test_only_ends_with_a_key_in_common_are_one(tmp_path: Path, one: str, other: str, shares: bool) -> None:
    for sides in ((one, other), (other, one)):
        text = _FILE.format(redis("redis://h:1"), redis("redis://h:1"), *sides)
        assert refused(config(tmp_path, text)) is shares


def test_a_route_into_itself_is_told_from_a_circle(tmp_path: Path) -> None:
    found = config(tmp_path, _FILE.format(redis("redis://h:1"), redis("redis://h:1"), _KEYS, _KEYS))
    with pytest.raises(GuaranteeRefused, match="route copy copies into its own source") as told:
        refuse_loop(found, "copy")
    assert "its two brokers are one service" in told.value.hint


_WAY_BACK = """\
version: 1
brokers:
  old: {kind: redis, url: "redis://h:1"}
  also-old: {kind: redis, url: "redis://h:1/0"}
  new: {kind: kafka, properties: {bootstrap.servers: "k:1,k:2"}}
  also-new: {kind: kafka, properties: {bootstrap.servers: "k:2"}}
streams:
  there:
    old: {lanes: "m:<lane>", count: 4}
    new: {topic: t}
  back:
    also-old: {lanes: "m:<lane>", count: discover}
    also-new: {topic: t}
routes:
  forward: {id: abc, stream: there, source: old, target: new}
  home: {id: def, stream: back, source: also-new, target: also-old}
"""


@pytest.mark.parametrize("name", ["forward", "home"])
def test_a_circle_through_other_names_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(GuaranteeRefused, match="copy in a circle"):
        refuse_loop(config(tmp_path, _WAY_BACK), name)
    assert not refused(config(tmp_path, _WAY_BACK.replace('"m:<lane>", count: d', '"n:<lane>", count: d')), name)


def test_a_declared_pair_is_no_circle_and_its_routes_may_not_copy_into_themselves(tmp_path: Path) -> None:
    pair = "  back: {{id: def, stream: one, source: b, target: a, reverse_of: copy}}\n"
    text = (_FILE + pair).format(redis("redis://h:1"), redis("redis://h:2"), _KEYS, _KEYS)
    assert not any(refused(config(tmp_path, text), name) for name in ("copy", "back"))
    assert all(refused(config(tmp_path, text.replace("h:2", "h:1")), name) for name in ("copy", "back"))
