"""An audit whose lanes are shared by several processes: Python compares on one core each.

Hides the workers. They are forked before this process has any thread, so that they have every module and the
configuration that was read (the file may be another by now), and begin at once. Each opens the brokers itself and sends
its progress and its report back over a socket. Whatever ends this process ends all; a worker whose audit did not come
to its end is killed, and the next audit has one less. Lanes are independent, so reports are simply put together. `main`
is a worker. Called by `verify`, `verify_run`.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, Self

from ..errors import CrossfadeError, first_of
from .verify_scope import SAVE_EVERY_S, Scope

if TYPE_CHECKING:
    from ..config import Config
    from ..verify.progress import Progress
    from ..verify.report import AuditReport
    from ..wiring import OpenRoute

_LENGTH = struct.Struct(">Q")


@dataclass(frozen=True)
class Part:
    """What one worker audits."""

    route: str
    lanes: list[int]
    #: how many processes there are
    parts: int
    scope: Scope
    state: Any
    is_kept: bool


@dataclass
class _Told:
    """The last that was heard of one part."""

    records: int = 0
    records_total: int = 0
    differences: int = 0
    lanes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Worker:
    """A forked process, and this end of its socket."""

    pid: int
    socket: socket.socket


class Workers:
    """Processes beside this one that audit what they are given, one part at a time. Use it in a `with` statement, from
    before anything starts a thread."""

    def __init__(self, config: Config, count: int) -> None:
        self._config = config
        self._count = count
        self._idle: list[_Worker] = []

    def __enter__(self) -> Self:
        _load(self._config)
        for _ in range(self._count):
            self._fork()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._idle:
            _end(self._idle.pop())

    def __len__(self) -> int:
        """How many have nothing to do."""
        return len(self._idle)

    def _fork(self) -> None:
        here, there = socket.socketpair()
        with there:
            pid = os.fork()
            if not pid:
                for other in [here, *(worker.socket for worker in self._idle)]:
                    other.close()  # a worker notices the end of this process by the end of its socket
                main(self._config, there)
            self._idle.append(_Worker(pid, here))

    async def audit(self, part: Part, hear: Callable[[_Told], None]) -> AuditReport:
        """Have a part audited. Raises what the audit raises; IndexError where all have something to do."""
        worker = self._idle.pop()
        has_answered = False
        try:
            reader, writer = await asyncio.open_connection(sock=worker.socket.dup())
            try:
                writer.write(_packed(part))
                while True:
                    kind, body = await _receive(reader)
                    has_answered = kind != "progress"
                    if kind == "report":
                        report: AuditReport = body
                        return report
                    if has_answered:
                        raise body
                    hear(body)
            finally:
                writer.close()
        finally:
            if has_answered:
                self._idle.append(worker)
            else:
                _end(worker)


def _load(config: Config) -> None:
    """Import what an audit needs, once for all workers."""
    from .. import wiring
    from ..verify import audit, by_key, extent, one_way  # noqa: F401

    wiring.load_adapters(config)


def _end(worker: _Worker) -> None:
    """An idle worker has nothing to lose, and one that is busy has nobody to tell."""
    worker.socket.close()
    with suppress(ProcessLookupError):
        os.kill(worker.pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(worker.pid, 0)


async def audit_in_parts(
    opened: OpenRoute,
    mine: list[int],
    others: Sequence[Part],
    workers: Workers,
    scope: Scope,
    state: Any,
    tell: Callable[[Progress], None],
) -> AuditReport:
    """Audit the lanes `mine` here and each of `others` by a worker. Raises what any of them raises."""
    from .verify_run import audit_opened

    told = [_Told() for _ in range(1 + len(others))]
    started_s = time.monotonic()

    def tell_all(now: Progress) -> None:
        from ..verify.progress import Progress

        told[0] = _Told(now.records, now.records_total, now.differences)
        records, total = sum(one.records for one in told), sum(one.records_total for one in told)
        rate = records / max(time.monotonic() - started_s, 1e-9)
        eta_s = max(0, total - records) / rate if rate else 0.0

        def state_of_all() -> dict[str, Any]:
            mine_now = now.state()
            return {**mine_now, "lanes": {k: v for one in told for k, v in one.lanes.items()} | mine_now["lanes"]}

        differences = sum(one.differences for one in told)
        tell(Progress(records, total, differences, time.monotonic() - started_s, rate, eta_s, state_of_all))

    def hear(at: int, now: _Told) -> None:
        told[at] = now if now.lanes else replace(now, lanes=told[at].lanes)  # it tells its lanes now and then only

    try:
        async with asyncio.TaskGroup() as group:
            there = [group.create_task(workers.audit(part, partial(hear, at))) for at, part in enumerate(others, 1)]
            here = group.create_task(audit_opened(opened, mine, scope, state, tell_all, len(told)))
    except BaseExceptionGroup as errors:
        raise first_of(errors) from None
    return _together([here.result(), *(task.result() for task in there)], time.monotonic() - started_s)


async def _receive(pipe: asyncio.StreamReader) -> tuple[str, Any]:
    try:
        (size,) = _LENGTH.unpack(await pipe.readexactly(_LENGTH.size))
        kind, body = pickle.loads(await pipe.readexactly(size))
        return kind, body
    except (asyncio.IncompleteReadError, ConnectionError):
        raise CrossfadeError(
            "a process that audits a part of the lanes ended early", hint="run it again with --processes 1"
        ) from None


def _together(reports: Sequence[AuditReport], seconds: float) -> AuditReport:
    """One report of all lanes."""
    first, *rest = reports
    before = sum(report.matched - report.records_per_s * report.seconds for report in reports)
    for report in rest:
        first.lanes |= report.lanes
        for kept in report.named.values():
            for named in kept:
                first.keep(named)
        if first.state:
            first.state["lanes"] |= report.state["lanes"]
    first.seconds = seconds
    first.records_per_s = (first.matched - before) / max(seconds, 1e-9)
    return first


# --------------------------------------------------------------------------------------------------------- a worker


def main(config: Config, there: socket.socket) -> NoReturn:
    """Audit what comes over the socket, part by part, and send what becomes of each; never returns."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)  # only the parent has something to print
        with there.makefile("rb") as wishes, there.makefile("wb") as answers:
            while length := wishes.read(_LENGTH.size):
                part: Part = pickle.loads(wishes.read(*_LENGTH.unpack(length)))
                try:
                    answer: tuple[str, Any] = ("report", asyncio.run(audit_part(config, part, answers)))
                except BrokenPipeError:
                    break  # the parent is gone
                except Exception as error:  # noqa: BLE001 - it is raised where somebody can tell it
                    answer = ("error", error)
                _send(answers, *answer)
    except (ConnectionError, KeyboardInterrupt):
        pass  # the parent is gone, or Ctrl-C came before it was ignored
    except BaseException:  # noqa: BLE001 - the stack above is the parent's work, and this must not return into it
        traceback.print_exc()
    finally:
        os._exit(0)


def _packed(message: Any) -> bytes:
    body = pickle.dumps(message)
    return _LENGTH.pack(len(body)) + body


def _send(pipe: BinaryIO, kind: str, body: Any) -> None:
    pipe.write(_packed((kind, body)))
    pipe.flush()


async def audit_part(config: Config, part: Part, pipe: BinaryIO) -> AuditReport:
    """Audit a part in this process, and send its progress. Raises UsageError, Unreachable, AccessRefused."""
    from .. import wiring
    from .verify_run import audit_opened

    kept_s = time.monotonic()

    def tell(now: Progress) -> None:
        nonlocal kept_s
        told = _Told(now.records, now.records_total, now.differences)
        if part.is_kept and time.monotonic() - kept_s > SAVE_EVERY_S:
            kept_s, told.lanes = time.monotonic(), now.state()["lanes"]
        _send(pipe, "progress", told)

    async with wiring.open_route(config, part.route, instance="verify", copies=False) as opened:
        return await audit_opened(opened, part.lanes, part.scope, part.state, tell, part.parts)
