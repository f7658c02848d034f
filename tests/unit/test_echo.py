"""What is an echo and what is not: the pure decision, and where the markers between the calls of a write stand."""

import pytest

from crossfade.brokers.redis.pieces import pieces_of
from crossfade.model.echo import UNKNOWN, bare, part_echoes, with_echoes
from crossfade.model.position import Place
from crossfade.model.record import Batch, Shape, Write

OTHER, OWN = "route-b", "route-a"
RECORD, ENTRY = Shape.RECORD, Shape.ENTRY


def row(shape, mark=None, value=b"v"):
    if shape is RECORD:
        return (b"k", value, [("app", b"1"), *([("xf", mark)] if mark else [])], 1000)
    return ([b"key", b"k", b"value", value, *([b"xf", mark] if mark else [])], 1000)


def mark(ordinal, route=OTHER, lane=0):
    return f"1;{route}/{lane}@{ordinal + 100}#{ordinal};1".encode()


def part(shape, marks, before=None, has_gaps=False):
    rows = [row(shape, one) for one in marks]
    positions = list(range(len(rows))) if shape is RECORD else [b"%d-0" % (n + 1) for n in range(len(rows))]
    end = Place(str(positions[-1]) if shape is RECORD else positions[-1].decode(), len(rows), "life")
    parted = part_echoes(Batch(0, shape, positions, rows, end), before or Place(), OTHER, has_gaps=has_gaps)
    return [positions.index(position) for position in parted.batch.positions], parted


@pytest.mark.parametrize("shape", [RECORD, ENTRY])
def test_echoes_in_turn_are_left_out_and_counted(shape):
    kept, parted = part(shape, [None, mark(1), mark(2), None, mark(3)])
    assert kept == [0, 3]
    assert (parted.batch.place.echo, parted.batch.place.echoes, parted.batch.place.incarnation) == (3, 3, "life")
    assert parted.out_of_turn == []


@pytest.mark.parametrize("shape", [RECORD, ENTRY])
def test_copied_marks_are_native(shape):
    kept, parted = part(shape, [mark(1), mark(1), mark(2), mark(1), mark(2), mark(3)])
    assert kept == [1, 3, 4]
    assert (parted.batch.place.echo, parted.batch.place.echoes) == (3, 3)
    assert parted.out_of_turn == []


@pytest.mark.parametrize("shape", [RECORD, ENTRY])
@pytest.mark.parametrize(
    "stranger", [mark(1, route=OWN), mark(1, lane=1), b"an application's own", b"2;" + mark(1)[2:]]
)
def test_marks_of_others_are_native(shape, stranger):
    assert part(shape, [stranger, mark(1)])[0] == [0]


def test_a_later_ordinal_is_native_and_told():
    kept, parted = part(RECORD, [mark(1), mark(3), mark(2)])
    assert kept == [1]
    assert parted.out_of_turn == ["1"]


def test_where_records_may_be_deleted_a_later_ordinal_is_an_echo():
    kept, parted = part(RECORD, [mark(1), mark(3), mark(2), mark(4)], has_gaps=True)
    assert kept == [2]
    assert (parted.batch.place.echo, parted.batch.place.echoes) == (4, 3)


def test_the_count_goes_on_where_the_place_stands():
    kept, parted = part(RECORD, [mark(6), mark(7), mark(8)], before=Place("9", 10, echo=6, echoes=4))
    assert kept == [0]
    assert (parted.batch.place.echo, parted.batch.place.echoes) == (8, 6)


def test_an_unknown_count_begins_with_the_next_echo():
    kept, parted = part(RECORD, [None, mark(41), mark(40), mark(42)], before=Place(echo=UNKNOWN))
    assert kept == [0, 2]
    assert parted.batch.place.echo == 42


def test_the_newest_mark_counts():
    older = (b"k", b"v", [("xf", mark(1)), ("xf", mark(1, route=OWN))], 5)
    assert part_echoes(Batch(0, RECORD, [0], [older], Place("0", 1)), Place(), OTHER).batch.rows == [older]
    newer = ([b"xf", mark(1, route=OWN), b"a", b"b", b"xf", mark(1)], 5)
    assert part_echoes(Batch(0, ENTRY, [b"1-0"], [newer], Place("1-0", 1)), Place(), OTHER).batch.rows == []


def test_a_source_never_sees_the_echoes_of_a_place():
    assert bare(Place("3", 4, "life", "w", 7, 8)) == Place("3", 4, "life", "w")


def test_each_piece_of_a_long_write_knows_the_echoes_before_its_end():
    marks = [mark(number // 2 + 1) if number % 2 else None for number in range(2400)]
    _, parted = part(RECORD, marks, before=Place(echo=0))
    batch = parted.batch
    pieces = pieces_of(
        Write((0, 0), batch.positions, [row(ENTRY) for _ in batch.rows], batch.place, passed=parted.passed)
    )
    assert [len(piece.rows) for piece in pieces] == [500, 500, 200]
    # behind the native record at 998 lie 499 echoes: the one at 999 comes next
    assert [(piece.place.position, piece.place.echo, piece.place.echoes) for piece in pieces] == [
        ("998", 499, 499),
        ("1998", 999, 999),
        ("2399", 1200, 1200),
    ]


def test_places_of_released_versions_and_of_routes_without_pair_have_no_echoes():
    import msgspec

    assert msgspec.json.decode(b'{"position":"5","count":6}', type=Place) == Place("5", 6)
    assert b"echo" not in msgspec.json.encode(with_echoes(Place("5", 6), 0, 0))
