"""Turns a tree of nodes into structs along their types, and notes every problem on the way.

Hides the checks that hold for any configuration: unknown and missing keys, wrong types, limits, references to the
environment. Keeps going after a problem: a value that cannot be used becomes BAD and its owner is not built.
The reader adds what is special about brokers, streams and routes.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union

import msgspec

from ..errors import UsageError
from .secret import Secret
from .shape import NAME, Duration, NameText
from .tree import Node, Problem, join, nearest

DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_NAME_EXPECTED = "1 to 63 characters of a-z, 0-9 and -"

#: a value that cannot be used; the problem is already noted
BAD: Any = object()


class Walk:
    """One walk over one tree."""

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self._path = path
        self._environ = environ
        self.problems: list[Problem] = []

    def _value(self, kind: Any, node: Node, key: str) -> Any:
        metas: tuple[Any, ...] = ()
        if typing.get_origin(kind) is typing.Annotated:
            kind, *rest = typing.get_args(kind)
            metas = tuple(rest)
        special = self._special(kind)
        if special is not None:
            return special(node, key)
        origin = typing.get_origin(kind)
        if origin in (Union, UnionType):
            return self._value(next(each for each in typing.get_args(kind) if each is not NoneType), node, key)
        if origin is Literal:
            return self._choice(typing.get_args(kind), node, key)
        if origin is dict:
            return self._dict(typing.get_args(kind)[1], node, key)
        if origin is tuple:
            return self._texts(node, key)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self._struct(kind, node, key)
        return self._scalar(kind, metas, node, key)

    def _special(self, kind: Any) -> Callable[[Node, str], Any] | None:
        """How to read what is not one key of one type; None = along its type."""
        return self._secret if kind is Secret else None

    def _struct(self, kind: type[msgspec.Struct], node: Node, key: str, given: Mapping[str, Any] | None = None) -> Any:
        given = given or {}
        fields = [field for field in msgspec.structs.fields(kind) if field.name not in given]
        names = [field.encode_name for field in fields]
        if node.kind != "map":
            return self._wrong(node, key, f"a mapping with {one_of(names)}")
        values = dict(given)
        for name, value in node.entries.items():
            if name not in names:
                self._unknown(value, key, name, names)
        for field in fields:
            child = node.entries.get(field.encode_name)
            if child is not None:
                values[field.name] = self._value(field.type, child, join(key, field.encode_name))
            elif field.required:
                expected = self._expected(field.type) + _says(field.type)
                self._note(node, join(key, field.encode_name), "nothing", expected)
                values[field.name] = BAD
        bad = any(value is BAD for value in values.values()) or any(name not in names for name in node.entries)
        return BAD if bad else kind(**values)

    def _dict(self, kind: Any, node: Node, key: str) -> Any:
        if node.kind != "map":
            return self._wrong(node, key, "a mapping of names")
        values = {}
        for name, child in node.entries.items():
            values[name] = self._value(kind, child, join(key, name))
            if kind != str | Secret and not NAME.fullmatch(name):
                values[name] = self._note(child, join(key, name), f'the name "{name}"', _NAME_EXPECTED)
        return BAD if any(value is BAD for value in values.values()) else values

    def _choice(self, choices: tuple[Any, ...], node: Node, key: str) -> Any:
        for choice in choices:
            if node.kind == "scalar" and node.text == str(choice):
                return choice
        close = nearest(node.text, map(str, choices)) if node.kind == "scalar" else ""
        return self._wrong(node, key, one_of(map(str, choices)), close)

    def _texts(self, node: Node, key: str) -> Any:
        if node.kind == "scalar" and node.tag == "text":
            return tuple(part.strip() for part in node.text.split(","))
        if node.kind != "list" or not node.items:
            return self._wrong(node, key, "a list of names")
        texts = [self._text(item, f"{key}[{index}]") for index, item in enumerate(node.items)]
        return BAD if BAD in texts else tuple(texts)

    def _scalar(self, kind: type, metas: tuple[Any, ...], node: Node, key: str) -> Any:
        if any(isinstance(meta, Duration) for meta in metas):
            return self._duration(node, key)
        if any(isinstance(meta, NameText) for meta in metas):
            text = self._text(node, key)
            return text if text is BAD or NAME.fullmatch(text) else self._wrong(node, key, _NAME_EXPECTED)
        if kind is str:
            return self._text(node, key)
        if kind is bool:
            return self._flag(node, key)
        return self._number(kind, metas, node, key)

    def _flag(self, node: Node, key: str) -> Any:
        word = node.text.lower() if node.kind == "scalar" and node.tag in ("bool", "text") else ""
        return word == "true" if word in ("true", "false") else self._wrong(node, key, "true or false")

    def _number(self, kind: type, metas: tuple[Any, ...], node: Node, key: str) -> Any:
        expected = _number_expected(kind, metas)
        tags = ("int", "float", "text") if kind is float else ("int", "text")
        if node.kind != "scalar" or node.tag not in tags:
            return self._wrong(node, key, expected)
        try:
            number = kind(node.text.replace("_", ""))
        except ValueError:
            return self._wrong(node, key, expected)
        low, high = _limits(metas)
        in_limits = (low is None or number >= low) and (high is None or number <= high)
        # NaN compares false with everything, infinity passes a lower limit: neither is a number to wait or count by.
        return number if in_limits and abs(number) < 1e18 else self._wrong(node, key, expected)

    def _text(self, node: Node, key: str) -> Any:
        if node.kind != "scalar" or node.tag == "bool" or node.text == "":
            return self._wrong(node, key, "text")
        text = self._readable(node.text, node, key, may_be_empty=True)
        return BAD if text is BAD else text.get()

    def _secret(self, node: Node, key: str) -> Any:
        if node.kind != "scalar" or node.tag == "bool" or node.text == "":
            return self._wrong(node, key, "text, ${env:NAME} or ${file:PATH}")
        return self._readable(node.text, node, key, may_be_empty=False)

    def _readable(self, text: str, node: Node, key: str, *, may_be_empty: bool) -> Any:
        secret = Secret(text, self._environ, self._path.parent)
        try:
            value = secret.get()
        except UsageError as error:
            return self._note(node, key, f"a reference that cannot be read ({error.message})", "a value")
        # An empty password would log in as somebody else, in silence.
        return secret if value or may_be_empty else self._note(node, key, "an empty value", "a value")

    def _duration(self, node: Node, key: str) -> Any:
        match = DURATION.fullmatch(node.text) if node.kind == "scalar" else None
        if match is None:
            return self._wrong(node, key, "a duration with its unit, such as 500ms, 90s, 15m, 12h or 7d")
        return float(match[1]) * _UNIT_S[match[2]]

    def _note(self, node: Node, key: str, found: str, expected: str, close: str = "") -> Any:
        self.problems.append(Problem(node.where, key, found, expected, close, node.line))
        return BAD

    def _wrong(self, node: Node, key: str, expected: str, close: str = "") -> Any:
        return self._note(node, key, node.describe(), expected, close)

    def _unknown(self, node: Node, key: str, name: str, names: Iterable[str]) -> Any:
        names = list(names)
        return self._note(node, join(key, name), f'the unknown key "{name}"', one_of(names), nearest(name, names))

    def _expected(self, kind: Any) -> str:
        if typing.get_origin(kind) is typing.Annotated:
            kind, *metas = typing.get_args(kind)
            if kind in (int, float):
                return _number_expected(kind, tuple(metas))
        if typing.get_origin(kind) is Literal:
            return one_of(map(str, typing.get_args(kind)))
        return "a mapping" if typing.get_origin(kind) is dict else "text"


def _says(kind: Any) -> str:
    metas = typing.get_args(kind)[1:] if typing.get_origin(kind) is typing.Annotated else ()
    return next((f": {meta.description}" for meta in metas if isinstance(meta, msgspec.Meta)), "")


def one_of(names: Iterable[str]) -> str:
    listed = list(names)
    return listed[0] if len(listed) == 1 else f"one of {', '.join(listed)}"


def _limits(metas: tuple[Any, ...]) -> tuple[int | float | None, int | float | None]:
    meta = next((meta for meta in metas if isinstance(meta, msgspec.Meta)), None)
    return (None, None) if meta is None else (meta.ge, meta.le)


def _number_expected(kind: type, metas: tuple[Any, ...]) -> str:
    noun = "a whole number" if kind is int else "a number"
    low, high = _limits(metas)
    if high is not None:
        return f"{noun} from {low} to {high}"
    return noun if low is None else f"{noun}, {low} or more"
