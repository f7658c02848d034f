"""What an audit found, as values: counts per lane, the first differences by name, and what could not be verified.

Counts are exact, names are bounded. `verdict` says what the audit proves; `is_complete` that everything was there to
compare. Made by `audit`, printed by the CLI, read by gates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from ..errors import LaneError
from ..model.position import position_text
from ..model.record import Lane
from .diff import Difference, Kind

#: differences kept by name, per kind
NAMED_MAX = 100
#: strays (`extra` and `duplicate`) that the second look over the source can tell apart
STRAYS_MAX = 10_000
#: counts of records that were not there to compare
_UNCOMPARED = ("pending", "before_target", "source_gone", "quarantined")


class Keeping(TypedDict, total=False):
    """What a report keeps of differences; see `AuditReport`."""

    named_max: int
    keeps_rows: bool


@dataclass(frozen=True, slots=True)
class Range:
    """A stretch of source records: order-sensitive digest over positions, keys, values and all else of each."""

    last: str  # source position
    records: int
    digest: str
    differences: int


@dataclass(slots=True)
class LaneReport:
    """One source lane."""

    lane: Lane
    source: str
    target: str
    #: on the target exactly once, in order, unchanged
    matched: int = 0
    counts: Counter[Kind] = field(default_factory=Counter)
    #: of the source, not on the target, and behind everything that is: still on its way, or lost later
    pending: int = 0
    #: of the source, but not expected: quarantined, or refused by the mapping
    quarantined: int = 0
    #: of the source, but not expected: the other route of a pair brought them, and they are on the target already
    echoes: int = 0
    #: of the source, gone from the target's beginning (retention there), or before the copy's declared start
    before_target: int = 0
    #: on the target, but their originals are no longer in the source (trimmed after copying): not verifiable
    source_gone: int = 0
    #: records of an epoch older than one before them: a fenced relay wrote
    stale_epochs: int = 0
    ranges: list[Range] = field(default_factory=list)
    #: what hid records from readers on either side: they were not compared; "" = nothing
    held_up: str = ""
    #: why the lane could not be compared to its end
    error: LaneError | None = None
    #: it became another lane while it was read: what was read may be of either, and what differed was let go of
    is_mixed: bool = False
    is_done: bool = False

    @property
    def differences(self) -> int:
        return sum(self.counts.values())

    @property
    def ok(self) -> bool:
        return not self.differences and self.error is None and not self.stale_epochs

    def as_dict(self) -> dict[str, object]:
        return {
            "lane": self.lane,
            "source": self.source,
            "target": self.target,
            "matched": self.matched,
            **{kind.value: self.counts[kind] for kind in Kind},
            "pending": self.pending,
            "quarantined": self.quarantined,
            "echoes": self.echoes,
            "before_target": self.before_target,
            "source_gone": self.source_gone,
            "stale_epochs": self.stale_epochs,
            "ranges": [
                {"last": part.last, "records": part.records, "digest": part.digest, "differences": part.differences}
                for part in self.ranges
            ],
            "held_up": self.held_up,
            "error": self.error.as_dict() if self.error else None,
        }


@dataclass(slots=True)
class Named:
    """A difference with its lane."""

    lane: Lane
    difference: Difference
    #: where it was seen, if that is known
    target_lane: Lane | None = None
    #: it is certain that the row is too much: nothing is lost where it goes
    is_surplus: bool = False

    def as_dict(self) -> dict[str, object]:
        kind, source, target, detail = self.difference[:4]
        return {
            "lane": self.lane,
            "kind": kind.value,
            "jepsen": kind.jepsen,
            "source": _text(source),
            "target": _text(target),
            "detail": detail,
        }


@dataclass(slots=True)
class AuditReport:
    """All lanes."""

    source: str
    target: str
    lanes: dict[Lane, LaneReport]
    #: differences kept by name, per kind
    named_max: int = NAMED_MAX
    #: strays keep what they hold, so that it can be asked again whether they are still there
    keeps_rows: bool = False
    seconds: float = 0.0
    #: bytes read of both sides are not counted; records compared per second of wall time
    records_per_s: float = 0.0
    named: dict[Kind, list[Named]] = field(default_factory=dict)
    strays: list[Named] = field(default_factory=list)
    #: state to go on from later: `audit(..., resume=report.state)`
    state: dict[str, Any] = field(default_factory=dict)

    def add(self, lane: Lane, difference: Difference, target_lane: Lane | None = None) -> None:
        """Count a difference, and keep it by name while there is room; `target_lane` is the same where lanes map so."""
        self.lanes[lane].counts[difference.kind] += 1
        named = Named(lane, difference, lane if target_lane is None else target_lane)
        if difference.row is not None and len(self.strays) < STRAYS_MAX:
            self.strays.append(named)  # sorted into `named` after the second look
        else:
            self.keep(named)

    def forget(self, lane: Lane, known: Mapping[Kind, int] | None = None) -> None:
        """Let go of what differs in a lane that became another one while it was read: it may be about either. `known`:
        what earlier audits found stays."""
        mine = self.lanes[lane]
        mine.is_mixed = True
        mine.counts.clear()
        mine.counts.update(known or {})
        for kept in (*self.named.values(), self.strays):
            kept[:] = [named for named in kept if named.lane != lane]

    def keep(self, named: Named) -> None:
        """Keep a difference by name while there is room; without its row, unless rows are kept."""
        kept = self.named.setdefault(named.difference.kind, [])
        if len(kept) < self.named_max:
            difference = named.difference if self.keeps_rows else named.difference._replace(row=None)
            kept.append(Named(named.lane, difference, named.target_lane, named.is_surplus))

    @property
    def matched(self) -> int:
        return sum(lane.matched for lane in self.lanes.values())

    @property
    def differences(self) -> int:
        return sum(lane.differences for lane in self.lanes.values())

    @property
    def verdict(self) -> Literal["equal", "different", "none"]:
        """What the audit proves: nothing where a lane failed, or where there was nothing to compare."""
        if self.differences or self.total("stale_epochs"):
            return "different"
        return "equal" if self.matched and all(lane.ok for lane in self.lanes.values()) else "none"

    @property
    def is_empty(self) -> bool:
        """No record was there to be compared, on either side."""
        return not (self.matched or self.differences or self.total("stale_epochs") or self.uncompared)

    @property
    def ok(self) -> bool:
        """Something was compared and nothing differs, no lane failed, no fenced relay wrote."""
        return self.verdict == "equal"

    @property
    def uncompared(self) -> Counter[str]:
        """What was not there to compare: records by what became of them, and lanes."""
        found = Counter({name: self.total(name) for name in _UNCOMPARED})
        found["held_up"] = sum(bool(lane.held_up) for lane in self.lanes.values())
        found["not_done"] = sum(not lane.is_done for lane in self.lanes.values())
        return +found

    @property
    def is_complete(self) -> bool:
        """Every source record was there to compare: none pending, hidden or refused, none gone on either side."""
        return not self.uncompared

    def total(self, name: str) -> int:
        """The sum over all lanes of a number of `LaneReport`, or of a kind of difference by its value."""
        kinds = {kind.value: kind for kind in Kind}
        if name in kinds:
            return sum(lane.counts[kinds[name]] for lane in self.lanes.values())
        return sum(int(getattr(lane, name)) for lane in self.lanes.values())

    def as_dict(self) -> dict[str, object]:
        totals = ["matched", *(kind.value for kind in Kind), *_UNCOMPARED, "echoes", "stale_epochs"]
        return {
            "version": 1,
            "source": self.source,
            "target": self.target,
            "ok": self.ok,
            "verdict": self.verdict,
            "complete": self.is_complete,
            "seconds": round(self.seconds, 3),
            "records_per_s": round(self.records_per_s),
            **{name: self.total(name) for name in totals},
            "differences": [named.as_dict() for kept in self.named.values() for named in kept],
            "lanes": [self.lanes[lane].as_dict() for lane in sorted(self.lanes)],
        }


def _text(position: Any) -> str | None:
    return None if position is None else position_text(position)
