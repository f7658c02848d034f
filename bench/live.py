"""The live cases: latency at a steady rate, and how long nothing moves after kill -9.

A writer and a reader of their own stand at either end, as applications would; the relay between them is an ordinary
`crossfade relay run`. Latency is the reader's clock minus the moment in the record (one machine, one clock). A relay is
copying again when *every* lane has received a record that was written after the kill.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from .children import Child, Trouble
from .stage import Data, Stage
from .tools import Relay

RATE_RECORDS_PER_S = 10_000
_WARM_UP_S = 8.0
_WINDOW_S = 5.0
#: how long a kill may show its effect: above the must, so that a miss is measured rather than cut off
_SAME_WAIT_S = 7.0
_OTHER_WAIT_S = 18.0
_JOIN_S = 8.0
_DRAIN_S = 20.0


@dataclass(frozen=True)
class Latency:
    """Milliseconds from source write to reader, within one window."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    records_per_s: float
    relay_cpu_s_per_million: float


class Arrivals:
    """What a reader saw: (written, arrived, lane) of each record, times in microseconds since the epoch."""

    def __init__(self, numbers: Sequence[int], lanes: int) -> None:
        self.written_us = numbers[0::3]
        self.arrived_us = numbers[1::3]
        self.lane = numbers[2::3]
        self.lanes = lanes

    def __len__(self) -> int:
        return len(self.written_us)

    def latencies_ms(self, from_us: int, to_us: int) -> list[float]:
        """Sorted latencies of the records written in this time."""
        pairs = zip(self.written_us, self.arrived_us, strict=True)
        return sorted((arrived - written) / 1000 for written, arrived in pairs if from_us <= written < to_us)

    def back_after_s(self, killed_us: int) -> float | None:
        """Seconds from the kill until the last lane had received a record written after it; None = not all did."""
        first: dict[int, int] = {}
        for written, arrived, lane in zip(self.written_us, self.arrived_us, self.lane, strict=True):
            if written >= killed_us and lane not in first:
                first[lane] = arrived
        return (max(first.values()) - killed_us) / 1e6 if len(first) == self.lanes else None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of an ordered list lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class Live:
    """A stream being written, relayed and read."""

    def __init__(self, stage: Stage, source: str, target: str, *, lanes: int = 16) -> None:
        self._stage = stage
        self.data = Data(0, lanes)
        self._source, self._target = source, target
        name = stage.fresh_name("live")
        self.source_name = name if source == "kafka" else f"{name}:<lane>"
        if source == "kafka":
            stage.create_topic(name, lanes)
        self.relay = Relay(stage, self.data, source, target, source_name=self.source_name)
        self._file = stage.folder / f"{name}.arrivals"
        self.arrivals = Arrivals([], lanes)

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Write and read inside; afterwards `arrivals` holds all that was written. Raises Trouble."""
        stage = self._stage
        with self._child("reader", self._target, self.relay.target, str(self._file)) as reader:
            with self._child("writer", self._source, self.source_name, str(RATE_RECORDS_PER_S), "512") as writer:
                yield
                writer.stop()
                written = int(writer.output().split()[-1])
            self._await(written)
            reader.stop()
        numbers = array("q")
        numbers.frombytes(self._file.read_bytes())
        self._file.unlink()
        self.arrivals = Arrivals(numbers, self.data.lanes)
        if len(self.arrivals) != written:
            raise Trouble(f"{len(self.arrivals)} records arrived of {written} written; logs in {stage.logs}")

    def _await(self, written: int) -> None:
        """Wait until the target holds everything, and the reader had a moment to read it."""
        counter = self.relay.counter()
        deadline = time.monotonic() + _DRAIN_S
        while counter.progress() < written:
            if time.monotonic() > deadline:
                raise Trouble(f"{counter.progress()} of {written} records in the target {_DRAIN_S:.0f} s later")
            time.sleep(0.1)
        time.sleep(1.0)

    def _child(self, word: str, kind: str, name: str, *rest: str) -> Child:
        address = str(self._stage.redis_port) if kind == "redis" else self._stage.bootstrap
        argv = [sys.executable, "-m", f"bench.live_{word}", kind, address, name, str(self.data.lanes), *rest]
        return Child(f"{self.relay.name}.{word}", argv, logs=self._stage.logs, tag=self._stage.tag)


def latency(stage: Stage, source: str, target: str, windows: int) -> list[Latency]:
    """Latency in consecutive windows of a few seconds."""
    live = Live(stage, source, target)
    marks: list[tuple[int, float]] = []
    try:
        with live.relay.start() as relay, live.flowing():
            _sleep(_WARM_UP_S, [relay])
            marks.append((_now_us(), relay.cpu_s()))
            for _ in range(windows):
                _sleep(_WINDOW_S, [relay])
                marks.append((_now_us(), relay.cpu_s()))
            _sleep(1.0, [relay])
    finally:
        stage.clean()
    return [_window(live.arrivals, *marks[at], *marks[at + 1]) for at in range(windows)]


def _window(arrivals: Arrivals, from_us: int, from_cpu_s: float, to_us: int, to_cpu_s: float) -> Latency:
    found = arrivals.latencies_ms(from_us, to_us)
    if not found:
        raise Trouble("no record was written in a whole window")
    return Latency(
        p50_ms=percentile(found, 0.5),
        p95_ms=percentile(found, 0.95),
        p99_ms=percentile(found, 0.99),
        max_ms=found[-1],
        records_per_s=len(found) / (to_us - from_us) * 1e6,
        relay_cpu_s_per_million=(to_cpu_s - from_cpu_s) / len(found) * 1e6,
    )


def back_same_instance(stage: Stage, source: str, target: str, kills: int) -> list[float]:
    """Seconds without a lane after kill -9, when the same instance is started again at once."""
    live = Live(stage, source, target)
    killed_us: list[int] = []
    relay = live.relay.start("bench-a")
    try:
        with live.flowing():
            _sleep(_WARM_UP_S, [relay])
            for _ in range(kills):
                killed_us.append(_now_us())
                relay.kill()
                relay = live.relay.start("bench-a")
                _sleep(_SAME_WAIT_S, [relay])
    finally:
        relay.stop()
        stage.clean()
    return _back(live.arrivals, killed_us, _SAME_WAIT_S)


def back_other_instance(stage: Stage, source: str, target: str, kills: int) -> list[float]:
    """Seconds without a lane after kill -9 of one of two relays, until the other has taken over its lanes."""
    live = Live(stage, source, target)
    killed_us: list[int] = []
    relays = [live.relay.start("bench-a"), live.relay.start("bench-b")]
    try:
        with live.flowing():
            _sleep(_WARM_UP_S, relays)
            for number in range(kills):
                killed_us.append(_now_us())
                relays.pop(0).kill()
                _sleep(_OTHER_WAIT_S, relays)
                if number + 1 < kills:
                    relays.append(live.relay.start(f"bench-{number}"))
                    _sleep(_JOIN_S, relays)
    finally:
        for relay in relays:
            relay.stop()
        stage.clean()
    return _back(live.arrivals, killed_us, _OTHER_WAIT_S)


def _back(arrivals: Arrivals, killed_us: list[int], limit_s: float) -> list[float]:
    found = [arrivals.back_after_s(at_us) for at_us in killed_us]
    if None in found:
        raise Trouble(f"not every lane came back after kill -9, though {limit_s:.0f} s and a drain were given")
    return [seconds for seconds in found if seconds is not None]


def _sleep(seconds: float, relays: Sequence[Child]) -> None:
    """Wait; a relay that ends meanwhile is trouble."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        for relay in relays:
            if not relay.is_running:
                raise Trouble(f"{relay.name} ended with {relay.process.returncode}\n{relay.tail()}")
        time.sleep(min(0.2, left))


def _now_us() -> int:
    return time.time_ns() // 1000
