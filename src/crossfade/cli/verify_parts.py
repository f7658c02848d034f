"""An audit whose lanes are shared by several processes: Python compares on one core each.

Hides the children: each gets on stdin its lanes and the configuration that its parent has read (the file may be another
by now), opens the brokers itself and sends its progress and its report back on stdout. Whatever ends this process or
one of them ends all. Lanes are independent, so reports are simply put together. `main` is a child. Called by
`verify_run`.
"""

from __future__ import annotations

import asyncio
import io
import os
import pickle
import signal
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import CrossfadeError, first_of
from .runtime import keep_freed_memory
from .verify_scope import SAVE_EVERY_S, Scope

if TYPE_CHECKING:
    from ..config import Config
    from ..verify.progress import Progress
    from ..verify.report import AuditReport
    from ..wiring import OpenRoute

_LENGTH = struct.Struct(">Q")
#: what stands for `os.environ` in a packed part
_ENVIRON = "environ"
#: not `-m`: what a module that runs as `__main__` pickles, nobody else can read
_CHILD = f"from {__name__} import main; main()"


@dataclass(frozen=True)
class Part:
    """What one child audits."""

    config: Config
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


async def audit_in_parts(
    opened: OpenRoute,
    mine: list[int],
    others: Sequence[Part],
    scope: Scope,
    state: Any,
    tell: Callable[[Progress], None],
) -> AuditReport:
    """Audit the lanes `mine` here and each of `others` in a process of its own. Raises what any of them raises."""
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

    try:
        async with asyncio.TaskGroup() as group:
            here = group.create_task(audit_opened(opened, mine, scope, state, tell_all, len(told)))
            there = [group.create_task(_audit_there(part, told, at + 1)) for at, part in enumerate(others)]
    except BaseExceptionGroup as errors:
        raise first_of(errors) from None
    return _together([here.result(), *(task.result() for task in there)], time.monotonic() - started_s)


async def _audit_there(part: Part, told: list[_Told], at: int) -> AuditReport:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CHILD, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        if child.stdin is None or child.stdout is None:
            raise CrossfadeError("a part of the audit has no pipes")
        child.stdin.write(packed(part))
        child.stdin.close()
        while True:
            kind, body = await _receive(child.stdout)
            if kind == "progress":
                # it tells its lanes now and then only
                told[at] = body if body.lanes else replace(body, lanes=told[at].lanes)
            elif kind == "report":
                report: AuditReport = body
                return report
            else:
                raise body
    finally:
        with suppress(ProcessLookupError):
            child.kill()
        await child.wait()


class _Packer(pickle.Pickler):
    """Names the environment instead of copying it: a child has the same, and `${env:NAME}` refers to it."""

    def persistent_id(self, value: Any) -> str | None:
        return _ENVIRON if value is os.environ else None


class _Unpacker(pickle.Unpickler):
    def persistent_load(self, name: str) -> Any:
        if name != _ENVIRON:
            raise pickle.UnpicklingError(f"{name} is nothing that a part refers to")
        return os.environ


def packed(part: Part) -> bytes:
    """For the pipe to a child alone: a configuration may hold passwords."""
    to = io.BytesIO()
    _Packer(to).dump(part)
    return to.getvalue()


def unpacked(data: bytes) -> Part:
    """What `packed` made."""
    part: Part = _Unpacker(io.BytesIO(data)).load()
    return part


async def _receive(pipe: asyncio.StreamReader) -> tuple[str, Any]:
    try:
        (size,) = _LENGTH.unpack(await pipe.readexactly(_LENGTH.size))
        kind, body = pickle.loads(await pipe.readexactly(size))
        return kind, body
    except asyncio.IncompleteReadError:
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


# ---------------------------------------------------------------------------------------------------------- a child


def main() -> None:
    """Audit the part that stands on stdin, and send what becomes of it."""
    from ..telemetry import setup_logging

    keep_freed_memory(arenas=1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
    with os.fdopen(os.dup(1), "wb") as pipe:
        os.dup2(2, 1)  # nothing else may come between the messages
        setup_logging(json=False, level="warning")
        try:
            part = unpacked(sys.stdin.buffer.read())
            _send(pipe, "report", asyncio.run(audit_part(part, pipe)))
        except BrokenPipeError:
            return  # the parent is gone
        except Exception as error:  # noqa: BLE001 - it is raised where somebody can tell it
            _send(pipe, "error", error)


def _send(pipe: BinaryIO, kind: str, body: Any) -> None:
    packed = pickle.dumps((kind, body))
    pipe.write(_LENGTH.pack(len(packed)) + packed)
    pipe.flush()


async def audit_part(part: Part, pipe: BinaryIO) -> AuditReport:
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

    async with wiring.open_route(part.config, part.route, instance="verify", copies=False) as opened:
        return await audit_opened(opened, part.lanes, part.scope, part.state, tell, part.parts)
