"""Turns each difference of an audit into the smallest exact remedy, and carries out what can be done in place.

Only a Redis target lets one entry be removed: what is certainly too much there (extra, duplicate; see `surplus`) goes
by its very id, after a second look that it is still what the audit saw. What may be the only copy of a record that the
source has lost stays. Whatever else differs stands in the middle of a log that only grows, and only a new copy puts it
right. Nothing here decides to act: the CLI shows the plan and asks. Called by the CLI.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from ..brokers.removal import Removal, Remover
from ..model.position import position_order, position_text
from ..model.record import Lane, Row, Shape
from .diff import Kind
from .origins import codec_for
from .report import AuditReport, Named

#: what is said of a row that nobody can be sure of
_KEPT = (
    "it may be the copy of a record that the source no longer has, so it is not removed; look at it, and if it is too "
    "much: XDEL {where} {place}"
)


class Action(Enum):
    """What a remedy asks for."""

    REMOVE = "remove"  # this very entry, in place
    KEEP = "keep"  # nothing: it may be a right copy
    COPY_ANEW = "copy anew"  # the lane, into a fresh target


@dataclass(frozen=True, slots=True)
class Remedy:
    """What one difference needs."""

    lane: Lane
    target_lane: Lane | None
    kind: str
    source: str | None
    target: str | None
    action: Action
    how: str

    def as_dict(self) -> dict[str, object]:
        return asdict(self) | {"action": self.action.value}


@dataclass(frozen=True, slots=True)
class Plan:
    """Every remedy, and how many differences are too many to be named one by one."""

    remedies: list[Remedy]
    #: those of the remedies that can be carried out, with what the audit saw
    removable: list[Named]
    unnamed: int


def plan_of(report: AuditReport, *, can_remove: bool, target_names: Mapping[Lane, str], copy_anew: str) -> Plan:
    """The plan for a report that kept its rows. `copy_anew`: the command that copies into a fresh target."""
    remedies: list[Remedy] = []
    removable: list[Named] = []
    first = _first_damaged(report)
    for kept in report.named.values():
        for named in kept:
            kind, source, target, _, row, _ = named.difference
            place = _text(target)
            where = target_names.get(-1 if named.target_lane is None else named.target_lane, report.target)
            is_too_much = kind in (Kind.EXTRA, Kind.DUPLICATE) and target is not None and row is not None
            if is_too_much and can_remove and not named.is_surplus:
                action, how = Action.KEEP, _KEPT.format(where=where, place=place)
            elif is_too_much and can_remove:
                removable.append(named)
                action, how = Action.REMOVE, f"XDEL {where} {place}"
            else:
                action, how = Action.COPY_ANEW, _in_words(kind, where, place, first.get(named.lane), copy_anew)
            remedies.append(Remedy(named.lane, named.target_lane, kind.value, _text(source), place, action, how))
    return Plan(remedies, removable, report.differences - len(remedies))


def _first_damaged(report: AuditReport) -> dict[Lane, str]:
    """The first source position of each lane that cannot be put right in place."""
    found: dict[Lane, str] = {}
    for kept in report.named.values():
        for named in kept:
            at = _text(named.difference.source)
            if at is not None and (named.lane not in found or position_order(at) < position_order(found[named.lane])):
                found[named.lane] = at
    return found


def _in_words(kind: Kind, where: str, target: str | None, first: str | None, copy_anew: str) -> str:
    at = f" at {target}" if target is not None else ""
    why = {
        Kind.MISSING: f"{where} only grows at its end: nothing can be put in between",
        Kind.ALTERED: f"what stands in {where}{at} cannot be changed",
        Kind.REORDERED: f"what stands in {where}{at} cannot be moved",
    }.get(kind, f"{where} lets no single record be removed; it stays{at}")
    since = f" from source position {first} on" if first else ""
    return f"{why}; copy the lane{since} into a fresh target: {copy_anew}"


async def apply(
    plan: Plan, remover: Remover, *, route_id: str, is_source_numeric: bool
) -> dict[tuple[Lane, str], Removal]:
    """Remove what the plan removes; each entry is looked at again, and removed only if it is what the audit saw.

    Gives what became of each, by target lane and position. Raises Unreachable, AccessRefused.
    """
    lanes: dict[Lane, list[Named]] = {}
    for named in plan.removable:
        lanes.setdefault(named.lane if named.target_lane is None else named.target_lane, []).append(named)
    done: dict[tuple[Lane, str], Removal] = {}
    for lane, doomed in lanes.items():
        positions = [_text(named.difference.target) or "" for named in doomed]
        stored = await remover.entries(lane, positions)
        confirmed: dict[str, list[bytes]] = {}
        for named, position in zip(doomed, positions, strict=True):
            fields = stored.get(position)
            if fields is None:
                done[lane, position] = Removal.GONE
            elif not _is_same(named, position, fields, route_id, is_source_numeric):
                done[lane, position] = Removal.CHANGED
            else:
                confirmed[position] = fields
        if confirmed:
            removed = await remover.remove(lane, confirmed)
            done |= {(lane, position): outcome for position, outcome in removed.items()}
    return done


def _is_same(named: Named, position: str, fields: list[bytes], route_id: str, is_source_numeric: bool) -> bool:
    """Whether an entry is still the one that the audit named: its place, its mark and its content."""
    codec = codec_for(target_shape=Shape.ENTRY, route_id=route_id, lane=named.lane, is_source_numeric=is_source_numeric)
    entry: Row = (fields, position_order(position)[0])
    (copy,) = codec.normal([position.encode()], [entry])
    # The audit by key names what has no mark of a known lane as it stands.
    return named.difference.row in (copy.row, entry)


def _text(position: Any) -> str | None:
    return None if position is None else position_text(position)
