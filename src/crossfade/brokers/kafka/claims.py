"""Claims on target lanes: fence what is older, and find the markers beside the data.

Hides the order in which a claim fences, reads and compares, whom it fences, and the handles that writers and markers
need. Invariant: the producer of a claim is initialised before its markers are read, so nothing of an older claim can
become visible after they were read; and at most one producer of a target writes. Called by `target`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Collection, Mapping, Sequence

import structlog

from ...errors import Fenced, RouteConflict, TargetReset, Unreachable, UsageError, invariant
from ...model.position import Marker
from ...model.record import Lane, Path
from ..protocol import Owner
from . import markers, names
from .cluster import Cluster, are_two_topics, is_told
from .comparing import STABLE_WAIT_S, Comparer
from .guarantee import TargetLimits
from .lanes import generation_of
from .markers import MarkerReader
from .plans import KafkaClaim, are_same
from .registry import Registry
from .settings import KafkaSettings
from .threads import HandleThread
from .topics import TargetTopics
from .writer import Patience, Writer, fence


class Claims:
    """Takes claims on one topic, and renews them."""

    def __init__(
        self,
        settings: KafkaSettings,
        cluster: Cluster,
        topic: str,
        topics: TargetTopics,
        registry: Registry,
        comparer: Comparer,
    ) -> None:
        self._settings = settings
        self._cluster = cluster
        self._topic = topic
        self._topics = topics
        self._registry = registry
        self._comparer = comparer
        self._route = ""  # of the last claim
        self._marker_reader: MarkerReader | None = None
        self._marker_thread: HandleThread | None = None
        self._writers: list[Writer] = []
        self._patience = Patience()
        self._log = structlog.get_logger("kafka.claims").bind(topic=topic)

    async def claim(self, owner: Owner, paths: Sequence[Path]) -> KafkaClaim:
        """Fence, then read, then compare. Raises RouteConflict, Fenced, Indeterminate, Unreachable, AccessRefused."""
        invariant(len(set(paths)) == len(paths), "paths of a claim are distinct")
        if not paths:
            raise UsageError("a claim needs at least one path")
        if owner.token is not None and generation_of(owner.token) < 0:
            raise Fenced("the group handle has no generation: this process is no member of the group")
        self.discard_writers()
        if owner.route != self._route:
            self._close_markers()
            self._route = owner.route
        limits = await self._topics.prepare(owner.route, max(source for source, _ in paths) + 1)
        writer = self._new_writer(owner, limits)
        try:
            _, topic_id = await asyncio.gather(writer.open(), self._registry.enter(owner.route, self._topics.topic_id))
            if owner.shard is not None:  # only now: a changed split is published before the old ids are fenced
                await self._registry.check_shards(owner.route, owner.shard)
            reader, thread = self._markers()
            group = owner.token
            if group is None:
                group = await thread.call(reader.memberless_handle)
            found = await self._stable_markers(owner, writer.transactional_id, paths)
            compared = await self._comparer.compare(owner.route, paths, found, is_compacted=limits.is_compacted)
            claim = KafkaClaim(
                owner,
                compared.epoch_max + 1,
                uuid.uuid4().hex[:16],
                compared.markers,
                errors=compared.errors,
                alarms=compared.alarms,
                writer=writer,
                group=group,
                paths=frozenset(paths),
                stored=dict(found),
            )
            await self._compare_topic(claim, topic_id)
            return claim
        except BaseException:  # cancelled too: a writer that nobody owns must not speak again
            writer.discard()
            raise

    async def renew(self, claim: KafkaClaim) -> None:
        """A new producer under the same claim, after a transaction of which a request may have been sent twice.

        Its init fences whatever of that is still on its way. Somebody else may have claimed and written since: then
        the stored markers are not ours any more, and the claim is dead. Raises as `claim`.
        """
        owner, spent = claim.owner, claim.writer
        writer = claim.writer = self._new_writer(owner, await self._topics.limits())
        try:
            if spent is not None:
                spent.discard()
                self._writers.remove(spent)
            await writer.open()
            if owner.shard is not None:  # only now: who took over has published a split, or joined, and then fenced
                await self._registry.check_shards(owner.route, owner.shard)
                await self._refuse_beside_group(owner)
            reader, thread = self._markers()
            texts = await thread.call(reader.read, sorted({source for source, _ in claim.paths}), STABLE_WAIT_S)
            found = {path: marker for path, marker in _decoded(texts, claim.paths).items() if path in claim.paths}
            if not are_same(found, claim.stored, claim.claim_id):
                raise Fenced("another claim has written since: the markers are not those of this claim any more")
        except BaseException:  # cancelled too: a writer that nobody owns must not speak again
            writer.discard()
            raise

    def discard_writers(self) -> None:
        """End every claim that was taken here: its writer never speaks again. Returns at once."""
        for writer in self._writers:
            writer.discard()
        self._writers.clear()

    def close(self) -> None:
        """Let go of handles and threads. Returns at once."""
        self.discard_writers()
        self._close_markers()

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

    async def _stable_markers(self, owner: Owner, own_id: str, paths: Sequence[Path]) -> dict[Path, Marker]:
        """The markers, after other writers that they name were fenced."""
        lanes = sorted({source for source, _ in paths})
        reader, thread = self._markers()
        fenced = {own_id}
        while True:
            unstable = await thread.call(reader.peek, lanes, STABLE_WAIT_S)
            if owner.shard is not None and unstable:  # a member may have fenced this id and stored nothing yet
                await self._refuse_beside_group(owner)
            strangers = _writers_of(_decoded(unstable, paths)) - fenced
            if strangers:
                live = await self._refuse_beside_group(owner)
                for stranger in strangers:
                    if names.instance_of(owner.route, stranger) not in live:
                        self._log.info("fencing the last writer", writer=stranger)
                        await fence(self._settings, stranger)
                fenced |= strangers
            found = _decoded(await thread.call(reader.read, lanes, STABLE_WAIT_S), paths)
            # A stranger's transaction may have been committed between the two reads: then it is fenced as well.
            if _writers_of(found) <= fenced:
                break
        for path, marker in found.items():
            if marker.source and marker.source != owner.source:
                raise RouteConflict(
                    f"route {owner.route} has copied source lane {path[0]} from another source or with another "
                    f"mapping before (marker {marker.source}, now {owner.source})",
                    hint="use the configuration that the route was started with, or start a new route",
                )
        return {path: marker for path, marker in found.items() if path in set(paths)}

    async def _compare_topic(self, claim: KafkaClaim, topic_id: str) -> None:
        """Halt the claim where the topic is not the one, `topic_id`, that the route began with and copied into.

        Lanes that have copied nothing halt too: the way out copies the whole route anew, and them a second time.
        """
        route, now_id, has_copied = claim.owner.route, self._topics.topic_id, False
        if are_two_topics(topic_id, now_id):
            has_copied = any(marker.target for marker in claim.markers.values()) or await self._has_copied(route)
            # After that: what was found may be of another process that has followed, and copied into the new topic.
            topic_id = await self._registry.enter(route, now_id, anew=True)
        if not are_two_topics(topic_id, now_id):
            if is_told(now_id) and not is_told(topic_id):  # entered before the brokers were upgraded
                await self._registry.follow(route, now_id)
            return
        if not has_copied:
            await self._registry.follow(route, now_id)
            return
        for path, marker in claim.markers.items():
            claim.errors[path] = TargetReset(
                path[0],
                f"topic {self._topic} was deleted and made anew (id {topic_id} is now {now_id}) after route {route} "
                f"had copied into it ({marker.ordinal} records of this lane)",
                hint="start the route anew on this topic",
                position=marker.relayed,
            )

    async def _has_copied(self, route: str) -> bool:
        """Whether any lane of the route had records in the target, also one that this claim does not cover."""
        facts = await self._cluster.topic(names.lanes_topic(route))
        if facts is None:  # it was there a moment ago
            raise Unreachable(f"topic {names.lanes_topic(route)} is not known to a broker")
        reader, thread = self._markers()
        for look in (reader.peek, reader.read):  # who copies for the first time now may have begun in the old topic
            texts = await thread.call(look, range(facts.lanes), STABLE_WAIT_S)
            if any(marker.target for marker in _decoded(texts, [(lane, 0) for lane in texts]).values()):
                return True
        return False

    def _markers(self) -> tuple[MarkerReader, HandleThread]:
        if self._marker_reader is None or self._marker_thread is None:
            self._marker_reader = MarkerReader(self._settings, self._route)
            self._marker_thread = HandleThread(f"markers-{self._route}")
        return self._marker_reader, self._marker_thread

    def _close_markers(self) -> None:
        if self._marker_thread is not None and self._marker_reader is not None:
            self._marker_thread.post(self._marker_reader.close)
            self._marker_thread.stop()
            self._marker_reader = self._marker_thread = None


def _decoded(texts: Mapping[Lane, str], paths: Collection[Path]) -> dict[Path, Marker]:
    """The markers in the metadata of source lanes, among them those of paths that are not asked for."""
    return {path: marker for lane, text in texts.items() for path, marker in markers.decode(text, lane, paths).items()}


def _writers_of(found: Mapping[Path, Marker]) -> set[str]:
    """The transactional ids that markers name."""
    return {marker.transactional_id for marker in found.values() if marker.transactional_id}
