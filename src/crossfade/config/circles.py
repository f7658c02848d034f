"""Routes that copy in a circle: each record would come back to its source, and be copied again for ever.

Hides how the ways of all routes of a file are followed, also where a server or a topic has two names. Invariant: a
declared pair is no circle, because each of its routes passes over what the other wrote. Asks no broker. Called when a
route is opened, and by `crossfade doctor`.
"""

from __future__ import annotations

from ..errors import GuaranteeRefused
from .overlap import End, may_meet
from .shape import Config


def refuse_loop(config: Config, name: str) -> None:
    """Refuse a route whose copies would come back to its own source, unless a declared pair passes over its echoes.

    Raises GuaranteeRefused.
    """
    home = _end(config, name, "source")
    ways, seen = [[name]], set[str]()
    while ways:
        way = ways.pop()
        end = _end(config, way[-1], "target")
        if may_meet(end, home):
            raise _circle(config, way)
        if way[-1] not in seen:
            seen.add(way[-1])
            back = config.pair_of(way[-1])
            further = [other for other in config.routes if other != back]
            ways += [[*way, other] for other in further if may_meet(end, _end(config, other, "source"))]


def copies_into_itself(name: str) -> GuaranteeRefused:
    """The refusal of a route whose two ends are one."""
    return GuaranteeRefused(
        f"route {name} copies into its own source: each record would come back and be copied again for ever",
        hint="its two brokers are one service: let it write to other stream keys or another topic",
    )


def _circle(config: Config, way: list[str]) -> GuaranteeRefused:
    if len(way) == 1:
        return copies_into_itself(*way)
    hint = "let one of them write to other stream keys or another topic"
    if len(way) == 2 and _could_be_pair(config, *way):
        hint = f"add `reverse_of: {way[0]}` to route {way[1]}, so that each passes over what the other wrote"
    return GuaranteeRefused(
        f"routes {' -> '.join(way)} copy in a circle: each record would come back and be copied again for ever",
        hint=hint,
    )


def _end(config: Config, name: str, end: str) -> End:
    route = config.routes[name]
    broker = route.source if end == "source" else route.target
    return End(config.brokers[broker], config.streams[route.stream].sides[broker])


def _could_be_pair(config: Config, name: str, other: str) -> bool:
    mine, its = config.routes[name], config.routes[other]
    return (mine.stream, mine.source, mine.target) == (its.stream, its.target, its.source)
