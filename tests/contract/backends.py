"""What the contract suite needs of a broker besides the Log under test: applications, data faults, other processes.

`MemoryBackend` shows the whole surface. The real ones stand in redis_fixture.py and kafka_fixture.py.
"""

import contextlib
import itertools

from crossfade.brokers.memory import MemoryBoard, MemoryBroker, MemoryLog, Outcome
from crossfade.model.lossless import without_origin_entry, without_origin_record
from crossfade.model.record import Shape

_numbers = itertools.count()


class MemoryBackend:
    """Streams of one shape on a fresh broker."""

    #: payloads above this are refused by the target; None = the limit cannot be reached in a test
    oversize_bytes = 4096
    can_regress = True
    can_cut_reply = True

    def __init__(self, shape):
        self.shape = shape
        self.broker = MemoryBroker(history_max=1000)
        self.deletes_are_seen = shape is Shape.ENTRY

    async def log(self, lanes):
        """A Log over a fresh stream."""
        return await self._open(f"stream-{next(_numbers)}", lanes)

    async def other(self, log):
        """Another process's Log over the same stream."""
        return await self._open(log.name, log.lanes)

    async def _open(self, name, lanes):
        made = MemoryLog(self.broker, name, lanes, self.shape, record_bytes_max=self.oversize_bytes)
        await made.open()
        return made

    async def board(self):
        """One process's connection to a board that other tests do not use."""
        return MemoryBoard(self.broker)

    async def write_native(self, log, lane, rows):
        """As an application writes."""
        self.broker.write(log.name, lane, rows)

    async def read_all(self, log, lane):
        """Rows that a committed reader finds, in order, as they lie there (`xf` included)."""
        return [row for _, row in self.broker.rows(log.name, lane)]

    async def trim(self, log, lane, keep):
        """Remove all but the last `keep` records."""
        self.broker.trim(log.name, lane, keep)

    async def delete(self, log, lane, position):
        """Remove one record in the middle."""
        self.broker.delete(log.name, lane, position)

    async def recreate(self, log, lane):
        """Delete the lane (Kafka: the topic) and make it anew, empty."""
        for number in range(log.lanes) if self.shape is Shape.RECORD else [lane]:
            self.broker.recreate(log.name, number)

    async def regress(self, log, lane, records):
        """Lose the last records, as a failover or an unclean election does."""
        self.broker.regress(log.name, lane, records)

    async def quarantined(self, log, route):
        """(source lane, position, reason) of what lies in the route's quarantine, in order."""
        return [(q.path[0], q.position, q.reason) for q in self.broker.quarantine(log.name) if q.route == route]

    @contextlib.asynccontextmanager
    async def cut_reply(self, log, *, applied):
        """Within it the next append loses its reply (or its request, where not `applied`)."""
        outcome = Outcome.UNKNOWN_APPLIED if applied else Outcome.UNKNOWN_NOT_APPLIED
        self.broker.faults = lambda step: outcome if step.method.startswith("append") else Outcome.OK
        try:
            yield
        finally:
            self.broker.faults = None

    async def close(self):
        return


def plain(rows):
    """Rows of one shape as the mapping hands them on: without `xf`, with their own time."""
    strip = {2: without_origin_entry, 4: without_origin_record}
    stripped = [strip[len(row)](tuple(row)) for row in rows]
    return [
        (row[0], row[1], list(row[2]) if row[2] else None, row[3]) if len(row) == 4 else (list(row[0]), row[1])
        for row in stripped
    ]


def make_rows(shape, numbers, *, time_ms=1_600_000_000_000, size_bytes=0):
    """One distinguishable row per number, in the given shape, times rising by one."""
    if shape is Shape.RECORD:
        return [(b"key-%d" % n, b"value-%d" % n + b"." * size_bytes, None, time_ms + n) for n in numbers]
    return [([b"key", b"key-%d" % n, b"value", b"value-%d" % n + b"." * size_bytes], time_ms + n) for n in numbers]
