"""Markers beside the data: reads the tails of target lanes and lets `tail` decide about each marker.

Hides which offsets must be read for that, and the wait until they can be. Invariant: no record is taken for absent
because somebody else's open transaction hides it. Called by `claims`, after the older writers were fenced.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import structlog

from ...errors import LaneError, Unreachable
from ...model.position import Marker
from ...model.record import Lane, Path
from ...model.wire import origin_prefix
from .cluster import EARLIEST, LATEST, Cluster
from .edges import EdgeReader
from .headers import headers_of
from .tail import LaneExtent, PathTail, backward_ranges, exact_ranges, forward_ranges, origin_of, resolve

#: a transaction of a dead owner ends by itself after its timeout and the broker's sweep
STABLE_WAIT_S = 25.0
_STABLE_PAUSE_S = 0.1
#: a look at the tail may take this long, and longer where much is to be read
_SCAN_WAIT_S = 60.0
_SCAN_OFFSETS_PER_S = 20_000
_SCAN_TOLD_OFFSETS = 1_000_000


@dataclass(slots=True)
class Compared:
    """What marker and data say together, per path; a path that has neither is absent."""

    markers: dict[Path, Marker] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    errors: dict[Path, LaneError] = field(default_factory=dict)
    #: the highest epoch of any marker or record (0 = none)
    epoch_max: int = 0


class Comparer:
    """Compares markers with the data of one topic."""

    def __init__(self, cluster: Cluster, edges: EdgeReader, topic: str) -> None:
        self._cluster = cluster
        self._edges = edges
        self._topic = topic
        self._log = structlog.get_logger("kafka.comparing").bind(topic=topic)

    async def compare(
        self, route: str, paths: Sequence[Path], found: Mapping[Path, Marker], *, is_compacted: bool
    ) -> Compared:
        """Compare each marker with the tail of its target lane. Raises Unreachable, AccessRefused."""
        lanes = sorted({target for _, target in paths})
        low, end = await asyncio.gather(
            self._cluster.offsets(self._topic, lanes, EARLIEST),
            self._ends(paths, found),
        )
        extents = {lane: LaneExtent(low[lane], end[lane], is_compacted) for lane in lanes}
        tails = {path: PathTail(found.get(path)) for path in paths}
        await self._scan(route, forward_ranges(tails, extents), tails)
        for ranges in exact_ranges(tails, extents):  # a path that rested while others wrote: its record is far back
            await self._scan(route, ranges, tails)
        compared = Compared()
        back = self._resolve(compared, tails, extents, is_back_scanned=False)
        if back:
            again = {path: PathTail(found.get(path)) for path in back}
            await self._scan(route, backward_ranges(again, extents), again)
            tails |= again
            self._resolve(compared, again, extents, is_back_scanned=True)
        compared.epoch_max = max(
            max((marker.epoch for marker in found.values()), default=0),
            max((tail.epoch_max for tail in tails.values()), default=0),
        )
        for alarm in compared.alarms:
            self._log.warning("marker and data differ", alarm=alarm)
        return compared

    async def _ends(self, paths: Sequence[Path], found: Mapping[Path, Marker]) -> dict[Lane, int]:
        """The last stable offset of each target lane, once it has passed the records that the markers name.

        Behind somebody else's open transaction a record is invisible to the comparison, and must not be taken for
        absent. Where a path has no marker, whatever is in its lane may be its own. Raises Unreachable.
        """
        lanes = sorted({target for _, target in paths})
        high = await self._cluster.offsets(self._topic, lanes, LATEST, committed=False)
        needed: dict[Lane, int] = dict.fromkeys(lanes, 0)
        for path in paths:
            marker, lane = found.get(path), path[1]
            behind = high[lane] if marker is None else int(marker.target or -1) + 1
            if behind <= high[lane]:  # a record beyond the end is gone, and no waiting brings it back
                needed[lane] = max(needed[lane], behind)
        deadline = time.monotonic() + STABLE_WAIT_S
        while True:
            ends = await self._cluster.offsets(self._topic, lanes, LATEST)
            hidden = [lane for lane in lanes if ends[lane] < needed[lane]]
            if not hidden:
                return ends
            if time.monotonic() > deadline:
                lane = hidden[0]
                raise Unreachable(
                    f"{self._topic}[{lane}]: an open transaction hides what is behind offset {ends[lane]}; this route "
                    f"may have records there, up to {needed[lane] - 1}",
                    hint="it ends with its producer's transaction.timeout.ms; one that hangs: `kafka-transactions.sh "
                    "find-hanging`, then `abort`",
                )
            await asyncio.sleep(_STABLE_PAUSE_S)

    async def _scan(self, route: str, ranges: Mapping[Lane, tuple[int, int]], tails: Mapping[Path, PathTail]) -> None:
        needle = origin_prefix(route, 0)[: -len("0@")].encode()

        def look(lane: Lane, message: Any) -> bool:
            origin = origin_of(headers_of([message])[0], needle)
            if origin is not None:
                tail = tails.get((origin.lane, lane))
                if tail is not None:
                    tail.feed(message.offset(), origin)
            return False

        offsets = sum(stop - start for start, stop in ranges.values())
        if offsets > _SCAN_TOLD_OFFSETS:
            self._log.info("reading the tail of the target to find the last records of the route", offsets=offsets)
        await self._edges.look(ranges, look, _SCAN_WAIT_S + offsets / _SCAN_OFFSETS_PER_S)

    def _resolve(
        self,
        compared: Compared,
        tails: Mapping[Path, PathTail],
        extents: Mapping[Lane, LaneExtent],
        *,
        is_back_scanned: bool,
    ) -> list[Path]:
        """Enter each path's outcome; the paths whose tail must be read from further back."""
        back = []
        for path, tail in tails.items():
            resolved = resolve(
                path, tail, extents[path[1]], f"{self._topic}[{path[1]}]", is_back_scanned=is_back_scanned
            )
            if resolved.needs_back_scan:
                back.append(path)
                continue
            if resolved.marker is not None:
                compared.markers[path] = resolved.marker
            if resolved.alarm:
                compared.alarms.append(resolved.alarm)
            if resolved.error is not None:
                compared.errors[path] = resolved.error
        return back
