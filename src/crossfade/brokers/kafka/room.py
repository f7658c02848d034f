"""How many target lanes the markers of one source lane have room for. Pure.

Hides how wide markers become in the life of a route: fresh ones are short, and Kafka stores no more than so many
characters for a source lane. Invariant: what passes here, `markers.encode` takes for as long as the route copies.
Called by `wiring`, before a route is first started, and for `doctor`.
"""

from __future__ import annotations

from ...errors import GuaranteeRefused
from ...model.position import Marker, Place
from ...model.route import Route
from ...model.wire import MARKER_UNITS_MAX
from . import markers, names

#: records of a lane, offsets of a partition, claims of a route: a thousand a second fill this in thirty years
COUNT_MAX = 10**12 - 1
#: records in quarantine
QUARANTINED_MAX = 10**9 - 1
#: an entry id as Redis makes it, with every sequence number that a millisecond has time for; or one of nanoseconds
ID_MAX = f"{10**13 - 1}-{10**8 - 1}"
#: a witness of a Redis source: digest of an entry, replication history; where entries cannot be counted also an id
_WITNESS = f"{'f' * 16}.{'f' * 8}"
_EPOCH_MAX = 2**31 - 1  # of a Kafka leader
_TOPIC_ID = "x" * 36
_INSTANCE = "x" * 63
_DIGEST = "f" * 16


def refuse_crowded(route: Route, source_kind: str) -> None:
    """Refuse a route whose markers could outgrow their room while it copies. Raises GuaranteeRefused."""
    lanes, most = len(route.paths_of(0)), target_lanes_max(route.id, source_kind)
    if lanes > most:
        raise GuaranteeRefused(
            f"route {route.name!r} maps each source lane to {lanes} target lanes; Kafka keeps their markers in one "
            f"text of {MARKER_UNITS_MAX} characters, which has room for {most}",
            hint=f"copy into a topic of at most {most} partitions, or set `lanes: one-to-one` on the route",
        )


def target_lanes_max(route: str, source_kind: str) -> int:
    """So many target lanes may a source lane have, whatever its markers come to hold. `source_kind`: redis, kafka."""
    return min(_most(route, place) for place in widest_places(route, source_kind))


def widest_places(route: str, source_kind: str) -> list[Place]:
    """The widest places that a source of this kind makes."""
    if source_kind == "kafka":
        return [Place(str(COUNT_MAX), COUNT_MAX, _TOPIC_ID, str(_EPOCH_MAX))]
    birth = f"{names.PREFIX}{route}.{'f' * 12}"
    return [Place(ID_MAX, COUNT_MAX, birth, _WITNESS), Place(ID_MAX, -1, birth, f"{_WITNESS}.{ID_MAX}")]


def _most(route: str, place: Place) -> int:
    marker = Marker(
        place,
        ordinal=COUNT_MAX,
        relayed=place.position,
        target=str(COUNT_MAX),
        epoch=COUNT_MAX,
        claim_id=_DIGEST,
        transactional_id=names.transactional_id(route, _INSTANCE, None),
        source=_DIGEST,
        quarantined=QUARANTINED_MAX,
    )
    lanes = 1
    while _fit(marker, lanes + 1):
        lanes += 1
    return lanes


def _fit(marker: Marker, lanes: int) -> bool:
    try:
        markers.encode({(0, lane): marker for lane in range(lanes)}, is_alone=False)
    except GuaranteeRefused:
        return False
    return True
