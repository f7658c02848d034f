"""Marker against data: what the tail of a target lane says about the marker beside it.

`PathTail` and `resolve` are pure. Invariant: ordinals are compared, not positions; where marker and data differ, in
either direction, the data decides, and the marker decides only where the log starts after the marker's record.
`edges.EdgeReader` feeds them from the broker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from ...errors import LaneError, TargetReset, TargetTorn
from ...model.position import Marker, Place
from ...model.record import Lane, Path
from ...model.wire import XF, Origin, decode_origin

#: how far back the tail of a lane is searched for the route's headers; one transaction is never longer
SCAN_OFFSETS_MAX = 100_000


@dataclass(slots=True)
class PathTail:
    """What was seen of one path while its target lane's tail went by, in offset order."""

    marker: Marker | None
    #: the record that the marker names was seen
    is_matched: bool = False
    #: the last record of an unbroken run of ordinals behind the marker (or, without marker, of any)
    last: Origin | None = None
    last_offset: int = -1
    #: the newest record at or below the marker's ordinal
    below: Origin | None = None
    below_offset: int = -1
    has_gap: bool = False
    epoch_max: int = 0

    def feed(self, offset: int, origin: Origin) -> None:
        """Take note of one of the path's records."""
        self.epoch_max = max(self.epoch_max, origin.epoch)
        marker_ordinal = self.marker.ordinal if self.marker is not None else -1
        if origin.ordinal <= marker_ordinal:
            if self.below is None or origin.ordinal >= self.below.ordinal:
                self.below, self.below_offset = origin, offset
            if self.marker is not None and (str(offset), origin.ordinal, origin.position) == (
                self.marker.target,
                marker_ordinal,
                self.marker.relayed,
            ):
                self.is_matched = True
            return
        reached = self.last.ordinal if self.last is not None else marker_ordinal
        if origin.ordinal <= reached and self.last is not None:
            return  # an application copied one of our records: its header is data
        if reached >= 0 and origin.ordinal != reached + 1:
            self.has_gap = True
        self.last, self.last_offset = origin, offset


@dataclass(frozen=True, slots=True)
class LaneExtent:
    """The target lane at the moment of the claim."""

    low: int  # log start
    end: int  # last stable offset
    is_compacted: bool = False


@dataclass(frozen=True, slots=True)
class Resolved:
    marker: Marker | None
    alarm: str = ""
    error: LaneError | None = None
    #: the tail must be read again from further back
    needs_back_scan: bool = False


def resolve(path: Path, tail: PathTail, extent: LaneExtent, name: str, *, is_back_scanned: bool) -> Resolved:
    """Decide between a path's marker and the tail of its target lane `name`."""
    marker = tail.marker
    if marker is None:
        if tail.last is None:
            return Resolved(None)
        return Resolved(
            _from_header(tail.last, tail.last_offset, None),
            f"{name}: no marker for source lane {path[0]}; rebuilt from the header of record {tail.last_offset}",
        )
    if tail.has_gap:
        return Resolved(
            marker, error=_torn(path, marker, f"{name}: ordinals behind {marker.ordinal} have a gap in the data")
        )
    target = int(marker.target) if marker.target else -1
    is_cut = target >= 0 and target < extent.low
    is_known = target < 0 or is_cut or tail.is_matched
    if not is_known and target >= extent.end and extent.end == 0:
        return Resolved(
            marker,
            error=TargetReset(
                path[0],
                f"{name} is empty, but its marker names record {target}: the target was deleted or emptied",
                hint="start the route anew on this target",
                position=marker.relayed,
            ),
        )
    if not is_known and not extent.is_compacted:
        if not is_back_scanned:
            return Resolved(marker, needs_back_scan=True)
        if tail.below is None:
            return Resolved(
                marker,
                error=_torn(
                    path, marker, f"{name}: record {target} of the marker is absent, and no earlier one is left"
                ),
            )
        if tail.last is not None:
            return Resolved(
                marker, error=_torn(path, marker, f"{name}: records before ordinal {tail.last.ordinal} are absent")
            )
        return Resolved(
            _from_header(tail.below, tail.below_offset, marker),
            f"{name}: the marker of source lane {path[0]} is ahead of the data "
            f"(ordinal {marker.ordinal}, data {tail.below.ordinal}); the data decides",
        )
    if tail.last is not None:
        return Resolved(
            _from_header(tail.last, tail.last_offset, marker),
            f"{name}: the marker of source lane {path[0]} is behind the data "
            f"(ordinal {marker.ordinal}, data {tail.last.ordinal}); the data decides",
        )
    if not is_known and extent.is_compacted:
        return Resolved(marker, f"{name}: record {target} of the marker was compacted away; the marker decides")
    return Resolved(marker)


def _from_header(origin: Origin, offset: int, marker: Marker | None) -> Marker:
    """The marker that belongs to a record found in the target."""
    is_kafka = "-" not in origin.position
    place = Place(
        position=origin.position,
        count=int(origin.position) + 1 if is_kafka else -1,
        incarnation=marker.place.incarnation if marker is not None else "",
        echo=-1,  # what was passed over between the two is not known
        echoes=marker.place.echoes if marker is not None else 0,
    )
    found = Marker(place=place, ordinal=origin.ordinal, relayed=origin.position, target=str(offset), epoch=origin.epoch)
    if marker is None:
        return found
    return msgspec.structs.replace(
        found,
        epoch=max(marker.epoch, origin.epoch),
        claim_id=marker.claim_id,
        transactional_id=marker.transactional_id,
        source=marker.source,
        quarantined=marker.quarantined,
    )


def _torn(path: Path, marker: Marker, message: str) -> TargetTorn:
    return TargetTorn(
        path[0],
        message,
        hint="compare both sides with `crossfade verify` before deciding where to go on",
        position=marker.relayed,
    )


def origin_of(headers: Any, needle: bytes) -> Origin | None:
    """Our origin in a record's headers: the last `xf`, where it begins with `needle` (version and route)."""
    for name, content in reversed(headers or ()):
        if name == XF:
            return decode_origin(content) if content is not None and content.startswith(needle) else None
    return None


def forward_ranges(tails: Mapping[Path, PathTail], extents: Mapping[Lane, LaneExtent]) -> dict[Lane, tuple[int, int]]:
    """Per target lane the offsets from the oldest marker's record to the end, within the bound."""
    ranges: dict[Lane, tuple[int, int]] = {}
    for (_, lane), tail in tails.items():
        extent = extents[lane]
        window = max(extent.low, extent.end - SCAN_OFFSETS_MAX)
        target = int(tail.marker.target) if tail.marker is not None and tail.marker.target else window
        start = min(max(window, target), extent.end)
        known = ranges.get(lane)
        ranges[lane] = (start if known is None else min(start, known[0]), extent.end)
    return ranges


def exact_ranges(
    tails: Mapping[Path, PathTail], extents: Mapping[Lane, LaneExtent]
) -> list[dict[Lane, tuple[int, int]]]:
    """Where the records of markers stand that lie before the forward ranges: one offset of a target lane at a time."""
    offsets: dict[Lane, set[int]] = {}
    for (_, lane), tail in tails.items():
        target = int(tail.marker.target) if tail.marker is not None and tail.marker.target else -1
        if not tail.is_matched and extents[lane].low <= target < extents[lane].end:
            offsets.setdefault(lane, set()).add(target)
    rounds: list[dict[Lane, tuple[int, int]]] = []
    for lane, wanted in offsets.items():
        for number, offset in enumerate(sorted(wanted)):
            if number == len(rounds):
                rounds.append({})
            rounds[number][lane] = (offset, offset + 1)
    return rounds


def backward_ranges(tails: Mapping[Path, PathTail], extents: Mapping[Lane, LaneExtent]) -> dict[Lane, tuple[int, int]]:
    """Per target lane the offsets from well before the marker's record to the end."""
    ranges: dict[Lane, tuple[int, int]] = {}
    for (_, lane), tail in tails.items():
        extent = extents[lane]
        target = int(tail.marker.target) if tail.marker is not None and tail.marker.target else extent.end
        start = max(extent.low, min(target, extent.end) - SCAN_OFFSETS_MAX)
        known = ranges.get(lane)
        ranges[lane] = (start if known is None else min(start, known[0]), extent.end)
    return ranges
