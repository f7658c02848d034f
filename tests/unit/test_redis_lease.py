"""The lease as its listener hears it: every loss is followed by what is owned since, also where that is nothing new."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import pytest

from crossfade.brokers.redis import lease as leases
from crossfade.brokers.redis.lease import RedisLease
from crossfade.brokers.redis.settings import RedisSettings
from crossfade.errors import Unreachable

#: what the hash says: (lanes owned, those of them that others wait for); None = no answer
Said = tuple[set[int], set[int]] | None


class Ear:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, frozenset[int]]] = []

    async def assigned(self, lanes: frozenset[int], token: object | None) -> None:
        self.told.append(("assigned", lanes))

    async def revoked(self, lanes: frozenset[int]) -> None:
        self.told.append(("revoked", lanes))

    async def lost(self, lanes: frozenset[int]) -> None:
        self.told.append(("lost", lanes))


def says(word: str, *lanes: int) -> tuple[str, frozenset[int]]:
    return word, frozenset(lanes)


async def hear(monkeypatch: pytest.MonkeyPatch, answers: Sequence[Said], ttl_s: float = 60.0) -> list[Any]:
    """What a listener is told while the hash answers so, until there is nothing more to answer."""
    lease = RedisLease(RedisSettings.from_urls("redis://h"), route="r", lanes=4, instance="a", ttl_s=ttl_s)
    left, is_over, ear = list(answers), asyncio.Event(), Ear()

    async def run(_: bytes) -> list[Any]:
        if not left:
            is_over.set()
            await asyncio.Event().wait()
        said = left.pop(0)
        if said is None:
            raise Unreachable("no answer")
        return [b"OK", sorted(said[0]), sorted(said[1])]

    monkeypatch.setattr(lease, "_run", run)
    monkeypatch.setattr(leases, "RENEW_EVERY_S", 0.0)
    monkeypatch.setattr(leases, "_LEAVE_TIMEOUT_S", 0.0)
    running = asyncio.create_task(lease.run(ear))
    async with asyncio.timeout(5):
        await is_over.wait()
    told = list(ear.told)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    return told


async def test_a_generation_follows_every_loss_though_it_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told = await hear(monkeypatch, [({0, 1}, set()), ({0}, set()), (set(), set()), (set(), set())])
    assert told == [
        says("assigned", 0, 1),
        says("lost", 1),
        says("assigned", 0),
        says("lost", 0),
        says("assigned"),
    ]


@pytest.mark.parametrize("owned", [set(), {0, 1}])
async def test_a_generation_follows_an_outage_whoever_has_the_lanes_then(
    owned: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = await hear(monkeypatch, [({0, 1}, set()), None, None, (owned, set()), (owned, set())], ttl_s=0.0)
    assert told == [says("assigned", 0, 1), says("lost", 0, 1), says("assigned", *owned)]


async def test_a_generation_follows_lanes_that_were_handed_over_without_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = await hear(monkeypatch, [({0, 1}, set()), ({0, 1}, {1}), None, ({0}, set())])
    assert told == [says("assigned", 0, 1), says("revoked", 1), says("assigned", 0)]


async def test_what_has_not_changed_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await hear(monkeypatch, [(set(), set())] * 3) == [says("assigned")]
    assert await hear(monkeypatch, [({0}, set()), None, ({0}, set())]) == [says("assigned", 0)]
