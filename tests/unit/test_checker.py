"""The history checker names every anomaly that was planted, and is silent without one."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest

from crossfade.lab.checker import ANOMALIES, EXAMPLES_MAX, Report, check
from crossfade.lab.history import FAILED, INFO, UNKNOWN, HistoryWriter, digest_of, id_in, read_history

LANES, RECORDS = 4, 4000


def make_history(path: Path, *, failed: set[int] = frozenset(), unknown: set[int] = frozenset()) -> None:
    history = HistoryWriter(path, {"kind": "redis"})
    for first in range(0, RECORDS, 250):
        ids = range(first, first + 250)
        history.intend(first, array("H", [id % LANES for id in ids]), array("I", [id * 7 for id in ids]))
        outcome = {**dict.fromkeys(failed, FAILED), **dict.fromkeys(unknown, UNKNOWN)}
        history.settle(first, [outcome.get(id, b"1700000000%03d-%d" % (id // 10 % 1000, id)) for id in ids])
    history.close()


def perfect() -> dict[int, list[tuple[int | None, int, object]]]:
    return {lane: [(id, id * 7, f"{id}") for id in range(lane, RECORDS, LANES)] for lane in range(LANES)}


def judge(tmp_path: Path, damaged: dict[int, list[tuple[int | None, int, object]]], **outcomes: set[int]) -> Report:
    make_history(tmp_path / "h", **outcomes)
    return check(read_history(tmp_path / "h"), source=perfect(), target=damaged)


def found(report: Report) -> dict[str, int]:
    return {name: count for name, count in report.target.counts.items() if count}


def test_clean_run_is_silent(tmp_path: Path) -> None:
    report = judge(tmp_path, perfect())
    assert report.ok
    assert report.target.records == report.source.records == RECORDS  # type: ignore[union-attr]


def test_each_damage_has_its_name(tmp_path: Path) -> None:
    target = perfect()
    lane = target[1]

    def damaged(change: str) -> dict[int, list[tuple[int | None, int, object]]]:
        rows = list(lane)
        if change == "lost-write":
            del rows[500]
        elif change == "unseen":
            del rows[-1]
        elif change == "duplicate":
            rows.insert(700, rows[500])
        elif change == "nonmonotonic":
            rows[500], rows[501] = rows[501], rows[500]
        elif change == "altered":
            rows[500] = (rows[500][0], 1, rows[500][2])
        elif change == "invented":
            rows.insert(500, (None, 5, "x"))
        elif change == "misplaced":
            return {**target, 1: rows[:500] + rows[501:], 2: [*target[2], rows[500]]}
        return {**target, 1: rows}

    for name in set(ANOMALIES) - {"G1a"}:
        report = judge(tmp_path / name, damaged(name))
        assert found(report) == {name: 1}
        assert len(report.target.examples[name]) == 1
        assert not report.ok


def test_refused_record_that_appears_is_an_aborted_read(tmp_path: Path) -> None:
    make_history(tmp_path / "h", failed={9})
    source = perfect()
    source[1] = [row for row in source[1] if row[0] != 9]
    report = check(read_history(tmp_path / "h"), source=source, target=perfect())
    assert found(report) == {"G1a": 1}


def test_record_that_the_source_does_not_hold_is_an_aborted_read(tmp_path: Path) -> None:
    make_history(tmp_path / "h", unknown={9})
    source = perfect()
    source[1] = [row for row in source[1] if row[0] != 9]
    report = check(read_history(tmp_path / "h"), source=source, target=perfect())
    assert found(report) == {"G1a": 1}


def test_unknown_sends_may_be_there_or_not(tmp_path: Path) -> None:
    make_history(tmp_path / "h", unknown={9, 13})
    there = perfect()
    without = {lane: [row for row in rows if row[0] not in (9, 13)] for lane, rows in perfect().items()}
    assert check(read_history(tmp_path / "h"), source=there, target=there).ok
    assert check(read_history(tmp_path / "h"), source=without, target=without).ok


def test_source_that_lost_an_acknowledged_record_is_not_ok(tmp_path: Path) -> None:
    make_history(tmp_path / "h")
    shorter = perfect()
    del shorter[3][10]
    report = check(read_history(tmp_path / "h"), source=shorter, target=shorter)
    assert report.source is not None
    assert report.source.counts["lost-write"] == 1
    assert report.target.ok
    assert not report.ok


def test_without_source_the_acknowledged_positions_decide(tmp_path: Path) -> None:
    make_history(tmp_path / "h")
    target = perfect()
    target[0][5], target[0][6] = target[0][6], target[0][5]
    report = check(read_history(tmp_path / "h"), target=target)
    assert found(report) == {"nonmonotonic": 1}


def test_examples_are_bounded_and_totals_exact(tmp_path: Path) -> None:
    target = perfect()
    target[0] = target[0][500:]
    report = judge(tmp_path, target)
    assert report.target.counts["lost-write"] == 500
    assert len(report.target.examples["lost-write"]) == EXAMPLES_MAX
    assert report.as_dict()["ok"] is False


def test_block_cut_by_a_crash_is_dropped_and_the_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "h"
    make_history(path)
    data = path.read_bytes()
    path.write_bytes(data[:-10])  # the last outcome block is torn
    assert read_history(path).count(INFO) == 250
    again = HistoryWriter(path, {})
    again.settle(RECORDS - 250, [b"5-1"] * 250)
    again.close()
    assert read_history(path).count(INFO) == 0


@pytest.mark.parametrize(("data", "id"), [(b'x{"id":"0000000000000042"', 42), (b"nothing", None), (b"", None)])
def test_id_in(data: bytes, id: int | None) -> None:
    assert id_in(data) == id


def test_digest_sees_order_and_absence() -> None:
    assert digest_of(b"k", b"v") != digest_of(b"v", b"k")
    assert digest_of(None, b"v") != digest_of(b"", b"v")
    assert digest_of(b"k", b"v", [("a", b"1")]) != digest_of(b"k", b"v", [("a", None)])
