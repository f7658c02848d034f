"""Every outcome of every step of the real relay, singly and in pairs: exactly-once or the test is red.

A reference run without faults gives the number of steps. Then each step in turn gets each outcome, and whatever the
relay does afterwards must end in the same target. A failure prints the plan; `replay(...)` runs it alone.
"""

import itertools
import random

import pytest
from virtual import run_virtual
from world import World

from crossfade.brokers.memory import Outcome
from crossfade.model.record import Shape

RECORD, ENTRY = Shape.RECORD, Shape.ENTRY
SHAPES = {
    "redis-to-kafka": (ENTRY, RECORD),
    "kafka-to-redis": (RECORD, ENTRY),
    "kafka-to-kafka": (RECORD, RECORD),
    "redis-to-redis": (ENTRY, ENTRY),
}
FAULTS = [outcome for outcome in Outcome if outcome is not Outcome.OK]
#: fewer faults than this in an enumeration means that it enumerated nothing
STEPS_MIN = 15


def replay(direction, plan, late_within="append", **options):
    """Run one plan, {step index: outcome}; raises what it breaks."""
    world = World(*SHAPES[direction], faults=plan, late_within=late_within, **options)
    try:
        run_virtual(world.run())
    except BaseException as error:
        error.add_note(f"replay({direction!r}, {plan}, {late_within!r}, **{options})\n" + "\n".join(world.trace[-60:]))
        raise
    return world


@pytest.mark.parametrize("direction", SHAPES)
def test_without_faults_everything_is_copied(direction):
    world = replay(direction, {}, lanes=2)
    assert world.steps >= STEPS_MIN
    assert not world.fired


@pytest.mark.parametrize("late_within", ["claim", "append"])
@pytest.mark.parametrize("lanes", [1, 2])
@pytest.mark.parametrize("direction", SHAPES)
def test_every_outcome_of_every_step(direction, lanes, late_within):
    steps = replay(direction, {}, late_within, lanes=lanes).steps
    assert steps >= STEPS_MIN
    fired = 0
    for index, outcome in itertools.product(range(steps), FAULTS):
        if late_within == "claim" and outcome is not Outcome.APPLIED_LATE:
            continue
        fired += sum(replay(direction, {index: outcome}, late_within, lanes=lanes).fired.values())
    assert fired >= steps  # every fault was met, or the enumeration is an idle one


@pytest.mark.parametrize("direction", ["redis-to-kafka", "kafka-to-redis"])
def test_every_outcome_of_every_step_with_lanes_by_key(direction):
    options = {"lanes": 2, "target_lanes": 3}
    steps = replay(direction, {}, **options).steps
    for index, outcome in itertools.product(range(steps), FAULTS):
        replay(direction, {index: outcome}, **options)


def pairs_of(direction, lanes):
    """All pairs of faults at two different steps. The second index reaches behind the first run: recovery counts."""
    steps = replay(direction, {}, lanes=lanes).steps
    for first, second in itertools.combinations(range(steps + 12), 2):
        for one, two in itertools.product(FAULTS, repeat=2):
            yield {first: one, second: two}


@pytest.mark.parametrize("late_within", ["claim", "append"])
@pytest.mark.parametrize("direction", SHAPES)
def test_a_sample_of_all_pairs(direction, late_within):
    plans = list(pairs_of(direction, 2))
    for plan in random.Random(20_240_611).sample(plans, 150):
        replay(direction, plan, late_within, lanes=2)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("direction", SHAPES)
def test_all_pairs(direction):
    for number, plan in enumerate(pairs_of(direction, 2)):
        replay(direction, plan, ("claim", "append")[number % 2], lanes=2)
