"""What can happen to one step: the outcomes that crash enumeration and simulation choose from.

A step is one request to the broker. An outcome is chosen before the step and decides whether its effect happens,
and whether the caller learns of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias


class Outcome(Enum):
    """What becomes of one step."""

    OK = "ok"
    CRASH_BEFORE = "crash-before"  # the process dies; of a Kafka transaction some records may be left open
    CRASH_AFTER = "crash-after"  # the effect is there, the process dies before it learns of it
    UNKNOWN_APPLIED = "unknown-applied"  # the reply is lost
    UNKNOWN_NOT_APPLIED = "unknown-not-applied"  # the request is lost
    APPLIED_LATE = "applied-late"  # the request is still under way: its effect is tried later (`late_within`)
    FENCED = "fenced"  # another claim came first (claim and append; any other step is OK)


@dataclass(frozen=True, slots=True)
class Step:
    """One request, as the fault hook sees it."""

    index: int  # counts all steps of the broker from 0
    method: str  # `append`, `append.lane`, `claim`, `claim.lane`, `read`, `bounds`, `begin`, `board.put` ...
    stream: str
    instance: str  # name of the connection


#: chooses the outcome of a step
Faults: TypeAlias = Callable[[Step], Outcome]


class Crash(BaseException):
    """The process is gone. No code of the process may go on from here, so nothing that catches errors catches it."""
