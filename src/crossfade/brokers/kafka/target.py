"""The target side of a Kafka stream: claims, and appends as single transactions.

Hides the order in which a claim fences, reads and compares, and how markers become group offsets inside the
transaction. Invariant: the producer of a claim is initialised before its markers are read, so nothing of an older
claim can become visible after they were read; and a marker never covers records that are not in the log.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from ...errors import (
    BrokerError,
    Fenced,
    LaneError,
    RouteConflict,
    TargetReset,
    Unreachable,
    UsageError,
    invariant,
)
from ...model.position import Marker, position_text
from ...model.record import Lane, Path, Reject, Write
from ...model.wire import origin_prefix
from ..protocol import Appended, Claim, Owner
from . import markers, names
from .board import KafkaBoard
from .cluster import EARLIEST, LATEST, SETTLE_S, Cluster, TopicFacts
from .edges import EdgeReader
from .guarantee import TargetLimits, guarantee_of, read_limits
from .lanes import ensure_lanes_topic, generation_of
from .markers import MarkerReader
from .plans import KafkaClaim, Plan, are_same, is_size_refusal, make_plan, quarantine_full
from .registry import Registry
from .rows import QUARANTINE_BODY_BYTES_MAX, prepare, quarantine_body
from .settings import KafkaSettings
from .tail import LaneExtent, PathTail, backward_ranges, exact_ranges, forward_ranges, origin_of, resolve
from .threads import HandleThread
from .writer import Lot, Note, Patience, Writer, fence

#: a transaction of a dead owner ends by itself after its timeout and the broker's sweep
_STABLE_WAIT_S = 25.0
_STABLE_PAUSE_S = 0.1
#: a look at the tail may take this long, and longer where much is to be read
_SCAN_WAIT_S = 60.0
_SCAN_OFFSETS_PER_S = 20_000
_SCAN_TOLD_OFFSETS = 1_000_000
#: limits of the topic are asked for again after this long
_LIMITS_S = 30.0


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
        self._cluster = cluster
        self._topic = topic
        self._route = ""  # of the last claim
        self._edges = edges
        self._registry = Registry(board, topic)
        self._source_lanes = source_lanes
        self._allow_weak = allow_weak
        self._facts: TopicFacts | None = None
        self._limits: TargetLimits | None = None
        self._limits_at = 0.0
        self._marker_reader: MarkerReader | None = None
        self._marker_thread: HandleThread | None = None
        self._writers: list[Writer] = []
        self._patience = Patience()
        self._ready = False
        self._quarantine_ready = False
        self._log = structlog.get_logger("kafka.target").bind(topic=topic)

    # --- claim --------------------------------------------------------------------------------------------------------

    async def claim(self, owner: Owner, paths: Sequence[Path]) -> KafkaClaim:
        """Fence, then read, then compare. Raises RouteConflict, Fenced, Indeterminate, Unreachable, AccessRefused."""
        invariant(len(set(paths)) == len(paths), "paths of a claim are distinct")
        if not paths:
            raise UsageError("a claim needs at least one path")
        if owner.token is not None and generation_of(owner.token) < 0:
            raise Fenced("the group handle has no generation: this process is no member of the group")
        self._discard_writers()
        self._follow(owner.route)
        if self._ready and await self._cluster.topic_id(self._topic) not in (None, "", self._topic_id):
            self._ready, self._limits = False, None  # made anew under a running process
        limits = await self._prepare_topics(max(source for source, _ in paths) + 1)
        writer = self._new_writer(owner, limits)
        try:
            _, topic_id = await asyncio.gather(writer.open(), self._registry.enter(owner.route, self._topic_id))
            if owner.shard is not None:  # only now: a changed split is published before the old ids are fenced
                await self._registry.check_shards(owner.route, owner.shard)
            reader, thread = self._markers()
            group = owner.token
            if group is None:
                group = await thread.call(reader.memberless_handle)
            found = await self._stable_markers(owner, writer.transactional_id, paths)
            claim = await self._compare(owner, paths, found, writer, group)
            if topic_id != self._topic_id:
                await self._note_new_topic(claim, topic_id)
            return claim
        except BaseException:  # cancelled too: a writer that nobody owns must not speak again
            writer.discard()
            raise

    async def _refuse_beside_group(self, owner: Owner) -> list[str]:
        """The members of the route's group. Raises RouteConflict where lanes were set by hand beside them."""
        live = await self._cluster.live_instances(names.group(owner.route))
        if owner.token is None and live:
            raise RouteConflict(
                f"route {owner.route} runs in group mode on {', '.join(sorted(live))}; lanes cannot be set "
                "by hand at the same time",
                hint="stop those processes, or drop --shard",
            )
        return sorted(live)

    def _new_writer(self, owner: Owner, limits: TargetLimits) -> Writer:
        member = owner.instance if owner.token is not None else None
        writer = Writer(
            self._settings,
            names.transactional_id(owner.route, member, owner.shard),
            self._topic,
            message_bytes_max=limits.client_bytes_max,
            batch_bytes_max=limits.batch_bytes_max,
            patience=self._patience,
        )
        self._writers.append(writer)
        return writer

    @property
    def _topic_id(self) -> str:
        return self._facts.topic_id if self._facts is not None else ""

    async def _note_new_topic(self, claim: KafkaClaim, topic_id: str) -> None:
        """The topic is not the one that the route began with: what was copied is gone."""
        for path, marker in claim.markers.items():
            if marker.target:
                claim.errors[path] = TargetReset(
                    path[0],
                    f"topic {self._topic} was deleted and made anew (id {topic_id} is now {self._topic_id}) behind "
                    f"{marker.ordinal} records that were copied into it",
                    hint="start the route anew on this topic",
                    position=marker.relayed,
                )
        if not claim.errors:
            await self._registry.follow(claim.owner.route, self._topic_id)

    def _follow(self, route: str) -> None:
        """Let go of the handles of another route."""
        if route != self._route:
            self._close_markers()
            self._route, self._ready, self._quarantine_ready = route, False, False

    async def _stable_markers(self, owner: Owner, own_id: str, paths: Sequence[Path]) -> dict[Path, Marker]:
        """The markers, after other writers that they name were fenced."""
        lanes = sorted({source for source, _ in paths})
        reader, thread = self._markers()
        fenced = {own_id}
        while True:
            unstable = await thread.call(reader.peek, lanes, _STABLE_WAIT_S)
            if owner.shard is not None and unstable:  # a member may have fenced this id and stored nothing yet
                await self._refuse_beside_group(owner)
            strangers = {
                marker.transactional_id
                for lane, text in unstable.items()
                for marker in markers.decode(text, lane, paths).values()
                if marker.transactional_id
            } - fenced
            if strangers:
                live = await self._refuse_beside_group(owner)
                for stranger in strangers:
                    if names.instance_of(owner.route, stranger) not in live:
                        self._log.info("fencing the last writer", writer=stranger)
                        await fence(self._settings, stranger)
                fenced |= strangers
            texts = await thread.call(reader.read, lanes, _STABLE_WAIT_S)
            found = {
                path: marker
                for lane, text in texts.items()
                for path, marker in markers.decode(text, lane, paths).items()
            }
            # A stranger's transaction may have been committed between the two reads: then it is fenced as well.
            if {marker.transactional_id for marker in found.values()} <= fenced | {""}:
                break
        for path, marker in found.items():
            if marker.source and marker.source != owner.source:
                raise RouteConflict(
                    f"route {owner.route} has copied source lane {path[0]} from another source or with another "
                    f"mapping before (marker {marker.source}, now {owner.source})",
                    hint="use the configuration that the route was started with, or start a new route",
                )
        return {path: marker for path, marker in found.items() if path in set(paths)}

    async def _compare(
        self, owner: Owner, paths: Sequence[Path], found: Mapping[Path, Marker], writer: Writer, group: Any
    ) -> KafkaClaim:
        """Compare each marker with the tail of its target lane, and make the claim."""
        lanes = sorted({target for _, target in paths})
        low, end = await asyncio.gather(
            self._cluster.offsets(self._topic, lanes, EARLIEST),
            self._ends(paths, found),
        )
        extents = {
            lane: LaneExtent(low[lane], end[lane], self._limits is not None and self._limits.is_compacted)
            for lane in lanes
        }
        tails = {path: PathTail(found.get(path)) for path in paths}
        await self._scan(forward_ranges(tails, extents), tails)
        for ranges in exact_ranges(tails, extents):  # a path that rested while others wrote: its record is far back
            await self._scan(ranges, tails)
        claim = KafkaClaim(
            owner,
            0,
            uuid.uuid4().hex[:16],
            {},
            writer=writer,
            group=group,
            paths=frozenset(paths),
            stored=dict(found),
        )
        back = self._resolve(claim, tails, extents, is_back_scanned=False)
        if back:
            again = {path: PathTail(found.get(path)) for path in back}
            await self._scan(backward_ranges(again, extents), again)
            tails |= again
            self._resolve(claim, again, extents, is_back_scanned=True)
        highest = max(
            max((marker.epoch for marker in found.values()), default=0),
            max((tail.epoch_max for tail in tails.values()), default=0),
        )
        claim.epoch = highest + 1
        for alarm in claim.alarms:
            self._log.warning("marker and data differ", alarm=alarm)
        return claim

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
        deadline = time.monotonic() + _STABLE_WAIT_S
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

    def _resolve(
        self,
        claim: KafkaClaim,
        tails: Mapping[Path, PathTail],
        extents: Mapping[Lane, LaneExtent],
        *,
        is_back_scanned: bool,
    ) -> list[Path]:
        """Enter each path's outcome into the claim; the paths whose tail must be read from further back."""
        back = []
        for path, tail in tails.items():
            resolved = resolve(
                path, tail, extents[path[1]], f"{self._topic}[{path[1]}]", is_back_scanned=is_back_scanned
            )
            if resolved.needs_back_scan:
                back.append(path)
                continue
            if resolved.marker is not None:
                claim.markers[path] = resolved.marker
            if resolved.alarm:
                claim.alarms.append(resolved.alarm)
            if resolved.error is not None:
                claim.errors[path] = resolved.error
        return back

    async def _scan(self, ranges: Mapping[Lane, tuple[int, int]], tails: Mapping[Path, PathTail]) -> None:
        needle = origin_prefix(self._route, 0)[: -len("0@")].encode()

        def look(lane: Lane, message: Any) -> bool:
            origin = origin_of(message.headers(), needle)
            if origin is not None:
                tail = tails.get((origin.lane, lane))
                if tail is not None:
                    tail.feed(message.offset(), origin)
            return False

        offsets = sum(stop - start for start, stop in ranges.values())
        if offsets > _SCAN_TOLD_OFFSETS:
            self._log.info("reading the tail of the target to find the last records of the route", offsets=offsets)
        await self._edges.look(ranges, look, _SCAN_WAIT_S + offsets / _SCAN_OFFSETS_PER_S)

    # --- append -------------------------------------------------------------------------------------------------------

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
        outcome: dict[Path, Appended | LaneError] = {}
        lots: list[Lot] = []
        notes: list[Note] = []
        plans: dict[Path, Plan] = {}
        limits = await self._current_limits()
        row_limits = limits.rows(int(time.time() * 1000))
        for write in writes:
            prepared = prepare(write, row_limits)
            if len(prepared.rejects) > write.quarantine_left:
                outcome[write.path] = quarantine_full(write, prepared.rejects)
                continue
            plan = plans[write.path] = make_plan(claim, write, prepared)
            if prepared.rows:
                lots.append(plan.lot)
            notes += [self._quarantine_note(write, reject) for reject in prepared.rejects]
        if not plans:
            return outcome
        if notes:
            await self._prepare_quarantine()
        if not lots and not notes:
            notes.append(self._door(writes[0].path[0]))
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
            return markers.offsets(self._route, after, lanes, claim.paths)

        invariant(claim.writer is not None, "a claim has a writer")
        assert claim.writer is not None
        if claim.writer.is_dead:
            raise Fenced("the claim is dead: it was given up while its records were prepared")
        if claim.writer.is_spent:
            self._log.info("a new producer", reason="a step of the last transaction took as long as sending it twice")
            await self._renew(claim)
        try:
            await claim.writer.commit(lots, notes, offsets, claim.group, on_sent)
        except BrokerError as error:
            if is_size_refusal(error):
                self._limits = None
                limits = await self._current_limits()
                limits.is_exact = True  # isolate by size from now on
            raise
        claim.markers.update({path: after[path] for path in plans})
        claim.stored.update({path: marker for path, marker in after.items() if path[0] in lanes})

    async def _renew(self, claim: KafkaClaim) -> None:
        """A new producer under the same claim, after a transaction of which a request may have been sent twice.

        Its init fences whatever of that is still on its way. Somebody else may have claimed and written since: then
        the stored markers are not ours any more, and the claim is dead. Raises as `claim`.
        """
        spent = claim.writer
        writer = claim.writer = self._new_writer(claim.owner, await self._current_limits())
        try:
            if spent is not None:
                spent.discard()
                self._writers.remove(spent)
            await writer.open()
            if (
                claim.owner.shard is not None
            ):  # only now: who took over has published a split, or joined, and then fenced
                await self._registry.check_shards(claim.owner.route, claim.owner.shard)
                await self._refuse_beside_group(claim.owner)
            reader, thread = self._markers()
            texts = await thread.call(reader.read, sorted({source for source, _ in claim.paths}), _STABLE_WAIT_S)
            found = {
                path: marker
                for lane, text in texts.items()
                for path, marker in markers.decode(text, lane, claim.paths).items()
                if path in claim.paths
            }
            if not are_same(found, claim.stored, claim.claim_id):
                raise Fenced("another claim has written since: the markers are not those of this claim any more")
        except BaseException:  # cancelled too: a writer that nobody owns must not speak again
            writer.discard()
            raise

    def _door(self, source_lane: Lane) -> Note:
        """An empty record of the lanes topic, so that a transaction without records begins with a partition.

        The coordinator answers the first request after a commit "concurrent transaction". A new partition is tried
        again after 20 ms; new offsets only after `retry.backoff.ms`, which could not be told from a lost reply.
        """
        return Note(names.lanes_topic(self._route), source_lane, None, None, None)

    def _quarantine_note(self, write: Write, reject: Reject) -> Note:
        return Note(
            names.quarantine_topic(self._route),
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

    # --- topics and limits --------------------------------------------------------------------------------------------

    async def guarantee(self) -> list[str]:
        """Which guarantee holds, and why. Raises GuaranteeRefused, Unreachable, AccessRefused."""
        facts = await self._target_facts()
        return guarantee_of(facts, await self._cluster.config(self._topic), allow_weak=self._allow_weak)

    async def _target_facts(self) -> TopicFacts:
        facts = await self._cluster.existing_topic(self._topic)
        self._facts = facts
        return facts

    async def _prepare_topics(self, lanes_needed: int) -> TargetLimits:
        if not self._ready:
            for line in await self.guarantee():
                self._log.info("guarantee", says=line)
            facts = self._facts
            invariant(facts is not None, "the guarantee asked for the topic")
            assert facts is not None
            lanes = max(lanes_needed, self._source_lanes or facts.lanes)
            made = await ensure_lanes_topic(self._cluster, self._route, lanes, facts.replication)
            if made.lanes < lanes_needed:
                raise RouteConflict(
                    f"route {self._route} was started with {made.lanes} source lanes, now there are {lanes_needed}",
                    hint="start a new route, or restore the lane count",
                )
            self._ready = True
        return await self._current_limits()

    async def _prepare_quarantine(self) -> None:
        if not self._quarantine_ready:
            facts = self._facts or await self._target_facts()
            await self._cluster.ensure_topic(
                names.quarantine_topic(self._route),
                1,
                facts.replication,
                {
                    "min.insync.replicas": str(min(2, facts.replication)),
                    "retention.ms": "-1",
                    "max.message.bytes": str(2 * QUARANTINE_BODY_BYTES_MAX),
                },
                settle_s=SETTLE_S,  # it is written to at once, through a coordinator that may hear of it late
            )
            self._quarantine_ready = True

    async def _current_limits(self) -> TargetLimits:
        now = time.monotonic()
        if self._limits is None or now - self._limits_at > _LIMITS_S:
            was_exact = self._limits is not None and self._limits.is_exact
            self._limits = read_limits(await self._cluster.config(self._topic))
            self._limits.is_exact = was_exact
            self._limits_at = now
        return self._limits

    def _markers(self) -> tuple[MarkerReader, HandleThread]:
        if self._marker_reader is None or self._marker_thread is None:
            self._marker_reader = MarkerReader(self._settings, self._route)
            self._marker_thread = HandleThread(f"markers-{self._route}")
        return self._marker_reader, self._marker_thread

    def _discard_writers(self) -> None:
        for writer in self._writers:
            writer.discard()
        self._writers.clear()

    async def reshard(self, route: str, count: int) -> None:
        """Split a route by hand into `count` shards: publish it, then fence every id of the old split."""
        old = await self._registry.publish_shards(route, count)
        for index in range(old):
            await fence(self._settings, names.transactional_id(route, None, (index, old)))

    async def release(self, route: str) -> None:
        """Let another route write to this topic from now on. Raises Unreachable, AccessRefused."""
        self._discard_writers()
        await self._registry.leave(route)

    async def close(self) -> None:
        """Let go of handles and threads."""
        self._discard_writers()
        self._close_markers()

    def _close_markers(self) -> None:
        if self._marker_thread is not None and self._marker_reader is not None:
            self._marker_thread.post(self._marker_reader.close)
            self._marker_thread.stop()
            self._marker_reader = self._marker_thread = None
