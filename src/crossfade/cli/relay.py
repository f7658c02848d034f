"""`crossfade relay ...`: start and run; the other commands are registered here.

`run` is the only daemon. The others talk to the board of the target broker, so they work from any host.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import Coroutine
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec
import structlog
import typer

from .. import wiring
from ..brokers.protocol import From, Start
from ..config import Config, RouteSettings
from ..errors import UsageError, first_of
from ..relay.beginning import start_lanes
from ..relay.reporter import HealthServer
from ..telemetry import setup_logging
from .output import Column, Output, output_of
from .relay_fleet import Fleet, follow_new_lanes
from .relay_reshard import reshard
from .relay_status import status, wait
from .relay_stop import Ending
from .relay_wishes import journal, pause, rate, resume
from .routes import RouteNames, chosen_routes
from .runtime import allow_open_files, calm_collector, keep_freed_memory

relay_app = typer.Typer(
    no_args_is_help=True,
    help="Copy streams from one broker to another, exactly once.\n\n"
    "A lane is started once (`relay start` writes its first marker into the target) and then run for ever "
    "(`relay run`, any number of processes). Everything else steers the running relays through the board.",
)

#: the metrics port where the configuration names none
_PORT_DEFAULT = next(field.default for field in msgspec.structs.fields(RouteSettings) if field.name == "metrics_port")


@relay_app.command("start")
def start(
    context: typer.Context,
    routes: RouteNames = None,
    begin: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="earliest, latest, time:2026-01-01T00:00:00Z or position:ID (start after it; see --lane); "
            "default: the file's.",
        ),
    ] = None,
    lane: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Start this source lane alone (`number` in relay status); may be repeated."),
    ] = None,
) -> None:
    """Write the first marker of each lane into the target: where its copy begins.

    Lanes that have a marker keep it, so starting twice changes nothing. Lanes that came after the first start begin at
    their first record, unless both --lane and --from are given.

    Example: crossfade relay start forward --from earliest
    """
    output = output_of(context)
    where = None if begin is None else parse_start(begin)
    config = output.config()
    names = chosen_routes(config, routes)
    if lane and len(names) > 1:
        raise UsageError("--lane is a lane of one route", hint="name the route: `crossfade relay start ROUTE --lane N`")
    _run(_start(config, names, where, set(lane or ()), output))


async def _start(config: Config, names: list[str], begin: Start | None, chosen: set[int], output: Output) -> None:
    rows = []
    for name in names:
        async with wiring.open_route(config, name) as opened:
            where = begin or opened.start
            every = set(range(opened.route.source_lanes))
            if beyond := chosen - every:
                raise UsageError(
                    f"route {name!r} has no lane {min(beyond)}",
                    hint=f"its lanes are 0 to {opened.route.source_lanes - 1}",
                )
            lanes = chosen or every
            # `from` of the file is where the first lanes begin. Lanes that came later begin at their first record, but
            # for those of which an operator says where: the way out where they hold copies already.
            later = () if chosen and begin else tuple(lane for lane in opened.new_lanes if lane in lanes)
            for line in await follow_new_lanes(replace(opened, new_lanes=later)):
                output.note(line)
            places = await start_lanes(
                opened.route,
                opened.source,
                opened.target,
                opened.board,
                where,
                sorted(lanes.difference(later)),
                by_hand=begin is not None,
            )
            rows.append(
                {
                    "route": name,
                    "lanes": len(lanes),
                    "started": len(places) + len(later),
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
            if moment.tzinfo is not None:
                return Start(From.TIME, str(round(moment.timestamp() * 1000)))
            raise UsageError(
                f"--from {text!r} is no beginning", hint="use a time with its zone, such as time:2026-01-31T12:00:00Z"
            )
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
            help="Name of this process; the same name back after a crash goes on at once. "
            "Default: CROSSFADE_INSTANCE, else the host name."
        ),
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="i/n: take lanes by hand instead of sharing them through a group.")
    ] = None,
    start_first: Annotated[
        bool, typer.Option("--start", help="Start lanes that were never started, as `relay start` does.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            help="Port of /metrics, /livez, /readyz; 0 = none. Each process of a host needs its own.",
        ),
    ] = None,
) -> None:
    """Copy until stopped. SIGTERM, SIGHUP and Ctrl-C finish the append under way and end within five seconds.

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
    part = _parse_shard(shard)
    config = output.config()
    ending = Ending()
    fleet = Fleet(config, chosen_routes(config, routes), name, part, start_first=start_first)
    _run(_serve(fleet, config.routes[fleet.names[0]].metrics_port, metrics_port, ending))
    ending.finish()


async def _serve(fleet: Fleet, configured_port: int, port: int | None, ending: Ending) -> None:
    keep_freed_memory()
    allow_open_files()
    is_stopping = False

    def stop() -> None:
        nonlocal is_stopping
        is_stopping = True
        ending.begin()
        opening.cancel()
        fleet.stop()

    try:
        ending.doing = "opening the routes"
        opening = asyncio.create_task(fleet.open())
        # Before anything is waited for: the first process of a container that has no handler never gets a SIGTERM.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN or number is not signal.SIGHUP:  # else: nohup
                asyncio.get_running_loop().add_signal_handler(number, stop)
        await asyncio.gather(opening, return_exceptions=True)
        if is_stopping:  # whatever the opening made of it: nothing runs yet
            return
        opening.result()
        ending.doing = "copying"
        health = HealthServer(fleet.copiers, fleet.metrics)
        await _listen(health, port, configured_port)
        calm_collector()
        try:
            await fleet.run()
        except BaseException as error:
            ending.failed(first_of(error))
            raise
        finally:
            ending.doing = "closing the metrics port"
            await health.close()
    finally:
        ending.doing = "closing connections"
        await fleet.close()
        ending.doing = "ending tasks and threads"


async def _listen(health: HealthServer, asked: int | None, configured: int) -> None:
    """Open the port that was asked for, else the configured one. Raises UsageError where that one is taken."""
    port = configured if asked is None else asked
    if not port:
        return
    try:
        await health.listen(port)
    except UsageError as error:
        if asked is not None or port != _PORT_DEFAULT:
            raise
        # Nobody chose this port: a second process on the host must copy all the same.
        structlog.get_logger().warning("no metrics of this process", reason=error.message, hint=error.hint)


relay_app.command("status")(status)
relay_app.command("wait")(wait)


relay_app.command("pause")(pause)
relay_app.command("resume")(resume)
relay_app.command("rate")(rate)
relay_app.command("journal")(journal)
relay_app.command("reshard")(reshard)


_T = TypeVar("_T")


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end; of several failed tasks the first error is the one that is told."""
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        raise first_of(group) from None


def _parse_shard(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match and int(match[1]) < int(match[2]):
        return int(match[1]), int(match[2])
    raise UsageError(f"--shard {text!r} is no shard", hint="use i/n with 0 <= i < n, such as 0/4")


def _host_name() -> str:
    return re.sub(r"[^a-z0-9-]+", "-", socket.gethostname().lower())[:63].strip("-") or "relay"
