"""The JSON Schema of `crossfade.yaml`, made from the same structs as the reader, so that editors complete its keys.

`src/crossfade/crossfade.schema.json` is its shipped copy; `docs/generate.py` renews it and a test compares them.
It is a little laxer than the reader: names that refer to each other and limits between keys are the reader's alone.
"""

from __future__ import annotations

import typing
from types import NoneType, UnionType
from typing import Any, Literal, Union

import msgspec

from .secret import Secret
from .shape import (
    NAME,
    Beginning,
    Config,
    Duration,
    KafkaBroker,
    KafkaSide,
    MappingChoice,
    NameText,
    RedisBroker,
    RedisSide,
    StreamSettings,
)
from .walk import DURATION

Schema = dict[str, Any]

#: text that looks like a number is text all the same
_TEXT: Schema = {"type": ["string", "number"]}
_SCALAR: Schema = {"type": ["string", "number", "boolean"]}
_SPECIAL: dict[Any, Schema] = {
    Secret: _TEXT,
    str | Secret: _SCALAR,
    Beginning: {
        "anyOf": [
            {"enum": ["earliest", "latest"]},
            {"type": "object", "properties": {"time": {"type": "string"}}, "required": ["time"]},
            {
                "type": "object",
                "properties": {"position": _TEXT},
                "required": ["position"],
            },
        ]
    },
    MappingChoice: {
        "anyOf": [
            {"type": "string"},
            {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
        ]
    },
}
#: fields that the reader fills in itself
NOT_IN_FILE = {(Config, "path"), (StreamSettings, "sides")}


def schema() -> Schema:
    """The JSON Schema (draft 2020-12) of a configuration file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "crossfade.yaml",
        **_struct(Config),
    }


def _struct(kind: type[msgspec.Struct]) -> Schema:
    fields = [field for field in msgspec.structs.fields(kind) if (kind, field.name) not in NOT_IN_FILE]
    required = [field.encode_name for field in fields if field.required]
    if kind in (RedisBroker, KafkaBroker):
        required.insert(0, "kind")
    found: Schema = {
        "type": "object",
        "description": (kind.__doc__ or "").partition("\n")[0],
        "properties": {field.encode_name: _field(field) for field in fields},
        "additionalProperties": False,
    }
    if required:
        found["required"] = required
    if kind is StreamSettings:
        # Every other key is a broker's name, which only the reader knows.
        found["additionalProperties"] = {"anyOf": [_struct(RedisSide), _struct(KafkaSide)]}
    return found


def _field(field: msgspec.structs.FieldInfo) -> Schema:
    found = _value(field.type)
    if field.name == "count":
        found = {"description": found.pop("description"), "anyOf": [found, {"const": "discover"}]}
    if isinstance(field.default, (str, int, float)) and field.default != "" and "pattern" not in found:
        found = {**found, "default": field.default}
    return found


def _value(kind: Any) -> Schema:
    if typing.get_origin(kind) is not typing.Annotated:
        return _plain(kind)
    kind, *metas = typing.get_args(kind)
    found = dict(_plain(kind))
    for meta in metas:
        if isinstance(meta, Duration):
            found = {"type": "string", "pattern": f"^{DURATION.pattern}$"}
        elif isinstance(meta, NameText):
            found["pattern"] = f"^{NAME.pattern}$"
        elif isinstance(meta, msgspec.Meta):
            limits = {"description": meta.description, "minimum": meta.ge, "maximum": meta.le}
            found |= {name: value for name, value in limits.items() if value is not None}
    return found


def _plain(kind: Any) -> Schema:
    if kind in _SPECIAL:
        return _SPECIAL[kind]
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, UnionType):
        kinds = [each for each in inner if each is not NoneType]
        return _value(kinds[0]) if len(kinds) == 1 else {"anyOf": [_value(each) for each in kinds]}
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is dict:
        return _names(inner[1])
    if origin is tuple:
        return {"type": "array", "items": _TEXT, "minItems": 1}
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _struct(kind)
    return _TEXT if kind is str else {"type": {bool: "boolean", int: "integer", float: "number"}[kind]}


def _names(kind: Any) -> Schema:
    if kind == str | Secret:
        return {"type": "object", "additionalProperties": _value(kind), "required": ["bootstrap.servers"]}
    return {"type": "object", "propertyNames": {"pattern": f"^{NAME.pattern}$"}, "additionalProperties": _value(kind)}
