"""A lab: real Kafka and Redis servers of this machine, their proxies and their watchdog, as one object.

`Lab.up` starts everything in parallel and returns when clients can use it; `Lab.load` finds a running lab again from
any process. Every process is written down as it starts, and a watchdog ends the lab when its owner dies, so nothing is
left behind. Called by the CLI, the demo, the drills, the benchmarks and the system tests.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from crossfade.lab import kafka, packages, redis, secure
from crossfade.lab import state as states
from crossfade.lab.control import ask
from crossfade.lab.errors import LabError, LabUsage, StartFailed, no_partition
from crossfade.lab.launch import START_TIMEOUT_S, Launch, tail
from crossfade.lab.process import Process, collect, identify, spawn, stop_all, tagged
from crossfade.lab.state import Options, Server, State

if TYPE_CHECKING:
    from crossfade.lab.admin import KafkaAdmin
    from crossfade.lab.faults import Faults


Say = Callable[[str], None]


def _silent(_: str) -> None:
    """Progress words are for people; a test asks for none."""


class Lab:
    """A lab by its folder; every method reads the state anew, so two processes may hold the same lab."""

    def __init__(self, folder: Path, say: Say = _silent) -> None:
        self.folder = folder
        self.say = say
        self._admin: KafkaAdmin | None = None

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    # -- life

    @classmethod
    def up(
        cls,
        name: str,
        *,
        brokers: int = 3,
        controllers: str = "combined",
        redis: str = "standalone",
        redis_flavour: str | None = None,
        secure: bool = False,
        proxies: bool = True,
        kafka_version: str = packages.KAFKA_VERSION,
        heap_mb: int = 512,
        owner_pid: int | None = None,
        say: Say = _silent,
    ) -> Lab:
        """Start a lab, or start a stopped one again on its data, and return when clients can use it.

        `brokers=0` means no Kafka, `redis="none"` no Redis. With `owner_pid` the lab ends, data included, when that
        process does. Raises LabUsage, PackageError, StartFailed, NotPossibleHere.
        """
        options = Options(
            brokers=brokers,
            controllers=controllers,
            redis=redis,
            redis_flavour=redis_flavour or ("redis7" if secure else "valkey"),
            secure=secure,
            proxies=proxies,
            kafka_version=kafka_version,
            heap_mb=heap_mb,
        )
        return cls(states.lab_dir(name), say)._up(options, owner_pid)

    @classmethod
    def resume(cls, name: str, *, owner_pid: int | None = None, say: Say = _silent) -> Lab:
        """Start a stopped lab again as it was.  Raises what `up` raises."""
        folder = states.lab_dir(name)
        return cls(folder, say)._up(states.read(folder).options, owner_pid)

    @classmethod
    def load(cls, name: str, say: Say = _silent) -> Lab:
        """Find a lab by name.  Raises LabUsage when there is none."""
        folder = states.lab_dir(name)
        states.read(folder)
        return cls(folder, say)

    @staticmethod
    def names() -> list[str]:
        """Every lab of this working directory, running or stopped."""
        return sorted(path.parent.name for path in states.lab_root().glob("*/lab.json"))

    def _up(self, options: Options, owner_pid: int | None) -> Lab:
        packages.check_platform()
        kafka.check(options)
        redis.check(options)
        secure.check(options)
        owner = None
        if owner_pid is not None:
            found = identify(owner_pid)
            if found is None:
                raise LabUsage(f"there is no process {owner_pid} to own the lab")
            owner = (found.pid, found.started_ticks)
        self.folder.mkdir(parents=True, exist_ok=True)
        launch = Launch(self)
        try:
            is_new = launch.plan(options, owner)
            # What a start that was killed half way has left; nothing of this lab is meant to run now.
            stop_all(tagged(self.folder), grace_s=1.0)
            try:
                launch.start()
            except BaseException:  # Ctrl-C too
                # A lab that did not start leaves no process and no data, but its logs.
                launch.end(remove_data=is_new, keep_logs=True)
                raise
        finally:
            launch.let_go_of_ports()
        return self

    def start_helper(self, name: str, arguments: list[str]) -> None:
        """Start the proxy or the watchdog and write it down."""
        log = self.folder / "logs" / f"{name}.log"
        argv = [sys.executable, "-m", f"crossfade.lab.{name}", *arguments]
        process = spawn(argv, lab_dir=self.folder, log=log)
        with states.change(self.folder) as state:
            state.helpers[name] = (process.pid, process.started_ticks)

    def start_server(self, name: str, *, wait: bool = True, wait_s: float = START_TIMEOUT_S) -> Process:
        """Start one server if it is not running; with `wait` return when it answers.  Raises LabUsage, StartFailed."""
        with states.change(self.folder) as state:
            server = state.server(name)
            if not server.is_alive:
                log = Path(server.log)
                process = spawn(server.argv, lab_dir=self.folder, log=log, env=server.env)
                server.pid, server.started_ticks = process.pid, process.started_ticks
        if wait:
            self.wait_server(name, wait_s)
        return server.process

    def stop_server(self, name: str, *, grace_s: float = 30.0) -> None:
        """SIGTERM one server and wait until it is gone (SIGKILL after `grace_s`).  Raises LabUsage."""
        stop_all([states.read(self.folder).server(name).process], grace_s=grace_s)

    def wait_server(self, name: str, wait_s: float = START_TIMEOUT_S) -> None:
        """Wait until one server answers again.  Raises StartFailed."""
        state = states.read(self.folder)
        server = state.server(name)
        deadline = time.monotonic() + wait_s
        while not self._answers(state, server):
            if not server.process.is_alive():
                collect(server.process)
                raise StartFailed(f"{name} ended while starting", hint=self.tail_of(server))
            if time.monotonic() > deadline:
                raise StartFailed(f"{name} was not ready after {wait_s:.0f} s", hint=self.tail_of(server))
            time.sleep(0.05)

    def server_answers(self, name: str) -> bool:
        """Whether a server runs and answers now.  Raises LabUsage."""
        state = self.state
        server = state.server(name)
        return server.is_alive and self._answers(state, server)

    def ensure_watchdog(self) -> None:
        """Start the watchdog again if something has ended it."""
        identity = self.state.helpers.get("watchdog")
        if identity is None or not Process(*identity).is_alive():
            self.start_helper("watchdog", [str(self.folder)])

    def _answers(self, state: State, server: Server) -> bool:
        if server.kind in ("redis", "sentinel"):
            from crossfade.lab import admin

            return admin.redis_answers(self.url_of(state, server))
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=1.0).close()
        except OSError:
            return False
        return server.kind == "controller" or server.node_id in self.admin.brokers()

    def down(self, remove_data: bool = True) -> None:
        """Stop every process of the lab; with `remove_data` nothing of it stays on disk."""
        self._admin = None
        Launch(self).end(remove_data=remove_data, keep_logs=False)

    # -- what it is

    @property
    def state(self) -> State:
        """The lab's state as it is now on disk."""
        return states.read(self.folder)

    @property
    def admin(self) -> KafkaAdmin:
        """An admin client on the direct listeners, past every fault."""
        if self._admin is None:
            from crossfade.lab.admin import KafkaAdmin

            self._admin = KafkaAdmin(self.kafka_properties(direct=True))
        return self._admin

    @property
    def faults(self) -> Faults:
        """The faults that can be tried on this lab."""
        from crossfade.lab.faults import Faults

        return Faults(self)

    def kafka_properties(
        self, *, direct: bool = False, listener: str = "CLIENT", user: str = secure.APP
    ) -> dict[str, str]:
        """librdkafka properties to reach the cluster: through the proxies, or past them (as `admin`) with `direct`.

        A secured lab also has the listeners SASLPLAIN, MTLS and OAUTH.  Raises LabUsage.
        """
        state = self.state
        key = "DIRECT" if direct else listener
        ports = [
            state.ports[f"{kafka.node_name(node_id)}.DIRECT"]
            if direct
            else state.link(kafka.link_name(node_id, listener)).port
            for node_id in kafka.broker_ids(state.options)
        ]
        out = {"bootstrap.servers": ",".join(f"127.0.0.1:{port}" for port in ports)}
        return out | secure.kafka_client(self.folder, state, key, user)

    def redis_url(self, *, direct: bool = False, server: str = "redis-0", user: str = secure.APP) -> str:
        """The URL of a Redis server: through its proxy, or past it (as `admin`) with `direct`.  Raises LabUsage."""
        state = self.state
        found = state.server(server)
        if direct:
            return self.url_of(state, found)
        return secure.redis_url(self.folder, state, redis.shown_port(state, server), user=user)

    def url_of(self, state: State, server: Server) -> str:
        """The URL of a server past the proxies, as `admin`."""
        user = None if server.kind == "sentinel" else secure.ADMIN
        return secure.redis_url(self.folder, state, server.port, user=user)

    def primary_url(self) -> str:
        """The URL of the one server that takes writes now, through its proxy.

        Raises LabUsage (no Redis, a cluster), LabError (it does not answer).
        """
        from crossfade.lab import admin

        state = self.state
        if state.options.redis == "none":
            raise LabUsage(f"lab {state.name!r} has no Redis", hint="start one with `crossfade lab up`")
        if state.options.redis == "cluster":
            raise LabUsage(
                f"lab {state.name!r} is a Redis Cluster: no server takes every key",
                hint="standalone, replica and sentinel have one that does",
            )
        guards = [self.url_of(state, server) for server in state.servers if server.kind == "sentinel"]
        port = admin.primary_port(guards, redis.SERVICE)
        names = (each for each in redis.server_names(state.options) if port and redis.shown_port(state, each) == port)
        name = next(names, "redis-0")
        if not self.server_answers(name):
            raise LabError(
                f"{name} of lab {state.name!r} does not answer",
                hint=f"`crossfade lab status {state.name}` shows what runs, `crossfade lab up {state.name}` starts it",
            )
        return self.redis_url(server=name)

    def env(self) -> dict[str, str]:
        """What a program needs to use the lab, as environment variables; `*_DIRECT` goes past the proxies."""
        state = self.state
        out = {"CROSSFADE_LAB": state.name}
        if state.options.brokers:
            out["KAFKA_BOOTSTRAP"] = self.kafka_properties()["bootstrap.servers"]
            for listener in kafka.listeners(state.options)[1:]:
                out[f"KAFKA_BOOTSTRAP_{listener}"] = self.kafka_properties(listener=listener)["bootstrap.servers"]
            out["KAFKA_BOOTSTRAP_DIRECT"] = self.kafka_properties(direct=True)["bootstrap.servers"]
        if state.options.redis != "none":
            out["REDIS_URL"] = self.redis_url()
            out["REDIS_URL_DIRECT"] = self.redis_url(direct=True)
        if state.options.redis in ("replica", "cluster"):
            shown = [redis.shown_port(state, name) for name in redis.server_names(state.options)]
            out["REDIS_NODES"] = ",".join(f"127.0.0.1:{port}" for port in shown)
        if state.options.redis == "sentinel":
            ports = [state.ports[name] for name in redis.sentinel_names(state.options)]
            out["REDIS_SENTINELS"] = ",".join(f"127.0.0.1:{port}" for port in ports)
            out["REDIS_SENTINEL_SERVICE"] = redis.SERVICE
        return out | secure.env(self.folder, state)

    def status(self) -> dict[str, Any]:
        """Servers, helpers, links and pending heals, as plain data."""
        state = self.state
        helpers = {name: Process(*identity) for name, identity in state.helpers.items()}
        alive = {name for name, process in helpers.items() if process.is_alive()}
        needed = {"watchdog", "proxy"} if state.options.proxies else {"watchdog"}
        servers_run = bool(state.servers) and all(server.is_alive for server in state.servers)
        links: list[dict[str, Any]] = []
        if state.options.proxies and "proxy" in alive:
            links = ask(self.folder / "proxy.sock", {"op": "stats"})["links"]
        return {
            "version": 1,
            "lab": state.name,
            "folder": str(self.folder),
            "running": servers_run and needed <= alive,
            "options": {key: getattr(state.options, key) for key in state.options.__struct_fields__},
            "owner_pid": state.owner[0] if state.owner else None,
            "helpers": [
                {"name": name, "pid": process.pid, "alive": name in alive} for name, process in helpers.items()
            ],
            "servers": [self._server_status(server) for server in state.servers],
            "links": links,
        }

    @staticmethod
    def _server_status(server: Server) -> dict[str, Any]:
        frozen = server.is_alive and server.process.is_frozen()
        condition = "frozen" if frozen else "running" if server.is_alive else "stopped"
        return {
            "name": server.name,
            "kind": server.kind,
            "state": condition,
            "pid": server.pid,
            "port": server.port,
            "memory_mb": _memory_mb(server.pid) if server.is_alive else 0,
        }

    def logs(self) -> dict[str, Path]:
        """Every log file by the name of who writes it."""
        return {path.name.removesuffix(".log"): path for path in sorted((self.folder / "logs").glob("*.log"))}

    # -- daily needs of tests and drills

    def create_topic(
        self, name: str, partitions: int = 1, configs: Mapping[str, str] | None = None, *, replicas: int | None = None
    ) -> None:
        """Create a topic (three copies where there are three brokers) and wait for its leaders.  Raises LabError."""
        copies = replicas or (3 if self.state.options.brokers >= 3 else 1)
        self.admin.create_topic(name, partitions, copies, configs or {})

    def kafka_leader(self, topic: str, partition: int = 0) -> str:
        """The server that leads a partition now, such as `kafka-2`.  Raises LabUsage, LabError when there is none."""
        leaders = self.admin.leaders(topic)
        if leaders and partition not in leaders:
            raise no_partition(topic, partition, len(leaders))
        node_id = leaders.get(partition, -1)
        if node_id < 0:
            raise LabError(f"{topic}/{partition} has no leader", hint="a majority of the brokers must be running")
        return kafka.node_name(node_id)

    @contextlib.contextmanager
    def client_of_redis(self, *, direct: bool = True, server: str = "redis-0") -> Iterator[Any]:
        """A redis-py client for a few calls."""
        from crossfade.lab import admin

        client = admin.redis_client(self.redis_url(direct=direct, server=server))
        try:
            yield client
        finally:
            client.close()

    @contextlib.contextmanager
    def client_of_key(self, key: str) -> Iterator[Any]:
        """A redis-py client of the primary that holds a key, past the proxies.

        Raises LabError where there is none, and for what the server refuses; LabUsage where the key is no stream.
        """
        from crossfade.lab import admin

        state = self.state
        urls = [self.url_of(state, server) for server in state.servers if server.kind == "redis"]
        client = admin.primary_of_key(urls, key)
        try:
            with admin.in_words_of_the_lab(key):
                yield client
        finally:
            client.close()

    def ask_proxy(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request to the proxy.  Raises LabUsage in a lab without proxies, LabError."""
        if not self.state.options.proxies:
            raise LabUsage("this lab runs without proxies", hint="start it without --no-proxies")
        return ask(self.folder / "proxy.sock", request)

    def tail_of(self, server: Server) -> str:
        """The last lines of what a server wrote."""
        detailed = self.folder / "logs" / f"{server.name}.server.log"
        return tail(Path(server.log)) + ("\n" + tail(detailed) if detailed.exists() else "")


def _memory_mb(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) // 1024
    return 0
