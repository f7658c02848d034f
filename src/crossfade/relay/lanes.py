"""What the relay knows of each lane that it owns: its state, its markers, its halts. No I/O.

A lane is `copying`, `idle`, `paused`, `waiting` (a passing trouble, tried again after a pause) or `halted` (an error
that only an operator's decision ends).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import msgspec

from ..brokers.protocol import Bounds
from ..errors import Kind, LaneError, SourceDeleted, SourceReset, SourceTrimmed
from ..model.position import Marker, Place, position_order
from ..model.record import Lane, Path

#: readers that are held up for less are nothing to tell: every open transaction does it
HELD_UP_S = 5.0
#: a look at the source is made every second
_LOOK_OLD_S = 5.0
#: the year 2001: what is below is no time, but a number that somebody chose
_TIMES_FROM_MS = 10**12


class State(Enum):
    COPYING = "copying"
    IDLE = "idle"
    PAUSED = "paused"
    WAITING = "waiting"
    HALTED = "halted"


@dataclass(slots=True)
class LaneState:
    """One source lane with the markers of its paths."""

    lane: Lane
    name: str
    markers: dict[Path, Marker]
    place: Place  # where the next read goes on; ahead of the markers while an append is under way
    state: State = State.COPYING
    error: LaneError | None = None
    retry_at_s: float = 0.0
    retries: int = 0
    bounds: Bounds | None = None
    records_total: int = 0
    quarantined_total: int = 0
    #: source entries that were deleted before they were read, as far as that is no halt
    deleted_total: int = 0
    #: (place, how many) of those whose place no marker has reached yet
    deleted_ahead: list[tuple[int, int]] = field(default_factory=list)
    #: how many of them the log has told, and the loop time from which on it tells more
    deleted_told: int = 0
    deleted_told_s: float = 0.0
    #: event time of the last relayed record in ms since the epoch, -1 = none yet
    relayed_time_ms: int = -1
    marker_written_s: float = 0.0
    #: (loop time, removed records, records relayed) of the last two looks at the source, for rates
    looks: list[tuple[float, int, int]] = field(default_factory=list)
    #: loop time of the last look that found nothing to copy: what is missing came after it; None = none found that yet
    level_at_s: float | None = None
    #: loop time since when the end of the source has not moved
    still_since_s: float = 0.0

    #: echoes out of turn were told already
    has_told_echo: bool = False
    #: where paths go on behind a loss that was accepted, until an append has stored it
    jumps: dict[Path, Place] = field(default_factory=dict)
    #: the source's present incarnation, where the paths' markers disagree about it; else ""
    incarnation: str = ""

    @property
    def settled(self) -> Place:
        """The place that all paths have reached in the target: where a new claim would resume.

        A lane that was taken out by its claim may have no marker at all.
        """
        return resume_place(list(self.markers_behind_loss().values()), self.incarnation) if self.markers else Place()

    @property
    def is_split(self) -> bool:
        """Some paths went on behind a reset of the source, others did not: a crash came between their appends.

        An incarnation of zeros proves nothing: a Kafka before 2.8 told them for every topic.
        """
        return len({i for marker in self.markers.values() if (i := marker.place.incarnation).strip("A")}) > 1

    @property
    def ahead(self) -> list[Place]:
        """Places of Kafka paths that are ahead of the others: what is read next passes them over up to there, and says
        nothing of whether they are still places of this log."""
        settled = reached(self.settled)
        found = {place.position: place for place in (marker.place for marker in self.markers.values())}
        return [
            place for place in found.values() if place.position.isdigit() and place.witness and reached(place) > settled
        ]

    @property
    def ordinal(self) -> int:
        return sum(marker.ordinal for marker in self.markers.values())

    @property
    def quarantined(self) -> int:
        return sum(marker.quarantined for marker in self.markers.values())

    @property
    def echoes(self) -> int:
        """Records of the paired route that were passed over since the start."""
        return max(self.place.echoes, self.settled.echoes)

    def fail(self, error: LaneError, now_s: float) -> None:
        """Take the lane out: for a while where the trouble passes by itself, else until an operator decides."""
        self.error = error
        self.place = self.settled
        if error.kind is Kind.RETRY:
            self.retries += 1
            self.state = State.WAITING
            self.retry_at_s = now_s + min(0.25 * 2 ** min(self.retries, 8), 30.0)
        else:
            self.state = State.HALTED

    def revive(self) -> None:
        """Put the lane back to work from its markers."""
        self.error = None
        self.state = State.COPYING
        self.place = self.settled

    def jump(self, place: Place, cut_at: int = -1) -> None:
        """Go on from `place`, behind a loss that an operator accepted.

        A path that is ahead of it stays: what it has must not be copied again. Not so where the source's positions
        start anew or were given out twice: there they cannot be compared, and all that comes is new. (A path that has
        already gone on in the new incarnation can be compared again.) Where a Kafka log was cut off at an offset, what
        lies before that can be compared: a path beyond it goes on at the cut.
        """
        if cut_at >= 0:
            cut = msgspec.structs.replace(place, position=str(cut_at - 1) if cut_at else "", count=cut_at, witness="")
            self.jumps = {
                path: marker.place if reached(marker.place) < ((cut_at, 0), 0) else cut
                for path, marker in self.markers.items()
            }
            self.error, self.state, self.place = None, State.COPYING, place
            return
        is_comparable = isinstance(self.error, SourceTrimmed | SourceDeleted)
        is_reset = isinstance(self.error, SourceReset) and place.incarnation != ""
        self.jumps = {
            path: at
            if (is_comparable or (is_reset and at.incarnation == place.incarnation)) and reached(at) > reached(place)
            else place
            for path, at in ((path, marker.place) for path, marker in self.markers.items())
        }
        self.error, self.state, self.place = None, State.COPYING, place

    def markers_behind_loss(self) -> dict[Path, Marker]:
        """The markers, standing where the paths go on."""
        if not self.jumps:
            return self.markers
        return {
            path: msgspec.structs.replace(marker, place=self.jumps.get(path, marker.place))
            for path, marker in self.markers.items()
        }

    def look(self, bounds: Bounds, now_s: float) -> None:
        """Note what the source holds now; keeps about ten seconds of looks."""
        if self.bounds is None or self.bounds.count != bounds.count:
            self.still_since_s = now_s
        self.bounds = bounds
        if self.lag_records == 0:
            self.level_at_s = now_s
        self.looks.append((now_s, bounds.count - bounds.length, self.records_total))
        while len(self.looks) > 2 and now_s - self.looks[0][0] > 10:
            self.looks.pop(0)

    @property
    def lag_records(self) -> int | None:
        """Source records not yet in the target; an upper bound on Kafka (control records count). None = not known."""
        if self.bounds is None:
            return None
        # an idle lane has been read to its end: control records behind the marker are no lag
        place = self.place if self.state is State.IDLE else self.settled
        if place.count >= 0:
            return max(0, self.bounds.count - place.count)
        return 0 if position_order(place.position) >= position_order(self.bounds.last) else None

    def pass_deleted(self, before: Place, place: Place, records: int) -> None:
        """What was read from `before` to `place` lacks so many deleted entries.

        What was read behind `before` earlier is forgotten: it was thrown away, and is read again.
        """
        self.deleted_ahead = [ahead for ahead in self.deleted_ahead if ahead[0] <= before.count]
        if records:
            self.deleted_ahead.append((place.count, records))

    def settle_deleted(self) -> None:
        """Count the deleted entries that the markers have passed."""
        if not self.deleted_ahead:
            return
        reached_count = self.settled.count
        if reached_count < 0:  # from there on nothing tells any more what was deleted: it is not counted again
            reached_count = self.deleted_ahead[-1][0]
        self.deleted_total += sum(records for count, records in self.deleted_ahead if count <= reached_count)
        self.deleted_ahead = [ahead for ahead in self.deleted_ahead if ahead[0] > reached_count]

    def look_age_s(self, loop_s: float) -> float:
        """Seconds since the source was looked at, 0 = it never was."""
        return loop_s - self.looks[-1][0] if self.looks else 0.0

    def is_seen(self, loop_s: float) -> bool:
        """The source has answered lately. What was true of it a while ago says nothing: producers go on though it does
        not answer us."""
        return bool(self.looks) and self.look_age_s(loop_s) <= _LOOK_OLD_S

    @property
    def held_up(self) -> str:
        """What keeps readers from records that the source has behind this lane's place; "" = nothing for long."""
        if self.bounds is None or not self.looks or self.lag_records != 0:
            return ""
        return self.bounds.held_up if self.looks[-1][0] - self.still_since_s >= HELD_UP_S else ""

    def lag_s(self, now_s: float, loop_s: float) -> float | None:
        """At most so old is the oldest source record that is not yet in the target; None = not known.

        `now_s`: seconds since the epoch, `loop_s`: loop time.
        """
        lag = self.lag_records
        if self.bounds is None or not lag:
            return None if lag is None else 0.0
        settled = self.settled
        times_ms = [self.relayed_time_ms]
        if "-" in settled.position:  # an entry id begins with its time
            times_ms.append(position_order(settled.position)[0])
        if 0 <= settled.count <= self.bounds.count - self.bounds.length:  # the first one that is left is the oldest
            times_ms.append(self.bounds.first_time_ms)
        ages_s = [now_s - time_ms / 1000 for time_ms in times_ms if time_ms >= _TIMES_FROM_MS]
        if self.level_at_s is not None:
            ages_s.append(loop_s - self.level_at_s)
        return max(0.0, min(ages_s)) if ages_s else None

    @property
    def records_per_s(self) -> float:
        if len(self.looks) < 2:
            return 0.0
        (first_s, _, first), (last_s, _, last) = self.looks[0], self.looks[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0

    @property
    def trimmed_in_s(self) -> float | None:
        """Seconds until trimming reaches the lane's position at the present rate; None = not in sight."""
        if len(self.looks) < 2 or self.bounds is None or not self.lag_records or self.settled.count < 0:
            return None
        (first_s, first, _), (last_s, last, _) = self.looks[0], self.looks[-1]
        rate = (last - first) / (last_s - first_s) if last_s > first_s else 0.0
        margin = self.settled.count - (self.bounds.count - self.bounds.length)
        return max(0.0, margin / rate) if rate > 0 else None


def reached(place: Place) -> tuple[tuple[int, int], int]:
    """A sort key for places of one lane in one life of it."""
    return position_order(place.position), place.count


def resume_place(markers: list[Marker], incarnation: str = "") -> Place:
    """The smallest place of a lane's paths: what lies behind it is in every target lane that it belongs to.

    Where the markers disagree, places of another than the present `incarnation` come first: they are behind a reset,
    and positions of two incarnations cannot be compared.
    """
    places = [marker.place for marker in markers]
    return min([place for place in places if incarnation and place.incarnation != incarnation] or places, key=reached)
