"""An audit by key keeps few rows, however the source lanes stand in the target lanes."""

from __future__ import annotations

import pytest
from test_verify_audit import LANES, RECORD, TARGET_LANES, KeyedWorld, found
from test_verify_losses import before_reads

from crossfade.model.wire import newest_origin
from crossfade.verify.progress import Progress

READ_MAX, SIDE_MAX = 300, 400
LANE_RECORDS = 5_000


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crossfade.verify.by_key.READ_RECORDS_MAX", READ_MAX)
    monkeypatch.setattr("crossfade.verify.by_key.SIDE_ROWS_MAX", SIDE_MAX)
    monkeypatch.setattr("crossfade.verify.progress.PROGRESS_EVERY_S", 0.0)


async def spread_in_order(lanes: list[list[int]]) -> KeyedWorld:
    """Each target lane holds the copies of one source lane after those of another, as given for it."""
    world = KeyedWorld(RECORD, RECORD)
    await world.fill(LANE_RECORDS)
    await world.copy()
    for to in range(TARGET_LANES):
        stored = world.stored(to)
        rows = sorted((row for _, row in stored), key=lambda row: lanes[to].index(newest_origin(row, RECORD).lane))  # type: ignore[union-attr]
        stored[:] = [(position, row) for (position, _), row in zip(stored, rows, strict=True)]
    return world


@pytest.mark.parametrize("damage", [False, True])
async def test_lanes_that_were_copied_one_after_the_other(damage: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await spread_in_order([list(range(LANES))] * TARGET_LANES)
    if damage:
        del world.stored(0)[400]
    source, target = (before_reads(monkeypatch, log, lambda _: None) for log in (world.source, world.target))
    waiting = []

    def told(progress: Progress) -> None:
        waiting.append(sum(source) + sum(target) - 2 * progress.records)

    report = await world.audit(on_progress=told)
    assert found(report) == ({"missing": 1} if damage else {})
    assert report.matched == LANES * LANE_RECORDS - damage
    assert max(waiting) <= 4 * SIDE_MAX + READ_MAX


async def test_lanes_that_wait_for_each_other_are_read_all_the_same() -> None:
    world = await spread_in_order([[0, 1, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0], [0, 2, 1]])
    report = await world.audit()
    assert (found(report), report.matched) == ({}, LANES * LANE_RECORDS)
