"""What a configuration holds, as frozen structs.

Hides the difference between what people write (`retention: 7d`, `from: earliest`) and what the code uses
(`retention_s`, `Beginning`). Types and descriptions here drive the reader, the JSON Schema and docs/configuration.md,
so a key exists in one place. Wiring turns these structs into adapters; nothing here does I/O.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta

from .secret import Secret

NAME = re.compile(r"[a-z0-9-]{1,63}")
#: stands in a pattern of Redis stream keys for the number of the lane; `{}` would be Redis' hash tag
LANE_MARK = "<lane>"


def says(description: str, *, ge: float | None = None, le: float | None = None) -> Meta:
    """What editors and the reference show beside a key, and its limits."""
    return Meta(description=description, ge=ge, le=le)


class Duration:
    """Marks a float of seconds that is written with a unit: 500ms, 90s, 15m, 12h, 7d."""


class NameText:
    """Marks text of the form [a-z0-9-]{1,63}."""


class Beginning(msgspec.Struct, frozen=True):
    """Where the first start of a lane begins."""

    where: Literal["earliest", "latest", "time", "position"] = "earliest"
    #: time: milliseconds since the epoch; position: start after this position; else ""
    value: str = ""


class MappingChoice(msgspec.Struct, frozen=True):
    """A mapping by name, with its options; `mapping_named(choice.name, **choice.options)` makes it."""

    name: str = "lossless"
    options: dict[str, str] = {}


class Tls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Certificates for a Redis connection; relative paths start at the configuration file's folder."""

    ca: Annotated[str, says("file of the certificate authority; without it the system's authorities hold")] = ""
    cert: Annotated[str, says("file of the client certificate (mutual TLS)")] = ""
    key: Annotated[str, says("file of the client certificate's private key")] = ""
    verify: Annotated[bool, says("false: take any certificate; for a lab, never for production")] = True


class RedisBroker(msgspec.Struct, frozen=True, kw_only=True):
    """A Redis or Valkey server, Sentinel group or Cluster."""

    kind: Annotated[Literal["redis"], says("redis, for Redis and Valkey")] = "redis"
    url: Annotated[
        str,
        says("redis://HOST:PORT/DB, rediss://.. for TLS, or unix:///PATH; Sentinel and Cluster: HOST:PORT,HOST:PORT"),
    ]
    username: Annotated[str, says("ACL user; without it the default user")] = ""
    password: Annotated[Secret | None, says("password of the user; use ${env:NAME} or ${file:PATH}")] = None
    mode: Annotated[Literal["standalone", "sentinel", "cluster"], says("how the servers stand together")] = "standalone"
    sentinel_master: Annotated[str, says("name of the master that Sentinel watches; only with mode: sentinel")] = ""
    sentinel_username: Annotated[str, says("ACL user of the Sentinels, where it differs")] = ""
    sentinel_password: Annotated[Secret | None, says("password of the Sentinels")] = None
    tls: Annotated[Tls | None, says("certificates; its presence turns TLS on")] = None
    request_timeout_s: Annotated[float, says("seconds until a request counts as unanswered", ge=0.1)] = 5.0
    server_id: Annotated[
        str, NameText(), says("names this service in markers; set it before its addresses change, not after")
    ] = ""
    read: Annotated[
        Literal["at_once", "replicated"],
        says("as a source: copy entries at once, or only when all replicas have them (it needs one at least)"),
    ] = "at_once"
    memory_bytes_max: Annotated[
        int,
        says("as a target: wait while a server uses more bytes of memory than this; 0 leaves it to maxmemory", ge=0),
    ] = 0

    @property
    def urls(self) -> tuple[str, ...]:
        """One URL a server, without credentials."""
        if self.url.startswith("unix:"):
            return (self.url,)
        scheme, _, rest = self.url.partition("://")
        hosts, _, database = rest.partition("/")
        return tuple(f"{scheme}://{host}/{database}" for host in hosts.split(","))


class PropertyMistake(NamedTuple):
    """What is wrong with one of a Kafka broker's properties."""

    name: str  # "" = several, together
    found: str  # "" = the value as it is written
    expected: str
    nearest: str = ""


class KafkaBroker(msgspec.Struct, frozen=True, kw_only=True):
    """A Kafka cluster."""

    kind: Annotated[Literal["kafka"], says("kafka")] = "kafka"
    properties: Annotated[
        dict[str, str | Secret],
        says("librdkafka properties, bootstrap.servers among them; those that would break the guarantee are refused"),
    ]

    def plain_properties(self) -> dict[str, str]:
        """The properties as librdkafka takes them, secrets read now.

        Raises UsageError when a secret cannot be read.
        """
        return {name: v.get() if isinstance(v, Secret) else v for name, v in self.properties.items()}


Broker: TypeAlias = RedisBroker | KafkaBroker


class RedisSide(msgspec.Struct, frozen=True, kw_only=True):
    """A stream as Redis keeps it: one stream key a lane."""

    lanes: Annotated[str, says("pattern of the stream keys; <lane> stands for 0, 1, 2 ...")] = ""
    count: Annotated[
        int,
        says("how many lanes the pattern has; or discover: as many as exist, new ones are followed", ge=1, le=100_000),
    ] = 0
    keys: Annotated[tuple[str, ...], says("the stream keys one by one, instead of lanes and count")] = ()

    @property
    def is_discovered(self) -> bool:
        """`count: discover`: the number of lanes is what is found."""
        return bool(self.lanes) and not self.count

    def key_of(self, lane: int) -> str:
        """The stream key of a lane of the pattern."""
        return self.lanes.replace(LANE_MARK, str(lane))

    @property
    def lane_keys(self) -> tuple[str, ...]:
        """The stream key of each lane, in lane order; none where they are discovered."""
        return self.first_keys(0)

    def first_keys(self, found: int) -> tuple[str, ...]:
        """The stream key of each lane, in lane order; `found` of them where they are discovered."""
        return self.keys or tuple(map(self.key_of, range(self.count or found)))

    @property
    def name(self) -> str:
        """What people call it: the pattern, or the first and last key."""
        return self.lanes or (self.keys[0] if len(self.keys) == 1 else f"{self.keys[0]}..{self.keys[-1]}")


class KafkaSide(msgspec.Struct, frozen=True, kw_only=True):
    """A stream as Kafka keeps it: one partition a lane."""

    topic: Annotated[str, says("name of the topic; the relay never creates or changes it")]

    @property
    def name(self) -> str:
        return self.topic


Side: TypeAlias = RedisSide | KafkaSide


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True, rename={"from_": "from", "retention_s": "retention"}):
    """One stream, and how each broker keeps it (`sides`, by broker name)."""

    sides: dict[str, Side]
    mapping: Annotated[MappingChoice, says("how records and entries become each other; default lossless")] = (
        MappingChoice()
    )
    partitioner: Annotated[
        Literal["murmur2", "murmur3", "crc32"],
        says("which lane a key belongs to, where lanes map by key; that of the target's producers"),
    ] = "murmur2"
    from_: Annotated[
        Beginning, says("where the first start begins: earliest, latest, {time: ..} or {position: ..}")
    ] = Beginning()
    deleted: Annotated[
        Literal["halt", "count"],
        says(
            "a source record that was deleted before it was copied: halt its lane, or count it and go on (records that "
            "were trimmed beside deleted ones are counted with them)"
        ),
    ] = "halt"
    retention_s: Annotated[float, Duration(), says("how long the source must keep records for the copy to be safe")] = (
        86_400.0
    )


class RouteSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One copy: a stream, from one broker to another."""

    id: Annotated[str, NameText(), says("random id, made once by `crossfade init`; each relayed record carries it")]
    stream: Annotated[str, says("name of the stream")]
    source: Annotated[str, says("broker to copy from")]
    target: Annotated[str, says("broker to copy to")]
    lanes: Annotated[
        Literal["one-to-one", "by-key"], says("how source lanes map to target lanes; by-key needs records with a key")
    ] = "one-to-one"
    reverse_of: Annotated[
        str, says("route that copies the same stream the other way; each of the two passes over what the other wrote")
    ] = ""
    batch_records: Annotated[
        int, says("most records of one append; 0 chooses: 16,000 into Redis, 48,000 into Kafka", ge=0, le=1_000_000)
    ] = 0
    batch_size_bytes_max: Annotated[int, says("most payload bytes of one append", ge=1024)] = 32 * 1024 * 1024
    commit_interval_ms: Annotated[
        int, says("what one append should take under load; the batch shrinks far above it", ge=1, le=60_000)
    ] = 200
    quarantine_records_max: Annotated[int, says("refused records a lane may put aside before it halts", ge=0)] = 100
    rate_records_per_s: Annotated[
        float, says("limit of each relay process; 0 is unlimited; `relay rate` wins over it", ge=0)
    ] = 0.0
    allow_weak: Annotated[
        bool,
        says(
            "true: also write to a topic with one replica, with min.insync.replicas=1 or with unclean leader "
            "elections, which may lose acknowledged records"
        ),
    ] = False
    discover_s: Annotated[float, says("seconds between two looks for new lanes of the source", ge=0.2)] = 30.0
    metrics_port: Annotated[
        int,
        says(
            "port of /metrics, /livez and /readyz; 0 is off; one process has one port, that of the first route it "
            "runs; each process of a host needs its own: a taken port that was set here ends it with exit code 2 "
            "(where the default is taken, it copies without metrics)",
            ge=0,
            le=65_535,
        ),
    ] = 9464


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A whole configuration, checked."""

    version: Annotated[Literal[1], says("format of this file")]
    brokers: Annotated[dict[str, Broker], says("the servers, by a name of your own")]
    streams: Annotated[dict[str, StreamSettings], says("the streams, by a name of your own")]
    routes: Annotated[dict[str, RouteSettings], says("what is copied where, by a name of your own")]
    #: the file it came from
    path: Path = Path("crossfade.yaml")

    def pair_of(self, name: str) -> str:
        """The route that is declared to copy the other way, "" where there is none."""
        own = self.routes[name].reverse_of
        return own or next((other for other, route in self.routes.items() if route.reverse_of == name), "")
