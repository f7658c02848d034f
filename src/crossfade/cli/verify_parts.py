"""An audit whose lanes are shared by several processes: Python compares on one core each.

Hides the workers. They are forked before this process has any thread, so that they have every module and the
configuration that was read (the file may be another by now), and begin at once. Each opens the brokers itself and sends
its progress and its report back over a socket. Whatever ends this process ends all. A worker whose audit is given up is
told so by a signal, and killed where it does not heed it: then the next audit has one less. Lanes are independent, so
reports are simply put together. `main` is a worker. Called by `verify`, `verify_run`.
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
from collections.abc import Callable, Coroutine, Sequence
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
#: tells a worker to give up what it audits, and how long it has for that
_GIVE_UP = signal.SIGUSR1
_GIVE_UP_S = 2.0


class _ParentGone(Exception):
    """Nobody reads what a worker sends."""


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
        #: why there are fewer than was asked for
        self.shortage: OSError | None = None

    def __enter__(self) -> Self:
        _load(self._config)
        try:
            for _ in range(self._count):
                self._fork()
        except OSError as error:  # a limit of processes or of open files
            self.shortage = error
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
            try:
                pid = os.fork()
            except OSError:
                here.close()
                raise
            if not pid:
                for other in [here, *(worker.socket for worker in self._idle)]:
                    other.close()  # a worker notices the end of this process by the end of its socket
                main(self._config, there)
            self._idle.append(_Worker(pid, here))

    async def audit(self, part: Part, hear: Callable[[_Told], None]) -> AuditReport:
        """Have a part audited. Raises what the audit raises; IndexError where all have something to do."""
        worker = self._idle.pop()
        is_busy = True
        try:
            reader, writer = await asyncio.open_connection(sock=worker.socket.dup())
            try:
                writer.write(_packed(part))
                answer = asyncio.ensure_future(_answer(reader, hear))
                try:
                    kind, body = await asyncio.shield(answer)  # cancelled, it might lose a part of a message
                except asyncio.CancelledError:
                    os.kill(worker.pid, _GIVE_UP)
                    with suppress(CrossfadeError, TimeoutError):
                        await asyncio.wait_for(answer, _GIVE_UP_S)
                        is_busy = False
                    raise
                is_busy = False
            finally:
                writer.close()
        finally:
            if is_busy:
                _end(worker)
            else:
                self._idle.append(worker)
        if kind == "error":
            raise body
        report: AuditReport = body
        return report


async def _answer(reader: asyncio.StreamReader, hear: Callable[[_Told], None]) -> tuple[str, Any]:
    """What becomes of a part, its progress heard. Raises CrossfadeError where the worker ends."""
    while True:
        try:
            (size,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            kind, body = pickle.loads(await reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise CrossfadeError(
                "a process that audits a part of the lanes ended early", hint="run it again with --processes 1"
            ) from None
        if kind != "progress":
            return kind, body
        hear(body)


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

    started_s = time.monotonic()
    heard = _Heard(1 + len(others), tell)

    async def audit_here() -> AuditReport:
        report = await audit_opened(opened, mine, scope, state, heard.here, heard.parts)
        heard.done_here(report)
        return report

    try:
        async with asyncio.TaskGroup() as group:
            there = [group.create_task(workers.audit(part, partial(heard.there, at))) for at, part in enumerate(others)]
            here = group.create_task(audit_here())
    except BaseExceptionGroup as errors:
        raise first_of(errors) from None
    return _together([here.result(), *(task.result() for task in there)], time.monotonic() - started_s)


class _Heard:
    """How far each part is, told on as the progress of all."""

    def __init__(self, parts: int, tell: Callable[[Progress], None]) -> None:
        self.parts = parts
        self._tell = tell
        self._started_s = time.monotonic()
        self._here = _Told()
        self._there = [_Told() for _ in range(parts - 1)]
        self._lanes_here: Callable[[], dict[str, Any]] = dict

    def here(self, now: Progress) -> None:
        """Of the lanes that this process audits."""
        self._here = _Told(now.records, now.records_total, now.differences)
        self._lanes_here = lambda: now.state()["lanes"]
        self._tell_all()

    def done_here(self, report: AuditReport) -> None:
        """The others may go on for long."""
        total = max(self._here.records_total, report.matched)
        self._here = _Told(report.matched, total, self._here.differences)
        self._lanes_here = lambda: report.state.get("lanes", {})

    def there(self, at: int, now: _Told) -> None:
        """Of the lanes of a worker, which tells their state now and then only."""
        self._there[at] = now if now.lanes else replace(now, lanes=self._there[at].lanes)
        self._tell_all()

    def _tell_all(self) -> None:
        from ..verify.audit import STATE_VERSION
        from ..verify.progress import Progress

        def state() -> dict[str, Any]:
            lanes = {lane: kept for one in self._there for lane, kept in one.lanes.items()}
            return {"version": STATE_VERSION, "lanes": lanes | self._lanes_here()}

        told = [self._here, *self._there]
        records, total = sum(one.records for one in told), sum(one.records_total for one in told)
        elapsed_s = time.monotonic() - self._started_s
        rate = records / max(elapsed_s, 1e-9)
        eta_s = max(0, total - records) / rate if rate else 0.0
        differences = sum(one.differences for one in told)
        self._tell(Progress(records, total, differences, elapsed_s, rate, eta_s, state))


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
        signal.signal(_GIVE_UP, signal.SIG_IGN)
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, 0)
        os.dup2(nowhere, 1)  # only the parent has something to print
        with there.makefile("rb") as wishes, there.makefile("wb") as answers:
            while length := wishes.read(_LENGTH.size):
                part: Part = pickle.loads(wishes.read(*_LENGTH.unpack(length)))
                _send(answers, *_outcome(config, part, answers))
    except (_ParentGone, ConnectionError, KeyboardInterrupt):
        pass  # the parent is gone, or Ctrl-C came before it was ignored
    except BaseException:  # noqa: BLE001 - the stack above is the parent's work, and this must not return into it
        traceback.print_exc()
    finally:
        os._exit(0)


def _outcome(config: Config, part: Part, answers: BinaryIO) -> tuple[str, Any]:
    try:
        return "report", asyncio.run(_unless_given_up(audit_part(config, part, answers)))
    except _ParentGone:
        raise
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - it is raised where somebody can tell it
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - whatever it is made of
            return "error", CrossfadeError(f"unexpected {type(error).__name__}: {error}")
        return "error", error


async def _unless_given_up(audit: Coroutine[Any, Any, AuditReport]) -> AuditReport:
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(audit)
    loop.add_signal_handler(_GIVE_UP, task.cancel)
    try:
        return await task
    finally:
        loop.remove_signal_handler(_GIVE_UP)
        signal.signal(_GIVE_UP, signal.SIG_IGN)  # asyncio leaves the default, which would end the process


def _packed(message: Any) -> bytes:
    body = pickle.dumps(message)
    return _LENGTH.pack(len(body)) + body


def _send(pipe: BinaryIO, kind: str, body: Any) -> None:
    try:
        pipe.write(_packed((kind, body)))
        pipe.flush()
    except BrokenPipeError as error:
        raise _ParentGone from error


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
