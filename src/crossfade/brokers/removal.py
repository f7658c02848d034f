"""What a broker must do so that single records can be removed from a target: only Redis can.

Kept apart from `protocol`, because no relay ever needs it. Implemented by `redis.removal`; the auditor's repair sees
only this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Protocol

from ..model.record import Lane


class Removal(Enum):
    """What became of one entry that was to be removed."""

    REMOVED = "removed"
    GONE = "gone already"
    CHANGED = "not what the audit saw"


class Remover(Protocol):
    """Removes single entries from the lanes of a target."""

    async def entries(self, lane: Lane, positions: Sequence[str]) -> dict[str, list[bytes]]:
        """Names and values of the entries at these positions, as they are stored; absent where there is none.

        Raises Unreachable, AccessRefused.
        """
        ...

    async def remove(self, lane: Lane, entries: Mapping[str, Sequence[bytes]]) -> dict[str, Removal]:
        """Remove each entry that still holds exactly this, one atomic step each.

        Raises Unreachable, AccessRefused.
        """
        ...
