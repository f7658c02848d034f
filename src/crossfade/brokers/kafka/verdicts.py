"""What `crossfade doctor` says about a Kafka cluster: facts in, findings out. Pure.

Every finding has a stable name; what could not be asked is UNKNOWN and never OK.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..protocol import Finding, Level
from .board import TOPIC_CONFIG
from .cluster import FOREVER_MS, ConfigValue, TopicFacts, number_in, text_in
from .group import SESSION_TIMEOUT_MS
from .guarantee import min_in_sync
from .names import BOARD_TOPIC
from .settings import TRANSACTION_TIMEOUT_MS

Config = Mapping[str, ConfigValue]

_WEEK_MINUTES = 7 * 24 * 60
_DAY_MS = 86_400_000
_NEEDED = {
    "source": frozenset({"READ", "DESCRIBE"}),
    "target": frozenset({"READ", "WRITE", "DESCRIBE", "DESCRIBE_CONFIGS"}),
}

#: all that can be granted on a cluster and on a topic: who has it all is asked for no right here, or has every one
_ALL_CLUSTER = frozenset(
    {"CREATE", "CLUSTER_ACTION", "DESCRIBE_CONFIGS", "ALTER_CONFIGS", "IDEMPOTENT_WRITE", "ALTER", "DESCRIBE"}
)
_ALL_TOPIC = frozenset({"READ", "WRITE", "CREATE", "DESCRIBE", "DELETE", "ALTER", "DESCRIBE_CONFIGS", "ALTER_CONFIGS"})
_NEEDED_ON_OWN = {"READ": "Read", "WRITE": "Write", "DELETE": "Delete"}


@dataclass(frozen=True, slots=True)
class Weakness(Finding):
    """What `allow_weak: true` accepts: a lost broker may cost acknowledged records."""


def topic_findings(
    role: str, facts: TopicFacts, config: Config | None, retention_needed_s: float, oldest_s: float | None = None
) -> list[Finding]:
    """About the stream's topic. `oldest_s`: age of the oldest record that a target is to take, None = not known."""
    found = [
        Finding("kafka.topic", Level.OK, f"{facts.name} has {facts.lanes} partitions"),
        _replication(role, facts),
        _in_sync(facts),
        _rights(role, facts),
    ]
    if config is None:
        why = f"the configuration of {facts.name} cannot be read"
        fix = "grant DescribeConfigs on the topic"
        return [*found, Finding("kafka.topic-config", Level.UNKNOWN, why, fix)]
    found.append(_cleanup(role, facts.name, config))
    if role == "source":
        found.append(_source_retention(facts.name, config, retention_needed_s))
    else:
        found += [
            _target_retention(facts.name, config, retention_needed_s, oldest_s),
            _min_in_sync("kafka.min-insync-replicas", facts.name, facts.replication, config),
            _unclean(facts.name, config),
            _message_bytes(facts.name, config),
            _time_ahead(facts.name, config),
            _time_behind(facts.name, config, max(retention_needed_s, oldest_s or 0.0)),
        ]
    found.append(_time_type(role, facts.name, config))
    return found


def internal_findings(name: str, check: str, facts: TopicFacts | None, config: Config | None) -> list[Finding]:
    """About a topic of Kafka's own that holds markers or the fate of transactions."""
    if facts is None:
        return [Finding(check, Level.UNKNOWN, f"{name} is not there yet, or not shown", "look again after the start")]
    if facts.replication < 2:
        fix = f"give {name} three replicas (kafka-reassign-partitions.sh)"
        return [Weakness(check, Level.FAIL, f"{name} has {facts.replication} replica", fix)]
    if config is None:
        return [
            Finding(
                check,
                Level.UNKNOWN,
                f"{name} has {facts.replication} replicas; its configuration cannot be read",
                f"grant DescribeConfigs on {name}; min.insync.replicas must be 2",
            )
        ]
    unclean = _unclean(name, config)
    return [_min_in_sync(check, name, facts.replication, config), *([unclean] if unclean.level is Level.FAIL else [])]


#: of a topic that is kept as brokers do by default
_BOARD_DEFAULTS = {"segment.bytes": 1 << 30, "segment.ms": 7 * _DAY_MS, "min.compaction.lag.ms": 0}


def board_finding(config: Config | None, bootstrap: str) -> Finding:
    """About the board's topic, which every command and every start of a relay reads from its beginning."""
    check, name = "kafka.board", BOARD_TOPIC
    if config is None:
        fix = "grant DescribeConfigs on it: see --print-acls"
        return Finding(check, Level.UNKNOWN, f"the configuration of {name} cannot be read", fix)
    large = [
        f"{key}={value}"
        for key, default in _BOARD_DEFAULTS.items()
        if (value := number_in(config, key, default)) > int(TOPIC_CONFIG[key])
    ]
    policy = text_in(config, "cleanup.policy", "delete")
    if policy == "compact" and not large:
        return Finding(check, Level.OK, f"{name} is compacted often enough")
    wanted = ",".join(f"{key}={value}" for key, value in TOPIC_CONFIG.items())
    command = f"kafka-configs.sh --bootstrap-server {shlex.quote(bootstrap)} --alter --topic {name} --add-config "
    if policy != "compact":
        lost = "brokers delete what operators asked for and which route a topic belongs to"
        return Finding(check, Level.FAIL, f"{name}: cleanup.policy={policy}", f"{lost}: {command}{wanted}")
    slow = "old heartbeats pile up there, and every command and start of a relay reads them"
    return Finding(check, Level.WARN, f"{name}: {', '.join(large)}", f"{slow}: {command}{wanted}")


def broker_findings(role: str, config: Config | None) -> list[Finding]:
    """About what the brokers are set to."""
    if config is None:
        return [
            Finding(
                "kafka.broker-config",
                Level.UNKNOWN,
                "the brokers' configuration cannot be read (managed services forbid it)",
                "grant DescribeConfigs on the cluster",
            )
        ]
    found = [_version(config)]
    if role == "target":
        found += [_offsets_retention(config), _transaction_timeout(config), _transaction_verification(config)]
    found.append(_session(config))
    return found


def unaskable(role: str) -> list[Finding]:
    """What no Kafka can tell anybody."""
    found = [
        Finding(
            "kafka.clock",
            Level.BY_HAND,
            "Kafka does not tell its time",
            "keep the clocks of brokers and relay within a second (NTP)",
        )
    ]
    if role == "target":
        found.append(
            Finding(
                "kafka.readers",
                Level.BY_HAND,
                "no broker shows the isolation level of readers",
                "set isolation.level=read_committed in every consumer of the topic, else it sees aborted records",
            )
        )
    return found


def topic_missing(name: str) -> Finding:
    return Finding("kafka.topic", Level.FAIL, f"topic {name} does not exist", "create it, or correct its name")


def _replication(role: str, facts: TopicFacts) -> Finding:
    check, found = "kafka.replication", f"{facts.name} has {facts.replication} replica{'s' * (facts.replication != 1)}"
    if facts.replication >= 3:
        return Finding(check, Level.OK, found)
    fix = "give the topic three replicas (kafka-reassign-partitions.sh)"
    if facts.replication == 2 or role == "source":
        return Finding(check, Level.WARN, found, fix)
    return Weakness(check, Level.FAIL, found, fix)


def _in_sync(facts: TopicFacts) -> Finding:
    check = "kafka.under-replicated"
    headless = [lane for lane, leader in enumerate(facts.leaders) if leader < 0]
    if headless:
        return Finding(
            check, Level.FAIL, f"{facts.name}: no leader for {_lanes(headless)}", "start the missing brokers"
        )
    behind = [lane for lane in range(facts.lanes) if len(facts.in_sync[lane]) < len(facts.replicas[lane])]
    if behind:
        return Finding(check, Level.WARN, f"{facts.name}: {_lanes(behind)} not fully in sync", "look at the brokers")
    return Finding(check, Level.OK, "all replicas are in sync")


def _rights(role: str, facts: TopicFacts) -> Finding:
    if not facts.operations:
        return Finding("kafka.acl", Level.UNKNOWN, "the broker does not tell our rights", "see --print-acls")
    missing = _NEEDED[role] - facts.operations if "ALL" not in facts.operations else frozenset()
    if missing:
        names = ", ".join(sorted(missing))
        level = Level.WARN if missing == {"DESCRIBE_CONFIGS"} else Level.FAIL
        return Finding("kafka.acl", level, f"rights on {facts.name} are missing: {names}", "see --print-acls")
    return Finding("kafka.acl", Level.OK, f"the rights on {facts.name} are there")


def is_unrestricted(cluster_wide: frozenset[str], facts: TopicFacts) -> bool:
    """Whether no ACL holds for us: the cluster has none, or we are its administrator."""
    return cluster_wide >= _ALL_CLUSTER and facts.operations >= _ALL_TOPIC


def missing_on_own(facts: TopicFacts) -> list[str]:
    """Rights that are missing on a topic of our own that is there; none where the broker does not tell."""
    if not facts.operations:
        return []
    return [name for operation, name in _NEEDED_ON_OWN.items() if operation not in facts.operations]


def own_rights(refused: Sequence[str], unasked: Sequence[str]) -> Finding:
    """About rights on what is Crossfade's own."""
    check = "kafka.acl-own"
    if refused:
        return Finding(check, Level.FAIL, f"rights are missing: {', '.join(refused)}", "see --print-acls")
    if unasked:
        fix = "compare with --print-acls; a right that is missing is named by `relay start` and `relay run`"
        return Finding(check, Level.UNKNOWN, f"not told by brokers: {', '.join(unasked)}", fix)
    return Finding(check, Level.OK, "no right is restricted for us")


def _cleanup(role: str, name: str, config: Config) -> Finding:
    policy = text_in(config, "cleanup.policy", "delete")
    if "compact" not in policy:
        return Finding("kafka.cleanup-policy", Level.OK, f"{name}: {policy}")
    if role == "source":
        fix = "records may be compacted away before they are copied: start the copy soon, or switch to delete meanwhile"
        return Finding("kafka.cleanup-policy", Level.WARN, f"{name}: {policy}", fix)
    fix = "use cleanup.policy=delete until the copy is complete: compaction deletes earlier records of a key"
    return Finding("kafka.cleanup-policy", Level.WARN, f"{name}: {policy}", fix)


_RETENTION = "kafka.retention"


def _source_retention(name: str, config: Config, needed_s: float) -> Finding:
    kept_ms = _kept_ms(config)
    if 0 <= kept_ms < needed_s * 1000:
        above = f"set retention.ms to -1, or above {int(needed_s * 1000)}, until the copy is complete"
        return Finding(_RETENTION, Level.FAIL, _kept(name, config), f"{above}: records would be deleted uncopied")
    return _bound_by_size(name, config)


def _target_retention(name: str, config: Config, needed_s: float, oldest_s: float | None) -> Finding:
    """Records that are older than the target keeps come with the time of the copy, and are gone so long after it."""
    kept_ms = _kept_ms(config)
    if kept_ms < 0:
        return _bound_by_size(name, config)
    if oldest_s is None:
        fix = "retention.ms must be above it, so that the beginning of the copy is there when its end is written"
        found = f"{_kept(name, config)}; the age of the oldest source record is not known"
        return Finding(_RETENTION, Level.UNKNOWN, found, fix)
    if kept_ms >= oldest_s * 1000:
        return _bound_by_size(name, config)
    found = f"{_kept(name, config)}; the oldest source record is {oldest_s:.0f} s old"
    above = f"set retention.ms to -1, or above {int(oldest_s * 1000)}, until the copy is complete and read"
    if kept_ms < needed_s * 1000:
        return Finding(
            _RETENTION, Level.FAIL, found, f"{above}: what is copied first may be deleted before the rest is"
        )
    what = "older records carry the time of the copy, and their own in the xf header, and are deleted so long after it"
    return Finding(_RETENTION, Level.WARN, found, f"{above}: {what}")


def _bound_by_size(name: str, config: Config) -> Finding:
    if number_in(config, "retention.bytes", -1) >= 0 and not _is_compacted_only(config):
        fix = "a bound by size cannot be compared with a time: watch the lag, or lift it"
        return Finding(_RETENTION, Level.WARN, _kept(name, config), fix)
    return Finding(_RETENTION, Level.OK, _kept(name, config))


def _kept_ms(config: Config) -> int:
    """For how long records are kept, -1 = for ever."""
    return -1 if _is_compacted_only(config) else number_in(config, "retention.ms", 7 * _DAY_MS)


def _kept(name: str, config: Config) -> str:
    if _is_compacted_only(config):
        return f"{name} is compacted only"
    return f"{name}: retention.ms={_kept_ms(config)}, retention.bytes={number_in(config, 'retention.bytes', -1)}"


def _is_compacted_only(config: Config) -> bool:
    return "delete" not in text_in(config, "cleanup.policy", "delete")


def _min_in_sync(check: str, name: str, replication: int, config: Config) -> Finding:
    minimum = min_in_sync(config)
    if minimum is None:
        fix = "ask the provider how many replicas have a record before it is acknowledged: it must be two"
        return Finding(check, Level.UNKNOWN, f"{name}: min.insync.replicas is not told", fix)
    found = f"{name}: min.insync.replicas={minimum} of {replication}"
    if minimum < 2:
        return Weakness(check, Level.FAIL, found, f"set min.insync.replicas=2 on {name}")
    if minimum > replication:  # since 3.7 brokers ask for as many replicas as there are (KAFKA-15583)
        fix = f"give {name} three replicas and set min.insync.replicas=2: brokers before Kafka 3.7 refuse every write"
        return Finding(check, Level.WARN, found, fix)
    if minimum == replication:
        return Finding(check, Level.WARN, found, "one broker less stops all writing: add a replica")
    return Finding(check, Level.OK, found)


def _unclean(name: str, config: Config) -> Finding:
    if text_in(config, "unclean.leader.election.enable", "false") == "true":
        fix = f"set unclean.leader.election.enable=false on {name}"
        return Weakness(
            "kafka.unclean-election", Level.FAIL, f"{name}: unclean elections lose acknowledged records", fix
        )
    return Finding("kafka.unclean-election", Level.OK, f"{name}: no unclean elections")


def _message_bytes(name: str, config: Config) -> Finding:
    limit = number_in(config, "max.message.bytes", 1_048_588)
    found = f"{name}: max.message.bytes={limit}"
    if limit < 1_000_000:
        return Finding(
            "kafka.message-bytes", Level.WARN, found, "larger records go to quarantine: raise it if there are any"
        )
    return Finding("kafka.message-bytes", Level.OK, found)


def _time_ahead(name: str, config: Config) -> Finding:
    limit = number_in(config, "message.timestamp.after.max.ms", 3_600_000)
    found = f"{name}: message.timestamp.after.max.ms={limit}"
    if limit < _DAY_MS:
        fix = "raise it, else records dated further ahead carry the time of the copy, and their own in the xf header"
        return Finding("kafka.time-ahead", Level.WARN, found, fix)
    return Finding("kafka.time-ahead", Level.OK, found)


def _time_behind(name: str, config: Config, needed_s: float) -> Finding:
    limit = number_in(config, "message.timestamp.before.max.ms", FOREVER_MS)
    if limit >= FOREVER_MS:
        return Finding("kafka.time-behind", Level.OK, f"{name}: records may be of any age")
    found = f"{name}: message.timestamp.before.max.ms={limit}"
    if limit < needed_s * 1000:
        fix = f"raise it above {int(needed_s * 1000)}, else older records carry the time of the copy, and their own in "
        return Finding("kafka.time-behind", Level.WARN, found, fix + "the xf header")
    return Finding("kafka.time-behind", Level.OK, found)


def _time_type(role: str, name: str, config: Config) -> Finding:
    kind = text_in(config, "message.timestamp.type", "CreateTime")
    if kind == "CreateTime":
        return Finding("kafka.time-type", Level.OK, f"{name}: CreateTime")
    if role == "source":
        return Finding("kafka.time-type", Level.OK, f"{name}: {kind}; the copy carries the broker's time")
    fix = f"set message.timestamp.type=CreateTime on {name}, else the records' own times are in the xf header alone"
    return Finding("kafka.time-type", Level.WARN, f"{name}: {kind}", fix)


def _version(config: Config) -> Finding:
    spoken = text_in(config, "inter.broker.protocol.version", "")
    if not spoken:
        return Finding("kafka.version", Level.OK, "Kafka 4 (it tells no inter-broker protocol version)")
    major, _, rest = spoken.partition(".")
    minor = rest.split("-")[0].split(".")[0]
    number = (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)
    if number < (2, 5):
        fix = "upgrade to Kafka 2.5 or newer: older ones do not fence a group member that lost its lanes"
        return Finding("kafka.version", Level.FAIL, f"inter-broker protocol {spoken}", fix)
    return Finding("kafka.version", Level.OK, f"inter-broker protocol {spoken}")


def _offsets_retention(config: Config) -> Finding:
    minutes = number_in(config, "offsets.retention.minutes", _WEEK_MINUTES)
    found = f"offsets.retention.minutes={minutes}"
    if minutes < _WEEK_MINUTES:
        fix = "a relay that is stopped longer finds its markers only in the headers: raise it to 10080"
        return Finding("kafka.offsets-retention", Level.WARN, found, fix)
    return Finding("kafka.offsets-retention", Level.OK, found)


def _transaction_timeout(config: Config) -> Finding:
    limit = number_in(config, "transaction.max.timeout.ms", 900_000)
    if limit < TRANSACTION_TIMEOUT_MS:
        fix = f"raise it to {TRANSACTION_TIMEOUT_MS}"
        return Finding("kafka.transaction-timeout", Level.FAIL, f"transaction.max.timeout.ms={limit}", fix)
    return Finding("kafka.transaction-timeout", Level.OK, f"transaction.max.timeout.ms={limit}")


def _transaction_verification(config: Config) -> Finding:
    """Whether a request that comes late, behind the end of its transaction, is refused (KIP-890)."""
    check, name = "kafka.transaction-verification", "transaction.partition.verification.enable"
    found = text_in(config, name, "")
    if found == "true":
        return Finding(check, Level.OK, f"{name}=true")
    fix = f"set {name}=true on the brokers: without it a late request can leave a transaction open until it is aborted"
    if not found:
        return Finding(check, Level.UNKNOWN, f"the brokers tell no {name} (before Kafka 3.6 there is none)", fix)
    return Finding(check, Level.WARN, f"{name}={found}", fix)


def _session(config: Config) -> Finding:
    low = number_in(config, "group.min.session.timeout.ms", SESSION_TIMEOUT_MS)
    found = f"group.min.session.timeout.ms={low}"
    if low > SESSION_TIMEOUT_MS:
        return Finding("kafka.session-timeout", Level.FAIL, found, f"lower it to {SESSION_TIMEOUT_MS}")
    return Finding("kafka.session-timeout", Level.OK, found)


def _lanes(lanes: list[int]) -> str:
    shown = ", ".join(map(str, lanes[:5]))
    return f"partitions {shown}" + (f" and {len(lanes) - 5} more" if len(lanes) > 5 else "")
