"""Each difference has the smallest remedy, and only what the audit saw is removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from crossfade.brokers.removal import Removal
from crossfade.model.record import Shape
from crossfade.model.wire import Origin, encode_origin
from crossfade.verify.diff import Difference, Kind
from crossfade.verify.origins import codec_for
from crossfade.verify.repair import Action, Plan, apply, plan_of
from crossfade.verify.report import AuditReport, LaneReport

ROUTE = "0a1b2c3d"
COPY = "crossfade relay run forward --start"


class Stored:
    """Entries of one lane; what is asked to be removed is compared and removed, as the script does it."""

    def __init__(self, entries: dict[str, list[bytes]]) -> None:
        self.lanes = {1: entries}

    async def entries(self, lane: int, positions: Sequence[str]) -> dict[str, list[bytes]]:
        return {position: self.lanes[lane][position] for position in positions if position in self.lanes[lane]}

    async def remove(self, lane: int, entries: Mapping[str, Sequence[bytes]]) -> dict[str, Removal]:
        for position, fields in entries.items():
            assert self.lanes[lane].pop(position) == fields
        return dict.fromkeys(entries, Removal.REMOVED)


def marked(fields: list[bytes], ordinal: int) -> list[bytes]:
    origin = encode_origin(Origin(ROUTE, 1, str(ordinal), ordinal, 1))
    return [*fields, b"xf", origin.encode()]


def difference(kind: Kind, source: int | None, target: bytes | None, entry: list[bytes] | None = None) -> Difference:
    row = None
    if entry is not None and target is not None:
        codec = codec_for(target_shape=Shape.ENTRY, route_id=ROUTE, lane=1, is_source_numeric=True)
        row = codec.normal([target], [(entry, int(target.partition(b"-")[0]))])[0].row
    return Difference(kind, source, target, "", row)


def report_of(*differences: Difference, is_certain: bool = True) -> AuditReport:
    report = AuditReport("a", "b", {1: LaneReport(1, "a[1]", "b:1")}, keeps_rows=True)
    for one in differences:
        report.add(1, one)
    for stray in report.strays:
        stray.is_surplus = is_certain
        report.keep(stray)
    return report


def planned(report: AuditReport, *, can_remove: bool = True) -> Plan:
    return plan_of(report, can_remove=can_remove, target_names={1: "b:1"}, copy_anew=COPY)


def test_what_is_too_much_goes_by_its_id_and_what_else_differs_needs_a_new_copy() -> None:
    plan = planned(
        report_of(
            difference(Kind.EXTRA, None, b"5-1", [b"a", b"1"]),
            difference(Kind.DUPLICATE, 3, b"6-1", marked([b"a", b"2"], 3)),
            difference(Kind.MISSING, 9, None),
            difference(Kind.ALTERED, 7, b"7-1"),
            difference(Kind.REORDERED, 8, b"8-1"),
        )
    )
    told = {(one.kind, one.action, one.target) for one in plan.remedies}
    assert told == {
        ("extra", Action.REMOVE, "5-1"),
        ("duplicate", Action.REMOVE, "6-1"),
        ("missing", Action.COPY_ANEW, None),
        ("altered", Action.COPY_ANEW, "7-1"),
        ("reordered", Action.COPY_ANEW, "8-1"),
    }
    assert {one.how for one in plan.remedies if one.action is Action.REMOVE} == {"XDEL b:1 5-1", "XDEL b:1 6-1"}
    assert all(COPY in one.how for one in plan.remedies if one.action is Action.COPY_ANEW)
    assert len(plan.removable) == 2


def test_a_target_that_removes_nothing_is_never_asked_to() -> None:
    plan = planned(report_of(difference(Kind.EXTRA, None, b"5-1", [b"a", b"1"])), can_remove=False)
    assert [one.action for one in plan.remedies] == [Action.COPY_ANEW]
    assert plan.removable == []


def test_what_may_be_a_right_copy_is_left_to_people() -> None:
    plan = planned(report_of(difference(Kind.EXTRA, None, b"5-1", [b"a", b"1"]), is_certain=False))
    (remedy,) = plan.remedies
    assert (remedy.action, plan.removable) == (Action.KEEP, [])
    assert "XDEL b:1 5-1" in remedy.how


def test_what_has_no_name_is_counted() -> None:
    report = report_of(*(difference(Kind.MISSING, at, None) for at in range(150)))
    assert planned(report).unnamed == 50


@pytest.mark.parametrize(
    ("now", "outcome"),
    [
        (marked([b"a", b"2"], 3), Removal.REMOVED),
        (marked([b"a", b"3"], 3), Removal.CHANGED),
        ([b"b", b"2"], Removal.CHANGED),
        (None, Removal.GONE),
    ],
)
async def test_an_entry_is_removed_only_while_it_is_what_the_audit_saw(
    now: list[bytes] | None, outcome: Removal
) -> None:
    plan = planned(report_of(difference(Kind.DUPLICATE, 3, b"6-1", marked([b"a", b"2"], 3))))
    other = {"5-1": [b"a", b"2"]}
    stored = Stored(other | ({} if now is None else {"6-1": now}))
    done = await apply(plan, stored, route_id=ROUTE, is_source_numeric=True)
    assert done == {(1, "6-1"): outcome}
    assert ("6-1" in stored.lanes[1]) == (outcome is Removal.CHANGED)
    assert stored.lanes[1]["5-1"] == [b"a", b"2"]
