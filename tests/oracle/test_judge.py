"""The independent judge finds and names every planted damage, and is silent without one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from .judge import EXAMPLES_MAX, KINDS, judge
from .redis_side import Resp
from .rows import PACKED, Lane, entry_row, record_row

LANES, RECORDS = 3, 900
Row = tuple[tuple[bytes, ...], int]


def rows() -> dict[int, list[Row]]:
    return {
        lane: [
            ((b"key", b"k%d" % (id % 7), b"value", b'{"id":"%016d","body":"x"}' % (id * LANES + lane)), 1000 + id)
            for id in range(RECORDS)
        ]
        for lane in range(LANES)
    }


def side(lanes: dict[int, list[Row]]) -> dict[int, Lane]:
    result = {}
    for number, content in lanes.items():
        lane = result[number] = Lane()
        for at, (fields, time_ms) in enumerate(content):
            lane.add(at, 0, fields, time_ms)
    return result


def found(target: dict[int, list[Row]]) -> dict[str, int]:
    result = judge(side(rows()), side(target))
    assert all(result.examples[kind] for kind, count in result.counts.items() if count)
    return {kind: count for kind, count in result.counts.items() if count}


def drop(lanes: dict[int, list[Row]]) -> None:
    del lanes[1][400]


def double(lanes: dict[int, list[Row]]) -> None:
    lanes[1].insert(600, lanes[1][400])


def double_on_another_lane(lanes: dict[int, list[Row]]) -> None:
    lanes[2].insert(600, lanes[1][400])


def swap(lanes: dict[int, list[Row]]) -> None:
    lanes[1][400], lanes[1][401] = lanes[1][401], lanes[1][400]


def move_far(lanes: dict[int, list[Row]]) -> None:
    lanes[1].append(lanes[1].pop(400))


def alter(lanes: dict[int, list[Row]]) -> None:
    fields, time_ms = lanes[1][400]
    lanes[1][400] = ((*fields[:-1], fields[-1] + b"!"), time_ms)


def alter_beyond_recognition(lanes: dict[int, list[Row]]) -> None:
    lanes[1][400] = ((b"value", b"garbage"), lanes[1][400][1])


def alter_time(lanes: dict[int, list[Row]]) -> None:
    lanes[1][400] = (lanes[1][400][0], 5)


def invent(lanes: dict[int, list[Row]]) -> None:
    lanes[1].insert(400, ((b"key", b"k", b"value", b'{"id":"0000000000999999","body":"x"}'), 1))


def misplace(lanes: dict[int, list[Row]]) -> None:
    lanes[2].append(lanes[1].pop(400))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (drop, "lost"),
        (double, "duplicated"),
        (double_on_another_lane, "duplicated"),
        (swap, "reordered"),
        (move_far, "reordered"),
        (alter, "altered"),
        (alter_beyond_recognition, "altered"),
        (alter_time, "altered"),
        (invent, "invented"),
        (misplace, "misplaced"),
    ],
)
def test_one_damage_is_found_and_named(damage: Callable[[dict[int, list[Row]]], None], expected: str) -> None:
    target = rows()
    damage(target)
    assert found(target) == {expected: 1}


def test_clean_copy_is_silent() -> None:
    assert found(rows()) == {}


def test_two_damages_on_one_spot_keep_their_names() -> None:
    target = rows()
    target[1][400] = ((b"key", b"k", b"value", b'{"id":"0000000000999999","body":"x"}'), 1)
    assert found(target) == {"lost": 1, "invented": 1}


def test_missing_lane_is_lost_whole_and_examples_are_bounded() -> None:
    target = rows()
    del target[2]
    result = judge(side(rows()), side(target))
    assert result.counts["lost"] == RECORDS
    assert len(result.examples["lost"]) == EXAMPLES_MAX
    assert set(result.counts) == set(KINDS)


def test_equal_records_that_the_source_holds_twice_are_no_duplicates() -> None:
    twice: dict[int, list[Row]] = {0: [((b"key", b"a", b"value", b"b"), 1)] * 2}
    assert judge(side(twice), side(twice)).differences == 0
    three = {0: twice[0] + twice[0][:1]}
    assert judge(side(twice), side(three)).counts["duplicated"] == 1


MARK = b"1;route/3@5-0#1;1"


def test_entry_and_record_meet_in_one_row() -> None:
    assert entry_row([b"key", b"k", b"value", b"v"], 5) == record_row(b"k", b"v", [("xf", MARK)], 5)
    assert entry_row([b"key", b"k", b"value", b"v", b"xf", MARK + b";t=7"], 9) == record_row(b"k", b"v", [], 7)
    assert entry_row([b"value", b"v", b"header:a", b"1", b"header-null:b", b""], 5) == record_row(
        None, b"v", [("a", b"1"), ("b", None)], 5
    )
    assert entry_row([b"tombstone", b""], 5) == record_row(None, None, [("xf", MARK)], 5)
    packed = PACKED + b"".join(len(part).to_bytes(4, "big") + part for part in (b"a", b"1", b"a", b"2"))
    assert entry_row([b"a", b"1", b"a", b"2"], 5) == record_row(None, packed, [], 5)


def test_a_mark_of_someone_else_is_data() -> None:
    assert entry_row([b"a", b"1", b"xf", b"mine"], 5)[0] == (b"a", b"1", b"xf", b"mine")
    assert record_row(b"k", b"v", [("xf", b"mine")], 5)[0] == (b"key", b"k", b"value", b"v", b"header:xf", b"mine")


def test_resp_replies_survive_any_cut() -> None:
    """Every reply is read right when the network hands it over byte by byte."""
    reply = b"*3\r\n$3\r\na\r\n\r\n$-1\r\n*2\r\n:42\r\n+OK\r\n"
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        link, _ = server.accept()
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.recv(100)
        for byte in reply:
            link.sendall(bytes([byte]))
        link.close()

    thread = threading.Thread(target=serve)
    thread.start()
    link = Resp(f"redis://127.0.0.1:{server.getsockname()[1]}")
    assert link.call("ANY") == [b"a\r\n", None, [42, b"OK"]]
    thread.join()
    link.close()
    server.close()
