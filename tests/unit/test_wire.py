"""The `xf` text and the marker: what other releases and hostile applications may have written."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crossfade.errors import UsageError
from crossfade.model.position import Marker, Place, order_of, position_order
from crossfade.model.wire import (
    MARKER_UNITS_MAX,
    OWN_TIME_MS_MAX,
    OWN_TIME_MS_MIN,
    Origin,
    decode_marker,
    decode_origin,
    encode_marker,
    encode_origin,
    origin_prefix,
    origin_suffix,
)

routes = st.from_regex(r"[a-z0-9-]{1,63}", fullmatch=True)
numbers = st.integers(0, 2**63 - 1)
positions = st.one_of(numbers.map(str), st.tuples(numbers, numbers).map(lambda pair: f"{pair[0]}-{pair[1]}"))
own_times = st.integers(-(2**63), 2**64 - 1)  # a Kafka time is signed, the time of a Redis id is not
origins = st.builds(Origin, routes, st.integers(0, 99_999), positions, numbers, numbers, st.none() | own_times)


@given(origin=origins)
@example(Origin("r", 0, "1", 1, 1, 1_700_000_000_000_000_000))  # nanoseconds where milliseconds belong
@example(Origin("r", 0, "1", 1, 1, 2**64 - 1))
@example(Origin("r", 0, "1", 1, 1, -(2**63)))
def test_an_origin_comes_back(origin):
    text = encode_origin(origin)
    assert decode_origin(text) == origin
    assert decode_origin(text.encode()) == origin
    # what the hot path builds is the same text
    if origin.time_ms is None:
        hot = (
            f"{origin_prefix(origin.route, origin.lane)}{origin.position}#{origin.ordinal}{origin_suffix(origin.epoch)}"
        )
        assert hot == text


@given(text=st.text() | st.binary())
@example("1;r/0@1#1;1;t=--5")
@example("1;r/0@1#1;1;t=" + "9" * 5000)
@example("1;r/0@1#" + "9" * 5000 + ";1")
@example("1;r/" + "9" * 5000 + "@1#1;1")
@example("1;r/٣@٣#٣;٣")
@example("1;r/0@1#1;1;t=²")
@example(b"1;r/0@1#1;1\n")
@example(b"\xff")
def test_no_text_of_an_application_breaks_the_reader(text):
    origin = decode_origin(text)
    assert origin is None or isinstance(origin.ordinal, int)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "1;r/0@1#1",
        "2;r/0@1#1;1",
        "1;R/0@1#1;1",
        "1;r/0@1#1;1;",
        "1;r/0@-1#1;1",
        " 1;r/0@1#1;1",
        "1;r/0@1#1;1\n",
    ],
)
def test_what_is_not_ours_is_not_an_origin(text):
    assert decode_origin(text) is None


def test_fields_of_a_later_minor_version_are_ignored():
    assert decode_origin("1;r/3@17-2#9;4;zone=eu;t=-1") == Origin("r", 3, "17-2", 9, 4, -1)


@pytest.mark.parametrize("text", ["soon", str(OWN_TIME_MS_MAX + 1), str(OWN_TIME_MS_MIN - 1), "9" * 20])
def test_a_wrong_own_time_is_no_time(text):
    assert decode_origin(f"1;r/3@17-2#9;4;t={text}") == Origin("r", 3, "17-2", 9, 4, None)


def test_the_published_examples_of_version_1_are_read():
    assert decode_origin("1;orders/2@1700000000000-3#42;7") == Origin("orders", 2, "1700000000000-3", 42, 7)
    marker = decode_marker('1;{"place":{"position":"5-1","count":9},"ordinal":8,"relayed":"5-0","epoch":3}')
    assert marker == Marker(place=Place("5-1", 9), ordinal=8, relayed="5-0", epoch=3)


markers = st.builds(
    Marker,
    place=st.builds(
        Place, positions | st.just(""), st.integers(-1, 2**63 - 1), st.text(max_size=40), st.text(max_size=40)
    ),
    ordinal=numbers,
    relayed=positions | st.just(""),
    target=positions | st.just(""),
    epoch=numbers,
    claim_id=st.text(max_size=40),
    transactional_id=st.text(max_size=100),
    source=st.text(max_size=64),
    quarantined=numbers,
)


@given(marker=markers)
def test_a_marker_comes_back_and_fits_kafka(marker):
    text = encode_marker(marker)
    assert decode_marker(text) == marker
    assert len(text.encode("utf-16-le")) // 2 <= MARKER_UNITS_MAX


def test_a_marker_keeps_fields_out_of_sight_of_older_readers():
    body = json.loads(encode_marker(Marker(place=Place("1")))[2:])
    body["later"] = "field"
    assert decode_marker("1;" + json.dumps(body)) == Marker(place=Place("1"))


@pytest.mark.parametrize("text", ["2;{}", "", "x"])
def test_a_newer_marker_is_refused_with_words(text):
    with pytest.raises(UsageError, match="this release reads version 1"):
        decode_marker(text)


@given(left=positions, right=positions)
def test_order_of_positions_is_numeric(left, right):
    def in_numbers(text):
        head, _, tail = text.partition("-")
        return int(head), int(tail or 0)

    assert (position_order(left) > position_order(right)) == (in_numbers(left) > in_numbers(right))
    assert position_order(left) > position_order("")
    assert order_of(left.encode()) == position_order(left)


def test_order_of_offsets_is_that_of_their_texts():
    assert order_of(10) == position_order("10") > order_of(9)


def test_order_of_positions_is_not_the_order_of_texts():
    assert position_order("10") > position_order("9")
    assert position_order("10-10") > position_order("10-9")
    assert position_order("11-0") > position_order("9-99")
