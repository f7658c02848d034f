"""`crossfade relay status` and `relay wait`: what the running relays report, read from the board.

Hides how heartbeats of several processes become one row a lane. Invariant: every lane that was started has a row, also
where no relay tells anything of it, and an unreachable broker ends neither a watch nor a wait. Registered by
`cli.relay`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import typer

from .. import wiring
from ..config import Config, RedisSide
from ..errors import CrossfadeError, NotStarted, Unreachable
from ..relay.documents import OPENING, STOPPED, Desired, LaneReport, Report, RouteBoard
from .output import Brief, Column, Output, output_of
from .relay_alive import SILENT_S
from .routes import RouteNames, chosen_routes

_STATUS = [
    Column("route"),
    Column("lane"),
    Column("number", right=True),
    Column("position"),
    Column("ordinal", right=True),
    Column("lag_records", right=True),
    Column("lag_s", right=True),
    Column("records_per_s", right=True),
    Column("echoes", right=True),
    Column("owner"),
    Column("epoch", right=True),
    Column("state"),
    Column("trimmed_in_s", right=True),
    Column("reason"),
]
#: what the row of a lane holds; the table shows no more than its columns
_KEYS = (*[column.name for column in _STATUS], "quarantined", "deleted", "error", "lost_records", "hint")
#: names that are wider than what stands below them
_HEADS = {"lag_records": "lag_\nrecords", "records_per_s": "records_\nper_s", "trimmed_in_s": "trimmed_\nin_s"}
#: what a narrow terminal does without
_SPARE = ("echoes", "records_per_s", "lag_s")
#: so many lanes with one reason are named each
_NAMED_MAX = 3
#: so long a look may take in any case: the last one, after a pause, or the only one of `--timeout-s 0`
_LOOK_S = 3.0
#: what a relay measures again and again: its last figures say nothing of a source that it no longer looks at
_MEASURED = ("lag_records", "lag_s", "records_per_s", "trimmed_in_s")
#: so much the clocks of two hosts may differ
_CLOCKS_S = 2.0

_Found = TypeVar("_Found")


def status(
    context: typer.Context,
    routes: RouteNames = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second until Ctrl-C.")] = False,
    wide: Annotated[
        bool, typer.Option("--wide", help="On a terminal, show route, number, ordinal and epoch of each lane too.")
    ] = False,
) -> None:
    """Show each lane: position, lag, rate, owner and state; and the reason of any throttle, wait or halt.

    A terminal shows reasons below the table, and leaves out columns that say nothing of any lane. In a pipe, all are
    there; -o json has more. Exits with 3 when a lane is halted. With --watch, a broker that cannot be reached is told
    and asked again.

    Example: crossfade relay status --watch
    """
    output = output_of(context)
    config = output.config()
    if asyncio.run(_status(config, chosen_routes(config, routes), watch, wide, output)):
        raise typer.Exit(3)


async def _status(config: Config, names: list[str], watch: bool, wide: bool, output: Output) -> bool:
    below = _Below(output)
    async with _open_boards(config, names) as boards:
        async for rows, lines, errors in _repeated(lambda: _look(config, boards), 1, math.inf if watch else 0.0, below):
            output.table(rows, _STATUS, live=watch, brief=brief(rows, has_routes=len(names) > 1, wide=wide))
            if sys.stdout.isatty():
                below.told = ""  # the table has replaced it
            below.tell(lines)
            for error in errors:
                if not (watch and isinstance(error, Unreachable)):
                    raise error
            if not watch:
                break
    return any(row["state"] == "halted" for row in rows)


def brief(rows: Sequence[Mapping[str, Any]], *, has_routes: bool, wide: bool = False) -> Brief:
    """What fits a terminal: columns that say something of a lane; below them the processes without lanes, and each
    reason, once."""
    lanes = [row for row in rows if row.get("lane")]
    hidden = {"reason"} | {name for name in _KEYS if lanes and all(row[name] in (None, "") for row in lanes)}
    if not wide:
        tell_numbers = all(_tells_number(row) for row in lanes)
        hidden |= {"ordinal", "epoch"} | ({"number"} if tell_numbers else set()) | (set() if has_routes else {"route"})
    if not any(row["echoes"] for row in lanes):
        hidden.add("echoes")
    columns = [Column(one.name, one.right, _HEADS.get(one.name, "")) for one in _STATUS if one.name not in hidden]
    below: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        of = f"{row['route']} " if has_routes else ""
        if not row.get("lane"):
            below.setdefault((of, ", ".join(filter(None, (row["state"], row["reason"])))), []).append(row["owner"])
        elif row["reason"]:
            below.setdefault((of, row["reason"]), []).append(row["lane"])
    lines = [f"{of}{_named(names)}: {what}" for (of, what), names in below.items()]
    return Brief(lanes, columns, lines, () if wide else _SPARE)


def _tells_number(row: Mapping[str, Any]) -> bool:
    """Whether the last number in a lane's name is its own, as in most names."""
    return [int(digits) for digits in re.findall("[0-9]+", row["lane"])[-1:]] == [row["number"]]


def _named(names: Sequence[str]) -> str:
    if len(names) <= _NAMED_MAX:
        return ", ".join(names)
    return f"{names[0]} and {len(names) - 1} more"


@contextlib.asynccontextmanager
async def _open_boards(config: Config, names: Sequence[str]) -> AsyncIterator[dict[str, RouteBoard]]:
    async with contextlib.AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(wiring.open_board(config, name)) for name in names}


class _Below:
    """The lines below a table that is shown again and again: told when they change."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.told = ""

    def tell(self, lines: str) -> None:
        if lines != self.told:
            self._output.note_lines(lines)
            self.told = lines


async def _repeated(
    look: Callable[[], Awaitable[_Found]], pause_s: float, until_s: float, below: _Below
) -> AsyncIterator[_Found]:
    """What each look finds; where a broker cannot be reached, that is told, and it is asked again until `until_s`."""
    while True:
        try:
            found = await look()
        except Unreachable as error:
            if time.time() > until_s:
                raise
            below.tell(f"{error.message}; asking again")
        else:
            yield found
        await asyncio.sleep(pause_s)


async def _look(
    config: Config, boards: Mapping[str, RouteBoard]
) -> tuple[list[dict[str, object]], str, list[CrossfadeError]]:
    """The rows of all routes, the lines to show below them, and why some of the routes could not be looked at.

    Raises that where it is so of all of them.
    """
    rows: list[dict[str, object]] = []
    below: list[str] = []
    errors: list[CrossfadeError] = []
    for name, board in boards.items():
        try:
            more, lines = await _look_at(config, name, board)
        except CrossfadeError as error:
            errors.append(error)
            below.append(f"route {name} could not be looked at: {error.message}")
        else:
            rows, below = rows + more, below + lines
    if errors and len(errors) == len(boards):
        raise errors[0]
    return rows, "\n".join(below), errors


async def _look_at(config: Config, name: str, board: RouteBoard) -> tuple[list[dict[str, object]], list[str]]:
    reports, started = await board.reports(), await board.started()
    rows = status_rows(name, reports, await board.desired(), time.time())
    known = {lane.lane for report in reports for lane in report.lanes}
    below = _hints(rows) + _alarms(reports, time.time())
    rows += [_unreported(name, lane_name(config, name, lane), lane) for lane in sorted(started - known)]
    if not started:
        below.append(f"route {name} was never started: crossfade relay start {name}")
    elif unstarted := (await board.unstarted()) - known:
        below.append(
            f"route {name} has lanes that were never started ({ranges(unstarted)}): crossfade relay start {name}"
        )
    return rows, below


def _unreported(route: str, lane: str, number: int) -> dict[str, object]:
    return dict.fromkeys(_KEYS) | {
        "route": route,
        "lane": lane,
        "number": number,
        "state": "started",
        "reason": "no relay has reported",
    }


def _hints(rows: Sequence[Mapping[str, object]]) -> list[str]:
    return [f"{row['lane']}: {row['hint']}" for row in rows if row["state"] == "halted" and row.get("hint")]


def _alarms(reports: Iterable[Report], now_s: float) -> list[str]:
    """What the processes that live told without being asked since they started: the last few of each."""
    living = [report for report in reports if not report.is_stopped and _is_fresh(report, now_s)]
    return [f"alarm of {report.instance}: {alarm}" for report in living for alarm in report.alarms]


def lane_name(config: Config, route: str, lane: int) -> str:
    """What people call a source lane, from the configuration alone."""
    settings = config.routes[route]
    side = config.streams[settings.stream].sides[settings.source]
    if isinstance(side, RedisSide):
        keys = side.first_keys(lane + 1)
        return keys[lane] if lane < len(keys) else str(lane)
    return f"{side.topic}[{lane}]"


def ranges(lanes: Iterable[int]) -> str:
    """`0-3, 7` for 0, 1, 2, 3 and 7."""
    runs: list[list[int]] = []
    for lane in sorted(lanes):
        if runs and lane == runs[-1][-1] + 1:
            runs[-1][1:] = [lane]
        else:
            runs.append([lane])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _is_fresh(report: Report, now_s: float) -> bool:
    """Whether the heartbeat is of now; a clock that is ahead says as little of that as one that is behind."""
    return abs(now_s - report.at_s) <= SILENT_S


def latest_of_lanes(reports: Sequence[Report], now_s: float) -> dict[int, tuple[Report, LaneReport]]:
    """What is to be believed of each lane, and who says it.

    A process that has lost its claim goes on telling of its lanes until it knows who has them: whoever has a claim is
    heard before it. Of two that have one, who beats now: one whose clock was ahead may be dead.
    """

    def weight(report: Report) -> tuple[bool, float]:
        copies = report.epoch > 0 and not report.is_stopped and _is_fresh(report, now_s)
        return copies, -abs(now_s - report.at_s) if copies else report.at_s

    return {lane.lane: (report, lane) for report in sorted(reports, key=weight) for lane in report.lanes}


def status_rows(route: str, reports: list[Report], desired: Desired, now_s: float) -> list[dict[str, object]]:
    """One row per lane, from the freshest heartbeat that owns it; silent processes are named as such."""
    rows: list[dict[str, object]] = []
    for report in sorted(reports, key=lambda each: each.at_s):
        if not report.lanes and not report.is_stopped and _is_fresh(report, now_s):
            rows.append({"route": route, "owner": report.instance, "state": report.state, "reason": report.reason})
    best = latest_of_lanes(reports, now_s)
    for number in sorted(best):
        report, lane = best[number]
        state, reason, is_gone = lane.state, lane.reason or report.reason or report.throttle, False
        if report.is_stopped:
            state, reason, is_gone = STOPPED, f"{report.instance} was stopped", True
        elif not _is_fresh(report, now_s):
            state, is_gone, age_s = "silent", True, now_s - report.at_s
            reason = f"no heartbeat of {report.instance} for {age_s:.0f} s"
            if age_s < 0:
                reason = f"the last heartbeat of {report.instance} is {-age_s:.0f} s ahead of this host's clock"
        elif report.state == OPENING:
            state, reason = OPENING, report.reason
        elif desired.paused or number in desired.paused_lanes:
            reason = reason or "paused by an operator"
        rows.append(
            dict.fromkeys(_KEYS)
            | {
                "route": route,
                "lane": lane.name,
                "number": number,
                "position": lane.position,
                "ordinal": lane.ordinal,
                "lag_records": lane.lag_records,
                "lag_s": None if lane.lag_s is None else round(lane.lag_s, 2),
                "records_per_s": lane.records_per_s,
                "owner": report.instance,
                "epoch": report.epoch,
                "state": state,
                "trimmed_in_s": None if lane.trimmed_in_s is None else round(lane.trimmed_in_s),
                "quarantined": lane.quarantined,
                "deleted": lane.deleted,
                "echoes": lane.echoes,
                "error": lane.error,
                "lost_records": lane.lost_records,
                "reason": reason,
                "hint": lane.hint,
            }
            | (dict.fromkeys(_MEASURED) if is_gone else {})
        )
    return rows


def wait(
    context: typer.Context,
    routes: RouteNames = None,
    lag_records: Annotated[int, typer.Option(min=0, help="Every lane's lag must be at or below this.")] = 0,
    timeout_s: Annotated[float, typer.Option(min=0, help="Give up after so many seconds.")] = 300.0,
) -> None:
    """Wait until running relays have copied everything that the sources hold; for scripts.

    Exits with 0 then, with 3 when a lane is halted, with 1 when time is up, with 4 where a route, or one of its lanes,
    was never started. While a source is written to, it waits for the first moment at which the lag was at or below
    --lag-records. A broker that cannot be reached is told and asked again until time is up (then it exits with 5).

    Example: crossfade relay wait forward --timeout-s 60
    """
    output = output_of(context)
    config = output.config()
    asyncio.run(_wait(config, chosen_routes(config, routes), lag_records, timeout_s, output))


async def _wait(config: Config, names: list[str], lag_records: int, timeout_s: float, output: Output) -> None:
    since_s = time.time()
    deadline_s = since_s + timeout_s
    below = _Below(output)
    async with _open_boards(config, names) as boards:
        async for rows, behind in _repeated(
            lambda: _in_time(_heard(boards, since_s), deadline_s), 0.5, deadline_s, below
        ):
            halted = [row for row in rows if row["state"] == "halted"]
            if halted:
                output.table(halted, _STATUS, brief=brief(halted, has_routes=len(names) > 1))
                output.note_lines("\n".join(_hints(halted)))
                raise typer.Exit(3)
            lags = [row["lag_records"] for row in rows]
            if not behind and all(isinstance(lag, int) and lag <= lag_records for lag in lags):
                output.table(rows, _STATUS, brief=brief(rows, has_routes=len(names) > 1))
                return
            paused = dict.fromkeys(row["route"] for row in rows if row["state"] == "paused")
            below.tell("\n".join(f"{name} has paused lanes: `crossfade relay resume {name}`" for name in paused))
            if time.time() > deadline_s:
                output.table(rows, _STATUS, brief=brief(rows, has_routes=len(names) > 1))
                output.note(f"not copied within {timeout_s:g} s" + ("; no relay reports" if not rows else ""))
                raise typer.Exit(1)


async def _in_time(look: Awaitable[_Found], until_s: float) -> _Found:
    """What a look finds. Raises Unreachable where it takes longer than is left: alone it would ask for much longer."""
    left_s = max(until_s - time.time(), _LOOK_S)
    try:
        async with asyncio.timeout(left_s):
            return await look
    except TimeoutError:
        raise Unreachable(
            f"what the relays report could not be read within {left_s:.0f} s",
            hint="that is kept on the route's target: `crossfade doctor` tells whether it can be reached",
        ) from None


async def _heard(boards: Mapping[str, RouteBoard], since_s: float) -> tuple[list[dict[str, Any]], int]:
    """The rows of lanes with a fresh heartbeat, and how many started lanes have none.

    Raises NotStarted for a route that was not started, or not with all its lanes: they would never be copied.
    """
    rows: list[dict[str, Any]] = []
    missing = 0
    for name, board in boards.items():
        # Asked each time: lanes that came meanwhile count as well.
        started = await board.started()
        if not started:
            raise NotStarted(
                f"route {name!r} was never started: there is nothing to wait for",
                hint=f"start it once: `crossfade relay start {name}`; then `crossfade relay run {name}` copies",
            )
        # What was seen before this command could be older than the last write.
        reports, after_s = await board.reports(), since_s + _CLOCKS_S
        latest = latest_of_lanes(reports, time.time())
        # What a relay has is started, also where the start was cut short before it was noted.
        if unstarted := (await board.unstarted()).difference(latest):
            raise NotStarted(
                f"route {name!r} has lanes that were never started ({ranges(unstarted)}): what they hold is not copied",
                hint=f"start them too: `crossfade relay start {name}`",
            )
        seen = {lane for lane, (report, found) in latest.items() if report.at_s - report.look_age_s > after_s}
        found = status_rows(name, reports, Desired(), time.time())
        rows += [row for row in found if row.get("number") in seen]
        missing += len(started - seen)
    return rows, missing
