"""A claim, and what one append does to each of its paths. Pure.

Hides how the next marker follows from the last one and the rows that were taken. Called by `target`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ...errors import BrokerError, QuarantineFull, invariant
from ...model.position import Marker, position_text
from ...model.record import Path, Reject, Write
from ...model.wire import origin_prefix, origin_suffix
from ..protocol import Claim
from .rows import Prepared
from .writer import Lot, Writer


@dataclass(slots=True)
class KafkaClaim(Claim):
    writer: Writer | None = None
    group: Any = None
    paths: frozenset[Path] = field(default_factory=frozenset)
    #: the markers as they are stored; they differ from `markers` where the data decided
    stored: dict[Path, Marker] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """One path's part in a transaction: its lot, and the marker that follows."""

    claim: KafkaClaim
    write: Write
    lot: Lot
    quarantined: int
    source: str
    transactional_id: str

    def marker(self, before: Marker | None, target: int | None) -> Marker:
        before = before or Marker(self.write.place)
        moved = bool(self.lot.rows)
        return msgspec.structs.replace(
            before,
            place=self.write.place,
            ordinal=before.ordinal + len(self.lot.rows),
            relayed=str(self.lot.positions[-1]) if moved else before.relayed,
            target=str(target) if target is not None else before.target,
            epoch=self.claim.epoch,
            claim_id=self.claim.claim_id,
            transactional_id=self.transactional_id,
            source=self.source,
            quarantined=before.quarantined + self.quarantined,
        )


def make_plan(claim: KafkaClaim, write: Write, prepared: Prepared) -> Plan:
    before = claim.markers.get(write.path)
    invariant(claim.writer is not None, "a claim has a writer")
    assert claim.writer is not None
    lot = Lot(
        write.path,
        prepared.rows,
        prepared.positions,
        before.ordinal if before is not None else 0,
        origin_prefix(claim.owner.route, write.path[0]),
        origin_suffix(claim.epoch),
        prepared.own_times,
    )
    return Plan(claim, write, lot, len(prepared.rejects), claim.owner.source, claim.writer.transactional_id)


def are_same(found: Mapping[Path, Marker], stored: Mapping[Path, Marker], claim_id: str) -> bool:
    """Whether nobody else has written: markers of one source lane are stored together, under the last writer's name."""
    return found.keys() == stored.keys() and all(
        (marker.place, marker.ordinal, marker.target) == (stored[path].place, stored[path].ordinal, stored[path].target)
        and marker.claim_id in (claim_id, stored[path].claim_id)
        for path, marker in found.items()
    )


def quarantine_full(write: Write, rejects: Sequence[Reject]) -> QuarantineFull:
    first = rejects[0]
    return QuarantineFull(
        write.path[0],
        f"{len(rejects)} records are refused, the quarantine has room for {write.quarantine_left}; the first, at "
        f"{position_text(first.position)}: {first.reason}",
        hint="correct the topic's limits, or raise the quarantine budget",
        position=position_text(first.position),
    )


def is_size_refusal(error: BrokerError) -> bool:
    cause = error.__cause__
    if cause is None or not cause.args:
        return False
    code = getattr(cause.args[0], "code", None)
    return callable(code) and code() in _SIZE_CODES


_SIZE_CODES = frozenset({10, 18})  # MSG_SIZE_TOO_LARGE, RECORD_LIST_TOO_LARGE
