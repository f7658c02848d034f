"""What a target topic's configuration allows to promise, in words, and what it takes of a record. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import GuaranteeRefused
from .cluster import FOREVER_MS, ConfigValue, TopicFacts, number_in, text_in
from .rows import QUARANTINE_BODY_BYTES_MAX, Limits

#: a record this close to being deleted by time would be gone before it is read
_RETENTION_MARGIN_MS = 3_600_000
#: the broker's clock may be behind ours by this much
_CLOCK_MARGIN_MS = 5_000
_CLIENT_BYTES_MAX = 1_000_000_000


@dataclass(slots=True)
class TargetLimits:
    """The limits of a target topic that its records must keep."""

    message_bytes_max: int
    retention_ms: int  # -1 = none
    ahead_ms_max: int
    behind_ms_max: int
    is_compacted: bool
    #: the broker overwrites the times of records: their own travel in `xf`
    is_broker_time: bool = False
    #: a batch was refused for its size: sizes are counted as if compression saved nothing
    is_exact: bool = False

    @property
    def client_bytes_max(self) -> int:
        """librdkafka's own limit: room for rows, and for a body in quarantine."""
        return min(_CLIENT_BYTES_MAX, max(self.row_bytes_max, 2 * QUARANTINE_BODY_BYTES_MAX))

    @property
    def row_bytes_max(self) -> int:
        """A record may be larger than the topic's limit before compression. What does not shrink to it is isolated."""
        return self.message_bytes_max if self.is_exact else min(_CLIENT_BYTES_MAX, 4 * self.message_bytes_max) - 1024

    @property
    def batch_bytes_max(self) -> int:
        """A batch must fit even where compression saves nothing: the broker refuses it as a whole."""
        return max(1, min(1_000_000, self.message_bytes_max - 1024))

    def rows(self, now_ms: int) -> Limits:
        """The limits for records that are written at `now_ms`."""
        if self.is_broker_time:
            return Limits(self.row_bytes_max, now_ms, now_ms, now_ms, self.is_compacted)
        oldest = 0
        if self.retention_ms >= 0:
            # Half of a short retention: a margin that is longer than it would redate every record.
            oldest = now_ms - self.retention_ms + min(_RETENTION_MARGIN_MS, self.retention_ms // 2)
        oldest = max(oldest, now_ms - self.behind_ms_max + _CLOCK_MARGIN_MS)
        return Limits(
            size_bytes_max=self.row_bytes_max,
            time_after_ms=max(0, oldest),
            time_before_ms=now_ms + max(1, self.ahead_ms_max - _CLOCK_MARGIN_MS),
            now_ms=now_ms,
            needs_key=self.is_compacted,
        )


def read_limits(config: Mapping[str, ConfigValue]) -> TargetLimits:
    """The limits in a topic's configuration."""
    policy = text_in(config, "cleanup.policy", "delete")
    either_way_ms = number_in(config, "message.timestamp.difference.max.ms", FOREVER_MS)  # before Kafka 4
    return TargetLimits(
        # a batch lies in one segment: the broker refuses what is larger
        message_bytes_max=min(
            number_in(config, "max.message.bytes", 1_048_588), number_in(config, "segment.bytes", 1 << 30)
        ),
        retention_ms=number_in(config, "retention.ms", 604_800_000) if "delete" in policy else -1,
        ahead_ms_max=min(either_way_ms, number_in(config, "message.timestamp.after.max.ms", 3_600_000)),
        behind_ms_max=min(either_way_ms, number_in(config, "message.timestamp.before.max.ms", FOREVER_MS)),
        is_compacted="compact" in policy,
        is_broker_time=text_in(config, "message.timestamp.type", "CreateTime") != "CreateTime",
    )


def guarantee_of(facts: TopicFacts, config: Mapping[str, ConfigValue], *, allow_weak: bool) -> list[str]:
    """Which guarantee holds on a target topic, and why. Raises GuaranteeRefused."""
    weak = weaknesses(facts, config)
    if weak and not allow_weak:
        raise GuaranteeRefused(
            f"exactly once cannot be kept on topic {facts.name}: {'; '.join(weak)}",
            hint="correct the topic, or accept the weaker guarantee with allow_weak: true on the route",
        )
    if weak:
        return [weak_guarantee(weak)]
    in_sync = min_in_sync(config)
    return [
        f"exactly once: records and markers are one transaction, {facts.replication} replicas, "
        f"{'as many as the service asks for' if in_sync is None else in_sync} in sync before a write is acknowledged, "
        "no unclean election"
    ]


def weak_guarantee(weak: Sequence[str]) -> str:
    """What still holds where such weaknesses are accepted."""
    return f"exactly once while no broker is lost ({'; '.join(weak)})"


def weaknesses(facts: TopicFacts, config: Mapping[str, ConfigValue]) -> list[str]:
    """What makes a topic unfit to keep acknowledged records."""
    found = []
    if facts.replication < 2:
        found.append(f"it has {facts.replication} replica")
    in_sync = min_in_sync(config)
    if in_sync is not None and in_sync < 2:  # whoever leads may be the only one that has what was acknowledged
        found.append(f"min.insync.replicas is {in_sync}")
    if text_in(config, "unclean.leader.election.enable", "false") == "true":
        found.append("unclean.leader.election.enable is true")
    return found


def min_in_sync(config: Mapping[str, ConfigValue]) -> int | None:
    """What the topic asks for; None where the service tells of no such setting (Kafka always does, others may not)."""
    return number_in(config, "min.insync.replicas", 0) or None
