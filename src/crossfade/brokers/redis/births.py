"""Birth groups: empty consumer groups that die with a stream key and so tell a re-created one.

Hides their names and how they are made and moved. Invariant: a route makes and moves its own alone (or the one that its
places name, which an earlier release may have made for all routes); a group that is gone is made again only while the
entry that was read last still stands. Called by `source`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from ...errors import Unreachable
from ...model.position import Place, position_order
from ...model.record import Lane
from .keys import new_birth, route_of_birth
from .link import Command
from .looking import Looker, Range, digest_of
from .nodes import Nodes, call_key
from .reckoning import Fault, Look, Verdict, digest_in, judge
from .replies import check, code_of, is_error

#: how often the birth group follows the place, so that trimming that waits for groups (8.2 ACKED) does not wait for it
VOUCH_EVERY_S = 10.0


class Births:
    """The birth groups of one route on the stream keys of one log."""

    def __init__(self, nodes: Nodes, looker: Looker, stream_keys: Sequence[bytes], route: str) -> None:
        self._nodes = nodes
        self._looker = looker
        self._keys = stream_keys
        self._route = route
        #: the birth group that the lane's places name
        self._named: dict[Lane, str] = {}
        #: places whose birth group is gone while their entry stands; an accepted loss makes the group again
        self._orphans: dict[Lane, Place] = {}
        #: when a lane's birth group may move next, and to where
        self._vouching: dict[Lane, tuple[float, Place]] = {}
        self._vouched: dict[Lane, str] = {}

    def note(self, lane: Lane, place: Place, fault: Fault | None) -> None:
        """Remember what a read from `place` showed."""
        self._named[lane] = place.incarnation
        if fault is Fault.ORPHANED:
            self._orphans[lane] = place
        else:
            self._orphans.pop(lane, None)

    def present(self, lane: Lane, look: Look) -> str:
        """The birth group by which this route knows the key now, "" = none."""
        return self._own(lane, look) or min((name for name in look.births if not route_of_birth(name)), default="")

    async def give(self, lanes: Sequence[Lane]) -> dict[Lane, str | Verdict]:
        """The birth group of each lane, made where there is none: "" where we may not, a fault where none can be made.

        Makes a missing key, as an empty stream. Raises Unreachable, AccessRefused.
        """
        places = {lane: self._orphans.get(lane) for lane in lanes}
        ranges = {
            lane: Range(place.position.encode(), 1, reverse=True) if place else Range(b"+", 0, reverse=True)
            for lane, place in places.items()
        }
        looks = await self._looker.look(lanes, ranges)
        births: dict[Lane, str | Verdict] = {}
        for lane in lanes:
            look, entries, _ = looks[lane]
            place = places[lane]
            if not look.is_stream:
                births[lane] = judge(Place(), look, counts_deleted=False)
            elif place is None or place.incarnation in look.births:
                births[lane] = self._own(lane, look) or await self._create(lane, new_birth(self._route))
            elif entries and _is_at(place, entries[0]):
                # The same name again: places of one life of the key must be comparable, whichever path they are from.
                births[lane] = await self._create(lane, place.incarnation)
            else:
                del self._orphans[lane]
                why = f"entry {place.position} stands there no more: the key was made anew"
                births[lane] = Verdict(Fault.RESET, why)
        return births

    async def follow(self, after: Mapping[Lane, Place]) -> None:
        """Move the groups to the places, one round behind: what was read then is on the target by now, unless its
        append failed; then the lane was read from before it in between.

        Raises Unreachable, AccessRefused.
        """
        now_s = time.monotonic()
        commands: dict[Lane, list[Command]] = {}
        moved: dict[Lane, str] = {}
        for lane, place in after.items():
            since_s, earlier = self._vouching.setdefault(lane, (now_s, place))
            if position_order(place.position) < position_order(earlier.position):
                self._vouching[lane] = (now_s, place)
                continue
            if now_s - since_s < VOUCH_EVERY_S:
                continue
            self._vouching[lane] = (now_s, place)
            if earlier.incarnation and earlier.position and self._vouched.get(lane) != earlier.position:
                moved[lane] = earlier.position
                commands[lane] = [("XGROUP", "SETID", self._keys[lane], earlier.incarnation, earlier.position)]
        if commands:
            # a refusal does no harm: trimming that waits for groups waits longer
            await self._looker.call(commands, "moving the birth groups")
            self._vouched |= moved

    async def _create(self, lane: Lane, name: str) -> str:
        create: Command = ("XGROUP", "CREATE", self._keys[lane], name, "$", "MKSTREAM")
        doing = f"giving {self._keys[lane].decode(errors='replace')} a birth"
        (reply,) = await call_key(self._nodes, self._keys[lane], [create], doing)
        if is_error(reply) and code_of(reply) == "NOPERM":
            return ""  # without the right the claim is weaker, and doctor says so
        if is_error(reply) and code_of(reply) == "OOM":
            raise Unreachable(
                f"{doing}: used memory of the source is above maxmemory",
                hint="raise maxmemory a little, or free some memory: the consumer group that is made takes a few "
                "hundred bytes, and is all that is ever written there; a relay that waits goes on by itself",
            )
        if not (is_error(reply) and code_of(reply) == "BUSYGROUP"):
            check(reply, doing)
        return name

    def _own(self, lane: Lane, look: Look) -> str:
        named = self._named.get(lane, "")
        own = (name for name in look.births if route_of_birth(name) == self._route)
        return named if named in look.births else min(own, default="")


def _is_at(place: Place, entry: tuple[bytes, list[bytes]]) -> bool:
    """Whether it is the very entry that was read at `place`."""
    return entry[0] == place.position.encode() and digest_of(entry[1]) == digest_in(place.witness)
