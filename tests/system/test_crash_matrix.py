"""kill -9 at every named step of the protocols, in real processes, under a writer; the oracle judges what is left.

A step that is never reached fails its test: the process has to die by its own SIGKILL at that step.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from rig import ROOT, Copy, Relay, Writer, wait_for

from crossfade.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

_RELAY = ["relay.claim.before", "relay.claim.after", "relay.append.before", "relay.append.after"]
_READ = {"r": ["redis.read.done"], "k": ["kafka.read.done"]}
_TARGET = {
    "r": ["redis.claim.sent", "redis.append.sent", "redis.append.done"],
    "k": [
        "kafka.claim.initialised",
        "kafka.append.begun",
        "kafka.append.produced",
        "kafka.append.delivered",
        "kafka.append.offsets_sent",
        "kafka.append.committed",
    ],
}
_STEPS = {way: _RELAY + _READ[way[0]] + _TARGET[way[1]] for way in ("rk", "kr")}
_CASES = [(way, step) for way, steps in _STEPS.items() for step in steps]


def test_every_named_step_is_in_the_matrix() -> None:
    named: set[str] = set()
    for path in Path(ROOT, "src/crossfade").rglob("*.py"):
        named |= set(re.findall(r'(?<![._\w])step\("([a-z_.]+)"\)', path.read_text()))
    assert named == {step for steps in _STEPS.values() for step in steps}


#: steps that `--start` passes once before the relay itself comes to them
_PASSED_BY_START = {step for steps in _TARGET.values() for step in steps}


def _first(step: str) -> int:
    """The passing of a step that is the relay's first."""
    return 2 if step in _PASSED_BY_START else 1


def _die(copy: Copy, kill_at: str) -> None:
    relay = copy.run("--start", kill_at=kill_at, by_hand=True)
    _await_death(relay, kill_at)


def _await_death(relay: Relay, kill_at: str) -> None:
    assert relay.wait_end() == -signal.SIGKILL, f"never died at {kill_at}:\n{relay.said[-3000:]}"


def _end_claims(relay: Relay, lab: Lab) -> None:
    """Cut the link to Redis each time that the relay has a new claim, until it dies."""

    def wait_more(event: str, seen: int) -> int:
        word = f'"{event}"'
        wait_for(
            lambda: relay.said.count(word) > seen or not relay.is_running,
            lambda: f"{event!r} more than {seen} times in\n{relay.said[-3000:]}",
        )
        return relay.said.count(word)

    claims = 0
    while relay.is_running:
        claims = wait_more("claimed", claims)
        ended = relay.said.count('"claim ended"')
        fault = lab.faults.cut("redis-0")
        try:
            wait_more("claim ended", ended)
        finally:
            fault.heal()


def _recover(copy: Copy, writer: Writer) -> None:
    """Start again without a fault, drain, and let the oracle judge."""
    copy.run("--start", by_hand=True).wait_said('"claimed"')
    written = writer.stop()
    copy.wait_drained()
    assert copy.check(records_min=100).source_records == written


@pytest.mark.parametrize(("way", "step"), _CASES, ids=[f"{way}-{step}" for way, step in _CASES])
def test_killed_once(copy: Callable[..., Copy], way: str, step: str) -> None:
    made = copy(way[0], way[1])
    writer = Writer(made.source, records_max=4000)
    writer.start()
    _die(made, f"{step}:{_first(step)}")
    _recover(made, writer)


@pytest.mark.long
@pytest.mark.parametrize("way", list(_STEPS))
def test_killed_at_each_step_while_starting(copy: Callable[..., Copy], way: str) -> None:
    made = copy(way[0], way[1])
    writer = Writer(made.source, records_max=4000)
    writer.start()
    for step in _TARGET[way[1]]:
        _die(made, f"{step}:1")
    _recover(made, writer)


@pytest.mark.long
@pytest.mark.parametrize("passing", [1, 2, 5, 20])
@pytest.mark.parametrize(("way", "step"), _CASES, ids=[f"{way}-{step}" for way, step in _CASES])
def test_killed_later_and_twice_in_a_row(
    copy: Callable[..., Copy], lab: Lab, way: str, step: str, passing: int
) -> None:
    """Claims come again only after trouble, so the link to Redis is cut again and again until then."""
    made = copy(way[0], way[1])
    writer = Writer(made.source, records_max=20_000)
    writer.start()
    kill_at = f"{step}:{passing + _first(step) - 1}"
    relay = made.run("--start", kill_at=kill_at, by_hand=True)
    if ".claim." in step and passing > 1:
        _end_claims(relay, lab)
    _await_death(relay, kill_at)
    _die(made, f"{step}:1")
    _recover(made, writer)
