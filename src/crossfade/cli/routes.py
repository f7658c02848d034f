"""The routes that a command names, and how the shell completes them.

Hides that no name means all of them. Called by the commands of `crossfade relay`.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from .. import wiring
from ..config import Config
from ..errors import UsageError
from .output import complete_routes

RouteNames: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(help="Routes of crossfade.yaml; all of them by default.", autocompletion=complete_routes),
]
RouteName: TypeAlias = Annotated[
    str, typer.Argument(help="The route, as named in crossfade.yaml.", autocompletion=complete_routes)
]


def chosen_routes(config: Config, names: list[str] | None) -> list[str]:
    """The named routes, each once; all of them where none is named. Raises UsageError with the nearest name."""
    for name in names or []:
        if name not in config.routes:
            raise wiring.unknown_route(config, name)
    found = list(dict.fromkeys(names or config.routes))
    if not found:
        raise UsageError(f"{config.path} has no routes", hint="add one under `routes:`, or run `crossfade init`")
    return found
