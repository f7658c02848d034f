"""The lanes topic of a route, and the group handle of a member: what claims and the group share."""

from __future__ import annotations

from typing import Any

from . import names
from .cluster import Cluster, TopicFacts


async def ensure_lanes_topic(cluster: Cluster, route: str, lanes: int, replication: int) -> TopicFacts:
    """The topic whose partitions stand for a route's source lanes. Raises Unreachable, AccessRefused."""
    made = await cluster.ensure_topic(
        names.lanes_topic(route),
        lanes,
        replication,
        {
            "min.insync.replicas": str(min(2, replication)),
            "retention.ms": "3600000",
            "segment.bytes": "1048576",
            "cleanup.policy": "delete",
        },
    )
    return made if made.lanes >= lanes else await cluster.add_partitions(names.lanes_topic(route), lanes)


def generation_of(handle: Any) -> int:
    """The generation in librdkafka's serialised group handle; -1 = no member."""
    if not isinstance(handle, bytes) or not handle.startswith(b"CGMDv2:") or len(handle) < 11:
        return -1
    return int.from_bytes(handle[7:11], "little", signed=True)
