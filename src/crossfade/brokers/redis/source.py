"""Redis stream keys as a relay's source: read on from a place, and prove at each read that nothing was lost.

Hides pipelining, polling and the size of reads. Invariant: the records of a batch and the counters that vouch for them
come from one MULTI. Writes nothing to a source but its births: an empty consumer group `crossfade.<route>.<random>` on
each key, which dies with the key and so tells a re-created one. Each route has its own. Called by `log`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, Literal

import msgspec

from ...errors import (
    LaneError,
    SourceDeleted,
    SourceRegressed,
    SourceReset,
    SourceTrimmed,
    Unreachable,
    UsageError,
)
from ...model.position import Place, position_order
from ...model.record import Batch, EntryColumns, Lane, Row, Shape
from ...telemetry import step
from ..protocol import Bounds, From, Start
from .births import Births
from .keys import quarantine_key
from .link import Command
from .looking import Looker, Range, digest_of
from .nodes import Nodes
from .pacing import Pacing
from .reckoning import Fault, Look, Verdict, digest_in, judge, witness_text
from .replicas import wait_for_replicas
from .replies import check, pairs

#: an idle lane is looked at this often, at first and at most
POLL_S_MIN = 0.002
POLL_S_MAX = 0.020
_FAULTS: dict[Fault, tuple[type[LaneError], str]] = {
    Fault.TRIMMED: (SourceTrimmed, "raise the stream's MAXLEN, then resume with --accept-loss or copy the lane anew"),
    Fault.DELETED: (
        SourceDeleted,
        "set `deleted: count` where applications delete entries, or resume with --accept-loss",
    ),
    Fault.RESET: (
        SourceReset,
        "if it is put back as it was, restart the relay: it goes on where it stood; else resume with --accept-loss "
        "from the new beginning, or copy the lane anew",
    ),
    Fault.REPLACED: (
        SourceReset,
        "correct the stream's keys, or put the stream back and restart the relay; if it is gone, remove the key and "
        "resume with --accept-loss",
    ),
    Fault.ORPHANED: (
        SourceDeleted,  # what an accepted loss does is right here: go on behind the place, which still stands
        "if the group alone was removed, resume with --accept-loss: the lane goes on behind that entry; if the key was "
        "made anew, copy the lane anew",
    ),
    Fault.REGRESSED: (SourceRegressed, "compare both sides with `crossfade verify`, then resume with --accept-loss"),
}


class Source:
    """Reads the stream keys of one log."""

    def __init__(
        self,
        nodes: Nodes,
        stream_keys: Sequence[bytes],
        *,
        route: str,
        deleted: Literal["halt", "count"],
        read: Literal["at_once", "replicated"],
    ) -> None:
        self._nodes = nodes
        self._looker = Looker(nodes, stream_keys)
        self._keys = stream_keys
        self._births = Births(nodes, self._looker, stream_keys, route)
        self._deleted = deleted
        self._replicated = read == "replicated"
        self._pacing = Pacing()
        self._turn = 0
        #: places that were reported as the end, so that it is news once behind the same rows
        self._told_end: dict[Lane, Place] = {}

    # bounds, begin ---------------------------------------------------------------------------------------------------

    async def bounds(self, lanes: Sequence[Lane]) -> dict[Lane, Bounds]:
        """See `Log.bounds`. Raises Unreachable, AccessRefused."""
        looks = await self._looker.look(lanes, {lane: Range(b"+", 0, reverse=True) for lane in lanes})
        result = {}
        for lane in lanes:
            look, _, ends_bytes = looks[lane]
            self._pacing.guess(lane, ends_bytes)
            if not look.is_stream:
                # something is there, so that an audit reads on and is told what
                result[lane] = Bounds(first="", last="", count=0, length=1, incarnation="")
                continue
            result[lane] = Bounds(
                first=look.first,
                last="" if look.last == "0-0" else look.last,
                count=look.added,
                length=look.length,
                incarnation=self._births.present(lane, look),
                first_time_ms=int(look.first.partition("-")[0]) if look.first else -1,
                holes_until=look.holes_until,
            )
        return result

    async def quarantined(self, route: str) -> dict[Lane, frozenset[str]]:
        """Source positions in the quarantines beside these stream keys. Raises Unreachable, AccessRefused."""
        commands: dict[Lane, list[Command]] = {
            lane: [("XRANGE", quarantine_key(key, route), "-", "+")] for lane, key in enumerate(self._keys)
        }
        replies, _ = await self._looker.call(commands, "reading the quarantine")
        found: dict[Lane, set[str]] = {}
        for (entries,) in replies.values():
            for _, flat in check(entries, "reading the quarantine"):
                fields = pairs(flat)
                found.setdefault(int(fields[b"lane"]), set()).add(fields[b"position"].decode())
        return {lane: frozenset(positions) for lane, positions in found.items()}

    async def begin(self, lanes: Sequence[Lane], start: Start) -> dict[Lane, Place | LaneError]:
        """See `Log.begin`. Makes a missing key, as an empty stream. Raises UsageError, Unreachable, AccessRefused."""
        until = _left_out_until(start)
        births = await self._births.give(lanes)
        # the last entry that the start leaves out, and the counters, in one look
        looks = await self._looker.look(lanes, {lane: Range(until, 1, reverse=True) for lane in lanes})
        for lane, (_, _, ends_bytes) in looks.items():
            self._pacing.guess(lane, ends_bytes)
        return {
            lane: self._begin_place(lane, start, birth, *looks[lane][:2])
            if isinstance(birth, str)
            else self._error(lane, start.value if start.where is From.POSITION else "", birth)
            for lane, birth in births.items()
        }

    def _begin_place(self, lane: Lane, start: Start, birth: str, look: Look, entries: list[Any]) -> Place | LaneError:
        if start.where is From.POSITION and position_order(start.value) > position_order(look.last):
            return SourceRegressed(
                lane,
                f"{self._name(lane)} ends at {look.last}, before the start {start.value}",
                hint="start at a position that exists",
                position=start.value,
            )
        everything_before = look.added - look.length
        if start.where is From.EARLIEST or not entries:
            # nothing older is there: what was ever added and is gone lies before the start
            return Place("", everything_before, birth)
        entry_id, fields = entries[0]
        position = entry_id.decode()
        is_last = start.where is From.LATEST or position == look.last
        count = look.added if is_last else -1
        return Place(position, count, birth, witness_text(digest_of(fields), look, count))

    # read ------------------------------------------------------------------------------------------------------------

    async def read(
        self, after: Mapping[Lane, Place], records_max: int, bytes_max: int, wait_s: float
    ) -> dict[Lane, Batch | LaneError]:
        """See `Log.read`. Raises Unreachable, AccessRefused."""
        deadline_s = time.monotonic() + wait_s
        outcomes = await self._read_once(after, records_max, bytes_max)
        pause_s = POLL_S_MIN
        while after and not any(_is_news(outcome) for outcome in outcomes.values()):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                break
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 1.5, POLL_S_MAX)
            if await self._has_more(after):
                # That a lane is at its end is told once: what was found of it before counts where nothing is new.
                outcomes |= await self._read_once(after, records_max, bytes_max)
        step("redis.read.done")
        return outcomes

    async def _has_more(self, after: Mapping[Lane, Place]) -> bool:
        """Whether any lane has an entry behind its place: one small command a lane, nothing is judged by it."""
        lanes = list(after)
        commands = {
            lane: [
                (
                    "XRANGE",
                    self._keys[lane],
                    f"({after[lane].position}" if after[lane].position else "-",
                    "+",
                    "COUNT",
                    1,
                )
            ]
            for lane in lanes
        }
        replies, _ = await self._looker.call(commands, "waiting for records")
        return any(reply for (reply,) in replies.values())

    async def _read_once(
        self, after: Mapping[Lane, Place], records_max: int, bytes_max: int
    ) -> dict[Lane, Batch | LaneError]:
        shares = self._pacing.deal(list(after), records_max, bytes_max)
        ranges = {
            lane: Range((after[lane].position or "-").encode(), records + 1, reverse=False)
            for lane, (records, _) in shares.items()
        }
        asked = list(shares)
        # Asked for before the read: a link that is lost meanwhile must not be replaced by one to a new primary.
        links = await self._nodes.by_link([self._keys[lane] for lane in asked]) if self._replicated else {}
        began_s = time.monotonic()
        try:
            looks = await self._looker.look(asked, ranges, self._pacing.excess_bytes(shares))
        except Unreachable:
            self._pacing.failed(asked)  # whatever it was: where it was not too much, a small read costs little
            raise
        self._pacing.lasted(sum(read_bytes for _, _, read_bytes in looks.values()), time.monotonic() - began_s)
        outcomes: dict[Lane, Batch | LaneError] = {}
        self._turn += 1
        lanes = sorted(shares)
        first = self._turn % max(1, len(lanes))
        for lane in lanes[first:] + lanes[:first]:
            if records_max <= 0:
                break  # fewer records than lanes were asked for: another lane is first next time
            look, entries, read_bytes = looks[lane]
            outcome = self._take(lane, after[lane], look, entries, read_bytes, ranges[lane].count, shares[lane][1])
            if outcome is not None:
                outcomes[lane] = outcome
                records_max -= len(outcome.rows) if isinstance(outcome, Batch) else 0
        for link, indexes in links.items():
            read = [asked[index] for index in indexes if _has_rows(outcomes.get(asked[index]))]
            if read:  # one key will do: what was read of the others stands before its write too
                await wait_for_replicas(self._nodes, link, self._keys[read[0]], after[read[0]])
        # For others' trimming alone: what was read is right also where it gets no answer (CLIENT PAUSE ... WRITE).
        with contextlib.suppress(Unreachable):
            await self._births.follow(after)
        return outcomes

    def _take(
        self, lane: Lane, place: Place, look: Look, entries: list[Any], read_bytes: int, asked: int, bytes_max: int
    ) -> Batch | LaneError | None:
        """Judge one lane's look and make its batch; None = nothing new."""
        at_end = len(entries) < asked
        digest = digest_in(place.witness)
        witness, has_own = "", False
        if entries and place.position and entries[0][0] == place.position.encode():
            has_own = True
            witness = digest_of(entries[0][1]) if digest else ""
            del entries[0]
        elif not at_end:
            # one more than this lane's share, because its own entry was expected
            del entries[-1]
        entries, size_bytes, is_cut = _cut(entries, read_bytes, bytes_max)
        at_end = at_end and not is_cut
        look = look.with_read(has_own=has_own, witness=witness, rows=len(entries), at_end=at_end)
        verdict = judge(place, look, counts_deleted=self._deleted == "count")
        self._births.note(lane, place, verdict.fault)
        if verdict.fault is not None:
            return self._error(lane, place.position, verdict)
        self._pacing.observe(lane, len(entries), size_bytes, at_end=at_end)
        deleted, holes_until = verdict.forgiven_records, look.holes_until
        if not entries:
            moved = Place(place.position, verdict.count, place.incarnation, place.witness)
            if moved == place and self._told_end.get(lane) == place:
                return None
            self._told_end[lane] = moved
            return Batch(lane, Shape.ENTRY, [], [], moved, at_end, 0, deleted, holes_until)
        self._told_end.pop(lane, None)
        last_id, last_fields = entries[-1]
        ids = [entry[0] for entry in entries]
        here = Place(
            last_id.decode(),
            verdict.count,
            place.incarnation,
            witness_text(digest_of(last_fields), look, verdict.count),
        )
        return Batch(lane, Shape.ENTRY, ids, _rows(ids, entries), here, at_end, size_bytes, deleted, holes_until)

    def _error(self, lane: Lane, position: str, verdict: Verdict) -> LaneError:
        kind, hint = _FAULTS[verdict.fault or Fault.RESET]
        return kind(
            lane,
            f"{self._name(lane)}: {verdict.why}",
            hint=hint,
            position=position,
            lost_records=verdict.lost_records,
        )

    def _name(self, lane: Lane) -> str:
        return self._keys[lane].decode(errors="replace")


def _has_rows(outcome: Batch | LaneError | None) -> bool:
    return isinstance(outcome, Batch) and bool(outcome.rows)


def _is_news(outcome: Batch | LaneError) -> bool:
    return isinstance(outcome, LaneError) or _has_rows(outcome)


def _left_out_until(start: Start) -> bytes:
    """The id up to which records are left out. Raises UsageError."""
    if start.where is From.POSITION:
        try:
            position_order(start.value)
        except ValueError as error:
            raise UsageError(f"{start.value!r} is no Redis entry id", hint="for example 1700000000000-0") from error
        return start.value.encode()
    if start.where is From.TIME:
        if not start.value.isdigit() or int(start.value) > time.time() * 1000:
            raise UsageError(
                f"a start at {start.value!r} is not a past time", hint="milliseconds since the epoch, not in the future"
            )
        return b"%d-18446744073709551615" % (int(start.value) - 1) if int(start.value) else b"0-0"
    return b"+"


_fields_of = itemgetter(1)
_numbers = msgspec.json.Decoder(list[int])
_HYPHEN_TO_COMMA = bytes.maketrans(b"-", b",")


def _cut(entries: list[Any], read_bytes: int, bytes_max: int) -> tuple[list[Any], int, bool]:
    """As many entries as fit into `bytes_max`, at least one; their payload bytes; whether any was left out.

    A look at every value costs a tenth of the whole copy: where all that came fits, its bytes are counted instead.
    """
    if read_bytes <= bytes_max:
        return entries, read_bytes, False
    size_bytes = sum(map(len, chain.from_iterable(map(_fields_of, entries))))
    if size_bytes <= bytes_max or len(entries) < 2:
        return entries, size_bytes, False
    kept, size_bytes = 0, 0
    for _, fields in entries:
        entry_bytes = sum(map(len, fields))
        if kept and size_bytes + entry_bytes > bytes_max:
            break
        kept += 1
        size_bytes += entry_bytes
    return entries[:kept], size_bytes, kept < len(entries)


def _rows(ids: list[bytes], entries: list[Any]) -> Sequence[Row]:
    """Entries as rows: as columns where all have the same names, which one producer's entries do."""
    times = _times(ids)
    fields = [entry[1] for entry in entries]
    width = len(fields[0])
    if list(map(len, fields)).count(width) == len(fields):
        columns = list(zip(*fields, strict=True))
        names = [column[0] for column in columns[::2]]
        if all(column.count(name) == len(column) for name, column in zip(names, columns[::2], strict=True)):
            return EntryColumns(names, list(map(list, columns[1::2])), times)
    return list(zip(fields, times, strict=True))


def _times(ids: list[bytes]) -> list[int]:
    """The milliseconds of entry ids: `1-2`, `3-4` read as the list 1,2,3,4."""
    return _numbers.decode(b"[%b]" % b",".join(ids).translate(_HYPHEN_TO_COMMA))[::2]
