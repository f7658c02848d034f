"""`crossfade relay reshard`: into how many shards a route is split by hand, and the safe way to change it.

Hides nothing but the words: the new number is published on the target's board first, then every writer of the old split
is fenced, so that no lane ever has two. Registered by `cli.relay`.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from .. import wiring
from ..config import Config
from ..errors import RefusedByRail, UsageError
from .output import Column, Output, output_of
from .routes import complete_routes


def reshard(
    context: typer.Context,
    route: Annotated[str, typer.Argument(help="The route.", autocompletion=complete_routes)],
    shards: Annotated[int, typer.Argument(min=1, metavar="N", help="How many shards there are from now on.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
) -> None:
    """Change into how many shards a route is split by hand (`relay run --shard i/N`).

    Publishes N on the target, then fences every writer of the old split: its processes end, with a hint. Start the new
    ones then. Nothing is copied twice or left out, whatever still runs. Only for Kafka targets; running it again after
    an interruption finishes what was begun.

    Example: crossfade relay reshard forward 4
    """
    output = output_of(context)
    config = output.config()
    asyncio.run(_reshard(config, route, shards, yes, output))


async def _reshard(config: Config, name: str, shards: int, yes: bool, output: Output) -> None:
    async with wiring.open_split(config, name) as split:
        old = await split.shards()
        if shards > split.lanes:
            raise UsageError(
                f"route {name!r} has {split.lanes} lanes: of {shards} shards some would have none",
                hint=f"split it into {split.lanes} shards at most",
            )
        plan = [
            {
                "shard": f"{index}/{shards}",
                "lanes": len(range(index, split.lanes, shards)),
                "command": f"crossfade relay run {name} --shard {index}/{shards}",
            }
            for index in range(shards)
        ]
        output.table(plan, [Column("shard"), Column("lanes", right=True), Column("command")])
        if old == shards and not await split.is_unfinished():
            output.note(f"route {name} is split into {shards} shards already; nothing to do")
            return
        before = f"{old} shards" if old else "no shards yet"
        output.note(f"route {name}: from {before} to {shards}; running processes of the old split are fenced and end")
        if not yes and (output.is_json or not sys.stdin.isatty()):
            raise RefusedByRail(
                "the split changes which processes may copy and there is nobody to ask",
                hint="look at the plan above, then add --yes",
            )
        if not yes and not typer.confirm("Change the split?", err=True):
            output.note("nothing was changed")
            raise typer.Exit(1)
        await split.reshard(shards)
        output.note(f"route {name} is split into {shards} shards; start the processes above")
