"""`crossfade verify` on real brokers: a part of a stream, several processes, repair, and a relay that comes back."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable

import pytest
from confluent_kafka import Producer
from rig import CROSSFADE, Copy, KafkaSide, RedisSide, wait_for
from test_lanes_added import _add_partition as add_partition

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]


def _verified(copy: Copy, code: int, *choice: str) -> dict:
    answer = copy.cli("verify", "copy", *choice)
    assert answer.code == code, (answer.out, answer.err)
    told = json.loads(answer.out)
    return told | told["routes"][0]


def _copied(copy: Copy, records: int) -> None:
    relay = copy.run("--start", by_hand=True)
    copy.wait_drained(records=records)
    assert relay.stop() == 0, relay.said[-2000:]


def _kinds(told: dict) -> dict[str, int]:
    return {kind: told[kind] for kind in ("missing", "extra", "duplicate", "reordered", "altered") if told[kind]}


@pytest.mark.parametrize("way", ["rk", "kr"])
def test_a_part_and_several_processes(copy: Callable[..., Copy], way: str) -> None:
    made = copy(way[0], way[1])
    for lane in range(4):
        made.source.write_numbers(lane, range(lane * 1000, lane * 1000 + 300))
    _copied(made, 1200)
    told = _verified(made, 0, "--processes", "3", "--settled", "--complete")
    assert (told["matched"], [lane["matched"] for lane in told["lanes"]]) == (1200, [300] * 4)
    if isinstance(made.source, RedisSide):
        places = [place.decode() for place, _ in made.source.raw()[2]]
    else:
        places = [str(message.offset) for message in made.source.raw()[2]]
    ends = ("--from", f"position:{places[50]}", "--to", f"position:{places[249]}")
    told = _verified(made, 0, "--lanes", "2", "--settled", *ends)
    assert (told["matched"], told["complete"]) == (200, True)
    # A stranger at the end of the lane is outside of that part, and so found by an audit of the whole alone.
    if isinstance(made.target, RedisSide):
        made.target.write(2, [[b"key", b"k", b"value", b"v"]])
    else:
        made.target.write(2, [(b"k", b"v", None, 0)])
    assert not _kinds(_verified(made, 0, "--lanes", "2", "--settled", *ends))
    assert _kinds(_verified(made, 3, "--processes", "2")) == {"extra": 1}
    assert _verified(made, 1, "--from", "time:2100-01-01T00:00:00Z")["verdict"] == "none"


def test_what_readers_cannot_see_and_lanes_of_the_target_alone(workshop) -> None:
    source, target = workshop.kafka(2), workshop.kafka(3)
    made = workshop.copy(source, target)
    for lane in range(2):
        source.write_numbers(lane, range(lane * 1000, lane * 1000 + 100))
    _copied(made, 200)
    assert _verified(made, 0, "--settled", "--complete")["matched"] == 200
    for side in (source, target):
        app = Producer({**side.direct, "transactional.id": f"app-{side.topic}"})
        app.init_transactions(30)
        app.begin_transaction()
        app.produce(side.topic, b"in an open transaction", b"tx", 0)
        assert app.flush(30) == 0
        side.write_numbers(0, range(100, 110))  # committed, behind it
        told = _verified(made, 1, "--settled", "--complete")
        assert (told["matched"], told["complete"], _kinds(told)) == (200, False, {})
        assert [bool(lane["held_up"]) for lane in told["lanes"]] == [True, False]
        assert f"{side.topic}[0]: an open transaction" in told["lanes"][0]["held_up"]
        app.abort_transaction(30)
    told = _verified(made, 3, "--settled")
    assert (_kinds(told), [lane["held_up"] for lane in told["lanes"]]) == ({"missing": 10, "duplicate": 10}, ["", ""])
    target.write(2, [(b"k", b"v", None, 0)])
    told = _verified(made, 3)
    assert [(lane["lane"], lane["extra"]) for lane in told["lanes"]] == [(0, 0), (1, 0), (2, 1)]


@pytest.mark.parametrize("way", ["rk", "kr"])
def test_a_copy_that_began_late_and_behind_another_writer(copy: Callable[..., Copy], way: str) -> None:
    made = copy(way[0], way[1])
    for lane in range(4):
        made.source.write_numbers(lane, range(lane * 1000, lane * 1000 + 50))
    if isinstance(made.target, RedisSide):
        made.target.write(0, [[b"key", b"k", b"value", b"v"]])
    else:
        made.target.write(0, [(b"k", b"v", None, 0)])
    started = made.cli("relay", "start", "copy", "--from", "latest")  # the file says nothing, so: earliest
    assert started.code == 0, started
    for lane in range(4):
        made.source.write_numbers(lane, range(lane * 1000 + 50, lane * 1000 + 80))
    relay = made.run(by_hand=True)
    made.wait_drained(records=1 + 4 * 30)
    assert relay.stop() == 0, relay.said[-2000:]
    told = _verified(made, 3, "--settled")
    assert _kinds(told) == {"extra": 1}
    assert (told["matched"], told["before_target"]) == (4 * 30, 4 * 50)


@pytest.mark.long
def test_ids_tell_the_first_lane_of_a_route_by_key_when_a_second_came(workshop) -> None:
    source = workshop.kafka(1)
    made: Copy = workshop.copy(source, workshop.redis(3), lanes="by-key")
    source.write_numbers(0, range(60))
    _copied(made, 60)
    assert not any(b"xf" in entry for entries in made.target.raw().values() for _, entry in entries)
    assert _verified(made, 0, "--settled", "--complete")["matched"] == 60
    add_partition(source)
    source.write_numbers(1, range(60, 90))
    source.write_numbers(0, range(90, 110))
    _copied(made, 110)
    assert _verified(made, 0, "--settled", "--complete")["matched"] == 110


def test_repair_of_a_redis_target_and_the_relay_goes_on(copy: Callable[..., Copy]) -> None:
    made = copy("k", "r")
    target = made.target
    assert isinstance(target, RedisSide)
    for lane in range(4):
        made.source.write_numbers(lane, range(lane * 1000, lane * 1000 + 100))
    _copied(made, 400)
    clean = target.raw()
    double = clean[1][40][1]
    target.write(1, [double, [b"key", b"k", b"value", b"invented"]])
    relay = made.run(by_hand=True)
    made.wait_status(target_source_lane(made, 0), lambda row: row["state"] == "idle", "is idle")
    refused = made.cli("verify", "copy", "--repair", "apply", "--yes")
    assert refused.code == 4, refused
    assert "running relays" in refused.err
    assert relay.stop() == 0
    unasked = made.cli("verify", "copy", "--repair", "apply")
    assert unasked.code == 4, unasked
    listed = _verified(made, 3, "--repair", "list")
    assert sorted(row["action"] for row in listed["plan"]) == ["remove", "remove"]
    assert sum(len(entries) for entries in target.raw().values()) == 402
    told = _verified(made, 0, "--repair", "apply", "--yes", "--settled")
    assert {row["outcome"] for row in told["plan"]} == {"removed"}
    assert target.raw() == clean
    # The relay comes back, finds its lanes as it left them, and goes on.
    for lane in range(4):
        made.source.write_numbers(lane, range(lane * 1000 + 100, lane * 1000 + 150))
    _copied(made, 600)
    made.check(600)
    assert _verified(made, 0, "--settled", "--complete")["matched"] == 600


@pytest.mark.parametrize(
    ("way", "how"), [("rk", "XTRIM"), ("rr", "XTRIM"), ("rr", "XDEL"), ("rr", "DEL"), ("kr", "DeleteRecords")]
)
def test_copies_whose_originals_are_gone_are_right_and_no_repair_removes_them(
    copy: Callable[..., Copy], way: str, how: str
) -> None:
    made = copy(way[0], way[1])
    for lane in range(4):
        made.source.write_numbers(lane, range(lane * 1000, lane * 1000 + 250))
    _copied(made, 1000)
    before = made.target.rows()
    for lane in range(4):
        _take_originals(made, lane, how)
    gone = 4 * 50 if how == "XDEL" else 1000
    for choice in ((), ("--repair", "list"), ("--repair", "apply", "--yes")):
        told = _verified(made, 0 if gone < 1000 else 1, "--settled", *choice)
        assert not _kinds(told)
        assert (told["matched"], told["source_gone"], told["complete"]) == (1000 - gone, gone, False)
        assert not told.get("plan")
    assert made.target.rows() == before


@pytest.mark.long
def test_copies_whose_originals_compaction_took_are_right(workshop) -> None:
    compacts = {
        "cleanup.policy": "compact",
        "segment.ms": "500",
        "min.cleanable.dirty.ratio": "0.01",
        "max.compaction.lag.ms": "500",
    }
    source = workshop.kafka(1, compacts)
    made: Copy = workshop.copy(source, workshop.redis(1))
    source.write_numbers(0, range(1000))
    _copied(made, 1000)

    def is_compacted() -> bool:
        source.write_numbers(0, range(1))  # rolls the segment
        return len(source.raw()[0]) < 900

    wait_for(is_compacted, "records that compaction took", pause_s=2.0)
    told = _verified(made, 0, "--repair", "apply", "--yes")
    assert not _kinds(told)
    assert told["source_gone"] > 100


def _take_originals(made: Copy, lane: int, how: str) -> None:
    source = made.source
    if isinstance(source, KafkaSide):
        _, end = made.lab.admin.ends(source.topic, lane)
        made.lab.admin.delete_records(source.topic, lane, end)
    elif how == "XTRIM":
        source.client.xtrim(source.key(lane), maxlen=0, approximate=False)
    elif how == "DEL":
        source.client.delete(source.key(lane))
    else:  # workers that are done with some in the middle
        ids = [entry_id for entry_id, _ in source.client.xrange(source.key(lane))]
        source.client.xdel(source.key(lane), *ids[100:200:2])


def target_source_lane(copy: Copy, lane: int) -> str:
    """The source lane as `relay status` calls it."""
    return f"{copy.source.topic}[{lane}]" if isinstance(copy.source, KafkaSide) else copy.source.key(lane)


def test_what_a_kafka_target_needs_is_said_and_nothing_is_done(copy: Callable[..., Copy]) -> None:
    made = copy("r", "k")
    assert isinstance(made.target, KafkaSide)
    made.source.write_numbers(0, range(50))
    _copied(made, 50)
    made.target.write(0, [(b"k", b"invented", None, 0)])
    told = _verified(made, 3, "--repair", "apply", "--yes")
    (row,) = told["plan"]
    assert (row["action"], row["outcome"], row["kind"]) == ("copy anew", None, "extra")
    assert "FRESH-TOPIC" in row["how"]
    assert row["target"] in row["how"]


def test_a_watch_follows_a_live_copy_and_remembers_what_it_saw(copy: Callable[..., Copy]) -> None:
    made = copy("k", "r")
    assert isinstance(made.target, RedisSide)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    relay = made.run("--start", by_hand=True)
    made.source.write_numbers(0, range(100))
    made.wait_drained(records=100)
    choice = ["verify", "copy", "--watch", "0.3", "--metrics-port", str(port)]
    process = subprocess.Popen(
        [CROSSFADE, "-c", str(made.config), "-o", "json", *choice], stdout=subprocess.PIPE, text=True, cwd=made.folder
    )
    try:
        assert process.stdout is not None
        rounds = (json.loads(line) for line in process.stdout)
        assert next(told for told in rounds if told["matched"] == 100)["parity"] == 1.0
        for lane in range(4):
            made.source.write_numbers(lane, range(1000 * lane + 200, 1000 * lane + 300))
        seen = next(told for told in rounds if told["matched"] == 500)
        assert (seen["ok"], seen["extra"]) == (True, 0)
        made.target.write(3, [[b"key", b"k", b"value", b"invented"]])
        told = next(told for told in rounds if not told["ok"])
        assert (told["extra"], [named["kind"] for named in told["differences"]]) == (1, ["extra"])
        # The next round names it no more, and still counts it.
        told = next(rounds)
        assert (told["extra"], told["differences"]) == (1, [])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        assert 'crossfade_verify_differences{kind="extra",route="copy"} 1.0' in text
        assert 'crossfade_verify_parity_ratio{route="copy"} 1.0' in text
        assert 'crossfade_verify_audited_age_seconds{route="copy"}' in text
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 3
    finally:
        process.kill()
        process.wait()
    assert relay.stop() == 0
