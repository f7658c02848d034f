"""Each tool as a measured run: start it on the stage, watch the target, stop it, clean up.

A tool's function makes its own fresh target, so tools can follow each other in any order on the same source data.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import redis

from crossfade.lab import packages

from .children import Child, Trouble
from .peers import mirror
from .prefill import make_values
from .stage import Data, Stage
from .watch import Counter, KafkaCounter, RedisCounter, Run, measure

HAND_BATCH = 2000
_COMPARING_S = 300.0
_CROSSFADE = str(Path(sys.executable).parent / "crossfade")

_CONFIG = """\
version: 1
brokers:
  redis: {{kind: redis, url: "{redis}"}}
  kafka: {{kind: kafka, properties: {{bootstrap.servers: "{bootstrap}"}}}}
  kafka2: {{kind: kafka, properties: {{bootstrap.servers: "{bootstrap}"}}}}
  redis2: {{kind: redis, url: "{redis2}"}}
streams:
  messages:
    {source}: {source_side}
    {target}: {target_side}
routes:
  copy: {{id: {id}, stream: messages, source: {source}, target: {target}, metrics_port: 0}}
"""


class Relay:
    """A route of Crossfade on the stage: its configuration file, its fresh target, its processes.

    Between Redis and Redis the target is on the second server, unless it `is_one_server`.
    """

    def __init__(
        self,
        stage: Stage,
        data: Data,
        source: str,
        target: str,
        *,
        source_name: str = "",
        is_one_server: bool = False,
    ) -> None:
        self._stage = stage
        self.data = data
        self.name = stage.fresh_name(f"{source}-{target}")
        self._redis = stage.redis2 if source == target == "redis" and not is_one_server else stage.redis
        self.target_kind = target
        #: topic, or pattern of stream keys
        self.target = self.name if target == "kafka" else f"{self.name}:<lane>"
        if target == "kafka":
            stage.create_target(self.target, data.lanes)
        self.config = stage.folder / f"{self.name}.yaml"
        self.config.write_text(
            _CONFIG.format(
                redis=stage.redis_url,
                redis2=stage.redis_url if is_one_server else stage.redis2_url,
                bootstrap=stage.bootstrap,
                source=source,
                target=target if target != source else f"{target}2",
                source_side=self._side(source, source_name or (data.name if source == "kafka" else data.pattern)),
                target_side=self._side(target, self.target),
                id=self.name,
            )
        )

    def _side(self, kind: str, name: str) -> str:
        return f"{{topic: {name}}}" if kind == "kafka" else f'{{lanes: "{name}", count: {self.data.lanes}}}'

    def start(self, instance: str = "bench") -> Child:
        """Start a relay process that starts new lanes from the earliest record."""
        argv = [_CROSSFADE, "relay", "run", "copy", "-c", str(self.config), "--start", "--instance", instance]
        return Child(f"{self.name}.{instance}", argv, logs=self._stage.logs, tag=self._stage.tag)

    def counter(self) -> Counter:
        return target_counter(self._stage, self.target_kind, self.target, self.data.lanes, self._redis)


def target_counter(stage: Stage, kind: str, name: str, lanes: int, server: redis.Redis | None = None) -> Counter:
    """What counts a target; a Redis one on `server`, the first where none is named."""
    if kind == "kafka":
        return KafkaCounter(stage.admin, stage.bootstrap, name, lanes)
    return RedisCounter(server or stage.redis, [name.replace("<lane>", str(lane)) for lane in range(lanes)])


def crossfade(
    stage: Stage, data: Data, source: str, target: str, *, processes: int = 1, is_one_server: bool = False
) -> Run:
    """Copy the whole backlog with `crossfade relay run`."""
    relay = Relay(stage, data, source, target, is_one_server=is_one_server)
    children: list[Child] = []
    try:
        for number in range(processes):
            children.append(relay.start(f"bench-{number}"))
        return measure(stage, children, relay.counter(), data.records)
    finally:
        for child in children:
            child.stop()
        stage.clean()


def hand_redis_to_kafka(stage: Stage, data: Data, batch: int = HAND_BATCH) -> Run:
    """The loop by hand, Redis -> Kafka."""
    topic = stage.fresh_name("hand")
    stage.create_target(topic, data.lanes)
    places = [str(stage.redis_port), data.pattern, str(data.lanes), stage.bootstrap, topic, str(batch)]
    return _hand(stage, data, "redis_to_kafka", places, target_counter(stage, "kafka", topic, data.lanes))


def hand_kafka_to_redis(stage: Stage, data: Data, batch: int = HAND_BATCH) -> Run:
    """The loop by hand, Kafka -> Redis."""
    pattern = stage.fresh_name("hand") + ":<lane>"
    places = [stage.bootstrap, data.name, str(stage.redis_port), pattern, str(data.lanes), str(batch)]
    return _hand(stage, data, "kafka_to_redis", places, target_counter(stage, "redis", pattern, data.lanes))


def _hand(stage: Stage, data: Data, module: str, places: list[str], counter: Counter) -> Run:
    argv = [sys.executable, "-m", f"bench.peers.{module}", *places]
    try:
        with Child(stage.fresh_name(module), argv, logs=stage.logs, tag=stage.tag) as child:
            return measure(stage, [child], counter, data.records)
    finally:
        stage.clean()


# ------------------------------------------------------------------------------------------------------ two sides


def copied(stage: Stage, data: Data) -> Relay:
    """A copy of the Redis source in a topic, by Crossfade; it stays until the next run cleans up."""
    relay = Relay(stage, data, "redis", "kafka")
    with relay.start() as child:
        measure(stage, [child], relay.counter(), data.records)
    return relay


def verify(stage: Stage, copy: Relay) -> Run:
    """`crossfade verify` of that copy, from its start to its end as a process. Raises Trouble for any difference."""
    argv = [_CROSSFADE, "verify", "copy", "-c", str(copy.config), "--settled", "-o", "json"]
    return _comparing(stage, "verify", argv, copy.data.records, f'"matched": {copy.data.records},')


def compare_by_hand(stage: Stage, copy: Relay, lanes: int) -> Run:
    """The script by hand over the first `lanes` of that copy, from its start to its end as a process."""
    records = sum(stage.redis.xlen(copy.data.pattern.replace("<lane>", str(lane))) for lane in range(lanes))
    places = [str(stage.redis_port), copy.data.pattern, stage.bootstrap, copy.target, str(lanes), str(HAND_BATCH)]
    argv = [sys.executable, "-m", "bench.peers.compare", *places]
    return _comparing(stage, "compare", argv, records, f"{records} records, 0 differences")


def _comparing(stage: Stage, name: str, argv: list[str], records: int, expected: str) -> Run:
    before, servers_before, began = _children_cpu_s(), sum(stage.server_cpu_s().values()), time.monotonic()
    with Child(stage.fresh_name(name), argv, logs=stage.logs, tag=stage.tag) as child:
        code = child.wait(_COMPARING_S)
        seconds = time.monotonic() - began
        if code or expected not in child.output():
            raise Trouble(f"{name} found the sides unequal, or ended early\n{child.tail()}")
    cpu_s, servers_s = _children_cpu_s() - before, sum(stage.server_cpu_s().values()) - servers_before
    return Run(
        records / seconds, cpu_s / records * 1e6, seconds=seconds, server_cpu_s_per_million=servers_s / records * 1e6
    )


# ---------------------------------------------------------------------------------------------------- public tools


def mirror_maker(stage: Stage, data: Data, *, exactly_once: bool) -> Run:
    """MirrorMaker 2 of Apache Kafka, as a dedicated process."""
    name = stage.fresh_name("mirror-exactly-once" if exactly_once else "mirror-at-least-once")
    topic = mirror.target_topic(name, data.name)
    stage.create_target(topic, data.lanes)
    config = stage.folder / f"{name}.properties"
    config.write_text(mirror.properties(name, stage.bootstrap, data.name, exactly_once=exactly_once))
    argv = [*java_argv("-Xmx1g", "-XX:+UseParallelGC"), mirror.MAIN, str(config)]
    try:
        with Child(name, argv, logs=stage.logs, tag=stage.tag) as child:
            return measure(stage, [child], target_counter(stage, "kafka", topic, data.lanes), data.records)
    finally:
        stage.clean()


def producer_perf(stage: Stage, data: Data) -> Run:
    """kafka-producer-perf-test: no source, no guarantee beyond acks=all; what the brokers take."""
    topic = stage.fresh_name("producer-perf")
    stage.create_target(topic, data.lanes)
    payload = stage.folder / f"payload-{data.value_bytes}.txt"
    if not payload.exists():
        values = make_values(data.lanes, data.value_bytes)
        payload.write_bytes(b"\n".join(values.value(id) for id in range(20_000)))
    settings = {"acks": "all", "compression.type": "lz4", "linger.ms": 5, "batch.size": 1 << 20}
    settings |= {"bootstrap.servers": stage.bootstrap, "buffer.memory": 1 << 27}
    argv = [*java_argv("-Xmx512m"), "org.apache.kafka.tools.ProducerPerformance", "--topic", topic]
    argv += ["--num-records", str(data.records), "--throughput", "-1", "--payload-file", str(payload)]
    argv += ["--producer-props", *(f"{key}={value}" for key, value in settings.items())]
    return _ending(stage, "producer-perf", argv, target_counter(stage, "kafka", topic, data.lanes), data.records)


def redis_benchmark(stage: Stage, data: Data) -> Run:
    """redis-benchmark XADD -P 64: the same fields, random stream keys, ids of the server; what Redis takes."""
    build = packages.redis_build("redis7", say=lambda _: None)
    prefix = stage.fresh_name("redis-benchmark")
    value = make_values(data.lanes, data.value_bytes).value(0).decode()
    argv = [str(build.server.with_name("redis-benchmark")), "-p", str(stage.redis2_port), "-q"]
    # It always fills its pipelines: another number than a multiple of them all would be exceeded.
    records = data.records // 512 * 512
    argv += ["-P", "64", "-c", "8", "-r", str(data.lanes), "-n", str(records)]
    argv += ["XADD", f"{prefix}:__rand_int__", "*", "key", "user-000001", "value", value]
    counter = RedisCounter(stage.redis2, [f"{prefix}:{lane:012d}" for lane in range(data.lanes)])
    return _ending(stage, prefix, argv, counter, records, build.env)


def _ending(
    stage: Stage, name: str, argv: list[str], counter: Counter, records: int, env: Mapping[str, str] | None = None
) -> Run:
    """A tool that ends by itself when all is written."""
    try:
        with Child(name, argv, logs=stage.logs, tag=stage.tag, env=env) as child:
            return measure(stage, [child], counter, records, done=lambda: child.process.poll() == 0)
    finally:
        stage.clean()


def consumer_perf(stage: Stage, data: Data) -> Run:
    """kafka-consumer-perf-test: no target; what a Java reader takes. Its own figures, there is nothing to watch."""
    config = stage.folder / "consumer-perf.properties"
    config.write_text("isolation.level=read_committed\nfetch.min.bytes=65536\nmax.partition.fetch.bytes=4194304\n")
    name = stage.fresh_name("consumer-perf")
    argv = [*java_argv("-Xmx512m"), "org.apache.kafka.tools.ConsumerPerformance", "--topic", data.name]
    argv += ["--bootstrap-server", stage.bootstrap, "--group", name, "--timeout", "60000"]
    argv += ["--messages", str(data.records), "--consumer.config", str(config)]
    try:
        before = _children_cpu_s()
        with Child(name, argv, logs=stage.logs, tag=stage.tag) as child:
            child.wait(120)
            cpu_s = _children_cpu_s() - before
            return _consumer_perf_run(child, data.records, cpu_s)
    finally:
        stage.clean()


def _consumer_perf_run(child: Child, records: int, cpu_s: float) -> Run:
    rows = [line.split(",") for line in child.output().splitlines() if line.count(",") >= 9]
    if len(rows) < 2:
        raise Trouble(f"{child.name} printed no figures\n{child.tail()}")
    figures = dict(zip((name.strip() for name in rows[-2]), rows[-1], strict=True))
    read = int(figures["data.consumed.in.nMsg"])
    if read < records:
        raise Trouble(f"{child.name} read {read} of {records} records\n{child.tail()}")
    return Run(float(figures["fetch.nMsg.sec"]), cpu_s / read * 1e6, seconds=float(figures["fetch.time.ms"]) / 1000)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def java_argv(*options: str) -> list[str]:
    """The Java launcher with Kafka's tools on its class path."""
    classpath = packages.kafka_classpath(tools=True, say=lambda _: None)
    return [str(packages.java()), *options, "-XX:-UsePerfData", "-cp", classpath]
