"""The rights that Crossfade needs on Redis, as data: for `ACL SETUSER`, and to ask the server about each of them.

Invariant: what is listed here is what the documented commands send; a test copies, verifies, repairs and uninstalls
under accounts that have nothing else. Called by `doctor` and `wiring`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .link import Argument
from .settings import RedisSettings

#: names of our own keys
OWN_KEYS = "crossfade:*"
#: who has no name in the configuration is called this; also for `default`, whom the printed line would shut out
ACCOUNT = "crossfade"
_READ_ONLY = "%R"
_SET_USER = "ACL SETUSER"


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
_CLUSTER = (
    Right("cluster|slots", ("CLUSTER", "SLOTS")),
    Right("asking", ("ASKING",), "nothing is copied while a hash slot moves"),
)
_DATABASE = (Right("select", ("SELECT", "0")),)
_UNINSTALL = "uninstall does not work"
_VERIFY = "verify does not work"
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
    Right("exists", ("EXISTS", "OWN"), _UNINSTALL),
    Right("hget", ("HGET", "OWN", "f"), _UNINSTALL),
    Right("hkeys", ("HKEYS", "OWN"), _UNINSTALL),
    Right("hscan", ("HSCAN", "OWN", "0"), _UNINSTALL),
    Right("xgroup|destroy", ("XGROUP", "DESTROY", "KEY", "crossfade.x"), _UNINSTALL),
)
#: without any of these `read: replicated` copies nothing
_REPLICATED = (
    Right("info", ("INFO",)),
    Right("wait", ("WAIT", "0", "1")),
    Right("xgroup|create", ("XGROUP", "CREATE", "KEY", "crossfade.x", "$")),
    Right("xgroup|setid", ("XGROUP", "SETID", "KEY", "crossfade.x", "$")),
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
    Right("multi", ("MULTI",), _VERIFY),
    Right("exec", ("EXEC",), _VERIFY),
    Right("xrange", ("XRANGE", "KEY", "-", "+"), _VERIFY),
    Right("xrevrange", ("XREVRANGE", "KEY", "+", "-"), _VERIFY),
    Right("xinfo|groups", ("XINFO", "GROUPS", "KEY"), f"{_VERIFY}, nor does uninstall"),
    Right("xdel", ("XDEL", "KEY", "0-1"), "verify --repair apply does not work"),
    Right("exists", ("EXISTS", "OWN"), _UNINSTALL),
    Right("del", ("DEL", "OWN"), _UNINSTALL),
)


def rights_of(role: str, settings: RedisSettings, *, replicated: bool = False) -> tuple[Right, ...]:
    """What Crossfade needs as "source" or "target"; `replicated`: as a source with `read: replicated`."""
    own = _SOURCE if role == "source" else _TARGET
    needed = _REPLICATED if replicated and role == "source" else ()
    names = {right.name for right in needed}
    listed = _CONNECTION + (_CLUSTER if settings.mode == "cluster" else ()) + (_DATABASE if settings.db else ()) + own
    return (*(right for right in listed if right.name not in names), *needed)


def account_of(settings: RedisSettings) -> str:
    """The ACL user that the rights are for."""
    return settings.username if settings.username not in ("", "default") else ACCOUNT


def acl_line(settings: RedisSettings, patterns: Mapping[str, Sequence[str]], *, replicated: bool = False) -> str:
    """An ACL user with exactly these rights, to be pasted on every node: ACLs are not replicated.

    `patterns`: those of the stream keys, by role. One line for all roles: it takes away what the user had before, but
    no password. It gives none either, because a word in its place would be one: a new user cannot log in until then.
    """
    listed = [right for role in patterns for right in rights_of(role, settings, replicated=replicated)]
    rights = dict.fromkeys(f"+{right.name}" for right in listed)
    own = f"~{OWN_KEYS}" if "target" in patterns else f"{_READ_ONLY}~{OWN_KEYS}"
    keys = dict.fromkeys(f"~{pattern}" for each in patterns.values() for pattern in each)
    words = " ".join([*keys, own, *rights])
    return f"{_SET_USER} {account_of(settings)} on resetkeys resetchannels -@all {words}"


def password_notes(commands: Sequence[str]) -> list[str]:
    """How to set the password of each account that has an `acl_line` among these commands."""
    names = [command.split()[2] for command in commands if command.startswith(f"{_SET_USER} ")]
    return [f"its password: {_SET_USER} {name} resetpass '>...'" for name in names]


def numbered(before: str, after: str) -> str:
    """The pattern of all stream keys that differ only in the number between these."""
    return f"{_escape(before)}*{_escape(after)}"


def key_patterns(stream_keys: Sequence[bytes]) -> list[str]:
    """Patterns for these keys: one, where they differ in a number at the end only."""
    names = [key.decode(errors="replace") for key in stream_keys]
    stems = {name.rstrip("0123456789") for name in names}
    if len(names) > 1 and len(stems) == 1 and "" not in stems:
        return [_escape(stems.pop()) + "*"]
    return [_escape(name) for name in names]


def _escape(name: str) -> str:
    return "".join(f"\\{char}" if char in "*?[]\\" else char for char in name)
