"""Every mistake in a configuration gives its own line, with the exact text that a person reads."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from crossfade.config import ConfigError, PropertyMistake, load

GOOD = """\
version: 1
brokers:
  old: {kind: redis, url: "redis://127.0.0.1:6379/0"}
  new: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:9092"}}
streams:
  messages:
    old: {lanes: "msg:stream:<lane>", count: 16}
    new: {topic: messages.v1}
routes:
  forward: {id: k3x9a0b1c2d3, stream: messages, source: old, target: new}
"""


def problems(tmp_path: Path, text: str, environ: dict[str, str] | None = None, **sets: str) -> list[str]:
    path = tmp_path / "crossfade.yaml"
    (tmp_path / "key.pem").write_text("-----BEGIN PRIVATE KEY-----")
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, sets, environ or {})
    assert caught.value.exit_code == 2
    assert caught.value.message == "\n".join(map(str, caught.value.problems))
    return [str(problem).replace(str(path), "F") for problem in caught.value.problems]


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, "the text to change must be there once"
    return GOOD.replace(old, new)


BROKER_KEYS = (
    "one of kind, url, username, password, mode, sentinel_master, sentinel_username, sentinel_password, tls, "
    "request_timeout_s, server_id, read, memory_bytes_max"
)
ROUTE_KEYS = (
    "one of id, stream, source, target, lanes, reverse_of, batch_records, batch_size_bytes_max, commit_interval_ms, "
    "quarantine_records_max, rate_records_per_s, allow_weak, discover_s, metrics_port"
)
A_NAME = "1 to 63 characters of a-z, 0-9 and -"
REDIS_URL = "redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH"
REDIS_BROKER = 'old: {kind: redis, url: "redis://127.0.0.1:6379/0"}'
REDIS_SIDE = 'old: {lanes: "msg:stream:<lane>", count: 16}'

ONE_MISTAKE = [
    # unknown keys
    (
        "url:",
        "urll:",
        f'F:3: brokers.old.urll: found the unknown key "urll", expected {BROKER_KEYS}; did you mean "url"?',
    ),
    (
        "routes:",
        "gates: {}\nroutes:",
        'F:9: gates: found the unknown key "gates", expected one of version, brokers, streams, routes',
    ),
    (
        "target: new}",
        "target: new, batch: 3}",
        f'F:10: routes.forward.batch: found the unknown key "batch", expected {ROUTE_KEYS}',
    ),
    (
        "    new: {topic",
        "    nwe: {topic",
        'F:8: streams.messages.nwe: found the unknown key "nwe", expected one of old, new, mapping, partitioner, from, '
        'deleted, retention; did you mean "new"?',
    ),
    (
        "count: 16",
        "countt: 16",
        'F:7: streams.messages.old.countt: found the unknown key "countt", expected one of lanes, count, keys; '
        'did you mean "count"?',
    ),
    # wrong types and values
    (
        "kind: redis,",
        "kind: redis, read: replica,",
        'F:3: brokers.old.read: found "replica", expected one of at_once, replicated; did you mean "replicated"?',
    ),
    (
        "kind: redis,",
        "kind: redis, memory_bytes_max: 4GB,",
        'F:3: brokers.old.memory_bytes_max: found "4GB", expected a whole number, 0 or more',
    ),
    (
        "kind: redis,",
        "kind: redis, memory_bytes_max: -1,",
        "F:3: brokers.old.memory_bytes_max: found -1, expected a whole number, 0 or more",
    ),
    ("version: 1", "version: 2", "F:1: version: found 2, expected 1"),
    (
        "count: 16",
        "count: many",
        'F:7: streams.messages.old.count: found "many", expected a whole number from 1 to 100000',
    ),
    ("count: 16", "count: 1.5", "F:7: streams.messages.old.count: found 1.5, expected a whole number from 1 to 100000"),
    ("count: 16", "count: 0", "F:7: streams.messages.old.count: found 0, expected a whole number from 1 to 100000"),
    ("topic: messages.v1", "topic: [a]", "F:8: streams.messages.new.topic: found a list, expected text"),
    ("topic: messages.v1", "topic: ", "F:8: streams.messages.new.topic: found nothing, expected text"),
    ("topic: messages.v1", "topic: true", "F:8: streams.messages.new.topic: found true, expected text"),
    (
        "{topic: messages.v1}",
        "messages.v1",
        'F:8: streams.messages.new: found "messages.v1", expected a mapping with topic',
    ),
    (
        "target: new}",
        "target: new, lanes: by_key}",
        'F:10: routes.forward.lanes: found "by_key", expected one of one-to-one, by-key; did you mean "by-key"?',
    ),
    (
        "target: new}",
        "target: new, metrics_port: 70000}",
        "F:10: routes.forward.metrics_port: found 70000, expected a whole number from 0 to 65535",
    ),
    (
        "target: new}",
        "target: new, rate_records_per_s: .nan}",
        "F:10: routes.forward.rate_records_per_s: found .nan, expected a number, 0 or more",
    ),
    (
        "target: new}",
        "target: new, rate_records_per_s: .inf}",
        "F:10: routes.forward.rate_records_per_s: found .inf, expected a number, 0 or more",
    ),
    ("id: k3x9a0b1c2d3", "id: K3", f'F:10: routes.forward.id: found "K3", expected {A_NAME}'),
    ("forward:", "Forward_1:", f'F:10: routes.Forward_1: found the name "Forward_1", expected {A_NAME}'),
    (
        "kind: redis",
        "kind: reds",
        'F:3: brokers.old.kind: found "reds", expected one of redis, kafka; did you mean "redis"?',
    ),
    (
        "topic: messages.v1}",
        "topic: messages.v1}\n    retention: 7",
        "F:9: streams.messages.retention: found 7, expected a duration with its unit, such as 500ms, 90s, "
        "15m, 12h or 7d",
    ),
    (
        "topic: messages.v1}",
        "topic: messages.v1}\n    partitioner: murmur-2",
        'F:9: streams.messages.partitioner: found "murmur-2", expected one of murmur2, murmur3, crc32; '
        'did you mean "murmur2"?',
    ),
    (
        "topic: messages.v1}",
        "topic: messages.v1}\n    from: earlist",
        'F:9: streams.messages.from: found "earlist", expected earliest, latest, {time: 2026-01-31T12:00:00Z} or '
        '{position: ..}; did you mean "earliest"?',
    ),
    (
        "topic: messages.v1}",
        "topic: messages.v1}\n    from: {time: 2026-01-01T00:00:00}",
        "F:9: streams.messages.from.time: found 2026-01-01T00:00:00, expected a time with its zone, such as "
        "2026-01-31T12:00:00Z",
    ),
    (
        "topic: messages.v1}",
        "topic: messages.v1}\n    from: {position: last}",
        'F:9: streams.messages.from.position: found "last", expected a position such as 1700000000000-0 or 42',
    ),
    (
        "topic: messages.v1}",
        "topic: messages.v1}\n    from: {offset: 3}",
        'F:9: streams.messages.from.offset: found the unknown key "offset", expected one of time, position',
    ),
    (
        "topic: messages.v1}",
        "topic: messages.v1}\n    mapping: losless",
        "F:9: streams.messages.mapping: found a mistake (there is no mapping named 'losless'), expected name one of "
        'lossless, body, json, headers; did you mean "lossless"?',
    ),
    (
        "topic: messages.v1}",
        "topic: messages.v1}\n    mapping: {key_field: a}",
        "F:9: streams.messages.mapping: found a mapping, expected the name of a mapping, or {name: .., its options}",
    ),
    # missing keys
    ("version: 1\n", "", "F:1: version: found nothing, expected 1: format of this file"),
    (
        'url: "redis://127.0.0.1:6379/0"',
        "mode: standalone",
        "F:3: brokers.old.url: found nothing, expected text: redis://HOST:PORT/DB, rediss://.. for TLS, or "
        "unix:///PATH; "
        "Sentinel and Cluster: HOST:PORT,HOST:PORT",
    ),
    (
        "id: k3x9a0b1c2d3, ",
        "",
        "F:10: routes.forward.id: found nothing, expected text: random id, made once by `crossfade init`; each relayed "
        "record carries it",
    ),
    ("kind: redis, ", "", "F:3: brokers.old.kind: found nothing, expected one of redis, kafka"),
    (
        "bootstrap.servers",
        "bootstrap.server",
        'F:4: brokers.new.properties.bootstrap.servers: found no "bootstrap.servers" (but "bootstrap.server"), '
        "expected HOST:PORT[,HOST:PORT]",
    ),
    (
        ", count: 16",
        "",
        "F:7: streams.messages.old.count: found nothing, expected how many lanes the pattern has, or discover",
    ),
    (
        'lanes: "msg:stream:<lane>", ',
        "",
        "F:7: streams.messages.old.lanes: found nothing, expected a pattern such as msg:stream:<lane>, or keys",
    ),
    # names that lead nowhere, and keys that do not go together
    (
        "source: old",
        "source: odl",
        'F:10: routes.forward.source: found "odl", expected the name of a broker (old, new); did you mean "old"?',
    ),
    (
        "stream: messages",
        "stream: mesages",
        'F:10: routes.forward.stream: found "mesages", expected the name of a stream (messages); did you '
        'mean "messages"?',
    ),
    (
        "target: new",
        "target: old",
        'F:10: routes.forward.target: found "old", expected another broker than the source (a second entry '
        "may name the "
        "same server)",
    ),
    (
        f"    {REDIS_SIDE}\n",
        "",
        'F:9: routes.forward.source: found "old", on which stream messages has no place, expected a key '
        "streams.messages.old",
    ),
    (
        "<lane>",
        "{}",
        'F:7: streams.messages.old.lanes: found "msg:stream:{}", expected a pattern with <lane> in it once',
    ),
    (
        "count: 16",
        "keys: [a]",
        'F:7: streams.messages.old: found "keys" beside "lanes" or "count", expected one of the two ways',
    ),
    (
        REDIS_SIDE,
        "old: {keys: [a, b, a]}",
        'F:7: streams.messages.old.keys: found "a" twice, expected each stream key once',
    ),
    (REDIS_SIDE, "old: {keys: []}", "F:7: streams.messages.old.keys: found a list, expected a list of names"),
    # Redis URLs and modes
    (
        "redis://127",
        "rdis://127",
        f'F:3: brokers.old.url: found "rdis://127.0.0.1:6379/0", expected {REDIS_URL}; did you mean "redis"?',
    ),
    (
        "127.0.0.1:6379/0",
        "u:topsecret@127.0.0.1:x/0",
        f'F:3: brokers.old.url: found "redis://127.0.0.1:x/0", expected {REDIS_URL}',
    ),
    (
        "127.0.0.1:6379/0",
        "h:99999/0",
        'F:3: brokers.old.url: found "redis://h:99999/0", expected ports from 1 to 65535',
    ),
    (
        "127.0.0.1:6379/0",
        "u:topsecret@h:0",
        'F:3: brokers.old.url: found "redis://h:0", expected ports from 1 to 65535',
    ),
    (
        '127.0.0.1:6379/0"',
        '127.0.0.1:6379/0", tls: {ca: /nope.pem}',
        'F:3: brokers.old.tls.ca: found "/nope.pem", expected a file in PEM that can be read (No such '
        "file or directory)",
    ),
    (
        '127.0.0.1:6379/0"',
        '127.0.0.1:6379/0", tls: {cert: crossfade.yaml}',
        'F:3: brokers.old.tls.cert: found "crossfade.yaml", expected a file in PEM that can be read (it holds no PEM)',
    ),
    (
        '127.0.0.1:6379/0"',
        '127.0.0.1:6379/0", tls: {key: key.pem}',
        "F:3: brokers.old.tls.cert: found nothing, expected the certificate of this key",
    ),
    (
        "127.0.0.1:6379/0",
        "a:1,b:2",
        "F:3: brokers.old.url: found several servers with mode: standalone, expected one HOST:PORT, or mode: "
        "sentinel or "
        "cluster",
    ),
    (
        '127.0.0.1:6379/0"',
        '127.0.0.1:6379/3", mode: cluster',
        "F:3: brokers.old.url: found database 3 with mode: cluster, expected database 0",
    ),
    (
        '127.0.0.1:6379/0"',
        '127.0.0.1:6379/0", mode: sentinel',
        "F:3: brokers.old.sentinel_master: found nothing, expected the master's name",
    ),
    (
        '127.0.0.1:6379/0"',
        '127.0.0.1:6379/0", sentinel_master: m',
        'F:3: brokers.old.sentinel_master: found "m" with mode: standalone, expected mode: sentinel, or no such key',
    ),
    (
        "127.0.0.1:6379/0",
        "topsecret@127.0.0.1:6379/0",
        "F:3: brokers.old.url: found a user without a password, expected USER:PASSWORD@ or :PASSWORD@ (of the default "
        "user); a user without one: username: NAME",
    ),
    # references
    (
        '127.0.0.1:6379/0"',
        '127.0.0.1:6379/0", password: "${env:NOPE}"',
        "F:3: brokers.old.password: found a reference that cannot be read (the environment variable NOPE is not set), "
        "expected a value",
    ),
    (
        "messages.v1",
        '"${HOME}"',
        "F:8: streams.messages.new.topic: found a reference that cannot be read (${HOME} is neither ${env:NAME} nor "
        "${file:PATH}), expected a value",
    ),
    # YAML
    (
        REDIS_BROKER,
        f"{REDIS_BROKER}\n  {REDIS_BROKER}",
        'F:4: brokers.old: found a second "old" (the first is on line 3), expected each key once',
    ),
    ("version: 1", "version: !!python/x 1", "F:1: version: found the YAML tag !python/x, expected no tag"),
]


@pytest.mark.parametrize(("old", "new", "line"), ONE_MISTAKE, ids=[line[:60] for *_, line in ONE_MISTAKE])
def test_one_mistake_gives_its_line(tmp_path: Path, old: str, new: str, line: str) -> None:
    found = problems(tmp_path, changed(old, new))
    assert line in found
    # A mistake may make others (a broker that is not there), but never more than it touches.
    assert len(found) <= 2
    assert "topsecret" not in "".join(found)


@pytest.mark.parametrize(
    ("old", "new", "shown"),
    [
        (REDIS_BROKER, "old: redis://app:hunter2@h:6379", '"redis://***@h:6379"'),
        (REDIS_BROKER, "old: redis://app:hun/ter2@x@h:6379", '"redis://***@h:6379"'),
        ('{bootstrap.servers: "127.0.0.1:9092"}', '"sasl.password=hunter2"', '"sasl.password=***"'),
        ('{bootstrap.servers: "127.0.0.1:9092"}', "'x password=\"hunter2 x\"; y'", '"x password=***"'),
        ("redis://127.0.0.1:6379/0", "rdis:/u:hun/ter2@h", '"rdis:/***@h"'),
        ("redis://127.0.0.1:6379/0", "u:hun/ter2@h", '"***@h"'),
        ("redis://127.0.0.1:6379/0", "redis://us/er:hunter2@x@h", '"redis://***@h"'),
        ("redis://127.0.0.1:6379/0", "redis://h?password=hunter2", '"redis://h?password=***"'),
        ('6379/0"', '6379/0", password: *hunter2', "found undefined alias '***'"),
        ('6379/0"', '6379/0", password: !hunter2 x', "found a YAML tag"),
    ],
)
def test_no_password_is_shown(tmp_path: Path, old: str, new: str, shown: str) -> None:
    found = "\n".join(problems(tmp_path, changed(old, new)))
    assert shown in found
    assert "hun" not in found
    assert "ter2" not in found


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1\nb: 2", "F:2: found no YAML (expected ',' or ']', but got ':'), expected a YAML file"),
        ("a: b: c", "F:1: found no YAML (mapping values are not allowed here), expected a YAML file"),
        ("\tx: 1", "F:1: found no YAML (found character '\\t' that cannot start any token), expected a YAML file"),
        ("[" * 3000, "F: found hundreds of lists or mappings within each other, expected a YAML file"),
        (
            "a: " + "[" * 3000 + "]" * 3000,
            "F: found hundreds of lists or mappings within each other, expected a YAML file",
        ),
        ("a: *nope", "F:1: found no YAML (found undefined alias 'nope'), expected a YAML file"),
        ("- 1", "F:1: found a list, expected a mapping with version, brokers, streams and routes"),
        ("version", 'F:1: found "version", expected a mapping with version, brokers, streams and routes'),
    ],
)
def test_what_is_no_configuration_at_all(tmp_path: Path, text: str, line: str) -> None:
    assert problems(tmp_path, text) == [line]


def test_an_empty_file_lacks_every_required_key(tmp_path: Path) -> None:
    assert problems(tmp_path, "") == [
        "F: version: found nothing, expected 1: format of this file",
        "F: brokers: found nothing, expected a mapping: the servers, by a name of your own",
        "F: streams: found nothing, expected a mapping: the streams, by a name of your own",
        "F: routes: found nothing, expected a mapping: what is copied where, by a name of your own",
    ]


def test_a_missing_file_points_to_init(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "nope.yaml", {}, {})
    assert str(caught.value) == f"{tmp_path}/nope.yaml: found no such file, expected a configuration"
    assert "crossfade init" in caught.value.hint


def test_a_reference_that_broke_the_yaml_says_how_to_write_it(tmp_path: Path) -> None:
    path = tmp_path / "crossfade.yaml"
    path.write_text(changed("messages.v1", "${env:TOPIC}"))
    with pytest.raises(ConfigError) as caught:
        load(path, {}, {})
    assert caught.value.hint == 'inside { } a reference needs quotes: "${env:NAME}"'


def test_all_problems_come_at_once_in_file_order(tmp_path: Path) -> None:
    text = GOOD.replace("url:", "urll:").replace("count: 16", "count: x").replace("source: old", "source: odl")
    found = problems(tmp_path, text)
    assert [line.split(": ")[1] for line in found] == [
        "brokers.old.urll",
        "brokers.old.url",
        "streams.messages.old.count",
        "routes.forward.source",
    ]


def test_every_wrong_property_has_its_line_and_shows_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "crossfade.yaml"
    path.write_text(
        changed(
            'new: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:9092"}}',
            'new:\n    kind: kafka\n    properties:\n      bootstrap.servers: "http://h:9092"\n      acks: 1\n'
            "      sasl.password: hunter2\n      a: ${env:A}",
        )
    )
    asked: list[dict[str, str]] = []

    def check(properties: Mapping[str, str]) -> list[PropertyMistake]:
        asked.append(dict(properties))
        return [
            PropertyMistake("acks", "acks", "no such key"),
            PropertyMistake("sasl.password", "", "another"),
            PropertyMistake("a", "", "another", "b"),
            PropertyMistake("", "it all", "another"),
        ]

    with pytest.raises(ConfigError) as caught:
        load(path, {}, {"A": "hunter3"}, check)
    assert asked == [{"bootstrap.servers": "http://h:9092", "acks": "1", "sasl.password": "hunter2", "a": "hunter3"}]
    key = "brokers.new.properties"
    assert [str(problem).replace(str(path), "F") for problem in caught.value.problems] == [
        f"F:6: {key}: found it all, expected another",
        f'F:7: {key}.bootstrap.servers: found "http://h:9092", expected HOST:PORT[,HOST:PORT]',
        f"F:8: {key}.acks: found acks, expected no such key",
        f"F:9: {key}.sasl.password: found a secret, expected another",
        f'F:10: {key}.a: found "${{env:A}}", expected another; did you mean "b"?',
    ]


def test_properties_without_anything_but_addresses_need_no_client(tmp_path: Path) -> None:
    path = tmp_path / "crossfade.yaml"
    path.write_text(GOOD)
    load(path, {}, {}, pytest.fail)


@pytest.mark.parametrize(
    "servers",
    ["h:1,i:65535", " h:1 , i:2", "[::1]:1,[fe80::1]:2", "[fe80::1%eth0]:9", "SASL_SSL://h:1", "1.2.3.4:5,"],
)
def test_addresses_of_kafka(tmp_path: Path, servers: str) -> None:
    path = tmp_path / "crossfade.yaml"
    path.write_text(changed("127.0.0.1:9092", servers))
    load(path, {}, {})


@pytest.mark.parametrize(
    "servers",
    [
        *("http://h:9092", ",", "h:99999", "h:0", "h:x", "h:1:2", "u:p@h:1", "h:9092/x", "h:1 i:2", "kafka://h:1"),
        *("h", "h:1,i", "[fe80::1]", "SASL_SSL://h"),
    ],
)
def test_what_is_no_address_of_kafka(tmp_path: Path, servers: str) -> None:
    (found,) = problems(tmp_path, changed("127.0.0.1:9092", servers))
    assert found.startswith("F:4: brokers.new.properties.bootstrap.servers: found ")
    assert found.endswith("expected HOST:PORT[,HOST:PORT]")


def test_two_routes_cannot_share_an_id(tmp_path: Path) -> None:
    text = GOOD + "  back: {id: k3x9a0b1c2d3, stream: messages, source: new, target: old}\n"
    assert problems(tmp_path, text) == [
        'F:11: routes.back.id: found "k3x9a0b1c2d3", which route forward has, expected an id of its own: '
        "`crossfade init --new-id` prints one"
    ]


@pytest.mark.parametrize("bomb", ["a: &a [*a, *a]", "version: &a {b: *a}"])
def test_endless_aliases_end(tmp_path: Path, bomb: str) -> None:
    assert problems(tmp_path, bomb)


def test_nested_aliases_do_not_explode(tmp_path: Path) -> None:
    lines = ["x0: &x0 [a, a]"] + [f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]" for i in range(1, 60)]
    assert len(problems(tmp_path, "\n".join(lines))) < 100


def test_problems_as_json_name_every_part(tmp_path: Path) -> None:
    path = tmp_path / "crossfade.yaml"
    path.write_text(changed("source: old", "source: odl"))
    with pytest.raises(ConfigError) as caught:
        load(path, {}, {})
    assert caught.value.as_dict()["problems"] == [
        {
            "where": f"{path}:10",
            "key": "routes.forward.source",
            "found": '"odl"',
            "expected": "the name of a broker (old, new)",
            "nearest": "old",
        }
    ]


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('6379/0"', '6379/0", username: app, password: "${env:EMPTY}"', "brokers.old.password"),
        ("redis://127", "redis://app:${env:EMPTY}@127", "brokers.old.url"),
        (
            '{bootstrap.servers: "127.0.0.1:9092"}',
            '{bootstrap.servers: "h:1", sasl.password: "${env:EMPTY}"}',
            "brokers.new.properties.sasl.password",
        ),
    ],
)
def test_a_reference_to_nothing_is_no_password(tmp_path: Path, old: str, new: str, key: str) -> None:
    (found,) = problems(tmp_path, changed(old, new), {"EMPTY": ""})
    assert found.endswith(f"{key}: found an empty value, expected a value")


def test_other_references_may_be_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "crossfade.yaml"
    text = changed('6379/0"', '6379/0", username: "${env:EMPTY}", password: secret')
    path.write_text(text.replace('9092"}', '9092", client.rack: "${env:EMPTY}"}'))
    read = load(path, {}, {"EMPTY": ""}).brokers
    assert (read["old"].username, read["old"].password.get()) == ("", "secret")  # type: ignore[union-attr]
    assert read["new"].plain_properties()["client.rack"] == ""  # type: ignore[union-attr]
    text = changed('"127.0.0.1:9092"}', '"${env:EMPTY}", client.rack: "${env:EMPTY}"}')
    (found,) = problems(tmp_path, text, {"EMPTY": ""})
    assert (
        found == 'F:4: brokers.new.properties.bootstrap.servers: found "${env:EMPTY}", expected HOST:PORT[,HOST:PORT]'
    )


def test_a_user_may_have_no_password_where_it_is_named_by_its_key(tmp_path: Path) -> None:
    path = tmp_path / "crossfade.yaml"
    path.write_text(changed('6379/0"', '6379/0", username: app'))
    assert load(path, {}, {}).brokers["old"].username == "app"  # type: ignore[union-attr]


def test_a_user_of_the_url_alone_is_no_mistake_where_its_key_names_one(tmp_path: Path) -> None:
    path = tmp_path / "crossfade.yaml"
    path.write_text(changed('127.0.0.1:6379/0"', 'app@h", username: app'))
    assert load(path, {}, {}).brokers["old"].username == "app"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('6379/0"', '6379/0", tls: {ca: "a\\0b"}', "tls.ca: found"),
        ('6379/0"', '6379/0", tls: {ca: "~nobody-here/x"}', "(No such file or directory)"),
        ('6379/0"', '6379/0", username: "${file:~nobody-here/x}"', "No such file or directory"),
        ('6379/0"', '6379/0", username: "${file:a\\0b}"', "old.username: found a reference that cannot be read"),
        ('6379/0"', '6379/0", username: "${env:LATIN}"', "the environment variable LATIN is not UTF-8 text"),
        ('"127.0.0.1:9092"', '"h:1", sasl.username: "${env:LATIN}"', "variable LATIN is not UTF-8 text"),
    ],
)
def test_what_cannot_be_a_file_or_text_is_told(tmp_path: Path, old: str, new: str, says: str) -> None:
    (found,) = problems(tmp_path, changed(old, new), {"LATIN": "\udcff"})
    assert says in found


def test_a_mistake_in_a_variable_names_the_variable(tmp_path: Path) -> None:
    environ = {"CROSSFADE_ROUTES__FORWARD__METRICS_PORT": "x", "CROSSFADE_BROKER__OLD__URL": "redis://h"}
    assert problems(tmp_path, GOOD, environ) == [
        'CROSSFADE_BROKER__OLD__URL: broker: found the unknown key "broker", expected one of version, '
        "brokers, streams, "
        'routes; did you mean "brokers"?',
        'CROSSFADE_ROUTES__FORWARD__METRICS_PORT: routes.forward.metrics_port: found "x", expected a whole '
        "number from 0 "
        "to 65535",
    ]


def test_a_mistake_in_a_flag_names_the_flag(tmp_path: Path) -> None:
    assert problems(tmp_path, GOOD, None, **{"routes.forward.source": "odl"}) == [
        '--set routes.forward.source: routes.forward.source: found "odl", expected the name of a broker (old, new); '
        'did you mean "old"?'
    ]


DEBRIS = [
    *"{}[]:#&*!|?%@\t\x00",
    "- ",
    "\n",
    "  ",
    "null",
    "true",
    "-1",
    "'",
    '"',
    "${env:X}",
    "<lane>",
    "kind",
    "<<",
    "1e9",
]


def damaged(text: str, chance: random.Random) -> str:
    """The text with a few characters put in, taken out or moved."""
    for _ in range(chance.randint(1, 4)):
        at, how = chance.randrange(len(text)), chance.random()
        if how < 0.4:
            text = text[:at] + chance.choice(DEBRIS) + text[at:]
        elif how < 0.7:
            text = text[:at] + text[at + chance.randint(1, 12) :]
        else:
            lines = text.split("\n")
            lines.insert(chance.randrange(len(lines)), chance.choice(lines))
            text = "\n".join(lines)
    return text


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_damaged_is_told_and_never_a_crash(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    path = tmp_path / "crossfade.yaml"
    refused: list[ConfigError] = []
    for _ in range(30):
        path.write_text(damaged(GOOD, chance))
        try:
            load(path, {}, {})
        except ConfigError as error:
            refused.append(error)
    assert len(refused) > 15
    assert all(error.problems for error in refused)
    assert all("\n" not in str(problem) for error in refused for problem in error.problems)


def test_a_value_of_several_lines_is_told_on_one(tmp_path: Path) -> None:
    text = changed("{topic: messages.v1}", "{topic: messages.v1}\n    retention: |\n      a\n      b")
    assert problems(tmp_path, text) == [
        'F:9: streams.messages.retention: found "a\\nb\\n", expected a duration with its unit, such as 500ms, 90s, '
        "15m, 12h or 7d"
    ]
