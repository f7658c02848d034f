"""Positions and places: where a reader stands in a source lane, in a form that survives restarts.

A position is text (`1700000000000-3`, `42`); its order is numeric. A `Place` adds what a source needs in order to
*prove*, on the next read, that nothing between was lost: a count, the incarnation, and a witness of the last record.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

#: A position as its broker gives it: a Redis entry id (`b"1700000000000-3"`) or a Kafka offset.
NativePosition: TypeAlias = bytes | int


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where the reading of one source lane stands."""

    #: last position seen, as text; "" = before the first record
    position: str = ""
    #: what of `Bounds.count` this place accounts for. Redis: entries added so far, up to and with `position`
    #: (-1 = not known yet). Kafka: the offset to read next, control records included
    count: int = 0
    #: what tells this lane from a re-created one: Kafka topic id; Redis stream birth
    incarnation: str = ""
    #: Redis: digest of the entry at `position`; Kafka: leader epoch of the record at `position`
    witness: str = ""
    #: only on a route that is one of a pair: ordinal of the last echo of the other route at or before `position`
    #: (0 = none yet, -1 = not known: the next echo tells), and how many echoes were passed over since the start
    echo: int = 0
    echoes: int = 0


class Marker(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is stored beside the target lane, in the same atomic step as the records it covers."""

    place: Place
    #: records relayed on this path since its start; ordinals of a path are 1, 2, 3 ... without gaps
    ordinal: int = 0
    #: source position of the last *relayed* record ("" = none); `place.position` may be ahead of it
    relayed: str = ""
    #: target position of the last relayed record ("" = none)
    target: str = ""
    epoch: int = 0
    #: random id of the claim that wrote it: epochs repeat after a failover, claim ids do not
    claim_id: str = ""
    #: Kafka target: the transactional id of the writer, so that its successor can fence it
    transactional_id: str = ""
    #: digest of source identity, lane map and mapping: a difference halts
    source: str = ""
    #: records quarantined on this path since its start
    quarantined: int = 0


def position_text(position: NativePosition) -> str:
    """The text form of a broker's own position."""
    return position.decode() if isinstance(position, bytes) else str(position)


def offset_behind(place: Place) -> int:
    """The offset behind a place's last Kafka record. Its count may lie further on, behind marks of transactions: those
    are not the record's epoch, and a log that was cut off there has lost nothing."""
    return int(place.position) + 1 if place.position else place.count


def position_order(text: str) -> tuple[int, int]:
    """A sort key: positions of one lane compare as these tuples do. "" sorts before everything."""
    if not text:
        return (-1, -1)
    head, _, tail = text.partition("-")
    return (int(head), int(tail) if tail else 0)


def order_of(position: NativePosition) -> tuple[int, int]:
    """The sort key of a broker's own position; see `position_order`."""
    # position_text, written out: one call less, as this runs for single records
    return position_order(position.decode() if isinstance(position, bytes) else str(position))
