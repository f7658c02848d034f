"""Which rows of a target are certainly too much: the only ones that a repair may remove.

Hides what proves it. A row that may be the only copy of a record that the source has lost is never one of them, however
little speaks for it: retention, XDEL, a failover of the source or a key made anew leave right copies without originals.
Pure; called by `second_look`, which reads from the source what is asked for here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ..model.position import order_of, position_text
from ..model.record import Lane, Row, Shape
from ..model.wire import XF_FIELD, decode_origin
from .diff import Claim, Kind
from .origins import SourcePosition
from .report import AuditReport, Named


@dataclass
class Surplus:
    """What is known of the strays of one audit."""

    route_id: str
    target_shape: Shape
    is_source_numeric: bool
    #: source positions that are not copied, though the source has them
    quarantined: Mapping[Lane, Collection[str]]
    #: a row without mark may be a copy by its id; None = nobody knows
    ids_may_mark: bool | None
    #: what the source holds at the positions asked for, as it would be on the target
    originals: dict[tuple[Lane, SourcePosition], Row] = field(default_factory=dict)
    #: lanes of which the source was read to its end: what was not found there is not there
    looked_at: set[Lane] = field(default_factory=set)
    #: records whose copy is altered or out of order; None = not all are known by name
    _harmed: dict[Lane, frozenset[SourcePosition] | None] = field(default_factory=dict)

    def wants(self, named: Named) -> tuple[Lane, SourcePosition] | None:
        """The record to look for; None = nothing that the source holds would say more."""
        origin = self._named_by(named)
        return None if origin is None else (named.lane, origin)

    def found(self, lane: Lane, position: SourcePosition, row: Row) -> None:
        """The source holds a record that was asked for."""
        if position_text(position) not in self.quarantined.get(lane, ()):
            self.originals[lane, position] = row

    def is_certain(self, named: Named, report: AuditReport) -> bool:
        """Nothing is lost where this row goes."""
        lane, row, claim = named.lane, named.difference.row, named.difference.claim
        if self.target_shape is not Shape.ENTRY or row is None or report.lanes[lane].error is not None:
            return False
        if lane not in self.looked_at or self._has_mark_of_route(row):
            return False
        if claim is not None and claim.is_marked:
            original = self.originals.get((lane, claim.origin))
            # Positions begin anew in a topic that was made anew: without its content an older copy would be lost.
            is_double = original is not None and original[0] == row[0] and claim.is_taken
            return is_double and self._is_unharmed(lane, claim.origin, report)
        return self.ids_may_mark is False or (self.ids_may_mark is True and self._is_no_copy_by_id(named, claim))

    def _named_by(self, named: Named) -> SourcePosition | None:
        """The source position that the mark of a row names, or its id."""
        difference = named.difference
        if difference.claim is not None and difference.claim.is_marked:
            return difference.claim.origin
        if not self.ids_may_mark or self.target_shape is not Shape.ENTRY or difference.target is None:
            return None
        text = position_text(difference.target)
        return int(text.partition("-")[2] or 0) if self.is_source_numeric else text.encode()

    def _is_no_copy_by_id(self, named: Named, claim: Claim | None) -> bool:
        """A row without mark whose id is not that of a copy, or not at this place."""
        origin, target = self._named_by(named), named.difference.target
        # Before the first copy of what the source has stands perhaps what was copied before it was made anew.
        if origin is None or target is None or claim is None or claim.after < (0, 0):
            return False
        order = order_of(origin)
        original = self.originals.get((named.lane, origin))
        time_ms, _ = order_of(target)
        if original is not None and not (self.is_source_numeric and original[-1] != time_ms):
            return False  # the id of a copy has the time of its original
        # Copies rise. An id that the source does not have, or has no more, proves nothing: a failover forgets entries.
        return order <= claim.after

    def _has_mark_of_route(self, row: Row) -> bool:
        """A mark that is left on the row: of another lane of this route, or one that names no position."""
        fields = row[0]
        for at in range(0, len(fields) - 1, 2):
            origin = decode_origin(fields[at + 1]) if fields[at] == XF_FIELD else None
            if origin is not None and origin.route == self.route_id:
                return True
        return False

    def _is_unharmed(self, lane: Lane, origin: SourcePosition, report: AuditReport) -> bool:
        """The other copy of the record is in place and equal to it; not known where differences have no name."""
        if lane not in self._harmed:
            kinds = (Kind.ALTERED, Kind.REORDERED, Kind.MISSING)
            named = [one.difference.source for kind in kinds for one in report.named.get(kind, ()) if one.lane == lane]
            is_known = len(named) == sum(report.lanes[lane].counts[kind] for kind in kinds)
            self._harmed[lane] = frozenset(named) if is_known else None
        harmed = self._harmed[lane]
        return harmed is not None and origin not in harmed
