"""Routes that copy in a circle: each record would come back to its source, and be copied again for ever.

Hides how the ways of all routes of a file are followed. Invariant: a declared pair is no circle, because each of its
routes passes over what the other wrote. Asks no broker. Called when a route is opened, and by `crossfade doctor`.
"""

from __future__ import annotations

from ..errors import GuaranteeRefused
from .shape import Config


def refuse_loop(config: Config, name: str) -> None:
    """Refuse a route whose copies would come back to its own source, unless a declared pair passes over its echoes.

    Raises GuaranteeRefused.
    """
    copies: dict[object, list[tuple[str, object]]] = {}
    for other, settings in config.routes.items():
        sides = config.streams[settings.stream].sides
        source, target = (settings.source, sides[settings.source]), (settings.target, sides[settings.target])
        copies.setdefault(source, []).append((other, target))
    settings = config.routes[name]
    home = (settings.source, config.streams[settings.stream].sides[settings.source])
    reached: list[tuple[list[str], object]] = [([other], end) for other, end in copies[home] if other == name]
    seen: set[str] = set()
    while reached:
        way, end = reached.pop()
        if end == home:
            hint = "let one of them write to other stream keys or another topic"
            if len(way) == 2 and _could_be_pair(config, *way):
                hint = f"add `reverse_of: {way[0]}` to route {way[1]}, so that each passes over what the other wrote"
            raise GuaranteeRefused(
                f"routes {' -> '.join(way)} copy in a circle: each record would come back and be copied again for ever",
                hint=hint,
            )
        if way[-1] not in seen:
            seen.add(way[-1])
            back = config.pair_of(way[-1])
            reached += [([*way, other], further) for other, further in copies.get(end, []) if other != back]


def _could_be_pair(config: Config, name: str, other: str) -> bool:
    mine, its = config.routes[name], config.routes[other]
    return (mine.stream, mine.source, mine.target) == (its.stream, its.target, its.source)
