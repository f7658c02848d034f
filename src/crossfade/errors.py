"""Every error that a user can meet, as one tree.

    CrossfadeError
    |- UsageError                    exit 2   the command line or the configuration is wrong
    |  |- ConfigError                exit 2   crossfade.yaml: every problem, one line each
    |  `- GuaranteeRefused           exit 2   this configuration cannot keep the guarantee that was asked for
    |- RefusedByRail                 exit 4   a safety rule forbids it
    |  |- NotStarted                          a lane has no marker and was not started by `relay start`
    |  |- MarkerLost                          a lane was started, but its marker is gone
    |  `- RouteConflict                       another live route writes to the same lanes, or the route changed
    |- BrokerError                   exit 5   the whole connection
    |  |- Unreachable                         no answer; trying again may help
    |  |- AccessRefused                       wrong password, missing ACL, missing topic or key
    |  |- Fenced                              a newer claim owns these lanes
    |  |  `- NameLost                         the group knows a newer process of this name, perhaps this one itself
    |  `- Indeterminate                       it may or may not have happened; only a new claim can tell
    `- LaneError                     exit 1   one lane's trouble; the other lanes go on
       |- SourceTrimmed                       records were removed before they were copied
       |- SourceReset                         the lane was deleted and made anew
       |- SourceRegressed                     the lane is shorter than what was already copied (failover, truncation)
       |- SourceDeleted                       single records were deleted before they were copied
       |- SourceDamaged                       a batch cannot be read; the lane waits for a whole copy of it
       |- TargetTorn                          marker and records disagree and the data cannot decide
       |- TargetReset                         the target lane was deleted or emptied behind the marker
       |- TargetTooNarrow                     the source has more lanes than the target, one to one
       |- TargetFull                          the target refuses writes for lack of memory or disk; the lane waits
       `- QuarantineFull                      more records were refused than the budget allows

An error carries data, a `hint` (what the operator does next) and a `kind` (what the relay does next).
"""

from __future__ import annotations

from enum import Enum
from typing import Any, ClassVar


class Kind(Enum):
    """What the relay does about an error."""

    RETRY = "retry"  # the same step again, after a pause
    RECLAIM = "reclaim"  # drop the claim, claim anew, resume from the marker
    HALT = "halt"  # stop (the lane or the process) until an operator decides


class CrossfadeError(Exception):
    """Base of all errors; `str()` is one sentence, `hint` is the next step for the operator."""

    kind: ClassVar[Kind] = Kind.HALT
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are made again from their arguments alone; ours have more than those, and cross process borders.
        return _revived, (type(self), self.args, dict(self.__dict__))

    def as_dict(self) -> dict[str, object]:
        """The error as `-o json` prints it. Its kind is that of a relay's trouble: a lane alone is halted."""
        told: dict[str, object] = {"error": type(self).__name__, "message": self.message, "hint": self.hint}
        return told if self.kind is Kind.HALT else told | {"kind": self.kind.value}


def _revived(kind: type[CrossfadeError], args: tuple[Any, ...], state: dict[str, Any]) -> CrossfadeError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class UsageError(CrossfadeError):
    exit_code = 2


class GuaranteeRefused(UsageError):
    """The configuration cannot keep the guarantee that was asked for."""


class RefusedByRail(CrossfadeError):
    exit_code = 4


class NotStarted(RefusedByRail):
    """A lane has never been started; `run` never starts one by itself."""


class MarkerLost(RefusedByRail):
    """A lane was started, its marker is gone: only the operator can say where to go on."""


class RouteConflict(RefusedByRail):
    """Another live route writes to this target, or this route's source, mapping or lane map changed."""


class BrokerError(CrossfadeError):
    exit_code = 5


class Unreachable(BrokerError):
    kind = Kind.RETRY


class AccessRefused(BrokerError):
    """Authentication, authorization, or a missing topic or key; waiting does not help."""


class Fenced(BrokerError):
    """A newer claim owns the lanes; nothing of this claim can be written any more."""

    kind = Kind.RECLAIM


class NameLost(Fenced):
    """The group knows a newer process by this name. It may be this one: a join whose answer an outage swallowed."""


class Indeterminate(BrokerError):
    """The step may or may not have happened. The claim is dead: claim anew and read back."""

    kind = Kind.RECLAIM


class LaneError(CrossfadeError):
    """One lane's trouble: that lane is taken out, the rest goes on."""

    def __init__(self, lane: int, message: str, *, hint: str = "", position: str = "", lost_records: int = -1) -> None:
        super().__init__(message, hint=hint)
        self.lane = lane
        self.position = position
        #: how many source records are gone uncopied; -1 = cannot be known
        self.lost_records = lost_records

    def as_dict(self) -> dict[str, object]:
        return super().as_dict() | {
            "kind": self.kind.value,
            "lane": self.lane,
            "position": self.position,
            "lost_records": None if self.lost_records < 0 else self.lost_records,
        }


class SourceTrimmed(LaneError):
    pass


class SourceReset(LaneError):
    pass


class SourceRegressed(LaneError):
    def __init__(
        self,
        lane: int,
        message: str,
        *,
        hint: str = "",
        position: str = "",
        lost_records: int = -1,
        ends_at: int = -1,
    ) -> None:
        super().__init__(lane, message, hint=hint, position=position, lost_records=lost_records)
        #: the first offset that is gone from a Kafka lane, -1 = not known: what stands there from now on is new
        self.ends_at = ends_at


class SourceDeleted(LaneError):
    pass


class SourceDamaged(LaneError):
    """A batch of the source cannot be read; behind it nothing is copied. Another replica may have it whole."""

    kind = Kind.RETRY


class TargetTorn(LaneError):
    pass


class TargetReset(LaneError):
    pass


class TargetFull(LaneError):
    kind = Kind.RETRY


class TargetTooNarrow(LaneError):
    """A new source lane has no lane in the target; the lanes before it go on."""


class QuarantineFull(LaneError):
    pass


def first_of(error: BaseException) -> BaseException:
    """The first of several errors of tasks that ran side by side: the one to be told. A single error is itself."""
    return first_of(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error


class InvariantBroken(RuntimeError):
    """A mistake of ours, not the user's: the process stops at once."""


def invariant(condition: bool, sentence: str) -> None:
    """Raise InvariantBroken(`sentence`) unless `condition`; unlike `assert` it also holds under `python -O`."""
    if not condition:
        raise InvariantBroken(sentence)
