"""Claims on target lanes: fence what is older, and find the markers beside the data.

Hides the claim scripts and what their verdicts mean. Invariant: after `claim` returns, no script call of an older claim
writes to these paths any more, and the markers are the ones that the next append must find. Called by `log`; `target`
and its parts share the claim and its limits.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis
import msgspec

from ...errors import (
    CrossfadeError,
    Fenced,
    GuaranteeRefused,
    Indeterminate,
    RouteConflict,
    TargetReset,
    TargetTorn,
    Unreachable,
    UsageError,
)
from ...model.position import Marker, Place, position_order
from ...model.record import Lane, Path
from ...model.wire import decode_marker
from ...telemetry import step
from ..protocol import Claim, Owner
from .keys import state_key
from .link import Command, Link, LinkLost, Replies, pack
from .nodes import Nodes, call_key
from .outrun import Budget, copies_behind
from .replies import as_error, check, code_of, is_error
from .scripts import script

#: how often a call is sent again that the server refused unseen (NOSCRIPT, MOVED, ASK, TRYAGAIN)
ROUNDS_MAX = 8
ROUND_PAUSE_S = 0.05
#: lanes of which the entries of others are looked at together
_LOOKS_AT_ONCE = 16


@dataclass(slots=True)
class ClaimedPath:
    """What the claim knows of one path."""

    marker: Marker
    text: str  # the marker as it stands in the target, without `target`; "" = none yet


@dataclass(slots=True)
class RedisClaim(Claim):
    """A claim on Redis lanes, with the markers as they move."""

    paths: dict[Path, ClaimedPath] = field(default_factory=dict)
    is_dead: bool = False


class Claims:
    """Takes claims and reads markers on the stream keys of one log."""

    def __init__(self, nodes: Nodes, stream_keys: Sequence[bytes], *, alone: str = "") -> None:
        """`alone`: id of a route that is none of a pair: nobody needs to tell its records from others."""
        self._nodes = nodes
        self._keys = stream_keys
        self.alone = alone

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
        is_fanned = len(paths) > len({source for source, _ in paths})
        told, budget = list(replies.items()), Budget()
        for first in range(0, len(told), _LOOKS_AT_ONCE):
            looks = [
                self._look_behind(claim, lane, sources[lane], reply, budget, is_fanned=is_fanned)
                for lane, reply in told[first : first + _LOOKS_AT_ONCE]
            ]
            await asyncio.gather(*looks)
        if owner.pair:
            await self._mark_every_record(sources)
        return claim

    async def _look_behind(
        self, claim: RedisClaim, lane: Lane, sources: list[str], reply: list[Any], budget: Budget, *, is_fanned: bool
    ) -> None:
        """Take out the paths whose copies stand behind what others wrote, or seem to have written, since our append."""
        _, _, _, last_id, _, length, _, last, _, own, form = reply[:11]
        if last_id == last if own else not length:
            return
        paths = [(int(source), lane) for source in sources]
        markers = {path[0]: claim.markers[path] for path in paths if path in claim.markers and path not in claim.errors}
        if not markers:
            return
        found = await copies_behind(
            self._nodes,
            self._keys[lane],
            last.decode() if own else "",
            claim.owner.route,
            markers,
            budget,
            is_exclusive=form == b"exclusive",
            is_fanned=is_fanned,
        )
        claim.errors |= {(source, lane): error for source, error in found.items()}

    async def _mark_every_record(self, lanes: Iterable[Lane]) -> None:
        """Give up entry ids that carry the source position: the route of the other way knows our records by `xf`.

        The form never goes back while something of ours is there, and every claim does this before it appends.
        """
        for lane in lanes:
            key = state_key(self._keys[lane])
            (reply,) = await call_key(self._nodes, key, [("HSET", key, "form", "mixed")], "claiming")
            check(reply, f"claiming {self._name(lane)}")

    def _claim_ask(self, claim: RedisClaim, sources: list[str]) -> bytes:
        owner = claim.owner
        return msgspec.msgpack.encode(
            {"route": owner.route, "claim": claim.claim_id, "source": owner.source, "lanes": sources}
        )

    async def _run(self, name: str, asks: dict[Lane, bytes]) -> dict[Lane, Any]:
        """One script on the state of several lanes. Nothing but claims is written, so a lost reply is Indeterminate."""
        results: dict[Lane, Any] = {}
        left = dict(asks)
        for _ in range(ROUNDS_MAX):
            if not left:
                return results
            for lane, reply in (await self._run_once(name, left)).items():
                if is_error(reply):
                    _check_again(reply, f"claiming {self._name(lane)}", self._nodes)
                else:
                    results[lane] = reply
                    del left[lane]
            if left:
                await asyncio.sleep(ROUND_PAUSE_S)
        raise Unreachable(
            f"claiming: the slots of {len(left)} lanes keep moving", hint="wait for the resharding to end"
        )

    async def _run_once(self, name: str, asks: dict[Lane, bytes]) -> dict[Lane, Any]:
        lanes = list(asks)
        groups = await self._nodes.by_link([self._keys[lane] for lane in lanes])
        futures: list[tuple[Link, list[Lane], int, asyncio.Future[Replies]]] = []
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
        epoch, exists, last_id, added, length, first, last, seen, own, form, wrong = reply[1:12]
        # What stood there behind our last append is gone, all of it: where less was ever removed, it is another stream.
        is_all_new = first and position_order(first.decode()) > position_order(last.decode())
        is_reset = own and (not exists or added < seen or (is_all_new and added - length < seen))
        is_torn = own and position_order(last_id.decode()) < position_order(last.decode())
        if own and last_id != last and form == b"exclusive" and not is_reset and not is_torn:
            claim.alarms.append(
                f"lane {self._name(lane)}: {added - seen} records by other writers since our last append (or our own, "
                "if an older marker was put back); entry ids carry the source position no longer, an `xf` field does"
            )
        for source, text, target in zip(reply[12::3], reply[13::3], reply[14::3], strict=True):
            path = (int(source), lane)
            known = Marker(Place())
            if text:
                known = msgspec.structs.replace(decode_marker(text.decode()), target=target.decode())
                claim.markers[path] = known
            if wrong:
                claim.errors[path] = type_error(path[0], self._name(lane), wrong.decode(errors="replace"))
            elif is_reset:
                claim.errors[path] = reset_error(path[0], self._name(lane))
            elif is_torn:
                claim.errors[path] = torn_error(path[0], self._name(lane), last_id.decode(), last.decode())
            claim.paths[path] = ClaimedPath(known, text.decode())
        return int(epoch)

    async def markers_of(self, route: str, paths: Sequence[Path]) -> dict[Path, Marker]:
        """The markers of `route`, without claiming anything.

        Raises GuaranteeRefused where its records may lack an `xf`, and it is not `alone`, Unreachable, AccessRefused.
        """
        sources: dict[Lane, list[Lane]] = {}
        for source, target in paths:
            sources.setdefault(target, []).append(source)
        found: dict[Path, Marker] = {}
        for target, lanes in sources.items():
            key = state_key(self._keys[target])
            fields = [name for lane in lanes for name in (f"m:{lane}", f"t:{lane}")]
            ask: Command = ("HMGET", key, "route", "form", *fields)
            (reply,) = await call_key(self._nodes, key, [ask], "reading the markers")
            writer, form, *told = check(reply, "reading the markers")
            if writer != route.encode():
                continue
            if form == b"exclusive" and route != self.alone:
                raise GuaranteeRefused(
                    f"route {route} writes to {self._name(target)} without marks of its own: what it writes could not "
                    "be told from what applications write",
                    hint="restart that route's relay with the present configuration first (`reverse_of` makes it mark "
                    "every record), or run `crossfade relay start` for it if it never ran",
                )
            for lane, text, last in zip(lanes, told[::2], told[1::2], strict=True):
                if text:
                    marker = decode_marker(text.decode())
                    found[lane, target] = msgspec.structs.replace(marker, target=(last or b"").decode())
        return found

    def _name(self, lane: Lane) -> str:
        return self._keys[lane].decode(errors="replace")


def reset_error(lane: Lane, name: str) -> TargetReset:
    return TargetReset(
        lane,
        f"target lane {name} was deleted, emptied or made anew behind its marker",
        hint="restore the stream, or start the lane anew on an empty one",
    )


def torn_error(lane: Lane, name: str, last_id: str, last: str) -> TargetTorn:
    return TargetTorn(
        lane,
        f"target lane {name} ends at {last_id}, but its marker covers records up to {last}",
        hint="records are gone that the marker counts as copied: restore the stream or copy the lane anew",
    )


def type_error(lane: Lane, name: str, why: str) -> TargetTorn:
    return TargetTorn(
        lane,
        f"target lane {name}: {why}",
        hint="something else was written to this key: restore the stream, or remove the key or use another one, then "
        "restart the relay",
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
