"""`crossfade init`: a commented crossfade.yaml, and the random id of its route.

Asks nothing: what the flags do not say becomes an example value. Never replaces a file without `--force`. The file is
read back by the same reader as any other before it is written, so what `init` writes is valid.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qsl

import typer

from ..config.secret import masked
from ..errors import RefusedByRail, UsageError
from .output import output_of

_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_ID_LENGTH = 12
_REFERENCE = re.compile(r"\$\{[^}]*\}")
#: the comment by which editors find the keys and their meaning
SCHEMA_COMMENT = "# yaml-language-server: $schema="

init_app = typer.Typer()


@init_app.command()
def init(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Option(help="Broker to copy from: redis://HOST:PORT/DB, rediss://... or kafka://HOST:PORT[,HOST:PORT]."),
    ] = "redis://127.0.0.1:6379/0",
    target: Annotated[str, typer.Option(help="Broker to copy to, in the same forms.")] = "kafka://127.0.0.1:9092",
    stream: Annotated[str, typer.Option(help="A name of your own for the stream.")] = "messages",
    lanes: Annotated[
        str, typer.Option(help="Pattern of the Redis stream keys; <lane> stands for 0, 1, 2 ...")
    ] = "msg:stream:<lane>",
    count: Annotated[int, typer.Option(min=1, help="How many lanes the pattern has.")] = 16,
    topic: Annotated[str, typer.Option(help="The Kafka topic.")] = "messages.v1",
    route: Annotated[str, typer.Option(help="A name of your own for the route.")] = "forward",
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    new_id: Annotated[
        bool, typer.Option("--new-id", help="Only print a random id for a route, and write nothing.")
    ] = False,
) -> None:
    """Write a commented crossfade.yaml, ready for `crossfade doctor`.

    Where source and target are of one kind, the target's topic gets `-copy` behind its name, or the target's stream
    keys `copy:` before theirs, to be changed in the file. A password in a URL is kept as it is: better write
    '${env:NAME}' in its place.

    \b
    Examples:
      crossfade init
      crossfade init --source 'redis://app:${env:REDIS_PASSWORD}@10.0.0.5:6379/0' --target kafka://10.0.0.7:9092 \\
          --stream orders --lanes 'orders:<lane>' --count 32 --topic orders.v1
    """
    output = output_of(context)
    if new_id:
        fresh = new_route_id()
        output.document({"id": fresh}, fresh)
        return
    path = output.config_path or Path(os.environ.get("CROSSFADE_CONFIG") or "crossfade.yaml")
    if _is_there(path) and not force:
        raise RefusedByRail(
            f"{path} exists and is not replaced",
            hint="its route ids are tied to markers on the brokers; --force replaces it, --config FILE writes another",
        )
    text = render(source, target, stream=stream, lanes=lanes, count=count, topic=topic, route=route)
    _write(path, text, has_password=_has_password(source) or _has_password(target))
    output.document({"path": str(path)}, f"wrote {path}; next: crossfade doctor")


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        raise _cannot_write(path, error) from None


def new_route_id() -> str:
    """A random route id; it names markers, groups and transactions for as long as the route lives."""
    return "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))


def render(source: str, target: str, *, stream: str, lanes: str, count: int, topic: str, route: str) -> str:
    """The text of a new configuration. Raises UsageError for a broker URL of another kind."""
    both = _kind(source) == _kind(target)
    target_lanes, target_topic = (f"copy:{lanes}", f"{topic}-copy") if both else (lanes, topic)
    return _TEMPLATE.format(
        schema=SCHEMA_COMMENT + schema_path().as_uri(),
        lossless=_LOSSLESS_INTO_KAFKA if (_kind(source), _kind(target)) == ("redis", "kafka") else _LOSSLESS,
        source_broker=_broker(source),
        target_broker=_broker(target),
        stream=stream,
        source_side=_side(source, lanes, count, topic),
        target_side=_side(target, target_lanes, count, target_topic),
        route=route,
        id=new_route_id(),
    )


def schema_path() -> Path:
    """Where the JSON Schema of the configuration is installed."""
    return Path(__file__).parent.parent / "crossfade.schema.json"


def _kind(url: str) -> str:
    scheme = url.partition("://")[0]
    kind = {"redis": "redis", "rediss": "redis", "kafka": "kafka"}.get(scheme)
    if kind is None:
        hint = "use redis://HOST:PORT/DB, rediss://... or kafka://HOST:PORT"
        raise UsageError(f"{masked(url)!r} names no broker", hint=hint)
    return kind


def _broker(url: str) -> str:
    if _kind(url) == "redis":
        address, authority = _without_authority(url)
        tls = _TLS.format(ca=_quoted(authority)) if authority else _TLS_EXAMPLE
        return _REDIS_BROKER.format(url=_quoted(address), tls=tls)
    servers = url.removeprefix("kafka://").rstrip("/")
    if "@" in servers or "/" in servers:
        raise UsageError(
            f"{masked(url)!r} holds more than HOST:PORT[,HOST:PORT]",
            hint="user and password are properties in the file: sasl.username, and sasl.password: ${env:NAME}",
        )
    return _KAFKA_BROKER.format(servers=_quoted(servers))


def _without_authority(url: str) -> tuple[str, str]:
    """The URL, and the file of its `ssl_ca_certs` (a secured lab gives one), which has a key of its own here."""
    account, at, rest = url.rpartition("@")
    server, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    authority = options.pop("ssl_ca_certs", "")
    authority = authority and str(Path(authority).absolute())  # in the file a name would start from its folder
    if options:
        raise UsageError(
            f"the address of {server!r} has options that are not taken: {', '.join(sorted(options))}",
            hint="write them into the file; every key: docs/configuration.md in Crossfade's repository",
        )
    return f"{account}{at}{server}", authority


def _has_password(url: str) -> bool:
    """Whether the URL holds a password itself, no reference to one."""
    account = url.partition("://")[2].rpartition("@")[0]
    password = account.partition(":")[2]
    return bool(password) and _REFERENCE.fullmatch(password) is None


def _side(url: str, lanes: str, count: int, topic: str) -> str:
    if _kind(url) == "redis":
        return f"{{lanes: {_quoted(lanes)}, count: {count}}}"
    return f"{{topic: {_quoted(topic)}}}"


def _quoted(text: str) -> str:
    # A JSON string is a YAML string, whatever is in it.
    return json.dumps(text, ensure_ascii=False)


def _write(path: Path, text: str, *, has_password: bool) -> None:
    """Check the text by reading it, then put it in place in one step.

    Nobody can read it who could not read the file that it replaces; where there is none and the text has a password,
    nobody but its owner.
    """
    from ..config import ConfigError, load

    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".crossfade-init-") as folder:
            draft = Path(folder) / path.name
            draft.write_text(text, encoding="utf-8")
            load(draft, {}, _Permissive())
            if path.exists():
                draft.chmod(stat.S_IMODE(path.stat().st_mode))
            elif has_password:
                draft.chmod(0o600)
            draft.replace(path)
    except ConfigError as error:
        lines = (f"{each.key}: found {each.found}, expected {each.expected}" for each in error.problems)
        raise UsageError("\n".join(lines), hint="`crossfade init --help` shows which flag gives which key") from None
    except OSError as error:
        raise _cannot_write(path, error) from None


def _cannot_write(path: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write {path}: {error.strerror}", hint="--config FILE names another place")


class _Permissive(dict[str, str]):
    """An environment where every variable that a reference names is set: it need not be, on the day of `init`."""

    def get(self, key: str, default: object = None) -> str:
        return "set-later"


_REDIS_BROKER = """\
    kind: redis                     # Redis or Valkey
    url: {url}
    # username: relay               # ACL user; `crossfade doctor --print-acls` prints the least rights it needs
    # password: ${{env:REDIS_PASSWORD}}    # or ${{file:/run/secrets/redis}}: read again at each connect
    # mode: standalone              # standalone | sentinel (with sentinel_master: NAME) | cluster
    {tls}"""

_TLS_EXAMPLE = "# tls: {ca: ca.pem, cert: client.pem, key: client.key}"
_TLS = "tls: {{ca: {ca}}}"

_KAFKA_BROKER = """\
    kind: kafka
    properties:                     # librdkafka's; those that would break the guarantee are refused by name
      bootstrap.servers: {servers}
      # security.protocol: SASL_SSL
      # sasl.mechanism: SCRAM-SHA-512
      # sasl.username: relay
      # sasl.password: ${{env:KAFKA_PASSWORD}}
      # ssl.ca.location: /etc/ssl/kafka-ca.pem"""

_LOSSLESS = "identical bytes after a round trip; others: json, body, headers"
_LOSSLESS_INTO_KAFKA = """\
identical bytes after a round trip: an entry with fields of your own becomes
                                    # a packed binary value without a key. For consumers who read the topic themselves:
                                    # {name: json, key_field: user_id}, or body, or headers"""

_TEMPLATE = """\
{schema}
# What Crossfade copies, and between which brokers. Every key: docs/configuration.md in Crossfade's repository.
# The first line is of this machine: by it editors complete keys. It may be left out, or name another place.
# Text may hold ${{env:NAME}} and ${{file:PATH}}. A key can be overridden by --set brokers.old.url=...
# or by the variable CROSSFADE_BROKERS__OLD__URL; flags beat variables, variables beat this file.
version: 1

brokers:
  old:
{source_broker}
  new:
{target_broker}

streams:
  {stream}:
    old: {source_side}
    new: {target_side}
    mapping: lossless               # {lossless}
    partitioner: murmur2            # which lane a key belongs to, where a route maps `lanes: by-key`
    from: earliest                  # earliest | latest | {{time: 2026-01-31T12:00:00Z}} | {{position: 1700000000000-0}}
    deleted: halt                   # a source record deleted before it was copied: halt | count
    retention: 1d                   # how long the source must keep records for the copy to be safe

routes:
  {route}:
    id: {id}                # random, made once: markers on the brokers carry it. Never change it
    stream: {stream}
    source: old
    target: new
    lanes: one-to-one               # one-to-one | by-key
    # quarantine_records_max: 100   # refused records that a lane may put aside before it halts
    # rate_records_per_s: 0         # 0 is unlimited
    # metrics_port: 9464            # /metrics, /livez, /readyz
"""
