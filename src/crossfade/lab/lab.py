"""A lab: real Kafka and Redis servers of this machine, their proxies and their watchdog, as one object.

`Lab.up` starts everything in parallel and returns when clients can use it; `Lab.load` finds a running lab again from
any process. Every process is written down as it starts, and a watchdog ends the lab when its owner dies, so nothing is
left behind. Called by the CLI, the demo, the drills, the benchmarks and the system tests.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from crossfade.lab import disk, kafka, packages, redis, secure
from crossfade.lab import state as states
from crossfade.lab.control import ask
from crossfade.lab.errors import LabError, LabUsage, StartFailed
from crossfade.lab.process import Process, collect, identify, spawn, stop_all, tagged, wait_until
from crossfade.lab.state import LinkAddress, Options, Server, State

if TYPE_CHECKING:
    from crossfade.lab.admin import KafkaAdmin
    from crossfade.lab.faults import Faults

_START_TIMEOUT_S = 180.0
_FORM_TIMEOUT_S = 60.0
_LINK_FIRST_S = 3.0
_STOP_GRACE_S = 10.0
_LOG_TAIL_LINES = 12

Say = Callable[[str], None]


def _silent(_: str) -> None:
    """Progress words are for people; a test asks for none."""


class Lab:
    """A lab by its folder; every method reads the state anew, so two processes may hold the same lab."""

    def __init__(self, folder: Path, say: Say = _silent) -> None:
        self.folder = folder
        self._say = say
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
        is_new = self._write_plan(options, owner)
        # What a start that was killed half way has left; nothing of this lab is meant to run now.
        stop_all(tagged(self.folder), grace_s=1.0)
        try:
            self._start_all()
        except BaseException:
            # A lab that did not start leaves no process and no data, but its logs.
            self._end(remove_data=is_new, keep_logs=True)
            raise
        return self

    def _write_plan(self, options: Options, owner: tuple[int, int] | None) -> bool:
        """Settle ports and ids; says whether the lab is new."""
        with states.locked(self.folder):
            is_new = not (self.folder / "lab.json").exists()
            state = State(name=self.folder.name, options=options) if is_new else states.read(self.folder)
            if any(server.is_alive for server in state.servers):
                raise LabUsage(
                    f"lab {state.name!r} is already running", hint=f"`crossfade lab down {state.name}`, or another name"
                )
            if state.options != options:
                raise LabUsage(
                    f"lab {state.name!r} exists with other options",
                    hint=f"`crossfade lab down {state.name}` removes it; `up {state.name}` alone starts it as it was",
                )
            names = [*kafka.port_names(options), *redis.port_names(options)]
            ports = states.free_ports(names, state.ports)
            if options.redis in ("sentinel", "cluster") and state.ports and ports != state.ports:
                lost = sorted({state.ports[name] for name in names if ports[name] != state.ports[name]})
                raise StartFailed(
                    f"ports {', '.join(map(str, lost))} are taken; a {options.redis} keeps its addresses in its data",
                    hint="free them, or `crossfade lab down` and start a new lab",
                )
            state.ports = ports
            state.owner = owner
            state.helpers = {}
            state.cluster_id = state.cluster_id or kafka.new_id()
            states.write(self.folder, state)
        return is_new

    def _start_all(self) -> None:
        started = time.monotonic()
        for stale in (self.folder / "heals").glob("*.json"):
            stale.unlink()
        self._start_helper("watchdog", [str(self.folder)])
        state = states.read(self.folder)
        security = secure.prepare(self.folder, state) if state.options.secure else None
        if security is not None:
            with states.change(self.folder) as state:
                state.secrets = security.secrets
        servers = redis.prepare(
            state, self.folder, security.redis_lines if security is not None else None, self._say
        ) + kafka.prepare(state, self.folder, security.kafka if security is not None else None, self._say)
        links = self._links(state)
        with states.change(self.folder) as state:
            state.servers = servers
            state.links = links
        if state.options.proxies:
            self._start_helper("proxy", [str(self.folder / "proxy.sock")])
            self._add_links(links)
        for server in servers:
            # A sentinel asks its primary for replicas every 10 s only, so it starts when they are linked.
            if server.kind != "sentinel":
                self._say(f"starting {server.name}")
                self.start_server(server.name, wait=False)
        self._wait_ready(started)

    def _links(self, state: State) -> list[LinkAddress]:
        options = state.options
        out = []
        for name in redis.link_names(options):
            own = state.ports["redis-0" if name == "redis-replication" else name]
            out.append(LinkAddress(name=name, port=redis.shown_port(state, name), target_port=own))
        for node_id in kafka.broker_ids(options):
            for listener in kafka.listeners(options):
                name = kafka.link_name(node_id, listener)
                own = state.ports[f"{kafka.node_name(node_id)}.{listener}"]
                out.append(LinkAddress(name=name, port=state.ports.get(f"proxy.{name}", own), target_port=own))
        return out

    def _start_helper(self, name: str, arguments: list[str]) -> None:
        log = self.folder / "logs" / f"{name}.log"
        argv = [sys.executable, "-m", f"crossfade.lab.{name}", *arguments]
        process = spawn(argv, lab_dir=self.folder, log=log)
        with states.change(self.folder) as state:
            state.helpers[name] = (process.pid, process.started_ticks)

    def _add_links(self, links: list[LinkAddress]) -> None:
        path = self.folder / "proxy.sock"
        process = Process(*states.read(self.folder).helpers["proxy"])

        def answers() -> bool:
            if not process.is_alive():
                raise StartFailed("the lab's proxy ended", hint=self._tail(self.folder / "logs" / "proxy.log"))
            try:
                ask(path, {"op": "stats"})
            except LabError:
                return False
            return True

        if not wait_until(answers, 10.0, pause_s=0.02):
            raise StartFailed("the lab's proxy does not answer", hint=self._tail(self.folder / "logs" / "proxy.log"))
        for link in links:
            request = {"op": "add", "link": link.name, "port": link.port, "host": "127.0.0.1"}
            ask(path, {**request, "target_port": link.target_port})

    def start_server(self, name: str, *, wait: bool = True, wait_s: float = _START_TIMEOUT_S) -> Process:
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

    def wait_server(self, name: str, wait_s: float = _START_TIMEOUT_S) -> None:
        """Wait until one server answers again.  Raises StartFailed."""
        state = states.read(self.folder)
        server = state.server(name)
        deadline = time.monotonic() + wait_s
        while not self._answers(state, server):
            if not server.process.is_alive():
                collect(server.process)
                raise StartFailed(f"{name} ended while starting", hint=self._server_tail(server))
            if time.monotonic() > deadline:
                raise StartFailed(f"{name} was not ready after {wait_s:.0f} s", hint=self._server_tail(server))
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
            self._start_helper("watchdog", [str(self.folder)])

    def _answers(self, state: State, server: Server) -> bool:
        if server.kind in ("redis", "sentinel"):
            from crossfade.lab import admin

            return admin.redis_answers(self._redis_direct_url(state, server))
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=1.0).close()
        except OSError:
            return False
        return server.kind == "controller" or server.node_id in self.admin.brokers()

    def _wait_ready(self, started: float) -> None:

        state = states.read(self.folder)
        ordered = sorted(state.servers, key=lambda server: server.kind in ("kafka", "controller"))
        for server in ordered:
            if server.kind == "sentinel":
                continue
            self.wait_server(server.name, _START_TIMEOUT_S)
            if server.kind == "redis":
                self._say(f"{server.name} answers after {time.monotonic() - started:.1f} s")
        self._wait_redis_formed(state)
        if state.options.brokers and not self.admin.wait_brokers(state.options.brokers, _START_TIMEOUT_S):
            raise StartFailed("not every broker registered", hint=self._server_tail(state.server("kafka-1")))
        if state.options.brokers and state.options.secure:
            self.admin.allow_all([f"User:{secure.APP}", f"User:CN={secure.APP}"])
        self._say(f"ready in {time.monotonic() - started:.1f} s")

    def _wait_redis_formed(self, state: State) -> None:
        from crossfade.lab import admin

        shape = state.options.redis
        nodes = [server for server in state.servers if server.kind == "redis"]
        urls = [self._redis_direct_url(state, node) for node in nodes]
        if shape == "cluster":
            ports = [(node.port, state.ports[f"{node.name}.bus"]) for node in nodes]
            admin.form_cluster(urls, [redis.shown_port(state, node.name) for node in nodes], ports, _FORM_TIMEOUT_S)
        if shape == "sentinel":
            # After a failover only the sentinels can say who follows whom; in a new lab the settings do.
            self._replicas_are_linked(urls, _LINK_FIRST_S)
        sentinels = [server for server in state.servers if server.kind == "sentinel"]
        for sentinel in sentinels:
            self.start_server(sentinel.name, wait_s=_FORM_TIMEOUT_S)
        if shape in ("replica", "sentinel") and not self._replicas_are_linked(urls, _FORM_TIMEOUT_S):
            raise StartFailed("the replicas did not link to their primary", hint=self._server_tail(nodes[-1]))
        seen_by = [self._redis_direct_url(state, server) for server in sentinels]
        if not wait_until(lambda: admin.sentinels_know_all(seen_by, redis.SERVICE, len(nodes) - 1), _FORM_TIMEOUT_S):
            raise StartFailed("the sentinels did not find each other", hint=self._server_tail(sentinels[-1]))

    @staticmethod
    def _replicas_are_linked(urls: list[str], wait_s: float) -> bool:
        from crossfade.lab import admin

        # After a failover the primary is not the first one any more.
        return wait_until(lambda: any(admin.wait_replicas(url, len(urls) - 1, 0.0) for url in urls), wait_s)

    def down(self, remove_data: bool = True) -> None:
        """Stop every process of the lab; with `remove_data` nothing of it stays on disk."""
        self._end(remove_data=remove_data, keep_logs=False)

    def _end(self, *, remove_data: bool, keep_logs: bool) -> None:
        self._admin = None
        servers: list[Server] = []
        recorded: list[Process] = []
        helpers: dict[str, Process] = {}
        with contextlib.suppress(LabUsage, LabError):
            state = states.read(self.folder)
            servers = state.servers
            helpers = {name: Process(*identity) for name, identity in state.helpers.items()}
            recorded = [server.process for server in servers if server.pid]
        for note in (self.folder / "heals").glob("*.json"):
            note.unlink(missing_ok=True)  # nothing of what is being stopped comes back
        me = os.getpid()
        watchdog = helpers.pop("watchdog", None)
        rest = [process for process in tagged(self.folder) if process not in (watchdog, identify(me))]
        # Data that goes away needs no graceful end.
        if remove_data:
            for process in {*recorded, *rest}:
                process.send(signal.SIGKILL)
        # Brokers hand their leaders over before they end, and need the controllers for that.
        stop_all([server.process for server in servers if server.kind == "kafka"], grace_s=_STOP_GRACE_S)
        stop_all(list({*recorded, *rest, *helpers.values()}), grace_s=_STOP_GRACE_S)
        # The watchdog last: it finishes this if we die on the way. What it started meanwhile is swept up after it.
        if watchdog is not None and watchdog.pid != me:
            stop_all([watchdog], grace_s=2.0)
        stop_all([process for process in tagged(self.folder) if process.pid != me], grace_s=0.0)
        for server in servers:
            disk.take_down(Path(server.data_dir), keep=not remove_data)
        if not remove_data:
            with contextlib.suppress(LabUsage), states.change(self.folder) as state:
                state.helpers = {}
                state.owner = None
                for server in state.servers:
                    server.pid = server.started_ticks = 0
            return
        for entry in ("data", "config", "heals", "lab.json", "proxy.sock", ".lock"):
            path = self.folder / entry
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if not keep_logs:
            shutil.rmtree(self.folder, ignore_errors=True)

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
            return self._redis_direct_url(state, found)
        return secure.redis_url(self.folder, state, redis.shown_port(state, server), user=user)

    def _redis_direct_url(self, state: State, server: Server) -> str:
        user = None if server.kind == "sentinel" else secure.ADMIN
        return secure.redis_url(self.folder, state, server.port, user=user)

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
        links: list[dict[str, Any]] = []
        if state.options.proxies and "proxy" in helpers and helpers["proxy"].is_alive():
            links = ask(self.folder / "proxy.sock", {"op": "stats"})["links"]
        return {
            "version": 1,
            "lab": state.name,
            "folder": str(self.folder),
            "running": bool(state.servers) and all(server.is_alive for server in state.servers),
            "options": {key: getattr(state.options, key) for key in state.options.__struct_fields__},
            "owner_pid": state.owner[0] if state.owner else None,
            "helpers": [
                {"name": name, "pid": process.pid, "alive": process.is_alive()} for name, process in helpers.items()
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
        """The server that leads a partition now, such as `kafka-2`.  Raises LabError when there is none."""
        node_id = self.admin.leaders(topic).get(partition, -1)
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
        """A redis-py client of the primary that holds a key, past the proxies.  Raises LabError."""
        from crossfade.lab import admin

        state = self.state
        urls = [self._redis_direct_url(state, server) for server in state.servers if server.kind == "redis"]
        client = admin.primary_of_key(urls, key)
        try:
            yield client
        finally:
            client.close()

    def ask_proxy(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request to the proxy.  Raises LabUsage in a lab without proxies, LabError."""
        if not self.state.options.proxies:
            raise LabUsage("this lab runs without proxies", hint="start it without --no-proxies")
        return ask(self.folder / "proxy.sock", request)

    def _server_tail(self, server: Server) -> str:
        detailed = self.folder / "logs" / f"{server.name}.server.log"
        return self._tail(Path(server.log)) + ("\n" + self._tail(detailed) if detailed.exists() else "")

    @staticmethod
    def _tail(path: Path) -> str:
        try:
            lines = path.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        return f"{path}:\n" + "\n".join(lines[-_LOG_TAIL_LINES:])


def _memory_mb(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) // 1024
    return 0
