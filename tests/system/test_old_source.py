"""A Kafka 3.5 broker as the source: real relays copy from it to Valkey and to today's Kafka, with a kill between.

One broker, as old installations have it: a source is only read.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from rig import KafkaSide, Side, Writer

from crossfade.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(300)]

_LANES = 4
_RECORDS = 4000


@pytest.fixture(scope="module")
def old() -> Iterator[Lab]:
    """A broker of Kafka 3.5, beside the session's lab."""
    started = Lab.up(f"tests-old-{os.getpid()}", brokers=1, redis="none", kafka_version="3.5.2", owner_pid=os.getpid())
    yield started
    started.down()


@pytest.mark.parametrize("kind", ["r", "k"])
def test_an_old_broker_is_copied_from(workshop: Any, old: Lab, kind: str) -> None:
    source = KafkaSide(old, _LANES, f"sys-{secrets.token_hex(5)}", {"min.insync.replicas": "1"})
    target: Side = workshop.side(kind, _LANES)
    workshop.sides.append(source)
    made = workshop.copy(source, target)
    # Records of the past are there before the copy begins; more come while it goes on.
    for lane in range(_LANES):
        source.write_numbers(lane, range(1_000_000 + lane, 1_001_000, _LANES))
    writer = Writer(source, records_max=_RECORDS)
    writer.start()
    first = made.run("--start")
    made.wait_drained(records=1500)
    first.kill()
    second = made.run()
    second.wait_said('"claimed"')
    written = writer.stop()
    made.wait_drained()
    assert made.check().source_records == written + 1000
    assert second.stop() == 0
    answer = made.cli("doctor", "copy")
    assert answer.code in (0, 1), answer.err
    assert "Traceback" not in answer.err
    verified = made.cli("verify", "copy")
    assert verified.code == 0, verified.out + verified.err
