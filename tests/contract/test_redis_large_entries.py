"""Large entries on a real server: a read of them comes in, over a slow line too, and the next one fits the line."""

import asyncio
import contextlib
import secrets
import time

import pytest
from redis_fixture import RedisBackend

from crossfade.brokers.protocol import Start
from crossfade.brokers.redis import RedisLog, RedisSettings
from crossfade.errors import Unreachable
from crossfade.model.record import Batch

pytestmark = pytest.mark.lab


@pytest.fixture
async def server(valkey_lab):
    made = RedisBackend(valkey_lab)
    yield made
    await made.close()


@pytest.fixture
def one_server(server):
    if server.settings.mode != "standalone":
        pytest.skip("the line in between leads to one server")
    return server


@contextlib.asynccontextmanager
async def line(target, bytes_per_s, answer_bytes_max=None):
    """The url of a line whose answers come at this rate; one that is larger than it may be ends the connection."""
    connections = set()

    async def serve(reader, writer):
        connections.add(asyncio.current_task())
        server_reader, server_writer = await asyncio.open_connection(target.host, target.port)
        answer_bytes = 0

        async def answer():
            nonlocal answer_bytes
            while data := await server_reader.read(1 << 20):
                answer_bytes += len(data)
                if answer_bytes_max and answer_bytes > answer_bytes_max:
                    break
                writer.write(data)
                await writer.drain()
                await asyncio.sleep(len(data) / bytes_per_s)
            writer.transport.abort()

        answering = asyncio.create_task(answer())
        try:
            while data := await reader.read(1 << 20):
                answer_bytes = 0
                server_writer.write(data)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            answering.cancel()
            writer.transport.abort()
            server_writer.transport.abort()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = listening.sockets[0].getsockname()
    try:
        yield f"redis://{host}:{port}"
    finally:
        listening.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


@pytest.fixture
async def make(server):
    """Make a stream of entries of these sizes; gives a log behind a line to it."""
    prefix, logs = f"large-{secrets.token_hex(4)}", []

    async def log(url, *sizes_bytes, **options):
        settings = RedisSettings.from_urls(url, **options) if url else server.settings
        made = RedisLog(settings, [f"{prefix}:0"], name=prefix)
        for size_bytes in sizes_bytes:
            await server.application.xadd(f"{prefix}:0", {"value": bytes(size_bytes)})
        await made.open()
        logs.append(made)
        return made

    yield log
    for made in logs:
        await made.close()
    await server.application.delete(f"{prefix}:0")


async def read_all(log, place, records):
    """Read on until so many records are here, and again where a read fails; how large the reads were, None = failed."""
    reads, left = [], records
    while left:
        try:
            batch = (await log.read({0: place}, 16_000, 64 << 20, 1.0))[0]
        except Unreachable:
            reads.append(None)
            assert len(reads) < 100
            continue
        assert isinstance(batch, Batch)
        place, left = batch.place, left - len(batch.rows)
        reads.append(len(batch.rows))
    return reads


async def test_entries_of_megabytes_come_over_a_slow_line_though_a_read_takes_longer_than_a_request_may(
    one_server, make
):
    async with line(one_server.settings.addresses[0], 10e6) as url:
        log = await make(url, *[2 << 20] * 24, request_timeout_s=0.5)
        place = (await log.begin([0], Start()))[0]
        reads = await read_all(log, place, 24)
    assert None not in reads
    # the ends of the stream told how large its entries may be; then a read is as large as comes in two seconds
    assert reads[0] <= 12
    assert max(reads[1:]) <= 10


async def test_a_lane_whose_entries_become_large_is_read_on(one_server, make):
    async with line(one_server.settings.addresses[0], 1e9, answer_bytes_max=30 << 20) as url:
        log = await make(url, *[500] * 4_000, *[1 << 20] * 100, 10, request_timeout_s=0.5)
        place = (await log.begin([0], Start()))[0]
        reads = await read_all(log, place, 4_101)
    assert 0 < reads.count(None) < 10
    assert max(filter(None, reads)) >= 1_024


async def test_a_line_that_ends_in_an_answer_is_noticed_in_time(make):
    log = await make("", *[500] * 10)
    place = (await log.begin([0], Start()))[0]
    link = await log.nodes.of_key(log.stream_keys[0])
    link.timeout_s = 0.5
    receive, received = link.data_received, []
    link.data_received = lambda data: received or (received.append(1), receive(data[: len(data) // 2]))
    began_s = time.monotonic()
    with pytest.raises(Unreachable, match=r"too little came for 0\.5 s"):
        await log.read({0: place}, 100, 1 << 20, 1.0)
    assert 0.5 <= time.monotonic() - began_s < 1.5
    assert len((await log.read({0: place}, 100, 1 << 20, 1.0))[0].rows) > 0


async def test_entries_of_megabytes_come_in_reads_that_fit_into_what_was_asked(make):
    log = await make("", *[5 << 20] * 60)
    place = (await log.begin([0], Start()))[0]
    reads = await read_all(log, place, 60)
    assert None not in reads
    assert max(reads) <= 14  # 64 MB, and one that is cut
