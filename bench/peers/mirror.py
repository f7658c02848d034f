"""MirrorMaker 2: the properties of a dedicated process that copies one topic, at the best settings found.

Both of its clusters are the lab's, as both brokers of the relay are. Everything that it does beside copying (offset
syncs, checkpoints, heartbeats, refreshing of topics) is off. Exactly once means `exactly.once.source.support` with
transactions of 200 ms; at its default of one transaction a minute, a reader would wait for a minute.
"""

from __future__ import annotations

import socket

MAIN = "org.apache.kafka.connect.mirror.MirrorMaker"
TRANSACTION_MS = 200


def target_topic(run: str, topic: str) -> str:
    """What MirrorMaker calls the copy."""
    return f"from-{run}.{topic}"


def properties(run: str, bootstrap: str, topic: str, *, exactly_once: bool) -> str:
    """The text of its properties file; `run` keeps the internal topics of different runs apart."""
    source, target = f"from-{run}", f"to-{run}"
    found = {
        "clusters": f"{source}, {target}",
        f"{source}.bootstrap.servers": bootstrap,
        f"{target}.bootstrap.servers": bootstrap,
        f"{source}->{target}.enabled": "true",
        f"{source}->{target}.topics": topic,
        f"{target}->{source}.enabled": "false",
        "tasks.max": "2",
        "replication.factor": "3",
        "config.storage.replication.factor": "3",
        "offset.storage.replication.factor": "3",
        "status.storage.replication.factor": "3",
        "offset.storage.partitions": "4",
        "emit.heartbeats.enabled": "false",
        "emit.checkpoints.enabled": "false",
        "emit.offset-syncs.enabled": "false",
        "sync.topic.configs.enabled": "false",
        "sync.topic.acls.enabled": "false",
        "refresh.topics.enabled": "false",
        "refresh.groups.enabled": "false",
        f"{source}.consumer.auto.offset.reset": "earliest",
        f"{source}.consumer.isolation.level": "read_committed",
        f"{source}.consumer.max.poll.records": "5000",
        f"{source}.consumer.fetch.min.bytes": "65536",
        f"{source}.consumer.max.partition.fetch.bytes": "4194304",
        f"{target}.producer.acks": "all",
        f"{target}.producer.compression.type": "lz4",
        f"{target}.producer.batch.size": str(1 << 20),
        f"{target}.producer.linger.ms": "5",
        f"{target}.producer.buffer.memory": str(1 << 27),
    }
    if exactly_once:
        found |= {
            "exactly.once.source.support": "enabled",
            f"{target}.exactly.once.source.support": "enabled",
            "transaction.boundary": "interval",
            "transaction.boundary.interval.ms": str(TRANSACTION_MS),
            "dedicated.mode.enable.internal.rest": "true",
            "listeners": f"http://127.0.0.1:{_free_port()}",
        }
    return "".join(f"{name} = {value}\n" for name, value in found.items())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
