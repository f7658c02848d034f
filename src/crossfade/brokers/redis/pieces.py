"""Appends of a route that is one of a pair: cut so that each piece is one call, with the echoes counted up to its end.

A long write becomes several script calls, each with a marker of its own. Such a marker must say which echoes lie before
it, or a crash between two calls would take the next echoes for native records. Invariant: a piece never needs a second
call, so every marker that is stored was made here. Called by `log`, for paired routes alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence

from ...errors import Indeterminate, LaneError
from ...model.echo import with_echoes
from ...model.position import Place, order_of
from ...model.record import Path, Reject, Write
from ..protocol import Appended
from .claims import RedisClaim
from .packing import CALL_BYTES_MAX, CALL_RECORDS_MAX, between
from .target import Target

#: names and values of one piece; a call takes more
_VALUES_MAX = 50_000


async def append_in_pieces(
    target: Target, claim: RedisClaim, writes: Sequence[Write], on_sent: Callable[[], None] | None = None
) -> dict[Path, Appended | LaneError]:
    """See `Log.append`; the first pieces of all lanes go together, then the second ones, and so on.

    Raises Fenced, Indeterminate, Unreachable, AccessRefused.
    """
    waiting = {write.path: deque(pieces_of(write)) for write in writes}
    left = {write.path: write.quarantine_left for write in writes}
    done: dict[Path, Appended | LaneError] = {}
    while waiting:
        turn = []
        for path, pieces in waiting.items():
            piece = pieces.popleft()
            piece.quarantine_left = left[path]
            turn.append(piece)
        for path, outcome in (await target.append(claim, turn, on_sent)).items():
            before = done.get(path)
            if isinstance(outcome, LaneError):
                if before is not None:  # half of the write is in: only a new claim knows where the lane stands
                    claim.is_dead = True
                    raise Indeterminate(
                        f"{outcome.message}, behind a part that went in", hint=outcome.hint
                    ) from outcome
                done[path] = outcome
                del waiting[path]
                continue
            left[path] -= outcome.quarantined
            if isinstance(before, Appended):
                outcome = Appended(
                    outcome.marker, before.records + outcome.records, before.quarantined + outcome.quarantined
                )
            done[path] = outcome
            if not waiting[path]:
                del waiting[path]
    return done


def pieces_of(write: Write) -> list[Write]:
    """The write as writes of one call each; the last one ends at the write's own place."""
    pieces: list[Write] = []
    rejects = sorted(write.rejects, key=lambda reject: order_of(reject.position))
    first = 0
    for stop in _stops(write):
        if stop == len(write.rows):
            pieces.append(_piece(write, first, stop, rejects, write.place))
            break
        end = order_of(write.positions[stop - 1])
        mine = [reject for reject in rejects if order_of(reject.position) <= end]
        rejects = rejects[len(mine) :]
        pieces.append(_piece(write, first, stop, mine, _place_at(write, stop - 1)))
        first = stop
    return pieces


def _stops(write: Write) -> list[int]:
    """Where the pieces end, as indexes of rows; the last one is the number of rows."""
    stops: list[int] = []
    records = values = size_bytes = 0
    for at, (fields, *_) in enumerate(write.rows):
        row_bytes = sum(map(len, fields))
        is_full = size_bytes + row_bytes > CALL_BYTES_MAX or values + len(fields) > _VALUES_MAX
        if records and (is_full or records >= CALL_RECORDS_MAX):
            stops.append(at)
            records = values = size_bytes = 0
        records += 1
        values += len(fields)
        size_bytes += row_bytes
    return [*stops, len(write.rows)]


def _place_at(write: Write, at: int) -> Place:
    place = between(write.place, write.positions[at], None)
    passed = write.passed or []
    order = order_of(write.positions[at])
    found = bisect_right(passed, order, key=lambda step: step[0]) - 1
    return with_echoes(place, *passed[found][1:]) if found >= 0 else place


def _piece(write: Write, first: int, stop: int, rejects: list[Reject], place: Place) -> Write:
    return Write(write.path, write.positions[first:stop], write.rows[first:stop], place, rejects)
