"""One relay process: the copier of a route, with its assignment, heartbeat, desired state and source watch beside it.

Everything here stops together: the first task that fails ends the rest, and the error is the process's own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from ..brokers.protocol import Assignment, Listener, VersionConflict
from ..errors import BrokerError, Kind, UsageError
from ..model.record import Lane
from .copier import Copier
from .reporter import make_report, wall_clock

_HEARTBEAT_S = 1.0
_STOP_S = 4.5  # of the five seconds that a graceful stop may take


class ByHand:
    """The assignment of `--shard i/n`: the lanes whose number leaves i when divided by n, for ever."""

    def __init__(self, lanes: int, shard: tuple[int, int]) -> None:
        self._lanes: frozenset[Lane] = frozenset(range(shard[0], lanes, shard[1]))

    async def run(self, listener: Listener) -> None:
        await listener.assigned(self._lanes, None)
        await asyncio.Event().wait()


class RelayService:
    """Runs one copier until `stop()`."""

    def __init__(self, copier: Copier, assignment: Assignment) -> None:
        self.copier = copier
        self._assignment = assignment
        #: it ended because lanes came that it does not know: the route is to be opened anew
        self.has_new_lanes = False
        self._log = structlog.get_logger().bind(route=copier.route.name, instance=copier.instance)

    def stop(self) -> None:
        """Finish the append under way, leave the group, end."""
        self.copier.stop()

    async def run(self) -> None:
        """Copy until stopped. Raises the error that ended it (kind HALT)."""
        copying = asyncio.create_task(self.copier.run(), name="copier")
        beside = [
            asyncio.create_task(self._assignment.run(self.copier), name="assignment"),
            asyncio.create_task(self._repeat(self._heartbeat, "heartbeat"), name="heartbeat"),
            asyncio.create_task(self._repeat(self._look_at_board, "board"), name="board"),
            asyncio.create_task(self._repeat(self._look_at_source, "source"), name="source"),
            asyncio.create_task(self._watch_lanes(), name="lanes"),
        ]
        try:
            done, _ = await asyncio.wait([copying, *beside], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self.copier.stop()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.gather(copying, return_exceptions=True), _STOP_S)
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self._say_goodbye()
            self._log.info("stopped", records=self.copier.records_total)

    async def _repeat(self, action: Callable[[], Awaitable[None]], what: str) -> None:
        """Do `action` about once a second; a broker that does not answer is logged once per outage."""
        failing = False
        while True:
            try:
                await action()
                failing = False
            except (BrokerError, VersionConflict) as error:
                if error.kind is Kind.HALT and not isinstance(error, VersionConflict):
                    raise
                if not failing:
                    self._log.warning("cannot reach the broker", what=what, reason=error.message, hint=error.hint)
                failing = True
            await asyncio.sleep(_HEARTBEAT_S)

    async def _watch_lanes(self) -> None:
        """Return when the route has lanes to copy that were not there when it was opened."""
        copier = self.copier
        told = ""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(copier.has_new_lanes.wait(), copier.limits.discover_s)
            try:
                if copier.has_new_lanes.is_set() or await self._has_grown():
                    self.has_new_lanes = True
                    return
                told = ""
            except (BrokerError, UsageError) as error:
                if told != error.message:
                    self._log.error("cannot look for new lanes", reason=error.message, hint=error.hint)
                    copier.alarms = [*copier.alarms[-99:], error.message]
                told = error.message

    async def _has_grown(self) -> bool:
        copier, route = self.copier, self.copier.route
        known = route.source_lanes + route.lanes_without_target
        found = await copier.source.count_lanes()
        if found > known:
            self._log.warning("new source lanes", stream=copier.source.name, lanes=found, known=known)
            return True
        if not route.lanes_without_target:
            return False
        lanes = await copier.target.count_lanes()
        if lanes > route.target_lanes:
            self._log.warning("new target lanes", stream=copier.target.name, lanes=lanes, known=route.target_lanes)
            return True
        return False

    async def _heartbeat(self) -> None:
        await self.copier.board.report(make_report(self.copier, wall_clock()))

    async def _look_at_board(self) -> None:
        await self.copier.obey(await self.copier.board.desired())

    async def _look_at_source(self) -> None:
        lanes = list(self.copier.lanes)
        if not lanes:
            return
        bounds = await self.copier.source.bounds(lanes)
        now_s = asyncio.get_running_loop().time()
        for lane, found in bounds.items():
            if lane in self.copier.lanes:
                self.copier.lanes[lane].look(found, now_s)

    async def _say_goodbye(self) -> None:
        report = make_report(self.copier, wall_clock())
        report.state = "stopped"
        with contextlib.suppress(BrokerError, TimeoutError):
            await asyncio.wait_for(self.copier.board.report(report), 1.0)
