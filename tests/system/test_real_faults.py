"""Faults of the servers and links under a running relay: it copies, a writer writes, the fault comes and heals.

Whatever happened, the oracle finds an exact copy in the end: nothing lost, doubled or out of order. The relay is the
same process all the time, or a supervisor has started it again, as its exit code asks for. Every fault must be seen to
bite: by what the lab observed of it.

A Redis target that is killed has written each script to its append-only file before it answered. One whose file is cut
has lost the end of the records and of the markers alike, and the relay copies that again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from rig import Copy, KafkaSide, Relay, Writer, wait_for

from crossfade.lab import Lab
from crossfade.lab.faults import Fault

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

#: longer than a relay waits for an answer (Redis: 5 s), so that what it sent is in doubt when the fault heals
_LONG_S = 9.0
_SHORT_S = 4.0
#: longer than the cluster takes to name another leader
_FAILOVER_S = 5.0


def _topic(copy: Copy) -> str:
    side = copy.target if isinstance(copy.target, KafkaSide) else copy.source
    assert isinstance(side, KafkaSide)
    return side.topic


def _links(lab: Lab, letter: str) -> list[str]:
    return [link.name for link in lab.state.links if link.name.startswith("kafka" if letter == "k" else "redis-0")]


def _leader(lab: Lab, copy: Copy) -> str:
    return lab.kafka_leader(_topic(copy), 0)


Inject = Callable[[Lab, Copy], list[Fault]]

INJECT: dict[str, Inject] = {
    "kill-leader": lambda lab, copy: [lab.faults.kill_leader(_topic(copy), 0, heal_after_s=_FAILOVER_S)],
    "kill-redis": lambda lab, copy: [lab.faults.kill("redis-0", heal_after_s=_SHORT_S)],
    "freeze-leader": lambda lab, copy: [lab.faults.freeze(_leader(lab, copy), heal_after_s=_LONG_S)],
    "freeze-redis": lambda lab, copy: [lab.faults.freeze("redis-0", heal_after_s=_LONG_S)],
    "restart-leader": lambda lab, copy: [lab.faults.restart(_leader(lab, copy))],
    "restart-redis": lambda lab, copy: [lab.faults.restart("redis-0")],
    "cut-aof-redis": lambda lab, copy: [lab.faults.cut_aof_tail("redis-0", 20_000)],
    "move-leader": lambda lab, copy: [lab.faults.move_leader(_topic(copy), 0)],
    "half-open-kafka": lambda lab, copy: [lab.faults.half_open(x, heal_after_s=_LONG_S) for x in _links(lab, "k")],
    "half-open-redis": lambda lab, copy: [lab.faults.half_open(x, heal_after_s=_LONG_S) for x in _links(lab, "r")],
    "hold-replies-kafka": lambda lab, copy: [
        lab.faults.hold_replies(x, heal_after_s=_LONG_S) for x in _links(lab, "k")
    ],
    "hold-replies-redis": lambda lab, copy: [
        lab.faults.hold_replies(x, heal_after_s=_LONG_S) for x in _links(lab, "r")
    ],
    "drop-replies-kafka": lambda lab, copy: [
        lab.faults.drop_replies(x, heal_after_s=_SHORT_S) for x in _links(lab, "k")
    ],
    "drop-replies-redis": lambda lab, copy: [
        lab.faults.drop_replies(x, heal_after_s=_SHORT_S) for x in _links(lab, "r")
    ],
    # applied late: by then the relay has given up the append, and claims anew
    "hold-requests-kafka": lambda lab, copy: [
        lab.faults.hold_requests(x, heal_after_s=_LONG_S) for x in _links(lab, "k")
    ],
    "hold-requests-redis": lambda lab, copy: [
        lab.faults.hold_requests(x, heal_after_s=_LONG_S) for x in _links(lab, "r")
    ],
}

_DAILY = {"rk-kill-leader", "kr-kill-redis", "kr-hold-requests-redis", "rk-drop-replies-kafka"}


def _cases() -> list[Any]:
    """Each fault where its broker is the target; as the source too where the writer does not stand on it."""
    cases = []
    for fault in INJECT:
        is_redis = fault.endswith("redis")
        ways = ["kr"] if is_redis else ["rk"]
        if "-replies" in fault or "half-open" in fault or fault in ("kill-leader", "move-leader", "freeze-leader"):
            ways.append("rk" if is_redis else "kr")
        for way in ways:
            marks = [] if f"{way}-{fault}" in _DAILY else [pytest.mark.long]
            cases.append(pytest.param(way, fault, id=f"{way}-{fault}", marks=marks))
    return cases


#: exit codes of a relay that is to be started again: failed, and a broker that was away or took its name from it
_TROUBLE = (1, 5)


@dataclass
class Supervisor:
    """Starts the relay again when it has ended, as systemd does with Restart=on-failure."""

    copy: Copy
    restarts: int = 0

    def __post_init__(self) -> None:
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.relay: Relay = self.copy.run("--start")

    def start(self) -> None:
        self._thread.start()

    def _watch(self) -> None:
        while not self._is_over.wait(0.2):
            if self.relay.process.poll() in _TROUBLE:
                self._again()

    def _again(self) -> None:
        self.restarts += 1
        time.sleep(1.0)
        self.relay = self.copy.run("--start")

    def stop(self) -> int:
        """Stop it; a relay that has ended of its own a moment ago is started once more."""
        self._is_over.set()
        self._thread.join(30)
        code = self.relay.stop()
        if code not in _TROUBLE:
            return code
        self._again()
        self.relay.wait_said('"claimed"')
        return self.relay.stop()


def _bites(fault: Fault) -> bool:
    """The lab saw that it acted on something: a process, a leader, or bytes of the link."""
    seen = fault.observe()
    acted = ("pid_gone", "frozen", "new_pid", "old_pid", "new_leader", "bytes_dropped", "bytes_held_max", "bytes_held")
    return any(seen.get(name) for name in acted)


@pytest.mark.parametrize(("way", "name"), _cases())
def test_a_fault_under_a_running_relay_changes_nothing_in_the_copy(
    copy: Callable[..., Copy], lab: Lab, way: str, name: str
) -> None:
    made = copy(way[0], way[1])
    supervisor = Supervisor(made)
    # so slow that it still writes while the fault heals, and so quick that something is always under way
    writer = Writer(made.source, records_max=40_000, pause_s=0.05)
    writer.start()
    made.wait_drained(records=300)
    supervisor.start()
    began = time.monotonic()
    faults = INJECT[name](lab, made)
    bit: set[int] = set()
    # what a link held or dropped is to be seen while it does
    wait_for(
        lambda: [bit.add(at) for at, fault in enumerate(faults) if _bites(fault)] or bit,
        lambda: f"{name} to bite: {[fault.observed for fault in faults]}",
        limit_s=30,
    )
    for fault in faults:
        fault.wait_healed()
    healed_s = time.monotonic() - began
    at_heal = writer.written
    made.wait_drained(records=at_heal)
    back_s = time.monotonic() - began - healed_s
    written = writer.stop()
    assert written > at_heal or written == 40_000 or way[0] == "k"
    made.wait_drained()
    assert supervisor.stop() == 0, supervisor.relay.said[-3000:]
    assert made.check(records_min=300).source_records == written
    claims = made.relays[0].said.count('"claimed"')
    print(f"{way} {name}: healed after {healed_s:.1f} s, drained {back_s:.1f} s later")
    print(f"{supervisor.restarts} restarts, {claims} claims, {written} records")
