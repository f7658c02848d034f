"""A Redis stream key as a relay's target: claim, then append with the marker in the same script.

Hides scripts, chunking and pipelining. Invariants: nothing is written unless claim and predecessor are right, checked
in the same script that writes (so a zombie or a lost chunk stops everything behind it); whatever may have been written
without our knowing raises Indeterminate. Called by `log`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis
import msgspec

from ...errors import (
    AccessRefused,
    BrokerError,
    CrossfadeError,
    Fenced,
    Indeterminate,
    InvariantBroken,
    LaneError,
    QuarantineFull,
    RouteConflict,
    TargetFull,
    TargetReset,
    TargetTorn,
    Unreachable,
    UsageError,
    invariant,
)
from ...model.position import Marker, Place, position_order, position_text
from ...model.record import Lane, Path, Reject, Write
from ...model.wire import decode_marker, encode_marker, origin_prefix, origin_suffix
from ...telemetry import step
from ..protocol import Appended, Claim, Owner
from .keys import quarantine_key, state_key
from .link import Command, Link, LinkLost, pack
from .nodes import Nodes, call_key, unreachable
from .packing import Chunk, Rows, chunks, pack_call, refuse
from .replies import as_error, check, code_of, info_fields, is_error
from .scripts import script
from .settings import Address

#: how often a call is sent again that the server refused unseen (NOSCRIPT, MOVED, ASK, TRYAGAIN)
_ROUNDS_MAX = 8
_ROUND_PAUSE_S = 0.05


@dataclass(slots=True)
class _Path:
    """What the claim knows of one path."""

    marker: Marker
    text: str  # the marker as it stands in the target, without `target`; "" = none yet


@dataclass(slots=True)
class RedisClaim(Claim):
    """A claim on Redis lanes, with the markers as they move."""

    paths: dict[Path, _Path] = field(default_factory=dict)
    is_dead: bool = False


class Target:
    """Claims and appends on the stream keys of one log."""

    def __init__(self, nodes: Nodes, stream_keys: Sequence[bytes], memory_bytes_max: int = 0) -> None:
        self._nodes = nodes
        self._keys = stream_keys
        self._memory_bytes_max = memory_bytes_max

    # claim -----------------------------------------------------------------------------------------------------------

    async def claim(self, owner: Owner, paths: Sequence[Path]) -> RedisClaim:
        """See `Log.claim`. Raises RouteConflict, Fenced, Indeterminate, Unreachable, AccessRefused."""
        claim = RedisClaim(owner=owner, epoch=0, claim_id=uuid.uuid4().hex[:16], markers={})
        sources: dict[Lane, list[str]] = {}
        for source, target in paths:
            sources.setdefault(target, []).append(str(source))
        step("redis.claim.sent")
        replies = await self._run("claim", {lane: self._claim_ask(claim, names) for lane, names in sources.items()})
        epochs = {lane: self._read_claim(claim, lane, reply) for lane, reply in replies.items()}
        claim.epoch = max(epochs.values(), default=1)
        behind = {lane: sources[lane] for lane, epoch in epochs.items() if epoch != claim.epoch}
        asks = {
            lane: msgspec.msgpack.encode({"claim": claim.claim_id, "epoch": claim.epoch, "lanes": names})
            for lane, names in behind.items()
        }
        for lane, reply in (await self._run("raise", asks)).items():
            if reply[0] == b"FENCED":
                raise Fenced(f"another process claimed target lane {self._name(lane)} at the same time")
        return claim

    def _claim_ask(self, claim: RedisClaim, sources: list[str]) -> bytes:
        owner = claim.owner
        return msgspec.msgpack.encode(
            {"route": owner.route, "claim": claim.claim_id, "source": owner.source, "lanes": sources}
        )

    async def _run(self, name: str, asks: dict[Lane, bytes]) -> dict[Lane, Any]:
        """One script on the state of several lanes. Nothing but claims is written, so a lost reply is Indeterminate."""
        results: dict[Lane, Any] = {}
        left = dict(asks)
        for _ in range(_ROUNDS_MAX):
            if not left:
                return results
            for lane, reply in (await self._run_once(name, left)).items():
                if is_error(reply):
                    _check_again(reply, f"claiming {self._name(lane)}", self._nodes)
                else:
                    results[lane] = reply
                    del left[lane]
            if left:
                await asyncio.sleep(_ROUND_PAUSE_S)
        raise Unreachable(
            f"claiming: the slots of {len(left)} lanes keep moving", hint="wait for the resharding to end"
        )

    async def _run_once(self, name: str, asks: dict[Lane, bytes]) -> dict[Lane, Any]:
        lanes = list(asks)
        groups = await self._nodes.by_link([self._keys[lane] for lane in lanes])
        futures: list[tuple[Link, list[Lane], int, asyncio.Future[list[Any]]]] = []
        for link, indexes in groups.items():
            mine = [lanes[index] for index in indexes]
            commands = script(name).ensure(link)
            extra = len(commands)
            for lane in mine:
                keys = [state_key(self._keys[lane])]
                if name == "claim":
                    keys.insert(0, self._keys[lane])
                commands.append(script(name).call(keys, asks[lane]))
            futures.append((link, mine, extra, link.send(pack(commands), len(commands))))
        results: dict[Lane, Any] = {}
        for link, mine, extra, future in futures:
            try:
                replies = await link.wait(future)
            except LinkLost as error:
                self._nodes.distrust()
                raise Indeterminate(f"claiming: {error}", hint="the relay claims anew") from error
            for reply in replies[:extra]:
                check(reply, f"loading the {name} script")
            _forget_missing_script(link, name, replies)
            results.update(zip(mine, replies[extra:], strict=True))
        return results

    def _read_claim(self, claim: RedisClaim, lane: Lane, reply: list[Any]) -> int:
        verdict = reply[0]
        if verdict == b"ROUTE":
            raise RouteConflict(
                f"target lane {self._name(lane)} belongs to route {reply[1].decode()}, not to {claim.owner.route}",
                hint="one route writes to a lane: remove the other one with `crossfade uninstall`, or use other keys",
            )
        if verdict == b"SOURCE":
            raise RouteConflict(
                f"the marker on target lane {self._name(lane)} (from source lane {reply[1].decode()}) was written for "
                f"another source, lane map or mapping (digest {reply[2].decode()}, now {claim.owner.source})",
                hint="restore the old configuration, or start a new route on empty lanes",
            )
        if verdict == b"VERSION":
            raise UsageError(
                f"the state of target lane {self._name(lane)} has format version {reply[1].decode()}; this release "
                "reads version 1",
                hint="run the release that wrote it, or a newer one",
            )
        if verdict == b"TYPE":
            raise AccessRefused(
                f"target lane {self._name(lane)}: {reply[1].decode(errors='replace')}",
                hint="the key must be a stream or free; use another key",
            )
        epoch, exists, last_id, added, last, seen, own, form = reply[1:9]
        is_reset = own and (not exists or added < seen)
        is_torn = own and position_order(last_id.decode()) < position_order(last.decode())
        if own and last_id != last and form == b"exclusive" and not is_reset and not is_torn:
            claim.alarms.append(
                f"lane {self._name(lane)}: {added - seen} records by other writers since our last append; "
                "entry ids carry the source position no longer, an `xf` field does"
            )
        for source, text, target in zip(reply[9::3], reply[10::3], reply[11::3], strict=True):
            path = (int(source), lane)
            known = Marker(Place())
            if text:
                known = msgspec.structs.replace(decode_marker(text.decode()), target=target.decode())
                claim.markers[path] = known
            if is_reset:
                claim.errors[path] = _reset(path[0], self._name(lane))
            elif is_torn:
                claim.errors[path] = _torn(path[0], self._name(lane), last_id.decode(), last.decode())
            claim.paths[path] = _Path(known, text.decode())
        return int(epoch)

    async def markers(self, paths: Sequence[Path]) -> dict[Path, Marker]:
        """The markers as they stand, without claiming anything. Raises Unreachable, AccessRefused."""
        found: dict[Path, Marker] = {}
        for source, target in paths:
            key = state_key(self._keys[target])
            fields: Command = ("HMGET", key, f"m:{source}", f"t:{source}")
            (reply,) = await call_key(self._nodes, key, [fields], "reading the markers")
            text, last = check(reply, "reading the markers")
            if text:
                marker = decode_marker(text.decode())
                found[source, target] = msgspec.structs.replace(marker, target=(last or b"").decode())
        return found

    # append ----------------------------------------------------------------------------------------------------------

    async def append(self, claim: RedisClaim, writes: Sequence[Write]) -> dict[Path, Appended | LaneError]:
        """See `Log.append`. Raises Fenced, Indeterminate, Unreachable, AccessRefused."""
        if claim.is_dead:
            raise Fenced("this claim ended with an earlier append", hint="claim anew")
        jobs: list[_Job] = []
        outcomes: dict[Path, Appended | LaneError] = {}
        full = await self._over_budget() if self._memory_bytes_max else ""
        for write in writes:
            job = self._prepare(claim, write, full)
            if isinstance(job, LaneError):
                outcomes[write.path] = job
            else:
                jobs.append(job)
        if jobs:
            try:
                await self._send_all(jobs)
            except (Fenced, Indeterminate):
                claim.is_dead = True
                raise
        for job in jobs:
            outcomes[job.write.path] = job.outcome()
        step("redis.append.done")
        return outcomes

    def _prepare(self, claim: RedisClaim, write: Write, full: str) -> _Job | LaneError:
        path = claim.paths.get(write.path)
        if path is None:
            raise InvariantBroken(f"path {write.path} belongs to the claim")
        if full:
            return TargetFull(write.path[0], full, hint="trim the target, give it memory, or raise the budget")
        taken, refused = refuse(write.positions, write.rows)
        rejects = [*write.rejects, *refused]
        if len(rejects) > write.quarantine_left:
            first = rejects[0]
            return QuarantineFull(
                write.path[0],
                f"{len(rejects)} records for target lane {self._name(write.path[1])} cannot be written, "
                f"{write.quarantine_left} may go to quarantine; the first: {first.reason}",
                hint="look at the records; fix the mapping or raise the quarantine budget",
                position=position_text(first.position),
            )
        return _Job(self._keys[write.path[1]], claim, path, write, taken, rejects)

    async def _send_all(self, jobs: list[_Job]) -> None:
        """Send the chunks of all jobs, lane by lane in turn, and read the outcomes; again where the server refused
        unseen (a moved slot, a forgotten script)."""
        try:
            for attempt in range(_ROUNDS_MAX):
                left = [job for job in jobs if not job.is_done]
                if not left:
                    break
                if attempt:
                    await asyncio.sleep(_ROUND_PAUSE_S)
                await self._send_round(left)
            else:
                name = self._name(left[0].write.path[1])
                raise Unreachable(f"appending to {name}: {left[0].again}", hint="this passes when the Cluster rests")
        except (Unreachable, AccessRefused) as error:
            # What has gone in already must not come again under this claim: the markers tell where to go on.
            if any(job.has_moved for job in jobs):
                raise Indeterminate(error.message, hint=error.hint) from error
            raise
        half = next((job for job in jobs if job.error is not None and job.has_moved), None)
        if half is not None:
            raise Indeterminate(f"a part of the records went in; then: {half.error}", hint="the relay claims anew")

    async def _send_round(self, jobs: list[_Job]) -> None:
        links: dict[Link, list[_Job]] = {}
        for job in jobs:
            at = job.redirect
            link = await (self._nodes.at(at) if at is not None else self._nodes.of_key(job.key))
            links.setdefault(link, []).append(job)
        flights: list[_Flight] = []
        is_sent = False
        try:
            for link, mine in links.items():
                load = script("append").ensure(link)
                if load:
                    flights.append(_Flight(link, None, None, link.send(pack(load), len(load))))
                for job, call in _in_turn(mine):
                    asking = pack([("ASKING",)]) if job.redirect else b""
                    flights.append(_Flight(link, job, call, link.send(asking + call.packed, 2 if asking else 1)))
                    is_sent = True
                    await link.drain()
            step("redis.append.sent")
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
                    flight.job.take(flight.call, reply, flight.link, self._nodes, self._name(flight.job.write.path[1]))
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

    def _name(self, lane: Lane) -> str:
        return self._keys[lane].decode(errors="replace")


@dataclass(slots=True)
class _Call:
    """One chunk on its way."""

    marker: Marker
    text: str
    packed: bytes


@dataclass(slots=True)
class _Flight:
    """Commands that were sent and their replies to come; without a job they load the script."""

    link: Link
    job: _Job | None
    call: _Call | None
    replies: asyncio.Future[list[Any]]


class _Job:
    """One path's write: its chunks in order, and how far they got."""

    def __init__(
        self,
        key: bytes,
        claim: RedisClaim,
        path: _Path,
        write: Write,
        taken: Rows,
        rejects: list[Reject],
    ) -> None:
        self.key, self.claim, self.path, self.write = key, claim, path, write
        self.is_done = False
        self.error: LaneError | None = None
        self.redirect: Address | None = None
        self.again = ""  # why the rest is to be sent again
        counted_from = path.marker.place.count if path.text else -1
        self._chunks = list(chunks(taken, rejects, write.place, counted_from=counted_from))
        self._before = path.marker
        self._next = 0  # index of the first chunk that is not known to be done

    def calls(self) -> Iterator[_Call]:
        """The calls that are still to be made, each expecting the marker of the one before."""
        self.again = ""
        expect, marker = self.path.text, self.path.marker
        for chunk in self._chunks[self._next :]:
            call = self._call(chunk, expect, marker)
            yield call
            expect, marker = call.text, call.marker

    def _call(self, chunk: Chunk, expect: str, before: Marker) -> _Call:
        claim, (source, target) = self.claim, self.write.path
        marker = Marker(
            place=chunk.place,
            ordinal=before.ordinal + len(chunk.positions),
            relayed=chunk.last_position or before.relayed,
            epoch=claim.epoch,
            claim_id=claim.claim_id,
            source=claim.owner.source,
            quarantined=before.quarantined + len(chunk.rejects),
        )
        text = encode_marker(marker)
        is_number = bool(chunk.positions) and isinstance(chunk.positions[0], int)
        ask = {
            "route": claim.owner.route,
            "claim": claim.claim_id,
            "lane": str(source),
            "expect": expect,
            "marker": text,
            "ordinal": before.ordinal,
            "exact": is_number and self._is_one_to_one(target),
            "prefix": origin_prefix(claim.owner.route, source),
            "suffix": origin_suffix(claim.epoch),
            "rejects": len(chunk.rejects),
        }
        keys = [self.key, state_key(self.key)]
        if chunk.rejects:
            # named only when needed: a key that does not exist makes a Cluster refuse the call while it moves the slot
            keys.append(quarantine_key(self.key, claim.owner.route))
        packed = pack_call(script("append").digest, keys, msgspec.msgpack.encode(ask), chunk)
        return _Call(marker, text, packed)

    def _is_one_to_one(self, target: Lane) -> bool:
        known = self.claim.owner.paths or tuple(self.claim.paths)
        return sum(1 for _, other in known if other == target) == 1

    def take(self, call: _Call, reply: Any, link: Link, nodes: Nodes, name: str) -> None:
        """Account for one call's reply. Raises Fenced, Indeterminate, Unreachable, AccessRefused."""
        if self.error is not None or self.again:
            # An earlier chunk did not go in, so this one was refused for its predecessor, whatever it says.
            invariant(is_error(reply) or reply[0] not in (b"OK", b"DONE"), "no chunk goes in behind a refused one")
            return
        if is_error(reply):
            self._refused(reply, link, nodes, name)
            return
        verdict = reply[0]
        if verdict in (b"OK", b"DONE"):
            self.path.marker = msgspec.structs.replace(call.marker, target=reply[1].decode())
            self.path.text = call.text
            self._next += 1
            if self._next == len(self._chunks):
                self.is_done = True
            return
        self.error = _lane_error(verdict, reply, self.write.path[0], name)
        self.is_done = True

    def _refused(self, reply: Any, link: Link, nodes: Nodes, name: str) -> None:
        code = code_of(reply)
        doing = f"appending to {name}"
        if code == "OOM":
            self.error = TargetFull(
                self.write.path[0],
                f"{doing}: used memory is above maxmemory",
                hint="trim the target, or raise maxmemory; the lane goes on by itself",
            )
            self.is_done = True
        elif code == "NOSCRIPT":
            link.scripts.discard(script("append").digest)
            self.again = str(reply)
        elif code in ("MOVED", "TRYAGAIN"):
            nodes.distrust()
            self.redirect = None
            self.again = str(reply)
        elif code == "ASK":
            host, _, port = str(reply).split(" ")[2].rpartition(":")
            self.redirect = Address(host or link.address.host, int(port))
            self.again = str(reply)
        else:
            error = as_error(reply, doing)
            if isinstance(error, Unreachable):
                nodes.distrust()
            raise error

    @property
    def has_moved(self) -> bool:
        """True once any chunk is in."""
        return self._next > 0

    def outcome(self) -> Appended | LaneError:
        """What `Log.append` returns for this path."""
        if self.error is not None:
            return self.error
        marker, before = self.path.marker, self._before
        return Appended(marker, marker.ordinal - before.ordinal, marker.quarantined - before.quarantined)


def _in_turn(jobs: list[_Job]) -> Iterator[tuple[_Job, _Call]]:
    """The calls of all jobs, one of each in turn, so that no lane waits for another's backlog."""
    running = [(job, job.calls()) for job in jobs]
    while running:
        still = []
        for job, calls in running:
            call = next(calls, None)
            if call is not None:
                yield job, call
                still.append((job, calls))
        running = still


def _lane_error(verdict: bytes, reply: list[Any], lane: Lane, name: str) -> LaneError:
    """The refusal of the script as an error: raised where the claim is at stake, returned where only the lane is."""
    if verdict == b"FENCED":
        raise Fenced(
            f"target lane {name} belongs to a newer claim ({(reply[1] or b'').decode() or 'its state is gone'})",
            hint="another process took over; this one claims anew if it still owns the lane",
        )
    if verdict == b"ORDER":
        # Our claim, but not our marker: the server lost a suffix (failover, AOF cut) or a late write came in.
        raise Indeterminate(
            f"the marker on target lane {name} is not the one that we left", hint="the relay claims anew and reads it"
        )
    if verdict == b"RIGHT":
        raise AccessRefused(
            f"appending to {name}: the Redis user lacks the right to {reply[1].decode().upper()}",
            hint="`crossfade doctor --print-acls` lists what is needed",
        )
    if verdict == b"TYPE":
        return TargetTorn(
            lane,
            f"target lane {name}: {reply[1].decode(errors='replace')}",
            hint="something else was written to this key; restore the stream or use another key",
        )
    if verdict == b"GONE":
        return _reset(lane, name)
    if verdict == b"BEHIND":
        return _torn(lane, name, reply[1].decode(), reply[2].decode())
    if verdict == b"IDS":
        return TargetTorn(
            lane,
            f"the last id {reply[1].decode()} of target lane {name} leaves no room for more",
            hint="someone wrote an id far in the future; use another key",
        )
    raise BrokerError(f"appending to {name}: the script answered {verdict!r}")


def _reset(lane: Lane, name: str) -> TargetReset:
    return TargetReset(
        lane,
        f"target lane {name} was deleted, emptied or made anew behind its marker",
        hint="restore the stream, or start the lane anew on an empty one",
    )


def _torn(lane: Lane, name: str, last_id: str, last: str) -> TargetTorn:
    return TargetTorn(
        lane,
        f"target lane {name} ends at {last_id}, but its marker covers records up to {last}",
        hint="records are gone that the marker counts as copied: restore the stream or copy the lane anew",
    )


def _forget_missing_script(link: Link, name: str, replies: list[Any]) -> None:
    if any(is_error(reply) and code_of(reply) == "NOSCRIPT" for reply in replies):
        link.scripts.discard(script(name).digest)


def _check_again(reply: hiredis.ReplyError, doing: str, nodes: Nodes) -> None:
    """Let pass what may be sent again, raise the rest. Raises AccessRefused, Unreachable, BrokerError."""
    code = code_of(reply)
    if code == "NOSCRIPT":
        return
    if code in ("MOVED", "ASK", "TRYAGAIN"):
        nodes.distrust()
        return
    error: CrossfadeError = as_error(reply, doing)
    if isinstance(error, Unreachable):
        nodes.distrust()
    raise error
