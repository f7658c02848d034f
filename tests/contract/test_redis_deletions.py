"""An audit beside workers that delete from its Redis source, on real servers: right copies are no differences."""

import secrets

import pytest
from redis_fixture import RedisBackend, make_redis_log

from crossfade.brokers.memory import MemoryBroker, MemoryLog
from crossfade.brokers.protocol import Owner, Start
from crossfade.model.mapping import mapping_named
from crossfade.model.record import Batch, Shape, Write
from crossfade.verify.audit import audit

pytestmark = pytest.mark.lab

ENTRIES = 3_000
TIME_MS = 1_700_000_000_000


@pytest.fixture(params=["valkey", "redis7"])
async def server(request):
    made = RedisBackend(request.getfixturevalue(f"{request.param}_lab"))
    yield made
    await made.close()


class Copied:
    """A stream key and its copy, and an audit of both in many reads."""

    def __init__(self, server, source):
        self.server, self.source, self.key = server, source, source.stream_keys[0]
        self.target = MemoryLog(MemoryBroker(clock_ms=lambda: TIME_MS + 10**7), "target", 1, Shape.RECORD)
        self.mapping = mapping_named("lossless")
        self.place = None

    async def add(self, first, count):
        pipeline = self.server.application.pipeline()
        for at in range(first, first + count):
            pipeline.xadd(self.key, {"v": at}, id=f"{TIME_MS + at}-0")
        await pipeline.execute()

    async def copy(self, count):
        self.place = self.place or (await self.source.begin([0], Start()))[0]
        claim = await self.target.claim(Owner("route", "test", "digest"), [(0, 0)])
        while count:
            batch = (await self.source.read({0: self.place}, count, 1 << 30, 0.1))[0]
            mapped = self.mapping.translate(batch, Shape.RECORD)
            await self.target.append(claim, [Write((0, 0), mapped.positions, mapped.rows, batch.place)])
            self.place = batch.place
            count -= len(mapped.rows)

    async def delete(self, first, count):
        await self.server.application.xdel(self.key, *[f"{TIME_MS + at}-0" for at in range(first, first + count)])

    async def audit(self, monkeypatch, before_read=None, **options):
        read, rows = self.source.read, []

        async def then(*options):
            if before_read is not None:
                await before_read(len(rows))
            outcomes = await read(*options)
            rows.append(sum(len(batch.rows) for batch in outcomes.values() if isinstance(batch, Batch)))
            return outcomes

        with monkeypatch.context() as patch:
            patch.setattr("crossfade.verify.audit.READ_RECORDS_MAX", 350)
            patch.setattr(self.source, "read", then)
            report = await audit(self.source, self.target, self.mapping, route_id="route", lanes=[0], **options)
        return report, sum(rows)


@pytest.fixture(params=["halt", "count"])
async def copied(request, server):
    source = await make_redis_log(
        server.settings, 1, f"deleted-{secrets.token_hex(4)}", route="route", deleted=request.param
    )
    made = Copied(server, source)
    await made.target.open()
    await made.add(0, ENTRIES)
    await made.copy(ENTRIES)
    yield made
    await source.close()


@pytest.mark.parametrize(("turn", "first"), [(0, 0), (2, 2_000)])
async def test_copied_entries_that_are_deleted_while_the_source_is_read(copied, turn, first, monkeypatch):
    async def work(at):
        if at == turn:
            await copied.delete(first, 10)

    report, _ = await copied.audit(monkeypatch, work)
    assert report.as_dict()["differences"] == []
    assert (report.matched, report.total("source_gone")) == (ENTRIES - 10, 10)


async def test_a_compared_entry_that_is_deleted_between_two_rounds(copied, monkeypatch):
    await copied.add(ENTRIES, 50)
    first, _ = await copied.audit(monkeypatch)
    assert (first.matched, first.total("pending")) == (ENTRIES, 50)
    await copied.copy(50)
    await copied.delete(ENTRIES - 10, 1)
    report, _ = await copied.audit(monkeypatch, resume=first.state, is_settled=True)
    assert report.as_dict()["differences"] == []
    assert report.matched == ENTRIES + 50


async def test_a_queue_whose_tasks_are_deleted_at_once_is_read_once(copied, monkeypatch):
    async def work(at):
        assert at < 100
        if at:  # of the first read nothing is to be read again
            await copied.add(ENTRIES + at, 1)
            await copied.delete(ENTRIES + at, 1)

    report, rows = await copied.audit(monkeypatch, work)
    assert report.as_dict()["differences"] == []
    assert (report.matched, rows) == (ENTRIES, ENTRIES)
