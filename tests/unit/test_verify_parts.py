"""The processes that audit a part of the lanes: what they know, what they tell, and how they end."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from crossfade import wiring
from crossfade.cli import verify_parts, verify_run
from crossfade.cli.output import Output
from crossfade.cli.verify_parts import Part, Workers, audit_in_parts
from crossfade.cli.verify_scope import Scope
from crossfade.config import Config
from crossfade.errors import CrossfadeError, UsageError
from crossfade.lab.process import identify, wait_until
from crossfade.verify.progress import Progress
from crossfade.verify.report import AuditReport

CONFIG = """\
version: 1
brokers:
  old: {kind: redis, url: "redis://127.0.0.1:1", username: app, password: "${env:PARTS_PASSWORD}"}
  new: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:1", sasl.password: "${file:password}"}}
streams:
  messages:
    old: {lanes: "msg:stream:<lane>", count: 16}
    new: {topic: messages.v1}
    mapping: lossless
    from: {time: 2026-01-31T12:00:00Z}
routes:
  forward: {id: idforward, stream: messages, source: old, target: new}
"""


@pytest.fixture(name="config")
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARTS_PASSWORD", "from-the-environment")
    Path("password").write_text("from-a-file")
    Path("crossfade.yaml").write_text(CONFIG)
    return Output(config_path=Path("crossfade.yaml")).config()


@pytest.fixture(name="opened")
def open_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker opens, in the worker: the topic that its configuration names is what the report says."""

    @asynccontextmanager
    async def open_route(config: Config, name: str, **_: object) -> AsyncIterator[str]:
        yield config.streams["messages"].sides["new"].topic  # type: ignore[union-attr]

    async def audit_opened(opened: str, lanes: list[int], *_: object) -> AuditReport:
        if lanes == [66]:
            os.kill(os.getpid(), signal.SIGKILL)
        if lanes == [13]:
            raise UsageError("lane 13", hint="leave it out")
        return AuditReport(opened, str(os.getpid()), {})

    monkeypatch.setattr(wiring, "open_route", open_route)
    monkeypatch.setattr(verify_run, "audit_opened", audit_opened)


def part_of(*lanes: int) -> Part:
    return Part("forward", list(lanes), 2, Scope(), None, is_kept=True)


def ignored(_: object) -> None: ...


@pytest.mark.usefixtures("opened")
async def test_a_worker_audits_part_after_part_with_what_the_parent_has_read(config: Config) -> None:
    with Workers(config, 1) as workers:
        Path("crossfade.yaml").write_text(CONFIG.replace("messages.v1", "messages.v2"))
        first, second = [await workers.audit(part_of(1), ignored) for _ in range(2)]
        assert first.source == second.source == "messages.v1"
        pid = int(first.target)
        assert pid == int(second.target) != os.getpid()
        assert len(workers) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.usefixtures("opened")
async def test_what_a_worker_raises_is_raised_here_and_it_goes_on(config: Config) -> None:
    with Workers(config, 1) as workers:
        with pytest.raises(UsageError, match="lane 13") as raised:
            await workers.audit(part_of(13), ignored)
        assert raised.value.hint == "leave it out"
        assert (await workers.audit(part_of(1), ignored)).source == "messages.v1"


@pytest.mark.usefixtures("opened")
async def test_a_worker_that_dies_is_told_and_not_used_again(config: Config) -> None:
    with Workers(config, 2) as workers:
        with pytest.raises(CrossfadeError, match="ended early"):
            await workers.audit(part_of(66), ignored)
        assert len(workers) == 1
        assert (await workers.audit(part_of(1), ignored)).source == "messages.v1"


@pytest.mark.parametrize("heeds", [True, False])
async def test_a_worker_whose_audit_is_given_up_is_free_again_or_killed(
    heeds: bool, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def open_route(*_: object, **__: object) -> AsyncIterator[None]:
        yield None

    async def audit_opened(*args: object) -> AuditReport:
        if args[1] == [2]:
            return AuditReport("second", "", {})
        tell = args[4]
        tell(Progress(os.getpid(), 0, 0, 0.0, 0.0, 0.0, dict))  # type: ignore[operator]
        if heeds:
            await asyncio.sleep(600)
        time.sleep(600)  # noqa: ASYNC251 - deaf on purpose
        raise AssertionError

    monkeypatch.setattr(wiring, "open_route", open_route)
    monkeypatch.setattr(verify_run, "audit_opened", audit_opened)
    monkeypatch.setattr(verify_parts, "_GIVE_UP_S", 60.0 if heeds else 0.2)
    pids: asyncio.Queue[int] = asyncio.Queue()
    with Workers(config, 1) as workers:
        audit = asyncio.ensure_future(workers.audit(part_of(1), lambda told: pids.put_nowait(told.records)))
        pid = await pids.get()
        audit.cancel()
        await asyncio.gather(audit, return_exceptions=True)
        assert audit.cancelled()
        assert len(workers) == heeds
        if heeds:
            assert (await workers.audit(part_of(2), ignored)).source == "second"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


class Unsendable(Exception):
    """Made with what pickling does not keep."""

    def __init__(self, *, needed: str) -> None:
        super().__init__(f"needs {needed}")


async def test_an_error_that_cannot_travel_is_told_in_words(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def open_route(*_: object, **__: object) -> AsyncIterator[None]:
        raise Unsendable(needed="a word")
        yield

    monkeypatch.setattr(wiring, "open_route", open_route)
    with Workers(config, 1) as workers:
        with pytest.raises(CrossfadeError, match="unexpected Unsendable: needs a word"):
            await workers.audit(part_of(1), ignored)
        assert len(workers) == 1


def test_fewer_workers_than_asked_for_are_enough(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    fork, left = os.fork, [1]

    def limited() -> int:
        if not left:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        left.pop()
        return fork()

    monkeypatch.setattr(os, "fork", limited)
    with Workers(config, 4) as workers:
        assert len(workers) == 1
        assert isinstance(workers.shortage, BlockingIOError)


def test_workers_end_with_their_parent(config: Config) -> None:
    """Also where it is killed: then nobody tells them."""
    here, there = os.pipe()
    parent = os.fork()
    if not parent:
        with Workers(config, 2) as workers:
            os.write(there, " ".join(str(worker.pid) for worker in workers._idle).encode())
            os.close(there)
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(there)
    with os.fdopen(here) as pids:
        workers_then = [int(pid) for pid in pids.read().split()]
    os.waitpid(parent, 0)
    assert len(workers_then) == 2
    assert wait_until(lambda: not any(identify(pid) for pid in workers_then), 30)


class Answers:
    """What `asyncio.open_connection` gives for a worker that has said these things."""

    def __init__(self, *messages: tuple[str, object]) -> None:
        pipe = io.BytesIO()
        for kind, body in messages:
            verify_parts._send(pipe, kind, body)
        self.reader = asyncio.StreamReader()
        self.reader.feed_data(pipe.getvalue())
        self.reader.feed_eof()
        self.have_ended = asyncio.Event()
        self.is_slow = False

    async def open(self, sock: socket.socket) -> tuple[asyncio.StreamReader, Answers]:
        sock.close()
        if self.is_slow:
            await asyncio.sleep(0.1)
        return self.reader, self

    def write(self, data: bytes) -> None: ...

    def close(self) -> None:
        self.have_ended.set()


@pytest.mark.parametrize("is_slow", [False, True])
async def test_what_a_part_told_of_its_lanes_is_kept_until_it_tells_more(
    is_slow: bool, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`is_slow`: also where it goes on after the lanes here are done."""
    told = verify_parts._Told
    answers = Answers(
        ("progress", told(records=5, lanes={"1": {"matched": 5}})),
        ("progress", told(records=9)),
        ("report", AuditReport("a", "b", {}, state={"version": 1, "lanes": {}})),
    )
    heard: list[dict[str, object]] = []

    async def audit_opened(*args: object) -> AuditReport:
        if answers.is_slow:
            return AuditReport("a", "b", {}, state={"version": 1, "lanes": {"0": {}}})
        await answers.have_ended.wait()
        args[4](Progress(1, 1, 0, 0.0, 0.0, 0.0, lambda: {"version": 1, "lanes": {"0": {}}}))  # type: ignore[operator]
        return AuditReport("a", "b", {}, state={"version": 1, "lanes": {"0": {}}})

    answers.is_slow = is_slow
    monkeypatch.setattr(verify_run, "audit_opened", audit_opened)
    with Workers(config, 1) as workers:
        monkeypatch.setattr(asyncio, "open_connection", answers.open)
        tell = lambda now: heard.append({"records": now.records, **now.state()})  # noqa: E731
        await audit_in_parts(None, [0], [part_of(1)], workers, Scope(), None, tell)  # type: ignore[arg-type]
    kept = {"version": 1, "lanes": {"0": {}, "1": {"matched": 5}}}
    assert heard[-1] == {"records": 9, **kept} if is_slow else heard[-1] == {"records": 10, **kept}
