"""Several relays on one route: lanes are shared, taken over, given back; zombies and namesakes write nothing twice.

Real processes in group mode (Kafka's group protocol; leases where both sides are Redis). The oracle judges each run,
and on Kafka the epochs and ordinals in `xf` are read by another client: an older epoch never follows a newer one.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable

import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient
from rig import Copy, KafkaSide, Relay, Writer, wait_for

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

_LANES = 6


def _ways(*daily: str) -> list[object]:
    """All ways; those that are not daily run in the long tests."""
    return [way if way in daily else pytest.param(way, marks=pytest.mark.long) for way in ("rk", "kr", "rr")]


@pytest.fixture
def shared(workshop) -> Callable[[str], Copy]:
    """A started route of six lanes."""

    def make(way: str) -> Copy:
        made: Copy = workshop.copy(workshop.side(way[0], _LANES), workshop.side(way[1], _LANES))
        made.start()
        return made

    return make


def _owners(copy: Copy) -> dict[str, str]:
    """Lane name -> instance that works on it now, of lanes that are being worked on."""
    rows = copy.status().values()
    return {row["lane"]: row["owner"] for row in rows if row.get("lane") and row["state"] in ("copying", "idle")}


def _wait_owners(copy: Copy, owners: set[str]) -> None:
    """Wait until all lanes are worked on, by exactly these instances."""
    seen: dict[str, str] = {}

    def shared() -> bool:
        seen.clear()
        seen.update(_owners(copy))
        return len(seen) == _LANES and set(seen.values()) == owners

    wait_for(shared, lambda: f"owners {owners}, they are {seen}\n{copy.said()}", pause_s=0.3)


def _finish(copy: Copy, writer: Writer) -> None:
    """Stop writing, drain, judge; epochs never go back and ordinals count on."""
    written = writer.stop()
    copy.wait_drained()
    assert copy.check(records_min=100).source_records == written
    if isinstance(copy.target, KafkaSide):
        for lane, origins in copy.target.origins().items():
            assert [ordinal for _, ordinal, _ in origins] == list(range(1, len(origins) + 1)), lane
            assert all(a[2] <= b[2] for a, b in itertools.pairwise(origins)), f"lane {lane}: an older epoch follows"


@pytest.mark.parametrize("way", _ways("rk", "kr"))
def test_others_take_over_from_a_killed_process(shared: Callable[[str], Copy], way: str) -> None:
    copy = shared(way)
    relays = {name: copy.run(instance=name) for name in ("a", "b", "c")}
    _wait_owners(copy, set(relays))
    writer = Writer(copy.source, records_max=20_000, pause_s=0.1)
    writer.start()
    copy.wait_drained(records=300)
    relays["b"].kill()
    _wait_owners(copy, {"a", "c"})
    _finish(copy, writer)
    assert [relays[name].stop() for name in ("a", "c")] == [0, 0]


@pytest.mark.parametrize("way", _ways("rk"))
def test_a_zombie_writes_nothing_more_and_says_that_it_was_fenced(shared: Callable[[str], Copy], way: str) -> None:
    copy = shared(way)
    zombie, other = copy.run(instance="a"), copy.run(instance="b")
    _wait_owners(copy, {"a", "b"})
    writer = Writer(copy.source, records_max=20_000, pause_s=0.1)
    writer.start()
    copy.wait_drained(records=300)
    zombie.freeze()
    heard = len(zombie.said)
    _wait_owners(copy, {"b"})
    taken_over = copy.source.count()
    copy.wait_drained(records=taken_over)
    zombie.thaw()

    def knows() -> bool:
        said = zombie.said[heard:].lower()
        return "fenced" in said or "lanes lost" in said or "newer claim" in said

    wait_for(knows, lambda: f"the zombie to know it was fenced\n{zombie.said[-3000:]}")
    if zombie.is_running:  # it may come back, as a member like any other
        _wait_owners(copy, {"a", "b"})
    else:
        assert zombie.process.returncode not in (0, -signal.SIGSEGV)
    _finish(copy, writer)
    assert other.stop() == 0


@pytest.mark.parametrize("way", _ways("rk", "rr"))
def test_of_two_processes_with_one_name_the_older_is_fenced_and_says_so(
    shared: Callable[[str], Copy], way: str
) -> None:
    copy = shared(way)
    older = copy.run(instance="same")
    older.wait_said('"claimed"')
    writer = Writer(copy.source, records_max=20_000, pause_s=0.1)
    writer.start()
    copy.wait_drained(records=300)
    newer = copy.run(instance="same")
    code = older.wait_end()
    assert code > 0, older.said[-3000:]
    assert '"Fenced"' in older.said
    assert "another process" in older.said
    assert "'same'" in older.said
    newer.wait_said('"claimed"')
    _finish(copy, writer)
    assert newer.stop() == 0


def _join_and_vanish(side: KafkaSide, route: str, instance: str) -> None:
    """Join the route's group as `instance` and be gone: what a join is whose answer gets lost on its way."""
    group = f"crossfade.{route}"
    member = Consumer(
        {
            **side.direct,
            "group.id": group,
            "group.instance.id": instance,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": 6000,
        }
    )
    member.subscribe([f"{group}.lanes"])
    wait_for(lambda: member.poll(0.1) is None and bool(member.assignment()), f"{instance} to join {group}")
    member.close()  # a static member does not say that it leaves


def test_a_name_lost_to_nobody_is_taken_again(shared: Callable[[str], Copy]) -> None:
    copy = shared("rk")
    relay = copy.run(instance="one")
    relay.wait_said('"claimed"')
    writer = Writer(copy.source, records_max=20_000, pause_s=0.1)
    writer.start()
    copy.wait_drained(records=300)
    heard = len(relay.said)
    assert isinstance(copy.target, KafkaSide)
    _join_and_vanish(copy.target, copy.id, "one")
    wait_for(lambda: "nobody else has the name" in relay.said[heard:], lambda: relay.said[heard:])
    wait_for(lambda: '"claimed"' in relay.said[heard:].split("nobody else has the name")[1], lambda: relay.said[heard:])
    copy.wait_drained(records=copy.source.count())
    _finish(copy, writer)
    assert relay.stop() == 0


@pytest.mark.parametrize("way", _ways("rk"))
def test_rolling_restart(shared: Callable[[str], Copy], way: str) -> None:
    copy = shared(way)
    relays: dict[str, Relay] = {name: copy.run(instance=name) for name in ("a", "b")}
    _wait_owners(copy, set(relays))
    writer = Writer(copy.source, records_max=20_000, pause_s=0.1)
    writer.start()
    for name in list(relays):
        copy.wait_drained(records=copy.source.count())
        assert relays[name].stop() == 0
        relays[name] = copy.run(instance=name)
        relays[name].wait_said('"claimed"')
    _wait_owners(copy, set(relays))
    _finish(copy, writer)


def _members(copy: Copy) -> list[str]:
    """The names of the members of the route's group, the dead ones whose session goes on among them."""
    assert isinstance(copy.target, KafkaSide)
    admin = AdminClient(copy.target.direct)
    group = f"crossfade.{copy.id}"
    found = admin.describe_consumer_groups([group], request_timeout=20)[group].result()
    return [member.group_instance_id or "(no name)" for member in found.members]


def test_the_same_instance_back_after_a_kill_goes_on(shared: Callable[[str], Copy]) -> None:
    copy = shared("rk")
    writer = Writer(copy.source, records_max=20_000, pause_s=0.1)
    writer.start()
    first = copy.run(instance="one")
    copy.wait_drained(records=300)
    first.kill()
    second = copy.run(instance="one")
    # A stranger would stand beside the dead member until the session of that one has ended.
    seen: list[list[str]] = []

    def is_back() -> bool:
        seen.append(_members(copy))
        return '"claimed"' in second.said

    wait_for(is_back, lambda: second.said[-3000:])
    assert [names for names in seen if names not in (["one"], [])] == []
    assert _members(copy) == ["one"]
    _finish(copy, writer)


@pytest.mark.parametrize("way", ["rk", "kr"])
def test_two_processes_on_one_shard_lose_nothing(shared: Callable[[str], Copy], way: str) -> None:
    copy = shared(way)
    writer = Writer(copy.source, records_max=20_000, pause_s=0.1)
    writer.start()
    first = copy.run("--shard", "0/1", instance="first")
    first.wait_said('"claimed"')
    copy.run("--shard", "0/1", instance="second").wait_said('"claimed"')
    wait_for(lambda: "newer claim" in copy.said() or "fenced" in copy.said().lower(), copy.said)
    _finish(copy, writer)


def test_another_number_of_shards_is_refused(shared: Callable[[str], Copy]) -> None:
    copy = shared("rk")
    writer = Writer(copy.source, records_max=3000)
    writer.start()
    shards = [copy.run("--shard", f"{number}/2", instance=f"s{number}") for number in range(2)]
    for shard in shards:
        shard.wait_said('"claimed"')
    overlap = copy.run("--shard", "0/1", instance="s9")
    assert overlap.wait_end() == 4
    assert "split into 2 shards" in overlap.said
    assert "RouteConflict" in overlap.said
    assert all(shard.is_running for shard in shards)
    _finish(copy, writer)


def test_shards_beside_a_group_are_refused(shared: Callable[[str], Copy]) -> None:
    copy = shared("rk")
    writer = Writer(copy.source, records_max=3000)
    writer.start()
    member = copy.run(instance="member")
    copy.wait_drained(records=200)
    by_hand = copy.run("--shard", "0/1", instance="hand")
    assert by_hand.wait_end() == 4
    assert "group mode" in by_hand.said
    assert member.is_running
    _finish(copy, writer)
