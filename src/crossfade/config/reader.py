"""Reads `crossfade.yaml` into a `Config`, or says everything that is wrong with it at once.

Hides what the types alone do not say: a broker's kind chooses its keys, a stream has one side a broker, names refer to
each other, a Redis URL holds credentials. Every problem is one line with its place. Only `load` is called from outside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias, cast

import msgspec

from ..errors import UsageError, invariant
from ..model.mapping import mapping_named
from .addresses import (
    KAFKA_ADDRESSES,
    KAFKA_SERVER,
    KAFKA_SERVERS,
    REDIS_HOST,
    REDIS_URL,
    USERINFO,
    at_home,
    not_pem,
    port_fits,
)
from .secret import Secret, has_reference, masked
from .shape import (
    LANE_MARK,
    Beginning,
    Broker,
    Config,
    KafkaBroker,
    KafkaSide,
    MappingChoice,
    PropertyMistake,
    RedisBroker,
    RedisSide,
    RouteSettings,
    StreamSettings,
)
from .tree import ConfigError, Node, Problem, join, nearest, override, parse
from .walk import BAD, Walk, one_of

_HINT = "`crossfade init --config FILE` writes a commented example; every key: docs/configuration.md in the repository"
_BEGINNINGS = "earliest, latest, {time: 2026-01-31T12:00:00Z} or {position: ..}"
#: property names whose literal values must not show in logs
_SECRET_PROPERTY = re.compile(r"password|secret|\.pem$|oauthbearer\.config")


PropertyCheck: TypeAlias = Callable[[Mapping[str, str]], Iterable[PropertyMistake]]

_ENDS = ("stream", "source", "target", "lanes", "reverse_of")


def _scalar(node: Node, name: str) -> str:
    child = node.entries.get(name)
    return child.text if child is not None and child.kind == "scalar" else ""


class Reader(Walk):
    """One reading of one tree."""

    def __init__(
        self, root: Node, path: Path, environ: Mapping[str, str], check_properties: PropertyCheck | None = None
    ) -> None:
        super().__init__(path, environ)
        self._root = root
        self._check_properties = check_properties
        self._brokers = self._names("brokers")
        self._streams = self._names("streams")
        #: route id -> route, as far as read
        self._ids: dict[str, str] = {}

    def _names(self, section: str) -> dict[str, Node]:
        node = self._root.entries.get(section)
        return node.entries if node is not None else {}

    def read(self) -> Any:
        """The Config, or BAD."""
        return self._struct(Config, self._root, "", given={"path": self._path})

    def _special(self, kind: Any) -> Callable[[Node, str], Any] | None:
        specials: dict[Any, Callable[[Node, str], Any]] = {
            Broker: self._broker,
            str | Secret: self._property,
            Beginning: self._beginning,
            MappingChoice: self._mapping,
            StreamSettings: self._stream,
            RouteSettings: self._route,
        }
        return specials.get(kind) or super()._special(kind)

    def _property(self, node: Node, key: str) -> Any:
        if node.kind != "scalar":
            return self._wrong(node, key, "text, a number, true or false")
        is_secret = bool(_SECRET_PROPERTY.search(key.partition(".properties.")[2]))
        if is_secret or has_reference(node.text):
            return self._readable(node.text, node, key, may_be_empty=not is_secret)
        return node.text

    def _broker(self, node: Node, key: str) -> Any:
        if node.kind != "map":
            return self._wrong(node, key, "a mapping with kind: redis or kind: kafka")
        kinds = {"redis": RedisBroker, "kafka": KafkaBroker}
        kind = node.entries.get("kind")
        if kind is None:
            return self._note(node, join(key, "kind"), "nothing", one_of(kinds))
        chosen = self._choice(tuple(kinds), kind, join(key, "kind"))
        if chosen == "kafka":
            return self._kafka(node, key)
        return self._redis(node, key) if chosen == "redis" else BAD

    def _kafka(self, node: Node, key: str) -> Any:
        broker = self._struct(KafkaBroker, node, key)
        properties = node.entries.get("properties")
        if properties is not None and properties.kind == "map" and "bootstrap.servers" not in properties.entries:
            close = nearest("bootstrap.servers", properties.entries)
            found = f'no "bootstrap.servers" (but "{close}")' if close else "nothing"
            return self._note(properties, join(key, "properties.bootstrap.servers"), found, KAFKA_SERVERS)
        return broker if broker is BAD or self._properties_fit(broker, node, key) else BAD

    def _properties_fit(self, broker: KafkaBroker, node: Node, key: str) -> bool:
        """Whether addresses are addresses, and the client takes the properties."""
        properties, key = node.entries["properties"], join(key, "properties")
        before = len(self.problems)
        given = broker.plain_properties()
        for name in KAFKA_ADDRESSES & given.keys():
            servers = [server.strip() for server in given[name].split(",") if server.strip()]
            if not servers or not all(KAFKA_SERVER.fullmatch(server) and port_fits(server) for server in servers):
                self._wrong(properties.entries[name], join(key, name), KAFKA_SERVERS)
        # The client is asked only where there is something to ask: it takes its time to be imported.
        others = given.keys() - KAFKA_ADDRESSES if any(given.get(name) for name in KAFKA_ADDRESSES) else ()
        for mistake in self._check_properties(given) if self._check_properties and others else ():
            at = properties.entries.get(mistake.name, properties)
            secret = isinstance(broker.properties.get(mistake.name), Secret) and not has_reference(at.text)
            found = mistake.found or ("a secret" if secret else at.describe())
            self._note(at, join(key, mistake.name) if mistake.name else key, found, mistake.expected, mistake.nearest)
        return len(self.problems) == before

    def _redis(self, node: Node, key: str) -> Any:
        broker = self._struct(RedisBroker, node, key)
        if broker is BAD:
            return BAD
        url_node = node.entries["url"]
        # Credentials are split off the raw text, so that a reference in them stays one that can be read again.
        raw = USERINFO.fullmatch(url_node.text)
        text = Secret(f"{raw[1]}{raw[4]}" if raw else url_node.text, self._environ, self._path.parent).get()
        match = REDIS_URL.fullmatch(text)
        if raw is None or match is None or not all(REDIS_HOST.fullmatch(host) for host in (match[2] or "h").split(",")):
            close = nearest(text.partition("://")[0], ["redis", "rediss", "unix"]) if match is None else ""
            expected = "redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix:///PATH"
            return self._note(url_node, join(key, "url"), f'"{masked(text)}"', expected, close)
        if not all(map(port_fits, (match[2] or "").split(","))):
            return self._note(url_node, join(key, "url"), f'"{masked(text)}"', "ports from 1 to 65535")
        if broker.mode == "standalone" and "," in (match[2] or ""):
            expected = "one HOST:PORT, or mode: sentinel or cluster"
            return self._note(url_node, join(key, "url"), "several servers with mode: standalone", expected)
        if broker.mode == "cluster" and int(match[3] or 0):
            return self._note(url_node, join(key, "url"), f"database {match[3]} with mode: cluster", "database 0")
        if (broker.mode == "sentinel") != bool(broker.sentinel_master):
            found = "nothing" if broker.mode == "sentinel" else f'"{broker.sentinel_master}" with mode: {broker.mode}'
            expected = "the master's name" if broker.mode == "sentinel" else "mode: sentinel, or no such key"
            return self._note(node.entries.get("sentinel_master", node), join(key, "sentinel_master"), found, expected)
        credentials = self._credentials(broker, raw, url_node, join(key, "url"))
        if credentials is BAD:
            return BAD
        url = text if match[2] is None else f"{match[1]}://{match[2]}/{match[3] or 0}"
        return self._with_files_found(msgspec.structs.replace(broker, url=url, **credentials), node, key)

    def _credentials(self, broker: RedisBroker, raw: re.Match[str], node: Node, key: str) -> Any:
        """User and password of the URL, where the broker's own keys do not give them."""
        from urllib.parse import unquote

        given: dict[str, Any] = {}
        if raw[2] and raw[3] is None and broker.password is None and not broker.username:
            # Most likely a password: as the name of a user it would be shown.
            expected = "USER:PASSWORD@ or :PASSWORD@ (of the default user); a user without one: username: NAME"
            return self._note(node, key, "a user without a password", expected)
        for name, text in (("username", raw[2]), ("password", raw[3])):
            if text and not getattr(broker, name):
                plain = text if has_reference(text) else unquote(text)
                secret = self._readable(plain, node, key, may_be_empty=False)
                if secret is BAD:
                    return BAD
                given[name] = secret if name == "password" else secret.get()
        return given

    def _with_files_found(self, broker: RedisBroker, node: Node, key: str) -> Any:
        """The broker with the paths of its certificates starting at the configuration's folder."""
        if broker.tls is None:
            return broker
        folder, tls = self._path.parent, broker.tls
        given, key = node.entries["tls"], join(key, "tls")
        files = {"ca": tls.ca, "cert": tls.cert, "key": tls.key}
        found = {name: str(at_home(folder, file)) for name, file in files.items() if file}
        wrong = {name: reason for name, file in found.items() if (reason := not_pem(Path(file)))}
        for name, reason in wrong.items():
            self._wrong(given.entries[name], join(key, name), f"a file in PEM that can be read ({reason})")
        if tls.key and not tls.cert:  # it would be left aside, and no certificate shown
            self._note(given.entries["key"], join(key, "cert"), "nothing", "the certificate of this key")
            return BAD
        return BAD if wrong else msgspec.structs.replace(broker, tls=msgspec.structs.replace(tls, **found))

    def _stream(self, node: Node, key: str) -> Any:
        own = [field.encode_name for field in msgspec.structs.fields(StreamSettings) if field.name != "sides"]
        if node.kind != "map":
            return self._wrong(node, key, f"a mapping with the brokers' names, {one_of(own)}")
        sides: dict[str, Any] = {}
        rest: dict[str, Node] = {}
        for name, child in node.entries.items():
            if name in own:
                rest[name] = child
            elif name in self._brokers:
                sides[name] = self._side(name, child, join(key, name))
            else:
                self._unknown(child, key, name, [*self._brokers, *own])
                sides[name] = BAD
        if not sides:
            self._note(
                node, key, "no broker's name", f"how one of {', '.join(self._brokers) or 'the brokers'} keeps it"
            )
            return BAD
        bad = any(side is BAD for side in sides.values())
        settings = self._struct(StreamSettings, Node("map", node.where, node.line, entries=rest), key, {"sides": sides})
        return BAD if bad else settings

    def _side(self, broker: str, node: Node, key: str) -> Any:
        kind = self._brokers[broker].entries.get("kind")
        if kind is not None and kind.text == "kafka":
            return self._struct(KafkaSide, node, key)
        if kind is None or kind.text != "redis":
            return BAD  # the broker's own problem is noted already
        count = node.entries.get("count")
        is_discovered = count is not None and count.kind == "scalar" and count.text == "discover"
        if is_discovered:
            rest = {name: child for name, child in node.entries.items() if name != "count"}
            side = self._struct(RedisSide, Node("map", node.where, node.line, entries=rest), key)
            return side if side is BAD else self._redis_side(side, node, key)
        side = self._struct(RedisSide, node, key)
        return side if side is BAD else self._redis_side(side, node, key)

    def _redis_side(self, side: RedisSide, node: Node, key: str) -> Any:
        entries = node.entries
        if side.keys:
            other = entries.get("lanes") or entries.get("count")
            if other is not None:
                return self._note(other, key, '"keys" beside "lanes" or "count"', "one of the two ways")
            twice = next((name for index, name in enumerate(side.keys) if name in side.keys[:index]), None)
            if twice is not None:
                return self._note(entries["keys"], join(key, "keys"), f'"{twice}" twice', "each stream key once")
            return side
        if not side.lanes:
            return self._note(node, join(key, "lanes"), "nothing", f"a pattern such as msg:stream:{LANE_MARK}, or keys")
        if side.lanes.count(LANE_MARK) != 1:
            return self._wrong(entries["lanes"], join(key, "lanes"), f"a pattern with {LANE_MARK} in it once")
        if not side.count and "count" not in entries:
            return self._note(node, join(key, "count"), "nothing", "how many lanes the pattern has, or discover")
        return side

    def _route(self, node: Node, key: str) -> Any:
        route = self._struct(RouteSettings, node, key)
        if node.kind != "map":
            return BAD
        fine = route is not BAD
        for end in ("source", "target"):
            fine &= self._known(node, key, end, self._brokers, "broker")
        fine &= self._known(node, key, "stream", self._streams, "stream")
        fine &= self._is_pair(node, key)
        return route if fine and self._ends_fit(route, node, key) and self._is_own_id(route, node, key) else BAD

    def _is_pair(self, node: Node, key: str) -> bool:
        """Whether the route named by `reverse_of`, if any, copies the same stream the other way, one to one."""
        child = node.entries.get("reverse_of")
        if child is None:
            return True
        routes, name = self._names("routes"), key.rpartition(".")[2]
        if not self._known(node, key, "reverse_of", routes, "route") or child.kind != "scalar":
            return False
        other = routes[child.text]
        mine, its = ({end: _scalar(n, end) for end in _ENDS} for n in (node, other))
        wrong = ""
        if (mine["stream"], mine["source"], mine["target"]) != (its["stream"], its["target"], its["source"]):
            wrong = f'"{child.text}", which does not copy the same stream the other way'
        elif "by-key" in (mine["lanes"], its["lanes"]):
            wrong = f'"{child.text}" with lanes: by-key: an echo is known by its lane'
        elif its["reverse_of"]:
            wrong = f'"{child.text}", which has a reverse_of itself: one of the two says so'
        elif twin := next((r for r, n in routes.items() if r != name and _scalar(n, "reverse_of") == child.text), ""):
            wrong = f'"{child.text}", which is in a pair with {twin}'
        if wrong:
            expected = "a route with the same stream, source and target exchanged, and lanes: one-to-one"
            self._note(child, join(key, "reverse_of"), wrong, expected)
        return not wrong

    def _is_own_id(self, route: RouteSettings, node: Node, key: str) -> bool:
        name = key.rpartition(".")[2]
        first = self._ids.setdefault(route.id, name)
        if first != name:
            found = f'"{route.id}", which route {first} has'
            expected = "an id of its own: `crossfade init --new-id` prints one"
            self._note(node.entries["id"], join(key, "id"), found, expected)
        return first == name

    def _known(self, node: Node, key: str, name: str, known: Mapping[str, Node], noun: str) -> bool:
        child = node.entries.get(name)
        if child is None or child.kind != "scalar" or child.text in known:
            return True
        expected = f"the name of a {noun} ({', '.join(known) or 'none is configured'})"
        self._wrong(child, join(key, name), expected, nearest(child.text, known))
        return False

    def _ends_fit(self, route: RouteSettings, node: Node, key: str) -> bool:
        if route.source == route.target:
            expected = "another broker than the source (a second entry may name the same server)"
            self._wrong(node.entries["target"], join(key, "target"), expected)
            return False
        fine = True
        for end in ("source", "target"):
            broker = getattr(route, end)
            if broker not in self._streams[route.stream].entries:
                found = f'"{broker}", on which stream {route.stream} has no place'
                self._note(node.entries[end], join(key, end), found, f"a key streams.{route.stream}.{broker}")
                fine = False
        return fine

    def _beginning(self, node: Node, key: str) -> Any:
        if node.kind == "scalar" and node.text in ("earliest", "latest"):
            return Beginning("earliest" if node.text == "earliest" else "latest")
        if node.kind != "map" or len(node.entries) != 1:
            close = nearest(node.text, ["earliest", "latest"]) if node.kind == "scalar" else ""
            return self._wrong(node, key, _BEGINNINGS, close)
        ((name, child),) = node.entries.items()
        if name == "time":
            return self._time(child, join(key, name))
        if name != "position":
            return self._unknown(child, key, name, ["time", "position"])
        if not re.fullmatch(r"\d+(-\d+)?", child.text):
            return self._wrong(child, join(key, name), "a position such as 1700000000000-0 or 42")
        return Beginning("position", child.text)

    def _time(self, node: Node, key: str) -> Any:
        try:
            moment = datetime.fromisoformat(node.text.strip())
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            return self._wrong(node, key, "a time with its zone, such as 2026-01-31T12:00:00Z")
        return Beginning("time", str(round(moment.timestamp() * 1000)))

    def _mapping(self, node: Node, key: str) -> Any:
        if node.kind == "scalar":
            return self._mapping_checked(MappingChoice(node.text), node, key)
        name_node = node.entries.get("name")
        if name_node is None:
            return self._wrong(node, key, "the name of a mapping, or {name: .., its options}")
        texts = {name: self._text(child, join(key, name)) for name, child in node.entries.items()}
        if BAD in texts.values():
            return BAD
        return self._mapping_checked(MappingChoice(texts.pop("name"), texts), node, key)

    def _mapping_checked(self, choice: MappingChoice, node: Node, key: str) -> Any:
        try:
            mapping_named(choice.name, **choice.options)
        except UsageError as error:
            known = re.findall(r"[a-z_]+", error.hint)
            wrong = [name for name in (choice.name, *choice.options) if f"{name!r}" in error.message]
            close = nearest(wrong[-1], known) if wrong else ""
            return self._note(node, key, f"a mistake ({error.message})", error.hint or "a mapping that fits", close)
        return choice


def load(
    path: Path | None,
    overrides: Mapping[str, str],
    environ: Mapping[str, str],
    check_properties: PropertyCheck | None = None,
) -> Config:
    """Read the configuration at `path`, else at $CROSSFADE_CONFIG, else `crossfade.yaml` in this folder.

    `overrides` maps dotted keys to text and beats `CROSSFADE_<KEY>__<KEY>` variables of `environ`, which beat the file.
    `check_properties` says what is wrong with a Kafka broker's properties, given as the client takes them.
    Raises ConfigError with every problem found.
    """
    path = path or Path(environ.get("CROSSFADE_CONFIG") or "crossfade.yaml")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            [Problem(str(path), "", "no such file", "a configuration")],
            hint="`crossfade init` writes one; `--config FILE` or CROSSFADE_CONFIG names another",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError([Problem(str(path), "", f"a file that cannot be read ({reason})", "a YAML file")]) from None
    root, problems = parse(text, str(path))
    if root.kind != "map":
        found = root.describe()
        raise ConfigError(
            [Problem(root.where, "", found, "a mapping with version, brokers, streams and routes", line=root.line)]
        )
    override(root, overrides, environ)
    reader = Reader(root, path, environ, check_properties)
    config = reader.read()
    problems += reader.problems
    if problems:
        raise ConfigError(problems, hint=_HINT)
    invariant(isinstance(config, Config), "a configuration without problems is built")
    return cast(Config, config)
