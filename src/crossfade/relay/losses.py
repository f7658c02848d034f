"""Behind a loss of the source: which decision of an operator answers it, and where the lane goes on then.

Hides what each kind of loss leaves in the source that is new. Invariant: what the target has is not copied again, what
is new is not passed over (but for ids that a Redis gave out again, see `_start_behind`), and behind an error that is no
loss of the source nothing goes on. Called by `relay.copier`; how the paths of the lane move there is
`lanes.LaneState.jump`. What is still to be answered is asked by `cli`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..brokers.protocol import From, Log, Start
from ..errors import LaneError, SourceDeleted, SourceRegressed, SourceReset, SourceTrimmed
from ..model.echo import UNKNOWN, with_echoes
from ..model.position import Place, position_order
from .documents import AcceptedLoss, LaneReport
from .lanes import LaneState, State

#: names of the errors that an accepted loss answers: the source has lost something
OF_THE_SOURCE = frozenset(kind.__name__ for kind in (SourceTrimmed, SourceReset, SourceDeleted, SourceRegressed))


def is_answered(state: LaneState, accepted: AcceptedLoss) -> bool:
    """Whether the decision is about the error that the lane is halted by, at the position where it stands."""
    if state.error is None or state.state is not State.HALTED:
        return False
    return accepted.error == type(state.error).__name__ and accepted.position == state.settled.position


def still_to_answer(accepted: Mapping[str, AcceptedLoss], reported: Iterable[LaneReport]) -> dict[str, AcceptedLoss]:
    """Without the decisions whose lane has gone on from where it stood then: they can answer nothing any more."""
    stands: dict[str, set[str]] = {}
    for lane in reported:
        stands.setdefault(str(lane.lane), set()).add(lane.position)
    return {
        lane: decision
        for lane, decision in accepted.items()
        if lane not in stands or stands[lane] & {decision.position, ""}  # "": a report does not always tell
    }


async def place_behind_loss(source: Log, pair: str, state: LaneState) -> Place | LaneError | None:
    """The first place that still continues the lane; the error that it has become, if another; None = it stays halted.

    `pair`: as in `Route`. Raises Unreachable, AccessRefused.
    """
    start = _start_behind(state)
    if start is None:
        return None  # not a loss of the source: going on anywhere else would copy twice, or overwrite the evidence
    if start.where is From.POSITION:  # a beginning behind the present end is none
        last = (await source.bounds([state.lane]))[state.lane].last
        if position_order(last) < position_order(start.value):
            start = Start(From.POSITION, last) if last else Start(From.EARLIEST)
    place = (await source.begin([state.lane], start))[state.lane]
    if isinstance(place, LaneError):
        return None if type(place) is type(state.error) else place
    if isinstance(state.error, SourceReset) and _is_known_life(place.incarnation, state):
        return state.settled
    if pair:  # echoes may be among what is gone: the next one tells where they go on
        place = with_echoes(place, UNKNOWN, state.settled.echoes)
    return place


def _is_known_life(incarnation: str, state: LaneState) -> bool:
    """Whether the source is the one that all paths have copied from: it was only told to be gone, by a broker that had
    just started and did not know the topic yet, or it was put back."""
    if incarnation.strip("A") == "":  # none, or the zeros of a Kafka before 2.8: it proves nothing
        return False
    return {marker.place.incarnation for marker in state.markers_behind_loss().values()} == {incarnation}


def _start_behind(state: LaneState) -> Start | None:
    """Where to go on behind an accepted loss; None where the error is not about the source."""
    settled = state.settled
    if isinstance(state.error, SourceTrimmed | SourceReset):
        return Start(From.EARLIEST)  # everything that is left is new
    if isinstance(state.error, SourceDeleted):
        return Start(From.POSITION, settled.position) if settled.position else Start(From.EARLIEST)
    if isinstance(state.error, SourceRegressed):
        if not settled.position or state.error.ends_at == 0:
            return Start(From.EARLIEST)
        if state.error.ends_at < 0:
            # Ids come from clocks: what is new lies behind, but for what got such an id again (its writer's clock is
            # behind, or the ids ran ahead of it). Nothing tells that from what was copied; the halt has named the ids.
            return Start(From.POSITION, settled.position)
        # Offsets are given out again: what lies behind the cut is new, whatever its number is.
        return Start(From.POSITION, str(min(int(settled.position), state.error.ends_at - 1)))
    return None
