"""`read: replicated`: hold back what was read of a Redis source until all its replicas have it.

Hides that WAIT vouches only for what stands before an own write of the same connection, so a birth group is written
first. Invariant: it never vouches where that write was refused, or where no replica is attached. Called by `source`.
"""

from __future__ import annotations

from ...errors import Unreachable, UsageError
from ...model.position import Place
from .link import Command, Link, LinkLost
from .nodes import Nodes, unreachable
from .replies import check, info_fields


async def wait_for_replicas(nodes: Nodes, link: Link, stream_key: bytes, place: Place) -> None:
    """Wait until the replicas of `link` have all that was read over it; `place`: before what was read of this key.

    Raises UsageError, Unreachable, AccessRefused.
    """
    if not place.incarnation:
        raise UsageError(
            "read: replicated needs a birth group on the source",
            hint="grant +xgroup and copy the lane anew, or set read: at_once",
        )
    write: Command = ("XGROUP", "SETID", stream_key, place.incarnation, place.position or "0-0")
    try:
        info, written = await link.call([("INFO", "replication"), write])
        check(written, "asking the replicas with XGROUP SETID")
        replicas = int(info_fields(check(info, "reading the replicas")).get("connected_slaves", "0"))
        timeout_ms = int(link.timeout_s * 500)
        (acked,) = await link.call([("WAIT", max(1, replicas), timeout_ms)])
    except LinkLost as error:
        nodes.distrust()
        raise unreachable(error, "waiting for the replicas") from error
    if check(acked, "waiting for the replicas") < max(1, replicas):
        raise Unreachable(
            f"only {acked} of {max(1, replicas)} replicas of {link.address} have what was read",
            hint="read: replicated waits for them; attach a replica or set read: at_once",
        )
