"""What the relay keeps on the board: which lanes were started, what the operator wants, what each process reports.

Documents are JSON with a `version`; a newer major version is refused. Where a lane stands is never kept here, only what
an operator asked for.

Hides that a board takes no large documents: what would be too large is told in fewer words (`shrunk`), or forgets its
oldest decisions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import TypeVar

import msgspec

from ..brokers.protocol import DOCUMENT_BYTES_MAX, Board, Document, From, Start, VersionConflict
from ..errors import UsageError
from ..model.record import Lane
from .lanes import State

_VERSION = 1
_TRIES = 5
#: a reason is cut to this where the report would be too large
_REASON_CHARS = 80


class Begun(msgspec.Struct, omit_defaults=True):
    """Lanes that were begun at one declared beginning."""

    where: From
    value: str = ""
    lanes: list[int] = []


class Started(msgspec.Struct, omit_defaults=True):
    """Lanes that have had their first marker: without it, a missing marker means a lost one."""

    version: int = _VERSION
    #: with those of `unstarted`: what is not among these came after the first start
    lanes: list[int] = []
    #: lanes that the source had at the first start, and that nobody has started yet (`relay start --lane`)
    unstarted: list[int] = []
    #: lanes that the source had at the first start: the route stays bound to them when more come; 0 = all in `lanes`
    first_lanes: int = 0
    #: lanes that came later and that no process has owned yet: the group has to hand them out
    unowned: list[int] = []
    #: where each lane was begun, the last time that it was; nothing of lanes that were begun before this was kept
    begun: list[Begun] = []


class AcceptedLoss(msgspec.Struct, omit_defaults=True):
    """An operator's decision to go on behind a halt. It answers exactly one error at one position."""

    error: str
    position: str
    by: str
    at: str
    reason: str = ""
    lane: str = ""
    lost_records: int | None = None  # None = not known


class Desired(msgspec.Struct, omit_defaults=True):
    """What the operator asked of the route's relays."""

    version: int = _VERSION
    paused: bool = False
    paused_lanes: list[int] = []
    rate_records_per_s: float | None = None  # None = as configured
    accepted: dict[str, AcceptedLoss] = {}  # by lane
    #: the last decisions that were taken, newest last: at most 1,000, and as many as fit the document
    journal: list[AcceptedLoss] = []


class LaneReport(msgspec.Struct, omit_defaults=True):
    lane: int
    name: str
    state: str
    position: str = ""
    ordinal: int = 0
    lag_records: int | None = None
    lag_s: float | None = None
    records_per_s: float = 0.0
    quarantined: int = 0
    #: records of the paired route that were passed over
    echoes: int = 0
    #: source entries that were deleted before they were read, seen by this process (`deleted: count`)
    deleted: int = 0
    trimmed_in_s: float | None = None
    error: str = ""
    #: source records that are gone uncopied, where the halt can tell
    lost_records: int | None = None
    reason: str = ""
    hint: str = ""


#: the state of a route that a process opens anew, because its lanes have changed
OPENING = "opening anew"
#: the last that a process says
STOPPED = "stopped"


class Report(msgspec.Struct, omit_defaults=True):
    """One process's heartbeat."""

    instance: str
    at_s: float  # seconds since the epoch, the reporter's clock
    version: int = _VERSION
    process: str = ""  # tells two processes of one name apart
    epoch: int = 0
    state: str = ""
    throttle: str = ""
    reason: str = ""
    #: so long before the heartbeat the source was looked at, of the lane where that is the longest ago
    look_age_s: float = 0.0
    records: int = 0
    alarms: list[str] = []
    lanes: list[LaneReport] = []
    #: idle lanes with nothing to copy, where the report would be too large with all that there is to say of them;
    #: `RouteBoard.reports` turns them into lanes again
    idle: list[int] = []

    @property
    def is_stopped(self) -> bool:
        return self.state == STOPPED


_T = TypeVar("_T", Started, Desired, Report)


def _decode(body: bytes, kind: type[_T], name: str) -> _T:
    try:
        document = msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        # A newer version need not have the fields of this one; damage is told the same way.
        raise UsageError(
            f"the board's document {name!r} cannot be read: {error}",
            hint="run the newest release of Crossfade everywhere",
        ) from error
    if document.version > _VERSION:
        raise UsageError(
            f"the board's document {name!r} has version {document.version}; this release reads up to {_VERSION}",
            hint="run the newest release of Crossfade everywhere",
        )
    return document


def _beginnings(found: Started) -> dict[Lane, Start]:
    return {lane: Start(begun.where, begun.value) for begun in found.begun for lane in begun.lanes}


def shrunk(report: Report) -> Report:
    """The report, in as many words as a board takes: what an operator decides by is left out last."""
    for shrink in (_without_hints, _with_short_reasons, _with_idle_by_number, _without_figures):
        if _fits(report):
            return report
        report = shrink(report)
    lanes = sorted(report.lanes, key=lambda lane: (lane.state != State.HALTED.value, not lane.error, lane.lane))
    for idle in (report.idle, []):
        least = msgspec.structs.replace(report, reason=report.reason[:_REASON_CHARS], alarms=[], idle=idle, lanes=[])
        if _fits(least):
            break
    too_many = bisect_left(
        range(len(lanes) + 1), True, key=lambda n: not _fits(msgspec.structs.replace(least, lanes=lanes[:n]))
    )
    return msgspec.structs.replace(least, lanes=lanes[: too_many - 1])


def _fits(report: Report) -> bool:
    return len(msgspec.json.encode(report)) <= DOCUMENT_BYTES_MAX


def _without_hints(report: Report) -> Report:
    return _with_lanes(report, lambda lane: msgspec.structs.replace(lane, hint=""))


def _with_short_reasons(report: Report) -> Report:
    return _with_lanes(report, lambda lane: msgspec.structs.replace(lane, reason=lane.reason[:_REASON_CHARS]))


def _with_idle_by_number(report: Report) -> Report:
    idle = {lane.lane for lane in report.lanes if lane.state == State.IDLE.value and lane.lag_records == 0}
    idle -= {lane.lane for lane in report.lanes if lane.error or lane.reason}
    kept = [lane for lane in report.lanes if lane.lane not in idle]
    return msgspec.structs.replace(report, lanes=kept, idle=sorted(idle))


def _without_figures(report: Report) -> Report:
    """Of lanes that have no error, only what they are called, their state and what is still to be copied."""
    return _with_lanes(
        report,
        lambda lane: lane if lane.error else LaneReport(lane.lane, lane.name, lane.state, lag_records=lane.lag_records),
    )


def _with_lanes(report: Report, change: Callable[[LaneReport], LaneReport]) -> Report:
    return msgspec.structs.replace(report, lanes=[change(lane) for lane in report.lanes])


def _with_idle_as_lanes(report: Report) -> Report:
    idle = [LaneReport(lane, str(lane), State.IDLE.value, lag_records=0, lag_s=0.0) for lane in report.idle]
    return msgspec.structs.replace(report, lanes=[*report.lanes, *idle], idle=[])


def _fitting(desired: Desired) -> bytes:
    """The document; it forgets its oldest decisions where it would be too large. Raises UsageError."""
    body = msgspec.json.encode(desired)
    over = len(body) - DOCUMENT_BYTES_MAX
    if over <= 0:
        return body
    for forgotten, decision in enumerate(desired.journal, 1):
        over -= len(msgspec.json.encode(decision)) + len(",")
        if over <= 0:
            return msgspec.json.encode(msgspec.structs.replace(desired, journal=desired.journal[forgotten:]))
    raise UsageError(
        f"the accepted losses of {len(desired.accepted)} lanes do not fit the board, which takes {DOCUMENT_BYTES_MAX} "
        "bytes",
        hint="accept the loss of fewer lanes at a time, with a short reason; the next ones when `crossfade relay "
        "status` shows that these lanes go on",
    )


class RouteBoard:
    """The documents of one route."""

    def __init__(self, board: Board, route_id: str) -> None:
        self._board = board
        self._started = f"started/{route_id}"
        self._desired = f"desired/{route_id}"
        self._status = f"status/{route_id}/"

    async def started(self) -> frozenset[Lane]:
        """Lanes that have had their first marker."""
        found, _ = await self._get_started()
        return frozenset(found.lanes) - frozenset(found.unstarted)

    async def unstarted(self) -> frozenset[Lane]:
        """Lanes that were there at the first start, which was of others: nobody has started them yet."""
        return frozenset((await self._get_started())[0].unstarted)

    async def known(self) -> frozenset[Lane]:
        """Both of these; a lane that is not among them came after the first start. Empty = there was none."""
        return frozenset((await self._get_started())[0].lanes)

    async def beginnings(self) -> dict[Lane, Start]:
        """Where each lane was begun, the last time that it was; absent where that was not kept yet."""
        return _beginnings((await self._get_started())[0])

    async def first_lanes(self) -> int:
        """How many lanes the source had when the route was first started; 0 = it never was."""
        found, _ = await self._get_started()
        return found.first_lanes or max(found.lanes, default=-1) + 1

    async def note_beginning(self, lanes: set[Lane], start: Start) -> None:
        """Lanes are about to be begun at `start`. Told before it is done: a call that is cut short leaves a marker
        whose beginning is known. Raises VersionConflict, Unreachable, AccessRefused."""

        def note(found: Started) -> None:
            held = _beginnings(found) | dict.fromkeys(lanes, start)
            found.begun = [
                Begun(one.where, one.value, sorted(lane for lane, at in held.items() if at == one))
                for one in dict.fromkeys(held.values())
            ]

        await self._change_started(note)

    async def unowned(self) -> frozenset[Lane]:
        """Lanes that came after the route was started, and that no process has owned yet."""
        return frozenset((await self._get_started())[0].unowned)

    async def note_owned(self, lanes: frozenset[Lane]) -> None:
        """A process owns these lanes. Raises VersionConflict, Unreachable, AccessRefused."""

        def note(found: Started) -> None:
            found.unowned = sorted(set(found.unowned) - lanes)

        await self._change_started(note)

    async def add_started(self, lanes: set[Lane], source_lanes: int = 0) -> None:
        """Lanes have their first marker. `source_lanes`: so many there are now; at the first start of the route, those
        that are not among `lanes` are unstarted, and no later ones. Raises VersionConflict, Unreachable, AccessRefused.
        """

        def add(found: Started) -> None:
            if lanes <= set(found.lanes) - set(found.unstarted):
                return
            known = set(found.lanes)
            if not known:
                known = lanes | set(range(source_lanes))
                found.unstarted = sorted(known)
            found.first_lanes = found.first_lanes or max(known) + 1
            found.unowned = sorted({*found.unowned, *(lanes - known)})
            found.unstarted = sorted(set(found.unstarted) - lanes)
            found.lanes = sorted(known | lanes)

        await self._change_started(add)

    async def _get_started(self) -> tuple[Started, Document | None]:
        document = await self._board.get(self._started)
        return (_decode(document.body, Started, self._started) if document else Started()), document

    async def _change_started(self, change: Callable[[Started], None]) -> None:
        for _ in range(_TRIES):
            found, document = await self._get_started()
            before = msgspec.json.encode(found)
            change(found)
            body = msgspec.json.encode(found)
            if body == before:
                return
            try:
                await self._board.put(self._started, body, document.version if document else 0)
                return
            except VersionConflict:
                continue
        raise VersionConflict("the board's list of started lanes keeps changing", hint="run the command again")

    async def desired(self) -> Desired:
        return (await self._get_desired())[0]

    async def desired_if_any(self) -> Desired | None:
        """The same; None where nobody has wished anything yet, or the document is gone."""
        found, document = await self._get_desired()
        return found if document else None

    async def change_desired(self, change: Callable[[Desired], None]) -> Desired:
        """Change the newest document, or nothing; `change` sees each newest one anew. Returns what is desired now.

        Raises what `change` raises, VersionConflict, UsageError where it does not fit, Unreachable, AccessRefused.
        """
        for _ in range(_TRIES):
            found, document = await self._get_desired()
            change(found)
            try:
                await self._board.put(self._desired, _fitting(found), document.version if document else 0)
                return found
            except VersionConflict:
                continue
        raise VersionConflict("the route's desired state keeps changing", hint="run the command again")

    async def _get_desired(self) -> tuple[Desired, Document | None]:
        document = await self._board.get(self._desired)
        return (_decode(document.body, Desired, self._desired) if document else Desired()), document

    async def report(self, report: Report) -> None:
        """Store a heartbeat, shrunk where it would be too large. Raises UsageError, Unreachable, AccessRefused."""
        await self._board.put(self._status + report.instance, msgspec.json.encode(shrunk(report)))

    async def reports(self) -> list[Report]:
        documents = await self._board.list(self._status)
        return [
            _with_idle_as_lanes(_decode(document.body, Report, name)) for name, document in sorted(documents.items())
        ]
