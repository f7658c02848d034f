"""Redis and Valkey for the contract suite: applications by the public client library, damage by plain commands."""

import contextlib
import itertools
import secrets

import redis.asyncio

from crossfade.brokers.redis import RedisBoard, RedisLog, RedisSettings
from crossfade.model.record import Shape

_numbers = itertools.count()


def redis_settings(lab):
    """How to reach a lab's Redis, whatever its shape."""
    env = lab.env()
    if "REDIS_SENTINELS" in env:
        return RedisSettings.from_urls(
            env["REDIS_SENTINELS"].split(","), mode="sentinel", sentinel_name=env["REDIS_SENTINEL_SERVICE"]
        )
    if lab.state.options.redis == "cluster":
        return RedisSettings.from_urls(env["REDIS_NODES"].split(","), mode="cluster")
    return RedisSettings.from_urls(env["REDIS_URL"])


def application(settings):
    """The public client library, as applications use it."""
    first = settings.addresses[0]
    if settings.mode == "cluster":
        client = redis.asyncio.RedisCluster(host=first.host, port=first.port)
    elif settings.mode == "sentinel":
        sentinel = redis.asyncio.Sentinel([(address.host, address.port) for address in settings.addresses])
        client = sentinel.master_for(settings.sentinel_name)
    else:
        secret = settings.password() if callable(settings.password) else settings.password
        client = redis.asyncio.Redis(
            host=first.host, port=first.port, username=settings.username or None, password=secret or None
        )
    # the library's own XRANGE makes a dict of the fields and loses repeated ones
    client.set_response_callback("XRANGE", lambda reply, **_: reply)
    return client


async def make_redis_log(settings, lanes, prefix, **options):
    """An open log over `lanes` stream keys that start with `prefix`."""
    made = RedisLog(settings, [f"{prefix}:{lane}" for lane in range(lanes)], name=prefix, **options)
    await made.open()
    return made


class RedisBackend:
    """Streams on a real server; every test gets keys of its own."""

    shape = Shape.ENTRY
    oversize_bytes = None
    can_regress = True
    can_cut_reply = True
    deletes_are_seen = True

    def __init__(self, lab):
        self.settings = redis_settings(lab)
        self.application = application(self.settings)
        self._logs = []

    async def log(self, lanes):
        return await self._open(f"contract-{secrets.token_hex(4)}-{next(_numbers)}", lanes)

    async def other(self, log):
        return await self._open(log.name, log.lanes)

    async def _open(self, prefix, lanes):
        made = await make_redis_log(self.settings, lanes, prefix)
        self._logs.append(made)
        return made

    async def board(self):
        return RedisBoard(self.settings)

    async def write_native(self, log, lane, rows):
        """XADD with the row's time in the id, or just behind the last one where that would go back."""
        key = log.stream_keys[lane]
        last_ms, last_number = await self._last_id(key)
        for fields, time_ms in rows:
            is_later = time_ms > last_ms
            last_ms, last_number = (time_ms, 0) if is_later else (last_ms, last_number + 1)
            await self.application.execute_command("XADD", key, f"{last_ms}-{last_number}", *fields)

    async def _last_id(self, key):
        if not await self.application.exists(key):
            return 0, 0
        ms, _, number = (await self.application.xinfo_stream(key))["last-generated-id"].partition(b"-")
        return int(ms), int(number)

    async def read_all(self, log, lane):
        entries = await self.application.execute_command("XRANGE", log.stream_keys[lane], "-", "+")
        return [(fields, int(entry_id.split(b"-")[0])) for entry_id, fields in entries]

    async def trim(self, log, lane, keep):
        await self.application.xtrim(log.stream_keys[lane], maxlen=keep, approximate=False)

    async def delete(self, log, lane, position):
        await self.application.xdel(log.stream_keys[lane], position)

    async def recreate(self, log, lane):
        key = log.stream_keys[lane]
        await self.application.delete(key)
        await self.application.xadd(key, {"a": "b"}, id="1-1")
        await self.application.xdel(key, "1-1")

    async def regress(self, log, lane, records):
        """What a failover to a replica that lagged leaves: the same key and groups without its last entries."""
        key = log.stream_keys[lane]
        info = await self.application.xinfo_stream(key)
        groups = await self.application.xinfo_groups(key)
        entries = (await self.application.execute_command("XRANGE", key, "-", "+"))[:-records]
        await self.application.delete(key)
        for entry_id, fields in entries:
            await self.application.execute_command("XADD", key, entry_id, *fields)
        last_id = entries[-1][0]
        await self.application.execute_command(
            "XSETID", key, last_id, "ENTRIESADDED", info["entries-added"] - records, "MAXDELETEDID", "0-0"
        )
        for group in groups:
            await self.application.xgroup_create(key, group["name"], id="0-0")

    async def quarantined(self, log, route):
        found = []
        for key in sorted([name async for name in self.application.scan_iter(f"crossfade:quarantine:{route}:*")]):
            for _, flat in await self.application.execute_command("XRANGE", key, "-", "+"):
                fields = dict(zip(flat[::2], flat[1::2], strict=True))
                found.append((int(fields[b"lane"]), fields[b"position"].decode(), fields[b"reason"].decode()))
        return found

    @contextlib.asynccontextmanager
    async def cut_reply(self, log, *, applied):
        link = await log.nodes.of_key(log.stream_keys[0])
        if applied:
            link.data_received = lambda data: link.abort("the reply was cut on its way")
        else:
            link._transport.write = lambda data: link.abort("the request was cut on its way")
        yield

    async def close(self):
        for made in self._logs:
            await made.close()
        await self.application.aclose()
