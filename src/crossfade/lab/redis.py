"""Redis or Valkey in four shapes: standalone, replica, sentinel, cluster.

Every server keeps an append-only file (fsync every second), evicts nothing, and tells others its proxy's port, so that
clients that follow a failover or a cluster's map still go through the proxies. This module writes files and names
commands; lab runs them, and `admin.form_cluster` ties cluster nodes together.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from crossfade.lab import packages
from crossfade.lab.errors import LabUsage
from crossfade.lab.state import Options, Server, State

SHAPES = ("none", "standalone", "replica", "sentinel", "cluster")
#: the name under which the sentinels know the primary
SERVICE = "crossfade"
_COUNTS = {"none": 0, "standalone": 1, "replica": 2, "sentinel": 3, "cluster": 6}
_MEMORY_BYTES_MAX = 6 << 30
NODE_TIMEOUT_MS = 2000


def check(options: Options) -> None:
    """Refuse shapes that do not exist.  Raises LabUsage."""
    if options.redis not in SHAPES:
        raise LabUsage(f"--redis {options.redis!r} is not possible", hint=f"one of: {', '.join(SHAPES)}")
    if options.redis_flavour not in packages.REDIS_FLAVOURS:
        known = ", ".join(packages.REDIS_FLAVOURS)
        raise LabUsage(f"--redis-flavour {options.redis_flavour!r} is unknown", hint=f"one of: {known}")


def server_names(options: Options) -> list[str]:
    """`redis-0` is the first primary."""
    return [f"redis-{index}" for index in range(_COUNTS[options.redis])]


def sentinel_names(options: Options) -> list[str]:
    """The three sentinels of that shape."""
    return [f"sentinel-{index}" for index in range(3)] if options.redis == "sentinel" else []


def link_names(options: Options) -> list[str]:
    """One link per server for clients; a plain replica reaches its primary over a link of its own."""
    return server_names(options) + (["redis-replication"] if options.redis == "replica" else [])


def port_names(options: Options) -> list[str]:
    """Every port that these servers need, proxies included."""
    names = [*server_names(options), *sentinel_names(options)]
    if options.redis == "cluster":
        names += [f"{name}.bus" for name in server_names(options)]
    if options.proxies:
        names += [f"proxy.{name}" for name in link_names(options)]
    return names


def shown_port(state: State, name: str) -> int:
    """The port that clients are told: the proxy's, or the server's own in a lab without proxies."""
    if name == "redis-replication":
        return state.ports.get(f"proxy.{name}", state.ports["redis-0"])
    return state.ports.get(f"proxy.{name}", state.ports[name])


def prepare(
    state: State, folder: Path, security_lines: Callable[[str], list[str]] | None, say: Callable[[str], None]
) -> list[Server]:
    """Write the configuration files and return the servers to start.

    A sentinel or cluster node rewrites its own files while it runs; theirs are kept when they exist.
    Raises PackageError, NotPossibleHere.
    """
    options = state.options
    if options.redis == "none":
        return []
    build = packages.redis_build(options.redis_flavour, say=say)
    servers = []
    for name in [*server_names(options), *sentinel_names(options)]:
        is_sentinel = name.startswith("sentinel")
        config = folder / "config" / f"{name}.conf"
        data_dir = folder / "data" / name
        data_dir.mkdir(parents=True, exist_ok=True)
        config.parent.mkdir(parents=True, exist_ok=True)
        if not (options.redis == "sentinel" and config.exists()):
            lines = _sentinel_lines(state, name, data_dir) if is_sentinel else _server_lines(state, name, data_dir)
            if security_lines is not None:
                lines += security_lines(name)
            config.write_text("\n".join(lines) + "\n")
            config.chmod(0o600)
        servers.append(
            Server(
                name=name,
                kind="sentinel" if is_sentinel else "redis",
                argv=[*build.argv, str(config), *(["--sentinel"] if is_sentinel else [])],
                env=build.env,
                port=state.ports[name],
                log=str(folder / "logs" / f"{name}.log"),
                data_dir=str(data_dir),
            )
        )
    return servers


def _server_lines(state: State, name: str, data_dir: Path) -> list[str]:
    shape = state.options.redis
    shown = shown_port(state, name)
    lines = [
        f"port {state.ports[name]}",
        "bind 127.0.0.1",
        f"dir {data_dir}",
        'save ""',
        "appendonly yes",
        "appendfsync everysec",
        f"maxmemory {_MEMORY_BYTES_MAX}",
        "maxmemory-policy noeviction",
        "repl-diskless-sync-delay 0",
        "enable-debug-command local",
        "daemonize no",
        "set-proc-title no",  # it would overwrite the environment, and with it the lab's tag
    ]
    if shape == "replica" and name != "redis-0":
        lines.append(f"replicaof 127.0.0.1 {shown_port(state, 'redis-replication')}")
    if shape == "sentinel" and name != "redis-0":
        lines.append(f"replicaof 127.0.0.1 {shown_port(state, 'redis-0')}")
    if shape in ("replica", "sentinel"):
        lines += ["replica-announce-ip 127.0.0.1", f"replica-announce-port {shown}"]
    if shape == "cluster":
        bus = state.ports[f"{name}.bus"]
        lines += [
            "cluster-enabled yes",
            "cluster-config-file nodes.conf",
            f"cluster-node-timeout {NODE_TIMEOUT_MS}",
            f"cluster-port {bus}",
            "cluster-announce-ip 127.0.0.1",
            f"cluster-announce-port {shown}",
            f"cluster-announce-bus-port {bus}",
        ]
    return lines


def _sentinel_lines(state: State, name: str, data_dir: Path) -> list[str]:
    return [
        f"port {state.ports[name]}",
        "bind 127.0.0.1",
        f"dir {data_dir}",
        f"sentinel monitor {SERVICE} 127.0.0.1 {shown_port(state, 'redis-0')} 2",
        f"sentinel down-after-milliseconds {SERVICE} 2000",
        f"sentinel failover-timeout {SERVICE} 6000",
        f"sentinel parallel-syncs {SERVICE} 1",
        "set-proc-title no",
    ]
