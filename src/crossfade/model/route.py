"""A route: one configured pair of streams, and which source lane feeds which target lanes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum

from ..errors import RouteConflict, UsageError
from .record import Lane, Path


class LaneMap(Enum):
    ONE_TO_ONE = "one-to-one"
    BY_KEY = "by-key"  # N to M: the key's lane in the target, per the partitioner


@dataclass(frozen=True, slots=True)
class Route:
    """What the relay copies. `id` is random and made once, by `init`; it names markers, groups and transactions."""

    id: str
    name: str
    source_lanes: int
    target_lanes: int
    lane_map: LaneMap
    partitioner: str
    #: digest of what must not change under a running route
    source: str
    #: id of the route that copies the other way, "" = none: what it wrote is passed over as an echo
    pair: str = ""
    #: source lanes behind `source_lanes` that have no lane in the target: they came later, and wait for one
    lanes_without_target: int = 0

    def paths_of(self, source_lane: Lane) -> tuple[Path, ...]:
        """All paths that leave `source_lane`."""
        if self.lane_map is LaneMap.ONE_TO_ONE:
            return ((source_lane, source_lane),)
        return tuple((source_lane, target_lane) for target_lane in range(self.target_lanes))


def make_route(
    *,
    id: str,
    name: str,
    source_identity: str,
    source_lanes: int,
    target_lanes: int,
    lane_map: LaneMap,
    partitioner: str,
    mapping_digest: str,
    pair: str = "",
    first_lanes: int = 0,
) -> Route:
    """Check that the lanes fit and bind the route to its source, lane map and mapping.

    `first_lanes`: how many lanes the source had when the route was first started (0 = it was not): the route stays
    bound to that number, and lanes that came later and have none in the target are left out.
    Raises UsageError where lanes cannot be mapped one to one, RouteConflict where the source has lost lanes.
    """
    if source_lanes < first_lanes:
        raise RouteConflict(
            f"route {name!r} was started with {first_lanes} source lanes, now there are {source_lanes}",
            hint="restore the lanes, or start a new route",
        )
    without_target = 0
    if first_lanes and lane_map is LaneMap.ONE_TO_ONE and first_lanes <= target_lanes < source_lanes:
        without_target = source_lanes - target_lanes
        source_lanes = target_lanes
    if lane_map is LaneMap.ONE_TO_ONE and source_lanes > target_lanes:
        raise UsageError(
            f"route {name!r} maps lanes one to one, but the source has {source_lanes} lanes, the target {target_lanes}",
            hint=f"give the target {source_lanes} lanes, or set `lanes: by-key` on the route",
        )
    bound = [source_identity, str(first_lanes or source_lanes), lane_map.value, mapping_digest]
    if lane_map is LaneMap.BY_KEY:
        bound += [partitioner, str(target_lanes)]
    digest = hashlib.blake2b("\x1f".join(bound).encode(), digest_size=8).hexdigest()
    return Route(id, name, source_lanes, target_lanes, lane_map, partitioner, digest, pair, without_target)
