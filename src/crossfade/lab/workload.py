"""A workload of unique, keyed records that remembers every send: `python -m crossfade.lab.workload --help`.

Each record carries its id in its value; the lane follows from the key, so order per key is order per lane. Sends are
pipelined; a link that is cut leaves its sends *unknown* (they may or may not have happened) and they are never sent
again, so a record is in the source at most once. SIGTERM ends it in good order; the same history file goes on later.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CrossfadeError
from .history import FAIL, FAILED, INFO, OK, UNKNOWN, HistoryWriter, read_history
from .payloads import Values
from .senders import KafkaSender, RedisSender, Sender

#: one write of a pipeline
BATCH_RECORDS_MAX = 500
#: a history tells the lane of a record in 16 bits
LANES_MAX = 65_536


@dataclass(slots=True)
class Totals:
    ok: int = 0
    fail: int = 0
    unknown: int = 0

    def add(self, outcomes: list[bytes]) -> None:
        failed, unknown = outcomes.count(FAILED), outcomes.count(UNKNOWN)
        self.fail += failed
        self.unknown += unknown
        self.ok += len(outcomes) - failed - unknown


class Workload:
    """Sends at a rate until enough records are acknowledged, time is up, or it is told to stop."""

    def __init__(self, sender: Sender, history: HistoryWriter, *, next_id: int, totals: Totals) -> None:
        self._sender = sender
        self._history = history
        self._next_id = next_id
        self.totals = totals
        self.is_stopping = False

    def run(self, *, rate: float, seconds: float, records: int, progress: bool) -> None:
        """`rate` records/s (0 = as fast as it goes), `seconds` (0 = no limit), `records` acknowledged in all (0 = no
        limit, resumed ones included)."""
        started = told = time.monotonic()
        sent = 0
        batch_max = int(min(BATCH_RECORDS_MAX, max(1, rate / 200))) if rate else BATCH_RECORDS_MAX
        while not self.is_stopping:
            now = time.monotonic()
            if progress and now - told >= 1:
                told = now
                self._tell(now - started)
            wanted = batch_max
            if records:
                open_records = self._sender.in_flight() * batch_max
                wanted = min(wanted, records - self.totals.ok - open_records)
                if wanted <= 0:
                    if self.totals.ok >= records:
                        break
                    if self._sender.in_flight():
                        self._settle(wait=True)
                        continue
                    wanted = min(batch_max, records - self.totals.ok)
            if seconds and now - started >= seconds:
                break
            if rate and sent > (now - started) * rate:
                self._settle(wait=False)
                time.sleep(min(0.05, sent / rate - (now - started)))
                continue
            batch, digests = self._sender.prepare(self._next_id, wanted)
            self._history.intend(self._next_id, batch.lanes, digests)
            self._next_id += wanted
            sent += wanted
            self._sender.send(batch)
            self._settle(wait=self._sender.in_flight() >= self._sender.in_flight_max)
        while self._sender.in_flight():
            self._settle(wait=True)
        self._settle(wait=False)

    def _settle(self, *, wait: bool) -> None:
        for batch in self._sender.settled(wait):
            self._history.settle(batch.first, batch.outcomes)
            self.totals.add(batch.outcomes)
            if FAILED in batch.outcomes:
                time.sleep(0.05)  # a broker that refuses is not helped by haste

    def _tell(self, elapsed_s: float) -> None:
        line = {"seconds": round(elapsed_s, 1), "ok": self.totals.ok, "fail": self.totals.fail}
        print(json.dumps(line | {"unknown": self.totals.unknown}), flush=True)


def _lanes(text: str) -> int:
    lanes = int(text) if text.isdecimal() else 0
    if not 1 <= lanes <= LANES_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to {LANES_MAX}")
    return lanes


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m crossfade.lab.workload", description=__doc__)
    broker = parser.add_mutually_exclusive_group(required=True)
    broker.add_argument("--redis", metavar="URL", help="redis[s]://[user:password@]host:port[/db][?ssl_ca_certs=FILE]")
    broker.add_argument("--kafka", metavar="BOOTSTRAP", help="write to Kafka instead")
    parser.add_argument("--pattern", default="msg:stream:<lane>", help="name of the stream keys")
    parser.add_argument("--topic", default="messages.v1")
    parser.add_argument("--property", action="append", default=[], metavar="NAME=VALUE", help="for librdkafka")
    parser.add_argument("--lanes", type=_lanes, default=16)
    parser.add_argument("--rate", type=float, default=0, help="records per second; 0 = as fast as it goes")
    parser.add_argument("--seconds", type=float, default=0, help="0 = no limit")
    parser.add_argument("--records", type=int, default=0, help="stop when so many are acknowledged; 0 = no limit")
    parser.add_argument("--history", type=Path, required=True, metavar="FILE", help="goes on where it ended")
    parser.add_argument("--keys", type=int, default=4000)
    parser.add_argument("--value-bytes", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mixed", action="store_true", help="shapes that other software writes")
    parser.add_argument("--progress", action="store_true", help="a JSON line each second")
    return parser


def play(argv: Sequence[str] | None = None) -> tuple[dict[str, Any], int]:
    """Run the workload of this command line; its result, and the signal that ended it (0: none).

    Raises LabUsage for a history that is none, LabError for a server that does not take records.
    """
    options = _arguments().parse_args(argv)
    totals, next_id = Totals(), 0
    if _is_begun(options.history):
        before = read_history(options.history)
        totals = Totals(before.count(OK), before.count(FAIL), before.count(INFO))
        next_id = len(before)
    values = Values(seed=options.seed, keys=options.keys, lanes=options.lanes, value_bytes=options.value_bytes)
    kind = "redis" if options.redis else "kafka"
    header = {"kind": kind, "seed": options.seed, "lanes": options.lanes, "keys": options.keys, "mixed": options.mixed}
    history = HistoryWriter(options.history, header)
    stop: list[int] = []
    sender: Sender
    if options.redis:
        sender = RedisSender(options.redis, options.pattern, values, options.mixed, lambda: bool(stop))
    else:
        properties = dict(item.split("=", 1) for item in options.property)
        sender = KafkaSender(options.kafka, options.topic, values, options.mixed, properties)
    workload = Workload(sender, history, next_id=next_id, totals=totals)

    def end(number: int, _: object) -> None:
        stop.append(number)
        workload.is_stopping = True

    started, first_ok = time.monotonic(), totals.ok
    cpu_before = _cpu_s()
    with _signals_to(end):
        try:
            workload.run(rate=options.rate, seconds=options.seconds, records=options.records, progress=options.progress)
        finally:
            elapsed_s = time.monotonic() - started
            sender.close()
            history.close()
    written = totals.ok - first_ok
    result: dict[str, Any] = {"ok": totals.ok, "fail": totals.fail, "unknown": totals.unknown}
    result |= {"seconds": round(elapsed_s, 2), "records_per_s": round(written / max(elapsed_s, 1e-9))}
    result |= {"cpu_us_per_record": round((_cpu_s() - cpu_before) * 1e6 / max(1, written), 2), "done": True}
    return result, stop[0] if stop else 0


def _is_begun(path: Path) -> bool:
    """Whether a history may be there. True also where nobody can tell: reading it says why, as LabUsage."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False
    except OSError:
        return True


@contextmanager
def _signals_to(handler: Callable[[int, Any], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def main(argv: list[str] | None = None) -> int:
    """Run the workload; the last line on stdout is its result as JSON."""
    try:
        result, _ = play(argv)
    except CrossfadeError as error:
        print(f"error: {error}" + (f"\nhint: {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    print(json.dumps(result), flush=True)
    return 0


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
