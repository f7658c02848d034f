"""The rights that Crossfade needs on Redis, as data: for `ACL SETUSER`, and to ask the server about each of them.

Invariant: what is listed here is what the code sends; a test runs source and target under a user that has nothing else.
Called by `doctor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .link import Argument

#: names of our own keys
OWN_KEYS = "crossfade:*"


@dataclass(frozen=True, slots=True)
class Right:
    """One command, as the ACL names it, and an example to ask about."""

    name: str  # `xinfo|stream`
    example: tuple[Argument, ...]  # KEY stands for a stream key, OWN for one of ours
    #: what is lost without it; "" = it does not run at all
    without: str = ""


_CONNECTION = (
    Right("ping", ("PING",)),
    Right("info", ("INFO",), "the version, role and history of the server are not known: failovers are seen later"),
    Right("role", ("ROLE",), "a replica is noticed only when it refuses a write"),
    Right("client|setname", ("CLIENT", "SETNAME", "crossfade"), "connections have no name in CLIENT LIST"),
)
_CLUSTER = (Right("cluster|slots", ("CLUSTER", "SLOTS")),)
_SOURCE = (
    Right("multi", ("MULTI",)),
    Right("exec", ("EXEC",)),
    Right("xrange", ("XRANGE", "KEY", "-", "+")),
    Right("xrevrange", ("XREVRANGE", "KEY", "+", "-")),
    Right("xinfo|stream", ("XINFO", "STREAM", "KEY")),
    Right("xinfo|groups", ("XINFO", "GROUPS", "KEY")),
    Right(
        "xgroup|create", ("XGROUP", "CREATE", "KEY", "crossfade.x", "$"), "a re-created key may pass as a trimmed one"
    ),
    Right(
        "xgroup|setid", ("XGROUP", "SETID", "KEY", "crossfade.x", "$"), "trimming that waits for groups waits longer"
    ),
)
_TARGET = (
    Right("script|load", ("SCRIPT", "LOAD", "return 1")),
    Right("evalsha", ("EVALSHA", "0" * 40, "1", "OWN")),
    Right("xadd", ("XADD", "KEY", "*", "f", "v")),
    Right("xinfo|stream", ("XINFO", "STREAM", "KEY")),
    Right("hmget", ("HMGET", "OWN", "f")),
    Right("hget", ("HGET", "OWN", "f")),
    Right("hkeys", ("HKEYS", "OWN")),
    Right("hgetall", ("HGETALL", "OWN")),
    Right("hscan", ("HSCAN", "OWN", "0")),
    Right("hset", ("HSET", "OWN", "f", "v")),
    Right("hdel", ("HDEL", "OWN", "f")),
    Right("type", ("TYPE", "OWN")),
    Right("time", ("TIME",)),
)


def rights_of(role: str, is_cluster: bool) -> tuple[Right, ...]:
    """What the relay needs as "source" or "target"."""
    own = _SOURCE if role == "source" else _TARGET
    return _CONNECTION + (_CLUSTER if is_cluster else ()) + own


def acl_lines(role: str, is_cluster: bool, stream_keys: Sequence[bytes]) -> list[str]:
    """An ACL user with exactly these rights, to be pasted on every node: ACLs are not replicated."""
    patterns = key_patterns(stream_keys) + ([OWN_KEYS] if role == "target" else [])
    rights = " ".join(f"+{right.name}" for right in rights_of(role, is_cluster))
    keys = " ".join(f"~{pattern}" for pattern in patterns)
    return [f"ACL SETUSER crossfade on >PASSWORD resetkeys resetchannels -@all {keys} {rights}"]


def key_patterns(stream_keys: Sequence[bytes]) -> list[str]:
    """Patterns for these keys: one, where they differ in a number at the end only."""
    names = [key.decode(errors="replace") for key in stream_keys]
    stems = {name.rstrip("0123456789") for name in names}
    if len(names) > 1 and len(stems) == 1 and "" not in stems:
        return [_escape(stems.pop()) + "*"]
    return [_escape(name) for name in names]


def _escape(name: str) -> str:
    return "".join(f"\\{char}" if char in "*?[]\\" else char for char in name)
