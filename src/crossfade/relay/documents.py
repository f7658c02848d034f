"""What the relay keeps on the board: which lanes were started, what the operator wants, what each process reports.

Documents are JSON with a `version`; a newer major version is refused. Where a lane stands is never kept here, only what
an operator asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from ..brokers.protocol import Board, Document, From, Start, VersionConflict
from ..errors import UsageError
from ..model.record import Lane

_VERSION = 1
_TRIES = 5


class Begun(msgspec.Struct, omit_defaults=True):
    """Lanes that were begun at one declared beginning."""

    where: From
    value: str = ""
    lanes: list[int] = []


class Started(msgspec.Struct, omit_defaults=True):
    """Lanes that have had their first marker: without it, a missing marker means a lost one."""

    version: int = _VERSION
    lanes: list[int] = []
    #: lanes that the source had at the first start: the route stays bound to them when more come; 0 = all in `lanes`
    first_lanes: int = 0
    #: where each lane was begun, the last time that it was; nothing of lanes that were begun before this was kept
    begun: list[Begun] = []


class AcceptedLoss(msgspec.Struct):
    """An operator's decision to go on behind a halt. It answers exactly one error at one position."""

    error: str
    position: str
    by: str
    at: str
    reason: str = ""


class Desired(msgspec.Struct, omit_defaults=True):
    """What the operator asked of the route's relays."""

    version: int = _VERSION
    paused: bool = False
    paused_lanes: list[int] = []
    rate_records_per_s: float | None = None  # None = as configured
    accepted: dict[str, AcceptedLoss] = {}  # by lane
    #: all decisions ever taken, newest last, at most 1,000
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
    trimmed_in_s: float | None = None
    error: str = ""
    #: source records that are gone uncopied, where the halt can tell
    lost_records: int | None = None
    reason: str = ""
    hint: str = ""


class Report(msgspec.Struct, omit_defaults=True):
    """One process's heartbeat."""

    instance: str
    at_s: float  # seconds since the epoch, the reporter's clock
    version: int = _VERSION
    epoch: int = 0
    state: str = ""
    throttle: str = ""
    reason: str = ""
    records: int = 0
    alarms: list[str] = []
    lanes: list[LaneReport] = []


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


class RouteBoard:
    """The documents of one route."""

    def __init__(self, board: Board, route_id: str) -> None:
        self._board = board
        self._started = f"started/{route_id}"
        self._desired = f"desired/{route_id}"
        self._status = f"status/{route_id}/"

    async def started(self) -> frozenset[int]:
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

    async def add_started(self, lanes: set[Lane]) -> None:
        """Lanes have their first marker. Raises VersionConflict, Unreachable, AccessRefused."""

        def add(found: Started) -> None:
            known = set(found.lanes)
            if lanes <= known:
                return
            found.first_lanes = found.first_lanes or max(known or lanes) + 1
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
        document = await self._board.get(self._desired)
        return _decode(document.body, Desired, self._desired) if document else Desired()

    async def change_desired(self, change: Desired, seen: int) -> None:
        await self._board.put(self._desired, msgspec.json.encode(change), seen)

    async def desired_with_version(self) -> tuple[Desired, int]:
        document = await self._board.get(self._desired)
        if document is None:
            return Desired(), 0
        return _decode(document.body, Desired, self._desired), document.version

    async def report(self, report: Report) -> None:
        await self._board.put(self._status + report.instance, msgspec.json.encode(report))

    async def reports(self) -> list[Report]:
        documents = await self._board.list(self._status)
        return [_decode(document.body, Report, name) for name, document in sorted(documents.items())]

    async def forget_report(self, instance: str) -> None:
        await self._board.delete(self._status + instance)
