"""The target side of a Kafka stream: appends as single transactions, under claims.

Hides how writes become lots, quarantined records and markers, and how markers become group offsets inside the
transaction. Invariant: a marker never covers records that are not in the log. Joins `claims`, `topics` and the
registry; called by `log`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from ...errors import BrokerError, Fenced, Indeterminate, LaneError, invariant
from ...model.position import Marker, position_text
from ...model.record import Lane, Path, Reject, Write
from ..protocol import Appended, Claim, Owner
from . import markers, names
from .board import KafkaBoard
from .claims import Claims
from .cluster import Cluster
from .comparing import Comparer
from .edges import EdgeReader
from .plans import KafkaClaim, Plan, is_size_refusal, make_plan, quarantine_full
from .registry import Registry
from .rows import prepare, quarantine_body
from .settings import KafkaSettings
from .topics import TargetTopics
from .writer import Lot, Note, fence


class KafkaTarget:
    """Claims and appends on one topic."""

    def __init__(
        self,
        settings: KafkaSettings,
        cluster: Cluster,
        topic: str,
        edges: EdgeReader,
        board: KafkaBoard,
        source_lanes: int | None,
        *,
        allow_weak: bool,
    ) -> None:
        self._settings = settings
        self._registry = Registry(board, topic)
        self._topics = TargetTopics(cluster, topic, source_lanes, allow_weak=allow_weak)
        comparer = Comparer(cluster, edges, topic)
        self._claims = Claims(settings, cluster, topic, self._topics, self._registry, comparer)
        self._log = structlog.get_logger("kafka.target").bind(topic=topic)

    async def claim(self, owner: Owner, paths: Sequence[Path]) -> KafkaClaim:
        """Fence, then read, then compare. Raises RouteConflict, Fenced, Indeterminate, Unreachable, AccessRefused."""
        return await self._claims.claim(owner, paths)

    async def append(
        self, claim: Claim, writes: Sequence[Write], on_sent: Callable[[], None] | None = None
    ) -> dict[Path, Appended | LaneError]:
        """One transaction for all writes. Raises Fenced, Indeterminate, Unreachable, AccessRefused."""
        invariant(isinstance(claim, KafkaClaim), "a claim of this log")
        assert isinstance(claim, KafkaClaim)
        writer = claim.writer
        if writer is None or writer.is_dead:
            raise Fenced("the claim is dead: an earlier append ended in doubt, or a newer claim was made")
        invariant(len({w.path for w in writes}) == len(writes), "paths of an append are distinct")
        invariant({w.path for w in writes} <= claim.paths - claim.errors.keys(), "only claimed paths are written")
        route = claim.owner.route
        outcome: dict[Path, Appended | LaneError] = {}
        lots: list[Lot] = []
        notes: list[Note] = []
        plans: dict[Path, Plan] = {}
        limits = await self._topics.limits()
        row_limits = limits.rows(int(time.time() * 1000))
        for write in writes:
            prepared = prepare(write, row_limits)
            if len(prepared.rejects) > write.quarantine_left:
                outcome[write.path] = quarantine_full(write, prepared.rejects)
                continue
            plan = plans[write.path] = make_plan(claim, write, prepared)
            if prepared.rows:
                lots.append(plan.lot)
            notes += [_quarantine_note(route, write, reject) for reject in prepared.rejects]
        if not plans:
            return outcome
        if notes:
            await self._topics.prepare_quarantine()
        if not lots and not notes:
            notes.append(_door(route, writes[0].path[0]))
        await self._commit(claim, lots, notes, plans, on_sent)
        for path, plan in plans.items():
            outcome[path] = Appended(claim.markers[path], len(plan.lot.rows), plan.quarantined)
        return outcome

    async def _commit(
        self,
        claim: KafkaClaim,
        lots: list[Lot],
        notes: list[Note],
        plans: Mapping[Path, Plan],
        on_sent: Callable[[], None] | None,
    ) -> None:
        after = dict(claim.markers)
        lanes = {source for source, _ in plans}

        def offsets(targets: Mapping[Path, int]) -> list[Any]:
            for path, plan in plans.items():
                after[path] = plan.marker(claim.markers.get(path), targets.get(path))
                self._refuse_another_log(path, claim.markers.get(path), targets.get(path, -1), len(plan.lot.rows))
            return markers.offsets(claim.owner.route, after, lanes, claim.paths)

        invariant(claim.writer is not None, "a claim has a writer")
        assert claim.writer is not None
        if claim.writer.is_dead:
            raise Fenced("the claim is dead: it was given up while its records were prepared")
        if claim.writer.is_spent:
            self._log.info("a new producer", reason="a step of the last transaction took as long as sending it twice")
            await self._claims.renew(claim)
        try:
            await claim.writer.commit(
                lots, notes, offsets, claim.group, on_sent, gives_times=self._topics.gives_own_times
            )
        except BrokerError as error:
            self._topics.doubt()
            if is_size_refusal(error):
                await self._topics.note_size_refusal()
            raise
        claim.markers.update({path: after[path] for path in plans})
        claim.stored.update({path: marker for path, marker in after.items() if path[0] in lanes})

    def _refuse_another_log(self, path: Path, before: Marker | None, offset: int, records: int) -> None:
        """Raise Indeterminate where a path's records do not stand behind those that it had: what it had copied is gone.

        The topic was made anew, or its log cut off, under a live claim: the client follows, and brokers take what it
        goes on with. Nothing is committed yet, and the next claim tells what has happened. `offset` is the last one of
        `records`: however many these are, each takes one behind what was there.
        """
        if before is not None and before.target and 0 <= offset < int(before.target) + records:
            raise Indeterminate(
                f"{records} records of source lane {path[0]} went to target lane {path[1]} up to offset {offset}, "
                f"which had them up to {before.target}",
                hint="the relay claims anew and says whether the topic was made anew or cut off",
            )

    async def guarantee(self) -> list[str]:
        """Which guarantee holds, and why. Raises GuaranteeRefused, Unreachable, AccessRefused."""
        return await self._topics.guarantee()

    async def reshard(self, route: str, count: int) -> None:
        """Split a route by hand into `count` shards: publish it, then fence every id of the old split."""
        old = await self._registry.publish_shards(route, count)
        for index in range(old):
            await fence(self._settings, names.transactional_id(route, None, (index, old)))

    async def release(self, route: str) -> None:
        """Let another route write to this topic from now on. Raises Unreachable, AccessRefused."""
        self._claims.discard_writers()
        await self._registry.leave(route)

    async def close(self) -> None:
        """Let go of handles and threads."""
        self._claims.close()


def _door(route: str, source_lane: Lane) -> Note:
    """An empty record of the lanes topic, so that a transaction without records begins with a partition.

    The coordinator answers the first request after a commit "concurrent transaction". A new partition is tried
    again after 20 ms; new offsets only after `retry.backoff.ms`, which could not be told from a lost reply.
    """
    return Note(names.lanes_topic(route), source_lane, None, None, None)


def _quarantine_note(route: str, write: Write, reject: Reject) -> Note:
    return Note(
        names.quarantine_topic(route),
        0,
        f"{write.path[0]}@{position_text(reject.position)}".encode(),
        quarantine_body(reject, hashlib.sha256),
        [
            ("reason", reject.reason.encode("utf-8", "replace")),
            ("lane", str(write.path[0]).encode()),
            ("target", str(write.path[1]).encode()),
            ("position", position_text(reject.position).encode()),
            ("shape", reject.shape.value.encode()),
        ],
    )
