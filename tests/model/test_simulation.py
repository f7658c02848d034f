"""Seeded runs in virtual time: latencies, crashes, lost replies, zombies, rebalances and damage to the data.

Every seed is one history. First everything may go wrong; then it heals, and within a bounded time either all is copied
exactly once, or the one damaged lane has halted with the error that names its damage and nothing behind the hole is in
the target. A failure prints the seed; `simulate(kind, seed)` runs it alone.
"""

import asyncio
import contextlib
import random

import pytest
from virtual import run_virtual
from world import LIFE_S, ROUTE, World, died_of, holds

from crossfade.brokers.memory import Crash, MemoryGroup, Outcome
from crossfade.errors import (
    CrossfadeError,
    SourceDeleted,
    SourceRegressed,
    SourceReset,
    SourceTrimmed,
)
from crossfade.model.partitioner import partition_many
from crossfade.model.record import Shape
from crossfade.relay.documents import AcceptedLoss, Desired
from crossfade.relay.lanes import State
from crossfade.relay.pace import Limits
from crossfade.relay.service import RelayService

#: faults stop here; from here on the run must live
HEAL_S = 30.0
#: after the healing everything is settled within this time
SETTLE_S = 120.0
SESSION_S = 3.0

KINDS = [
    "faults",
    "zombies",
    "group",
    "group-by-key",
    "target-regressed",
    "target-torn",
    "target-full",
    "paused",
    "source-trimmed",
    "source-remade",
    "source-regressed",
    "source-deleted",
]
#: what damage to the source must be called, where it cost an uncopied record
NAMED = {
    "source-trimmed": SourceTrimmed,
    "source-remade": SourceReset,
    "source-regressed": SourceRegressed,
    "source-deleted": SourceDeleted,
}


class Simulation:
    """One history of one world."""

    def __init__(self, kind, seed):
        self.kind = kind
        self.chance = random.Random(f"{kind}/{seed}")
        shapes = [self.chance.choice([Shape.RECORD, Shape.ENTRY]) for _ in range(2)]
        if kind == "source-deleted":
            shapes[0] = Shape.ENTRY  # on Kafka a gap is no loss
        if kind == "target-torn":
            shapes[1] = Shape.RECORD  # on Redis marker and data cannot part
        lanes = self.chance.choice([1, 2, 3])
        self.fault_rate = self.chance.choice([0.0, 0.02, 0.1])
        self.slow_rate = self.chance.choice([0.0, 0.003, 0.02])
        self.is_healed = False
        limits = Limits(
            batch_records_max=self.chance.choice([1, 3, 50]),
            idle_wait_s=0.3,
            marker_refresh_s=self.chance.choice([0.5, 5.0]),
        )
        self.world = World(
            *shapes,
            lanes=lanes,
            target_lanes=lanes + 1 if self.is_by_key(shapes) else lanes,
            faults=self.fault,
            late_within=self.chance.choice(["claim", "append"]),
            limits=limits,
            history_max=1000,
            latency_s=self.latency,
        )
        self.group = MemoryGroup(lanes)
        #: instance -> (copier, service or None, task)
        self.running = {}
        self.expiring = set()
        self.damaged = None
        #: what the damaged lane's target may hold besides everything: rows as the application had them before
        self.older_history = None
        #: the error whose loss was accepted
        self.accepted = None
        self.decision = None

    def is_by_key(self, shapes):
        if self.kind == "source-regressed" and shapes[1] is Shape.ENTRY:
            return False  # of ragged paths only the rearmost is compared with the source: see docs of the lane map
        return self.kind == "group-by-key" or (self.kind.startswith("source") and self.chance.random() < 0.3)

    # -- chance --------------------------------------------------------------------------------------------------------

    def latency(self):
        if not self.is_healed and self.chance.random() < self.slow_rate:
            return self.chance.uniform(1.0, 3 * SESSION_S)  # a frozen process, or a request on a detour
        return self.chance.expovariate(200)

    def fault(self, _, step):
        if self.is_healed or step.instance.startswith("start") or self.chance.random() >= self.fault_rate:
            return Outcome.OK
        outcome = self.chance.choice([o for o in Outcome if o is not Outcome.OK])
        if outcome in (Outcome.CRASH_BEFORE, Outcome.CRASH_AFTER):
            self.group.kill(step.instance)
            self.later(SESSION_S, lambda: self.group.expire(step.instance))
        return outcome

    def later(self, wait_s, work):
        async def wait():
            await asyncio.sleep(wait_s)
            await work()

        task = asyncio.ensure_future(wait())
        self.expiring.add(task)
        task.add_done_callback(self.expiring.discard)

    # -- processes -----------------------------------------------------------------------------------------------------

    @property
    def instances(self):
        return ["a"] if self.kind == "faults" else ["a", "b"]

    def bring_up(self, instance):
        """Start a process, or one more after the last has died."""
        if instance in self.running:
            died_of(self.running[instance][2])
        if not self.kind.startswith("group"):
            # Both own all lanes: whoever claims last fences the other.
            copier, task = self.world.process(instance)
            self.running[instance] = (copier, copier, task)
            return
        copier, task = self.world.process(instance, lanes=())
        task.cancel()
        service = RelayService(copier, self.group.member(instance))

        async def live():
            try:
                await service.run()
            except CrossfadeError as error:
                holds("session ended" in error.message or "took the name" in error.message, f"died of {error!r}")

        self.running[instance] = (copier, service, asyncio.ensure_future(live()))

    def supervise(self):
        for instance in self.instances:
            if instance not in self.running or self.running[instance][2].done():
                self.bring_up(instance)

    # -- the history ---------------------------------------------------------------------------------------------------

    async def run(self):
        world, loop = self.world, asyncio.get_running_loop()
        world.checks_every_step = self.kind != "target-torn" and not (
            self.kind == "target-regressed" and world.shapes[1] is Shape.RECORD
        )
        self.write()
        await world.start()
        if world.shapes[1] is Shape.ENTRY:  # what `start` wrote is safe: losing it is MarkerLost, which is right
            self.started_changes = [len(found.history) for found in world.target.lanes]
        if world.shapes[0] is Shape.ENTRY:
            self.begun_changes = [len(found.history) for found in world.source.lanes]
        damage_s = self.chance.uniform(2, HEAL_S - 10)
        try:
            while loop.time() < HEAL_S:
                self.supervise()
                await asyncio.sleep(self.chance.uniform(0.05, 1.5))
                if self.chance.random() < 0.5:
                    self.write()
                if loop.time() >= damage_s:
                    self.damage()
                    damage_s += self.chance.uniform(3, 20) if self.kind.startswith("target") else LIFE_S
                if self.kind == "paused":
                    await self.wish()
                if self.kind.startswith("group") and self.chance.random() < 0.1:
                    await self.group.expire(self.chance.choice(self.instances))
            self.heal()
            await self.wish()
            while not self.is_settled():
                self.supervise()
                holds(loop.time() < HEAL_S + SETTLE_S, f"I14: not settled {SETTLE_S} s after the healing: {self}")
                await asyncio.sleep(0.5)
            self.supervise()
            await asyncio.sleep(2.0)  # whatever is still under way may do its harm now
            holds(self.is_settled(), "settled, and then not any more")
            if self.damaged is not None:
                await self.accept()
        finally:
            for _, service, _ in self.running.values():
                service.stop()
            tasks = [task for _, _, task in self.running.values()]
            await asyncio.wait(tasks, timeout=60)
            for task in self.expiring:
                task.cancel()
        for task in tasks:
            died_of(task)
        self.judge()

    def write(self):
        for lane in range(self.world.lanes):
            if self.chance.random() < 0.7:
                self.world.write(lane, self.chance.randint(1, 5))

    def heal(self):
        self.is_healed = True
        for lane in range(self.world.lanes):
            if lane != self.damaged:
                self.world.write(lane, 1)  # the next append stores what a claim has found
        for lane in range(self.world.target_lanes):
            self.world.target_broker.fill("target", lane, is_full=False)

    async def wish(self):
        """An operator pauses, resumes, and changes the rate."""
        chance = self.chance
        wish = Desired(
            paused=chance.random() < 0.3,
            paused_lanes=[lane for lane in range(self.world.lanes) if chance.random() < 0.3],
            rate_records_per_s=chance.choice([None, 0.0, 5.0, 50.0]),
        )
        for copier, _, _ in self.running.values():
            await copier.obey(Desired() if self.is_healed else wish)

    def damage(self):
        world, chance = self.world, self.chance
        lane = chance.randrange(world.lanes)
        if self.kind == "target-regressed":
            found = world.target.lanes[lane]
            changes = chance.randint(1, 6)
            if world.shapes[1] is Shape.ENTRY:
                changes = min(changes, len(found.history) - self.started_changes[lane])
            else:  # losing all that was relayed is TargetReset, which is right
                changes = min(changes, max(0, found.end - 1 - found.committed[0][0]) if found.committed else 0)
            world.target_broker.regress("target", lane, changes)
            world.forget(lane)
        elif self.kind == "target-torn":
            self.tear(lane)
        elif self.kind == "target-full":
            world.target_broker.fill("target", lane, is_full=chance.random() < 0.6)
        elif self.kind.startswith("source") and world.written[lane]:
            self.damaged = lane
            if self.kind in ("source-trimmed", "source-deleted"):
                world.write(lane, chance.randint(0, 8))  # most of these are not copied yet
            self.damage_source(lane)

    def tear(self, lane):
        """The marker of a record lane is lost, or goes back; the data is whole."""
        world, path = self.world, (lane, lane)
        marker = world.target_broker.marker("target", ROUTE, path)
        rows = world.relayed()[path]
        if marker is None or not rows:
            return
        older = rows[self.chance.randrange(len(rows))][0]
        torn = type(marker)(
            place=type(marker.place)(older.position, -1 if "-" in older.position else int(older.position) + 1),
            ordinal=older.ordinal,
            relayed=older.position,
            epoch=older.epoch,
            source=marker.source,
        )
        world.target_broker.set_marker("target", ROUTE, path, self.chance.choice([None, torn]))
        world.target_broker.regress("target", lane, 0)  # the coordinator moved: producers claim anew

    def damage_source(self, lane):
        world, broker = self.world, self.world.source_broker
        stored = broker.rows("source", lane)
        if self.kind == "source-trimmed":
            broker.trim("source", lane, self.chance.randint(0, 3))
        elif self.kind == "source-deleted":
            broker.delete("source", lane, self.chance.choice(stored[-5:])[0])
        else:
            self.older_history = list(world.expected(lane))
            if self.kind == "source-remade":
                broker.recreate("source", lane)
                world.written[lane] = []
            else:
                lost = self.chance.randint(1, min(6, len(stored)))
                if world.shapes[0] is Shape.ENTRY:  # losing the lane's birth is SourceReset, which is right
                    lost = min(lost, len(world.source.lanes[lane].history) - self.begun_changes[lane])
                broker.regress("source", lane, lost)
                world.written[lane] = [row for _, row in broker.rows("source", lane)]
            world.lives[lane] += 1  # rows from here on are other ones
            world.write(lane, self.chance.randint(0, 9))

    # -- judgement -----------------------------------------------------------------------------------------------------

    def content(self, path):
        return [found for _, found, _ in self.world.relayed()[path]]

    def share(self, rows, path):
        """Those of a source lane's rows (in the target's shape) that belong to the path."""
        world = self.world
        if world.lanes == world.target_lanes:
            return list(rows)
        keys = [world.mapping.key_of(row, world.shapes[1]) for row in rows]
        lanes = partition_many("murmur2", keys, world.target_lanes, path[0] % world.target_lanes)
        return [row for row, lane in zip(rows, lanes, strict=True) if lane == path[1]]

    def is_complete(self, lane):
        expected = self.world.expected(lane)
        return all(self.content(path) == self.share(expected, path) for path in self.world.route.paths_of(lane))

    def is_settled(self):
        return all(
            self.is_complete(lane) or (lane == self.damaged and self.halted(lane)) for lane in range(self.world.lanes)
        )

    def halted(self, lane):
        """The error with which some living process has halted the lane."""
        for copier, _, task in self.running.values():
            state = copier.lanes.get(lane)
            if not task.done() and state is not None and state.state is State.HALTED:
                return state.error
        return None

    def judge(self):
        world = self.world
        if self.accepted is not None:
            world.lanes_judged.remove(self.damaged)
        elif self.damaged is not None:
            holds(self.is_complete(self.damaged), f"I9: lane {self.damaged} neither complete nor halted: {self}")
        world.check_end()

    async def decide(self, lane):
        """What the operator decides stands on the board: the relay looks there again and again, and a process that
        dies of it obeys when it is back. It is about what the status shows: nothing while nobody has the lane, and
        whoever has a claim is heard before the others. Where an append in doubt was there after all, the next claim
        halts the lane further on, and the operator decides again."""
        for copier, _, _ in sorted(self.running.values(), key=lambda process: process[0].claim is not None):
            state = copier.lanes.get(lane)
            if state is not None and state.error is not None:
                self.decision = AcceptedLoss(type(state.error).__name__, state.settled.position, "op", "now")
        if self.decision is None:
            return
        for copier, _, _ in self.running.values():
            with contextlib.suppress(Crash):
                await copier.obey(Desired(accepted={str(lane): self.decision}))

    async def accept(self):
        """The damaged lane has halted: an operator accepts the loss, and the lane goes on behind it, exactly once."""
        world, lane = self.world, self.damaged
        error = self.halted(lane)
        if error is None:
            return
        paths, history = world.route.paths_of(lane), self.older_history or world.expected(lane)
        holds(isinstance(error, NAMED[self.kind]), f"I9: {self.kind} halted with {error!r}")
        before = {path: self.content(path) for path in paths}
        for path in paths:
            share = self.share(history, path)
            holds(before[path] == share[: len(before[path])], f"I9: {before[path]} is no beginning of {share}")
        self.accepted = error
        world.forget_source(lane)
        for _ in range(2):
            world.write(lane, self.chance.randint(0, 4))
            await asyncio.sleep(self.chance.uniform(0, 3))
            await self.decide(lane)
        world.write(lane, 3)
        stored = [row for _, row in world.source_broker.rows("source", lane)]
        present = world.translated(lane, stored)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + SETTLE_S
        while True:
            wrong = []
            for path in paths:
                share = self.share(present, path)
                expected = before[path] + [row for row in share if row not in before[path]]
                if self.content(path) != expected:
                    wrong.append(f"{path} holds {self.content(path)}, not {expected}")
            if not wrong:
                return
            holds(loop.time() < until_s, f"I14 I2: behind the accepted {error!r}: {wrong}: {self}")
            self.supervise()
            await asyncio.sleep(0.5)
            await self.decide(lane)

    def __repr__(self):
        lanes = {
            instance: {lane: (state.state.value, state.error, state.settled) for lane, state in copier.lanes.items()}
            for instance, (copier, _, _) in self.running.items()
        }
        counts = {path: len(rows) for path, rows in self.world.relayed().items()}
        written = {lane: len(rows) for lane, rows in self.world.written.items()}
        return f"copied {counts} of written {written}, processes {lanes}"


def simulate(kind, seed):
    """Run one history; a failure names it."""
    simulation = Simulation(kind, seed)
    try:
        run_virtual(simulation.run())
    except BaseException as error:
        error.add_note(f"simulate({kind!r}, {seed})\n" + "\n".join(simulation.world.trace[-60:]))
        raise
    return simulation


SEEDS_PER_KIND = 20


@pytest.mark.parametrize("kind", KINDS)
def test_seeds(kind):
    fired = 0
    for seed in range(SEEDS_PER_KIND):
        simulation = simulate(kind, seed)
        fired += sum(simulation.world.fired.values()) + (simulation.damaged is not None)
    assert fired >= SEEDS_PER_KIND / 2  # a simulation in which nothing happens shows nothing


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_many_seeds(kind):
    for seed in range(1000, 1500):
        simulate(kind, seed)
