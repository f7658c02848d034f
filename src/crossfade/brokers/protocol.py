"""The Protocols that a broker adapter implements, and the values that cross them.

Three adapters implement them: `memory`, `redis`, `kafka`; one contract suite (tests/contract) runs on all three.
The relay and the auditor see only this module. Methods move lists; nothing here is called once per record.

Errors: an exception is about the whole connection (`Unreachable`, `AccessRefused`, `Fenced`, `Indeterminate`);
a lane's trouble is that lane's value in the returned dict (`LaneError`), and the other lanes go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from ..errors import CrossfadeError, LaneError
from ..model.position import Marker, Place
from ..model.record import Batch, Lane, Path, Shape, Write


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a lane holds at one moment."""

    #: position of the first record still there; "" = the lane is empty
    first: str
    #: position of the last record a reader could have seen (Kafka: last stable offset - 1; Redis: last-generated-id)
    last: str
    #: Kafka: last stable offset; Redis: `entries-added`. Lag in records = `count - place.count` (Kafka: upper bound)
    count: int
    #: records there now (Kafka: upper bound)
    length: int
    incarnation: str
    #: time of the first record in ms since the epoch, -1 = unknown or empty
    first_time_ms: int = -1
    #: what hides from readers records that are there, behind `last`; "" = nothing. May be so for a moment only
    held_up: str = ""
    #: up to this position single records may be gone from between others (XDEL, compaction); "" = none is
    holes_until: str = ""


class From(Enum):
    """Where the first start of a lane begins."""

    EARLIEST = "earliest"
    LATEST = "latest"
    TIME = "time"  # value: milliseconds since the epoch
    POSITION = "position"  # value: start *after* this position


@dataclass(frozen=True, slots=True)
class Start:
    """A declared beginning: `Start(From.EARLIEST)`, `Start(From.TIME, "1700000000000")`."""

    where: From = From.EARLIEST
    value: str = ""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who claims, and under which authority."""

    route: str  # the route's random id
    instance: str  # name of the process: the same name back after a crash fences its predecessor
    #: digest of source identity, lane map and mapping; a marker with another digest is refused (RouteConflict)
    source: str
    #: (i, n) of `--shard i/n`, or None where an Assignment hands out lanes
    shard: tuple[int, int] | None = None
    #: Kafka group handle taken inside the assign callback; None by hand
    token: object | None = None
    #: the source lanes whose paths are claimed, and how many target lanes each has (N to M by key); None = one to one
    paths: tuple[Path, ...] = ()
    #: id of the route that copies the other way: every record must carry its origin in `xf`, so that it can be told
    pair: str = ""


@dataclass(slots=True)
class Claim:
    """The right to append relayed records. Adapters subclass it for their own handles."""

    owner: Owner
    epoch: int
    claim_id: str
    #: markers found beside the data, after the older claims were fenced; a path without marker is absent
    markers: dict[Path, Marker]
    #: paths taken out at once, with the reason (TargetTorn, TargetReset ...)
    errors: dict[Path, LaneError] = field(default_factory=dict)
    #: what the claim found and healed ("lane 3: 12 records without marker, data decides"): logged and counted
    alarms: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Appended:
    """One path's outcome of an append."""

    marker: Marker
    records: int
    quarantined: int


class Log(Protocol):
    """One stream on one broker, as source and as target. A lane is an index, 0 <= lane < lanes."""

    kind: str  # "redis" | "kafka" | "memory"
    shape: Shape
    lanes: int
    #: what the stream is called to people: topic, or the pattern of its stream keys
    name: str
    #: the broker's client fetches in the background, so that a read is work of this process and no waiting
    reads_ahead: bool
    #: what tells this stream from every other one (cluster id and topic; run-id-independent Redis identity and pattern)
    identity: str

    def lane_name(self, lane: Lane) -> str:
        """The lane as its broker calls it: `messages.v1[3]`, `msg:stream:3`."""
        ...

    async def open(self) -> None:
        """Connect and learn `lanes` and `identity`. Raises Unreachable, AccessRefused."""
        ...

    async def count_lanes(self) -> int:
        """How many lanes the stream has now; more than `lanes` where it has grown since `open`.

        Raises UsageError where new lanes leave a hole, Unreachable, AccessRefused.
        """
        ...

    async def bounds(self, lanes: Sequence[Lane]) -> dict[Lane, Bounds]:
        """What each lane holds now. Raises Unreachable, AccessRefused."""
        ...

    async def begin(self, lanes: Sequence[Lane], start: Start) -> dict[Lane, Place | LaneError]:
        """Prepare never-read source lanes (Redis: give the stream its birth) and say where reading begins.

        Idempotent. Raises Unreachable, AccessRefused.
        """
        ...

    async def read(
        self, after: Mapping[Lane, Place], records_max: int, bytes_max: int, wait_s: float
    ) -> dict[Lane, Batch | LaneError]:
        """Committed records behind each place, in order; lanes without news are absent (or come with an empty batch
        whose place moved or whose `at_end` is news).

        Returns as soon as any lane has records, at the latest after `wait_s`. `records_max` and `bytes_max` bound the
        sum over all lanes; no lane starves. Each call checks every lane that it read for trimming, re-creation and
        regression *after* taking the records, so a returned batch is known to continue its place.
        Going on from a place other than where the last read of that lane ended is a seek, and allowed.
        Raises Unreachable, AccessRefused.
        """
        ...

    async def claim(self, owner: Owner, paths: Sequence[Path]) -> Claim:
        """Fence every older claim on these paths, then read their markers and check them against the data.

        An absent marker is not an error here: the relay knows whether the lane was ever started.
        Raises RouteConflict, Fenced, Indeterminate, Unreachable, AccessRefused.
        """
        ...

    async def append(
        self, claim: Claim, writes: Sequence[Write], on_sent: Callable[[], None] | None = None
    ) -> dict[Path, Appended | LaneError]:
        """Write rows, quarantined records and marker of each path in one atomic step (Kafka: of the claim; Redis: of
        the lane). Paths are distinct. A returned outcome is final; after Indeterminate (nothing is known) or Fenced
        (nothing was written) the claim is dead.

        `on_sent` is called in the event loop, once or more, when everything was handed to the broker and only its
        answers are waited for; not if it comes to nothing before.

        Raises Fenced, Indeterminate, Unreachable, AccessRefused.
        """
        ...

    async def markers_of(self, route: str, paths: Sequence[Path]) -> dict[Path, Marker]:
        """As the target of `route`: its markers as they stand, without claiming anything; absent where there is none.

        Raises GuaranteeRefused where the records of that route, another one than the log's own, may lack an `xf` of
        their own; Unreachable, AccessRefused.
        """
        ...

    async def quarantined(self, route: str) -> dict[Lane, frozenset[str]]:
        """As a target: the source positions that the route quarantined, by source lane; what the auditor leaves out.

        Raises Unreachable, AccessRefused.
        """
        ...

    async def close(self) -> None:
        """Let go of connections and threads. Never waits longer than a few seconds; safe to call twice."""
        ...


class Listener(Protocol):
    """Who is told about lanes; the relay."""

    async def assigned(self, lanes: frozenset[Lane], token: object | None) -> None:
        """All lanes owned now, and the group handle of this generation. Called for every generation, even unchanged."""
        ...

    async def revoked(self, lanes: frozenset[Lane]) -> None:
        """These lanes go to others when this returns: everything in flight on them has ended by then."""
        ...

    async def lost(self, lanes: frozenset[Lane]) -> None:
        """These lanes already belong to others: throw the claim away, do not end anything."""
        ...


class Assignment(Protocol):
    """Hands out source lanes to processes."""

    async def run(self, listener: Listener) -> None:
        """Join and call the listener until cancelled; then leave. Raises Fenced when another process took this
        instance name (NameLost where that may be this process itself; it may run again), Unreachable, AccessRefused."""
        ...


@dataclass(frozen=True, slots=True)
class Document:
    version: int
    body: bytes


_KINDS_OF_ROUTES = frozenset({"started", "desired", "status", "shards"})


class VersionConflict(CrossfadeError):
    """The document changed since it was read."""


#: a board takes no larger document
DOCUMENT_BYTES_MAX = 64 << 10


class Board(Protocol):
    """Small versioned documents kept on a broker: routes, desired state, heartbeats."""

    async def get(self, name: str) -> Document | None: ...

    async def list(self, prefix: str) -> dict[str, Document]: ...

    async def put(self, name: str, body: bytes, expected_version: int | None = None) -> int:
        """Store and return the new version. With `expected_version` (0 = must not exist) it is a compare-and-set and
        raises VersionConflict; without, the last writer wins (heartbeats). Raises UsageError where the body has
        more than DOCUMENT_BYTES_MAX."""
        ...

    async def delete(self, name: str) -> None: ...

    async def close(self) -> None: ...


def route_of_document(name: str) -> str:
    """The id of the route that a document is about: `kind/<id>` or `kind/<id>/..`; "" where its name does not tell."""
    kind, _, rest = name.partition("/")
    return rest.partition("/")[0] if kind in _KINDS_OF_ROUTES else ""


class Level(Enum):
    OK = "ok"
    WARN = "warn"  # works, but an operator should know
    FAIL = "fail"  # the guarantee does not hold, or the relay cannot run
    UNKNOWN = "unknown"  # the broker does not let us ask
    BY_HAND = "by-hand"  # no broker of this kind can be asked: the operator sees to it


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `crossfade doctor`."""

    check: str  # stable name: `redis.eviction`, `kafka.min-insync-replicas`
    level: Level
    found: str  # what is there
    fix: str = ""  # what to do; empty when ok


class Inspector(Protocol):
    """What operators ask of a broker."""

    #: of the stream; 0 until `inspect` has found them
    lanes: int
    #: age of the oldest record in seconds, 0 = there is none, None = not known; of a source, found by `inspect`
    oldest_s: float | None

    async def inspect(self, role: str, retention_needed_s: float, oldest_s: float | None = None) -> list[Finding]:
        """Check the live broker for `role` ("source" or "target").

        `retention_needed_s`: so long a record may wait to be copied. `oldest_s`, for a target: so old is the oldest
        record that is still to come; None = not known.
        """
        ...

    async def routes(self) -> set[str]:
        """The ids of the routes that left something here, also those that nobody has in a file any more."""
        ...

    async def footprint(self, route: str) -> list[str]:
        """Everything that Crossfade left on this broker for the route, as names."""
        ...

    async def erase(self, route: str, names: Sequence[str]) -> None:
        """Remove exactly these."""
        ...
