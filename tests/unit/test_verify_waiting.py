"""Rows that wait to be compared: pieces in, stretches out, whatever their sizes."""

from hypothesis import given
from hypothesis import strategies as st

from crossfade.model.record import EntryColumns, RecordColumns, joined
from crossfade.verify.waiting import Waiting


def records(numbers):
    texts = [b"%d" % number for number in numbers]
    return RecordColumns(texts, texts, [None] * len(texts), list(numbers))


def entries(numbers, name=b"f"):
    return EntryColumns([name], [[b"%d" % number for number in numbers]], list(numbers))


def plain(numbers):
    return [([b"f", b"%d" % number], number) for number in numbers]


@given(
    st.lists(st.tuples(st.integers(0, 600), st.sampled_from([records, entries, plain])), max_size=8),
    st.lists(st.tuples(st.integers(0, 700), st.integers(0, 700)), max_size=12),
)
def test_what_came_in_pieces_goes_in_stretches(pieces, takes):
    waiting, rows, number = Waiting(), [], 0
    for size, kind in pieces:
        some = kind(range(number, number + size))
        waiting.add(range(number, number + size), some)
        rows += list(some)
        number += size
    done = 0
    for looked, taken in takes:
        positions, found = waiting.first(looked)
        assert list(positions) == list(range(done, min(number, done + looked)))
        assert list(found) == rows[done : done + looked]
        assert waiting.at_hand <= len(waiting) == number - done
        taken = min(taken, len(waiting))
        waiting.drop(taken)
        done += taken
        if waiting:
            assert waiting.last == number - 1
            assert waiting.at_hand > 0


def test_columns_stay_columns_where_they_are_of_one_kind():
    assert isinstance(joined(records([1]), records([2, 3])), RecordColumns)
    assert isinstance(joined(entries([1]), entries([2])), EntryColumns)
    assert list(joined(entries([1]), entries([2], b"g"))) == [([b"f", b"1"], 1), ([b"g", b"2"], 2)]
    assert list(joined(plain([1]), entries([2]))) == plain([1, 2])
