"""Whether a stream holds copies behind what their marker covers: somebody put an older marker back.

Records and marker are written in one step, so by itself no record is ever ahead. But a lane's state may come from a
backup or another server: the relay would copy everything behind it a second time. Hides how a copy tells what it is: by
its mark, or by an id that only a copy can have. Where it has neither (between two Redis, alone on the stream), nothing
can be told without the source. Called by `claims`, once the claim stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ...errors import TargetTorn
from ...model.position import Marker, Place, position_order
from ...model.record import Lane, Shape
from ...model.wire import Origin, newest_origin
from .keys import state_key
from .link import Command
from .nodes import Nodes, call_key
from .replies import check, code_of, is_error

_Entry: TypeAlias = tuple[bytes, list[bytes]]

#: entries looked at first, on each end of what stands behind the last append; they may be large
_ENTRIES = 8
#: and so many at most from its beginning on: others may have written there before the copies came
_ENTRIES_MAX = 1000
#: a server that counts from 0 in each millisecond does not come this far in one
_IDS_PER_MS = 100_000
_NAMES_MAX = 10


@dataclass(slots=True)
class Budget:
    """What all looks of one claim may read together, besides the first look at each lane."""

    bytes_left: int = 4 << 20

    def take(self, seen: list[_Entry]) -> int:
        """How many entries may be read behind those seen, never more than these: the next ones may be larger."""
        size_bytes = max(1, sum(sum(map(len, fields)) for _, fields in seen) // len(seen))
        count = min(len(seen), _ENTRIES_MAX - len(seen), self.bytes_left // size_bytes)
        self.bytes_left -= count * size_bytes
        return count


async def copies_behind(
    nodes: Nodes,
    key: bytes,
    last: str,
    route: str,
    markers: Mapping[Lane, Marker],
    budget: Budget,
    *,
    is_exclusive: bool,
    is_fanned: bool,
) -> dict[Lane, TargetTorn]:
    """The source lanes of which copies stand behind entry `last`, as errors; "" = we never appended, as the state says.

    `is_exclusive`: copies may lack marks; `is_fanned`: source lanes are copied into several target lanes each.
    Raises Unreachable, AccessRefused.
    """
    behind = f"({last}" if last else "-"
    doing = f"reading {key.decode(errors='replace')} behind the last append"
    looks: list[Command] = [
        ("XRANGE", key, behind, "+", "COUNT", _ENTRIES),
        ("XREVRANGE", key, "+", behind, "COUNT", _ENTRIES),
    ]
    replies = await call_key(nodes, key, looks, doing)
    if any(map(_is_refused, replies)):
        return {}  # the rights that `doctor` prints are enough; who gives fewer goes without this look
    seen, newest = (check(reply, doing) for reply in replies)
    if not seen or not newest:
        return {}
    is_all = len(seen) < _ENTRIES
    while not is_all and (count := budget.take(seen)):
        look: Command = ("XRANGE", key, f"({seen[-1][0].decode()}", "+", "COUNT", count)
        (reply,) = await call_key(nodes, key, [look], doing)
        page = check(reply, doing)
        seen, is_all = seen + page, len(page) < count
    ahead = _ahead_by_mark(_origins([*seen, *reversed(newest)], route), markers, is_begun=bool(last))
    # The lanes of which the last copy was seen for sure: behind it a start is right.
    sure: set[Lane] = set()
    if is_all:
        ends = {origin.lane for origin in _origins(newest[:1], route) if ahead.get(origin.lane) == origin.position}
        sure = set(ahead) if last and not is_exclusive else ends
    if last and is_exclusive and len(markers) == 1:
        ((lane, marker),) = markers.items()
        offset, is_whole = _copied_up_to([entry_id.decode() for entry_id, _ in seen], last, marker.relayed)
        if offset >= 0:
            ahead[lane] = max(ahead.get(lane, ""), str(offset), key=position_order)
            sure |= {lane} if is_all and is_whole else set()
    if not ahead:
        return {}
    beside = await _lanes_beside(nodes, key, markers)
    if is_fanned:
        sure = set()  # in another target lane it may have been copied further
    return {
        lane: _error(lane, key, markers[lane], position, beside, is_last=lane in sure)
        for lane, position in ahead.items()
    }


def _is_refused(reply: Any) -> bool:
    return is_error(reply) and code_of(reply) == "NOPERM"


def _origins(entries: Iterable[_Entry], route: str) -> list[Origin]:
    found = (newest_origin((fields, 0), Shape.ENTRY) for _, fields in entries)
    return [origin for origin in found if origin is not None and origin.route == route]


def _ahead_by_mark(origins: Iterable[Origin], markers: Mapping[Lane, Marker], *, is_begun: bool) -> dict[Lane, str]:
    """The highest position of each lane in marks that its marker does not cover.

    Applications move entries and write old ones again, with their marks. The ordinal alone tells nothing of them: each
    path has its own, and it starts anew with the lane. Where nothing of ours is there as the state says, copies of an
    earlier life of the lane may be; the first one since the start must be among those that are not covered.
    """
    ahead: dict[Lane, str] = {}
    for origin in origins:
        marker = markers.get(origin.lane)
        if marker is None or origin.ordinal <= marker.ordinal or _is_covered(origin.position, marker.place):
            continue
        if is_begun or origin.ordinal == 1 or origin.lane in ahead:
            ahead[origin.lane] = max(ahead.get(origin.lane, ""), origin.position, key=position_order)
    return ahead


def _is_covered(position: str, place: Place) -> bool:
    """Whether the source record at `position` is none that reading on from `place` comes to."""
    if place.position:
        return position_order(position) <= position_order(place.position)
    # Before the first record that was there: of a Redis source its id is not known, unless nothing was ever removed.
    return place.count != 0 if "-" in position else int(position) < place.count


def _copied_up_to(entry_ids: Iterable[str], last: str, relayed: str) -> tuple[int, bool]:
    """The highest offset in the ids of the copies that begin behind entry `last` (-1 = others wrote there), and whether
    all these ids are of copies.

    A copy has its Kafka offset where a server counts from 0 in each millisecond. What servers gave out in the very
    millisecond of the last copy looks alike, and so does a single millisecond of which the first entries were removed.
    """
    if not relayed.isdigit():
        return -1, False
    last_ms, _ = position_order(last)
    highest, times, is_copy, is_whole = int(relayed), {last_ms}, False, True
    for ms, sequence in map(position_order, entry_ids):
        if sequence <= highest:
            is_whole = False
            break
        times.add(ms)
        highest, is_copy = sequence, is_copy or len(times) > 2 or (ms != last_ms and sequence >= _IDS_PER_MS)
    return (highest, is_whole) if is_copy else (-1, False)


async def _lanes_beside(nodes: Nodes, key: bytes, markers: Iterable[Lane]) -> list[Lane]:
    """The source lanes that have a marker in the state of this target lane, those of other processes too."""
    doing = f"reading the markers beside {key.decode(errors='replace')}"
    (names,) = await call_key(nodes, state_key(key), [("HKEYS", state_key(key))], doing)
    if _is_refused(names):
        return sorted(markers)
    return sorted(int(name[2:]) for name in check(names, doing) if name.startswith(b"m:"))


def _error(lane: Lane, key: bytes, marker: Marker, position: str, beside: list[Lane], *, is_last: bool) -> TargetTorn:
    name, state = key.decode(errors="replace"), state_key(key).decode(errors="replace")
    start = f"`crossfade relay start ROUTE --lane {lane} --from position:{position if is_last else '...'}`"
    if is_last:
        way_out = f"stop the relay, remove {state}, start the lane behind its last copy: {start}"
        way_out += "; `crossfade verify` proves it"
    else:
        way_out = (
            "stop the relay, find the lane's last copy with `crossfade verify ROUTE`, remove "
            f"{state}, start the lane behind that copy: {start}"
        )
    if len(beside) > 1:
        names = ", ".join(map(str, beside[:_NAMES_MAX])) + (" .." if len(beside) > _NAMES_MAX else "")
        way_out += f"; that key has the markers of source lanes {names}: start each of them behind its own last copy"
    return TargetTorn(
        lane,
        f"target lane {name} holds copies {'up' if is_last else 'at least up'} to source position {position}, its "
        f"marker covers them up to {marker.relayed or 'none'}: an older marker was put back",
        hint=way_out,
        position=position if is_last else "",
    )
