"""Rows as columns are the same rows, and mappings turn them into the same rows."""

from hypothesis import example, given
from hypothesis import strategies as st

from crossfade.brokers.redis.packing import chunks, lay_out, pack_call, refuse
from crossfade.model.lossless import MAGIC
from crossfade.model.mapping import mapping_named
from crossfade.model.position import Place
from crossfade.model.record import Batch, EntryColumns, RecordColumns, Shape

_KEYS = st.none() | st.binary(max_size=3)
_PACKED = MAGIC + b"\0\0\0\1a\0\0\0\1b"
_VALUES = st.binary(max_size=4) | st.none() | st.just(_PACKED)
_HEADERS = st.none() | st.just([("a", b"1")])
_PLAIN = st.tuples(st.binary(max_size=3), st.binary(max_size=4), st.none(), st.integers(0, 9))
_ROWS = st.lists(st.tuples(_KEYS, _VALUES, _HEADERS, st.integers(0, 9))) | st.lists(_PLAIN, min_size=1)


def columns(rows):
    keys, values, headers, times = map(list, zip(*rows, strict=True)) if rows else ([], [], [], [])
    return RecordColumns(keys, values, headers, times)


def batch(rows):
    return Batch(0, Shape.RECORD, list(range(len(rows))), rows, Place("9", 10))


def told(rejects):
    return [(reject.position, reject.reason) for reject in rejects]


@given(_ROWS, st.integers(0, 5), st.integers(0, 5))
def test_columns_are_their_rows(rows, first, last):
    made = columns(rows)
    assert list(made) == rows
    assert made == rows
    assert len(made) == len(rows)
    assert list(made[first:last]) == rows[first:last]
    assert [made[at] for at in range(-len(rows), len(rows))] == [rows[at] for at in range(-len(rows), len(rows))]


@given(_ROWS)
@example([(None, b"v", None, 1), (None, _PACKED, None, 2)])  # nothing but the value tells that it is packed
@example([(b"k", b"\xff\xff", None, 1)])
def test_mappings_do_not_see_a_difference(rows):
    for target in Shape:
        for name in ("lossless", "body"):
            by_row = mapping_named(name).translate(batch(rows), target)
            by_column = mapping_named(name).translate(batch(columns(rows)), target)
            assert (by_column.positions, list(by_column.rows)) == (by_row.positions, list(by_row.rows))
            assert told(by_column.rejects) == told(by_row.rejects)


@given(st.lists(_PLAIN, min_size=1, max_size=20))
def test_a_packed_call_is_the_same(rows):
    entries = mapping_named("lossless").translate(batch(columns(rows)), Shape.ENTRY).rows
    packed = []
    for given_rows in (entries, list(entries)):
        taken, _ = refuse(list(range(len(rows))), given_rows)
        (chunk,) = chunks(taken, [], Place("9", 10), counted_from=0)
        packed.append(pack_call("0", [b"k"], b"", lay_out(chunk), chunk))
    assert isinstance(entries, EntryColumns)
    assert [list(part[0]) for part in entries] == [[b"key", key, b"value", value] for key, value, _, _ in rows]
    assert packed[0] == packed[1]
