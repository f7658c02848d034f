"""Faults on a running lab, each with an end of its own and with the effect that was seen.

A fault that lasts is written down before it acts (`heals`) or kept by the proxy, so it heals at its deadline though the
caller is dead. A fault returns only after its effect was observed, and can be asked again later (bytes held, new
leader): a drill whose fault did not bite has proved nothing. Called by the CLI, the drills, the demo and the tests.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossfade.lab import disk, heals
from crossfade.lab.errors import LabError, LabUsage
from crossfade.lab.lab import Lab
from crossfade.lab.link import Mode
from crossfade.lab.process import collect, wait_until
from crossfade.lab.state import Server

HEAL_AFTER_S = 30.0
HEAL_AFTER_S_MAX = 3600.0
_EFFECT_S = 30.0
#: longer than deleting and creating a topic takes where every request takes as long as it may
_RECREATE_S = 120.0


@dataclass
class Fault:
    """A fault that has taken effect: what was done to what, and what was seen of it."""

    kind: str
    subject: str
    heal_after_s: float | None  # None: it left nothing to heal
    observed: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    _observe: Callable[[], dict[str, Any]] = dict
    _heal: Callable[[], None] = lambda: None
    _is_healed: Callable[[], bool] = lambda: True

    def observe(self) -> dict[str, Any]:
        """Look again and return everything seen so far (for a link: bytes held, dropped, connections reset)."""
        self.observed |= self._observe()
        return self.observed

    def heal(self) -> None:
        """End it now; nothing happens when it has ended already.  Raises LabError."""
        self.observe()
        self._heal()

    def wait_healed(self, wait_s: float = 120.0) -> float:
        """Wait until it has ended and what it hit answers again; returns seconds since it began.

        Raises LabError when that takes longer than `wait_s`.
        """
        if not wait_until(self._is_healed, wait_s):
            raise LabError(f"{self.kind} of {self.subject} has not healed after {wait_s:.0f} s")
        seconds = time.monotonic() - self.began
        self.observed["healed_after_s"] = round(seconds, 2)
        return seconds

    def as_dict(self) -> dict[str, Any]:
        """The fault for a report."""
        return {
            "fault": self.kind,
            "subject": self.subject,
            "heal_after_s": self.heal_after_s,
            "observed": self.observed,
        }


class Faults:
    """Every fault of one lab. Servers are named `kafka-1`, `redis-0`; links bear their server's name."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    # -- processes

    def kill(self, server: str, *, heal_after_s: float = HEAL_AFTER_S) -> Fault:
        """kill -9; at the deadline the server is started again.

        Observed: `old_pid`, `pid_gone`.  Raises LabUsage, LabError (it does not run, it did not end).
        """
        target = self._running(server)
        note = self._note("start", server, heal_after_s)
        if not target.process.kill():
            raise LabError(f"{server} (pid {target.pid}) survived SIGKILL for 5 s")
        collect(target.process)
        observed = {"old_pid": target.pid, "pid_gone": not target.process.is_alive()}
        return self._noted("kill", server, heal_after_s, note, observed, lambda: self._is_up(server))

    def kill_leader(self, topic: str, partition: int = 0, *, heal_after_s: float = HEAL_AFTER_S) -> Fault:
        """kill -9 the broker that leads a partition and wait until another one leads it.

        Observed: `old_pid`, `pid_gone`, `old_leader`, `new_leader`, `leader_after_s`.  Raises LabUsage, LabError.
        """
        old = self.lab.kafka_leader(topic, partition)
        fault = self.kill(old, heal_after_s=heal_after_s)
        new = self._await_leader(topic, partition, lambda leader: leader != old)
        took_s = round(time.monotonic() - fault.began, 2)
        fault.observed |= {"old_leader": old, "new_leader": new, "leader_after_s": took_s}
        fault.kind, fault.subject = "kill-leader", f"{topic}/{partition}"
        return fault

    def freeze(self, server: str, *, heal_after_s: float = HEAL_AFTER_S) -> Fault:
        """SIGSTOP; SIGCONT at the deadline.  Observed: `pid`, `frozen`.  Raises LabUsage, LabError."""
        target = self._running(server)
        note = self._note("thaw", server, heal_after_s, target)
        target.process.send(signal.SIGSTOP)
        if not wait_until(target.process.is_frozen, 5.0, pause_s=0.005):
            raise LabError(f"{server} (pid {target.pid}) did not stop")
        return self._noted(
            "freeze",
            server,
            heal_after_s,
            note,
            {"pid": target.pid, "frozen": True},
            lambda: not target.process.is_frozen(),
        )

    def restart(self, server: str, *, wait_s: float = 90.0) -> Fault:
        """Stop it gracefully and start it again.

        Observed: `old_pid`, `new_pid`, `answered_after_s`.  Raises LabUsage, StartFailed.
        """
        target = self._running(server)
        note = self._note("start", server, HEAL_AFTER_S + wait_s)
        began = time.monotonic()
        self.lab.stop_server(server)
        started = self.lab.start_server(server, wait_s=wait_s)
        heals.take(self.lab.folder, note)
        observed = {"old_pid": target.pid, "new_pid": started.pid}
        return Fault("restart", server, None, observed | {"answered_after_s": round(time.monotonic() - began, 2)})

    # -- links

    def cut(self, link: str, *, heal_after_s: float = HEAL_AFTER_S) -> Fault:
        """Reset every connection and refuse new ones.  Observed: `connections_reset`."""
        return self._link(link, Mode.CUT, heal_after_s)

    def delay(self, link: str, delay_ms: float, *, heal_after_s: float = HEAL_AFTER_S) -> Fault:
        """Every byte arrives `delay_ms` later in both directions, order kept."""
        return self._link(link, Mode.DELAY, heal_after_s, delay_ms=delay_ms)

    def half_open(self, link: str, *, heal_after_s: float = HEAL_AFTER_S) -> Fault:
        """Connections stay and new ones are accepted, but nothing arrives.  Observed: `bytes_dropped`."""
        return self._link(link, Mode.HALF_OPEN, heal_after_s)

    def hold_replies(self, link: str, *, heal_after_s: float = HEAL_AFTER_S) -> Fault:
        """Requests arrive, answers come only when it heals.  Observed: `bytes_held`, `bytes_held_max`."""
        return self._link(link, Mode.HOLD_REPLIES, heal_after_s)

    def drop_replies(self, link: str, *, heal_after_s: float = HEAL_AFTER_S) -> Fault:
        """Requests arrive, answers never do; healing resets the connections.  Observed: `bytes_dropped`."""
        return self._link(link, Mode.DROP_REPLIES, heal_after_s)

    def hold_requests(self, link: str, *, heal_after_s: float = HEAL_AFTER_S) -> Fault:
        """Requests arrive when it heals, even if their client has long given up.  Observed: `bytes_held`."""
        return self._link(link, Mode.HOLD_REQUESTS, heal_after_s)

    def reset(self, link: str) -> Fault:
        """Reset every connection of the link, once.  Observed: `connections_reset`."""
        answer = self.lab.ask_proxy({"op": "reset", "link": self.lab.state.link(link).name})
        return Fault("reset", link, None, {"connections_reset": answer["connections_reset"]})

    # -- disks and data

    def disk_full(self, server: str, *, heal_after_s: float = HEAL_AFTER_S) -> Fault:
        """Refuse every byte that the server would write to a file, as a full disk does.

        At the deadline there is room again; a server that has ended of it (a broker does) is started.
        Observed: `disk_is_full`, `server_ended`.  Raises NotPossibleHere, LabUsage, LabError.
        """
        target = self._running(server)
        process = target.process
        note = self._note("unfill", server, heal_after_s, target)
        disk.fill(process)
        observed = {"disk_is_full": disk.is_full(process), "server_ended": False}
        fault = self._noted(
            "disk-full",
            server,
            heal_after_s,
            note,
            observed,
            lambda: not disk.is_full(self.lab.state.server(server).process) and self._is_up(server),
        )
        fault._observe = lambda: {"server_ended": not process.is_alive()}
        return fault

    def cut_aof_tail(self, server: str, size_bytes: int) -> Fault:
        """Lose the last bytes of a Redis server's append-only file, as a power cut does: kill, cut, start.

        Observed: `old_pid`, `size_before_bytes`, `size_after_bytes`.  Raises LabUsage, StartFailed.
        """
        target = self._running(server)
        if target.kind != "redis":
            raise LabUsage(f"{server} has no append-only file", hint="name a redis server")
        note = self._note("start", server, HEAL_AFTER_S * 4)
        target.process.kill()
        collect(target.process)
        path = _newest_aof(Path(target.data_dir))
        before = path.stat().st_size
        os.truncate(path, max(0, before - size_bytes))
        self.lab.start_server(server)
        heals.take(self.lab.folder, note)
        observed = {"old_pid": target.pid, "size_before_bytes": before, "size_after_bytes": max(0, before - size_bytes)}
        return Fault("cut-aof-tail", server, None, observed)

    def trim_stream(self, key: str, *, keep_records: int = 0) -> Fault:
        """XTRIM a key to its last `keep_records`.

        Observed: `removed_records`, `first_before`, `first_after`.  Raises LabUsage, LabError.
        """
        with self.lab.client_of_key(key) as client:
            first_before = _first_id(client, key)
            removed = int(client.xtrim(key, maxlen=keep_records, approximate=False))
            observed = {"removed_records": removed, "first_before": first_before, "first_after": _first_id(client, key)}
        return Fault("trim", key, None, observed)

    def trim_topic(self, topic: str, partition: int = 0, *, before: int | None = None) -> Fault:
        """DeleteRecords below an offset, or all.

        Observed: `removed_offsets`, `first_before`, `first_after`.  Raises LabUsage, LabError.
        """
        self.lab.admin.partition(topic, partition)
        first, after = self.lab.admin.ends(topic, partition)
        if before is not None and not 0 <= before <= after:
            raise LabUsage(f"{topic}/{partition} has no offset {before}", hint=f"from {first} to {after}")
        now_first = self.lab.admin.delete_records(topic, partition, after if before is None else before)
        observed = {"removed_offsets": now_first - first, "first_before": first, "first_after": now_first}
        return Fault("trim", f"{topic}/{partition}", None, observed)

    def recreate_topic(self, topic: str) -> Fault:
        """Delete a topic and create it anew with the same partitions and settings, if need be by the watchdog.

        Observed: `old_id`, `new_id`.  Raises LabError.
        """
        admin = self.lab.admin
        described = admin.describe(topic)
        settings = admin.configs_set(topic)
        old_id = admin.topic_id(topic)
        partitions = described.partitions
        shape = heals.TopicShape(partitions=len(partitions), replicas=len(partitions[0].replicas), settings=settings)
        note = self._note("create", topic, _RECREATE_S, topic=shape)
        admin.delete_topic(topic)
        admin.create_topic(topic, shape.partitions, shape.replicas, shape.settings)
        heals.take(self.lab.folder, note)
        return Fault("recreate", topic, None, {"old_id": old_id, "new_id": admin.topic_id(topic)})

    def recreate_key(self, key: str) -> Fault:
        """Delete a stream key and create it anew, empty.

        Observed: `removed_records`.  Raises LabUsage, LabError.
        """
        with self.lab.client_of_key(key) as client:
            removed = int(client.xlen(key))
            client.delete(key)
            client.xgroup_create(key, "crossfade-lab", id="0", mkstream=True)
            client.xgroup_destroy(key, "crossfade-lab")
        return Fault("recreate", key, None, {"removed_records": removed})

    # -- leaders

    def move_leader(self, topic: str, partition: int = 0, *, to: str | None = None) -> Fault:
        """Hand a partition to another in-sync replica without any crash.

        Observed: `old_leader`, `new_leader`, `leader_after_s`.  Raises LabUsage, LabError.
        """
        from crossfade.lab import reassign

        found = self.lab.admin.partition(topic, partition)
        old = self.lab.kafka_leader(topic, partition)
        others = [node.id for node in found.isr if f"kafka-{node.id}" != old]
        wanted = others[0] if to is None and others else self.lab.state.server(to).node_id if to else -1
        if wanted not in others:
            raise LabUsage(f"{to or 'no other broker'} is not an in-sync follower of {topic}/{partition}: {others}")
        began = time.monotonic()
        replicas = [wanted, *(node.id for node in found.replicas if node.id != wanted)]
        reassign.set_replicas(self.lab, topic, partition, replicas)
        self.lab.admin.elect_preferred(topic, partition)
        name = f"kafka-{wanted}"
        self._await_leader(topic, partition, lambda leader: leader == name)
        observed = {"old_leader": old, "new_leader": name}
        took_s = round(time.monotonic() - began, 2)
        return Fault("move-leader", f"{topic}/{partition}", None, observed | {"leader_after_s": took_s})

    # -- shared steps

    def _running(self, server: str) -> Server:
        found = self.lab.state.server(server)
        if not found.is_alive:
            raise LabError(f"{server} does not run", hint="start it, or wait until an earlier fault has healed")
        return found

    def _is_up(self, server: str) -> bool:
        return self.lab.server_answers(server)

    def _note(
        self,
        kind: str,
        subject: str,
        heal_after_s: float,
        target: Server | None = None,
        topic: heals.TopicShape | None = None,
    ) -> heals.Note:
        if not 0 < heal_after_s <= HEAL_AFTER_S_MAX:
            raise LabUsage(
                f"heal after {heal_after_s} s is not possible", hint=f"more than 0, at most {HEAL_AFTER_S_MAX}"
            )
        self.lab.ensure_watchdog()
        note = heals.Note(kind=kind, subject=subject, deadline=time.monotonic() + heal_after_s, topic=topic)
        if target is not None:
            note.pid, note.started_ticks = target.pid, target.started_ticks
        return heals.leave(self.lab.folder, note)

    def _noted(
        self,
        kind: str,
        subject: str,
        heal_after_s: float,
        note: heals.Note,
        observed: dict[str, Any],
        is_healed: Callable[[], bool],
    ) -> Fault:
        def end() -> None:
            if heals.take(self.lab.folder, note):
                heals.heal(self.lab.folder, note)

        return Fault(kind, subject, heal_after_s, observed, _heal=end, _is_healed=is_healed)

    def _link(self, link: str, mode: Mode, heal_after_s: float, delay_ms: float = 0.0) -> Fault:
        if not 0 < heal_after_s <= HEAL_AFTER_S_MAX:
            raise LabUsage(
                f"heal after {heal_after_s} s is not possible", hint=f"more than 0, at most {HEAL_AFTER_S_MAX}"
            )
        name = self.lab.state.link(link).name
        before = self._link_stats(name)
        request = {"op": "set", "link": name, "mode": mode.value, "delay_ms": delay_ms, "deadline_s": heal_after_s}
        after = self.lab.ask_proxy(request)
        if after["mode"] != mode.value:
            raise LabError(f"link {name} is {after['mode']}, not {mode.value}")

        def observe() -> dict[str, Any]:
            now = self._link_stats(name)
            return {
                "connections_reset": now["reset"] - before["reset"],
                "bytes_held": now["held_bytes"],
                "bytes_held_max": now["held_bytes_max"] if mode in _HOLDING else 0,
                "bytes_dropped": now["dropped_bytes"] - before["dropped_bytes"],
            }

        def end() -> None:
            if self._link_stats(name)["mode"] == mode.value:
                self.lab.ask_proxy({"op": "set", "link": name, "mode": Mode.PASS.value})

        fault = Fault(
            mode.value,
            name,
            heal_after_s,
            _observe=observe,
            _heal=end,
            _is_healed=lambda: self._link_stats(name)["mode"] != mode.value,
        )
        fault.observe()
        return fault

    def _link_stats(self, name: str) -> dict[str, Any]:
        links: list[dict[str, Any]] = self.lab.ask_proxy({"op": "stats"})["links"]
        return next(link for link in links if link["link"] == name)

    def _await_leader(self, topic: str, partition: int, wanted: Callable[[str], bool]) -> str:
        deadline = time.monotonic() + _EFFECT_S
        why = ""
        while time.monotonic() < deadline:
            try:
                leader = self.lab.admin.leaders(topic).get(partition, -1)
            except LabError as error:  # the client asked the broker that has just been killed: the next one knows
                leader, why = -1, f": {error.message}"
            if leader >= 0 and wanted(f"kafka-{leader}"):
                return f"kafka-{leader}"
            time.sleep(0.1)
        raise LabError(f"{topic}/{partition} has no new leader after {_EFFECT_S:.0f} s{why}")


_HOLDING = (Mode.HOLD_REPLIES, Mode.HOLD_REQUESTS, Mode.DELAY)


def _newest_aof(data_dir: Path) -> Path:
    found = sorted(
        (data_dir / "appendonlydir").glob("*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]), reverse=True
    )
    if not found:
        raise LabError(f"no append-only file in {data_dir}")
    return found[0]


def _first_id(client: Any, key: str) -> str:
    entries = client.xrange(key, count=1)
    return entries[0][0].decode() if entries else ""
