"""One path's part of an append: its calls in order, what each expects, and what the replies mean.

Hides the protocol of `append.lua`. Invariant: a call expects exactly the marker of the one before it, so that behind a
call that did not go in nothing goes in either. Called by `target`, which moves the bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from ...errors import (
    AccessRefused,
    BrokerError,
    Fenced,
    Indeterminate,
    LaneError,
    QuarantineFull,
    TargetFull,
    TargetTorn,
    Unreachable,
    invariant,
)
from ...model.position import Marker, position_text
from ...model.record import Lane, Write
from ...model.wire import encode_marker, origin_prefix, origin_suffix
from ..protocol import Appended
from .claims import ClaimedPath, RedisClaim, reset_error, torn_error
from .keys import quarantine_key, state_key
from .link import Link
from .nodes import Nodes
from .packing import Chunk, chunks, lay_out, pack_call, refuse
from .replies import as_error, code_of, is_error
from .scripts import script
from .settings import Address


@dataclass(slots=True)
class Call:
    """One chunk on its way."""

    marker: Marker
    text: str
    packed: bytes


class Job:
    """One path's write: its chunks in order, and how far they got."""

    def __init__(self, key: bytes, claim: RedisClaim, path: ClaimedPath, write: Write) -> None:
        self.key, self.claim, self.path, self.write = key, claim, path, write
        self.name = key.decode(errors="replace")
        # A marker alone takes no more than the one before it: lanes can be started where there is no room for records.
        self.script = script("append", over_memory=not write.rows and not write.rejects)
        self.is_done = False
        self.error: LaneError | None = None
        self.redirect: Address | None = None
        self.again = ""  # why the rest is to be sent again
        #: what is not in yet; cut when it is this path's turn, as the server has nothing to do before the first call
        self._chunks: deque[Chunk] = deque()
        self._is_cut = False
        self._before = path.marker
        #: any chunk is in
        self.has_moved = False

    def calls(self) -> Iterator[Call]:
        """The calls that are still to be made, each expecting the marker of the one before."""
        self.again = ""
        if not self._is_cut:
            self._is_cut = True
            self._chunks.extend(self._cut())
        expect, marker = self.path.text, self.path.marker
        for chunk in self._chunks:
            call = self._call(chunk, expect, marker)
            yield call
            expect, marker = call.text, call.marker

    def _cut(self) -> Iterable[Chunk]:
        """The write in pieces of one call each; none where more rows would be refused than quarantine takes."""
        write = self.write
        taken, refused = refuse(write.positions, write.rows)
        rejects = [*write.rejects, *refused]
        if len(rejects) > write.quarantine_left:
            first = rejects[0]
            self.error = QuarantineFull(
                write.path[0],
                f"{len(rejects)} records for target lane {self.name} cannot be written, "
                f"{write.quarantine_left} may go to quarantine; the first: {first.reason}",
                hint="look at the records; fix the mapping or raise the quarantine budget",
                position=position_text(first.position),
            )
            self.is_done = True
            return ()
        counted_from = self.path.marker.place.count if self.path.text else -1
        return chunks(taken, rejects, write.place, counted_from=counted_from, size_bytes=write.size_bytes)

    def _call(self, chunk: Chunk, expect: str, before: Marker) -> Call:
        claim, source = self.claim, self.write.path[0]
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
        layout = lay_out(chunk)
        ask = {
            "route": claim.owner.route,
            "claim": claim.claim_id,
            "lane": str(source),
            "expect": expect,
            "marker": text,
            "ordinal": before.ordinal,
            "number": bool(chunk.positions) and isinstance(chunk.positions[0], int),
            "prefix": origin_prefix(claim.owner.route, source),
            "suffix": origin_suffix(claim.epoch),
            "rejects": len(chunk.rejects),
            "count": len(chunk.positions),
            "width": chunk.width,
            "names": len(layout.names),
            "top": layout.top_ms,
        }
        keys = [self.key, state_key(self.key)]
        if chunk.rejects:
            # named only when needed: a key that does not exist makes a Cluster refuse the call while it moves the slot
            keys.append(quarantine_key(self.key, claim.owner.route))
        packed = pack_call(self.script.digest, keys, msgspec.msgpack.encode(ask), layout, chunk)
        return Call(marker, text, packed)

    def take(self, call: Call, reply: Any, link: Link, nodes: Nodes) -> None:
        """Account for one call's reply. Raises Fenced, Indeterminate, Unreachable, AccessRefused."""
        if self.error is not None or self.again:
            # An earlier chunk did not go in, so this one was refused for its predecessor, whatever it says.
            invariant(is_error(reply) or reply[0] not in (b"OK", b"DONE"), "no chunk goes in behind a refused one")
            return
        if is_error(reply):
            self._refused(reply, link, nodes)
            return
        verdict = reply[0]
        if verdict in (b"OK", b"DONE"):
            self.path.marker = msgspec.structs.replace(call.marker, target=reply[1].decode())
            self.path.text = call.text
            self._chunks.popleft()  # let go of here, while the replies behind this one are on their way
            self.has_moved, self.is_done = True, not self._chunks
            return
        self.error = _lane_error(verdict, reply, self.write.path[0], self.name)
        self.is_done = True

    def _refused(self, reply: Any, link: Link, nodes: Nodes) -> None:
        code = code_of(reply)
        doing = f"appending to {self.name}"
        if code == "OOM":
            self.error = TargetFull(
                self.write.path[0],
                f"{doing}: used memory is above maxmemory",
                hint="trim the target, or raise maxmemory; the lane goes on by itself",
            )
            self.is_done = True
        elif code == "NOSCRIPT":
            link.scripts.discard(self.script.digest)
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

    def outcome(self) -> Appended | LaneError:
        """What `Log.append` returns for this path."""
        if self.error is not None:
            return self.error
        marker, before = self.path.marker, self._before
        return Appended(marker, marker.ordinal - before.ordinal, marker.quarantined - before.quarantined)


def in_turn(jobs: list[Job]) -> Iterator[tuple[Job, Call]]:
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
        return reset_error(lane, name)
    if verdict == b"BEHIND":
        return torn_error(lane, name, reply[1].decode(), reply[2].decode())
    if verdict == b"IDS":
        return TargetTorn(
            lane,
            f"the last id {reply[1].decode()} of target lane {name} leaves no room for more",
            hint="someone wrote an id far in the future; use another key",
        )
    raise BrokerError(f"appending to {name}: the script answered {verdict!r}")
