"""Which decisions of an operator may still have something to answer, and where a lane goes on behind one."""

from types import SimpleNamespace

import pytest

from crossfade.errors import SourceReset
from crossfade.model.position import Marker, Place
from crossfade.relay.documents import AcceptedLoss, LaneReport
from crossfade.relay.lanes import LaneState
from crossfade.relay.losses import place_behind_loss, still_to_answer


def loss(position: str) -> AcceptedLoss:
    return AcceptedLoss("SourceTrimmed", position, "me@host", "2026-01-01T00:00:00+00:00", "test data")


def test_a_decision_goes_once_its_lane_has_gone_on() -> None:
    accepted = {"0": loss("5-0"), "1": loss("5-0"), "2": loss("5-0"), "3": loss("5-0"), "4": loss("")}
    reported = [
        LaneReport(0, "m:0", "copying", position="9-0"),
        LaneReport(1, "m:1", "halted", position="5-0"),
        LaneReport(2, "2", "idle"),  # the report was shrunk: where it stands is not told
        LaneReport(4, "m:4", "copying", position="9-0"),
    ]
    assert sorted(still_to_answer(accepted, reported)) == ["1", "2", "3"]


def test_a_decision_stays_while_any_process_reports_its_lane_there() -> None:
    reported = [LaneReport(0, "m:0", "copying", position="3-0"), LaneReport(0, "m:0", "halted", position="5-0")]
    assert sorted(still_to_answer({"0": loss("5-0")}, reported)) == ["0"]


@pytest.mark.parametrize(
    ("known", "present", "goes_on"),
    [
        (["id-1"], "id-1", "41"),
        (["id-1", "id-1"], "id-1", "41"),
        (["id-1"], "id-2", ""),
        (["id-1", "id-2"], "id-2", ""),  # a path has not gone on behind the reset yet
        (["id-2", "id-1"], "id-2", ""),
        ([""], "", ""),
        (["A" * 22], "A" * 22, ""),  # what brokers say that know no ids: the topic may be another
    ],
)
@pytest.mark.parametrize("pair", ["", "r2"])
async def test_behind_a_reset_that_was_none_the_lane_goes_on_where_it_stood(
    known: list[str], present: str, goes_on: str, pair: str
) -> None:
    markers = {
        (0, lane): Marker(Place(str(41 + lane), 42 + lane, incarnation, "3", echo=7, echoes=5))
        for lane, incarnation in enumerate(known)
    }
    state = LaneState(0, "t[0]", markers, Place())
    state.fail(SourceReset(0, "gone"), 0.0)

    async def begin(lanes: list[int], start: object) -> dict[int, Place]:
        return {0: Place("", 0, present)}

    place = await place_behind_loss(SimpleNamespace(begin=begin), pair, state)  # type: ignore[arg-type]
    assert isinstance(place, Place)
    assert place.position == goes_on
    if goes_on:
        assert place == state.settled
        state.jump(place)
        assert {path: marker.place for path, marker in state.markers_behind_loss().items()} == {
            path: marker.place for path, marker in markers.items()
        }
