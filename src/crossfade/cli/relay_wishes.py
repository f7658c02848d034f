"""`crossfade relay pause | resume | rate | journal`: what an operator wants of a route's relays, and wanted before.

Hides that a wish is a document on the board of the target broker, which the relays look at each second. Invariant: a
change is made to the newest document or not at all. Registered by `cli.relay`.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import math
import socket
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, TypeAlias

import typer

from .. import wiring
from ..config import Config
from ..errors import RefusedByRail, UsageError
from ..relay.documents import AcceptedLoss, Desired, LaneReport
from ..relay.losses import OF_THE_SOURCE, still_to_answer
from .output import Column, Output, output_of
from .relay_status import latest_of_lanes, ranges
from .routes import RouteName, RouteNames, chosen_routes

#: as a rate: none of an operator's
_CONFIGURED = "configured"

Change: TypeAlias = Callable[[Desired], None]
LaneNames = Annotated[list[int] | None, typer.Option("--lane", min=0, help="Only this source lane; may be repeated.")]


def pause(context: typer.Context, route: RouteName, lanes: LaneNames = None) -> None:
    """Stop copying; the relays keep their lanes and claims. Takes effect in two seconds, and holds over restarts."""
    _change(context, route, lambda desired: _pause(desired, lanes, paused=True), lanes)


def resume(
    context: typer.Context,
    route: RouteName,
    lanes: LaneNames = None,
    accept_loss: Annotated[
        str | None,
        typer.Option("--accept-loss", help="Why the loss of a halted lane is accepted; see `relay journal`."),
    ] = None,
) -> None:
    """Copy again. A lane halted by its source goes on only with --accept-loss and the reason; other halts name what
    they wait for.

    Example: crossfade relay resume forward --lane 3 --accept-loss "test data, trimmed on purpose"
    """
    if accept_loss is not None:
        if not lanes:
            raise UsageError("--accept-loss needs --lane", hint="name each lane whose loss you accept")
        output = output_of(context)
        config = output.config()
        chosen_routes(config, [route])
        asyncio.run(_accept(config, route, lanes, accept_loss, output))
    desired = _change(context, route, lambda desired: _pause(desired, lanes, paused=False), lanes)
    output = output_of(context)
    if lanes and desired.paused:
        output.note(f"the whole route is paused, these lanes too: `crossfade relay resume {route}`")
    elif accept_loss is None:
        for lane in asyncio.run(_still_halted(output.config(), route, lanes)):
            output.note_lines(
                f"{lane.name} stays halted: {lane.reason}" + (f"\nhint: {lane.hint}" if lane.hint else "")
            )


def rate(
    context: typer.Context,
    route: RouteName,
    records_per_s: Annotated[
        str,
        typer.Argument(help=f"Records/s of each relay process; 0 = no limit, `{_CONFIGURED}` = what the file says."),
    ],
) -> None:
    """Limit the rate of running relays, within two seconds.

    It is kept on the target, also over restarts, and wins over rate_records_per_s of the file.

    Example: crossfade relay rate forward 20000
    """
    wanted = _parse_rate(records_per_s)

    def change(desired: Desired) -> None:
        desired.rate_records_per_s = wanted

    _change(context, route, change)


def _parse_rate(text: str) -> float | None:
    if text == _CONFIGURED:
        return None
    with contextlib.suppress(ValueError):
        if 0 <= (rate := float(text)) < math.inf:  # also false for what is no number
            return rate
    raise UsageError(
        f"a rate of {text!r} records/s is none to copy at",
        hint=f"give a number; 0 lifts the limit, `{_CONFIGURED}` goes back to the file's",
    )


def journal(context: typer.Context, routes: RouteNames = None) -> None:
    """Show which losses were accepted, by whom, when and why; the oldest first.

    Example: crossfade relay journal forward
    """
    output = output_of(context)
    config = output.config()
    rows = asyncio.run(_journal(config, chosen_routes(config, routes)))
    output.table(rows, [Column(name) for name in ("route", "at", "by", "lane", "error", "position", "lost", "reason")])


async def _journal(config: Config, names: Sequence[str]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for name in names:
        async with wiring.open_board(config, name) as board:
            rows += [
                {
                    "route": name,
                    "at": entry.at,
                    "by": entry.by,
                    "lane": entry.lane or None,
                    "error": entry.error,
                    "position": entry.position,
                    "lost": entry.lost_records,
                    "reason": entry.reason,
                }
                for entry in (await board.desired()).journal
            ]
    return rows


def _pause(desired: Desired, lanes: list[int] | None, *, paused: bool) -> None:
    if lanes:
        kept = set(desired.paused_lanes) - set(lanes)
        desired.paused_lanes = sorted(kept | set(lanes) if paused else kept)
    else:
        desired.paused = paused
        desired.paused_lanes = [] if not paused else desired.paused_lanes


def _change(context: typer.Context, route: str, change: Change, lanes: list[int] | None = None) -> Desired:
    """Make the change, and show what is desired now."""
    output = output_of(context)
    config = output.config()
    chosen_routes(config, [route])
    desired = asyncio.run(_change_desired(config, route, change, lanes or []))
    output.table(
        [
            {
                "route": route,
                "paused": desired.paused,
                "paused_lanes": desired.paused_lanes,
                "rate_records_per_s": desired.rate_records_per_s,
            }
        ],
        [Column("route"), Column("paused"), Column("paused_lanes"), Column("rate_records_per_s", right=True)],
    )
    return desired


async def _change_desired(config: Config, route: str, change: Change, lanes: Sequence[int] = ()) -> Desired:
    """What is desired now. Raises UsageError for a lane of `lanes` that the route does not have."""
    async with wiring.open_board(config, route) as board:
        started = await board.started() if lanes else frozenset()

        def checked(desired: Desired) -> None:
            unknown = sorted(set(lanes) - started - set(desired.paused_lanes))
            if unknown:
                raise UsageError(
                    f"route {route!r} has no started lane {', '.join(map(str, unknown))}",
                    hint=f"started are: {ranges(started) or 'none'}; see `crossfade relay status {route}`",
                )
            change(desired)

        return await board.change_desired(checked)


async def _still_halted(config: Config, route: str, lanes: Sequence[int] | None) -> list[LaneReport]:
    """The lanes of these, or of all, that no resuming sets going."""
    async with wiring.open_board(config, route) as board:
        latest = latest_of_lanes(await board.reports(), time.time())
    return [
        lane
        for number, (_, lane) in sorted(latest.items())
        if lane.state == "halted" and (not lanes or number in lanes)
    ]


async def _accept(config: Config, route: str, lanes: list[int], reason: str, output: Output) -> None:
    async with wiring.open_board(config, route) as board:
        reports = await board.reports()
        reported = [lane for report in reports for lane in report.lanes]
        latest = latest_of_lanes(reports, time.time())
        halted = {number: lane for number, (_, lane) in latest.items() if lane.state == "halted"}
        not_halted = [lane for lane in lanes if lane not in halted]
        if not_halted:
            raise RefusedByRail(
                f"lanes {not_halted} of route {route!r} are not halted: there is no loss to accept",
                hint=f"see `crossfade relay status {route}`",
            )
    for asked in (halted[number] for number in lanes):
        if asked.error not in OF_THE_SOURCE:
            raise RefusedByRail(
                f"{asked.name} is halted by {asked.error}, which is no loss of the source: there is none to accept",
                hint=asked.hint or asked.reason,
            )
    decisions = {
        str(lane): AcceptedLoss(
            error=halted[lane].error,
            position=halted[lane].position,
            by=f"{getpass.getuser()}@{socket.gethostname()}",
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            reason=reason,
            lane=halted[lane].name,
            lost_records=halted[lane].lost_records,
        )
        for lane in lanes
    }

    def change(desired: Desired) -> None:
        desired.accepted = still_to_answer(desired.accepted, reported) | decisions
        desired.journal = [*desired.journal, *decisions.values()][-1000:]

    await _change_desired(config, route, change)
    for lane in lanes:
        output.note(f"accepted: {halted[lane].name}: {halted[lane].reason}")
