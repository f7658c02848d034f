"""What Crossfade calls its own things on a Kafka cluster, in one place, so that ACLs and uninstall can list them."""

from __future__ import annotations

import re

PREFIX = "crossfade."
_GROUP = re.compile(rf"{re.escape(PREFIX)}([a-z0-9-]{{1,63}})")
#: the compacted topic of the board, and the transactional id of whoever changes it
BOARD_TOPIC = "crossfade.control"
BOARD_WRITER = "crossfade.board"


def lanes_topic(route: str) -> str:
    """The topic whose partitions stand for source lanes; markers are group offsets on it."""
    return f"crossfade.{route}.lanes"


def quarantine_topic(route: str) -> str:
    return f"crossfade.{route}.quarantine"


def route_of_topic(topic: str) -> str:
    """The route that one of our own topics belongs to, "" for all others."""
    route, _, kind = topic.removeprefix(PREFIX).rpartition(".")
    return route if topic.startswith(PREFIX) and kind in ("lanes", "quarantine") else ""


def route_of_group(group_id: str) -> str:
    """The route that a group may belong to, "" for all that no route can be called."""
    found = _GROUP.fullmatch(group_id)
    return found[1] if found else ""


def group(route: str) -> str:
    """The group of a route: hands out lanes, and holds the markers."""
    return f"crossfade.{route}"


def transactional_id(route: str, instance: str | None, shard: tuple[int, int] | None) -> str:
    """The fence of one writer: the member's instance in a group, else the shard.

    Who is neither writes as the only shard, whatever its instance is called: two of them must share one id, or the
    one that was fenced could claim again without fencing the other.
    """
    name = instance if instance is not None else "{}-{}".format(*(shard or (0, 1)))
    return f"crossfade.{route}.{name}"


def instance_of(route: str, writer: str) -> str:
    """The instance (or shard) behind a transactional id of this route."""
    return writer.removeprefix(f"crossfade.{route}.")


def target_document(topic: str) -> str:
    """The board document that says which route writes to a topic."""
    return f"target/{topic}"


def shards_document(route: str) -> str:
    """The board document that says into how many shards a route is split by hand."""
    return f"shards/{route}"
