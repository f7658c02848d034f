"""What can go wrong in the lab itself (never in the product under test), as one small tree.

Each error names what was found and, in `hint`, what the person at the keyboard does next. The CLI turns them into
one line and the exit code; tests turn `NotPossibleHere` into a listed skip (a failure under CI=true).
"""

from __future__ import annotations

from crossfade.errors import CrossfadeError, UsageError


class LabError(CrossfadeError):
    """The lab could not do what was asked."""


class LabUsage(UsageError):
    """The lab was asked for something that does not exist: a lab, a server, a link, a version, a shape."""


def no_partition(topic: str, partition: int, count: int) -> LabUsage:
    """What is said of a partition that a topic does not have."""
    return LabUsage(f"topic {topic!r} has no partition {partition}", hint=f"it has 0 to {count - 1}")


class PackageError(LabError):
    """A package could not be fetched, or is not the one that the lock names."""


class StartFailed(LabError):
    """A server did not become ready in time; the last lines of its log are in the hint."""

    exit_code = 5


class NotPossibleHere(LabError):
    """This machine lacks a right or a capability that the fault needs."""
