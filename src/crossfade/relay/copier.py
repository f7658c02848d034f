"""The copying loop: claim -> read -> translate -> append, for the lanes that this process owns.

There is one recovery path. A crash, a timeout, a fence, a rebalance and an upgrade all end the claim; the loop claims
again and goes on from the markers that it finds in the target. Nothing is ever resumed from the process's own memory.
While one append is under way the next read is already being made (depth one); rows of a lane whose append failed are
thrown away with its place. What a claim makes of each lane is decided in `entering`, where a lane goes on behind an
accepted loss in `losses`. Run by `relay.service`, one for each route.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import secrets
import time
from collections.abc import Callable
from typing import NamedTuple

import structlog

from ..brokers.protocol import Appended, Claim, Log, Owner
from ..errors import CrossfadeError, Indeterminate, Kind, LaneError, SourceRegressed, invariant
from ..model.echo import bare, part_echoes
from ..model.mapping import Mapping
from ..model.position import Place
from ..model.record import Batch, Lane, Write
from ..model.route import Route
from ..telemetry import step
from .documents import Desired, RouteBoard
from .entering import claimed_lanes, cut_between_paths, lanes_without_target
from .fanout import plan_writes
from .lanes import LaneState, State
from .losses import is_answered, place_behind_loss
from .pace import BatchSize, Limits, RateLimit

_BACKOFF_MAX_S = 5.0
#: between two looks whether a lane may be read again
_PAUSE_S = 0.1
#: however low the rate: another one may be wished meanwhile, or the lanes may change hands
_PAUSE_MAX_S = 1.0
#: applications that delete do so all the time: told at most once in this time, for each lane
_DELETED_TOLD_S = 60.0
_ALARMS_MAX = 100
#: between two looks for idle lanes whose markers are due
_MARKERS_LOOK_S = 1.0
#: those of lanes that stay idle are written so long after a claim
_MARKERS_AFTER_CLAIM_S = 60.0


class _Taken(NamedTuple):
    """What one read gave for a lane, and where the echoes lay that are left out of it (None = no pair)."""

    state: LaneState
    batch: Batch
    passed: list[tuple[tuple[int, int], int, int]] | None


class Copier:
    """Copies the owned lanes of one route until told to stop. Implements `brokers.protocol.Listener`."""

    def __init__(
        self,
        route: Route,
        source: Log,
        target: Log,
        mapping: Mapping,
        board: RouteBoard,
        limits: Limits,
        *,
        instance: str,
        shard: tuple[int, int] | None = None,
        unowned: frozenset[Lane] = frozenset(),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.route = route
        self.source = source
        self.target = target
        self.mapping = mapping
        self.board = board
        self.limits = limits
        self.instance = instance
        #: who this is, beside others of the same name
        self.process = f"pid {os.getpid()} on {platform.node()} ({secrets.token_hex(4)})"
        self.shard = shard
        self.lanes: dict[Lane, LaneState] = {}
        self.claim: Claim | None = None
        self.desired = Desired()
        self.throttle = ""
        self.trouble = ""
        self.alarms: list[str] = []
        self.records_total = 0
        #: loop time of the last sign of progress: the beginning and the end of a claim, a read, an append, and each
        #: moment when nothing may be read, by somebody's wish
        self.progress_s = 0.0
        self.is_waiting_for_lanes = True
        #: the group handed out a lane that was not there when the route was opened
        self.has_new_lanes = asyncio.Event()
        #: called after each append with (lane state, records, oldest row's time in ms, wall clock in s)
        self.on_appended: Callable[[LaneState, int, int, float], None] | None = None
        self._clock = clock
        self._batch = BatchSize(limits, route.source_lanes)
        self._rate = RateLimit(limits.rate_records_per_s, 0.0)
        self._owned: frozenset[Lane] = frozenset()
        #: lanes that no process had owned when the route was opened: the board is told when one does
        self._unowned = unowned
        #: lanes that were lost, perhaps to nobody: an outage does that too. The next assignment tells
        self._missed: frozenset[Lane] = frozenset()
        self._token: object | None = None
        self._generation = 0
        self._ownership = asyncio.Event()
        self._appending = asyncio.Lock()
        #: lanes of the append under way, which stand further on than their markers say -> idle when it has arrived
        self._in_flight: dict[Lane, bool] = {}
        #: an append or a look at the end of the source went well since the start
        self._has_copied = False
        self._markers_looked_s = 0.0
        self._stop = asyncio.Event()
        self._log = structlog.get_logger().bind(route=route.name, instance=instance)

    # -- ownership (called by the Assignment) ------------------------------------------------------------------------

    async def assigned(self, lanes: frozenset[Lane], token: object | None) -> None:
        """Own exactly these lanes from now on. The claim is made anew: the handle belongs to this generation alone."""
        self._generation += 1
        beyond = {lane for lane in lanes if lane >= self.route.source_lanes}
        if any(lane >= self.route.source_lanes + self.route.lanes_without_target for lane in beyond):
            self.has_new_lanes.set()
        lanes -= beyond
        async with self._appending:  # an open append ends (or fails) under the old handle
            self._owned, self._missed, self._token = lanes, frozenset(), token
            self._ownership.set()
        self._log.info("lanes assigned", lanes=len(lanes), generation=self._generation)

    async def revoked(self, lanes: frozenset[Lane]) -> None:
        """Stop appending to `lanes`; returns when nothing is in flight."""
        self._generation += 1
        async with self._appending:
            self._owned -= lanes
        self._log.info("lanes revoked", lanes=len(lanes))

    async def lost(self, lanes: frozenset[Lane]) -> None:
        """Others own `lanes` already: the claim is dead, an append under way is refused by the broker."""
        self._generation += 1
        self._owned -= lanes
        self._missed |= lanes
        self._log.warning("lanes lost", lanes=len(lanes), hint="the process was too slow or cut off for a session")

    def stop(self) -> None:
        """End after the append under way."""
        self._stop.set()
        self._ownership.set()

    # -- the loop ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Claim and copy until `stop()`; raises what waiting cannot mend (kind HALT)."""
        failures = 0
        while not self._stop.is_set():
            self.is_waiting_for_lanes = True
            await self._ownership.wait()
            self.is_waiting_for_lanes, self.progress_s = False, self._now()
            if self._stop.is_set():
                return
            self._let_go()
            if not self._owned:
                self._ownership.clear()
                continue
            try:
                await self._claim_and_copy()
                failures = 0
            except CrossfadeError as error:
                if error.kind is Kind.HALT:
                    raise
                moved = self.claim is not None and self._has_copied
                failures = 1 if moved else failures + 1
                self.trouble = error.message
                pause_s = min(0.05 * 2 ** min(failures, 10), _BACKOFF_MAX_S)
                self._log.warning(
                    "claim ended", reason=error.message, error=type(error).__name__, hint=error.hint, again_in_s=pause_s
                )
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), pause_s)
            finally:
                self.claim = None

    def _let_go(self) -> None:
        """Lanes that others own now are theirs to tell about; so is, without any lane, what no target lane is for."""
        mine = self._owned | self._missed
        self.lanes = {
            lane: state
            for lane, state in self.lanes.items()
            if lane in mine or (mine and lane >= self.route.source_lanes)
        }

    async def _claim_and_copy(self) -> None:
        generation, owned = self._generation, self._owned
        paths = [path for lane in sorted(owned) for path in self.route.paths_of(lane)]
        owner = Owner(
            self.route.id,
            self.instance,
            self.route.source,
            shard=self.shard,
            token=self._token,
            paths=tuple(paths),
            pair=self.route.pair,
        )
        async with self._appending:
            step("relay.claim.before")
            claim = await self.target.claim(owner, paths)
            step("relay.claim.after")
        for alarm in claim.alarms:
            self._log.error("claim found and healed", alarm=alarm)
            self.tell_alarm(alarm)
        await self._enter(claim, owned)
        self.claim, self.trouble, self.progress_s = claim, "", self._now()
        self._log.info("claimed", epoch=claim.epoch, lanes=len(owned), claim=claim.claim_id)
        await self._copy(claim, generation)

    async def _enter(self, claim: Claim, owned: frozenset[Lane]) -> None:
        """Make the lane states anew from what the claim found; tell which of them cannot go on."""
        lanes = await claimed_lanes(self.route, self.source, self.board, claim, owned, self.lanes)
        for state in lanes.values():
            if state.error is not None:
                self._log.error("lane halted", **state.error.as_dict())
        waiting = lanes_without_target(self.route, self.source, self.target)
        for lane, state in waiting.items():
            known = self.lanes.get(lane)
            if state.error is not None and (known is None or known.error is None):
                self._log.error("lane halted", **state.error.as_dict())
                self.tell_alarm(state.error.message)
        for state in lanes.values():  # nobody knows how old their markers are
            state.marker_written_s = self._now() - self.limits.marker_keepalive_s + _MARKERS_AFTER_CLAIM_S
        self.lanes = lanes | waiting
        for state in self.lanes.values():
            if state.state is not State.HALTED:
                cut = await cut_between_paths(self.source, state)
                if cut is not None:
                    self._fail(state, cut)

    async def _copy(self, claim: Claim, generation: int) -> None:
        reading: asyncio.Task[list[Write]] | None = None
        may_read_on = True
        #: writes of the append before: to let go of so many objects takes a while, in which the target need not wait
        finished: list[Write] = []
        loop = asyncio.get_running_loop()

        def read_on() -> None:
            # Once a round: while an append is under way, its lanes must not go back to their markers a second time.
            nonlocal reading, may_read_on
            if may_read_on:
                may_read_on, reading = False, self._start_read()

        try:
            while not self._stop.is_set() and generation == self._generation:
                if reading is None:
                    may_read_on = True
                    read_on()
                    if reading is None:
                        await self._pause()
                        continue
                planned, reading = await reading, None
                may_read_on, self.progress_s = True, self._now()
                writes = self._still_due(planned)
                if not writes:
                    self._has_copied = True
                    continue
                if not self.source.reads_ahead:
                    read_on()
                    await asyncio.sleep(0)  # the request is on its way before anything else is done
                loop.call_soon(finished.clear)
                await self._append(claim, generation, writes, read_on)
                finished += writes
        finally:
            may_read_on = False  # a producer that was given up may still call
            if reading is not None:
                reading.cancel()
                with contextlib.suppress(asyncio.CancelledError, CrossfadeError):
                    await reading

    def _start_read(self) -> asyncio.Task[list[Write]] | None:
        """Begin to read all working lanes and to plan what it gives; None when none may be read now."""
        now_s = self._now()
        after: dict[Lane, Place] = {}
        for lane, state in self.lanes.items():
            if state.state is State.WAITING and now_s >= state.retry_at_s:
                state.revive()
            paused = self.desired.paused or lane in self.desired.paused_lanes
            if state.state is State.HALTED or state.state is State.WAITING:
                continue
            if paused:
                state.state, state.place = State.PAUSED, state.settled
                continue
            if state.state is State.PAUSED:
                state.revive()
            after[lane] = state.place
        allowed = self._rate.allowance(self._batch.records, now_s)
        self.throttle = "" if allowed >= self._batch.records else f"rate limit {self._rate.rate_records_per_s:g}/s"
        if not after or allowed == 0:
            self.progress_s = now_s
            return None
        return asyncio.create_task(self._read(after, allowed))

    async def _pause(self) -> None:
        """Wait until a lane may be read again, or for a moment."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), min(self._rate.wait_s() or _PAUSE_S, _PAUSE_MAX_S))

    # -- one round ---------------------------------------------------------------------------------------------------

    async def _read(self, after: dict[Lane, Place], records_max: int) -> list[Write]:
        """What is to be appended next. Often the append before it is still under way: see `_still_due`."""
        known = {lane: bare(place) for lane, place in after.items()} if self.route.pair else after
        batches = await self.source.read(known, records_max, self._batch.size_bytes, self.limits.idle_wait_s)
        taken = self._take(self._idle_markers(after, batches) | batches, after)
        self._rate.spend(sum(len(one.batch.rows) for one in taken))
        return self._translate(taken)

    def _idle_markers(
        self, after: dict[Lane, Place], batches: dict[Lane, Batch | LaneError]
    ) -> dict[Lane, Batch | LaneError]:
        """Now and then, a batch without rows for each lane that has nothing new and whose marker is due.

        A source tells the end of a lane once, when its marker is seldom due yet, and then nothing until it has more:
        not even to a lane that goes on at that very place behind a new claim or a pause, which is idle again by this.
        """
        now_s = self._now()
        if now_s < self._markers_looked_s + _MARKERS_LOOK_S:
            return {}
        self._markers_looked_s = now_s
        found: dict[Lane, Batch | LaneError] = {}
        for lane, place in after.items():
            state = self.lanes[lane]
            if lane in batches or lane in self._in_flight or state.place is not place:
                continue
            if state.state is State.COPYING and state.lag_records == 0:
                state.state = State.IDLE
            if state.state is State.COPYING or state.state is State.IDLE:
                batch = Batch(lane, self.source.shape, [], [], place, at_end=True)
                if self._marker_due(state, batch, now_s):
                    found[lane] = batch
        return found

    def _still_due(self, planned: list[Write]) -> list[Write]:
        """What of the planned still continues its lane, now that the append before it has ended."""
        writes = [write for write in planned if self.lanes[write.path[0]].place is write.place]
        for write in writes:
            write.quarantine_left = self.limits.quarantine_records_max - self.lanes[write.path[0]].quarantined
        return writes

    def _take(self, batches: dict[Lane, Batch | LaneError], after: dict[Lane, Place]) -> list[_Taken]:
        """Move the lanes to the end of what was read; halts those whose source check failed."""
        now_s = self._now()
        taken: list[_Taken] = []
        for lane, batch in batches.items():
            state = self.lanes[lane]
            if state.place is not after[lane]:
                continue  # it goes on from elsewhere since: an append failed, or a loss was accepted meanwhile
            if isinstance(batch, LaneError):
                self._fail(state, batch)
                continue
            if state.state is not State.COPYING and state.state is not State.IDLE:
                continue
            if batch.deleted or state.deleted_ahead:
                state.pass_deleted(after[lane], batch.place, batch.deleted)
            passed = None
            if self.route.pair:
                batch, passed = self._without_echoes(state, batch)
            state.place = batch.place
            if not batch.rows and not self._marker_due(state, batch, now_s):
                if lane in self._in_flight:
                    self._in_flight[lane] = True  # the source tells its end only once
                else:
                    state.state = State.IDLE
                continue
            state.state = State.COPYING
            if lane in self._in_flight:
                self._in_flight[lane] = False  # it has more to come
            state.retries = 0 if batch.rows else state.retries
            taken.append(_Taken(state, batch, passed))
        return taken

    def _translate(self, taken: list[_Taken]) -> list[Write]:
        """Turn what was read into writes."""
        writes: list[Write] = []
        for state, batch, passed in taken:
            mapped = self.mapping.translate(batch, self.target.shape)
            left = self.limits.quarantine_records_max - state.quarantined
            markers = state.markers_behind_loss()
            planned = plan_writes(self.route, self.mapping, self.target.shape, batch, mapped, markers, left)
            if passed is not None:
                planned[0].passed = passed
            writes += planned
        return writes

    def _without_echoes(self, state: LaneState, batch: Batch) -> tuple[Batch, list[tuple[tuple[int, int], int, int]]]:
        """The batch without what the paired route wrote, and where that lay."""
        parted = part_echoes(batch, state.place, self.route.pair, has_gaps=self.limits.source_has_gaps)
        if parted.out_of_turn and not state.has_told_echo:
            state.has_told_echo = True
            alarm = (
                f"{state.name}: {len(parted.out_of_turn)} records from {parted.out_of_turn[0]} on carry marks of the "
                f"paired route beyond its next ordinal {state.place.echo + 1}: copied as native records. Either the "
                "marks are forged, or records of that route are gone from the source"
            )
            self._log.error("echoes out of turn", alarm=alarm)
            self.tell_alarm(alarm)
        return parted.batch, parted.passed

    def _marker_due(self, state: LaneState, batch: Batch, now_s: float) -> bool:
        """Whether a batch without rows is worth an append of the marker alone."""
        age_s = now_s - state.marker_written_s
        moved = batch.place != state.settled
        if batch.place.echoes != state.settled.echoes:
            return age_s >= min(self.limits.marker_echo_s, self.limits.marker_refresh_s)
        return age_s >= (self.limits.marker_refresh_s if moved else self.limits.marker_keepalive_s)

    async def _append(self, claim: Claim, generation: int, writes: list[Write], on_sent: Callable[[], None]) -> None:
        async with self._appending:
            if generation != self._generation:
                return  # lanes changed hands while we read: claim anew, resume from the markers
            started_s = self._now()
            copying = {write.path[0] for write in writes if write.rows}
            self._in_flight = {write.path[0]: write.path[0] not in copying for write in writes}
            step("relay.append.before")
            try:
                outcomes = await self.target.append(claim, writes, on_sent)
            except Indeterminate:
                self._batch.halve()
                raise
            finally:
                flown, self._in_flight = self._in_flight, {}
            step("relay.append.after")
            now_s = self._now()
            records = sum(self._settle(write, outcomes[write.path], now_s) for write in writes)
            for state in (self.lanes[lane] for lane, is_idle in flown.items() if is_idle):
                if state.state is State.COPYING:
                    state.state = State.IDLE
        self._batch.observe(records, now_s - started_s)
        self.records_total += records
        self.progress_s, self._has_copied = now_s, True

    def _settle(self, write: Write, outcome: Appended | LaneError, now_s: float) -> int:
        state = self.lanes[write.path[0]]
        if isinstance(outcome, LaneError):
            self._fail(state, outcome)
            return 0
        before = state.markers[write.path]
        marker = outcome.marker
        invariant(marker.ordinal == before.ordinal + outcome.records, "an append advances the ordinal by its records")
        invariant(marker.place == write.place, "a marker stands where its write ends")
        state.markers[write.path] = marker
        state.jumps.pop(write.path, None)
        state.marker_written_s = now_s
        state.settle_deleted()
        if state.deleted_total > state.deleted_told and now_s >= state.deleted_told_s:
            state.deleted_told, state.deleted_told_s = state.deleted_total, now_s + _DELETED_TOLD_S
            self._log.warning("deleted entries passed over", lane=state.name, since_the_start=state.deleted_total)
        state.records_total += outcome.records
        state.quarantined_total += outcome.quarantined
        if outcome.quarantined:
            self._log.warning(
                "records quarantined", lane=state.lane, records=outcome.quarantined, total=state.quarantined
            )
        if write.rows:
            state.relayed_time_ms = write.rows[-1][-1]
            if self.on_appended is not None:
                self.on_appended(state, outcome.records, write.rows[0][-1], self._clock())
        return outcome.records

    def _fail(self, state: LaneState, error: LaneError) -> None:
        if state.state is not State.HALTED:
            state.fail(error, self._now())
            self._log.error("lane " + state.state.value, **error.as_dict())

    def tell_alarm(self, text: str) -> None:
        """Keep an alarm for the status; the oldest goes where there are too many."""
        self.alarms = [*self.alarms[1 - _ALARMS_MAX :], text]

    async def note_owned(self) -> None:
        """Tell the board of new lanes that this process is the first to own. Raises as `RouteBoard.note_owned`."""
        owned = self._unowned & self._owned if self.claim is not None else frozenset()
        if owned:
            await self.board.note_owned(owned)
            self._unowned -= owned

    # -- the operator's wishes ---------------------------------------------------------------------------------------

    async def obey(self, desired: Desired) -> None:
        """Take over pause, rate and accepted losses."""
        self.desired = desired
        wanted = desired.rate_records_per_s
        self._rate.rate_records_per_s = self.limits.rate_records_per_s if wanted is None else wanted
        for lane, accepted in desired.accepted.items():
            async with self._appending:  # what is under way belongs before the loss
                state = self.lanes.get(int(lane))
                if state is not None and is_answered(state, accepted):
                    await self._go_on_behind_loss(state)

    async def _go_on_behind_loss(self, state: LaneState) -> None:
        """Go on at the first place that still continues the lane; the markers move there with the next append."""
        place = await place_behind_loss(self.source, self.route.pair, state)
        if isinstance(place, LaneError):  # it has become another loss, to be decided anew
            state.fail(place, self._now())
            self._log.error("lane halted", **place.as_dict())
        elif place is not None:
            error = state.error
            self._log.warning("loss accepted", lane=state.lane, error=type(error).__name__, resumes_at=place.position)
            state.jump(place, error.ends_at if isinstance(error, SourceRegressed) else -1)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
