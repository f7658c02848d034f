"""What operators ask of a Redis server: is it fit, which rights are needed, what did we leave, remove it.

Hides which command tells what. Invariant: what the server does not let us ask is UNKNOWN, never OK. Only reads, except
`erase`. Called by `crossfade doctor` and `crossfade uninstall` through `wiring`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from ...errors import UsageError
from ..protocol import Finding, Level, route_of_document
from .footprint import Footprint
from .keys import BOARD_KEY, check_slots, is_birth, route_of_birth, state_key
from .link import Command, Link
from .nodes import Nodes, call_all, call_key
from .replies import VERSION_MIN, check, code_of, info_fields, is_error, pairs, version_in
from .rights import Right, rights_of
from .settings import RedisSettings

_MEMORY_WARN = 0.80
_MEMORY_FAIL = 0.95
_CLOCK_WARN_S = 1.0
_CLOCK_FAIL_S = 60.0
#: an id before this is no time (2001-09-09): somebody numbers the entries
_TIME_MS_MIN = 1_000_000_000_000
_HOUR_S = 3600.0


class RedisInspector:
    """Asks about the servers behind one stream."""

    def __init__(
        self,
        settings: RedisSettings,
        stream_keys: Sequence[str | bytes],
        *,
        read: Literal["at_once", "replicated"] = "at_once",
        memory_bytes_max: int = 0,
    ) -> None:
        """`read`, `memory_bytes_max`: how the relay is told to use it, see `RedisLog`."""
        self.settings = settings
        self._read = read
        self._memory_bytes_max = memory_bytes_max
        self.stream_keys = [key.encode() if isinstance(key, str) else key for key in stream_keys]
        self.lanes = len(self.stream_keys)
        self.oldest_s: float | None = None
        self._nodes = Nodes(settings)

    async def inspect(self, role: str, retention_needed_s: float, oldest_s: float | None = None) -> list[Finding]:
        """See `Inspector.inspect`. Raises Unreachable, AccessRefused."""
        try:
            findings: list[Finding] = []
            for link in await self._nodes.primaries():
                findings += await self._inspect_server(link, role)
            findings += await self._inspect_keys(role, retention_needed_s)
            return findings
        finally:
            await self._nodes.close()

    async def routes(self) -> set[str]:
        """See `Inspector.routes`. Raises Unreachable, AccessRefused."""
        doing = "looking whose things are left"
        try:
            (documents,) = await call_key(self._nodes, BOARD_KEY, [("HKEYS", BOARD_KEY)], doing)
            found = {route_of_document(name.decode(errors="replace")) for name in check(documents, doing)}
            for key in self.stream_keys:
                own = state_key(key)
                (owner,) = await call_key(self._nodes, own, [("HGET", own, "route")], doing)
                found.add((check(owner, doing) or b"").decode())
                (groups,) = await call_key(self._nodes, key, [("XINFO", "GROUPS", key)], doing)
                names = [] if is_error(groups) else [pairs(group)[b"name"].decode(errors="replace") for group in groups]
                found |= {route_of_birth(name) for name in names if is_birth(name)}
            return found - {""}
        finally:
            await self._nodes.close()

    async def footprint(self, route: str) -> list[str]:
        """See `Inspector.footprint`. Raises Unreachable, AccessRefused."""
        try:
            return await Footprint(self._nodes, self.stream_keys).names(route)
        finally:
            await self._nodes.close()

    async def erase(self, route: str, names: Sequence[str]) -> None:
        """See `Inspector.erase`. Raises UsageError, Unreachable, AccessRefused."""
        try:
            await Footprint(self._nodes, self.stream_keys).erase(names)
        finally:
            await self._nodes.close()

    # one server ------------------------------------------------------------------------------------------------------

    async def _inspect_server(self, link: Link, role: str) -> list[Finding]:
        asked: list[Command] = [("INFO",), ("CONFIG", "GET", "*"), ("TIME",), ("ACL", "WHOAMI")]
        ((info_reply, config_reply, clock, user),) = await call_all(self._nodes, [link], asked, "asking the server")
        info = {} if is_error(info_reply) else info_fields(info_reply)
        config: dict[str, str] = {}
        if not is_error(config_reply):
            config = {name.decode(): value.decode(errors="replace") for name, value in pairs(config_reply).items()}
        if not info:
            findings = [Finding("redis.version", Level.UNKNOWN, f"INFO: {info_reply}", "grant +info")]
        else:
            findings = [
                _version(info),
                _eviction(info),
                _memory(info, role, self._memory_bytes_max if role == "target" else 0),
                _persistence(info, config, role),
                _replicas(info, config, waits=role == "source" and self._read == "replicated"),
            ]
        findings.append(_clock(clock))
        findings.append(await self._rights(link, role, user))
        if len(await self._nodes.primaries()) > 1:
            findings = [
                Finding(found.check, found.level, f"{link.address}: {found.found}", found.fix) for found in findings
            ]
        return findings

    async def _rights(self, link: Link, role: str, user: Any) -> Finding:
        rights = rights_of(role, self.settings, replicated=self._read == "replicated")
        if is_error(user):
            return _rights_unknown(f"ACL WHOAMI: {user}")
        own = b"crossfade:lane:{" + self.stream_keys[0] + b"}"
        commands: list[Command] = []
        for right in rights:
            example = tuple({"KEY": self.stream_keys[0], "OWN": own}.get(str(part), part) for part in right.example)
            commands.append(("ACL", "DRYRUN", user, *example))
        (replies,) = await call_all(self._nodes, [link], commands, "asking for rights")
        missing: list[Right] = []
        for right, reply in zip(rights, replies, strict=True):
            if is_error(reply):
                return _rights_unknown(str(reply))
            if reply != b"OK":
                missing.append(right)
        if not missing:
            return Finding("redis.acl", Level.OK, f"user {user.decode()} may do all that the relay needs")
        needed = [right for right in missing if not right.without]
        names = " ".join(f"+{right.name}" for right in missing)
        lost = "; ".join(dict.fromkeys(right.without for right in missing if right.without))
        level = Level.FAIL if needed else Level.WARN
        found = f"user {user.decode()} lacks {names}" + (f" ({lost})" if lost else "")
        return Finding("redis.acl", level, found, f"ACL SETUSER {user.decode()} {names}; see --print-acls")

    # the stream keys -------------------------------------------------------------------------------------------------

    async def _inspect_keys(self, role: str, retention_needed_s: float) -> list[Finding]:
        if self.settings.mode == "cluster":
            try:
                check_slots(self.stream_keys)
            except UsageError as error:
                return [Finding("redis.keys", Level.FAIL, error.message, error.hint)]
        kinds: dict[bytes, str] = {}
        streams: dict[bytes, dict[bytes, Any]] = {}
        refused = ""
        for key in self.stream_keys:
            asked: list[Command] = [("TYPE", key), ("XINFO", "STREAM", key)]
            kind, stream = await call_key(self._nodes, key, asked, "looking at the stream keys")
            if is_error(stream) and code_of(stream) == "NOPERM":
                refused = str(stream)
                continue
            if not is_error(stream):
                kinds[key] = "stream"
                streams[key] = pairs(stream)
            elif "no such key" in str(stream):
                kinds[key] = "none"
            else:
                kinds[key] = "another type" if is_error(kind) else check(kind, "").decode()
        if not refused:
            self.oldest_s = _oldest_s(streams)
        findings = [_keys(kinds, role, refused)]
        if role == "source" and streams:
            findings.append(_trimming(streams, retention_needed_s))
        if streams:
            findings.append(_ids(streams))
        return findings


def _rights_unknown(why: str) -> Finding:
    return Finding(
        "redis.acl",
        Level.UNKNOWN,
        f"the server does not tell: {why}",
        "compare with --print-acls by hand, or grant +acl",
    )


def _version(info: dict[str, str]) -> Finding:
    words, numbers = version_in(info)
    if numbers is None:
        fix = "Redis 7.0 or any Valkey is needed; ask the provider"
        told = words.partition(" ")[2] or "nothing"
        return Finding("redis.version", Level.UNKNOWN, f"INFO tells no version ({told})", fix)
    if numbers < VERSION_MIN:
        fix = "upgrade to Redis 7.0 or any Valkey: older servers do not count the entries ever added"
        return Finding("redis.version", Level.FAIL, words, fix)
    return Finding("redis.version", Level.OK, words)


def _eviction(info: dict[str, str]) -> Finding:
    policy = info.get("maxmemory_policy", "")
    if not policy:
        return Finding("redis.eviction", Level.UNKNOWN, "INFO does not name maxmemory_policy", "it must be noeviction")
    if policy.startswith("allkeys"):
        fix = "CONFIG SET maxmemory-policy noeviction: this policy evicts whole streams, with all their records"
        return Finding("redis.eviction", Level.FAIL, f"maxmemory-policy {policy}", fix)
    if policy != "noeviction":
        fix = "CONFIG SET maxmemory-policy noeviction: it does not free what streams hold, and evicts keys with a TTL"
        return Finding("redis.eviction", Level.WARN, f"maxmemory-policy {policy}", fix)
    return Finding("redis.eviction", Level.OK, "maxmemory-policy noeviction")


def _memory(info: dict[str, str], role: str, budget: int) -> Finding:
    used = int(info.get("used_memory", "0"))
    if budget and used > budget:
        fix = "nothing is written until it uses less: trim it, or raise memory_bytes_max"
        return Finding("redis.maxmemory", Level.FAIL, f"{used} bytes used, memory_bytes_max is {budget}", fix)
    limit, kind = int(info.get("maxmemory", "0")), "maxmemory"
    if not limit:
        limit, kind = int(info.get("total_system_memory", "0")), "the machine's memory (maxmemory is not set)"
    if not limit:
        return Finding("redis.maxmemory", Level.UNKNOWN, f"{used} bytes used, no limit is told", "set maxmemory")
    found = f"{used / limit:.0%} of {limit} bytes, {kind}"
    fix = "trim behind the slowest group and the relay, or raise maxmemory"
    if used > _MEMORY_FAIL * limit:
        return Finding("redis.maxmemory", Level.FAIL if role == "target" else Level.WARN, found, fix)
    if used > _MEMORY_WARN * limit:
        return Finding("redis.maxmemory", Level.WARN, found, fix)
    return Finding("redis.maxmemory", Level.OK, found)


def _persistence(info: dict[str, str], config: dict[str, str], role: str) -> Finding:
    check_name = "redis.persistence"
    if "aof_enabled" not in info:
        return Finding(check_name, Level.UNKNOWN, "INFO does not tell whether AOF is on", "check it by hand")
    if info["aof_enabled"] == "1":
        sync = config.get("appendfsync", "")
        if not sync:
            return Finding(
                check_name, Level.UNKNOWN, "AOF is on; CONFIG GET appendfsync is refused", "check it by hand"
            )
        if sync == "no":
            return Finding(check_name, Level.WARN, "AOF, appendfsync no", "CONFIG SET appendfsync everysec")
        return Finding(check_name, Level.OK, f"AOF, appendfsync {sync}")
    lost = "its records and markers" if role == "target" else "records that are not copied yet"
    fix = f"CONFIG SET appendonly yes: without it a restart loses {lost}"
    if "save" not in config:
        return Finding(check_name, Level.UNKNOWN, "AOF is off; CONFIG GET save is refused", fix)
    found = f"AOF is off, snapshots {config['save']!r}" if config["save"] else "neither AOF nor snapshots"
    return Finding(check_name, Level.WARN, found, fix)


def _replicas(info: dict[str, str], config: dict[str, str], *, waits: bool) -> Finding:
    if "connected_slaves" not in info:
        fix = "a primary with a replica is needed, and min-replicas-to-write 1; ask the provider"
        return Finding("redis.replicas", Level.UNKNOWN, "INFO does not tell of replicas", fix)
    replicas = int(info["connected_slaves"])
    needed = config.get("min-replicas-to-write") or config.get("min-slaves-to-write")
    found = f"{info.get('role', 'unknown role')}, {replicas} replicas, min-replicas-to-write {needed or 'not told'}"
    if info.get("role") == "slave":
        return Finding("redis.replicas", Level.FAIL, found, "point the url at the primary, or set mode: sentinel")
    if not replicas and waits:
        fix = "attach a replica, or set read: at_once: with read: replicated nothing is copied without one"
        return Finding("redis.replicas", Level.FAIL, found, fix)
    if not replicas:
        return Finding("redis.replicas", Level.WARN, found, "without a replica, losing this server loses the stream")
    if needed in ("0", None):
        fix = "set min-replicas-to-write 1: else a primary that is cut off goes on taking writes that a failover undoes"
        return Finding("redis.replicas", Level.WARN if needed else Level.UNKNOWN, found, fix)
    return Finding("redis.replicas", Level.OK, found)


def _clock(reply: Any) -> Finding:
    if is_error(reply):
        return Finding("redis.clock", Level.UNKNOWN, f"TIME: {reply}", "grant +time")
    ahead_s = int(reply[0]) + int(reply[1]) / 1e6 - time.time()
    found = f"{ahead_s:+.3f} s from this machine's clock"
    fix = "synchronise both clocks (NTP): lag in seconds and the ids of relayed entries depend on them"
    if abs(ahead_s) > _CLOCK_FAIL_S:
        return Finding("redis.clock", Level.FAIL, found, fix)
    if abs(ahead_s) > _CLOCK_WARN_S:
        return Finding("redis.clock", Level.WARN, found, fix)
    return Finding("redis.clock", Level.OK, found)


def _names(keys: list[bytes]) -> str:
    shown = ", ".join(key.decode(errors="replace") for key in keys[:3])
    return shown + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _keys(kinds: dict[bytes, str], role: str, refused: str) -> Finding:
    wrong = [key for key, kind in kinds.items() if kind not in ("stream", "none")]
    missing = [key for key, kind in kinds.items() if kind == "none"]
    if wrong:
        found = f"{_names(wrong)}: {kinds[wrong[0]]}, not a stream"
        return Finding("redis.keys", Level.FAIL, found, "correct the stream's lanes in crossfade.yaml")
    if refused:
        return Finding("redis.keys", Level.UNKNOWN, refused, "grant +xinfo|stream on the stream keys")
    if missing and role == "source":
        fix = "correct the name if that is a surprise; a start makes missing keys as empty streams"
        return Finding("redis.keys", Level.WARN, f"{len(missing)} of {len(kinds)} are missing: {_names(missing)}", fix)
    found = f"{len(kinds)} stream keys" + (f", {len(missing)} of them to be made" if missing else "")
    return Finding("redis.keys", Level.OK, found)


def _trimming(streams: dict[bytes, dict[bytes, Any]], needed_s: float) -> Finding:
    """Judged by what was seen: how old the oldest entry is where entries have been removed."""
    now_s = time.time()
    ages: dict[bytes, float] = {}
    uncounted = [key for key, stream in streams.items() if b"entries-added" not in stream]
    for key, stream in streams.items():
        if stream.get(b"entries-added", 0) > stream[b"length"]:
            first = stream[b"first-entry"]
            ages[key] = now_s - int(first[0].partition(b"-")[0]) / 1000 if first else 0.0
    if uncounted:
        found = f"the server does not count the entries ever added to {_names(uncounted)}"
        return Finding("redis.trimming", Level.UNKNOWN, found, "upgrade to Redis 7.0 or any Valkey")
    if not ages:
        return Finding("redis.trimming", Level.OK, "no entry was ever removed")
    key, age_s = min(ages.items(), key=lambda item: item[1])
    found = f"entries were removed from {len(ages)} keys; the oldest left in {_names([key])} is {age_s:.0f} s old"
    if needed_s and age_s < needed_s:
        fix = f"the copy needs {needed_s:.0f} s: raise MAXLEN, or trim behind the relay only"
        return Finding("redis.trimming", Level.WARN, found, fix)
    return Finding("redis.trimming", Level.OK, found)


def _oldest_s(streams: dict[bytes, dict[bytes, Any]]) -> float:
    """Age of the oldest entry whose id is a time; entries with others get the time of the copy."""
    firsts = [stream[b"first-entry"] for stream in streams.values() if stream[b"first-entry"]]
    times_ms = [int(first[0].partition(b"-")[0]) for first in firsts]
    return max((time.time() - time_ms / 1000 for time_ms in times_ms if time_ms >= _TIME_MS_MIN), default=0.0)


def _ids(streams: dict[bytes, dict[bytes, Any]]) -> Finding:
    limit_ms = (time.time() + _HOUR_S) * 1000
    odd: list[bytes] = []
    ahead: list[bytes] = []
    for key, stream in streams.items():
        first, last = stream[b"first-entry"], stream[b"last-generated-id"]
        if first and int(first[0].partition(b"-")[0]) < _TIME_MS_MIN:
            odd.append(key)
        if int(last.partition(b"-")[0]) > limit_ms:
            ahead.append(key)
    if ahead:
        fix = "a writer's clock or its own ids are wrong; Kafka refuses such timestamps unless its limit is raised"
        return Finding("redis.ids", Level.WARN, f"ids lie in the future: {_names(ahead)}", fix)
    if odd:
        fix = "their entries get the time of the copy on Kafka; a start from a time is not possible"
        return Finding("redis.ids", Level.WARN, f"ids are no times: {_names(odd)}", fix)
    return Finding("redis.ids", Level.OK, "entry ids are plausible times")
