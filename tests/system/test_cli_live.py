"""The command line on live brokers: what is wrong is named in one line, what is asked for takes effect, nothing stays.

No message may show a stack trace; exit codes are the documented ones.
"""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from rig import Answer, Copy, RedisSide, Writer, wait_for

from crossfade.lab import Lab
from crossfade.lab.faults import Fault

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

#: a stop is promised within 5 s; the rest is for a machine under load
_STOP_LIMIT_S = 8.0


def _refused(answer: Answer, code: int, *words: str) -> None:
    text = answer.out + answer.err
    assert answer.code == code, text
    assert "Traceback" not in text
    for word in words:
        assert word in text, f"{word!r} is not in {text}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def acl_user(workshop) -> Callable[..., dict[str, str]]:
    """`acl_user("+@all")`: a Redis user with these rights, as broker settings."""
    client = workshop.redis().client
    made: list[str] = []

    def make(*rules: str) -> dict[str, str]:
        name = f"sys-{len(made)}-{int(time.time() * 1e6)}"
        client.execute_command("ACL", "SETUSER", name, "on", ">right", "~*", "&*", *rules)
        made.append(name)
        return {"username": name, "password": "right"}

    yield make
    for name in made:
        client.execute_command("ACL", "DELUSER", name)


@pytest.mark.parametrize("way", ["rk", "kr"])
def test_a_wrong_password_is_named(copy: Callable[..., Copy], acl_user, way: str) -> None:
    made = copy(way[0], way[1])
    broker = "old" if way[0] == "r" else "new"
    made.document["brokers"][broker] |= acl_user("+@all") | {"password": "wrong"}
    made.write_config()
    _refused(made.cli("relay", "start"), 5, "AccessRefused", "hint")
    made.document["brokers"][broker]["password"] = "right"
    made.write_config()
    assert made.cli("relay", "start").code == 0


@pytest.mark.parametrize("kind", ["redis", "kafka"])
def test_an_unreachable_broker_is_named(copy: Callable[..., Copy], kind: str) -> None:
    made = copy("r", "k")
    address = f"127.0.0.1:{_free_port()}"
    if kind == "redis":
        made.document["brokers"]["old"]["url"] = f"redis://{address}/0"
    else:
        made.document["brokers"]["new"]["properties"]["bootstrap.servers"] = address
    made.write_config()
    _refused(made.cli("relay", "start"), 5, "Unreachable", address)


@pytest.mark.parametrize("way", ["rk", "kr"])
def test_a_missing_topic_is_named(copy: Callable[..., Copy], way: str) -> None:
    made = copy(way[0], way[1])
    side = "new" if way[1] == "k" else "old"
    made.document["streams"]["stream"][side]["topic"] = "no-such-topic"
    made.write_config()
    _refused(made.cli("relay", "start"), 5, "AccessRefused", "topic no-such-topic does not exist", "create it")


@pytest.mark.parametrize(
    ("way", "rules", "missing"), [("rk", "-xrange", "xrange"), ("kr", "-@scripting", "script|load")]
)
def test_a_missing_right_is_named(copy: Callable[..., Copy], acl_user, way: str, rules: str, missing: str) -> None:
    made = copy(way[0], way[1])
    made.source.write_numbers(0, range(10))
    broker = "old" if way[0] == "r" else "new"
    made.document["brokers"][broker] |= acl_user("+@all", rules)
    made.write_config()
    answer = made.cli("relay", "start")
    if answer.code == 0:
        relay = made.run(by_hand=True)
        answer = Answer(relay.wait_end(), relay.said, "")
    _refused(answer, 5, "AccessRefused", "doctor")
    assert missing in (answer.out + answer.err).lower()


def test_pause_resume_and_rate_take_effect(copy: Callable[..., Copy]) -> None:
    made = copy("r", "k")
    assert isinstance(made.source, RedisSide)
    lane = made.source.key(0)
    relay = made.run("--start", by_hand=True)
    made.source.write_numbers(0, range(100))
    made.wait_drained()
    assert made.cli("relay", "pause", "copy").code == 0
    made.wait_status(lane, lambda row: row["state"] == "paused", "is paused")
    for number in range(4):
        made.source.write_numbers(number, range(1000, 1300))
    # A second heartbeat that sees the new records as lag has passed them by.
    made.wait_status(lane, lambda row: row["state"] == "paused" and row["lag_records"] == 300, "lags")
    assert made.target.count() == 100
    assert made.cli("relay", "rate", "copy", "20").code == 0
    assert made.cli("relay", "resume", "copy").code == 0
    # The rate takes effect on its own, also on a lane that still waits for the heartbeat that lifts its pause.
    made.wait_status(
        lane,
        lambda row: "rate limit 20/s" in str(row["reason"]) and row["state"] in ("copying", "idle"),
        "goes on, with the limit shown",
    )
    # What is there at one moment: `count` would follow a slow copy to its end.
    assert sum(map(len, made.target.read().values())) < 1300
    assert made.cli("relay", "rate", "copy", "0").code == 0
    made.wait_drained()
    made.check(1300)
    assert made.cli("relay", "pause", "copy", "--lane", "0").code == 0
    made.wait_status(lane, lambda row: row["state"] == "paused", "is paused alone")
    made.source.write_numbers(0, range(2000, 2050))
    made.source.write_numbers(1, range(2050, 2100))
    made.wait_drained([1])
    assert made.target.count([0]) == 400
    assert made.cli("relay", "resume", "copy", "--lane", "0").code == 0
    made.wait_drained()
    made.check(1400)
    assert relay.stop() == 0


@pytest.mark.parametrize("way", ["rk", "kr"])
def test_sigterm_under_load_ends_with_0_and_status_says_stopped(copy: Callable[..., Copy], way: str) -> None:
    made = copy(way[0], way[1])
    writer = Writer(made.source, records_max=20_000, pause_s=0.002)
    writer.start()
    relay = made.run("--start")
    made.wait_drained(records=300)
    began = time.monotonic()
    assert relay.stop() == 0, relay.said[-2000:]
    took_s = time.monotonic() - began
    assert took_s < _STOP_LIMIT_S, f"{took_s:.1f} s"
    assert '"stop cut' not in relay.said  # neither short nor off: every broker answers
    assert {row["state"] for row in made.status().values()} == {"stopped"}
    made.run("--start").wait_said('"claimed"')
    writer.stop()
    made.wait_drained()
    made.check(300)


def _hang(lab: Lab, what: str) -> list[Fault]:
    """Nobody answers any more, and no connection ends."""
    if what == "redis-frozen":
        return [lab.faults.freeze("redis-0", heal_after_s=60)]
    links = [link.name for link in lab.state.links if link.name.startswith("kafka")]
    return [lab.faults.half_open(link, heal_after_s=60) for link in links]


@pytest.mark.parametrize(
    ("way", "what"),
    [
        ("kr", "redis-frozen"),
        ("rk", "kafka-half-open"),
        pytest.param("rk", "redis-frozen", marks=pytest.mark.long),
        pytest.param("kr", "kafka-half-open", marks=pytest.mark.long),
        pytest.param("rr", "redis-frozen", marks=pytest.mark.long),
        pytest.param("kk", "kafka-half-open", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("after_s", [0.3, pytest.param(6.0, marks=pytest.mark.long)])
def test_sigterm_ends_a_relay_whose_broker_hangs(
    copy: Callable[..., Copy], lab: Lab, way: str, what: str, after_s: float
) -> None:
    """At whatever it is when the signal comes: an append, or trying again."""
    made = copy(way[0], way[1])
    # an application whose own broker hangs would hang with it
    is_source_away = way[0] == what[0]
    writer = Writer(made.source, records_max=300 if is_source_away else 20_000, pause_s=0.002)
    writer.start()
    relay = made.run("--start")
    made.wait_drained(records=300)
    if is_source_away:
        writer.stop()
    faults = _hang(lab, what)
    time.sleep(after_s)
    began = time.monotonic()
    code = relay.stop()
    took_s = time.monotonic() - began
    for fault in faults:
        fault.heal()
    for fault in faults:
        fault.wait_healed()
    print(f"{took_s:.2f} s; {[line for line in relay.said.splitlines() if 'stop' in line]}")
    assert code == 0, relay.said[-2000:]
    assert took_s < _STOP_LIMIT_S, f"{took_s:.1f} s\n{relay.said[-2000:]}"
    assert "Traceback" not in relay.said
    assert '"stopped"' in relay.said or '"stop cut off"' in relay.said
    made.run("--start").wait_said('"claimed"')
    if not is_source_away:
        writer.stop()
    made.wait_drained()
    made.check(300)


def test_health_and_metrics_answer(copy: Callable[..., Copy]) -> None:
    made = copy("r", "k")
    assert isinstance(made.source, RedisSide)
    port = _free_port()
    made.source.write_numbers(0, range(500))
    relay = made.run("--start", "--metrics-port", str(port), by_hand=True)

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    wait_for(lambda: get("/readyz")[0] == 200, lambda: f"/readyz\n{relay.said[-2000:]}")
    made.wait_drained()
    assert get("/livez") == (200, "ok\n")
    line = f'crossfade_relay_records_total{{lane="{made.source.key(0)}",route="copy"}} 500.0'
    wait_for(lambda: line in get("/metrics")[1], lambda: f"{line} in\n{get('/metrics')[1]}")
    assert get("/nothing")[0] == 404
    assert relay.stop() == 0


@pytest.mark.parametrize("way", ["rk", "kr", *(pytest.param(way, marks=pytest.mark.long) for way in ("kk", "rr"))])
def test_uninstall_removes_everything(copy: Callable[..., Copy], lab: Lab, way: str) -> None:
    made = copy(way[0], way[1])
    for lane in range(4):
        made.source.write_numbers(lane, range(20))
    relay = made.run("--start", by_hand=True)
    made.wait_drained()
    refused = made.cli("uninstall", "--yes")
    assert refused.code == 4, refused
    assert relay.stop() == 0
    listed = made.cli("uninstall")
    assert listed.code == 0, listed.err
    assert listed.rows
    assert made.target.count() == 80
    removed = made.cli("uninstall", "--yes")
    assert removed.code == 0, removed.err
    assert {row["state"] for row in _of_this_file(removed)} == {"removed"}
    assert _of_this_file(made.cli("uninstall")) == []
    _nothing_is_left(made, lab)
    made.check(80)


def _of_this_file(answer: Answer) -> list[dict[str, Any]]:
    """Without what the routes of earlier tests left in the lab."""
    return [row for row in answer.rows if row["state"] != "of a route that is not in this file"]


def _nothing_is_left(copy: Copy, lab: Lab) -> None:
    """By other clients: no topic, no group, no key, no birth group of this route."""
    admin = AdminClient(lab.kafka_properties(direct=True))

    def left() -> list[str]:
        groups = [group.group_id for group in admin.list_consumer_groups().result(60).valid]
        return [name for name in [*admin.list_topics(timeout=30).topics, *groups] if copy.id in name]

    # each broker learns of a deletion in its own time
    wait_for(lambda: not left(), lambda: f"nothing is left, there is {left()}", pause_s=0.2)
    with lab.client_of_redis() as client:
        sides = [side for side in (copy.source, copy.target) if isinstance(side, RedisSide)]
        ours = [key.decode() for key in client.scan_iter("crossfade:*")]
        assert [key for key in ours if copy.id in key] == []
        assert [name for name in client.hkeys("crossfade:board") if copy.id.encode() in name] == []
        for side in sides:
            keys = [side.key(lane) for lane in range(side.lanes)]
            assert [key for key in ours if any(f"{{{mine}}}" in key for mine in keys)] == []
            for key in keys:
                assert [group["name"] for group in client.xinfo_groups(key)] == []
