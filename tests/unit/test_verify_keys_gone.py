"""A Redis key that goes, or a source that is trimmed, while an audit reads: what was proven by then is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest
from test_verify_audit import ENTRY, LANES, RECORD, RECORDS, World, copied, double, found, spread
from test_verify_losses import before_reads

from crossfade.brokers.memory import MemoryLog
from crossfade.cli.verify_words import exit_code_of
from crossfade.errors import SourceReset
from crossfade.model.record import Shape
from crossfade.verify.diff import Kind

Made: TypeAlias = Callable[[Shape, Shape], Awaitable[World]]


@pytest.fixture(params=[copied, spread], ids=["one to one", "by key"])
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    for module in ("audit", "by_key"):
        monkeypatch.setattr(f"crossfade.verify.{module}.READ_RECORDS_MAX", 300)
    return request.param


def keys_go(patch: pytest.MonkeyPatch, log: MemoryLog, number: int) -> None:
    """From this read on, as Redis tells of a place whose key is gone."""
    read, reads = log.read, 0

    async def then(after: Any, *options: Any) -> Any:
        nonlocal reads
        reads += 1
        return {lane: SourceReset(lane, "gone") for lane in after} if reads >= number else await read(after, *options)

    patch.setattr(log, "read", then)


async def test_what_was_lost_before_a_key_went_is_told(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await made(ENTRY, RECORD)
    to = max(range(world.target.lanes), key=lambda lane: len(world.stored(lane)))
    del world.stored(to)[10:20]
    keys_go(monkeypatch, world.source, 6)
    report = await world.audit(window_rows=8)
    assert [type(lane.error) for lane in report.lanes.values()] == [SourceReset] * LANES
    assert (found(report), exit_code_of([report])) == ({"missing": 10}, 3)


@pytest.mark.parametrize("side", ["source", "target"])
async def test_what_differed_before_a_key_went_is_told(made: Made, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await made(ENTRY, ENTRY)
    stored = world.stored(0)
    position, (fields, time_ms) = stored[5]
    stored[5] = (position, ([fields[0], fields[1] + b"!", *fields[2:]], time_ms))
    keys_go(monkeypatch, getattr(world, side), 6)
    report = await world.audit()
    assert (found(report), exit_code_of([report])) == ({"altered": 1}, 3)


@pytest.mark.parametrize("written", [0, 3])
@pytest.mark.parametrize(
    ("source", "target", "side"),
    [(ENTRY, RECORD, "source"), (ENTRY, ENTRY, "source"), (ENTRY, ENTRY, "target"), (RECORD, ENTRY, "target")],
)
async def test_a_key_that_goes_before_any_of_it_is_read_says_nothing_of_the_other_side(
    made: Made, source: Shape, target: Shape, side: str, written: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await made(source, target)

    def goes(reads: int) -> None:
        for lane in range(getattr(world, side).lanes if not reads else 0):
            world.broker.recreate(side, lane)
            world.broker.write(side, lane, [([b"v", b"new"], 5)] * written)

    before_reads(monkeypatch, getattr(world, side), goes)
    report = await world.audit()
    assert [type(lane.error) for lane in report.lanes.values()] == [SourceReset] * LANES
    assert (found(report), exit_code_of([report])) == ({}, 1)


@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_a_second_copy_is_told_as_one_where_the_source_was_trimmed_meanwhile(
    made: Made, source: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await made(source, RECORD)
    original = world.stored(0)[-1][1]
    world.broker.write("target", 0, [original])
    kept = 20  # its original is among the newest

    def trim(reads: int) -> None:
        if reads == 5:
            for lane in range(LANES):
                world.broker.trim("source", lane, kept)

    before_reads(monkeypatch, world.source, trim)
    report = await world.audit()
    assert report.total("duplicate") == 1
    assert report.total("extra") == 0


@pytest.mark.parametrize("source", [ENTRY, RECORD])
async def test_what_a_trimmed_source_held_is_not_said_to_be_nowhere(
    source: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await copied(source, RECORD)
    double(world.stored(0))

    def trim(reads: int) -> None:
        if reads == 5:
            world.broker.trim("source", 0, 20)

    monkeypatch.setattr("crossfade.verify.audit.READ_RECORDS_MAX", 300)
    before_reads(monkeypatch, world.source, trim)
    report = await world.audit()
    told = [named.difference.detail for kept in report.named.values() for named in kept]
    assert told
    assert not any("nowhere" in detail for detail in told)


async def test_what_a_key_held_that_goes_before_the_second_look_is_not_said_to_be_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await copied(ENTRY, RECORD)
    double(world.stored(0))

    def goes(reads: int) -> None:
        if reads == 1:  # all is compared
            world.broker.recreate("source", 0)

    before_reads(monkeypatch, world.source, goes)
    report = await world.audit()
    assert (found(report), report.matched) == ({"duplicate": 1}, LANES * RECORDS)
    assert "nowhere" not in report.named[Kind.DUPLICATE][0].difference.detail
