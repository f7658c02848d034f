"""What the commands of `crossfade lab` take by name: labs, servers, links, topics, and what the shell offers for them.

Every command means the lab that it is given, else the one of `CROSSFADE_LAB`, else `default`. Completion asks what is
there (lab.json; for topics, the brokers) and offers nothing where that cannot be told: it never fails and never waits
long. Called by the other modules of `crossfade lab`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CrossfadeError

if TYPE_CHECKING:
    from ..lab.lab import Lab

#: what `crossfade lab env` exports: the other commands of that shell mean the same lab
LAB_VARIABLE = "CROSSFADE_LAB"
LAB_DEFAULT = "default"


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def complete_labs(incomplete: str) -> list[str]:
    """Names of labs for the shell."""
    from ..lab.lab import Lab

    return _beginning(Lab.names(), incomplete)


def complete_lab_before_topic(context: typer.Context, incomplete: str) -> list[str]:
    """Names of labs, as long as the line has no word that can be one; the topic is a new name."""
    return [] if context.params.get("topic") else complete_labs(incomplete)


def complete_servers(context: typer.Context, incomplete: str) -> list[str]:
    """Servers of the lab that is meant."""
    return _of_lab(lambda lab: [server.name for server in lab.state.servers], context, incomplete)


def complete_brokers(context: typer.Context, incomplete: str) -> list[str]:
    """Its Kafka brokers."""
    return _of_lab(
        lambda lab: [server.name for server in lab.state.servers if server.kind == "kafka"], context, incomplete
    )


def complete_redis_servers(context: typer.Context, incomplete: str) -> list[str]:
    """Its Redis servers."""
    return _of_lab(
        lambda lab: [server.name for server in lab.state.servers if server.kind == "redis"], context, incomplete
    )


def complete_links(context: typer.Context, incomplete: str) -> list[str]:
    """Its links."""
    return _of_lab(lambda lab: [link.name for link in lab.state.links], context, incomplete)


def complete_topics(context: typer.Context, incomplete: str) -> list[str]:
    """Topics that its brokers have now."""
    return _of_lab(lambda lab: lab.admin.topics() if lab.state.options.brokers else [], context, incomplete)


def complete_controllers(incomplete: str) -> list[str]:
    """Values of --controllers."""
    from ..lab.kafka import CONTROLLERS

    return _beginning(CONTROLLERS, incomplete)


def complete_shapes(incomplete: str) -> list[str]:
    """Values of --redis."""
    from ..lab.redis import SHAPES

    return _beginning(SHAPES, incomplete)


def complete_flavours(incomplete: str) -> list[str]:
    """Values of --redis-flavour."""
    from ..lab.packages import REDIS_FLAVOURS

    return _beginning(REDIS_FLAVOURS, incomplete)


def _of_lab(names: Callable[[Lab], Iterable[str]], context: typer.Context, incomplete: str) -> list[str]:
    from ..lab.lab import Lab

    try:
        return _beginning(names(Lab.load(context.params.get("lab") or LAB_DEFAULT)), incomplete)
    except (CrossfadeError, ImportError):
        return []  # no such lab, or no extra installed: the command itself says so


Name = Annotated[str, typer.Argument(envvar=LAB_VARIABLE, help="The lab's name.", autocompletion=complete_labs)]
InLab = Annotated[str, typer.Option("--lab", envvar=LAB_VARIABLE, help="The lab's name.", autocompletion=complete_labs)]
Server = Annotated[str, typer.Argument(help="Such as kafka-1 or redis-0.", autocompletion=complete_servers)]
RedisServer = Annotated[str, typer.Argument(help="Such as redis-0.", autocompletion=complete_redis_servers)]
Link = Annotated[str, typer.Argument(help="Such as kafka-1 or redis-0.", autocompletion=complete_links)]
Topic = Annotated[str, typer.Argument(help="Name of the topic.", autocompletion=complete_topics)]
