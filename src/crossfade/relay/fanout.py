"""From one source lane's batch to the writes of its paths. Pure.

One to one, a batch is one write. N to M by key, each target lane gets the rows whose key belongs to it, drops what its
own marker already covers (its siblings may have been behind), and every path's marker moves to the batch's end.
"""

from __future__ import annotations

from collections.abc import Mapping as Dict

from ..model.mapping import Mapping
from ..model.partitioner import partition_many
from ..model.position import Marker, order_of, position_order
from ..model.record import Batch, Mapped, Path, Row, Shape, Write
from ..model.route import LaneMap, Route
from .lanes import reached


def plan_writes(
    route: Route,
    mapping: Mapping,
    shape: Shape,
    batch: Batch,
    mapped: Mapped,
    markers: Dict[Path, Marker],
    quarantine_left: int,
) -> list[Write]:
    """The writes that bring all paths of `batch.lane` to `batch.place`."""
    if route.lane_map is LaneMap.ONE_TO_ONE:
        path = (batch.lane, batch.lane)
        write = Write(path, mapped.positions, mapped.rows, batch.place, mapped.rejects, quarantine_left)
        write.size_bytes = batch.size_bytes
        return [write]
    # After a crash the paths of a lane are ragged, and the resumed batches end elsewhere than the first ones did. A
    # path that is ahead of this batch's end gets no write: its marker would go back, and a second crash copy twice.
    end = reached(batch.place)
    rows: dict[Path, list[Row]] = {path: [] for path in route.paths_of(batch.lane)}
    writes = {
        path: Write(path, [], rows[path], batch.place, [], quarantine_left)
        for path in route.paths_of(batch.lane)
        if reached(markers[path].place) <= end
    }
    keyless_lane = batch.lane % route.target_lanes
    keys = [mapping.key_of(row, shape) for row in mapped.rows]
    lanes = partition_many(route.partitioner, keys, route.target_lanes, keyless_lane)
    covered = {path: position_order(markers[path].place.position) for path in route.paths_of(batch.lane)}
    ragged = len(set(covered.values())) > 1
    for position, row, lane in zip(mapped.positions, mapped.rows, lanes, strict=True):
        path = (batch.lane, lane)
        if ragged and order_of(position) <= covered[path]:
            continue
        writes[path].positions.append(position)
        rows[path].append(row)
    home = writes.get((batch.lane, keyless_lane))
    if home is not None:
        home.rejects += [r for r in mapped.rejects if not ragged or order_of(r.position) > covered[home.path]]
    return list(writes.values())
