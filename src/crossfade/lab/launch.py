"""How a lab starts and ends: ports, processes, readiness, and leaving nothing behind.

Every process is written down as it starts. The watchdog starts first and ends last, so a death of the caller anywhere
between leaves nothing that runs. Called by lab alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from crossfade.lab import heals, kafka, redis, secure
from crossfade.lab import state as states
from crossfade.lab.control import ask
from crossfade.lab.errors import LabError, LabUsage, StartFailed
from crossfade.lab.process import Process, identify, stop_all, tagged, wait_until
from crossfade.lab.state import LinkAddress, Options, Server, State

if TYPE_CHECKING:
    from crossfade.lab.lab import Lab

START_TIMEOUT_S = 180.0
_FORM_TIMEOUT_S = 60.0
_LINK_FIRST_S = 3.0
_STOP_GRACE_S = 10.0
_LOG_TAIL_LINES = 12


class Launch:
    """The start and the end of one lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        #: descriptors that keep the chosen ports from labs that start at the same time
        self._held: list[int] = []

    def plan(self, options: Options, owner: tuple[int, int] | None) -> bool:
        """Settle ports and ids; says whether the lab is new."""
        with states.locked(self.lab.folder):
            is_new = not (self.lab.folder / "lab.json").exists()
            state = State(name=self.lab.folder.name, options=options) if is_new else states.read(self.lab.folder)
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
            ports = states.free_ports(names, state.ports, self._held)
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
            states.write(self.lab.folder, state)
        return is_new

    def let_go_of_ports(self) -> None:
        """Whatever is to listen on them does so, or never will."""
        while self._held:
            os.close(self._held.pop())

    def start(self) -> None:
        """Start everything and return when clients can use it.  Raises PackageError, NotPossibleHere, StartFailed."""
        started = time.monotonic()
        heals.forget(self.lab.folder)
        self.lab.start_helper("watchdog", [str(self.lab.folder)])
        state = states.read(self.lab.folder)
        security = secure.prepare(self.lab.folder, state) if state.options.secure else None
        if security is not None:
            with states.change(self.lab.folder) as state:
                state.secrets = security.secrets
        servers = redis.prepare(
            state, self.lab.folder, security.redis_lines if security is not None else None, self.lab.say
        ) + kafka.prepare(state, self.lab.folder, security.kafka if security is not None else None, self.lab.say)
        links = self._links(state)
        with states.change(self.lab.folder) as state:
            state.servers = servers
            state.links = links
        if state.options.proxies:
            self.lab.start_helper("proxy", [str(self.lab.folder / "proxy.sock")])
            self._add_links(links)
        for server in servers:
            # A sentinel asks its primary for replicas every 10 s only, so it starts when they are linked.
            if server.kind != "sentinel":
                self.lab.say(f"starting {server.name}")
                self.lab.start_server(server.name, wait=False)
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

    def _add_links(self, links: list[LinkAddress]) -> None:
        path = self.lab.folder / "proxy.sock"
        process = Process(*states.read(self.lab.folder).helpers["proxy"])

        def answers() -> bool:
            if not process.is_alive():
                raise StartFailed("the lab's proxy ended", hint=tail(self.lab.folder / "logs" / "proxy.log"))
            try:
                ask(path, {"op": "stats"})
            except LabError:
                return False
            return True

        if not wait_until(answers, 10.0, pause_s=0.02):
            raise StartFailed("the lab's proxy does not answer", hint=tail(self.lab.folder / "logs" / "proxy.log"))
        for link in links:
            request = {"op": "add", "link": link.name, "port": link.port, "host": "127.0.0.1"}
            ask(path, {**request, "target_port": link.target_port})

    def _wait_ready(self, started: float) -> None:

        state = states.read(self.lab.folder)
        ordered = sorted(state.servers, key=lambda server: server.kind in ("kafka", "controller"))
        for server in ordered:
            if server.kind == "sentinel":
                continue
            self.lab.wait_server(server.name, START_TIMEOUT_S)
            if server.kind == "redis":
                self.lab.say(f"{server.name} answers after {time.monotonic() - started:.1f} s")
        self._wait_redis_formed(state)
        if state.options.brokers and not self.lab.admin.wait_brokers(state.options.brokers, START_TIMEOUT_S):
            raise StartFailed("not every broker registered", hint=self.lab.tail_of(state.server("kafka-1")))
        if state.options.brokers and state.options.secure:
            self.lab.admin.allow_all([f"User:{secure.APP}", f"User:CN={secure.APP}"])
        self.lab.say(f"ready in {time.monotonic() - started:.1f} s")

    def _wait_redis_formed(self, state: State) -> None:
        from crossfade.lab import admin

        shape = state.options.redis
        nodes = [server for server in state.servers if server.kind == "redis"]
        urls = [self.lab.url_of(state, node) for node in nodes]
        if shape == "cluster":
            ports = [(node.port, state.ports[f"{node.name}.bus"]) for node in nodes]
            admin.form_cluster(urls, [redis.shown_port(state, node.name) for node in nodes], ports, _FORM_TIMEOUT_S)
        if shape == "sentinel":
            # After a failover only the sentinels can say who follows whom; in a new lab the settings do.
            self._replicas_are_linked(urls, _LINK_FIRST_S)
        sentinels = [server for server in state.servers if server.kind == "sentinel"]
        for sentinel in sentinels:
            self.lab.start_server(sentinel.name, wait_s=_FORM_TIMEOUT_S)
        if shape in ("replica", "sentinel") and not self._replicas_are_linked(urls, _FORM_TIMEOUT_S):
            raise StartFailed("the replicas did not link to their primary", hint=self.lab.tail_of(nodes[-1]))
        seen_by = [self.lab.url_of(state, server) for server in sentinels]
        if not wait_until(lambda: admin.sentinels_know_all(seen_by, redis.SERVICE, len(nodes) - 1), _FORM_TIMEOUT_S):
            raise StartFailed("the sentinels did not find each other", hint=self.lab.tail_of(sentinels[-1]))

    @staticmethod
    def _replicas_are_linked(urls: list[str], wait_s: float) -> bool:
        from crossfade.lab import admin

        # After a failover the primary is not the first one any more.
        return wait_until(lambda: any(admin.wait_replicas(url, len(urls) - 1, 0.0) for url in urls), wait_s)

    def end(self, *, remove_data: bool, keep_logs: bool) -> None:
        """Stop every process of the lab, also those that were never written down."""
        servers: list[Server] = []
        recorded: list[Process] = []
        helpers: dict[str, Process] = {}
        with contextlib.suppress(LabUsage, LabError):
            state = states.read(self.lab.folder)
            servers = state.servers
            helpers = {name: Process(*identity) for name, identity in state.helpers.items()}
            recorded = [server.process for server in servers if server.pid]
        heals.forget(self.lab.folder)  # nothing of what is being stopped comes back
        me = os.getpid()
        watchdog = helpers.pop("watchdog", None)
        rest = [process for process in tagged(self.lab.folder) if process not in (watchdog, identify(me))]
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
        stop_all([process for process in tagged(self.lab.folder) if process.pid != me], grace_s=0.0)
        heals.forget(self.lab.folder)  # what the watchdog put back meanwhile
        if not remove_data:
            with contextlib.suppress(LabUsage), states.change(self.lab.folder) as state:
                state.helpers = {}
                state.owner = None
                for server in state.servers:
                    server.pid = server.started_ticks = 0
            return
        for entry in ("data", "config", "heals", "lab.json", "proxy.sock", ".lock"):
            path = self.lab.folder / entry
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if not keep_logs:
            shutil.rmtree(self.lab.folder, ignore_errors=True)


def tail(path: Path) -> str:
    """The last lines of a log, under its name."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return f"{path}:\n" + "\n".join(lines[-_LOG_TAIL_LINES:])
