"""`relay start` beside a relay that runs, and of single lanes."""

from __future__ import annotations

import pytest
from rig import Copy

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]


@pytest.mark.parametrize("way", ["rk", "kr"])
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
    copy.start()
    relay = copy.run()
    copy.wait_drained()
    again = copy.cli("relay", "start", "--from", "latest")
    assert (again.code, [row["started"] for row in again.rows]) == (0, [0]), again
    assert relay.is_running
    copy.source.write_numbers(0, range(20, 40))
    copy.wait_drained()
    assert relay.stop() == 0
    copy.check(records_min=80)
