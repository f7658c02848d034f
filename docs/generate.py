"""Writes the pages that come from the code: docs/configuration.md, docs/cli.md, docs/modules.md and the JSON Schema.

`make docs` runs it; a test compares its output with what is committed, so no page can fall behind the code.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import sys
import typing
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union
from unittest.mock import patch

import msgspec

from crossfade.cli import init
from crossfade.cli.main import COMMANDS, load_command, run
from crossfade.config import (
    Beginning,
    Config,
    KafkaBroker,
    KafkaSide,
    MappingChoice,
    RedisBroker,
    RedisSide,
    RouteSettings,
    Secret,
    StreamSettings,
    Tls,
)
from crossfade.config.schema import NOT_IN_FILE, schema
from crossfade.config.shape import Duration
from crossfade.model.mapping import MAPPINGS, mapping_named

ROOT = Path(__file__).parent.parent
_MADE = "<!-- made by docs/generate.py; change the code, then run `make docs` -->\n\n"
_EXAMPLE_ID = "k3x9a0b1c2d3"


def outputs() -> dict[Path, str]:
    """Every generated file and its text."""
    return {
        ROOT / "src/crossfade/crossfade.schema.json": json.dumps(schema(), indent=2) + "\n",
        ROOT / "docs/configuration.md": configuration(),
        ROOT / "docs/cli.md": cli(),
        ROOT / "docs/modules.md": modules(),
    }


# -- modules -------------------------------------------------------------------------------------------------------


def modules() -> str:
    """The first sentence of each module, by folder."""
    package = ROOT / "src/crossfade"
    folders: dict[Path, list[Path]] = {}
    for path in sorted(package.rglob("*.py")):
        folders.setdefault(path.parent, []).append(path)
    lines = [
        "# Modules",
        "",
        "The first sentence of each; the way of a record is in [ARCHITECTURE.md](../ARCHITECTURE.md).",
        "",
    ]
    for folder, paths in folders.items():
        named = [(path.stem, _first_sentence(path)) for path in paths if path.stem not in ("__init__", "__main__")]
        lines += [f"## `{folder.relative_to(package.parent)}/`", ""]
        if about := _first_sentence(folder / "__init__.py"):
            lines += [about, ""]
        if named:
            lines += ["| module | |", "|---|---|", *(f"| `{name}` | {said} |" for name, said in named), ""]
    return _MADE + "\n".join(lines).rstrip() + "\n"


def _first_sentence(path: Path) -> str:
    """Of its docstring, on one line; "" = it has none."""
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(said.split("\n\n")[0].split()).replace("|", "\\|")


# -- configuration -------------------------------------------------------------------------------------------------

_SECTIONS: list[tuple[str, str, type[msgspec.Struct]]] = [
    ("The file", "", Config),
    ("`brokers.<name>` with `kind: redis`", "", RedisBroker),
    ("`brokers.<name>.tls`", "", Tls),
    ("`brokers.<name>` with `kind: kafka`", "", KafkaBroker),
    (
        "`streams.<name>`",
        "Beside these keys a stream has one key for each broker that keeps it, with the broker's name:\n"
        "`lanes` and `count`, or `keys`, on Redis; `topic` on Kafka.\n\n",
        StreamSettings,
    ),
    ("`streams.<name>.<redis broker>`", "", RedisSide),
    ("`streams.<name>.<kafka broker>`", "", KafkaSide),
    ("`routes.<name>`", "", RouteSettings),
]

_INTRO = """\
# Configuration

One file, `crossfade.yaml`: found by `--config FILE`, else by the variable `CROSSFADE_CONFIG`, else in the current
folder. `crossfade init` writes one with comments; `crossfade doctor` checks it against the live brokers.

Anything wrong with it is told at once, one line each, with the file and line, the key, what was found, what was
expected and the nearest valid name:

```
crossfade.yaml:3: brokers.old.url: found "rdis://h", expected redis://HOST:PORT/DB, rediss://HOST:PORT/DB or \
unix:///PATH; did you mean "redis"?
```

## An example

```yaml
{example}```

## Overriding one key

A flag beats a variable, a variable beats the file:

- `--set brokers.old.url=redis://10.0.0.5:6379`, the dotted key, anywhere on the command line;
- `CROSSFADE_BROKERS__OLD__URL=redis://10.0.0.5:6379`, the key in capitals with `__` between its parts. A dash in a name
  is `_`, and so is a dot in the name of a librdkafka property:
  `CROSSFADE_BROKERS__NEW__PROPERTIES__BOOTSTRAP_SERVERS`.

A list is written with commas.

These variables stand for a flag, or for a setting that belongs to a host and not to the file:

| variable | stands for |
|---|---|
| `CROSSFADE_CONFIG` | `--config FILE` |
| `CROSSFADE_INSTANCE` | `relay run --instance NAME`; without both it is the name of the host |
| `CROSSFADE_METRICS_HOST` | the address on which `/metrics`, `/livez` and `/readyz` listen; default `127.0.0.1` |
| `CROSSFADE_LAB` | the lab that `crossfade lab` means |
| `CROSSFADE_LAB_ROOT` | the folder of all labs; default `.crossfade/lab` in the current folder |
| `CROSSFADE_HOME` | the download cache of the lab; default `$XDG_CACHE_HOME/crossfade`, else `~/.cache/crossfade` |
| `NO_COLOR` | set to anything: no colours in log lines |

## Secrets

Any text may hold `${{env:NAME}}` and `${{file:PATH}}`; a relative path starts at the folder of the configuration.
Nothing else is expanded. Inside `{{ }}` YAML wants quotes around a reference. Secrets appear in no log and no error.
User and password may also stand in a Redis URL; the keys beside it win. An empty secret is a mistake; a Redis user who
has no password is named by the key `username` alone.

A literal is kept secret where its key says that it is one (`password`, `secret`, `*.pem`).

A running relay takes up what changed in a file; the variables of a process do not change.

| changed in a file | when a running relay takes it up |
|---|---|
| passwords of Redis and its Sentinels, files under `tls` | at the next connect |
| `sasl.password` of Kafka, and with it `sasl.username` | when a broker refuses the old ones |
| anything else, such as certificates and keys of Kafka, or the client secret of OAUTHBEARER | restart the relay |

Where a file is missing, empty or half written when a relay connects anew, or certificate and key do not fit together,
somebody may be writing them: the relay tries again, and logs in with nothing else meanwhile. When a process starts, it
is a mistake in the configuration.

How to change a password without a stop: [security.md](security.md#changing-a-password).

## Durations, times and names

- A duration has its unit: `500ms`, `90s`, `15m`, `12h`, `7d`.
- A time has its zone: `2026-01-31T12:00:00Z`.
- Names of brokers, streams and routes, and route ids: 1 to 63 characters of `a-z`, `0-9` and `-`.
- `from` is `earliest`, `latest`, `{{time: 2026-01-31T12:00:00Z}}` or `{{position: 1700000000000-0}}` (start after it).
- `mapping` is a name, or `{{name: json, key_field: user_id}}` with the options of that mapping.

"""


_MAPPING_WORDS = {
    "lossless": "identical bytes after a round trip; an entry with fields of your own becomes a packed value",
    "body": "one field is the value, another may be the key",
    "json": "all fields are one JSON object",
    "headers": "one field is the value, another may be the key, the rest are headers",
}


def configuration() -> str:
    """The reference of every key."""
    with patch.object(init, "new_route_id", lambda: _EXAMPLE_ID):
        example = init.render(
            "redis://127.0.0.1:6379/0",
            "kafka://127.0.0.1:9092",
            stream="messages",
            lanes="msg:stream:<lane>",
            count=16,
            topic="messages.v1",
            route="forward",
        )
    # The first line names the schema of this very installation, the third tells of it.
    _, first, _, *rest = example.splitlines(keepends=True)
    example = "".join([first, *rest])
    sections = [f"## {title}\n\n{words}{_table(kind)}" for title, words, kind in _SECTIONS]
    return _MADE + _INTRO.format(example=example) + "\n".join([*sections, _mappings()])


def _mappings() -> str:
    rows = ["## `streams.<name>.mapping`", "", "| name | options | a Redis entry as a Kafka record |", "|---|---|---|"]
    for name in MAPPINGS:
        options = ", ".join(f"`{option}`" for option in getattr(mapping_named(name), "options", ()))
        rows.append(f"| `{name}` | {options} | {_MAPPING_WORDS[name]} |")
    rows += ["", "The other direction, and what a mapping drops or rejects: [records.md](records.md)."]
    return "\n".join(rows) + "\n"


def _table(kind: type[msgspec.Struct]) -> str:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for field in msgspec.structs.fields(kind):
        if (kind, field.name) not in NOT_IN_FILE:
            shown = f"`{field.encode_name}` | {_type(field.type)} | {_default(kind, field)} | {_meaning(field.type)}"
            rows.append(f"| {shown} |")
    return "\n".join(rows) + "\n"


def _default(kind: type[msgspec.Struct], field: msgspec.structs.FieldInfo) -> str:
    if field.required or (kind in (RedisBroker, KafkaBroker) and field.name == "kind"):
        return "required"
    default = field.default
    if isinstance(default, Beginning):
        default = default.where
    elif isinstance(default, MappingChoice):
        default = default.name
    elif isinstance(default, bool):
        default = str(default).lower()
    elif isinstance(default, float):
        default = "1d" if default == 86_400.0 and _has_unit(field.type) else f"{default:g}"
    # 0 lanes, no text and no keys stand for a key that is not there.
    is_nothing = default in ("", None, ()) or (kind is RedisSide and default == 0)
    return "" if is_nothing else f"`{default}`"


def _has_unit(kind: Any) -> bool:
    return any(isinstance(meta, Duration) for meta in typing.get_args(kind)[1:])


def _meaning(kind: Any) -> str:
    metas = typing.get_args(kind)[1:] if typing.get_origin(kind) is typing.Annotated else ()
    said = next((meta.description for meta in metas if isinstance(meta, msgspec.Meta)), "")
    return str(said).replace("|", "\\|").replace("<lane>", "`<lane>`")


def _type(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Annotated:
        if _has_unit(kind):
            return "duration"
        inner, *metas = typing.get_args(kind)
        return _type(inner) + _limits(next((meta for meta in metas if isinstance(meta, msgspec.Meta)), None))
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, UnionType):
        return _type(next(each for each in inner if each is not NoneType))
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    names: dict[Any, str] = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}
    names |= {Secret: "secret", Beginning: "beginning", MappingChoice: "mapping", Tls: "keys below"}
    return names.get(kind) or {dict: "names", tuple: "list"}[origin]


def _limits(meta: msgspec.Meta | None) -> str:
    if meta is None or meta.ge is None:
        return ""
    return f", {meta.ge}..{meta.le}" if meta.le is not None else f", {meta.ge} or more"


# -- command line --------------------------------------------------------------------------------------------------

_CLI_INTRO = """\
# Command line

stdout is data, stderr is words. With `-o json` each document carries `version`; with `--watch` it is one document a
line. An error is one line and a hint. Where a name stands in brackets (`error (MarkerLost): ..`),
[operate.md](operate.md#when-the-process-ends) says by that name what to do.

With `-o json` log lines and errors on stderr are JSON too, one object a line. A log line has `event`; an error has
`error` (its name), `message`, `hint` and `exit_code`, and is the last of them. `kind`, where there is one, is what a
relay does about it: `retry`, `reclaim` (it claims its lanes anew), or `halt` (of a lane). Lines that are no JSON, such
as progress, are for people.

| exit code | meaning |
|---|---|
| 0 | ok |
| 1 | failed |
| 2 | usage or configuration |
| 3 | differences, findings or halted lanes |
| 4 | refused for safety |
| 5 | a broker gave no answer or refused us |
| 130 | interrupted |

"""


def cli() -> str:
    """The help of every command, as the terminal shows it."""
    parts = [_help([])]
    for name in COMMANDS:
        parts += _helps([name], load_command(name))
    return _MADE + _CLI_INTRO + "\n".join(parts)


def _helps(path: list[str], command: Any) -> list[str]:
    found = [_help(path)]
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            found += _helps([*path, name], child)
    return found


def _help(path: list[str]) -> str:
    out = io.StringIO()
    with patch.dict(os.environ, {"COLUMNS": "100", "TERM": "dumb"}), contextlib.redirect_stdout(out):
        if run([*path, "--help"]) != 0:
            raise SystemExit(f"no help for {' '.join(path)}")
    text = "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())
    level = "#" * (2 + max(0, len(path) - 1))
    return f"{level} {' '.join(['crossfade', *path])}\n\n```\n{text}\n```\n"


def main() -> None:
    """Write what changed."""
    for path, text in outputs().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            sys.stderr.write(f"wrote {path.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
