"""`python -m tests.oracle --direction r2k --redis URL --pattern P --kafka BOOTSTRAP --topic T --lanes 16 -o json`.

Exit codes: 0 the target is an exact copy, 1 it is not, 2 it cannot be judged (unreachable, nothing to compare).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from kafka.errors import KafkaError

from .judge import KINDS, judge
from .kafka_side import read_kafka
from .redis_side import read_redis
from .rows import Lane


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("--direction", choices=["r2k", "k2r", "k2k", "r2r"], required=True)
    parser.add_argument("--redis", metavar="URL")
    parser.add_argument("--pattern", default="msg:stream:<lane>")
    parser.add_argument("--kafka", metavar="BOOTSTRAP")
    parser.add_argument("--topic", default="messages.v1")
    parser.add_argument("--target-redis", metavar="URL", help="r2r: default is --redis")
    parser.add_argument("--target-pattern", help="r2r")
    parser.add_argument("--target-kafka", metavar="BOOTSTRAP", help="k2k: default is --kafka")
    parser.add_argument("--target-topic", help="k2k")
    parser.add_argument("--kafka-property", action="append", default=[], metavar="NAME=VALUE", help="for kafka-python")
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--records-min", type=int, default=1, help="fewer source records than this prove nothing")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text")
    options = parser.parse_args()
    started = time.monotonic()
    try:
        source, target = _sides(options)
    except (OSError, RuntimeError, KafkaError) as error:
        print(f"cannot judge: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    result = judge(source, target)
    verdict = {"direction": options.direction, "ok": not result.differences} | result.as_dict()
    verdict["seconds"] = round(time.monotonic() - started, 2)
    if options.output == "json":
        print(json.dumps(verdict))
    else:
        print(f"{result.records} records: " + ", ".join(f"{kind} {result.counts[kind]}" for kind in KINDS))
        for kind, examples in result.examples.items():
            for example in examples:
                print(f"  {kind}: {example}")
    if result.source_records < options.records_min:
        print(f"cannot judge: the source holds only {result.source_records} records", file=sys.stderr)
        return 2
    return 1 if result.differences else 0


def _sides(options: argparse.Namespace) -> tuple[dict[int, Lane], dict[int, Lane]]:
    # The target first: what it holds must be in the source later, the other way round need not hold.
    target = _read(options, options.direction[2], is_target=True)
    source = _read(options, options.direction[0], is_target=False)
    return source, target


def _read(options: argparse.Namespace, kind: str, *, is_target: bool) -> dict[int, Lane]:
    if kind == "r":
        url, pattern = options.redis, options.pattern
        if is_target and options.direction == "r2r":
            url, pattern = options.target_redis or url, options.target_pattern
        return read_redis(_given(url, "--redis"), _given(pattern, "--target-pattern"), options.lanes)
    bootstrap, topic = options.kafka, options.topic
    if is_target and options.direction == "k2k":
        bootstrap, topic = options.target_kafka or bootstrap, options.target_topic
    properties: dict[str, Any] = dict(item.split("=", 1) for item in options.kafka_property)
    return read_kafka(_given(bootstrap, "--kafka"), _given(topic, "--target-topic"), options.lanes, properties)


def _given(value: str | None, option: str) -> str:
    if not value:
        raise RuntimeError(f"{option} is missing")
    return value


if __name__ == "__main__":
    sys.exit(main())
