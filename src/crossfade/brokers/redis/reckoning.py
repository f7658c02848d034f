"""Proof, from one atomic look at a stream key, that no record between a place and the next one was lost.

Pure arithmetic on what `XRANGE <place> +` and `XINFO STREAM` gave inside one MULTI. Invariant: a verdict without error
is given only where every entry that was ever added behind the place is still there or was read, as far as a Redis
server lets anybody know; where counting cannot tell, the verdict is an error that says so. Called by `source`.

What counts: `entries-added` grows by one with every XADD and never falls (XSETID may rewrite it: then nothing here
holds). XTRIM removes from the left only and leaves `max-deleted-entry-id` alone; XDEL moves it to the highest id that
it ever removed. `Place.count` says how many of the entries ever added are accounted for. While it is not known
(from a start inside a stream to the first end), that highest id alone tells of deletions: one beyond the place that has
grown since the place was made is a loss. (What goes below an id that had gone before the place was made does not show.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from ...model.position import Place, position_order

#: `entries-added - count` is known to be the number of records behind the place
_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Look:
    """One atomic look at a lane, taken while reading on from a place."""

    exists: bool
    #: False: something else stands at the key
    is_stream: bool = True
    #: birth groups on the key, of all routes, with their last-delivered-id: a route sets that of its own to its place
    #: from time to time, and it is replicated behind the data
    births: Mapping[str, str] = field(default_factory=dict)
    added: int = 0
    length: int = 0
    last: str = "0-0"
    max_deleted: str = "0-0"
    #: id of the oldest entry, "" = the stream is empty
    first: str = ""
    #: the place's own entry is still there
    has_own: bool = False
    #: digest of that entry, "" = not computed
    witness: str = ""
    #: entries that the read gave behind the place
    rows: int = 0
    #: the read gave everything up to the end
    at_end: bool = True
    #: identity of the server's replication history; it changes with every failover and restart, "" = not known
    history: str = ""

    @property
    def holes_until(self) -> str:
        """Up to this id single entries are gone from between others; "" = none is."""
        return "" if self.max_deleted == "0-0" else self.max_deleted

    def with_read(self, *, has_own: bool, witness: str, rows: int, at_end: bool) -> Look:
        """The look, together with what the read of the same moment gave."""
        return replace(self, has_own=has_own, witness=witness, rows=rows, at_end=at_end)


class Fault(Enum):
    """What went wrong with a source lane."""

    TRIMMED = "trimmed"
    DELETED = "deleted"
    RESET = "reset"
    ORPHANED = "orphaned"
    REPLACED = "replaced"
    REGRESSED = "regressed"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a look says about the place it was taken from."""

    fault: Fault | None
    why: str = ""
    #: records that are gone uncopied, -1 = cannot be known
    lost_records: int = _UNKNOWN
    #: `Place.count` behind the rows that were read, -1 = not known
    count: int = _UNKNOWN
    #: records that were deleted uncopied and are counted, not halted on (policy `count`), and trimmed ones among them
    forgiven_records: int = 0


def witness_text(digest: str, look: Look, count: int) -> str:
    """The witness of a place: digest of its entry, and the replication history in which it was seen.

    Where the count is not known, the highest id that was deleted by then as well ("" = none).
    """
    if count == _UNKNOWN:
        return f"{digest}.{look.history}.{look.holes_until}"
    return f"{digest}.{look.history}" if look.history else digest


def digest_in(witness: str) -> str:
    """Digest of a place's own entry, "" = not known."""
    return witness.partition(".")[0]


def _history_in(witness: str) -> str:
    return witness.partition(".")[2].partition(".")[0]


def _deleted_by_then(witness: str) -> str | None:
    """The highest id that was deleted when the place was made; None = nobody noted it."""
    _, has_noted, deleted = witness.partition(".")[2].partition(".")
    return deleted if has_noted else None


def judge(place: Place, look: Look, *, counts_deleted: bool) -> Verdict:
    """Say whether reading on from `place` loses nothing.

    `counts_deleted`: deletions of records that are not copied yet are counted, not halted on.
    """
    if not look.is_stream:
        return Verdict(Fault.REPLACED, "the key holds something else than a stream")
    never_existed = not place.position and not place.count and not place.incarnation
    if not look.exists:
        if never_existed:
            return Verdict(None, count=0)
        return Verdict(Fault.RESET, "the key is gone: deleted, expired or evicted")
    if place.incarnation and place.incarnation not in look.births:
        return _judge_orphan(place, look)
    regressed = _regressed(place, look, counts_deleted)
    if regressed:
        return Verdict(Fault.REGRESSED, regressed + _passed_over(place))
    if place.count == _UNKNOWN:
        return _judge_uncounted(place, look, counts_deleted)
    return _judge_counted(place, look, counts_deleted)


def _judge_orphan(place: Place, look: Look) -> Verdict:
    """The birth group is gone: with its key, unless the place's own entry and the counters speak for the same key.

    Proven is that not: an application may number its entries and write the same ones into a new key.
    """
    gone = f"its birth group {place.incarnation} is gone"
    digest = digest_in(place.witness)
    missing = None if place.count == _UNKNOWN else _missing(place, look, look.added - place.count)
    went_back = place.count > look.added or (missing is not None and missing < 0)
    if look.has_own and digest and digest == look.witness and not went_back:
        return Verdict(
            Fault.ORPHANED,
            f"{gone}, but entry {place.position} stands as it was read: somebody removed the group, or made the key "
            "anew with the same entries",
        )
    return Verdict(Fault.RESET, f"{gone}: the key was deleted and made anew")


def _regressed(place: Place, look: Look, counts_deleted: bool) -> str:
    """Why the stream lost something that we had already read, or ""."""
    own = position_order(place.position)
    if place.position and position_order(look.last) < own:
        return f"it ends at {look.last}, before {place.position} which was already read"
    if place.count > look.added:
        return f"{look.added} entries were ever added, {place.count} were already read"
    digest, history = digest_in(place.witness), _history_in(place.witness)
    if look.has_own and digest and look.witness and digest != look.witness:
        return f"another entry stands at {place.position} than the one that was read"
    if not place.position or look.has_own:
        return ""
    was_deleted = position_order(look.max_deleted) >= own
    if _has_older(place, look) and not was_deleted:
        return f"entry {place.position} was already read and is gone, neither trimmed nor deleted"
    # After a failover or restart the counters of another history could add up by chance. The birth group's position was
    # set by us behind what we had read and is replicated in order: where it stands, everything before it stood too.
    # Where deletions are only counted, the counters prove nothing finer anyway, and task queues delete all the time.
    is_other_history = bool(history and look.history) and history != look.history
    vouched = look.births.get(place.incarnation, "")
    if is_other_history and vouched != place.position and not (counts_deleted and was_deleted):
        return f"entry {place.position} is gone and the server's history changed: a failover may have undone it"
    return ""


def _has_older(place: Place, look: Look) -> bool:
    """True where an entry before the place is still there: trimming, which works from the left, never came that far."""
    return bool(look.first) and position_order(look.first) < position_order(place.position)


def _passed_over(place: Place) -> str:
    """What an accepted loss may leave behind: a server that went back may have given out ids anew."""
    if not place.position:
        return ""  # then the lane is read from its beginning
    return (
        f"; an accepted loss passes over what was written since with ids up to {place.position}, which "
        "`crossfade verify` names"
    )


def _judge_uncounted(place: Place, look: Look, counts_deleted: bool) -> Verdict:
    """The count is not known yet (a start from a time or position): the place's own entry proves that nothing behind it
    was trimmed, and the highest deleted id that nothing was deleted since the place was made."""
    if not (look.has_own or _has_older(place, look)):
        why = f"entry {place.position} was trimmed; whether anything behind it too cannot be told"
        return Verdict(Fault.TRIMMED, why)
    known = _deleted_by_then(place.witness)
    seen = max(position_order(place.position), position_order(known or ""))
    if known is not None and position_order(look.max_deleted) > seen and not counts_deleted:
        return Verdict(
            Fault.DELETED,
            f"entries behind {place.position}, up to {look.max_deleted}, were deleted before they were copied; "
            "how many cannot be told",
        )
    return Verdict(None, count=look.added if look.at_end else _UNKNOWN)


def _judge_counted(place: Place, look: Look, counts_deleted: bool) -> Verdict:
    expected = look.added - place.count  # behind the place, if nothing is gone
    missing = _missing(place, look, expected)
    if missing is None or missing == 0:
        return Verdict(None, count=place.count + look.rows)
    if missing < 0:
        return Verdict(
            Fault.REGRESSED,
            f"{expected} entries were added since the last one that was read, but {expected - missing} are there: "
            "the server's counters went back (failover, XSETID)" + _passed_over(place),
        )
    may_be_deleted = position_order(look.max_deleted) > max(position_order(place.position), (0, 0))
    only_deleted = look.has_own or _has_older(place, look)
    if may_be_deleted or only_deleted:
        if counts_deleted:
            # What was trimmed beside a deletion is forgiven with it: no counter tells the two apart.
            count = look.added if look.at_end else place.count + missing + look.rows
            return Verdict(None, count=count, forgiven_records=missing)
        how = "deleted" if only_deleted else "deleted or trimmed"
        return Verdict(
            Fault.DELETED, f"{missing} entries behind {_spot(place)} were {how} before they were copied", missing
        )
    return Verdict(
        Fault.TRIMMED, f"{missing} entries behind {_spot(place)} were trimmed before they were copied", missing
    )


def _missing(place: Place, look: Look, expected: int) -> int | None:
    """How many entries behind the place are gone; None = cannot be told before the end of the lane is read."""
    if look.at_end:
        return expected - look.rows
    own = position_order(place.position)
    if look.first and position_order(look.first) >= own:
        # nothing older is there, so all but the place's own entry are behind it
        return expected - (look.length - (1 if look.has_own else 0))
    return None


def _spot(place: Place) -> str:
    return place.position or "the beginning"
