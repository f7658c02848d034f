"""kill -9 at every named step of the protocols, in real processes, under a writer; the oracle judges what is left.

A step that is never reached fails its test: the process has to die by its own SIGKILL at that step.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from rig import ROOT, Copy, Writer

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


def _die(copy: Copy, kill_at: str) -> None:
    relay = copy.run("--start", kill_at=kill_at, by_hand=True)
    assert relay.wait_end() == -signal.SIGKILL, f"never died at {kill_at}:\n{relay.said[-3000:]}"


def _recover(copy: Copy, writer: Writer, records_min: int) -> None:
    written = writer.stop()
    copy.wait_drained()
    result = copy.check(records_min)
    assert result.source_records == written


@pytest.mark.parametrize(("way", "step"), _CASES, ids=[f"{way}-{step}" for way, step in _CASES])
def test_killed_once(copy: Callable[..., Copy], way: str, step: str) -> None:
    made = copy(way[0], way[1])
    writer = Writer(made.source, records_max=4000)
    writer.start()
    _die(made, f"{step}:1")
    relay = made.run("--start", by_hand=True)
    relay.wait_said("claimed")
    _recover(made, writer, 100)
