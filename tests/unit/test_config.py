"""What a configuration that is right becomes: values, defaults, overrides, secrets, schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import crossfade
from crossfade.cli.init import render
from crossfade.config import (
    Beginning,
    Config,
    ConfigError,
    KafkaBroker,
    KafkaSide,
    MappingChoice,
    RedisBroker,
    RedisSide,
    Secret,
    load,
)
from crossfade.config.schema import schema
from crossfade.errors import UsageError

FULL = """\
version: 1
brokers:
  old:
    kind: redis
    url: rediss://relay:p%40ss@10.0.0.1:7000,10.0.0.2:7001/0
    mode: cluster
    tls: {ca: certs/ca.pem, cert: certs/client.pem, verify: false}
    request_timeout_s: 2
    read: replicated
    memory_bytes_max: 4000000000
  new:
    kind: kafka
    properties:
      bootstrap.servers: a:9092,b:9092
      sasl.username: relay
      sasl.password: plain-text
      linger.ms: 5
      enable.ssl.certificate.verification: true
streams:
  messages:
    old: {keys: [one, "two", 3]}
    new: {topic: messages.v1}
    mapping: {name: json, key_field: user_id}
    partitioner: crc32
    from: {time: 2026-01-01T00:00:00Z}
    deleted: count
    retention: 1.5h
routes:
  forward:
    id: k3x9a0b1c2d3
    stream: messages
    source: old
    target: new
    lanes: by-key
    rate_records_per_s: 1500
"""


@pytest.fixture(autouse=True)
def _certificates(tmp_path: Path) -> None:
    (tmp_path / "certs").mkdir()
    for name in ("certs/ca.pem", "certs/client.pem", "ca.pem", "client.pem", "client.key"):
        (tmp_path / name).write_text("-----BEGIN CERTIFICATE-----")


def read(tmp_path: Path, text: str, environ: dict[str, str] | None = None, **sets: str) -> Config:
    path = tmp_path / "crossfade.yaml"
    path.write_text(text)
    return load(path, sets, environ or {})


def redis_of(config: Config) -> RedisBroker:
    broker = config.brokers["old"]
    assert isinstance(broker, RedisBroker)
    return broker


def kafka_of(config: Config) -> KafkaBroker:
    broker = config.brokers["new"]
    assert isinstance(broker, KafkaBroker)
    return broker


def test_every_key_arrives(tmp_path: Path) -> None:
    config = read(tmp_path, FULL)
    redis = redis_of(config)
    assert redis.url == "rediss://10.0.0.1:7000,10.0.0.2:7001/0"
    assert redis.urls == ("rediss://10.0.0.1:7000/0", "rediss://10.0.0.2:7001/0")
    assert (redis.username, redis.mode, redis.request_timeout_s) == ("relay", "cluster", 2.0)
    assert (redis.read, redis.memory_bytes_max) == ("replicated", 4_000_000_000)
    assert redis.password is not None
    assert redis.password.get() == "p@ss"
    assert redis.tls is not None
    folder = tmp_path / "certs"
    assert (redis.tls.ca, redis.tls.cert, redis.tls.key) == (str(folder / "ca.pem"), str(folder / "client.pem"), "")
    assert redis.tls.verify is False
    assert kafka_of(config).plain_properties() == {
        "bootstrap.servers": "a:9092,b:9092",
        "sasl.username": "relay",
        "sasl.password": "plain-text",
        "linger.ms": "5",
        "enable.ssl.certificate.verification": "true",
    }
    stream = config.streams["messages"]
    assert stream.sides == {"old": RedisSide(keys=("one", "two", "3")), "new": KafkaSide(topic="messages.v1")}
    assert stream.mapping == MappingChoice("json", {"key_field": "user_id"})
    assert stream.from_ == Beginning("time", "1767225600000")
    assert (stream.partitioner, stream.deleted, stream.retention_s) == ("crc32", "count", 5400.0)
    route = config.routes["forward"]
    assert (route.id, route.stream, route.source, route.target) == ("k3x9a0b1c2d3", "messages", "old", "new")
    assert (route.lanes, route.rate_records_per_s) == ("by-key", 1500.0)
    assert config.path == tmp_path / "crossfade.yaml"


def test_lane_keys_follow_the_pattern() -> None:
    assert RedisSide(lanes="m:<lane>").is_discovered
    assert RedisSide(lanes="m:<lane>").first_keys(2) == ("m:0", "m:1")
    assert RedisSide(lanes="m:<lane>:x", count=3).lane_keys == ("m:0:x", "m:1:x", "m:2:x")
    assert RedisSide(keys=("b", "a")).lane_keys == ("b", "a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latest", Beginning("latest")),
        ("earliest", Beginning()),
        ("{position: 1700000000000-3}", Beginning("position", "1700000000000-3")),
        ("{position: 42}", Beginning("position", "42")),
        ("{time: 2026-01-01T01:00:00+01:00}", Beginning("time", "1767225600000")),
    ],
)
def test_beginnings(tmp_path: Path, text: str, expected: Beginning) -> None:
    config = read(tmp_path, FULL.replace("{time: 2026-01-01T00:00:00Z}", text))
    assert config.streams["messages"].from_ == expected


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("90s", 90.0), ("15m", 900.0), ("12h", 43_200.0), ("7d", 604_800.0)]
)
def test_durations(tmp_path: Path, text: str, seconds: float) -> None:
    assert read(tmp_path, FULL.replace("1.5h", text)).streams["messages"].retention_s == seconds


# -- overrides -----------------------------------------------------------------------------------------------------


def test_a_flag_beats_a_variable_and_a_variable_beats_the_file(tmp_path: Path) -> None:
    environ = {
        "CROSSFADE_ROUTES__FORWARD__RATE_RECORDS_PER_S": "10",
        "CROSSFADE_ROUTES__FORWARD__BATCH_RECORDS": "7",
        "CROSSFADE_CONFIG": "/somewhere/else.yaml",
        "CROSSFADE_HOME": "/x",
        "OTHER__THING": "ignored",
    }
    route = read(tmp_path, FULL, environ, **{"routes.forward.rate_records_per_s": "20"}).routes["forward"]
    assert (route.rate_records_per_s, route.batch_records) == (20.0, 7)


def test_variables_reach_names_with_dashes_and_properties_with_dots(tmp_path: Path) -> None:
    text = FULL.replace("  new:\n    kind", "  new-one:\n    kind").replace("    new: {", "    new-one: {")
    text = text.replace("target: new", "target: new-one")
    environ = {
        "CROSSFADE_BROKERS__NEW_ONE__PROPERTIES__BOOTSTRAP_SERVERS": "z:1",
        "CROSSFADE_BROKERS__NEW_ONE__PROPERTIES__CLIENT_ID": "me",
        "CROSSFADE_STREAMS__MESSAGES__OLD__KEYS": "a, b",
        "CROSSFADE_STREAMS__MESSAGES__FROM": "latest",
        "CROSSFADE_BROKERS__OLD__TLS__VERIFY": "true",
    }
    config = read(tmp_path, text, environ, **{"brokers.new-one.properties.queue.buffering.max.ms": "3"})
    broker = config.brokers["new-one"]
    assert isinstance(broker, KafkaBroker)
    assert broker.properties["bootstrap.servers"] == "z:1"
    assert broker.properties["client.id"] == "me"
    assert broker.properties["queue.buffering.max.ms"] == "3"
    assert config.streams["messages"].sides["old"] == RedisSide(keys=("a", "b"))
    assert config.streams["messages"].from_ == Beginning("latest")
    assert redis_of(config).tls is not None
    assert redis_of(config).tls.verify is True  # type: ignore[union-attr]


def test_an_absolute_path_of_a_certificate_stays(tmp_path: Path) -> None:
    elsewhere = tmp_path / "client.pem"
    config = read(tmp_path, FULL.replace("certs/client.pem", str(elsewhere)))
    assert redis_of(config).tls.cert == str(elsewhere)  # type: ignore[union-attr]


def test_the_file_is_named_by_flag_then_variable_then_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("flag.yaml", "variable.yaml", "crossfade.yaml"):
        (tmp_path / name).write_text(FULL.replace("messages.v1", name))
    monkeypatch.chdir(tmp_path)

    def topic(path: Path | None, environ: dict[str, str]) -> str:
        return load(path, {}, environ).streams["messages"].sides["new"].name

    environ = {"CROSSFADE_CONFIG": "variable.yaml"}
    assert topic(Path("flag.yaml"), environ) == "flag.yaml"
    assert topic(None, environ) == "variable.yaml"
    assert topic(None, {}) == "crossfade.yaml"


# -- secrets -------------------------------------------------------------------------------------------------------


def test_secrets_are_read_anew_each_time(tmp_path: Path) -> None:
    environ = {"A": "first"}
    file = tmp_path / "secret"
    file.write_text("one\n")
    secret = Secret("${env:A}/${file:secret}", environ, tmp_path)
    assert secret.get() == "first/one"
    environ["A"] = "second"
    file.write_text("two\r\n")
    assert secret.get() == "second/two"


def test_a_secret_that_went_away_is_named(tmp_path: Path) -> None:
    secret = Secret("${file:gone}", {}, tmp_path)
    with pytest.raises(UsageError, match=re.escape(f"cannot read {tmp_path}/gone: No such file or directory")):
        secret.get()


@pytest.mark.parametrize(
    ("text", "shown"),
    [("hunter2", "Secret(***)"), ("${env:A}", "Secret(${env:A})"), ("hunter${env:A}", "Secret(***)")],
)
def test_no_form_of_a_secret_shows_it(text: str, shown: str) -> None:
    secret = Secret(text, {"A": "hunter2"})
    assert [repr(secret), str(secret), f"{secret}"] == [shown] * 3


def test_a_configuration_shows_none_of_its_secrets(tmp_path: Path) -> None:
    text = FULL.replace("plain-text", '"${env:SASL}"').replace("p%40ss", "hunter2")
    shown = repr(read(tmp_path, text, {"SASL": "hunter3"}))
    assert "hunter" not in shown
    assert "p%40ss" not in repr(read(tmp_path, FULL))
    assert "plain-text" not in repr(read(tmp_path, FULL))


def test_a_reference_in_a_url_rotates_too(tmp_path: Path) -> None:
    environ = {"PW": "a@b:c/%41", "HOST": "h:1,i:2"}
    text = FULL.replace("p%40ss@10.0.0.1:7000,10.0.0.2:7001", "${env:PW}@${env:HOST}")
    redis = redis_of(read(tmp_path, text, environ))
    assert redis.urls == ("rediss://h:1/0", "rediss://i:2/0")
    assert redis.password is not None
    assert redis.password.get() == "a@b:c/%41"
    environ["PW"] = "new"
    assert redis.password.get() == "new"


def test_the_password_key_beats_the_url(tmp_path: Path) -> None:
    redis = redis_of(read(tmp_path, FULL.replace("    mode:", "    password: mine\n    mode:")))
    assert redis.password == Secret("mine", {}, tmp_path)
    assert redis.password != Secret("other", {}, tmp_path)


# -- what init writes, and the schema ------------------------------------------------------------------------------

PAIRS = [
    ("redis://127.0.0.1:6379/0", "kafka://127.0.0.1:9092"),
    ("kafka://a:1,b:2", "rediss://h/0"),
    ("kafka://a:1", "kafka://b:1"),
    ("redis://a", "redis://b"),
]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_what_init_writes_is_valid(tmp_path: Path, source: str, target: str) -> None:
    text = render(source, target, stream="orders", lanes="o:<lane>", count=3, topic="orders.v1", route="forward")
    config = read(tmp_path, text)
    route = config.routes["forward"]
    assert re.fullmatch("[a-z0-9]{12}", route.id)
    assert (route.source, route.target, route.stream) == ("old", "new", "orders")
    names = {side.name for side in config.streams["orders"].sides.values()}
    assert len(names) == 2, "source and target are never the same stream"
    assert valid(schema(), tree(text)) == []


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_commented_key_of_init_is_a_key(tmp_path: Path, source: str, target: str) -> None:
    text = render(source, target, stream="orders", lanes="o:<lane>", count=3, topic="orders.v1", route="forward")
    uncommented = re.sub(r"^( +)# ([a-z_.]+: )", r"\1\2", text, flags=re.MULTILINE)
    uncommented = re.sub(r" +# .*", "", uncommented)
    assert uncommented.count("\n") > 25
    read(tmp_path, uncommented, {"REDIS_PASSWORD": "x", "KAFKA_PASSWORD": "y"})


def test_the_shipped_schema_is_current() -> None:
    shipped = Path(crossfade.__file__).parent / "crossfade.schema.json"
    assert json.loads(shipped.read_text()) == schema(), "run `make docs`"


def test_the_schema_takes_what_the_reader_takes() -> None:
    assert valid(schema(), tree(FULL)) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("url:", "urll:"),
        ("kind: redis", "kind: reds"),
        ("version: 1", "version: 2"),
        ("lanes: by-key", "lanes: by_key"),
        ("retention: 1.5h", "retention: 7"),
        ("partitioner: crc32", "partitioner: crc"),
        ("rate_records_per_s: 1500", "rate_records_per_s: -1"),
        ("id: k3x9a0b1c2d3", "id: K3"),
        ("    id: k3x9a0b1c2d3\n", ""),
        ("{topic: messages.v1}", "{topics: messages.v1}"),
        ("bootstrap.servers:", "bootstrap.server:"),
        ("from: {time:", "from: {tim:"),
        ("verify: false", "verify: 3"),
        ("read: replicated", "read: replica"),
        ("memory_bytes_max: 4000000000", "memory_bytes_max: -1"),
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(tmp_path: Path, old: str, new: str) -> None:
    text = FULL.replace(old, new)
    assert text != FULL
    assert valid(schema(), tree(text)) != []
    with pytest.raises(ConfigError):
        read(tmp_path, text)


def tree(text: str) -> Any:
    """The YAML as plain values, times left as text, as an editor's YAML server sees it."""
    from ruamel.yaml import YAML

    return json.loads(json.dumps(YAML(typ="safe", pure=True).load(text), default=str))


def valid(rule: dict[str, Any], value: Any, at: str = "") -> list[str]:
    """What of `value` breaks `rule`: the keywords that our schema uses, and no other."""
    known = {"$schema", "title", "description", "default", "type", "properties", "required", "additionalProperties"}
    known |= {"propertyNames", "anyOf", "enum", "pattern", "minimum", "maximum", "items", "minItems"}
    assert set(rule) <= known, f"a keyword that this checker does not know at {at}"
    if "anyOf" in rule and all(valid(each, value, at) for each in rule["anyOf"]):
        return [f"{at}: none of the alternatives"]
    if "enum" in rule and value not in rule["enum"]:
        return [f"{at}: not in {rule['enum']}"]
    if "type" in rule and not any(_is(value, kind) for kind in _listed(rule["type"])):
        return [f"{at}: not {rule['type']}"]
    wrong = []
    if isinstance(value, str) and not re.search(rule.get("pattern", ""), value):
        wrong.append(f"{at}: does not match {rule['pattern']}")
    if isinstance(value, (int, float)) and not rule.get("minimum", value) <= value <= rule.get("maximum", value):
        wrong.append(f"{at}: out of limits")
    if isinstance(value, list):
        wrong += [f"{at}: too short"] if len(value) < rule.get("minItems", 0) else []
        wrong += [line for item in value for line in valid(rule.get("items", {}), item, f"{at}[]")]
    if isinstance(value, dict):
        wrong += _valid_object(rule, value, at)
    return wrong


def _valid_object(rule: dict[str, Any], value: dict[str, Any], at: str) -> list[str]:
    wrong = [f"{at}.{name}: missing" for name in rule.get("required", []) if name not in value]
    rest = rule.get("additionalProperties", {})
    for name, each in value.items():
        wrong += valid(rule.get("propertyNames", {}), name, f"{at}.{name}")
        if name in rule.get("properties", {}):
            wrong += valid(rule["properties"][name], each, f"{at}.{name}")
        elif rest is False:
            wrong.append(f"{at}.{name}: unknown")
        else:
            wrong += valid(rest, each, f"{at}.{name}")
    return wrong


def _listed(kinds: str | list[str]) -> list[str]:
    return [kinds] if isinstance(kinds, str) else kinds


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    types: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "object": dict, "array": list}
    return kind in types and isinstance(value, types[kind])
