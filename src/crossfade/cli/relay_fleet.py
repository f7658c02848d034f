"""The relays of one process: opens each route, runs it, and opens it anew when lanes came that it does not know.

Hides that a route learns its lanes when it is opened, and only then: whatever changes them ends in the same way as
every other trouble, with a new beginning from the markers. Lanes that came after the route was started are started
here, from their first record, loudly: everything in them is new. Called by `crossfade relay run`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import structlog

from .. import wiring
from ..brokers.protocol import From, Start
from ..config import Config
from ..errors import BrokerError, CrossfadeError, Kind, UsageError
from ..relay.beginning import start_lanes
from ..relay.copier import Copier
from ..relay.documents import OPENING, STOPPED, Desired, Report
from ..relay.reporter import Metrics, make_report, wall_clock
from ..relay.service import RelayService
from ..wiring import OpenRoute

#: between two tries to open a route whose lanes have changed
_PAUSE_S_MIN, _PAUSE_S_MAX = 0.25, 2.0
#: between two heartbeats of a route that is being opened
_TELL_EVERY_S = 1.0
#: of a graceful stop: for letting go of a route that is being opened, and as much for the last heartbeat
_STOP_S = 1.0


class Fleet:
    """One service per route; `copiers` always holds the present ones."""

    def __init__(
        self, config: Config, names: list[str], instance: str, shard: tuple[int, int] | None, *, start_first: bool
    ) -> None:
        self._config, self.names, self._instance, self._shard = config, names, instance, shard
        self._start_first = start_first
        self._stopping = asyncio.Event()
        #: why a route is not open yet, by its number
        self._waiting_for: dict[int, str] = {}
        self._stacks = [contextlib.AsyncExitStack() for _ in names]
        self._services: list[RelayService] = []
        self.copiers: list[Copier] = []
        self.metrics = Metrics(self.copiers)

    async def open(self) -> None:
        """Open all routes. Raises UsageError, GuaranteeRefused, Unreachable, AccessRefused."""
        for at in range(len(self.names)):
            service = await self._open(at, None, start_first=self._start_first)
            self._services.append(service)
            self.copiers.append(service.copier)
            self.metrics.follow(service.copier)

    async def run(self) -> None:
        """Copy until `stop()`. Raises the error that ended a route."""
        async with asyncio.TaskGroup() as group:
            for at in range(len(self.names)):
                group.create_task(self._run(at))

    def stop(self) -> None:
        """Finish the appends under way and end."""
        self._stopping.set()
        for service in self._services:
            service.stop()

    async def close(self) -> None:
        """Let go of all brokers."""
        for stack in self._stacks:
            await stack.aclose()

    async def _run(self, at: int) -> None:
        while True:
            service = self._services[at]
            await service.run()
            if not service.has_new_lanes or self._stopping.is_set():
                return
            structlog.get_logger().info("route opened anew", route=self.names[at], instance=self._instance)
            await self._stacks[at].aclose()
            again = await self._until_stopped(at, self._open_again(at, service.copier))
            if again is None:
                return
            self._services[at], self.copiers[at] = again, again.copier
            self.metrics.follow(again.copier)
            if self._stopping.is_set():
                again.stop()

    async def _until_stopped(self, at: int, opening: Coroutine[Any, Any, RelayService]) -> RelayService | None:
        """What `opening` gives, None = stopped before.

        The board is told that the route is being opened meanwhile, and at an end without a service that the process
        has stopped.
        """
        telling = asyncio.create_task(self._tell_opening(at))
        opened = asyncio.create_task(opening)
        stopped = asyncio.create_task(self._stopping.wait())
        again: RelayService | None = None
        try:
            await asyncio.wait([opened, stopped], return_when=asyncio.FIRST_COMPLETED)
            if opened.done():
                again = opened.result()
            return again
        finally:
            for task in (opened, stopped, telling):
                task.cancel()
            await asyncio.wait([opened, stopped, telling], timeout=_STOP_S)
            if again is None:
                await self._say_stopped(at)

    async def _open_again(self, at: int, before: Copier) -> RelayService:
        """Open a route whose lanes have changed, however long troubles that pass hinder it. Raises as `open` what is
        none."""
        pause_s = _PAUSE_S_MIN
        while True:
            self._stacks[at] = contextlib.AsyncExitStack()
            try:
                # What has no beginning now was forgotten meanwhile (`uninstall`): nothing to start on one's own.
                return await self._open(at, before, start_first=False)
            except CrossfadeError as error:
                await self._stacks[at].aclose()
                if not _passes(error):
                    raise
                self._waiting_for[at] = error.message
                structlog.get_logger().warning(
                    "route cannot be opened",
                    route=self.names[at],
                    reason=error.message,
                    hint=error.hint,
                    again_in_s=pause_s,
                )
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_S_MAX)

    async def _tell_opening(self, at: int) -> None:
        """Until cancelled: a route that is being opened is alive. No supervisor need end it, and nobody may uninstall
        under it."""
        self._waiting_for[at] = ""
        while True:
            self.copiers[at].progress_s = asyncio.get_running_loop().time()
            await asyncio.sleep(_TELL_EVERY_S)
            with contextlib.suppress(BrokerError, UsageError):
                async with wiring.open_board(self._config, self.names[at]) as board:
                    while True:
                        self.copiers[at].progress_s = asyncio.get_running_loop().time()
                        await board.report(self._report(at, OPENING, self._waiting_for[at]))
                        await asyncio.sleep(_TELL_EVERY_S)

    async def _say_stopped(self, at: int) -> None:
        with contextlib.suppress(BrokerError, UsageError, TimeoutError):
            async with asyncio.timeout(_STOP_S), wiring.open_board(self._config, self.names[at]) as board:
                await board.report(self._report(at, STOPPED))

    def _report(self, at: int, state: str, reason: str = "") -> Report:
        report = make_report(self.copiers[at], wall_clock())
        report.state, report.reason = state, reason
        return report

    async def _open(self, at: int, before: Copier | None, *, start_first: bool) -> RelayService:
        """`before`: that of a route which is opened anew; its alarms are still told, its wishes kept to."""
        opened = await self._stacks[at].enter_async_context(
            wiring.open_route(self._config, self.names[at], shard=self._shard, instance=self._instance)
        )
        if start_first:
            missing = set(range(opened.route.source_lanes)) - await opened.board.started() - set(opened.new_lanes)
            if missing:
                await start_lanes(
                    opened.route, opened.source, opened.target, opened.board, opened.start, sorted(missing)
                )
        copier = Copier(
            opened.route,
            opened.source,
            opened.target,
            opened.mapping,
            opened.board,
            opened.limits,
            instance=self._instance,
            shard=self._shard,
            unowned=opened.unowned,
        )
        # Before anything is read: the service, once it runs, may hear from the board too late for that.
        wished = await opened.board.desired_if_any()
        kept, alarms = (before.desired, before.alarms) if before is not None else (Desired(), [])
        await copier.obey(kept if wished is None else wished)
        copier.alarms = [*alarms, *await follow_new_lanes(opened)][-100:]
        return RelayService(copier, opened.assignment(), waits=before is not None)


def _passes(error: CrossfadeError) -> bool:
    """Also a hole in the source's lanes: many producers create them in any order."""
    return error.kind is not Kind.HALT or type(error) is UsageError


async def follow_new_lanes(opened: OpenRoute) -> list[str]:
    """Start lanes that came after the route was started, at their first record; what to tell about it.

    Raises as `start_lanes`.
    """
    if not opened.new_lanes:
        return []
    log = structlog.get_logger().bind(route=opened.route.name)
    names = ", ".join(opened.source.lane_name(lane) for lane in opened.new_lanes)
    await start_lanes(
        opened.route, opened.source, opened.target, opened.board, Start(From.EARLIEST), list(opened.new_lanes)
    )
    alarm = f"{len(opened.new_lanes)} new lanes of {opened.source.name} are copied from their beginning: {names}"
    log.warning("new lanes followed", lanes=names, says=alarm)
    return [alarm]
