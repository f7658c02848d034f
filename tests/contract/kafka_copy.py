"""A copier for tests of a Kafka target: it claims and appends, and knows which keys must lie there."""

import secrets
import time

from crossfade.brokers.protocol import Owner
from crossfade.model.position import Place
from crossfade.model.record import Write

NOW = int(time.time() * 1000)


class Copy:
    """One path copied from a made-up Kafka source whose offsets are 0, 1, 2 ..."""

    def __init__(self, log, route=None, instance="one", paths=((0, 0),), **owner):
        self.log, self.route, self.instance, self.paths = log, route or f"route-{secrets.token_hex(4)}", instance, paths
        self.more = owner

    async def take(self, log=None):
        self.log = log or self.log
        owner = Owner(self.route, self.instance, "digest", paths=tuple(self.paths), **self.more)
        self.claim = await self.log.claim(owner, self.paths)
        return self.claim

    def write(self, first, count, path=(0, 0), value=b"v", **more):
        numbers = range(first, first + count)
        rows = [(b"%d" % n, value, None, NOW) for n in numbers]
        return Write(
            path, list(numbers), rows, Place(str(first + count - 1), first + count, "source-id"), [], 1000, **more
        )

    async def append(self, first, count, **more):
        return (await self.log.append(self.claim, [self.write(first, count, **more)]))[0, 0]

    async def begin(self, first=0, count=10):
        await self.take()
        return await self.append(first, count)


async def keys(backend, log, lane=0):
    return [int(row[0]) for row in await backend.read_all(log, lane)]
