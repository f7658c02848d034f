"""`crossfade verify --repair list|apply`: what each difference needs, and the removal of what is too much.

Invariant: nothing is removed before the plan was shown and confirmed (`--yes`, or an answer at a terminal), never while
a relay of the route runs, and never an entry that is not the very one that the audit saw. Afterwards both sides are
audited again, and that audit decides the exit code. Called by `verify`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import typer

from ..errors import RefusedByRail
from .output import Column, Output
from .relay_alive import refuse_running
from .verify_parts import Workers
from .verify_run import audit_route
from .verify_scope import Scope, Store
from .verify_words import VERDICTS, exit_code_of, text_of

if TYPE_CHECKING:
    from ..brokers.removal import Removal
    from ..config import Config
    from ..verify.repair import Plan
    from ..verify.report import AuditReport

#: differences named one by one, per kind; what is beyond comes with the next repair
NAMED_MAX = 10_000
_COLUMNS = [
    Column("route"),
    Column("lane", right=True),
    Column("kind"),
    Column("source"),
    Column("target"),
    Column("action"),
    Column("outcome"),
    Column("how"),
]


class Repair(StrEnum):
    """What `--repair` is asked to do."""

    LIST = "list"
    APPLY = "apply"


async def repair_routes(
    config: Config, output: Output, names: Sequence[str], scope: Scope, ask: Repair, workers: Workers, *, yes: bool
) -> int:
    """List the remedies of these routes, or carry them out. Returns the exit code.

    Raises RefusedByRail, UsageError, Unreachable, AccessRefused.
    """
    if ask is Repair.APPLY and not yes and (output.is_json or not sys.stdin.isatty()):
        raise RefusedByRail(
            "--repair apply removes entries and there is nobody to ask",
            hint="look at `--repair list` first, then add --yes",
        )
    for name in names if ask is Repair.APPLY else ():
        await _refuse(config, name)
    scope = replace(scope, keep={"named_max": NAMED_MAX, "keeps_rows": True})
    reports = {name: await audit_route(config, output, name, scope, Store(None), workers) for name in names}
    plans = {name: await _plan(config, name, report) for name, report in reports.items()}
    rows = [row for name, plan in plans.items() for row in _rows(name, plan)]
    count = sum(len(plan.removable) for plan in plans.values())
    if ask is Repair.LIST or not count:
        _show(output, rows, plans, reports)
        if ask is Repair.APPLY and rows:
            output.note("nothing of this can be put right in place")
        return exit_code_of(list(reports.values()))
    if not yes:
        output.table(rows, _COLUMNS)
        if not typer.confirm(f"Remove {count} entries from the target?", err=True):
            raise RefusedByRail("nothing was removed", hint="the answer was no")
    for name, plan in plans.items():
        outcomes = await _carry_out(config, name, plan)
        rows = [_with_outcome(row, name, outcomes) for row in rows]
    again = replace(scope, keep=None)
    after = {name: await audit_route(config, output, name, again, Store(None), workers) for name in names}
    _show(output, rows, plans, after)
    return exit_code_of(list(after.values()))


async def _refuse(config: Config, name: str) -> None:
    """Raises RefusedByRail where removing would be wrong whatever is found."""
    if config.pair_of(name):
        raise RefusedByRail(
            f"route {name!r} is one of a pair: applications write to its target too, and what they wrote must stay",
            hint="use --repair list",
        )
    await refuse_running(config, name)


async def _plan(config: Config, name: str, report: AuditReport) -> Plan:
    from .. import wiring
    from ..verify.repair import plan_of

    if not report.named:
        return plan_of(report, can_remove=False, target_names={}, copy_anew="")
    async with wiring.open_route(config, name, instance="verify") as opened:
        target = opened.target
        names = {lane: target.lane_name(lane) for lane in range(target.lanes)}
        return plan_of(
            report,
            can_remove=wiring.remover_of(target) is not None,
            target_names=names,
            copy_anew=_copy_anew(config, name, target.kind),
        )


def _copy_anew(config: Config, name: str, kind: str) -> str:
    """The command that copies into a fresh target under a fresh route id."""
    settings = config.routes[name]
    side = f"streams.{settings.stream}.{settings.target}"
    fresh = f"{side}.topic=FRESH-TOPIC" if kind == "kafka" else f"'{side}.lanes=FRESH:<lane>'"
    return f"crossfade relay run {name} --start --set routes.{name}.id=FRESH-ID --set {fresh}"


async def _carry_out(config: Config, name: str, plan: Plan) -> dict[tuple[int, str], Removal]:
    from .. import wiring
    from ..model.record import Shape
    from ..verify.repair import apply

    await _refuse(config, name)
    async with wiring.open_route(config, name, instance="verify") as opened:
        remover = wiring.remover_of(opened.target)
        if remover is None:
            return {}
        is_numeric = opened.source.shape is Shape.RECORD
        return await apply(plan, remover, route_id=opened.route.id, is_source_numeric=is_numeric)


def _rows(name: str, plan: Plan) -> list[dict[str, Any]]:
    return [{"route": name, **remedy.as_dict(), "outcome": None} for remedy in plan.remedies]


def _with_outcome(row: dict[str, Any], name: str, outcomes: dict[tuple[int, str], Removal]) -> dict[str, Any]:
    outcome = outcomes.get((row["target_lane"], row["target"])) if row["route"] == name else None
    return row if outcome is None else row | {"outcome": outcome.value}


def _show(output: Output, rows: list[dict[str, Any]], plans: dict[str, Plan], reports: dict[str, AuditReport]) -> None:
    """The plan, and what the last audit says."""
    if output.is_json:
        routes = [{"route": name, **report.as_dict()} for name, report in reports.items()]
        code = exit_code_of(list(reports.values()))
        head = {"ok": code == 0, "verdict": VERDICTS[code], "exit_code": code}
        output.document({**head, "plan": rows, "routes": routes}, "")
        return
    if rows:
        output.table(rows, _COLUMNS)
    unnamed = sum(plan.unnamed for plan in plans.values())
    if unnamed:
        output.note(f"{unnamed:,} more differences are not named; repair these first, then look again")
    for name, report in reports.items():
        output.document({}, text_of(name, report))
