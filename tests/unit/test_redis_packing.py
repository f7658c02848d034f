"""What one write becomes: calls of bounded size, each with the marker of its own last record."""

from itertools import pairwise

import hiredis
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfade.brokers.redis import packing
from crossfade.brokers.redis.packing import VALUES_MAX, between, chunks, lay_out, pack_call, refuse
from crossfade.model.position import Place
from crossfade.model.record import Reject, Shape


def row(number, *, width=4, size=0):
    return ([b"f%d" % (at // 2) if at % 2 == 0 else b"%d" % number + b"." * size for at in range(width)], 1000 + number)


def cut(positions, rows, rejects=(), place=None, counted_from=-1):
    taken, refused = refuse(list(positions), list(rows))
    assert refused == []
    return list(chunks(taken, list(rejects), place or Place("end", 99), counted_from=counted_from))


def arguments(chunk, keys=(b"stream", b"state")):
    """The command of a chunk, parsed as the server does."""
    reader = hiredis.Reader()
    reader.feed(pack_call("0" * 40, list(keys), b"ask", lay_out(chunk), chunk))
    found = reader.gets()
    assert reader.gets() is False, "the command has exactly the arguments that it announces"
    return found


def unpack(chunk, *, number=True, rejects=0):
    """Positions and rows as `append.lua` takes them apart."""
    found, width, names = arguments(chunk), chunk.width, lay_out(chunk).names
    widths = msgspec.msgpack.decode(found[6]) if not width else None
    times = msgspec.msgpack.decode(found[7]) if found[7] else None
    left, positions, rows = found[8 + len(names) + 4 * rejects :], [], []
    while left:
        name, size = left[0], len(names) if names else width or widths[len(rows)]
        if times is not None:
            time_ms = times[len(rows)]
        else:
            time, _, after = name.partition(b"-")
            time_ms, name = int(time), after if number else name
        positions.append(int(name) if number else name)
        values = left[1 : 1 + size]
        rows.append(([part for pair in zip(names, values, strict=True) for part in pair] if names else values, time_ms))
        left = left[1 + size :]
    return positions, rows


_VALUE = st.binary(max_size=6) | st.sampled_from([b"%", b"%d", b"%%b", b"\r\n", b"key"])


@given(st.integers(1, 3).flatmap(lambda pairs: st.lists(st.lists(_VALUE, min_size=2 * pairs, max_size=2 * pairs))))
def test_any_bytes_arrive_as_they_are(lists):
    rows = [(fields, 1000 + number) for number, fields in enumerate(lists)]
    (chunk,) = cut(range(len(rows)), rows)
    assert unpack(chunk) == (list(range(len(rows))), rows)


@pytest.mark.parametrize("widths", [[4, 4, 4], [2, 4, 8], [2]])
def test_the_script_gets_exactly_the_rows(widths):
    rows = [row(number, width=width) for number, width in enumerate(widths)]
    (chunk,) = cut(range(len(rows)), rows)
    found = arguments(chunk)
    assert found[:6] == [b"EVALSHA", b"0" * 40, b"2", b"stream", b"state", b"ask"]
    assert chunk.width == (widths[0] if len(set(widths)) == 1 else 0)
    assert unpack(chunk) == (list(range(len(rows))), rows)


def test_entry_ids_travel_as_they_are():
    rows = [([b"a", b"1"], 5), ([b"a", b"2"], 5)]
    (chunk,) = cut([b"5-1", b"5-2"], rows)
    assert unpack(chunk, number=False) == ([b"5-1", b"5-2"], rows)


def test_times_that_the_ids_do_not_tell_travel_beside_them():
    rows = [([b"a", b"1"], 5), ([b"a", b"2"], 4)]
    (chunk,) = cut([b"5-1", b"5-2"], rows)
    assert lay_out(chunk).top_ms == -1
    assert unpack(chunk, number=False) == ([b"5-1", b"5-2"], rows)
    (chunk,) = cut([8, 9], [([b"a", b"1"], 5), ([b"a", b"2"], -1)])
    assert unpack(chunk) == ([8, 9], [([b"a", b"1"], 5), ([b"a", b"2"], -1)])


@pytest.mark.parametrize("times", [[-1], [-1, -1], [-1, 1701], [1700, -1], [-1, 1700, 1701], [0, 1700]])
def test_an_own_time_that_the_id_does_not_tell_is_told(times):
    rows = [([b"a", b"b"], time_ms) for time_ms in times]
    ids = [b"%d-0" % (1700 + number) for number in range(len(times))]
    (chunk,) = cut(ids, rows)
    assert lay_out(chunk).top_ms == -1
    assert unpack(chunk, number=False) == (ids, rows)


_OWN_TIMES = st.none() | st.integers(-3, 12)


@given(st.lists(st.tuples(st.integers(0, 12), _OWN_TIMES), min_size=1))
def test_any_own_times_of_entries_arrive(pairs):
    ids = [b"%d-%d" % (time_ms, number) for number, (time_ms, _) in enumerate(pairs)]
    rows = [([b"a", b"b"], time_ms if own_ms is None else own_ms) for time_ms, own_ms in pairs]
    (chunk,) = cut(ids, rows)
    assert unpack(chunk, number=False) == (ids, rows)


_SMALL = st.integers(0, 12)


@given(st.lists(st.tuples(_SMALL, _SMALL | st.integers(0, 2**64 - 1)), min_size=1), st.booleans())
def test_direct_tags_are_entry_ids_that_rise(pairs, number):
    """A refused id in the middle of a script would tear records from their marker."""
    times = [time_ms for time_ms, _ in pairs]
    places = [low if number else b"%d-%d" % (time_ms, low) for time_ms, low in pairs]
    (chunk,) = cut(places, [([b"a", b"b"], time_ms) for time_ms in times])
    tags = lay_out(chunk)
    ids = [(time_ms, low) for time_ms, low in pairs]
    rises = all(left < right for left, right in pairwise(ids))
    if tags.top_ms >= 0:
        assert tags.tags == [b"%d-%d" % one for one in ids]
        assert rises
        assert tags.top_ms == max(times)
    else:
        # by offset, a rising id with a falling offset is legal but never happens
        assert not rises or number


def test_ids_that_rise_are_direct():
    def top_ms(places, times):
        (chunk,) = cut(places, [([b"a", b"b"], time_ms) for time_ms in times])
        return lay_out(chunk).top_ms

    assert top_ms([3, 4, 9], [10, 10, 12]) == 12
    assert top_ms([b"9-9", b"9-10", b"10-0"], [9, 9, 10]) == 10
    assert top_ms([3, 4], [10, 9]) == -1


def test_a_write_without_rows_is_one_call_that_moves_the_marker():
    (chunk,) = cut([], [], place=Place("7", 8))
    assert (chunk.positions, chunk.place, chunk.last_position) == ([], Place("7", 8), "")
    assert unpack(chunk) == ([], [])


def test_rejects_come_before_the_rows():
    reject = Reject(3, row(3), "no good: ü", Shape.ENTRY)
    (chunk,) = cut([1, 2], [row(1), row(2)], [reject])
    found = arguments(chunk, (b"stream", b"state", b"quarantine"))
    assert found[9:11] == lay_out(chunk).names == [b"f0", b"f1"]
    assert found[11:14] == [b"3", "no good: ü".encode(), b"entry"]
    assert msgspec.msgpack.decode(found[14]) == [row(3)[0], row(3)[1]]


def test_calls_are_bounded_by_records_and_cover_the_write_in_order():
    positions = list(range(10, 10 + 2 * 1300, 2))
    parts = cut(positions, map(row, positions), place=Place("5000", 5001, "topic", "4"))
    assert [len(part.positions) for part in parts] == [500, 500, 300]
    assert [at for part in parts for at in part.positions] == positions
    # a Kafka offset says all; the leader epoch of the end checks as well
    assert parts[0].place == Place(str(positions[499]), positions[499] + 1, "topic", "4")
    assert parts[-1].place == Place("5000", 5001, "topic", "4")


def test_calls_are_bounded_by_bytes_but_a_large_record_passes():
    large = packing.CALL_BYTES_MAX
    parts = cut(range(5), [row(0), row(1, width=2, size=large), row(2), row(3, width=2, size=2 * large), row(4)])
    assert [at for part in parts for at in part.positions] == list(range(5))
    assert all(
        sum(len(value) for fields in part.fields for value in fields) <= large or len(part.positions) == 1
        for part in parts
    )


def test_calls_are_bounded_by_values():
    parts = cut(range(100), [row(number, width=VALUES_MAX) for number in range(100)])
    assert [at for part in parts for at in part.positions] == list(range(100))
    assert all(sum(part.widths) <= packing.CALL_VALUES_MAX for part in parts)


def test_a_reject_goes_with_the_call_whose_marker_covers_it():
    positions = [at for at in range(1000) if at not in (3, 700, 999)]
    rejects = [Reject(at, row(at), "no good", Shape.ENTRY) for at in (999, 3, 700)]
    parts = cut(positions, map(row, positions), rejects)
    assert [[reject.position for reject in part.rejects] for part in parts] == [[3], [700, 999]]
    assert parts[0].place.count == parts[0].positions[-1] + 1


@pytest.mark.parametrize(("counted_from", "expected"), [(100, [600, 1100]), (90, [-1, 1100]), (-1, [-1, 1100])])
def test_a_place_between_entries_counts_only_where_every_entry_is_in_the_write(counted_from, expected):
    positions = [b"%d-0" % number for number in range(1, 1001)]
    place = Place("1000-0", 1100, "crossfade.x", "digest.history")
    parts = cut(positions, map(row, range(1, 1001)), place=place, counted_from=counted_from)
    assert [part.place.count for part in parts] == expected
    # the digest is of the last entry alone; the history holds for all
    assert parts[0].place.witness == ".history"
    assert parts[-1].place == place


def test_between_keeps_no_digest_where_there_is_no_history():
    assert between(Place("9-0", -1, "x", "digest"), b"5-0", None) == Place("5-0", -1, "x", "")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (([b"a"] * (VALUES_MAX + 2), 1), "fields"),
        (([b"a"] * 3, 1), "3 names and values"),
        (([], 1), "0 names and values"),
        (([b"a", b"b"], 2**53), "beyond"),
        (([b"a", b"b"], -(2**60)), "beyond"),
    ],
)
def test_what_an_entry_cannot_hold_is_refused_with_the_reason(bad, reason):
    taken, rejects = refuse([1, 2, 3], [row(1), bad, row(3)])
    assert taken.positions == [1, 3]
    assert taken.fields == [row(1)[0], row(3)[0]]
    ((position, found, why, shape),) = rejects
    assert (position, found, shape) == (2, bad, Shape.ENTRY)
    assert reason in why


def test_the_widest_entry_passes():
    assert refuse([1], [row(1, width=VALUES_MAX)])[1] == []
