"""Which server holds which key, now: standalone, behind Sentinels, or a Cluster.

Hides discovery and reconnecting. Invariant: a link that is handed out led to a primary when it was made, and again
after the last trouble: `distrust` drops what is known, and the next call asks again. Who is cut off answers as if it
were not, so others are asked first then, where there are any. Nothing here retries by itself: the relay does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from ...errors import CrossfadeError, Unreachable, UsageError
from .keys import SLOTS, slot_of
from .link import Command, Link, LinkLost, connect
from .replies import check, code_of, is_error
from .settings import Address, RedisSettings

#: first words of replies that are no answer of the primary of a key; a transaction is refused for those inside it
_ELSEWHERE = {"MOVED", "ASK", "CLUSTERDOWN", "EXECABORT", "READONLY"}


class Nodes:
    """Links to the primaries of one service."""

    def __init__(self, settings: RedisSettings) -> None:
        self.settings = settings
        self._links: dict[Address, Link] = {}
        #: from before the last trouble: to be asked first whether they lead to a primary still
        self._suspects: set[Link] = set()
        #: Cluster: who told the slots, and all who told what proved wrong, the last one last
        self._told_by: Address | None = None
        self._doubted: list[Address] = []
        #: Cluster: the primary of each slot; else empty
        self._slots: list[Address | None] = []
        #: standalone and Sentinel: the primary, once found
        self._primary: Address | None = None
        self._lock = asyncio.Lock()

    async def of_key(self, key: bytes) -> Link:
        """The link to the primary that holds `key`. Raises Unreachable, AccessRefused."""
        address = self._known(key)
        if address is not None:
            link = self._links.get(address)
            if link is not None and link.is_open and link not in self._suspects:
                return link
        async with self._lock:
            return await self._find(key)

    async def by_link(self, keys: Sequence[bytes]) -> dict[Link, list[int]]:
        """Indexes into `keys`, grouped by the link that serves them. Raises Unreachable, AccessRefused."""
        groups: dict[Link, list[int]] = {}
        for index, key in enumerate(keys):
            groups.setdefault(await self.of_key(key), []).append(index)
        return groups

    async def primaries(self) -> list[Link]:
        """Links to all primaries. Raises Unreachable, AccessRefused."""
        async with self._lock:
            if self.settings.mode != "cluster":
                return [await self._find(b"")]
            await self._learn_slots()
            addresses = dict.fromkeys(address for address in self._slots if address is not None)
            return [await self._link_as_told(address) for address in addresses]

    async def at(self, address: Address) -> Link:
        """A link to a node named by a redirection. Raises Unreachable, AccessRefused."""
        async with self._lock:
            return await self._link_to(address)

    def distrust(self) -> None:
        """Forget where the primaries are. Open links are kept for those who use them now; who asks for one next gets it
        only if its server says that it is a primary: a name may lead to another one by now."""
        self._doubt_slots()
        self._primary = None
        self._suspects = set(self._links.values())

    def heed(self, replies: Iterable[Any]) -> None:
        """Distrust where a reply says that the primary is elsewhere; the caller raises on the same reply."""
        if any(is_error(reply) and code_of(reply) in _ELSEWHERE for reply in replies):
            self.distrust()

    async def close(self) -> None:
        """Close every link."""
        for link in self._links.values():
            link.abort("closed by us")
        self._links.clear()
        self.distrust()

    def _known(self, key: bytes) -> Address | None:
        if self.settings.mode == "cluster":
            return self._slots[slot_of(key)] if self._slots else None
        return self._primary

    async def _find(self, key: bytes) -> Link:
        mode = self.settings.mode
        if mode == "cluster":
            if not self._slots or (address := self._known(key)) is None or not self._is_open(address):
                await self._learn_slots()
            address = self._known(key)
            if address is None:
                self._doubt_slots()
                raise Unreachable(
                    f"no node of the Cluster serves slot {slot_of(key)}", hint="see CLUSTER INFO: cluster_state"
                )
            return await self._link_as_told(address)
        if mode == "sentinel":
            if self._primary is not None and self._is_open(self._primary):
                return await self._link_to(self._primary)
            return await self._ask_sentinels()
        self._primary = self.settings.addresses[0]
        return await self._link_to(self._primary)

    async def _link_as_told(self, address: Address) -> Link:
        """The link to a node of the slot map; where it leads nowhere, the next call asks somebody else for the map."""
        try:
            return await self._link_to(address)
        except Unreachable:
            self._doubt_slots()
            raise

    def _doubt_slots(self) -> None:
        self._slots = []
        if self._told_by is not None:
            self._doubted = [*(seed for seed in self._doubted if seed != self._told_by), self._told_by]

    def _is_open(self, address: Address) -> bool:
        link = self._links.get(address)
        return link is not None and link.is_open

    async def _link_to(self, address: Address) -> Link:
        link = self._links.get(address)
        if link is not None and link.is_open and link in self._suspects:
            if not await self._is_primary(link):
                link.abort("perhaps it leads to a primary no more")
            self._suspects.discard(link)
        if link is None or not link.is_open:
            link = await connect(self.settings, address)
            try:
                await self._require_primary(link)
            except BaseException:  # cancelled too: no connection stays that nobody knows
                link.abort("not a primary")
                raise
            self._links[address] = link
        return link

    async def _is_primary(self, link: Link) -> bool:
        """Whether its server says so; False where it may not be asked: a new connection costs little."""
        try:
            (role,) = await link.call([("ROLE",)])
        except LinkLost:
            return False
        return not is_error(role) and role[0] == b"master"

    async def _require_primary(self, link: Link) -> None:
        """A replica would be read late and refuse writes; ROLE is not allowed everywhere, then READONLY tells later."""
        try:
            (role,) = await link.call([("ROLE",)])
        except LinkLost as error:
            raise Unreachable(f"Redis at {link.address}: {error}") from error
        if is_error(role):
            return
        if role[0] != b"master":
            raise Unreachable(
                f"Redis at {link.address} is a {'Sentinel' if role[0] == b'sentinel' else 'replica'}, not a primary",
                hint="during a failover this passes; else point the url at the primary, or set mode: sentinel",
            )

    async def _ask_sentinels(self) -> Link:
        """A link to the primary that a Sentinel names: to the first that is one, for a Sentinel may be cut off."""
        name, reasons = self.settings.sentinel_name, []
        hint = "check the Sentinel addresses and the name in `sentinel monitor <name> ...`"
        named: set[Address] = set()
        for seed in self.settings.addresses:
            try:
                link = await connect(self.settings, seed, sentinel=True)
                try:
                    (reply,) = await link.call([("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)])
                finally:
                    link.abort("asked")
            except (Unreachable, LinkLost) as error:
                reasons.append(str(error))
                continue
            found = check(reply, f"asking the Sentinel at {seed}")
            if found is None:
                reasons.append(f"{seed} knows no primary named {name!r}")
                continue
            address = Address(found[0].decode(), int(found[1]))
            if address in named:
                continue
            named.add(address)
            try:
                link = await self._link_to(address)
            except Unreachable as error:
                reasons.append(f"{seed} names {address}: {error}")
                hint = error.hint
                continue
            self._primary = address
            return link
        raise Unreachable(f"no Sentinel leads to a primary of {name!r}: " + "; ".join(reasons), hint=hint)

    async def _learn_slots(self) -> None:
        known = [link.address for link in self._links.values() if link.is_open]
        reasons: list[str] = []
        seeds = dict.fromkeys([*known, *self.settings.addresses])
        # Whoever was wrong longest ago first: several may be cut off together.
        for seed in sorted(seeds, key=lambda seed: self._doubted.index(seed) + 1 if seed in self._doubted else 0):
            try:
                reply = await self._slots_seen_by(seed)
            except (Unreachable, LinkLost) as error:
                reasons.append(str(error))
                continue
            slots: list[Address | None] = [None] * SLOTS
            for first, last, primary, *_ in reply:
                # no name stands for the one that was asked
                host = (primary[0] or b"").decode() or seed.host
                slots[first : last + 1] = [Address(host, int(primary[1]))] * (last - first + 1)
            self._slots, self._told_by = slots, seed
            return
        raise Unreachable("no node of the Cluster answers: " + "; ".join(reasons), hint="check the addresses")

    async def _slots_seen_by(self, seed: Address) -> list[Any]:
        """The slot map. A link of its own where none is open: a seed may be a replica, which may tell but not serve."""
        link = self._links.get(seed)
        own = link is None or not link.is_open
        if own or link is None:
            link = await connect(self.settings, seed)
        try:
            (reply,) = await link.call([("CLUSTER", "SLOTS")])
        finally:
            if own:
                link.abort("asked")
        if is_error(reply) and "cluster support disabled" in str(reply):
            raise UsageError(f"Redis at {seed} is no Cluster", hint="set mode: standalone or mode: sentinel")
        found: list[Any] = check(reply, f"reading the slot map at {seed}")
        return found


async def call_all(nodes: Nodes, links: Iterable[Link], commands: Sequence[Command], doing: str) -> list[list[Any]]:
    """The same commands on several links; error replies are values. Raises Unreachable."""
    try:
        return list(await asyncio.gather(*(link.call(commands) for link in links)))
    except LinkLost as error:
        nodes.distrust()
        raise unreachable(error, doing) from error


async def call_key(nodes: Nodes, key: bytes, commands: Sequence[Command], doing: str) -> list[Any]:
    """Commands about one key, on the node that holds it; error replies are values. Raises Unreachable."""
    link = await nodes.of_key(key)
    try:
        replies = await link.call(commands)
    except LinkLost as error:
        nodes.distrust()
        raise unreachable(error, doing) from error
    nodes.heed(replies)
    return replies


def unreachable(error: Exception, doing: str) -> CrossfadeError:
    """A lost link as the error that the relay understands."""
    return Unreachable(f"{doing}: {error}", hint="the relay tries again; check the server and the network")
