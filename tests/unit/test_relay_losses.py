"""Which decisions of an operator may still have something to answer."""

from crossfade.relay.documents import AcceptedLoss, LaneReport
from crossfade.relay.losses import still_to_answer


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
