"""The routes that a command names, and how the shell completes them.

Hides that no name means all of them. Called by all commands that are about routes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from ..errors import UsageError

if TYPE_CHECKING:
    from ..config import Config


def complete_routes(context: typer.Context, incomplete: str) -> list[str]:
    """Names of routes for the shell; the file need not be right, nor its secrets be there."""
    from ..config.tree import ConfigError, parse

    named = context.find_root().params.get("config")
    path = Path(named or os.environ.get("CROSSFADE_CONFIG") or "crossfade.yaml")
    try:
        root, _ = parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, ConfigError):
        return []
    routes = root.entries.get("routes")
    return [name for name in routes.entries if name.startswith(incomplete)] if routes else []


RouteNames: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(help="Routes of crossfade.yaml; all of them by default.", autocompletion=complete_routes),
]
RouteName: TypeAlias = Annotated[
    str, typer.Argument(help="The route, as named in crossfade.yaml.", autocompletion=complete_routes)
]
OneRoute: TypeAlias = Annotated[
    str | None, typer.Argument(help="Only this route; by default all of them.", autocompletion=complete_routes)
]


def chosen_routes(config: Config, names: list[str] | None) -> list[str]:
    """The named routes, each once; all of them where none is named. Raises UsageError with the nearest name."""
    from .. import wiring

    for name in names or []:
        if name not in config.routes:
            raise wiring.unknown_route(config, name)
    found = list(dict.fromkeys(names or config.routes))
    if not found:
        raise UsageError(f"{config.path} has no routes", hint="add one under `routes:`, or run `crossfade init`")
    return found
