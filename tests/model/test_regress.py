"""Histories that once broke an invariant, kept for ever."""

import pytest
from test_simulation import simulate
from virtual import run_virtual
from world import World

from crossfade.brokers.memory import Outcome
from crossfade.errors import SourceDeleted, SourceRegressed, SourceReset, SourceTrimmed
from crossfade.model.position import Marker, Place
from crossfade.model.record import Shape
from crossfade.relay.lanes import LaneState, State
from crossfade.relay.pace import Limits

#: which step is lost, and behind which one the process dies: steps come and go with the code, so a whole range
PLANS = [(first, second) for first in (3, 5, 8) for second in range(20, 36)]


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


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (SourceTrimmed, {(0, 0): "150", (0, 1): "200"}),  # what (0, 1) has must not be copied again
        (SourceDeleted, {(0, 0): "150", (0, 1): "200"}),
        (SourceReset, {(0, 0): "150", (0, 1): "150"}),  # positions of the lane's former life mean nothing
        (SourceRegressed, {(0, 0): "150", (0, 1): "150"}),
    ],
)
def test_ragged_paths_go_on_behind_an_accepted_loss_each_from_where_it_may(error, expected):
    markers = {(0, 0): Marker(Place("100", 101), ordinal=7), (0, 1): Marker(Place("200", 201), ordinal=8)}
    state = LaneState(0, "lane", markers, Place("100", 101))
    state.fail(error(0, "gone"), 0.0)
    state.jump(Place("150", 151))
    assert state.state is State.COPYING
    assert state.place == Place("150", 151)
    found = state.markers_behind_loss()
    assert {path: marker.place.position for path, marker in found.items()} == expected
    assert [marker.ordinal for marker in found.values()] == [7, 8]
