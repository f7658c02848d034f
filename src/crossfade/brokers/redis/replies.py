"""What a reply means: which of our errors it becomes, and with which hint; and how old the server is that it tells of.

Hides the texts of Redis and Valkey. The one decision kept here: is it about a right (AccessRefused), about the server's
state (Unreachable: waiting may help), a redirection (Moved), or a mistake of ours (BrokerError)?
"""

from __future__ import annotations

import re
from typing import Any

import hiredis

from ...errors import AccessRefused, BrokerError, CrossfadeError, Unreachable, UsageError

#: first words of replies that pass: the server is starting, failing over, out of disk, or a script runs too long
_PASSING = {
    "LOADING": "the server is still loading its data",
    "MASTERDOWN": "the replica has lost its primary",
    "CLUSTERDOWN": "a part of the Cluster is down",
    "READONLY": "the server has become a replica",
    "MISCONF": "the server cannot save to its disk and refuses writes",
    "NOREPLICAS": "too few replicas are attached (min-replicas-to-write)",
    "TRYAGAIN": "the hash slot is being moved",
    "BUSY": "a script has been running for too long",
    "OOM": "used memory is above maxmemory",
    "MOVED": "the hash slot has moved",
    "ASK": "the hash slot is being moved",
    "UNKILLABLE": "a script has been running for too long",
    "UNBLOCKED": "the server has become a replica while it was waited for",
}
_OOM_HINT = "raise maxmemory, or free memory: Redis refuses transactions above it, also those that only read"
#: older servers lack entries-added, without which losses cannot be counted
VERSION_MIN = (7, 0)
_COMMAND = re.compile(r"'([^']+)' command")


class Moved(Unreachable):
    """The slot is on another node now: the map must be read again."""


def is_error(reply: Any) -> bool:
    """True where the server answered with an error."""
    return isinstance(reply, hiredis.ReplyError)


def code_of(reply: Any) -> str:
    """The first word of an error reply: `OOM`, `NOPERM`, `ERR`."""
    return str(reply).partition(" ")[0]


def as_error(reply: Any, doing: str) -> CrossfadeError:
    """The exception for an error reply that came while `doing` something ("reading the streams")."""
    text, code = str(reply), code_of(reply)
    if code in ("MOVED", "ASK"):
        return Moved(f"{doing}: {_PASSING[code]}", hint="the slot map is read again; this passes by itself")
    if code in _PASSING:
        return Unreachable(f"{doing}: {_PASSING[code]}", hint=_OOM_HINT if code == "OOM" else text)
    if code in ("NOPERM", "DENIED") or (code == "EXECABORT" and "NOPERM" in text):
        named = _COMMAND.search(text)
        right = f"+{named.group(1).lower()}" if named else "the key (see ACL GETUSER)"
        return AccessRefused(
            f"{doing}: the Redis user lacks a right: {text}",
            hint=f"grant {right}; `crossfade doctor --print-acls` lists all that is needed",
        )
    if (
        code in ("NOAUTH", "WRONGPASS")
        or "AUTH" in code
        or "invalid password" in text
        or "without any password" in text
    ):
        return AccessRefused(f"{doing}: {text}", hint="check username and password of this broker")
    if code == "WRONGTYPE":
        return AccessRefused(f"{doing}: {text}", hint="the key is no stream; correct its name or remove the key")
    if "unknown command" in text:
        return AccessRefused(f"{doing}: {text}", hint="the service disables or lacks this command")
    if "WAIT cannot be used with replica" in text:
        return Unreachable(f"{doing}: {_PASSING['READONLY']}", hint=text)
    if "killed by user" in text:  # only a script that has not written yet can be
        return Unreachable(f"{doing}: somebody ended our script with SCRIPT KILL", hint=text)
    if "max number of clients" in text:
        return Unreachable(f"{doing}: {text}", hint="raise maxclients")
    return BrokerError(f"{doing}: {text}", hint="the server answered in a way that is not expected here")


def check(reply: Any, doing: str) -> Any:
    """The reply itself, or the exception that an error reply stands for."""
    if isinstance(reply, hiredis.ReplyError):
        raise as_error(reply, doing)
    return reply


def pairs(flat: list[Any]) -> dict[bytes, Any]:
    """A flat `name, value, name, value` reply as a dict."""
    return dict(zip(flat[::2], flat[1::2], strict=False))


def info_fields(text: bytes) -> dict[str, str]:
    """The lines of INFO as a dict."""
    lines = (line.partition(":") for line in text.decode(errors="replace").splitlines() if line and line[0] != "#")
    return {name: value for name, _, value in lines}


def version_in(info: dict[str, str]) -> tuple[str, tuple[int, ...] | None]:
    """What INFO tells of the server: its words (`Valkey 8.1.0`), and major and minor number, None = it tells none."""
    valkey = info.get("valkey_version", "")
    name, number = ("Valkey", valkey) if valkey else ("Redis", info.get("redis_version", ""))
    parts = number.split(".")[:2]
    numbers = tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else None
    return f"{name} {number}", numbers


def too_old(what: str) -> UsageError:
    """What is said of a server that does not count the entries ever added."""
    return UsageError(
        f"{what} is too old: Redis 7.0 or any Valkey is needed",
        hint="older servers do not count the entries ever added, so a loss could not be seen; upgrade it",
    )
