"""How many target lanes a source lane may have, and whether their markers really find room then."""

import pytest

from crossfade.brokers.kafka import markers, names
from crossfade.brokers.kafka.room import COUNT_MAX, QUARANTINED_MAX, refuse_crowded, target_lanes_max
from crossfade.brokers.redis.keys import new_birth
from crossfade.brokers.redis.looking import digest_of
from crossfade.brokers.redis.reckoning import Look, witness_text
from crossfade.errors import GuaranteeRefused
from crossfade.model.position import Marker, Place
from crossfade.model.route import LaneMap, make_route
from crossfade.model.wire import MARKER_UNITS_MAX, encode_marker

ROUTES = ["r", "forward-1a2b3c4d", "r" * 63]


def places(kind, route):
    """Wide places, as the sources themselves make them."""
    if kind == "kafka":
        return [Place(str(COUNT_MAX), COUNT_MAX, "pVQw1kZ_RyWq0zT1hRr5Ag", str(2**31 - 1))]
    ids = ["9999999999999-99999999", "1999999999999999999-99"]  # of milliseconds, of nanoseconds
    digest = digest_of([b"key", b"k", b"value", b"v"])
    looks = [Look(True, history="f" * 8, max_deleted=deleted) for deleted in ids]
    return [
        Place(position, count, new_birth(route), witness_text(digest, look, count))
        for position in ids
        for look in looks
        for count in (COUNT_MAX, -1)
    ]


def widest(kind, route, lanes):
    for place in places(kind, route):
        marker = Marker(
            place,
            ordinal=COUNT_MAX,
            relayed=place.position,
            target=str(COUNT_MAX),
            epoch=COUNT_MAX,
            claim_id="f" * 16,
            transactional_id=names.transactional_id(route, "i" * 63, None),
            source="f" * 16,
            quarantined=QUARANTINED_MAX,
        )
        yield {(7, lane): marker for lane in range(lanes)}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("kind", ["redis", "kafka"])
def test_so_many_target_lanes_always_find_room(kind, route):
    most = target_lanes_max(route, kind)
    assert most >= 25
    widths = []
    for given in widest(kind, route, most):
        text = markers.encode(given, is_alone=False)
        assert markers.decode(text, 7, list(given)) == given
        widths.append(len(text))
    assert max(widths) <= MARKER_UNITS_MAX
    too_many = max(widest(kind, route, most + 1), key=lambda given: len(encode_marker(given[7, 0])))
    with pytest.raises(GuaranteeRefused, match=f"has {most + 1} target lanes") as told:
        markers.encode(too_many, is_alone=False)
    assert "fewer partitions" in told.value.hint


def route(target_lanes, lane_map):
    return make_route(
        id="idforward",
        name="forward",
        source_identity="",
        source_lanes=2,
        target_lanes=target_lanes,
        lane_map=lane_map,
        partitioner="murmur2",
        mapping_digest="",
    )


@pytest.mark.parametrize("kind", ["redis", "kafka"])
def test_more_target_lanes_are_refused_with_what_to_do(kind):
    most = target_lanes_max("idforward", kind)
    refuse_crowded(route(most, LaneMap.BY_KEY), kind)
    refuse_crowded(route(1, LaneMap.BY_KEY), kind)
    refuse_crowded(route(4_000, LaneMap.ONE_TO_ONE), kind)
    with pytest.raises(GuaranteeRefused, match=f"lane to {most + 1} target lanes.*has room for {most}") as told:
        refuse_crowded(route(most + 1, LaneMap.BY_KEY), kind)
    assert told.value.hint == f"copy into a topic of at most {most} partitions, or set `lanes: one-to-one` on the route"
