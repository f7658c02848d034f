"""The configuration as a tree of nodes that know where they come from, before any key has a meaning.

Hides YAML and the two ways to override a key (`--set brokers.old.url=...`, `CROSSFADE_BROKERS__OLD__URL`).
Every node carries the file and line, or the flag or variable, that an error message names.
Only the reader calls this.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..errors import UsageError
from .secret import masked

#: variables with a double underscore under this prefix set one key each
VARIABLE_PREFIX = "CROSSFADE_"
_SECRET_KEY = re.compile(r"password|secret|\.pem")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a configuration."""

    where: str  # "crossfade.yaml:12", or the flag or variable that set the key
    key: str  # brokers.old.url; "" = the file as a whole
    found: str
    expected: str
    nearest: str = ""  # the nearest valid name
    line: int = 0

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        nearest = f'; did you mean "{self.nearest}"?' if self.nearest else ""
        # One line, whatever a key or a value holds.
        return f"{self.where}: {key}found {self.found}, expected {self.expected}{nearest}".replace("\n", "\\n")


class ConfigError(UsageError):
    """The configuration is wrong; `problems` lists everything, one line each."""

    def __init__(self, problems: Iterable[Problem], *, hint: str = "") -> None:
        self.problems = sorted(problems, key=lambda problem: (problem.line == 0, problem.line))
        super().__init__("\n".join(map(str, self.problems)), hint=hint)

    def as_dict(self) -> dict[str, object]:
        names = ("where", "key", "found", "expected", "nearest")
        return super().as_dict() | {
            "problems": [{name: getattr(problem, name) for name in names} for problem in self.problems]
        }


@dataclass(slots=True)
class Node:
    """One value of the tree."""

    kind: Literal["map", "list", "scalar", "null"]
    where: str
    line: int = 0  # 0 = not from the file
    text: str = ""
    tag: str = "text"  # of a scalar: str, int, float, bool, timestamp; text = from a flag or variable, may be any
    entries: dict[str, Node] = field(default_factory=dict)
    items: list[Node] = field(default_factory=list)

    def describe(self) -> str:
        """What was found, for a person."""
        if self.kind == "scalar":
            text = masked(self.text)
            shown = text if len(text) <= 60 else text[:57] + "..."
            return f'"{shown}"' if self.tag in ("str", "text") else shown
        return {"map": "a mapping", "list": "a list", "null": "nothing"}[self.kind]


def nearest(name: str, names: Iterable[str]) -> str:
    """The valid name that a misspelled one most likely means, or ""."""
    return next(iter(difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.6)), "")


def parse(text: str, file: str) -> tuple[Node, list[Problem]]:
    """The tree of one YAML document, with doubled keys and odd tags as problems.

    Raises ConfigError when `text` is no YAML.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        root = YAML(typ="safe", pure=True).compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        written = "".join(text.splitlines()[line - 1 : line])
        reason = str(error.problem)
        if _SECRET_KEY.search(written):  # a password that begins with * is an alias to YAML, and would be named
            reason = re.sub(r"'[^']{2,}'", "'***'", reason)
        problem = Problem(f"{file}:{line}", "", f"no YAML ({reason})", "a YAML file", line=line)
        has_reference = "${" in written
        hint = 'inside { } a reference needs quotes: "${env:NAME}"' if has_reference else ""
        raise ConfigError([problem], hint=hint) from None
    except YAMLError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError([Problem(file, "", f"no YAML ({reason})", "a YAML file")]) from None
    except RecursionError:
        raise _too_deep(file) from None
    if root is None:
        return Node("map", file), []
    builder = _Builder(file)
    try:
        return builder.build(root, ""), builder.problems
    except RecursionError:
        raise _too_deep(file) from None


def _too_deep(file: str) -> ConfigError:
    return ConfigError([Problem(file, "", "hundreds of lists or mappings within each other", "a YAML file")])


class _Builder:
    """Turns the YAML library's nodes into ours; shared nodes (aliases) are built once, endless ones refused."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._built: dict[int, Node] = {}
        self.problems: list[Problem] = []

    def build(self, source: Any, key: str) -> Node:
        if id(source) in self._built:
            return self._built[id(source)]
        line = source.start_mark.line + 1
        where = f"{self._file}:{line}"
        tag = str(source.tag or "").removeprefix("tag:yaml.org,2002:")
        node = Node("null", where, line)
        self._built[id(source)] = node
        if tag == "map":
            node.kind = "map"
            self._entries(source, node, key)
        elif tag == "seq":
            node.kind = "list"
            node.items = [self.build(item, f"{key}[{index}]") for index, item in enumerate(source.value)]
        elif tag in ("str", "int", "float", "bool", "timestamp"):
            node.kind, node.text, node.tag = "scalar", source.value, tag
        elif tag != "null":
            named = "a YAML tag" if _SECRET_KEY.search(key) else f"the YAML tag !{tag.lstrip('!')}"
            self.problems.append(Problem(where, key, named, "no tag", line=line))
        return node

    def _entries(self, source: Any, node: Node, key: str) -> None:
        for key_source, value_source in source.value:
            line = key_source.start_mark.line + 1
            where = f"{self._file}:{line}"
            if not isinstance(key_source.value, str):
                self.problems.append(Problem(where, key, "a list or mapping as a key", "a name", line=line))
                continue
            name = key_source.value
            value = self.build(value_source, join(key, name))
            if name in node.entries:
                found = f'a second "{name}" (the first is on line {node.entries[name].line})'
                self.problems.append(Problem(where, join(key, name), found, "each key once", line=line))
                continue
            # The line of the key, not of a value that starts further down: that is where a person looks.
            if value_source.anchor is None:
                value.line, value.where = line, where
            node.entries[name] = value


def join(key: str, name: str) -> str:
    """The dotted key of `name` within `key`."""
    return f"{key}.{name}" if key else name


def override(root: Node, sets: Mapping[str, str], environ: Mapping[str, str]) -> None:
    """Put variables, then flags, over what the file says; a later one wins."""
    for variable in sorted(environ):
        if variable.startswith(VARIABLE_PREFIX) and "__" in variable:
            segments = variable.removeprefix(VARIABLE_PREFIX).lower().split("__")
            if _names_property(segments):
                # bootstrap.servers cannot be part of a variable's name; BOOTSTRAP_SERVERS can.
                segments[3:] = [segment.replace("_", ".") for segment in segments[3:]]
            _put(root, segments, Node("scalar", variable, text=environ[variable]))
    for key, text in sets.items():
        _put(root, key.split("."), Node("scalar", f"--set {key}", text=text))


def _names_property(segments: list[str]) -> bool:
    return len(segments) > 3 and segments[0] == "brokers" and segments[2] == "properties"


def _put(root: Node, segments: list[str], leaf: Node) -> None:
    if _names_property(segments):
        segments = [*segments[:3], ".".join(segments[3:])]
    node = root
    for segment in segments[:-1]:
        name = _existing(node, segment)
        child = node.entries.get(name)
        if child is None or child.kind != "map":
            child = Node("map", leaf.where)
        # Aliases share one node: what is put here must not show at the other places.
        node.entries[name] = node = replace(child, entries=dict(child.entries))
    node.entries[_existing(node, segments[-1])] = leaf


def _existing(node: Node, segment: str) -> str:
    """The key that a segment means: `OLD_REDIS` is `old-redis` where that is there."""
    plain = re.sub(r"[-.]", "_", segment.lower())
    for name in node.entries:
        if re.sub(r"[-.]", "_", name.lower()) == plain:
            return name
    return segment
