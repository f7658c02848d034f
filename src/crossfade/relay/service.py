"""One relay process: the copier of a route, with its assignment, heartbeat, desired state and source watch beside it.

Everything here stops together: the first task that fails ends the rest, and the error is the process's own. The end has
one deadline, which no broker can hold up: what is not done by then is named in the log and left behind, as in a crash.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from ..brokers.protocol import Assignment, Listener, VersionConflict
from ..errors import BrokerError, Fenced, Kind, NameLost, Unreachable, UsageError
from ..model.record import Lane
from .copier import Copier
from .documents import OPENING, STOPPED, Desired, Report
from .reporter import make_report, wall_clock

_HEARTBEAT_S = 1.0
#: of the five seconds that a graceful stop may take; the rest is for closing connections and the interpreter
_STOP_S = 4.0
#: of these, kept for leaving the group and the last heartbeat
_LEAVE_S = 1.0
#: a process that has our name tells a heartbeat within this time
_NAME_LOOK_S = 5.0
_NAME_LOOKS_MIN = 5
#: so often a name is taken again that nobody else was seen to have, without this long a calm between
_NAME_TRIES, _NAME_CALM_S = 5, 60.0


class ByHand:
    """The assignment of `--shard i/n`: the lanes whose number leaves i when divided by n, for ever."""

    def __init__(self, lanes: int, shard: tuple[int, int]) -> None:
        self._lanes: frozenset[Lane] = frozenset(range(shard[0], lanes, shard[1]))

    async def run(self, listener: Listener) -> None:
        await listener.assigned(self._lanes, None)
        await asyncio.Event().wait()


class RelayService:
    """Runs one copier until `stop()`."""

    def __init__(self, copier: Copier, assignment: Assignment, *, waits: bool = False) -> None:
        """`waits`: brokers that are away when it joins are waited for, as it has run before."""
        self.copier = copier
        self._assignment = assignment
        self._waits = waits
        #: it ended because lanes came that it does not know: the route is to be opened anew
        self.has_new_lanes = False
        self._stopping = asyncio.Event()
        #: somebody else may have our name: whose heartbeats come under it is being looked at
        self._is_name_in_doubt = False
        #: that the last heartbeat could not be stored was told
        self._has_told_heartbeat = False
        #: that the board has no wishes any more was told
        self._has_kept_wishes = False
        #: loop time of the end's deadline
        self._ends_at_s: float | None = None
        self._log = structlog.get_logger().bind(route=copier.route.name, instance=copier.instance)

    def stop(self) -> None:
        """Finish the append under way, leave the group, end."""
        self._left_s()
        self._stopping.set()
        self.copier.stop()

    async def run(self) -> None:
        """Copy until stopped. Raises the error that ended it (kind HALT)."""
        copying = asyncio.create_task(self.copier.run(), name="read or append under way")
        assignment = asyncio.create_task(self._be_assigned(), name="leaving the group")
        beside = [
            asyncio.create_task(self._repeat(self._heartbeat, "heartbeat"), name="heartbeat"),
            asyncio.create_task(self._repeat(self._look_at_board, "board"), name="look at the board"),
            asyncio.create_task(self._repeat(self._look_at_source, "source"), name="look at the source"),
            asyncio.create_task(self._watch_lanes(), name="look for new lanes"),
        ]
        asked = asyncio.create_task(self._stopping.wait(), name="stop")
        first = asyncio.FIRST_COMPLETED
        try:
            done, _ = await asyncio.wait([asked, copying, assignment, *beside], return_when=first)
            if done == {asked}:
                done, _ = await asyncio.wait([copying, assignment], timeout=self._left_s(_LEAVE_S), return_when=first)
            for task in done:
                task.result()
        finally:
            asked.cancel()
            await self._end(copying, assignment, beside)

    def _left_s(self, kept_s: float = 0.0) -> float:
        """Seconds until `kept_s` before the end's deadline, which is set by the first call."""
        now_s = asyncio.get_running_loop().time()
        if self._ends_at_s is None:
            self._ends_at_s = now_s + _STOP_S
        return max(0.0, self._ends_at_s - kept_s - now_s)

    async def _end(
        self, copying: asyncio.Task[None], assignment: asyncio.Task[None], beside: list[asyncio.Task[None]]
    ) -> None:
        """Let the append under way end, then leave the group and say goodbye; cut off what takes too long."""
        self.copier.stop()
        await asyncio.wait([copying], timeout=self._left_s(_LEAVE_S))
        unfinished = [] if copying.done() else [copying.get_name()]
        ending = [copying, assignment, *beside]
        for task in ending:
            task.cancel()
        goodbye = asyncio.create_task(self._say_goodbye(beside), name="last heartbeat")
        done, pending = await asyncio.wait([*ending, goodbye], timeout=self._left_s())
        for task in done:
            if not task.cancelled():
                task.exception()  # what ended it has been told, or came of the end
        goodbye.cancel()
        unfinished += sorted({task.get_name() for task in pending} - set(unfinished))
        if unfinished:
            self._log.warning("stop cut short", unfinished=unfinished, hint="the next relay goes on from the markers")
        self._log.info("stopped", records=self.copier.records_total)

    async def _be_assigned(self) -> None:
        """Be handed lanes; a name that was lost to nobody is taken again. Raises as `Assignment.run`."""
        loop, tries, taken_s = asyncio.get_running_loop(), 0, -_NAME_CALM_S
        while True:
            try:
                await self._assignment.run(self.copier)
            except NameLost as error:
                tries = 1 if loop.time() - taken_s > _NAME_CALM_S else tries + 1
                self._log.warning("name lost", reason=error.message, looking_s=_NAME_LOOK_S)
                self._is_name_in_doubt = True
                if (other := await self._other_of_this_name()) is not None:
                    who = other.process or "of an older version"
                    raise Fenced(f"{error.message}: {who}", hint=error.hint) from error
                self._is_name_in_doubt = False
                if tries > _NAME_TRIES:
                    raise NameLost(
                        f"{error.message}, or so the group says, {tries} times; no heartbeat of it was seen",
                        hint="look for a process of this name that cannot write to the board (`crossfade doctor` from "
                        "its host), and for brokers whose answers get lost",
                    ) from error
                taken_s = loop.time()
                self._log.warning("nobody else has the name: it was an own try to join, whose answer was lost")
            except Unreachable as error:
                if not tries and not self._waits:
                    raise
                self._log.warning("cannot join again", reason=error.message, hint=error.hint)
                await asyncio.sleep(_HEARTBEAT_S)

    async def _other_of_this_name(self) -> Report | None:
        """The heartbeat of another process that goes on telling under this name, while this one tells nothing."""
        copier, loop = self.copier, asyncio.get_running_loop()
        first: Report | None = None
        until, looks = loop.time() + _NAME_LOOK_S, 0
        while loop.time() < until or looks < _NAME_LOOKS_MIN:
            await asyncio.sleep(_HEARTBEAT_S / 2)
            try:
                found = {report.instance: report for report in await copier.board.reports()}.get(copier.instance)
            except BrokerError as error:
                if error.kind is Kind.HALT:
                    raise
                self._log.warning("cannot see who has the name", reason=error.message, hint=error.hint)
                first, until, looks = None, loop.time() + _NAME_LOOK_S, 0
                continue
            looks += 1
            if found is None or found.process == copier.process or found.is_stopped:
                continue
            if first is not None and found.at_s != first.at_s:
                return found
            first = found
        return None

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
                    copier.tell_alarm(error.message)
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
        if self._is_name_in_doubt:
            return
        try:
            await self.copier.board.report(make_report(self.copier, wall_clock()))
            self._has_told_heartbeat = False
        except UsageError as error:  # what is copied does not hang on what is told of it
            if not self._has_told_heartbeat:
                self._log.warning("the heartbeat cannot be stored", reason=error.message, hint=error.hint)
            self._has_told_heartbeat = True

    async def _look_at_board(self) -> None:
        desired = await self.copier.board.desired_if_any()
        if desired is None and self.copier.desired != Desired():
            self._keep_wishes()
        self._has_kept_wishes = desired is None
        # Kept ones too: a lane may halt again at a loss that was accepted.
        await self.copier.obey(self.copier.desired if desired is None else desired)
        await self.copier.note_owned()

    def _keep_wishes(self) -> None:
        """Whoever deleted the board wished nothing by that: a lane that was paused is not copied for it."""
        if not self._has_kept_wishes:
            alarm = (
                f"route {self.copier.route.name}: what was wished of it (pauses, rate, accepted losses) is gone from "
                "the board; this process keeps to it until it ends or something is wished anew"
            )
            self._log.error("wishes are gone from the board", alarm=alarm)
            self.copier.tell_alarm(alarm)

    async def _look_at_source(self) -> None:
        lanes = list(self.copier.lanes)
        if not lanes:
            return
        now_s = asyncio.get_running_loop().time()  # of the question: the answer may be long on its way
        bounds = await self.copier.source.bounds(lanes)
        for lane, found in bounds.items():
            if lane in self.copier.lanes:
                self.copier.lanes[lane].look(found, now_s)

    async def _say_goodbye(self, beside: list[asyncio.Task[None]]) -> None:
        await asyncio.wait(beside)  # a heartbeat under way must not come after it
        if self._is_name_in_doubt:  # what is told under it may be another's
            return
        report = make_report(self.copier, wall_clock())
        report.state = OPENING if self.has_new_lanes and not self._stopping.is_set() else STOPPED
        with contextlib.suppress(BrokerError, UsageError):
            await self.copier.board.report(report)
