"""`relay start` beside a relay that runs, of single lanes, and where it fails; and what `uninstall` then sees."""

from __future__ import annotations

import pytest
from rig import Copy, wait_for

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]


@pytest.mark.parametrize("way", ["rk", "kr", "rr"])
def test_starting_again_beside_a_running_relay_changes_nothing(workshop, way: str) -> None:
    copy: Copy = workshop.copy(workshop.side(way[0], 3), workshop.side(way[1], 3))
    for lane in range(3):
        copy.source.write_numbers(lane, range(20))
    one = copy.cli("relay", "start", "copy", "--lane", "1")
    assert (one.code, [(row["lanes"], row["started"]) for row in one.rows]) == (0, [(1, 1)]), one
    none = copy.cli("relay", "start", "copy", "--lane", "3")
    assert none.code == 2
    assert "has no lane 3" in none.err
    both = copy.cli("relay", "start", "copy", "--from", "position:3" if way == "kr" else "position:1-0")
    assert both.code == 2
    assert "lanes 0, 2 would" in both.err
    for command, told in (("wait", "lanes that were never started (0, 2)"), ("run", "2 lanes were never started")):
        early = copy.cli("relay", command, "copy")
        assert early.code == 4, early
        assert told in early.err + early.out
    copy.start()
    relay = copy.run()
    copy.wait_drained()
    epochs = _epochs(copy)
    again = copy.cli("relay", "start", "--from", "latest")
    assert (again.code, [row["started"] for row in again.rows]) == (0, [0]), again
    assert relay.is_running
    copy.source.write_numbers(0, range(20, 40))
    copy.wait_drained()
    assert _epochs(copy) == epochs
    assert "fenced" not in relay.said
    assert relay.stop() == 0
    copy.check(records_min=80)


def _epochs(copy: Copy) -> dict[int, int]:
    """Of each lane, once heartbeats tell that all it holds has been copied."""

    def told() -> dict[int, int]:
        rows = copy.cli("relay", "status").rows
        is_all = len(rows) == 3 and all(row.get("state") == "idle" and row["lag_records"] == 0 for row in rows)
        return {row["number"]: row["epoch"] for row in rows} if is_all else {}

    found: dict[int, int] = wait_for(told, "a heartbeat that tells of all lanes", pause_s=0.5)
    return found


def test_a_first_start_that_fails_starts_nothing_and_leaves_nothing_for_good(workshop) -> None:
    copy: Copy = workshop.copy(workshop.redis(2), workshop.redis(2))
    for lane in range(2):
        copy.source.write_numbers(lane, range(10))
    failed = copy.cli("relay", "start", "copy", "--lane", "0", "--from", "position:9999999999999-0")
    assert failed.code != 0
    assert copy.cli("relay", "status").rows == []
    assert copy.cli("relay", "wait").code == copy.cli("relay", "run").code == 4
    assert _left(copy) == {"old", "new"}  # a birth, and a claim
    assert copy.cli("uninstall", "copy", "--yes").code == 0
    assert _left(copy) == set()
    both = copy.cli("relay", "start", "copy", "--from", "position:1-0")
    assert (both.code, [row["started"] for row in both.rows]) == (0, [2]), both


def _left(copy: Copy) -> set[str]:
    rows = copy.cli("uninstall", "copy").rows
    return {row["broker"] for row in rows if row["state"] == "would be removed"}


def test_a_wish_on_another_target_hides_no_relay(workshop) -> None:
    source, target, other = (workshop.redis(1) for _ in range(3))
    copy: Copy = workshop.copy(source, target)
    source.write_numbers(0, range(10))
    copy.start()
    relay = copy.run()
    copy.wait_drained()
    copy.document["brokers"]["elsewhere"] = other.broker() | {"url": f"{other.url.rpartition('/')[0]}/1"}
    copy.document["streams"]["stream"]["elsewhere"] = other.side()
    copy.document["routes"]["copy"]["target"] = "elsewhere"
    copy.write_config()
    assert copy.cli("relay", "pause", "copy").code == 0
    refused = copy.cli("uninstall", "copy", "--yes")
    assert refused.code == 4
    assert "may be another target" in refused.err
    source.write_numbers(0, range(10, 20))
    wait_for(lambda: target.count() == 20, "the relay goes on")
    assert relay.stop() == 0
    assert copy.cli("uninstall", "copy", "--yes", "--unseen").code == 0
