"""`crossfade uninstall`: what Crossfade left on the brokers for a route, listed first and removed only when told to.

Invariant: nothing is removed without `--yes`, and never under a running relay, or where one would not be seen. What is
removed is exactly what was listed; afterwards the brokers are asked again, and what is still there is a failure. A
broker that gives no answer keeps nothing from being listed, and removed, on the others; it is told, and the command
fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer
from msgspec import structs

from ..errors import BrokerError, CrossfadeError, RefusedByRail, UsageError
from .output import Column, output_of
from .relay_alive import refuse_running
from .routes import OneRoute, chosen_routes

if TYPE_CHECKING:
    from ..config import Config

uninstall_app = typer.Typer()

#: how often, and how far apart, the brokers are asked whether something is gone
_LOOKS = 6
_LOOK_PAUSE_S = 0.5
_ROLES = ("target", "source")
#: what only a start or a relay leaves on the target: it tells that the route's relays report there. An operator's wish
#: (`desired`) tells nothing: it was written to whatever target the file named. A start that was refused has written no
#: document yet, but has claimed its lanes before it gave births on the source.
_OF_RELAYS = (*(f"document {kind}/" for kind in ("started", "status", "shards", "target")), "key crossfade:lane:")
#: what is told of each thing that was found
_LISTED = "would be removed"
_REMOVED = "removed"
_STILL_THERE = "still there"
_DOUBTFUL = "may be still there"
_OTHER = "of a route that is not in this file"
_COLUMNS = [Column("route"), Column("broker"), Column("name"), Column("state")]


class Left(NamedTuple):
    """One thing that a route left on a broker."""

    route: str
    broker: str
    name: str


class Trouble(NamedTuple):
    """A broker that could not be asked, or did not let us remove everything."""

    route: str
    broker: str
    state: str
    error: CrossfadeError


@dataclass
class Outcome:
    """What was found, what became of each, and where the look or the removal failed."""

    states: dict[Left, str] = field(default_factory=dict)
    troubles: list[Trouble] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        """How many of those that were to be removed are not known to be gone."""
        return sum(state in (_STILL_THERE, _DOUBTFUL) for state in self.states.values())

    def add(self, other: Outcome) -> None:
        """Take over what another look showed; the later one knows better."""
        self.states |= other.states
        self.troubles += [each for each in other.troubles if each.state not in self._told(each)]

    def of(self, route: str) -> Outcome:
        """The same as that route's, each once."""
        found = Outcome({left._replace(route=route): state for left, state in self.states.items()})
        for trouble in self.troubles:
            found.add(Outcome({}, [trouble._replace(route=route)]))
        return found

    def rows(self) -> list[dict[str, Any]]:
        """What the table shows."""
        rows = [left._asdict() | {"state": state} for left, state in self.states.items()]
        return rows + [Left(at.route, at.broker, "")._asdict() | {"state": at.state} for at in self.troubles]

    def _told(self, trouble: Trouble) -> set[str]:
        return {each.state for each in self.troubles if each[:2] == trouble[:2]}


@uninstall_app.command()
def uninstall(
    context: typer.Context,
    route: OneRoute = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove what is listed.")] = False,
    route_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="What a route left that is not in this file, by its id.")
    ] = None,
    unseen: Annotated[
        bool,
        typer.Option("--unseen", help="Also where nothing tells whether a relay of the route runs. See to it first."),
    ] = False,
) -> None:
    """List what Crossfade left on the brokers; with --yes, remove it.

    That is markers, claims, the board's documents, births on source streams and quarantined records: a removed route
    cannot be resumed, and quarantined records are gone. Copied records stay. Refused (exit code 4) while a relay of
    the route is running.

    What is of routes that are not in this file (an earlier id, or another file on the same brokers) is listed too, and
    stays; --id removes it.

    Where a route has a group on its source and its relays left nothing on these brokers (the file names another target
    by now), they report elsewhere and would not be seen: that is refused (exit code 4) unless --unseen is given.

    A broker that gives no answer is listed as such, and the others are cleaned all the same, unless it is the one that
    tells whether relays run. Run it again when the broker is back; with --unseen, if it is the source.

    \b
    Examples:
      crossfade uninstall                  lists, removes nothing
      crossfade uninstall forward --yes
      crossfade uninstall --id 3f9c2a71 --yes
    """
    output = output_of(context)
    config = output.config()
    names = chosen_routes(config, None if route is None else [route])
    _refuse_no_id(route_id)
    others = Outcome()
    if route_id is not None:
        found = asyncio.run(_uninstall_id(config, names, route_id, remove=yes, unseen=unseen))
    else:
        found = asyncio.run(_uninstall(config, names, remove=yes, unseen=unseen))
    try:
        if route_id is None:
            others = asyncio.run(_others(config, names))
    finally:  # what was removed is told whatever becomes of this look
        output.table(found.rows() + Outcome(others.states).rows(), _COLUMNS)
    at_fault = {each.broker for each in found.troubles}  # their rows say it
    untold = dict.fromkeys(each.state for each in others.troubles if each.broker not in at_fault)
    output.note_lines("\n".join(untold))
    if others.states:
        output.note(f"what is {_OTHER} stays; --id ID removes it, if no other file has that route")
    if found.states and not yes:
        output.note("nothing was removed; --yes removes what is listed")
    if found.troubles:
        raise found.troubles[0].error
    if found.remaining:
        raise CrossfadeError(
            f"{found.remaining} of {len(found.states)} could not be removed", hint="see the list; then run it again"
        )
    if not found.states:
        what = "these routes" if others.states or untold else "Crossfade"
        what = what if route_id is None else f"a route with id {route_id}"
        output.note(f"nothing of {what} is left on these brokers")


def _refuse_no_id(route_id: str | None) -> None:
    """Raises UsageError for what no route can be called."""
    from ..config.shape import NAME

    if route_id is not None and not NAME.fullmatch(route_id):
        raise UsageError(
            f"--id {route_id!r} is no id of a route, which is of the form {NAME.pattern}",
            hint="`crossfade uninstall` lists the ids of routes that are not in this file",
        )


async def _others(config: Config, names: Sequence[str]) -> Outcome:
    """What is of routes that the file does not have, on the brokers of these routes."""
    from .. import wiring

    mine = {settings.id for settings in config.routes.values()}
    found = Outcome()
    for name in names:
        for role in reversed(_ROLES):
            broker = _broker(config, name, role)
            try:
                async with wiring.open_inspectors(config, name, (role,), known_lanes=0) as [(_, _, inspector)]:
                    for other in sorted(await inspector.routes() - mine):
                        left = [each for each in await inspector.footprint(other) if not _is_shared(each)]
                        found.add(Outcome(dict.fromkeys((Left(other, broker, each) for each in left), _OTHER)))
            except CrossfadeError as error:
                state = f"what is {_OTHER} could not be looked for: {error.message}"
                found.add(Outcome({}, [Trouble(name, broker, state, error)]))
    return found


async def _uninstall_id(config: Config, names: Sequence[str], route_id: str, *, remove: bool, unseen: bool) -> Outcome:
    """As `_uninstall`, of a route that the file does not have: on the brokers and streams of these routes."""
    for name, settings in config.routes.items():
        if settings.id == route_id:
            raise UsageError(f"{route_id} is the id of route {name!r}", hint=f"crossfade uninstall {name}")
    # Nobody knows which way it copied: its relays may report on either end.
    ways = {f"{route_id} at {name}": structs.replace(config.routes[name], id=route_id) for name in names}
    back = {f"{name}, back": structs.replace(way, source=way.target, target=way.source) for name, way in ways.items()}
    asked = structs.replace(config, routes=ways | back)
    for name in asked.routes if remove else ():
        try:
            await refuse_running(asked, name)
        except BrokerError as error:
            if not unseen:
                error.hint = "a relay of the route may report there; if none of it runs anywhere, add --unseen"
                raise
    if remove and not unseen:
        _refuse_unseen(
            route_id,
            await _go_over(asked, list(ways), (), remove=False),
            "a relay of another file may be running on it",
            "uninstall it with the file that has it; if no relay of it runs anywhere, add --unseen",
        )
    return (await _go_over(asked, list(ways), (), remove=remove)).of(route_id)


def _refuse_unseen(route_id: str, found: Outcome, danger: str, hint: str) -> None:
    """Raises RefusedByRail where the route has a group, but its relays left nothing on what was asked."""
    groups = [each for each in found.states if each.name.startswith("group ")]
    if groups and not any(map(_is_of_relays, found.states)):
        raise RefusedByRail(
            f"route {route_id} has {groups[0].name} on {groups[0].broker}, but reports on none of these brokers: "
            f"{danger}",
            hint=hint,
        )


async def _uninstall(config: Config, names: Sequence[str], *, remove: bool, unseen: bool) -> Outcome:
    """What these routes left, and what became of it."""
    for name in names if remove else ():
        # All of them before the first removal: a refusal must not leave half of the routes removed.
        await refuse_running(config, name)
        if not unseen:
            await _refuse_changed(config, name)
    return await _go_over(config, names, names, remove=remove)


async def _refuse_changed(config: Config, name: str) -> None:
    """Raises RefusedByRail where the source was read, but the target does not know the route.

    Raises BrokerError where the target does not say.
    """
    at_source = _broker(config, name, "source")
    found = await _look(config, name, (), await _known_lanes(config, name))
    for trouble in found.troubles:
        if trouble.broker != at_source:
            raise trouble.error
    # A group on a Kafka target is the relays' own, and may outlive the documents where a removal was cut off. What
    # relays left beside the source tells nothing of this target: the one that they write to may be on that server.
    telling = {left: state for left, state in found.states.items() if _is_of_relays(left) is (left.broker != at_source)}
    _refuse_unseen(
        config.routes[name].id,
        Outcome(telling),
        f"{_broker(config, name, 'target')} may be another target than that of a relay that is running on it",
        "uninstall it with the file that it was started with; if no relay of it runs anywhere (as where an earlier "
        "uninstall could not reach the source), add --unseen",
    )


async def _go_over(config: Config, names: Sequence[str], leaving: Sequence[str], *, remove: bool) -> Outcome:
    """As `_uninstall`, without looking for relays. `leaving`: the routes of the file that go."""
    found = Outcome()
    for name in names:
        # Now, because the board that tells it goes too.
        lanes = await _known_lanes(config, name)
        look = await _look(config, name, leaving, lanes)
        found.add(look)
        if remove and look.states:
            found.add(await _erase(config, name, lanes, look.states))
            found.add(await _look_again(config, name, leaving, lanes, look.states))
    return found


async def _look_again(
    config: Config, name: str, leaving: Sequence[str], lanes: int, removed: Collection[Left]
) -> Outcome:
    """What became of the removed. A broker that lags behind the others is asked again for a while."""
    brokers = {each.broker for each in removed}
    for left in reversed(range(_LOOKS)):
        after = await _look(config, name, leaving, lanes, brokers=brokers)
        if left == 0 or not (after.troubles or any(each in after.states for each in removed)):
            break
        await asyncio.sleep(_LOOK_PAUSE_S)
    silent = {each.broker for each in after.troubles}
    states = {each: _DOUBTFUL if each.broker in silent else _REMOVED for each in removed}
    return Outcome(states | {each: _STILL_THERE for each in removed if each in after.states}, after.troubles)


async def _look(
    config: Config,
    name: str,
    leaving: Sequence[str],
    lanes: int,
    *,
    brokers: Collection[str] | None = None,
) -> Outcome:
    """What the route left, on these of its brokers (None = both). `lanes`: it had so many at least."""
    from .. import wiring

    route_id = config.routes[name].id
    left: list[Left] = []
    troubles: list[Trouble] = []
    for role in _ROLES:
        broker = _broker(config, name, role)
        if brokers is not None and broker not in brokers:
            continue
        try:
            async with wiring.open_inspectors(config, name, (role,), known_lanes=lanes) as [(_, _, inspector)]:
                names = [each for each in await inspector.footprint(route_id) if Left(name, broker, each) not in left]
                keeps = any(map(_is_shared, names))
                if keeps and (not leaving or await _others_read(config, name, broker, leaving)):
                    names = [each for each in names if not _is_shared(each)]
                left = [Left(name, broker, each) for each in names] + left
        except CrossfadeError as error:
            troubles.append(Trouble(name, broker, f"could not be asked: {error.message}", error))
    return Outcome(dict.fromkeys(left, _LISTED), troubles)


async def _erase(config: Config, name: str, lanes: int, listed: Collection[Left]) -> Outcome:
    """Remove what was listed; the troubles with it.

    First what the source alone has: where a cut leaves anything of it, the board on the target still tells that it is
    this route's. Then the target, before what both have: where they are one service, the source's account may see what
    it may not remove.
    """
    from .. import wiring

    route_id = config.routes[name].id
    names = {role: [each.name for each in listed if each.broker == _broker(config, name, role)] for role in _ROLES}
    alone = [each for each in names["source"] if each not in names["target"]]
    both = [each for each in names["source"] if each in names["target"]]
    done = Outcome()
    for role, wanted in (("source", alone), ("target", names["target"]), ("source", both)):
        if not wanted:
            continue
        try:
            async with wiring.open_inspectors(config, name, (role,), known_lanes=lanes) as [(_, _, inspector)]:
                there = await inspector.footprint(route_id)
                if left := [each for each in wanted if each in there]:
                    await inspector.erase(route_id, left)
        except CrossfadeError as error:
            broker = _broker(config, name, role)
            state = f"not everything could be removed: {error.message}"
            done.add(Outcome({}, [Trouble(name, broker, state, error)]))
    return done


async def _known_lanes(config: Config, name: str) -> int:
    """How many lanes the board says that the route had; 0 where it cannot be asked, or nothing depends on it."""
    from .. import wiring
    from ..config import RedisSide

    route = config.routes[name]
    sides = [config.streams[route.stream].sides[broker] for broker in (route.source, route.target)]
    if not any(isinstance(side, RedisSide) and side.is_discovered for side in sides):
        return 0
    try:
        async with wiring.open_board(config, name) as board:
            return max(await board.first_lanes(), max(await board.started(), default=-1) + 1)
    except CrossfadeError:  # what its broker shows is told by the look itself
        return 0


def _broker(config: Config, name: str, role: str) -> str:
    route = config.routes[name]
    return route.target if role == "target" else route.source


def _is_of_relays(left: Left) -> bool:
    return left.name.startswith(_OF_RELAYS)


def _is_shared(name: str) -> bool:
    """Made by an earlier release for every route that reads the stream."""
    return name.startswith("shared ")


async def _others_read(config: Config, name: str, broker: str, leaving: Sequence[str]) -> bool:
    """Whether a route that stays was started on what this one has on `broker`: what they share is needed."""
    from .. import wiring
    from ..config.overlap import may_read_of

    for other in config.routes:
        if other not in leaving and may_read_of(config, other, name, broker):
            try:
                async with wiring.open_board(config, other) as board:
                    if await board.started():
                        return True
            except CrossfadeError:
                return True  # it cannot be asked
    return False
