"""A route: one configured pair of streams, and which source lane feeds which target lanes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum

from ..errors import UsageError
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
) -> Route:
    """Check that the lanes fit and bind the route to its source, lane map and mapping.

    Raises UsageError where lanes cannot be mapped one to one.
    """
    if pair and source_lanes != target_lanes:
        raise UsageError(
            f"route {name!r} is one of a pair, but its ends have {source_lanes} and {target_lanes} lanes",
            hint="give both brokers as many lanes of the stream: an echo is known by its lane",
        )
    if lane_map is LaneMap.ONE_TO_ONE and source_lanes > target_lanes:
        raise UsageError(
            f"route {name!r} maps lanes one to one, but the source has {source_lanes} lanes, the target {target_lanes}",
            hint=f"give the target {source_lanes} lanes, or set `lanes: by-key` on the route",
        )
    bound = [source_identity, str(source_lanes), lane_map.value, mapping_digest]
    if lane_map is LaneMap.BY_KEY:
        bound += [partitioner, str(target_lanes)]
    digest = hashlib.blake2b("\x1f".join(bound).encode(), digest_size=8).hexdigest()
    return Route(id, name, source_lanes, target_lanes, lane_map, partitioner, digest, pair)
