"""Connections that are reset, as firewalls and load balancers do: every handle finds its way back by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from rig import Copy, wait_for

from crossfade.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

#: a transaction that has lost its coordinator is given up after 10 s; the rest is what a loaded machine takes
_BACK_S = 120.0


@pytest.mark.parametrize("way", ["rk", pytest.param("kr", marks=pytest.mark.long)])
def test_every_connection_is_reset_and_the_copy_goes_on(copy: Callable[..., Copy], lab: Lab, way: str) -> None:
    made = copy(way[0], way[1])
    for lane in range(4):
        made.source.write_numbers(lane, range(100))
    relay = made.run("--start")
    made.wait_drained()
    links = [link.name for link in lab.state.links if link.name.startswith(("kafka", "redis-0"))]
    reset = sum(lab.faults.reset(link).observed["connections_reset"] for link in links)
    assert reset >= 4
    began = time.monotonic()
    for lane in range(4):
        made.source.write_numbers(lane, range(100, 200))
    wait_for(lambda: made.target.count() >= 800, made.said, limit_s=_BACK_S)
    print(f"back after {time.monotonic() - began:.1f} s")
    assert made.check().source_records == 800
    assert relay.stop() == 0


@pytest.mark.long
def test_brokers_on_another_continent_are_copied_to(copy: Callable[..., Copy], lab: Lab) -> None:
    """180 ms there and back: a transaction takes longer than a retry would, and is not taken for one."""
    made = copy("r", "k")
    links = [link.name for link in lab.state.links if link.name.startswith("kafka")]
    delays = [lab.faults.delay(link, 90.0, heal_after_s=200.0) for link in links]
    for lane in range(4):
        made.source.write_numbers(lane, range(100))
    relay = made.run("--start")
    made.wait_drained()
    for first in range(100, 400, 100):
        for lane in range(4):
            made.source.write_numbers(lane, range(first, first + 100))
        made.wait_drained()
    for delay in delays:
        delay.heal()
    assert made.check().source_records == 1600
    assert "claim ended" not in relay.said
    assert relay.stop() == 0


@pytest.mark.parametrize("to", ["k", pytest.param("r", marks=pytest.mark.long)])
def test_brokers_that_become_slow_are_copied_to(copy: Callable[..., Copy], lab: Lab, to: str) -> None:
    """Each answer of brokers that were near takes half a second: what a retry takes, and no step is lost for it."""
    made = copy("k" if to == "r" else "r", to)
    for lane in range(4):
        made.source.write_numbers(lane, range(100))
    relay = made.run("--start")
    made.wait_drained()
    name = "kafka" if to == "k" else "redis-0"
    links = [link.name for link in lab.state.links if link.name.startswith(name)]
    delays = [lab.faults.delay(link, 260.0, heal_after_s=200.0) for link in links]
    for first in range(100, 300, 100):
        for lane in range(4):
            made.source.write_numbers(lane, range(first, first + 100))
        wait_for(lambda first=first: made.target.count() >= 4 * (first + 100), made.said, limit_s=_BACK_S)
    for delay in delays:
        delay.heal()
    assert made.check().source_records == 1200
    assert "claim ended" not in relay.said
    assert relay.stop() == 0
