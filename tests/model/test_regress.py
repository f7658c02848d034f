"""Histories that once broke an invariant, kept for ever."""

from test_simulation import simulate
from virtual import run_virtual
from world import World

from crossfade.brokers.memory import Outcome
from crossfade.model.record import Shape
from crossfade.relay.pace import Limits

PLANS = [(5, 21), (6, 25), (7, 26), (8, 25)]


def test_a_path_that_is_ahead_does_not_go_back():
    """By key into Redis: one of three lanes' scripts is lost, the resumed batch is shorter, then a second crash.

    The markers of the two lanes that were written stand behind the end of the resumed batch. When they were moved back
    to it, the second crash made the relay copy their records twice.
    """
    for first, second in PLANS:
        plan = {first: Outcome.UNKNOWN_NOT_APPLIED, second: Outcome.CRASH_AFTER}
        world = Shrinking(Shape.RECORD, Shape.ENTRY, lanes=2, target_lanes=3, records=12, faults=plan)
        run_virtual(world.run())


class Shrinking(World):
    """Later processes take smaller batches than the first one."""

    _has_run = False

    def process(self, *arguments, **options):
        batch_records = 2 if self._has_run else 7
        self.limits = Limits(batch_records_max=batch_records, idle_wait_s=0.2)
        self._has_run = True
        return super().process(*arguments, **options)


def test_seeds_that_were_red():
    simulate("group-by-key", 20)
