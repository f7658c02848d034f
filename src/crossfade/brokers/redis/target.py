"""A Redis stream key as a relay's target: claim, then append with the marker in the same script.

Hides scripts, chunking and pipelining. Invariants: nothing is written unless claim and predecessor are right, checked
in the same script that writes (so a zombie or a lost chunk stops everything behind it); whatever may have been written
without our knowing raises Indeterminate. Called by `log`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import (
    AccessRefused,
    CrossfadeError,
    Fenced,
    Indeterminate,
    InvariantBroken,
    LaneError,
    TargetFull,
    Unreachable,
)
from ...model.record import Path, Write
from ...telemetry import step
from ..protocol import Appended
from .claims import ROUND_PAUSE_S, ROUNDS_MAX, RedisClaim
from .jobs import Call, Job, in_turn
from .link import Link, LinkLost, Replies, pack
from .nodes import Nodes, unreachable
from .replies import as_error, check, info_fields, is_error


class Target:
    """Appends to the stream keys of one log."""

    def __init__(self, nodes: Nodes, stream_keys: Sequence[bytes], memory_bytes_max: int = 0) -> None:
        self._nodes = nodes
        self._keys = stream_keys
        self._memory_bytes_max = memory_bytes_max

    async def append(
        self, claim: RedisClaim, writes: Sequence[Write], on_sent: Callable[[], None] | None = None
    ) -> dict[Path, Appended | LaneError]:
        """See `Log.append`. Raises Fenced, Indeterminate, Unreachable, AccessRefused."""
        if claim.is_dead:
            raise Fenced("this claim ended with an earlier append", hint="claim anew")
        jobs: list[Job] = []
        outcomes: dict[Path, Appended | LaneError] = {}
        full = await self._over_budget() if self._memory_bytes_max else ""
        for write in writes:
            job = self._job(claim, write, full)
            if isinstance(job, LaneError):
                outcomes[write.path] = job
            else:
                jobs.append(job)
        if jobs:
            try:
                await self._send_all(jobs, on_sent)
            except (Fenced, Indeterminate):
                claim.is_dead = True
                raise
        for job in jobs:
            outcomes[job.write.path] = job.outcome()
        step("redis.append.done")
        return outcomes

    def _job(self, claim: RedisClaim, write: Write, full: str) -> Job | LaneError:
        path = claim.paths.get(write.path)
        if path is None:
            raise InvariantBroken(f"path {write.path} belongs to the claim")
        if full and (write.rows or write.rejects):  # a marker alone takes no more than the one before it
            return TargetFull(write.path[0], full, hint="trim the target, or raise memory_bytes_max of the broker")
        return Job(self._keys[write.path[1]], claim, path, write)

    async def _send_all(self, jobs: list[Job], on_sent: Callable[[], None] | None) -> None:
        """Send the chunks of all jobs, lane by lane in turn, and read the outcomes; again where the server refused
        unseen (a moved slot, a forgotten script)."""
        try:
            left = jobs
            for _ in range(ROUNDS_MAX):
                await self._send_round(left, on_sent)
                left = [job for job in jobs if not job.is_done]
                if not left:
                    break
                await asyncio.sleep(ROUND_PAUSE_S)
            if left:
                again = f"appending to {left[0].name}: {left[0].again}"
                raise Unreachable(again, hint="this passes when the Cluster rests")
        except (Unreachable, AccessRefused) as error:
            # What has gone in already must not come again under this claim: the markers tell where to go on.
            if any(job.has_moved for job in jobs):
                raise Indeterminate(error.message, hint=error.hint) from error
            raise
        half = next((job for job in jobs if job.error is not None and job.has_moved), None)
        if half is not None:
            raise Indeterminate(f"a part of the records went in; then: {half.error}", hint="the relay claims anew")

    async def _send_round(self, jobs: list[Job], on_sent: Callable[[], None] | None) -> None:
        links: dict[Link, list[Job]] = {}
        for job in jobs:
            at = job.redirect
            link = await (self._nodes.at(at) if at is not None else self._nodes.of_key(job.key))
            links.setdefault(link, []).append(job)
        flights: list[_Flight] = []
        is_sent = False
        try:
            for link, mine in links.items():
                for needed in {job.script for job in mine}:
                    if load := needed.ensure(link):
                        flights.append(_Flight(link, None, None, link.send(pack(load), len(load))))
                for job, call in in_turn(mine):
                    asking = pack([("ASKING",)]) if job.redirect else b""
                    flights.append(_Flight(link, job, call, link.send(asking + call.packed, 2 if asking else 1)))
                    call.packed = b""  # it is on its way: nothing else needs it
                    is_sent = True
                    await link.drain()
            step("redis.append.sent")
            if on_sent is not None:
                on_sent()
            await self._land(flights)
        except LinkLost as error:
            self._nodes.distrust()
            if not is_sent:
                raise unreachable(error, "appending") from error
            raise Indeterminate(f"appending: {error}", hint="the relay claims anew and reads the marker") from error

    async def _land(self, flights: list[_Flight]) -> None:
        """Account for every reply before the first error is raised, so that a repeated write knows what is done."""
        first: CrossfadeError | None = None
        for flight in flights:
            reply = (await flight.link.wait(flight.replies))[-1]
            try:
                if flight.job is None or flight.call is None:
                    check(reply, "loading the append script")
                else:
                    flight.job.take(flight.call, reply, flight.link, self._nodes)
            except CrossfadeError as error:
                # a newer claim outweighs everything else
                if first is None or isinstance(error, Fenced):
                    first = error
        if first is not None:
            raise first

    async def _over_budget(self) -> str:
        """Why the memory budget forbids to write now, or ""."""
        for link in await self._nodes.primaries():
            try:
                (text,) = await link.call([("INFO", "memory")])
            except LinkLost as error:
                self._nodes.distrust()
                raise unreachable(error, "reading the memory in use") from error
            if is_error(text):
                raise as_error(text, "reading the memory in use")
            used = int(info_fields(text).get("used_memory", "0"))
            if used > self._memory_bytes_max:
                return f"{link.address} uses {used} bytes, the budget is {self._memory_bytes_max}"
        return ""


@dataclass(slots=True)
class _Flight:
    """Commands that were sent and their replies to come; without a job they load the script."""

    link: Link
    job: Job | None
    call: Call | None
    replies: asyncio.Future[Replies]
