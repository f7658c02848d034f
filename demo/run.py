"""One run of the demo, from empty disk to verdict.

First half: a workload writes to Redis, the route `forward` copies into Kafka while its relay, a partition's leader and
the link to Redis are broken. Second half: the workload goes on more slowly through `forward`, and the route `back`
copies the topic into other stream keys, from its beginning and live, under the same faults. Then everything is stopped,
three judges read both sides, and the findings become a table and build/demo.json.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from rich.console import Console

from . import report
from .children import ROOT, Child, Supervised, Trouble, crossfade_command
from .faults import Faults
from .judges import judge_all
from .load import Load
from .report import Direction
from .stage import Stage
from .timeline import Timeline
from .writing import Writing

_DRAIN_LIMIT_S = 300.0
_WRITE_LIMIT_S = 400.0
_STATUS_LIMIT_S = 60
_OWN_LIMIT_S = 60.0
#: after so long the relay's heartbeat and its look at the source are newer than a moment before
_HEARTBEATS_S = 4.0


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    seed: int
    records_min: int = 500_000
    rate_records_per_s: int = 13_000
    #: of the workload once enough is written, and during the second half
    slow_rate_records_per_s: int = 3_000
    relay_kills: int = 3
    leader_kills: int = 1
    redis_cuts: int = 1
    #: without faults at the end of each half, for latencies that no fault touches
    quiet_s: float = 5.0
    both_directions: bool = True
    sabotage: str = ""

    @classmethod
    def quick(cls, seed: int, sabotage: str = "") -> Plan:
        """One direction, fewer records and faults: under a minute."""
        return cls(
            seed,
            records_min=60_000,
            rate_records_per_s=10_000,
            slow_rate_records_per_s=3_000,
            relay_kills=1,
            leader_kills=0,
            quiet_s=0.0,
            both_directions=False,
            sabotage=sabotage,
        )


class Run:
    """One run; `play` returns the document that becomes build/demo.json."""

    def __init__(self, plan: Plan, folder: Path, console: Console) -> None:
        self._plan = plan
        self._folder = folder
        self._console = console
        self._random = Random(plan.seed)
        self._started_s = time.monotonic()
        self._children: list[Child] = []
        self._history = folder / "history.bin"
        self._load: Load
        self._writing: Writing

    def play(self) -> dict[str, Any]:
        """The whole run. Raises Trouble and the lab's errors; leaves no process behind in any case."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        left: list[int] = []
        self._say(f"seed {self._plan.seed}; logs in {self._folder / 'logs'}")
        self._say("starting three Kafka brokers and Valkey (the first time they are downloaded)")
        stage = Stage.up(self._folder, lambda words: self._say(f"  lab: {words}"))
        try:
            directions = self._copy(stage)
            self._judge(stage, directions)
        except BaseException:  # Ctrl-C too: the logs say what it was about
            stage.keep_logs()
            raise
        finally:
            with _undisturbed():
                for child in self._children:
                    child.end()
                left = stage.down()
        return self._conclude(directions, left)

    # -- the two halves

    def _copy(self, stage: Stage) -> list[Direction]:
        plan = self._plan
        forward = Timeline(self._folder / "seen-forward.jsonl", stage.lanes)
        self._writing = Writing(stage, self._history, plan.seed, self._say)
        self._load = load = Load(lambda: self._count_written(stage), forward)
        load.watch.append(self._writing.check)
        with self._sampling(load):
            self._say("starting the relay `forward`: Redis msg:stream:<lane> -> Kafka messages.v1")
            self._crossfade(stage, "relay", "start", "forward")
            self._start_follower(stage, forward, "--kafka", stage.bootstrap_direct, "--topic", stage.topic)
            relay = self._start_relay(stage, "forward")
            self._await_lanes(stage, load, "forward", relay)
            self._writing.start(plan.rate_records_per_s)
            first = Direction("redis-to-kafka", "forward", forward, records_min=plan.records_min)
            faults = Faults(stage, relay, forward, load, self._random, self._say)
            first.faults = faults.done
            self._break(faults, [faults.kill_relay_in_transaction] * plan.relay_kills)
            self._wait_records("forward", forward, relay)
            self._writing.stop()
            self._drain(stage, load, "forward", relay)
            load.refresh()
            first.until_s = time.time()
            if plan.both_directions:
                return [first, self._copy_back(stage, load, first, relay)]
            self._end_half(first, relay, load)
            return [first]

    def _count_written(self, stage: Stage) -> int:
        """Records in the source; once they are enough, no backlog is built up any more."""
        written = stage.redis_records(stage.pattern)
        if written >= self._plan.records_min:
            self._writing.slow_down(self._plan.slow_rate_records_per_s)
        return written

    def _copy_back(self, stage: Stage, load: Load, first: Direction, forward_relay: Supervised) -> Direction:
        plan = self._plan
        timeline = Timeline(self._folder / "seen-back.jsonl", stage.lanes)
        self._say(
            "starting the relay `back`: Kafka messages.v1 -> Redis back:stream:<lane>, from the beginning and live"
        )
        self._writing.start(plan.slow_rate_records_per_s)
        self._crossfade(stage, "relay", "start", "back")
        self._start_follower(stage, timeline, "--redis", stage.redis_direct, "--pattern", stage.back_pattern)
        relay = self._start_relay(stage, "back")
        load.back = timeline
        second = Direction("kafka-to-redis", "back", timeline, records_min=plan.records_min)
        faults = Faults(stage, relay, timeline, load, self._random, self._say)
        second.faults = faults.done
        self._break(faults, [faults.kill_relay_in_append] * plan.relay_kills)
        self._wait_records("back", timeline, relay)
        self._writing.stop()
        self._drain(stage, load, "forward", forward_relay)
        self._drain(stage, load, "back", relay)
        self._end_half(first, forward_relay, load)
        self._end_half(second, relay, load)
        return second

    def _break(self, faults: Faults, relay_kills: list[Any]) -> None:
        others = [faults.kill_leader] * self._plan.leader_kills + [faults.cut_redis] * self._plan.redis_cuts
        # A kill comes first: while the second half still has its backlog to copy.
        order = relay_kills[1:] + others
        self._random.shuffle(order)
        for fault in relay_kills[:1] + order:
            fault()
        quiet_until = time.monotonic() + report.SETTLE_S + self._plan.quiet_s
        self._load.wait(lambda: time.monotonic() >= quiet_until, report.SETTLE_S + self._plan.quiet_s + 5)

    def _end_half(self, direction: Direction, relay: Supervised, load: Load) -> None:
        """Stop the relay as an operator does, and take down what was measured."""
        code = relay.stop()
        if code != 0:
            raise Trouble(f"the relay {direction.route} ended with {code} on SIGTERM, see {relay.log}")
        load.refresh()
        direction.restarts_unasked = relay.deaths_own
        direction.lags = list(load.lags[direction.route])
        direction.until_s = direction.until_s or time.time()
        if direction.route == "back":
            direction.latency_from_s = direction.timeline.live_from_s or direction.timeline.totals[0][0]

    # -- steps

    def _wait_records(self, route: str, timeline: Timeline, relay: Supervised) -> None:
        goal, load, told_s = self._plan.records_min, self._load, time.monotonic()

        def enough() -> bool:
            nonlocal told_s
            if time.monotonic() - told_s >= 5:
                told_s = time.monotonic()
                self._say(f"  {route}: {timeline.total:,} of {goal:,} copied, lag {load.lag:,}")
            return load.written >= goal and timeline.total >= goal

        if not load.wait(enough, _WRITE_LIMIT_S):
            raise Trouble(
                f"{route}: only {timeline.total:,} of {goal:,} records after {_WRITE_LIMIT_S:.0f} s, see {relay.log}"
            )

    def _await_lanes(self, stage: Stage, load: Load, route: str, relay: Supervised) -> None:
        """Wait until the relay says that it owns every lane."""

        def owned() -> bool:
            rows = self._status(stage, route)
            return len(rows) == stage.lanes and all(row["state"] in ("copying", "idle") for row in rows)

        if not load.wait(owned, _OWN_LIMIT_S):
            raise Trouble(f"{route}: the relay did not own its lanes after {_OWN_LIMIT_S:.0f} s, see {relay.log}")

    def _drain(self, stage: Stage, load: Load, route: str, relay: Supervised) -> None:
        """Wait until everything that was written is copied: as the follower counts it, or as the relay itself says.

        (A damaged copy never has the right count; and a lag on Kafka may count control records.)
        """
        asked_s = time.monotonic()
        self._say(f"  {route}: waiting until everything is copied")
        behind: dict[str, int] = {}

        def is_copied() -> bool:
            nonlocal behind
            if self._counts_agree(stage, load, route):
                return True
            if time.monotonic() - asked_s < _HEARTBEATS_S:
                return False  # what the relay says may be from before the last write
            rows = self._status(stage, route)
            halted = [row for row in rows if row["state"] == "halted"]
            if halted:
                raise Trouble(f"{route}: {halted[0]['lane']} is halted: {halted[0]['reason']}")
            behind = {row["lane"]: row["lag_records"] for row in rows if row["lag_records"] != 0}
            return len(rows) == stage.lanes and not behind

        if not load.wait(is_copied, _DRAIN_LIMIT_S):
            raise Trouble(f"{route}: not drained after {_DRAIN_LIMIT_S:.0f} s: {behind}, see {relay.log}")

    def _counts_agree(self, stage: Stage, load: Load, route: str) -> bool:
        if route == "back" and load.back is not None:
            return load.back.counts == load.forward.counts
        return load.forward.counts == stage.redis_counts(stage.pattern)

    def _status(self, stage: Stage, route: str) -> list[dict[str, Any]]:
        argv = [*crossfade_command(), "-c", str(stage.config), "relay", "status", route, "-o", "json"]
        done = self._ask(stage, argv)
        if done.returncode not in (0, 3):
            return []
        rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
        return rows

    def _judge(self, stage: Stage, directions: list[Direction]) -> None:
        self._stop_children()
        self._say("everything is stopped; three judges read both sides")
        pairs = [("r2k" if each.route == "forward" else "k2r", each.route) for each in directions]
        for direction, verdicts in zip(
            directions, judge_all(stage, pairs, self._history, self._plan.records_min), strict=True
        ):
            direction.verdicts = verdicts
            for verdict in verdicts:
                words = "; ".join(verdict.problems()) or f"{verdict.records:,} records, every one in its place"
                words += f" ({verdict.seconds:.0f} s)"
                self._say(f"  {direction.name}: {verdict.judge}: {words}")
                for line in verdict.named:
                    self._say(f"    {line}")

    def _conclude(self, directions: list[Direction], left: list[int]) -> dict[str, Any]:
        problems = report.problems_of(directions, left)
        report.print_table(self._console, directions)
        return {
            "version": 1,
            "ok": not problems,
            "problems": problems,
            "seed": self._plan.seed,
            "sabotage": self._sabotage_note(),
            "directions": {direction.name: direction.as_dict() for direction in directions},
            "machine": report.machine(),
            "seconds": round(time.monotonic() - self._started_s, 1),
        }

    # -- processes

    def _start_relay(self, stage: Stage, route: str) -> Supervised:
        command, env = crossfade_command(), {}
        if self._plan.sabotage and route == "forward":
            command = [sys.executable, "-m", "demo.saboteur"]
            env = {"SABOTAGE": self._plan.sabotage, "SABOTAGE_NOTE": str(self._folder / "sabotage.json")}
        arguments = [
            "-c",
            str(stage.config),
            "relay",
            "run",
            route,
            "--instance",
            f"demo-{route}",
            "--metrics-port",
            "0",
        ]
        relay = Supervised(f"relay-{route}", [*command, *arguments], logs=stage.logs, tag=stage.tag, env=env)
        self._children.append(relay)
        self._load.watch.append(relay.check)
        relay.start()
        return relay

    def _start_follower(self, stage: Stage, timeline: Timeline, *where: str) -> None:
        argv = [sys.executable, "-m", "demo.follower", *where, "--lanes", str(stage.lanes), "--out", str(timeline.path)]
        follower = Child(f"follower-{timeline.path.stem}", argv, logs=stage.logs, tag=stage.tag, env={})
        self._children.append(follower)
        follower.start()

    def _crossfade(self, stage: Stage, *arguments: str) -> None:
        """Run one command of the product to its end. Raises Trouble when it fails."""
        argv = [*crossfade_command(), "-c", str(stage.config), *arguments]
        done = self._ask(stage, argv)
        if done.returncode != 0:
            raise Trouble(
                f"`crossfade {' '.join(arguments)}` failed with {done.returncode}:\n{done.stderr.strip()[-800:]}"
            )

    def _ask(self, stage: Stage, argv: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            cwd=ROOT,
            env=stage.child_env(),
            capture_output=True,
            text=True,
            timeout=_STATUS_LIMIT_S,
            check=False,
            start_new_session=True,
        )

    def _stop_children(self) -> None:
        for child in reversed(self._children):
            child.stop()
        self._children.clear()

    @contextlib.contextmanager
    def _sampling(self, load: Load) -> Iterator[None]:
        load.start()
        try:
            yield
        finally:
            load.stop()
            self._writing.abandon()

    def _sabotage_note(self) -> dict[str, Any] | None:
        note = self._folder / "sabotage.json"
        if not self._plan.sabotage:
            return None
        return json.loads(note.read_text()) if note.exists() else {"kind": self._plan.sabotage, "id": None}

    def _say(self, words: str) -> None:
        self._console.print(f"[dim]{time.monotonic() - self._started_s:6.1f} s[/dim]  {words}", highlight=False)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C must not stop the cleaning up that the first one began."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
