"""What Crossfade calls its own things on a Kafka cluster, in one place, so that ACLs and uninstall can list them."""

from __future__ import annotations

import re

PREFIX = "crossfade."
#: the compacted topic of the board, and the transactional id of whoever changes it
BOARD_TOPIC = "crossfade.control"
BOARD_WRITER = "crossfade.board"


def lanes_topic(route: str) -> str:
    """The topic whose partitions stand for source lanes; markers are group offsets on it."""
    return f"crossfade.{route}.lanes"


def quarantine_topic(route: str) -> str:
    return f"crossfade.{route}.quarantine"


def group(route: str) -> str:
    """The group of a route: hands out lanes, and holds the markers."""
    return f"crossfade.{route}"


def transactional_id(route: str, instance: str, shard: tuple[int, int] | None) -> str:
    """The fence of one writer: by instance in a group, by shard where lanes are set by hand."""
    name = f"{shard[0]}-{shard[1]}" if shard is not None else instance
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


_SHARD = re.compile(r"\d+-\d+")


def is_shard(name: str) -> bool:
    return _SHARD.fullmatch(name) is not None
