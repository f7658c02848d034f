"""Whether a stream holds copies behind what their marker covers: somebody put an older marker back.

Records and marker are written in one step, so by itself no record is ever ahead. But a lane's state may come from a
backup or another server: the relay would copy everything behind it a second time. Hides how a copy tells what it is: by
its mark, or by an id that only a copy can have. Where it has neither (between two Redis, alone on the stream), nothing
can be told without the source. Called by `claims`, once the claim stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...errors import TargetTorn
from ...model.position import Marker, position_order
from ...model.record import Lane, Shape
from ...model.wire import Origin, newest_origin
from .keys import state_key
from .link import Command
from .nodes import Nodes, call_key
from .replies import check, code_of, is_error

#: entries looked at, on each end of what stands behind the last append; they may be large
_ENTRIES = 8


async def copies_behind(
    nodes: Nodes, key: bytes, last: str, route: str, markers: Mapping[Lane, Marker], *, is_marked: bool
) -> dict[Lane, TargetTorn]:
    """The source lanes of which copies stand behind entry `last`, as errors. `is_marked`: every copy carries a mark.

    Raises Unreachable, AccessRefused.
    """
    looks: list[Command] = [
        ("XRANGE", key, f"({last}", "+", "COUNT", _ENTRIES),
        ("XREVRANGE", key, "+", f"({last}", "COUNT", _ENTRIES),
    ]
    doing = f"reading {key.decode(errors='replace')} behind the last append"
    replies = await call_key(nodes, key, looks, doing)
    if any(is_error(reply) and code_of(reply) == "NOPERM" for reply in replies):
        return {}  # the rights that `doctor` prints are enough; who gives fewer goes without this look
    first, newest = (check(reply, doing) for reply in replies)
    ahead: dict[Lane, str] = {}
    if is_marked:
        for origin in _origins([*newest, *reversed(first)]):
            if origin.route == route and origin.lane in markers and origin.ordinal > markers[origin.lane].ordinal:
                ahead.setdefault(origin.lane, origin.position)
    elif len(markers) == 1:
        ((lane, marker),) = markers.items()
        offset = _copied_up_to([entry[0].decode() for entry in first], last, marker.relayed)
        if offset >= 0:
            ahead[lane] = str(max(offset, *(position_order(entry[0].decode())[1] for entry in newest)))
    return {lane: _error(lane, key, markers[lane], position) for lane, position in ahead.items()}


def _origins(entries: Iterable[tuple[bytes, list[bytes]]]) -> Iterable[Origin]:
    rows = ((fields, 0) for _, fields in entries)
    return (origin for row in rows if (origin := newest_origin(row, Shape.ENTRY)) is not None)


def _copied_up_to(entry_ids: Iterable[str], last: str, relayed: str) -> int:
    """The highest offset in the ids of the copies that begin behind entry `last`, -1 = others wrote there.

    A copy has its Kafka offset where a server counts from 0 in each millisecond; what servers gave out in the very
    millisecond of the last copy looks alike.
    """
    if not relayed.isdigit():
        return -1
    last_ms, _ = position_order(last)
    highest, is_copy = int(relayed), False
    for ms, sequence in map(position_order, entry_ids):
        if sequence <= highest:
            break
        highest, is_copy = sequence, is_copy or ms != last_ms
    return highest if is_copy else -1


def _error(lane: Lane, key: bytes, marker: Marker, position: str) -> TargetTorn:
    name = key.decode(errors="replace")
    return TargetTorn(
        lane,
        f"target lane {name} holds copies up to source position {position}, its marker covers them up to "
        f"{marker.relayed or 'none'}: an older marker was put back",
        hint=f"stop the relay, remove {state_key(key).decode(errors='replace')}, start the lane behind its last copy: "
        f"`crossfade relay start ROUTE --lane {lane} --from position:{position}`; `crossfade verify` proves it",
        position=position,
    )
