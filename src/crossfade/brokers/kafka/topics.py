"""The topics that a target needs: the stream's own, the route's lanes topic, and its quarantine.

Hides what is asked of them, when it is asked again, and how they are made. Invariant: nothing is claimed on a topic
whose guarantee was not found to hold, also where it was made anew under a running process. Called by `claims`, and by
`target`.
"""

from __future__ import annotations

import dataclasses
import time

import structlog

from ...errors import AccessRefused, Indeterminate, RouteConflict, Unreachable, invariant
from . import names
from .cluster import SETTLE_S, Cluster, TopicFacts, are_two_topics, is_told
from .guarantee import TargetLimits, guarantee_of, read_limits
from .lanes import ensure_lanes_topic
from .rows import QUARANTINE_BODY_BYTES_MAX

#: limits of the topic are asked for again after this long
_LIMITS_S = 30.0
#: brokers that were just started may not know a topic for a moment: one that was there is waited for so long
_MISSED_S = 60.0


class TargetTopics:
    """What is known of a target's topics, for the route that was prepared last."""

    def __init__(self, cluster: Cluster, topic: str, source_lanes: int | None, *, allow_weak: bool) -> None:
        self._cluster = cluster
        self._topic = topic
        self._source_lanes = source_lanes
        self._allow_weak = allow_weak
        self._route = ""
        self._facts: TopicFacts | None = None
        #: since when brokers say that a topic does not exist which was there before
        self._missed_since: float | None = None
        self._limits: TargetLimits | None = None
        self._limits_at = 0.0
        self._is_ready = False
        self._is_quarantine_ready = False
        self._log = structlog.get_logger("kafka.topics").bind(topic=topic)

    @property
    def topic_id(self) -> str:
        """The id of the stream's topic when it was last asked for, "" before."""
        return self._facts.topic_id if self._facts is not None else ""

    async def guarantee(self) -> list[str]:
        """Which guarantee holds, and why. Raises GuaranteeRefused, Unreachable, AccessRefused."""
        facts = await self._ask()
        return guarantee_of(facts, await self._cluster.config(self._topic), allow_weak=self._allow_weak)

    async def prepare(self, route: str, lanes_needed: int) -> TargetLimits:
        """Check the stream's topic and make the lanes topic, where that is not done yet; what the topic takes.

        Raises GuaranteeRefused, RouteConflict, Unreachable, AccessRefused.
        """
        if route != self._route:
            self._route, self._is_ready, self._is_quarantine_ready = route, False, False
        if await self._is_made_anew():
            self._is_ready, self._limits = False, None  # made anew under a running process
        if not self._is_ready:
            for line in await self.guarantee():
                self._log.info("guarantee", says=line)
            facts = self._facts
            invariant(facts is not None, "the guarantee asked for the topic")
            assert facts is not None
            lanes = max(lanes_needed, self._source_lanes or facts.lanes)
            made = await ensure_lanes_topic(self._cluster, route, lanes, facts.replication)
            if made.lanes < lanes_needed:
                raise RouteConflict(
                    f"route {route} was started with {made.lanes} source lanes, now there are {lanes_needed}",
                    hint="start a new route, or restore the lane count",
                )
            self._is_ready = True
        return await self.limits()

    async def prepare_quarantine(self) -> None:
        """Make the route's quarantine, where that is not done yet. Raises Unreachable, AccessRefused."""
        if not self._is_quarantine_ready:
            facts = self._facts or await self._ask()
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
            self._is_quarantine_ready = True

    async def limits(self) -> TargetLimits:
        """What the stream's topic takes, asked for again now and then. Raises Unreachable, AccessRefused."""
        now = time.monotonic()
        known = self._limits
        if known is None or now - self._limits_at > _LIMITS_S:
            if known is not None and await self._is_made_anew():
                self.doubt()
                raise Indeterminate(
                    f"topic {self._topic} was deleted and made anew under the claim", hint="the relay claims anew"
                )
            try:
                self._limits = read_limits(await self._cluster.config(self._topic))
                self._limits.is_exact = known is not None and known.is_exact
            except (Unreachable, AccessRefused) as error:
                if known is None:
                    raise
                # Writing may well go on; what has changed meanwhile the brokers refuse.
                self._log.warning("the topic's limits are not told; the known ones hold", reason=error.message)
            self._limits_at = now
        assert self._limits is not None
        return self._limits

    def doubt(self) -> None:
        """An append failed: one of the topics may be gone, or its settings others. The next claim asks anew."""
        self._is_ready = self._is_quarantine_ready = False
        if self._limits is not None:
            self._limits_at = -_LIMITS_S

    async def gives_own_times(self) -> bool:
        """Whether the stream's topic gives records its own time now. Raises Unreachable, AccessRefused."""
        return read_limits(await self._cluster.config(self._topic)).is_broker_time

    async def _is_made_anew(self) -> bool:
        if not self._is_ready:
            return False
        now_id = await self._cluster.topic_id(self._topic) or ""
        if self._facts is not None and is_told(now_id) and not is_told(self.topic_id):
            self._facts = dataclasses.replace(self._facts, topic_id=now_id)  # upgraded brokers tell it at last
        return are_two_topics(now_id, self.topic_id)

    async def note_size_refusal(self) -> None:
        """A batch was refused for its size: ask for the limits, and isolate by size from now on."""
        self._limits = None
        limits = await self.limits()
        limits.is_exact = True

    async def _ask(self) -> TopicFacts:
        try:
            facts = await self._cluster.existing_topic(self._topic)
        except AccessRefused as error:
            if self._facts is not None:
                await self._wait_for_missed(error)
            raise
        self._facts, self._missed_since = facts, None
        return facts

    async def _wait_for_missed(self, error: AccessRefused) -> None:
        """Raise Unreachable for a while where a topic is not known that was there before.

        It is deleted, or the broker that was asked has just started. Raises AccessRefused where a right is missing.
        """
        found = await self._cluster.topic_id(self._topic)
        now = time.monotonic()
        if self._missed_since is None:
            self._missed_since = now
        if found != "" or now < self._missed_since + _MISSED_S:
            raise Unreachable(
                f"topic {self._topic} is not known to the brokers any more, or not yet",
                hint="nothing to do where brokers have just started; else look who deleted it",
            ) from error
