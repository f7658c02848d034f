"""`crossfade relay ...`: start, run, status, pause, resume and rate.

`run` is the only daemon. The others talk to the board of the target broker, so they work from any host.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias, TypeVar

import typer

from .. import wiring
from ..brokers.protocol import From, Start, VersionConflict
from ..config import Config
from ..errors import RefusedByRail, UsageError
from ..relay.beginning import start_lanes
from ..relay.documents import AcceptedLoss, Desired, LaneReport, Report
from ..relay.reporter import HealthServer
from ..telemetry import setup_logging
from .output import Column, Output, output_of
from .relay_fleet import Fleet, follow_new_lanes
from .relay_reshard import reshard
from .runtime import calm_collector, keep_freed_memory

relay_app = typer.Typer(
    no_args_is_help=True,
    help="Copy streams from one broker to another, exactly once.\n\n"
    "A lane is started once (`relay start` writes its first marker into the target) and then run for ever "
    "(`relay run`, any number of processes). Everything else steers the running relays through the board.",
)

Change: TypeAlias = Callable[[Desired], None]
RouteNames = Annotated[list[str] | None, typer.Argument(help="Routes of crossfade.yaml; all of them by default.")]
RouteName = Annotated[str, typer.Argument(help="The route, as named in crossfade.yaml.")]
LaneNames = Annotated[list[int] | None, typer.Option("--lane", help="Only this source lane; may be repeated.")]


@relay_app.command("start")
def start(
    context: typer.Context,
    routes: RouteNames = None,
    begin: Annotated[
        str | None,
        typer.Option("--from", help="earliest, latest, time:2026-01-01T00:00:00Z or position:ID; default: the file's."),
    ] = None,
) -> None:
    """Write the first marker of each lane into the target: where its copy begins.

    Lanes that have a marker keep it, so starting twice changes nothing.

    Example: crossfade relay start forward --from earliest
    """
    output = output_of(context)
    _run(_start(output.config(), routes, begin, output))


async def _start(config: Config, names: list[str] | None, begin: str | None, output: Output) -> None:
    rows = []
    for name in _routes(config, names):
        async with wiring.open_route(config, name) as opened:
            where = parse_start(begin) if begin else opened.start
            lanes = [lane for lane in range(opened.route.source_lanes) if lane not in opened.new_lanes]
            for line in await follow_new_lanes(opened):
                output.note(line)
            places = await start_lanes(opened.route, opened.source, opened.target, opened.board, where, lanes)
            rows.append(
                {
                    "route": name,
                    "lanes": len(lanes),
                    "started": len(places),
                    "from": where.where.value,
                    "id": opened.route.id,
                }
            )
    output.table(rows, [Column("route"), Column("lanes"), Column("started"), Column("from"), Column("id")])


def parse_start(text: str) -> Start:
    """`earliest`, `latest`, `time:<ISO 8601>`, `position:<position>` as a Start. Raises UsageError."""
    word, _, value = text.partition(":")
    if word in ("earliest", "latest") and not value:
        return Start(From(word))
    if word == "position" and re.fullmatch(r"\d+(-\d+)?", value):
        return Start(From.POSITION, value)
    if word == "time":
        with contextlib.suppress(ValueError):
            moment = datetime.fromisoformat(value)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return Start(From.TIME, str(int(moment.timestamp() * 1000)))
    raise UsageError(
        f"--from {text!r} is no beginning",
        hint="use earliest, latest, time:2026-01-01T00:00:00Z or position:1700000000000-0",
    )


@relay_app.command("run")
def run(
    context: typer.Context,
    routes: RouteNames = None,
    instance: Annotated[
        str | None,
        typer.Option(
            help="Name of this process; the same name back after a crash goes on at once. Default: host name."
        ),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="i/n: take lanes by hand instead of sharing them through a group.")
    ] = None,
    start_first: Annotated[
        bool, typer.Option("--start", help="Start lanes that were never started, as `relay start` does.")
    ] = False,
    metrics_port: Annotated[int | None, typer.Option(help="Port of /metrics, /livez, /readyz; 0 = none.")] = None,
) -> None:
    """Copy until stopped. SIGTERM and Ctrl-C finish the append under way and end within five seconds.

    Several processes share the lanes of a route; give each its own --instance.

    Example: crossfade relay run forward --instance relay-1
    """
    output = output_of(context)
    name = instance or os.environ.get("CROSSFADE_INSTANCE") or _host_name()
    if not re.fullmatch(r"[a-z0-9-]{1,63}", name):
        raise UsageError(
            f"--instance {name!r} is no name", hint="use lower-case letters, digits and dashes, at most 63"
        )
    setup_logging(json=output.is_json)
    config = output.config()
    _run(_serve(config, _routes(config, routes), name, _parse_shard(shard), start_first, metrics_port))


async def _serve(
    config: Config, names: list[str], instance: str, shard: tuple[int, int] | None, start_first: bool, port: int | None
) -> None:
    keep_freed_memory()
    fleet = Fleet(config, names, instance, shard, start_first=start_first)
    try:
        await fleet.open()
        port = config.routes[names[0]].metrics_port if port is None else port
        health = HealthServer(fleet.copiers, fleet.metrics)
        if port:
            await health.listen(port)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, fleet.stop)
        calm_collector()
        try:
            await fleet.run()
        finally:
            await health.close()
    finally:
        await fleet.close()


@relay_app.command("status")
def status(
    context: typer.Context,
    routes: RouteNames = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every second until Ctrl-C.")] = False,
) -> None:
    """Show each lane: position, lag, rate, owner, epoch, state, and the reason of any throttle or halt.

    Exits with 3 when a lane is halted.

    Example: crossfade relay status --watch
    """
    output = output_of(context)
    config = output.config()
    halted = _run(_status(config, _routes(config, routes), watch, output))
    if halted:
        raise typer.Exit(3)


_STATUS = [
    Column("route"),
    Column("lane"),
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
#: a heartbeat older than this is a process that is gone
_SILENT_S = 10.0


async def _status(config: Config, names: list[str], watch: bool, output: Output) -> bool:
    async with contextlib.AsyncExitStack() as stack:
        boards = {name: await stack.enter_async_context(wiring.open_board(config, name)) for name in names}
        while True:
            rows = []
            for name, board in boards.items():
                rows += status_rows(name, await board.reports(), await board.desired(), time.time())
            output.table(rows, _STATUS, live=watch)
            if not watch:
                return any(row["state"] == "halted" for row in rows)
            await asyncio.sleep(1)


def status_rows(route: str, reports: list[Report], desired: Desired, now_s: float) -> list[dict[str, object]]:
    """One row per lane, from the freshest heartbeat that owns it; silent processes are named as such."""
    best: dict[int, tuple[Report, LaneReport]] = {}
    rows: list[dict[str, object]] = []
    for report in sorted(reports, key=lambda r: r.at_s):
        for lane in report.lanes:
            best[lane.lane] = (report, lane)
        if not report.lanes and report.state != "stopped" and now_s - report.at_s <= _SILENT_S:
            rows.append({"route": route, "owner": report.instance, "state": report.state, "reason": report.reason})
    for number in sorted(best):
        report, lane = best[number]
        state, reason = lane.state, lane.reason or report.reason or report.throttle
        if report.state == "stopped":
            state, reason = "stopped", f"{report.instance} was stopped"
        elif now_s - report.at_s > _SILENT_S:
            state, reason = "silent", f"no heartbeat of {report.instance} for {now_s - report.at_s:.0f} s"
        elif desired.paused or number in desired.paused_lanes:
            reason = reason or "paused by an operator"
        rows.append(
            {
                "route": route,
                "lane": lane.name,
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
                "echoes": lane.echoes,
                "error": lane.error,
                "lost_records": lane.lost_records,
                "reason": reason,
                "hint": lane.hint,
            }
        )
    return rows


@relay_app.command("wait")
def wait(
    context: typer.Context,
    routes: RouteNames = None,
    lag_records: Annotated[int, typer.Option(min=0, help="Every lane's lag must be at or below this.")] = 0,
    timeout_s: Annotated[float, typer.Option(min=0, help="Give up after so many seconds.")] = 300.0,
) -> None:
    """Wait until running relays have copied everything that the sources hold; for scripts.

    Exits with 0 then, with 3 when a lane is halted, with 1 when time is up. While a source is written to, it waits for
    the first moment at which the lag was at or below --lag-records.

    Example: crossfade relay wait forward --timeout-s 60
    """
    output = output_of(context)
    config = output.config()
    _run(_wait(config, _routes(config, routes), lag_records, timeout_s, output))


async def _wait(config: Config, names: list[str], lag_records: int, timeout_s: float, output: Output) -> None:
    since_s = time.time()
    deadline_s = since_s + timeout_s
    async with contextlib.AsyncExitStack() as stack:
        boards = {name: await stack.enter_async_context(wiring.open_board(config, name)) for name in names}
        lanes = {name: len(await board.started()) for name, board in boards.items()}
        while True:
            rows = []
            behind = 0
            for name, board in boards.items():
                # a heartbeat from before this command could be older than the last write
                fresh = [report for report in await board.reports() if report.at_s > since_s + 3]
                found = [row for row in status_rows(name, fresh, Desired(), time.time()) if "lane" in row]
                behind += lanes[name] - len(found)
                rows += found
            halted = [row for row in rows if row["state"] == "halted"]
            if halted:
                output.table(halted, _STATUS)
                raise typer.Exit(3)
            lags = [row["lag_records"] for row in rows]
            if not behind and all(isinstance(lag, int) and lag <= lag_records for lag in lags):
                output.table(rows, _STATUS)
                return
            if time.time() > deadline_s:
                output.table(rows, _STATUS)
                output.note(f"not copied within {timeout_s:g} s" + ("; no relay reports" if not rows else ""))
                raise typer.Exit(1)
            await asyncio.sleep(0.5)


@relay_app.command("pause")
def pause(context: typer.Context, route: RouteName, lanes: LaneNames = None) -> None:
    """Stop copying; the relays keep their lanes and claims. Takes effect within two seconds."""
    _change(context, route, lambda desired: _pause(desired, lanes, paused=True))


@relay_app.command("resume")
def resume(
    context: typer.Context,
    route: RouteName,
    lanes: LaneNames = None,
    accept_loss: Annotated[
        str | None,
        typer.Option("--accept-loss", help="Why the loss of a halted lane is accepted; kept in the route's journal."),
    ] = None,
) -> None:
    """Copy again. A lane halted by its source goes on only with --accept-loss and the reason.

    Example: crossfade relay resume forward --lane 3 --accept-loss "test data, trimmed on purpose"
    """
    if accept_loss is not None:
        if not lanes:
            raise UsageError("--accept-loss needs --lane", hint="name each lane whose loss you accept")
        output = output_of(context)
        _run(_accept(output.config(), route, lanes, accept_loss, output))
    _change(context, route, lambda desired: _pause(desired, lanes, paused=False))


@relay_app.command("rate")
def rate(
    context: typer.Context,
    route: RouteName,
    records_per_s: Annotated[float, typer.Argument(help="Records/s of each relay process; 0 lifts the limit.")],
) -> None:
    """Limit the rate of running relays, at once.

    Example: crossfade relay rate forward 20000
    """
    if records_per_s < 0:
        raise UsageError(f"a rate of {records_per_s:g} records/s is less than nothing", hint="0 lifts the limit")

    def change(desired: Desired) -> None:
        desired.rate_records_per_s = records_per_s

    _change(context, route, change)


relay_app.command("reshard")(reshard)


def _pause(desired: Desired, lanes: list[int] | None, *, paused: bool) -> None:
    if lanes:
        kept = set(desired.paused_lanes) - set(lanes)
        desired.paused_lanes = sorted(kept | set(lanes) if paused else kept)
    else:
        desired.paused = paused
        desired.paused_lanes = [] if not paused else desired.paused_lanes


def _change(context: typer.Context, route: str, change: Change) -> None:
    output = output_of(context)
    config = output.config()
    _routes(config, [route])
    desired = _run(_change_desired(config, route, change))
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


async def _change_desired(config: Config, route: str, change: Change) -> Desired:
    async with wiring.open_board(config, route) as board:
        for _ in range(5):
            desired, version = await board.desired_with_version()
            change(desired)
            try:
                await board.change_desired(desired, version)
                return desired
            except VersionConflict:
                continue
    raise VersionConflict("the route's desired state keeps changing", hint="run the command again")


async def _accept(config: Config, route: str, lanes: list[int], reason: str, output: Output) -> None:
    async with wiring.open_board(config, route) as board:
        halted = {
            lane.lane: lane for report in await board.reports() for lane in report.lanes if lane.state == "halted"
        }
        not_halted = [lane for lane in lanes if lane not in halted]
        if not_halted:
            raise RefusedByRail(
                f"lanes {not_halted} of route {route!r} are not halted: there is no loss to accept",
                hint=f"see `crossfade relay status {route}`",
            )
    decisions = {
        str(lane): AcceptedLoss(
            error=halted[lane].error,
            position=halted[lane].position,
            by=f"{getpass.getuser()}@{socket.gethostname()}",
            at=datetime.now(UTC).isoformat(timespec="seconds"),
            reason=reason,
        )
        for lane in lanes
    }

    def change(desired: Desired) -> None:
        desired.accepted = desired.accepted | decisions
        desired.journal = [*desired.journal, *decisions.values()][-1000:]

    await _change_desired(config, route, change)
    for lane in lanes:
        output.note(f"accepted: {halted[lane].name}: {halted[lane].reason}")


_T = TypeVar("_T")


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end; of several failed tasks the first error is the one that is told."""
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        raise _first(group) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _routes(config: Config, names: list[str] | None) -> list[str]:
    for name in names or []:
        if name not in config.routes:
            raise wiring.unknown_route(config, name)
    found = names or list(config.routes)
    if not found:
        raise UsageError(f"{config.path} has no routes", hint="add one under `routes:`, or run `crossfade init`")
    return found


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match and int(match[1]) < int(match[2]):
        return int(match[1]), int(match[2])
    raise UsageError(f"--shard {text!r} is no shard", hint="use i/n with 0 <= i < n, such as 0/4")


def _host_name() -> str:
    return re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower())[:63].strip("-") or "relay"
