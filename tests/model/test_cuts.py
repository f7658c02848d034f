"""A Kafka source that was cut off by an unclean election: where each path goes on, and what is not passed over."""

import pytest
from virtual import run_virtual
from world import World

from crossfade.errors import SourceRegressed, TargetTorn, Unreachable
from crossfade.model.position import Marker, Place
from crossfade.model.record import Shape
from crossfade.relay.entering import cut_between_paths
from crossfade.relay.lanes import LaneState, State

NEAR, FAR = (0, 0), (0, 1)


def halted(places, ends_at):
    """A lane whose log was cut off, with the places of its paths."""
    markers = {path: Marker(place, ordinal=1) for path, place in places.items()}
    state = LaneState(0, "lane", markers, Place())
    state.fail(SourceRegressed(0, "cut", ends_at=ends_at), 0.0)
    return state


@pytest.mark.parametrize(
    ("ends_at", "far"),
    [
        (150, "149"),  # it stood beyond the cut: what comes there is new
        (250, "200"),  # what it has is still there and must not be copied again
    ],
)
def test_behind_an_accepted_cut_each_path_goes_on_where_it_may(ends_at, far):
    state = halted({NEAR: Place("100", 101), FAR: Place("200", 201)}, ends_at)
    state.jump(Place("100", 101), ends_at)
    assert (state.state, state.place) == (State.COPYING, Place("100", 101))
    found = {path: marker.place.position for path, marker in state.markers_behind_loss().items()}
    assert found == {NEAR: "100", FAR: far}


@pytest.mark.parametrize(
    ("near", "far", "ahead"),
    [
        (Place("59", 60, "t", "6"), Place("99", 100, "t", "5"), ["99"]),
        (Place("59", 60, "t", "5"), Place("99", 100, "t", "5"), ["99"]),  # one epoch says nothing of a later cut
        (Place("59", 60, "t", "5"), Place("59", 62, "t", "5"), ["59"]),
        (Place("59", 60, "t", "5"), Place("59", 60, "t", "5"), []),
        (Place("59", 60, "t", "6"), Place("99", 100, "t", ""), []),
    ],
)
def test_places_ahead_of_the_others_are_asked_about(near, far, ahead):
    state = halted({NEAR: near, FAR: far}, -1)
    assert [place.position for place in state.ahead] == ahead


def ragged(world, near, far):
    """The lane as a claim finds it, and checks it."""

    async def check():
        copier, task = world.process()
        task.cancel()
        incarnation = (await copier.source.bounds([0]))[0].incarnation
        places = {NEAR: Place(str(near[0]), near[0] + 1, incarnation, near[1])}
        places[FAR] = Place(str(far[0]), far[0] + 1, incarnation, far[1])
        state = LaneState(0, "lane", {path: Marker(place, ordinal=1) for path, place in places.items()}, Place())
        cut = await cut_between_paths(copier.source, state)
        if cut is not None:
            state.fail(cut, 0.0)
        return state

    return run_virtual(check())


@pytest.mark.parametrize("is_cut", [False, True])
def test_paths_on_both_sides_of_a_cut_halt_the_lane(is_cut):
    """A crash came between the paths' appends behind an accepted cut. Without the check the far path passes over what
    is new at offsets that it has reached before."""
    world = World(Shape.RECORD, Shape.ENTRY, lanes=1, target_lanes=2)
    world.write(0, 100)
    world.source_broker.regress("source", 0, 60 if is_cut else 0)
    world.write(0, 30)
    state = ragged(world, (59, "1"), (95, "0"))
    assert isinstance(state.error, TargetTorn) is is_cut
    assert (state.state is State.HALTED) is is_cut


def test_a_cut_between_ragged_paths_is_a_loss_to_be_decided():
    """A crash left the paths ragged, and the log was cut off between them while no relay ran. Its nearer place is still
    good, so reading alone would not notice."""
    world = World(Shape.RECORD, Shape.ENTRY, lanes=1, target_lanes=2)
    world.write(0, 40)  # and the mark of an aborted transaction
    world.source_broker.regress("source", 0, 9)
    world.write(0, 20)
    state = ragged(world, (19, "0"), (39, "0"))
    assert isinstance(state.error, SourceRegressed)
    assert (state.state, state.error.ends_at) == (State.HALTED, 33)
    state.jump(Place("19", 20), state.error.ends_at)
    assert [marker.place.position for marker in state.markers_behind_loss().values()] == ["19", "32"]


def test_whoever_cannot_be_asked_about_a_cut_is_asked_again():
    world = World(Shape.RECORD, Shape.ENTRY, lanes=1, target_lanes=2)
    world.write(0, 40)

    async def check():
        copier, task = world.process()
        task.cancel()
        markers = {NEAR: Marker(Place("9", 10, "", "0"), ordinal=1), FAR: Marker(Place("19", 20, "", "0"), ordinal=1)}
        state = LaneState(0, "lane", markers, Place())

        async def nothing(*_):
            return {}

        copier.source.read = nothing
        with pytest.raises(Unreachable):
            await cut_between_paths(copier.source, state)

    run_virtual(check())
