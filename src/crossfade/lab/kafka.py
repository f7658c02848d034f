"""A Kafka cluster in KRaft mode: its configuration files, its data folders, its commands.

Each broker listens three times: CLIENT, advertised at its proxy, for the code under test; DIRECT, advertised as itself,
for whoever must see past the faults; INTERNAL between the brokers. Sizes are those of a small machine: few internal
partitions, small heaps, retention bounded by size. This module writes files and names commands; lab runs them.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path

from crossfade.lab import packages, warm
from crossfade.lab.errors import LabUsage, StartFailed
from crossfade.lab.secure import EXTRA_LISTENERS, KafkaSecurity
from crossfade.lab.state import Options, Server, State

BROKER_COUNTS = (1, 3, 5)
CONTROLLERS = ("combined", "separate")
FIRST_CONTROLLER_ID = 101
_FORMAT_TIMEOUT_S = 60
#: brokers declare a silent peer dead after this; it bounds how long a killed leader is missed
BROKER_SESSION_TIMEOUT_MS = 3000


def check(options: Options) -> None:
    """Refuse shapes that do not exist.  Raises LabUsage."""
    if options.brokers not in (0, *BROKER_COUNTS):
        raise LabUsage(f"--brokers {options.brokers} is not possible", hint="one of: 1, 3, 5, or 0 for no Kafka")
    if options.controllers not in CONTROLLERS:
        known = ", ".join(CONTROLLERS)
        raise LabUsage(f"--controllers {options.controllers!r} is not possible", hint=f"one of: {known}")
    if options.brokers:
        packages.kafka_pins(options.kafka_version)


def broker_ids(options: Options) -> list[int]:
    """The node ids of the brokers."""
    return list(range(1, options.brokers + 1))


def controller_ids(options: Options) -> list[int]:
    """The node ids of the voters: the brokers themselves, or one or three nodes of their own."""
    if not options.brokers:
        return []
    if options.controllers == "combined":
        return broker_ids(options)
    return list(range(FIRST_CONTROLLER_ID, FIRST_CONTROLLER_ID + min(options.brokers, 3)))


def node_name(node_id: int) -> str:
    """`kafka-1`, `controller-101`."""
    return f"kafka-{node_id}" if node_id < FIRST_CONTROLLER_ID else f"controller-{node_id}"


def listeners(options: Options) -> list[str]:
    """The client listeners that go through a proxy; each has its own link."""
    return ["CLIENT", *(EXTRA_LISTENERS if options.secure else ())]


def link_name(node_id: int, listener: str) -> str:
    """`kafka-1` for the client listener, `kafka-1-mtls` for another."""
    return node_name(node_id) if listener == "CLIENT" else f"{node_name(node_id)}-{listener.lower()}"


def port_names(options: Options) -> list[str]:
    """Every port that the cluster needs, proxies included."""
    names = [f"{node_name(node_id)}.CONTROLLER" for node_id in controller_ids(options)]
    for node_id in broker_ids(options):
        names += [f"{node_name(node_id)}.{listener}" for listener in (*listeners(options), "DIRECT", "INTERNAL")]
        if options.proxies:
            names += [f"proxy.{link_name(node_id, listener)}" for listener in listeners(options)]
    return names


def properties(state: State, node_id: int, data_dir: Path, security: KafkaSecurity | None) -> dict[str, str]:
    """The server.properties of one node."""
    options = state.options
    voters = controller_ids(options)
    name = node_name(node_id)
    is_broker = node_id in broker_ids(options)
    binds: list[str] = []
    adverts: list[str] = []
    if is_broker:
        for listener in (*listeners(options), "DIRECT", "INTERNAL"):
            port = state.ports[f"{name}.{listener}"]
            binds.append(f"{listener}://127.0.0.1:{port}")
            # DIRECT and INTERNAL have no proxy: they are shown as they are.
            adverts.append(f"{listener}://127.0.0.1:{state.ports.get(f'proxy.{link_name(node_id, listener)}', port)}")
    if node_id in voters:
        binds.append(f"CONTROLLER://127.0.0.1:{state.ports[f'{name}.CONTROLLER']}")
    roles = [*(["broker"] if is_broker else []), *(["controller"] if node_id in voters else [])]
    quorum = ",".join(f"{voter}@127.0.0.1:{state.ports[f'{node_name(voter)}.CONTROLLER']}" for voter in voters)
    protocols = "CLIENT:PLAINTEXT,DIRECT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT"
    out = {
        "process.roles": ",".join(roles),
        "node.id": str(node_id),
        "controller.quorum.voters": quorum,
        "controller.listener.names": "CONTROLLER",
        "listeners": ",".join(binds),
        "listener.security.protocol.map": protocols,
        "log.dirs": str(data_dir),
        **_tuning(options.brokers),
    }
    if is_broker:
        out |= {"inter.broker.listener.name": "INTERNAL", "advertised.listeners": ",".join(adverts)}
    if security is not None:
        out |= security.properties()
    return out


def _tuning(brokers: int) -> dict[str, str]:
    copies, in_sync = (3, 2) if brokers >= 3 else (1, 1)
    return {
        "default.replication.factor": str(copies),
        "min.insync.replicas": str(in_sync),
        "offsets.topic.replication.factor": str(copies),
        "offsets.topic.num.partitions": "8",
        "transaction.state.log.replication.factor": str(copies),
        "transaction.state.log.min.isr": str(in_sync),
        "transaction.state.log.num.partitions": "8",
        "share.coordinator.state.topic.replication.factor": str(copies),
        "share.coordinator.state.topic.min.isr": str(in_sync),
        "share.coordinator.state.topic.num.partitions": "2",
        "auto.create.topics.enable": "false",
        "unclean.leader.election.enable": "false",
        # A lane of a lab never grows without end: three copies of a minute's writing at full speed fill a disk.
        "log.retention.bytes": str(256 << 20),
        "log.segment.bytes": str(64 << 20),
        "log.retention.check.interval.ms": "10000",
        "file.delete.delay.ms": "1000",
        "offsets.topic.segment.bytes": str(16 << 20),
        "transaction.state.log.segment.bytes": str(16 << 20),
        "log.cleaner.dedupe.buffer.size": str(8 << 20),
        "log.cleaner.io.buffer.size": str(128 << 10),
        "broker.session.timeout.ms": str(BROKER_SESSION_TIMEOUT_MS),
        "broker.heartbeat.interval.ms": "500",
        "group.initial.rebalance.delay.ms": "0",
        # Records keep the time of their source, which may lie ahead of this machine's clock.
        "log.message.timestamp.after.max.ms": str((1 << 63) - 1),
        "num.recovery.threads.per.data.dir": "2",
    }


def prepare(state: State, folder: Path, security: KafkaSecurity | None, say: Callable[[str], None]) -> list[Server]:
    """Write the configuration of every node, format new data folders, and return the servers to start.

    Raises PackageError, StartFailed (formatting).
    """
    options = state.options
    if not options.brokers:
        return []
    classpath = packages.kafka_classpath(options.kafka_version, say=say)
    quick = warm.flags(options.kafka_version, classpath, folder, say)
    allowed = [f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={security.keys_url}"] if security is not None else []
    servers = []
    for node_id in sorted({*controller_ids(options), *broker_ids(options)}, reverse=True):
        name = node_name(node_id)
        config = folder / "config" / f"{name}.properties"
        data_dir = folder / "data" / name
        config.parent.mkdir(parents=True, exist_ok=True)
        lines = (f"{key}={value}" for key, value in properties(state, node_id, data_dir, security).items())
        config.write_text("\n".join(lines) + "\n")
        config.chmod(0o600)
        _format(state, node_id, config, data_dir, classpath, folder, security)
        is_broker = node_id in broker_ids(options)
        servers.append(
            Server(
                name=name,
                kind="kafka" if is_broker else "controller",
                argv=[
                    *_java_argv(options, folder, name, [*quick, *allowed]),
                    "-cp",
                    classpath,
                    "kafka.Kafka",
                    str(config),
                ],
                env={},
                port=state.ports[f"{name}.{'DIRECT' if is_broker else 'CONTROLLER'}"],
                log=str(folder / "logs" / f"{name}.log"),
                data_dir=str(data_dir),
                node_id=node_id,
            )
        )
    return servers


def _java_argv(options: Options, folder: Path, name: str, quick: list[str]) -> list[str]:
    is_new = int(options.kafka_version.split(".")[0]) >= 4
    logging_file = _write_logging(folder, name, is_new=is_new)
    return [
        str(packages.java()),
        f"-Xmx{options.heap_mb}m",
        *warm.COMMON_FLAGS,
        *quick,
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.awt.headless=true",
        "-Djava.net.preferIPv4Stack=true",
        f"-Dlog4j2.configurationFile={logging_file}" if is_new else f"-Dlog4j.configuration=file:{logging_file}",
    ]


def _write_logging(folder: Path, name: str, *, is_new: bool) -> Path:
    path = folder / "config" / f"{name}.log4j{'2' if is_new else ''}.properties"
    log = folder / "logs" / f"{name}.server.log"
    pattern = "%d{HH:mm:ss.SSS} %p %c{1} %m%n"
    if is_new:
        text = f"""appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName={log}
appender.file.filePattern={log}.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern={pattern}
appender.file.policies.type=Policies
appender.file.policies.size.type=SizeBasedTriggeringPolicy
appender.file.policies.size.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=2
rootLogger.level=INFO
rootLogger.appenderRef.file.ref=file
"""
    else:
        text = f"""log4j.rootLogger=INFO, file
log4j.appender.file=org.apache.log4j.RollingFileAppender
log4j.appender.file.File={log}
log4j.appender.file.MaxFileSize=10MB
log4j.appender.file.MaxBackupIndex=2
log4j.appender.file.layout=org.apache.log4j.PatternLayout
log4j.appender.file.layout.ConversionPattern={pattern}
"""
    path.write_text(text)
    return path


def new_id() -> str:
    """A random id in Kafka's text form, never starting with a dash (the tools would take it for an option)."""
    while True:
        text = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if not text.startswith("-"):
            return text


def _format(
    state: State,
    node_id: int,
    config: Path,
    data_dir: Path,
    classpath: str,
    folder: Path,
    security: KafkaSecurity | None,
) -> None:
    """Make a data folder what the storage tool would make of it, running the tool once per lab or version at most.

    The tool writes the feature levels (the same for all nodes) and an identity card. Starting a JVM per node for that
    would be a third of the time to start.
    """
    if (data_dir / "meta.properties").exists():
        return
    kept = folder / "config" if security is not None else packages.home() / "kafka"
    template = kept / f"bootstrap-{state.options.kafka_version}.checkpoint"
    data_dir.mkdir(parents=True, exist_ok=True)
    if not template.exists():
        _run_storage_tool(state, config, classpath, security)
        kept.mkdir(parents=True, exist_ok=True)
        partial = template.with_suffix(f".{os.getpid()}")
        shutil.copyfile(data_dir / "bootstrap.checkpoint", partial)
        partial.replace(template)
        return
    shutil.copyfile(template, data_dir / "bootstrap.checkpoint")
    card = {"version": "1", "cluster.id": state.cluster_id, "node.id": str(node_id), "directory.id": new_id()}
    (data_dir / "meta.properties").write_text("".join(f"{key}={value}\n" for key, value in card.items()))


def _run_storage_tool(state: State, config: Path, classpath: str, security: KafkaSecurity | None) -> None:
    scram = [] if security is None else security.format_arguments()
    argv = [
        *(str(packages.java()), "-XX:-UsePerfData", "-cp", classpath, "kafka.tools.StorageTool", "format"),
        *("-t", state.cluster_id, "-c", str(config), *scram),
    ]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_FORMAT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise StartFailed(
            f"Kafka's storage tool did not end in {_FORMAT_TIMEOUT_S} s", hint="the machine may be busy: try again"
        ) from None
    if done.returncode != 0:
        raise StartFailed("Kafka's storage tool failed", hint=(done.stdout + done.stderr).strip()[-600:])
