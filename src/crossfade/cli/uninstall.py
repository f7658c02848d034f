"""`crossfade uninstall`: what Crossfade left on the brokers for a route, listed first and removed only when told to.

Invariant: nothing is removed without `--yes`, and never under a running relay. What is removed is exactly what was
listed; afterwards the brokers are asked again, and what is still there is a failure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from msgspec import structs

from ..errors import CrossfadeError, RefusedByRail, UsageError
from .doctor import routes_of
from .output import Column, complete_routes, output_of

if TYPE_CHECKING:
    from ..config import Config
    from ..relay.documents import Report, RouteBoard

uninstall_app = typer.Typer()

#: a process whose heartbeat is older is gone
SILENT_S = 10.0
#: how often, and how far apart, it is looked whether a heartbeat that seems old goes on; relays beat once a second
_LIFE_LOOKS = 6
_LIFE_PAUSE_S = 0.5
#: how often, and how far apart, the brokers are asked whether something is gone
_LOOKS = 6
_LOOK_PAUSE_S = 0.5
_OTHER = "of a route that is not in this file"
_COLUMNS = [Column("route"), Column("broker"), Column("name"), Column("state")]


class Left(NamedTuple):
    """One thing that a route left on a broker."""

    route: str
    broker: str
    name: str


@uninstall_app.command()
def uninstall(
    context: typer.Context,
    route: Annotated[
        str | None,
        typer.Argument(help="Only this route; by default all of them.", autocompletion=complete_routes),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed.")] = False,
    route_id: Annotated[
        str, typer.Option("--id", metavar="ID", help="What a route left that is not in this file, by its id.")
    ] = "",
    unseen: Annotated[
        bool,
        typer.Option(
            "--unseen", help="With --id: also where nothing tells whether a relay of it runs. See to it first."
        ),
    ] = False,
) -> None:
    """List what Crossfade left on the brokers; with --yes, remove it.

    That is markers, claims, the board's documents, births on source streams and quarantined records: a removed route
    cannot be resumed, and quarantined records are gone. Copied records stay. Refused (exit code 4) while a relay of
    the route is running.

    What is of routes that are not in this file (an earlier id, or another file on the same brokers) is listed too, and
    stays; --id removes it. Where such a route has a group on its source and no document on these brokers, its relays
    report elsewhere and would not be seen: that is refused (exit code 4) unless --unseen is given.

    \b
    Examples:
      crossfade uninstall                  lists, removes nothing
      crossfade uninstall forward --yes
      crossfade uninstall --id 3f9c2a71 --yes
    """
    output = output_of(context)
    config = output.config()
    names = routes_of(config, route)
    if unseen and not route_id:
        raise UsageError("--unseen goes with --id", hint="relays of the routes of this file can be seen")
    others: list[Left] = []
    untold = ""
    if route_id:
        found, remaining = asyncio.run(_uninstall_id(config, names, route_id, remove=yes, unseen=unseen))
    else:
        found, remaining = asyncio.run(_uninstall(config, names, names, remove=yes))
    state = {True: "removed", False: "would be removed"}[yes]
    rows = [each._asdict() | {"state": "still there" if each in remaining else state} for each in found]
    try:
        others = [] if route_id else asyncio.run(_others(config, names))
    except CrossfadeError as error:
        untold = f"what is {_OTHER} could not be looked for: {error.message}"
    finally:  # what was removed is told whatever becomes of this look
        output.table(rows + [each._asdict() | {"state": _OTHER} for each in others], _COLUMNS)
    output.note_lines(untold)
    if remaining and yes:
        raise CrossfadeError(
            f"{len(remaining)} of {len(found)} could not be removed", hint="see the list; then run it again"
        )
    if others:
        output.note(f"what is {_OTHER} stays; --id ID removes it, if no other file has that route")
    if not found:
        what = f"a route with id {route_id}" if route_id else "these routes" if others or untold else "Crossfade"
        output.note(f"nothing of {what} is left on these brokers")
    elif not yes:
        output.note("nothing was removed; --yes removes what is listed")


async def _others(config: Config, names: Sequence[str]) -> list[Left]:
    """What is of routes that the file does not have, on the brokers of these routes."""
    from .. import wiring

    mine = {settings.id for settings in config.routes.values()}
    found: dict[Left, None] = {}
    for name in names:
        async with wiring.open_inspectors(config, name) as inspectors:
            for broker, _role, inspector in inspectors:
                for other in sorted(await inspector.routes() - mine):
                    left = [each for each in await inspector.footprint(other) if not _is_shared(each)]
                    found |= dict.fromkeys(Left(other, broker, each) for each in left)
    return list(found)


async def _uninstall_id(
    config: Config, names: Sequence[str], route_id: str, *, remove: bool, unseen: bool
) -> tuple[list[Left], list[Left]]:
    """As `_uninstall`, of a route that the file does not have: on the brokers and streams of these routes."""
    for name, settings in config.routes.items():
        if settings.id == route_id:
            raise UsageError(f"{route_id} is the id of route {name!r}", hint=f"crossfade uninstall {name}")
    # Nobody knows which way it copied: its relays may report on either end.
    ways = {f"{route_id} at {name}": structs.replace(config.routes[name], id=route_id) for name in names}
    back = {f"{name}, back": structs.replace(way, source=way.target, target=way.source) for name, way in ways.items()}
    asked = structs.replace(config, routes=ways | back)
    for name in back if remove else ():
        await refuse_running(asked, name)
    if remove and not unseen:
        _refuse_unseen(route_id, (await _uninstall(asked, list(ways), (), remove=False))[0])
    found, remaining = await _uninstall(asked, list(ways), (), remove=remove)
    return _of(route_id, found), _of(route_id, remaining)


def _refuse_unseen(route_id: str, left: Sequence[Left]) -> None:
    """Raises RefusedByRail where the route has a group, but no board that was asked has anything of it."""
    groups = [each for each in left if each.name.startswith("group ")]
    if groups and not any(each.name.startswith("document ") for each in left):
        raise RefusedByRail(
            f"route {route_id} has {groups[0].name} on {groups[0].broker}, but reports on none of these brokers: a "
            "relay of another file may be running on it",
            hint="uninstall it with the file that has it; if no relay of it runs anywhere, add --unseen",
        )


def _of(route_id: str, left: Sequence[Left]) -> list[Left]:
    """The same as that route's, each once."""
    return list(dict.fromkeys(each._replace(route=route_id) for each in left))


async def _uninstall(
    config: Config, names: Sequence[str], leaving: Sequence[str], *, remove: bool
) -> tuple[list[Left], list[Left]]:
    """What was found, and what of it is there after the removal. `leaving`: the routes of the file that go."""
    found: list[Left] = []
    remaining: list[Left] = []
    for name in names if remove else ():
        # All of them before the first removal: a refusal must not leave half of the routes removed.
        await refuse_running(config, name)
    for name in names:
        left = await _footprint(config, name, leaving, erase=remove)
        found += [each for each in left if each not in found]
        if remove:
            still_there = await _still_there(config, name, leaving, left)
            remaining += [each for each in still_there if each not in remaining]
    return found, remaining


async def _still_there(config: Config, name: str, leaving: Sequence[str], removed: Sequence[Left]) -> list[Left]:
    """What of the removed a broker still shows; one that lags behind the others is asked again for a while."""
    for left in reversed(range(_LOOKS)):
        after = set(await _footprint(config, name, leaving, erase=False))
        still_there = [each for each in removed if each in after]
        if not still_there or left == 0:
            return still_there
        await asyncio.sleep(_LOOK_PAUSE_S)
    return []


async def _footprint(config: Config, name: str, leaving: Sequence[str], *, erase: bool) -> list[Left]:
    from .. import wiring

    route_id = config.routes[name].id
    left: list[Left] = []
    async with wiring.open_inspectors(config, name) as inspectors:
        # The target first: where both are one service, the source's account may see what it may not remove.
        for broker, _role, inspector in reversed(inspectors):
            names = [each for each in await inspector.footprint(route_id) if Left(name, broker, each) not in left]
            keeps = any(map(_is_shared, names))
            if keeps and (not leaving or await _others_read(config, name, broker, leaving)):
                names = [each for each in names if not _is_shared(each)]
            left = [Left(name, broker, each) for each in names] + left
            if erase and names:
                await inspector.erase(route_id, names)
    return left


def _is_shared(name: str) -> bool:
    """Made by an earlier release for every route that reads the stream."""
    return name.startswith("shared ")


async def _others_read(config: Config, name: str, broker: str, leaving: Sequence[str]) -> bool:
    """Whether a route that stays was started on what this one has on `broker`: what they share is needed."""
    from .. import wiring

    for other in config.routes:
        if other not in leaving and wiring.may_read_of(config, other, name, broker):
            try:
                async with wiring.open_board(config, other) as board:
                    if await board.started():
                        return True
            except CrossfadeError:
                return True  # it cannot be asked
    return False


async def refuse_running(config: Config, name: str) -> None:
    """Raises RefusedByRail while a relay of the route gives signs of life."""
    from .. import wiring

    async with wiring.open_board(config, name) as board:
        running = await _running(board)
    if running:
        raise RefusedByRail(
            f"route {name!r} has running relays: {', '.join(running)}",
            hint="stop them first (SIGTERM), then run it again",
        )


async def _running(board: RouteBoard) -> list[str]:
    """Names of the relay processes that live. It takes a few seconds where one may have died without a word."""
    reports = await board.reports()
    seen = {report.instance: report.at_s for report in reports}
    running = running_instances(reports, seen, time.time())
    for _ in range(_LIFE_LOOKS):
        if running or all(report.state == "stopped" for report in reports):
            break
        await asyncio.sleep(_LIFE_PAUSE_S)
        reports = await board.reports()
        running = running_instances(reports, seen, time.time())
    return running


def running_instances(reports: Sequence[Report], seen: Mapping[str, float], now_s: float) -> list[str]:
    """Names of the relay processes that did not stop, and whose heartbeat is fresh or another than was `seen`.

    Another heartbeat is a sign of life whatever it says of the time: the clocks of two hosts differ.
    """
    return [
        report.instance
        for report in reports
        if report.state != "stopped"
        and (abs(now_s - report.at_s) <= SILENT_S or report.at_s != seen.get(report.instance))
    ]
