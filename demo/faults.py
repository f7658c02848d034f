"""The faults of the demo, each with the proof that it took effect while records moved.

A fault is `fired` only when its effect was observed from outside (old pid gone, a transaction left open, the leader id
changed, connections reset and refused) and when records moved just before and the workload went on writing during it.
What cannot be forced at the first try (a kill in the middle of an append) is tried again, a bounded number of times.
`recovered_s` is the time from the fault to the moment when every lane of the target had received a record written
after it, as an outsider saw it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from crossfade.lab.process import identify

from .children import Supervised, Trouble
from .load import Load
from .stage import Stage
from .timeline import Timeline

TRIES_MAX = 8
RECOVER_LIMIT_S = 120.0
MOVE_LIMIT_S = 120.0
#: "just before": records must have arrived at the target in this time before a fault
JUST_BEFORE_S = 1.0


@dataclass
class Fault:
    """One fault as it happened."""

    name: str
    at_s: float = 0.0
    fired: bool = False
    observed: dict[str, Any] = field(default_factory=dict)
    recovered_s: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "fired": self.fired,
            "observed": self.observed,
            "recovered_s": None if self.recovered_s is None else round(self.recovered_s, 2),
        }

    @property
    def is_good(self) -> bool:
        """Took effect under load, and was over within the limit."""
        return self.fired and self.recovered_s is not None


class Faults:
    """Injects faults into one direction of the copy."""

    def __init__(
        self,
        stage: Stage,
        relay: Supervised,
        timeline: Timeline,
        load: Load,
        random: Random,
        say: Callable[[str], None],
    ) -> None:
        self._stage = stage
        self._relay = relay
        self._timeline = timeline
        self._load = load
        self._random = random
        self._say = say
        self.done: list[Fault] = []

    # -- the three kinds -----------------------------------------------------------------------------------------

    def kill_relay_in_transaction(self) -> Fault:
        """kill -9 the relay while its Kafka transaction is open: the broker then holds records that nobody may see."""
        fault = Fault("kill -9 relay, transaction open")
        for attempt in range(1, TRIES_MAX + 1):
            self._pause()
            self._strike(fault, also=self._stage.open_transactions)
            pid = self._relay.kill_and_hold()
            open_partitions = self._stage.open_transactions()
            self._relay.let_go()
            fault.fired = bool(open_partitions) and _is_gone(pid)
            fault.observed |= {
                "old_pid": pid,
                "old_pid_gone": _is_gone(pid),
                "new_pid": self._relay.pid,
                "partitions_with_open_transaction": len(open_partitions),
                "records_above_last_stable_offset": sum(open_partitions.values()),
                "tries": attempt,
            }
            self._await_recovery(fault)
            if fault.fired or fault.recovered_s is None:
                break
        return self._finish(fault)

    def kill_relay_in_append(self) -> Fault:
        """kill -9 the relay between an append that Redis executed and its answer, which the proxy holds back."""
        fault = Fault("kill -9 relay, append unanswered")
        for attempt in range(1, TRIES_MAX + 1):
            self._pause()
            self._strike(fault)
            with self._stage.redis_answers_held(deadline_s=10) as held:
                appended = self._stage.wait_redis_grows(self._stage.back_pattern, held.at_records, limit_s=5)
                pid = self._relay.kill_and_hold()
                held_bytes = held.bytes()
                at_kill = self._stage.redis_counts(self._stage.back_pattern)
            self._relay.let_go()
            fault.fired = appended > 0 and held_bytes > 0 and _is_gone(pid)
            fault.observed |= {
                "old_pid": pid,
                "old_pid_gone": _is_gone(pid),
                "new_pid": self._relay.pid,
                "records_appended_without_answer": appended,
                "answer_bytes_held": held_bytes,
                "target_records_at_kill": sum(at_kill),
                "tries": attempt,
            }
            self._await_recovery(fault, at_kill)
            if fault.fired or fault.recovered_s is None:
                break
        return self._finish(fault)

    def kill_leader(self) -> Fault:
        """kill -9 the broker that leads a partition; it is started again once another broker leads."""
        fault = Fault("kill -9 leader of a partition")
        self._stage.wait_all_in_sync(limit_s=90)
        self._pause()
        partition = self._random.randrange(self._stage.lanes)
        self._strike(fault)
        old_leader = self._stage.leader(partition)
        pid = self._stage.kill_broker(old_leader)
        new_leader = self._stage.wait_leader_moves(partition, old_leader, limit_s=60)
        moved_s = time.time() - fault.at_s
        fault.fired = new_leader not in (old_leader, -1) and _is_gone(pid)
        fault.observed |= {
            "partition": partition,
            "old_leader": old_leader,
            "new_leader": new_leader,
            "old_pid": pid,
            "old_pid_gone": _is_gone(pid),
            "leader_moved_after_s": round(moved_s, 2),
        }
        self._await_recovery(fault, self._timeline.counts_now())
        self._stage.restart_broker(old_leader)
        self._stage.wait_all_in_sync(limit_s=90)
        return self._finish(fault)

    def cut_redis(self) -> Fault:
        """Cut the link between the relay and Redis for some seconds: connections are reset, new ones refused."""
        fault = Fault("cut the link to Redis")
        self._pause()
        cut_s = self._random.uniform(2.5, 4.0)
        before = self._stage.redis_link()
        self._strike(fault)
        self._stage.cut_redis(deadline_s=60)
        refused = _is_refused(self._stage.redis_link_port)
        stalled = self._await_stall(limit_s=10)
        at_stall = self._timeline.counts_now()
        cut_until = fault.at_s + cut_s
        self._load.wait(lambda: time.time() >= cut_until, limit_s=cut_s + 5)
        self._stage.heal_redis()
        after = self._stage.redis_link()
        reset = after["reset"] - before["reset"]
        fault.fired = reset > 0 and refused and stalled
        fault.observed |= {
            "cut_s": round(time.time() - fault.at_s, 2),
            "connections_reset": reset,
            "new_connections_refused": refused,
            "relay_stalled": stalled,
        }
        self._await_recovery(fault, at_stall)
        return self._finish(fault)

    # -- what they share -----------------------------------------------------------------------------------------

    def _pause(self) -> None:
        """A random moment: faults must not fall into step with the relay's own rhythm."""
        until = time.time() + self._random.uniform(0.3, 2.0)
        self._load.wait(lambda: time.time() >= until, limit_s=10)

    def _strike(self, fault: Fault, also: Callable[[], object] | None = None) -> None:
        """Wait for a moment in which records move, the workload writes and `also` holds, and take its facts."""

        def is_right() -> bool:
            if not self._load.is_writing() or not (also is None or also()):
                return False
            self._timeline.refresh()
            fault.at_s = time.time()
            moved = self._timeline.moved(fault.at_s - JUST_BEFORE_S)
            fault.observed["moved_just_before"] = moved
            return moved > 0

        if not self._load.wait(is_right, MOVE_LIMIT_S):
            raise Trouble(f"no right moment for a fault in {MOVE_LIMIT_S:.0f} s: nothing moved, see {self._relay.log}")
        fault.observed["lag_records"] = self._load.lag
        fault.observed["live"] = bool(self._timeline.live_from_s)

    def _await_stall(self, limit_s: float) -> bool:
        """True once nothing has arrived for half a second: the relay noticed."""
        return self._load.wait(lambda: self._timeline.moved(time.time() - 0.5) == 0, limit_s)

    def _await_recovery(self, fault: Fault, held: list[int] | None = None) -> None:
        """Wait until every lane went on. `held`: what the target's lanes held while the fault was in effect."""
        backlog = held if held is not None and not fault.observed["live"] else None

        def went_on() -> float | None:
            if backlog is not None:
                return self._timeline.all_lanes_beyond(backlog)
            return self._timeline.all_lanes_past(fault.at_s)

        self._load.wait(lambda: went_on() is not None, RECOVER_LIMIT_S)
        at_s = went_on()
        fault.recovered_s = None if at_s is None else at_s - fault.at_s
        fault.observed["recovered_with"] = "records of the backlog" if backlog else "records written after the fault"
        fault.observed["written_meanwhile"] = self._load.written_since(fault.at_s)

    def _finish(self, fault: Fault) -> Fault:
        observed = fault.observed
        fault.fired = fault.fired and observed["moved_just_before"] > 0 and observed["written_meanwhile"] > 0
        self.done.append(fault)
        if fault.is_good:
            self._say(f"  {fault.name}: copying again after {fault.recovered_s:.1f} s ({_shown(observed)})")
        else:
            why = "did not take effect under load" if fault.recovered_s is not None else "was not recovered from"
            self._say(f"  {fault.name}: {why} ({_shown(observed)})")
        return fault


_SHOWN = (
    "partitions_with_open_transaction",
    "records_above_last_stable_offset",
    "records_appended_without_answer",
    "answer_bytes_held",
    "old_leader",
    "new_leader",
    "cut_s",
    "connections_reset",
    "old_pid",
    "new_pid",
)


def _shown(observed: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {observed[name]}" for name in _SHOWN if name in observed)


def _is_gone(pid: int) -> bool:
    return identify(pid) is None  # a zombie that nobody has collected yet is gone


def _is_refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=2).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False
