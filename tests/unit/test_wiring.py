"""What the routes of a file mean together, before any broker is asked: circles, least rights, keys that two read."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossfade import wiring
from crossfade.config import Config, load
from crossfade.config.circles import refuse_loop
from crossfade.config.overlap import may_read_of
from crossfade.errors import GuaranteeRefused, UsageError

_FILE = """
version: 1
brokers:
  old: {kind: redis, url: "redis://127.0.0.1:1"}
  new: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:1"}}
streams:
  messages:
    old: {lanes: "msg:<lane>", count: 2}
    new: {topic: messages}
  copies:
    old: {lanes: "BACK:<lane>", count: 2}
    new: {topic: messages}
routes:
  forward: {id: abc, stream: messages, source: old, target: new}
  back: {id: def, stream: copies, source: new, target: old}
"""


def config(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "crossfade.yaml"
    path.write_text(text)
    return load(path, {}, {})


def test_two_routes_that_feed_each_other_are_refused_by_name(tmp_path: Path) -> None:
    looped = config(tmp_path, _FILE.replace("BACK:", "msg:"))
    for name in ("forward", "back"):
        with pytest.raises(GuaranteeRefused, match="copy in a circle") as refused:
            refuse_loop(looped, name)
        assert {"forward", "back"} <= set(refused.value.message.replace("->", " ").split())


def test_a_way_back_into_other_stream_keys_is_no_circle(tmp_path: Path) -> None:
    fine = config(tmp_path, _FILE.replace("BACK:", "back:"))
    refuse_loop(fine, "forward")
    refuse_loop(fine, "back")


def test_an_unknown_route_comes_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no route 'forwart'") as refused:
        wiring.route_settings(config(tmp_path, _FILE), "forwart")
    assert "forward" in refused.value.hint


_PAIR = _FILE.replace("BACK:", "msg:").replace("id: def, stream: copies", "id: def, stream: messages")


def test_an_undeclared_pair_is_refused_with_the_words_that_declare_it(tmp_path: Path) -> None:
    with pytest.raises(GuaranteeRefused) as refused:
        refuse_loop(config(tmp_path, _PAIR), "back")
    assert "reverse_of" in refused.value.hint


def test_a_declared_pair_is_no_circle(tmp_path: Path) -> None:
    paired = config(tmp_path, _PAIR.replace("target: old}", "target: old, reverse_of: forward}"))
    assert (paired.pair_of("forward"), paired.pair_of("back")) == ("back", "forward")
    for name in ("forward", "back"):
        refuse_loop(paired, name)


def test_a_circle_of_three_stays_one_though_two_of_it_are_a_pair(tmp_path: Path) -> None:
    third = "  third: {kind: redis, url: 'redis://127.0.0.1:2'}\nstreams:"
    text = _PAIR.replace("target: old}", "target: old, reverse_of: forward}").replace("streams:", third, 1)
    text = text.replace("    new: {topic: messages}", "    new: {topic: messages}\n    third: {keys: [a, b]}", 1)
    text += "  on: {id: onn, stream: messages, source: new, target: third}\n"
    refuse_loop(config(tmp_path, text), "on")
    text += "  home: {id: hom, stream: messages, source: third, target: old}\n"
    with pytest.raises(GuaranteeRefused, match="copy in a circle"):
        refuse_loop(config(tmp_path, text), "forward")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("reverse_of: forward", "reverse_of: forwart"), "the name of a route"),
        (("stream: messages, source: new", "stream: copies, source: new"), "does not copy the same stream"),
        (("reverse_of: forward", "lanes: by-key, reverse_of: forward"), "lanes: by-key"),
        (("source: old, target: new", "source: old, target: new, reverse_of: back"), "one of the two says so"),
    ],
)
def test_what_is_no_pair_is_told_with_its_place(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    text = _PAIR.replace("target: old}", "target: old, reverse_of: forward}").replace(*change, 1)
    with pytest.raises(UsageError, match=says):
        config(tmp_path, text)


_KAFKA = 'new: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:1"}}'
_REDIS = 'new: {kind: redis, url: "redis://127.0.0.1:1"}'


def test_an_account_under_two_names_of_a_server_gets_one_line(tmp_path: Path) -> None:
    # A second line would take away what the first one gave.
    text = _FILE.replace(_KAFKA, _REDIS)
    text = text.replace("new: {topic: messages}", "new: {keys: [a, b]}")
    (both,) = wiring.least_rights(config(tmp_path, text), ["forward", "back"])
    assert both.brokers == ["old", "new"]
    assert both.uses == [("forward", "source"), ("forward", "target"), ("back", "source"), ("back", "target")]
    (line,) = both.commands
    assert {"~msg:*", "~BACK:*", "~a", "~b", "~crossfade:*", "+xgroup|create", "+xadd"} <= set(line.split())
    elsewhere = text.replace(_REDIS, _REDIS.replace(':1"', ':2"'))
    assert [each.brokers for each in wiring.least_rights(config(tmp_path, elsewhere), ["forward"])] == [
        ["old"],
        ["new"],
    ]


@pytest.mark.parametrize("numbers", [(3, 0), (0, 3), (0, 0)])
def test_an_account_may_select_the_databases_of_all_its_routes(tmp_path: Path, numbers: tuple[int, int]) -> None:
    source, target = numbers
    text = _FILE.replace(_KAFKA, _REDIS.replace(':1"', f':1/{target}", username: app'))
    old = 'old: {kind: redis, url: "redis://127.0.0.1:1"}'
    text = text.replace(old, old.replace(':1"', f':1/{source}", username: app'))
    text = text.replace("new: {topic: messages}", "new: {keys: [a, b]}")
    (both,) = wiring.least_rights(config(tmp_path, text), ["forward"])
    (line,) = both.commands
    assert ("+select" in line.split()) == any(numbers)


def test_only_a_source_that_waits_for_its_replicas_gets_the_right_to(tmp_path: Path) -> None:
    text = _FILE.replace("old: {kind: redis,", "old: {kind: redis, read: replicated,", 1)
    for name, waits in (("forward", True), ("back", False)):
        rights = wiring.least_rights(config(tmp_path, text), [name])
        (line,) = next(each.commands for each in rights if each.brokers == ["old"])
        assert ("+wait" in line.split()) == waits
        assert line.count("+info ") == 1


def test_addresses_are_quoted_for_the_shell(tmp_path: Path) -> None:
    text = _FILE.replace("127.0.0.1:1", "[::1]:1, h:2").replace("redis://[::1]:1, h:2", "redis://127.0.0.1:1")
    _, kafka = wiring.least_rights(config(tmp_path, text), ["forward"])
    assert all("--bootstrap-server '[::1]:1, h:2' --add" in line for line in kafka.commands)


def test_two_masters_of_the_same_sentinels_get_a_line_each(tmp_path: Path) -> None:
    broker = '{kind: redis, mode: sentinel, url: "redis://127.0.0.1:1", username: app, sentinel_master: %s}'
    text = _FILE.replace(_KAFKA, f"new: {broker % 'second'}")
    text = text.replace('{kind: redis, url: "redis://127.0.0.1:1"}', broker % "first")
    text = text.replace("new: {topic: messages}", "new: {keys: [a, b]}")
    rights = wiring.least_rights(config(tmp_path, text), ["forward"])
    assert [each.brokers for each in rights] == [["old"], ["new"]]
    assert ["+xadd" in each.commands[0].split() for each in rights] == [False, True]


@pytest.mark.parametrize(
    ("url", "more", "side", "shares"),
    [
        ("redis://127.0.0.1:1/0", "", '{keys: ["x", "msg:1"]}', True),
        ("redis://127.0.0.1:1/0", ", server_id: a", '{lanes: "msg:<lane>", count: 9}', True),
        ("redis://127.0.0.1:1/0", "", '{lanes: "msg:<lane>", count: discover}', True),
        ("redis://127.0.0.1:1/0", "", '{lanes: "other:<lane>", count: discover}', False),
        ("redis://127.0.0.1:1/0", "", '{keys: ["msg:2"]}', False),
        ("redis://127.0.0.1:1/1", "", '{keys: ["msg:1"]}', False),
        ("redis://127.0.0.1:2/0", "", '{keys: ["msg:1"]}', False),
        ("redis://localhost:1/0", "", '{keys: ["msg:1"]}', True),
        ("redis://127.0.0.1:1/0", "", '{keys: ["msg"]}', False),
        ("redis://127.0.0.1:1/0", "", '{lanes: "m<lane>", count: discover}', False),
    ],
)
def test_which_routes_read_the_same_keys(tmp_path: Path, url: str, more: str, side: str, shares: bool) -> None:
    text = _FILE.replace("streams:", f'  again: {{kind: redis, url: "{url}"{more}}}\nstreams:', 1)
    text = text.replace("routes:", f"  others:\n    again: {side}\n    new: {{topic: others}}\nroutes:")
    text += "  other: {id: oth, stream: others, source: again, target: new}\n"
    assert may_read_of(config(tmp_path, text), "other", "forward", "old") == shares
    assert not may_read_of(config(tmp_path, text), "back", "forward", "old")


@pytest.mark.parametrize(("name", "database", "shares"), [("m", 0, True), ("m", 1, False), ("n", 0, False)])
def test_a_masters_name_is_enough_to_keep_what_another_route_may_need(
    tmp_path: Path, name: str, database: int, shares: bool
) -> None:
    at = '{{kind: redis, mode: sentinel, url: "redis://{}", sentinel_master: {}}}'
    text = _FILE.replace('{kind: redis, url: "redis://127.0.0.1:1"}', at.format("one:1/0", "m"))
    text = text.replace("streams:", f"  again: {at.format(f'two:1/{database}', name)}\nstreams:", 1)
    side = '    again: {lanes: "msg:<lane>", count: 2}\n'
    text = text.replace("routes:", f"  others:\n{side}    new: {{topic: messages}}\nroutes:")
    text += "  other: {id: oth, stream: others, source: again, target: new}\n"
    assert may_read_of(config(tmp_path, text), "other", "forward", "old") == shares
