"""Real relays between a Redis Cluster and a Redis behind Sentinels, both ways, with a kill and a failover between."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from rig import RedisSide, Writer, wait_for
from tests.oracle.redis_side import read_redis
from tests.oracle.rows import Lane

from crossfade.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(300)]

_LANES = 4
_RECORDS = 4000


class ShapedRedis(RedisSide):
    """Stream keys on a Cluster or behind Sentinels; the oracle reads each from the primary that holds it."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(lab, _LANES, f"sys-{secrets.token_hex(5)}:<lane>")
        self._lab, self._env = lab, lab.env()
        self.client.close()
        if "REDIS_SENTINELS" in self._env:
            guards = [(host, int(port)) for host, port in map(_split, self._env["REDIS_SENTINELS"].split(","))]
            self.client = redis.Sentinel(guards, protocol=2).master_for("crossfade")
        else:
            host, port = _split(self._env["REDIS_NODES"].split(",")[0])
            self.client = redis.RedisCluster(host=host, port=int(port), protocol=2)

    def broker(self) -> dict[str, Any]:
        if guards := self._env.get("REDIS_SENTINELS"):
            return {"kind": "redis", "mode": "sentinel", "url": f"redis://{guards}", "sentinel_master": "crossfade"}
        return {"kind": "redis", "mode": "cluster", "url": f"redis://{self._env['REDIS_NODES']}"}

    def write(self, lane: int, entries: Any) -> list[bytes]:
        return [self.client.execute_command("XADD", self.key(lane), "*", *entry) for entry in entries]

    def read(self) -> dict[int, Lane]:
        found = {}
        for lane in range(self.lanes):
            with self._lab.client_of_key(self.key(lane)) as client:
                port = client.connection_pool.connection_kwargs["port"]
            found[lane] = read_redis(f"redis://127.0.0.1:{port}", self.key(lane), 1)[0]
        return found

    def clean(self) -> None:
        self.client.close()


def _split(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    return host, port


@pytest.fixture(scope="module")
def shapes() -> Iterator[dict[str, Lab]]:
    """A Cluster of six and a group of three with three Sentinels."""
    kinds = ("cluster", "sentinel")
    labs = {kind: Lab.up(f"tests-{kind}-{os.getpid()}", brokers=0, redis=kind, owner_pid=os.getpid()) for kind in kinds}
    yield labs
    for lab in labs.values():
        lab.down()


@pytest.fixture
def lab(shapes: dict[str, Lab]) -> Lab:
    """The lab whose folder marks the processes of a test."""
    return shapes["cluster"]


@pytest.mark.parametrize(("here", "there"), [("cluster", "sentinel"), ("sentinel", "cluster")])
def test_relays_between_a_cluster_and_a_guarded_redis(
    workshop: Any, shapes: dict[str, Lab], here: str, there: str
) -> None:
    source, target = ShapedRedis(shapes[here]), ShapedRedis(shapes[there])
    workshop.sides += [source, target]
    made = workshop.copy(source, target)
    writer = Writer(source, records_max=_RECORDS)
    writer.start()
    first = made.run("--start")
    made.wait_drained(records=500)
    first.kill()
    second = made.run()
    second.wait_said('"claimed"')
    _hand_over(shapes["cluster"], (source if here == "cluster" else target).key(0))
    written = writer.stop()
    made.wait_drained()
    assert made.check().source_records == written
    assert second.stop() == 0
    assert made.cli("verify", "copy").code == 0


def _hand_over(cluster: Lab, key: str) -> None:
    """A replica takes over the primary of this key, as in a rolling upgrade: nothing that was written is lost."""

    def ask(*command: str) -> str:
        with cluster.client_of_key(key) as client:
            client.response_callbacks.clear()
            found: bytes = client.execute_command(*command)
        return found.decode()

    own = ask("CLUSTER", "MYID")
    rows = [line.split() for line in ask("CLUSTER", "NODES").splitlines()]
    address = next(row[1] for row in rows if row[3] == own).partition("@")[0]
    servers = {server.name: server.port for server in cluster.state.servers}
    behind = {link.port: servers[link.name] for link in cluster.state.links}
    with redis.Redis(port=behind[int(_split(address)[1])]) as replica:
        replica.execute_command("CLUSTER FAILOVER")
    wait_for(lambda: ask("CLUSTER", "MYID") != own, "the replica to take over")
