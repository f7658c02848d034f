"""`crossfade doctor`: the configuration against the live brokers, finding by finding, with what to do.

Hides nothing that could not be asked: it is listed as unknown and never counts as ok. What no broker can tell anybody
is said once, at the end. The guarantee line follows from the findings alone. Wiring gives the inspectors; a broker that
does not answer is a finding of its own, and so is what `relay start` would refuse of the route itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from ..brokers.protocol import Finding, Level
from ..errors import BrokerError, CrossfadeError
from .output import Output, output_of
from .routes import OneRoute, chosen_routes

if TYPE_CHECKING:
    from ..config import Config

doctor_app = typer.Typer()

FINDINGS = 3
UNCONNECTION = 5
_WORDS = {Level.OK: "ok", Level.WARN: "WARN", Level.FAIL: "FAIL", Level.UNKNOWN: "unknown"}
_BY_HAND = "no broker can be asked, see to it yourself:"
#: the name of the finding about a broker that gave no answer, or let us not in
CONNECTION = "connection"


class Examined(NamedTuple):
    """What one broker showed in one role of one route; or what there is to say of the route itself."""

    route: str
    broker: str  # "" = the route itself
    role: str  # "source" | "target" | "route"
    kind: str  # "redis" | "kafka" | ""
    findings: list[Finding]


@doctor_app.command()
def doctor(
    context: typer.Context,
    route: OneRoute = None,
    print_acls: Annotated[
        bool, typer.Option("--print-acls", help="Print the least rights that Crossfade needs, and ask no broker.")
    ] = False,
) -> None:
    """Check the configuration against the live brokers.

    Says per finding what is there and what to do, then which guarantee will hold and why. What a broker does not let
    us ask is unknown, not ok; what no broker can tell anybody is said at the end. Exits with 3 when something fails,
    with 5 when a broker gave no answer or refused us.

    \b
    Examples:
      crossfade doctor
      crossfade doctor forward -o json
      crossfade doctor --print-acls
    """
    output = output_of(context)
    config = output.config()
    names = chosen_routes(config, None if route is None else [route])
    if print_acls:
        _print_acls(config, names, output)
        return
    examined = asyncio.run(_examine(config, names))
    _print(config, examined, output)
    findings = [finding for each in examined for finding in each.findings if finding.level is Level.FAIL]
    if any(finding.check == CONNECTION for finding in findings):
        raise typer.Exit(UNCONNECTION)
    if findings:
        raise typer.Exit(FINDINGS)


async def _examine(config: Config, names: Sequence[str]) -> list[Examined]:
    examined = []
    for name in names:
        settings = config.routes[name]
        seen, source_lanes, oldest_s = await _examine_end(config, name, "source")
        examined.append(Examined(name, settings.source, "source", config.brokers[settings.source].kind, seen))
        oldest_s = _still_to_come(config, name, oldest_s)
        seen, target_lanes, _ = await _examine_end(config, name, "target", source_lanes, oldest_s)
        if settings.allow_weak and config.brokers[settings.target].kind == "kafka":
            seen = _accept_weaknesses(seen)
        examined.append(Examined(name, settings.target, "target", config.brokers[settings.target].kind, seen))
        examined.append(Examined(name, "", "route", "", await _examine_route(config, name, source_lanes, target_lanes)))
    return examined


async def _examine_end(
    config: Config, name: str, role: str, source_lanes: int = 0, oldest_s: float | None = None
) -> tuple[list[Finding], int, float | None]:
    """What one broker of a route shows, how many lanes its stream has (0 = not known), and how old its records are."""
    from .. import wiring

    retention_s = config.streams[config.routes[name].stream].retention_s
    try:
        async with wiring.open_inspectors(config, name, (role,), source_lanes) as [(_, _, inspector)]:
            found = await inspector.inspect(role, retention_s, oldest_s)
            return found, inspector.lanes, inspector.oldest_s
    except BrokerError as error:
        return [Finding(CONNECTION, Level.FAIL, error.message, error.hint)], 0, None
    except CrossfadeError as error:
        return [Finding("configuration", Level.FAIL, error.message, error.hint)], 0, None


def _accept_weaknesses(findings: list[Finding]) -> list[Finding]:
    """The findings of a target on whose route `allow_weak: true` stands."""
    from ..brokers.kafka.verdicts import Weakness

    return [dataclasses.replace(each, level=Level.WARN) if isinstance(each, Weakness) else each for each in findings]


async def _first_lanes(config: Config, name: str) -> int:
    """How many lanes the source had at the first start; 0 = none yet, or the target shows what is wrong with it."""
    from .. import wiring

    try:
        async with wiring.open_board(config, name) as board:
            return await board.first_lanes()
    except BrokerError:
        return 0


def _still_to_come(config: Config, name: str, oldest_s: float | None) -> float | None:
    """Age of the oldest record that a copy from where the file says begins with."""
    start = config.streams[config.routes[name].stream].from_
    if start.where == "latest":
        return 0.0
    if start.where == "time" and oldest_s is not None:
        return min(oldest_s, max(0.0, time.time() - int(start.value) / 1000))
    return oldest_s


async def _examine_route(config: Config, name: str, source_lanes: int, target_lanes: int) -> list[Finding]:
    """What `relay start` would refuse of the route itself, in its words; lanes that are not known are not compared."""
    from .. import wiring
    from ..config.circles import refuse_loop

    found = []
    try:
        refuse_loop(config, name)
        found.append(Finding("route.loop", Level.OK, "by its addresses, no copy comes back to its source"))
    except CrossfadeError as error:
        found.append(Finding("route.loop", Level.FAIL, error.message, error.hint))
    if not source_lanes or not target_lanes:
        return found
    try:
        first_lanes = await _first_lanes(config, name)
        waiting = wiring.fit_lanes(config, name, source_lanes, target_lanes, first_lanes).lanes_without_target
    except CrossfadeError as error:
        return [*found, Finding("route.lanes", Level.FAIL, error.message, error.hint)]
    lanes = f"{source_lanes} source lanes, {target_lanes} target lanes, {config.routes[name].lanes}"
    if waiting:
        fix = f"give the target {source_lanes} lanes: until then {waiting} lanes that came later are not copied"
        return [*found, Finding("route.lanes", Level.WARN, lanes, fix)]
    return [*found, Finding("route.lanes", Level.OK, lanes)]


def guarantee(examined: Iterable[Examined]) -> str:
    """Which guarantee will hold for one route, and why, from what its brokers showed."""
    listed = list(examined)
    by_level = {level: _checks(listed, level) for level in Level}
    if by_level[Level.FAIL]:
        return f"none as things are: {by_level[Level.FAIL]} failed"
    target = next((each.kind for each in listed if each.role == "target"), "")
    why = {
        "kafka": "records and marker are one transaction, so read_committed readers see each record once",
        "redis": "one script writes records and marker; what a failover loses, it loses of both, and it is copied "
        "again while the source still holds it",
    }.get(target, "no target was examined")
    unless = (
        f"; not proven, because it could not be asked: {by_level[Level.UNKNOWN]}" if by_level[Level.UNKNOWN] else ""
    )
    if weak := _weaknesses(listed):
        from ..brokers.kafka.guarantee import weak_guarantee

        return weak_guarantee(weak) + unless
    return f"exactly once, in order per lane: {why}{unless}"


def _weaknesses(examined: Iterable[Examined]) -> list[str]:
    """What is wrong with a Kafka target and accepted, so that it does not fail."""
    targets = [each for each in examined if (each.role, each.kind) == ("target", "kafka")]
    if not targets:
        return []
    from ..brokers.kafka.verdicts import Weakness

    return [finding.found for each in targets for finding in each.findings if isinstance(finding, Weakness)]


def _checks(examined: Iterable[Examined], level: Level) -> str:
    names = [
        f"{each.broker} {finding.check}".lstrip()
        for each in examined
        for finding in each.findings
        if finding.level is level
    ]
    return ", ".join(dict.fromkeys(names))


def _print(config: Config, examined: Sequence[Examined], output: Output) -> None:
    routes = list(dict.fromkeys(each.route for each in examined))
    promises = {route: guarantee(each for each in examined if each.route == route) for route in routes}
    body = {
        "findings": [
            {"route": e.route, "broker": e.broker, "role": e.role, "check": f.check, "level": f.level.value}
            | {"found": f.found, "fix": f.fix}
            for e in examined
            for f in e.findings
        ],
        "guarantees": promises,
    }
    lines = []
    for route in routes:
        settings = config.routes[route]
        lines.append(f"route {route}: {settings.stream}, {settings.source} -> {settings.target}")
        for each in (each for each in examined if each.route == route):
            lines += _lines_of(each)
        lines += [f"  guarantee: {promises[route]}", ""]
    by_hand = [f for e in examined for f in e.findings if f.level is Level.BY_HAND]
    lines += [_BY_HAND] * bool(by_hand)
    lines += dict.fromkeys(f"  {finding.check}  {finding.found}: {finding.fix}" for finding in by_hand)
    output.document(body, "\n".join(lines).rstrip())


def _lines_of(examined: Examined) -> list[str]:
    lines = [f"  {examined.broker} ({examined.kind}, {examined.role})" if examined.broker else "  the route itself"]
    shown = [finding for finding in examined.findings if finding.level is not Level.BY_HAND]
    width = max((len(finding.check) for finding in shown), default=0)
    for finding in shown:
        lines.append(f"    {_WORDS[finding.level]:7}  {finding.check:{width}}  {finding.found}")
        if finding.fix:
            lines.append(f"    {'':7}  {'':{width}}  fix: {finding.fix}")
    return lines


def _print_acls(config: Config, names: Sequence[str], output: Output) -> None:
    from .. import wiring
    from ..brokers.redis.rights import password_notes

    rows, blocks = [], []
    for each in wiring.least_rights(config, names):
        # Not among the commands: those are pasted as they are, and this would set the password `...`.
        notes = password_notes(each.commands)
        uses = [{"route": route, "role": role} for route, role in each.uses]
        rows.append({"brokers": each.brokers, "uses": uses, "commands": each.commands, "notes": notes})
        head = f"# {', '.join(each.brokers)}: " + ", ".join(f"{role} of route {route}" for route, role in each.uses)
        blocks.append("\n".join([head, *each.commands, *(f"# {note}" for note in notes)]))
    output.document({"rights": rows}, "\n\n".join(blocks))
