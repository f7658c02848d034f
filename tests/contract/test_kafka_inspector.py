"""What operators ask of a Kafka cluster: what a route left there, and whether a target is fit."""

import secrets

import pytest
from kafka_copy import NOW, Copy
from kafka_fixture import KafkaBackend, make_kafka_log

from crossfade.brokers.kafka import KafkaInspector, KafkaSettings
from crossfade.model.position import Place
from crossfade.model.record import Write

pytestmark = pytest.mark.lab


@pytest.fixture
async def backend(lab):
    made = KafkaBackend(lab)
    yield made
    await made.close()


async def test_what_is_left_is_listed_and_removed(backend):
    log = await backend.log(1)
    copy = Copy(log)
    await copy.take()
    bad = Write((0, 0), [0], [(b"1", b"v", [("\ud800", b"x")], NOW)], Place("0", 1, "s"), [], 1)
    await log.append(copy.claim, [bad])
    await log.close()
    inspector = KafkaInspector(KafkaSettings(backend.properties), log.name)
    found = await inspector.footprint(copy.route)
    assert set(found) >= {
        f"topic crossfade.{copy.route}.lanes",
        f"topic crossfade.{copy.route}.quarantine",
        f"group crossfade.{copy.route}",
        f"document target/{log.name}",
    }
    await inspector.erase(copy.route, found)
    assert await inspector.footprint(copy.route) == []
    assert await (await backend.other(log)).cluster.topic(log.name) is not None


async def test_the_doctor_finds_a_fit_target_fit(lab, backend):
    log = await make_kafka_log(backend.properties, 2, f"doctor-{secrets.token_hex(4)}")
    inspector = KafkaInspector(KafkaSettings(backend.properties), log.name)
    await Copy(log).begin(0, 1)  # Kafka makes its own topics at the first transaction
    found = {finding.check: finding for finding in await inspector.inspect("target", 86_400)}
    assert {check for check, finding in found.items() if finding.level.value == "fail"} == set()
    assert found["kafka.min-insync-replicas"].level.value == "ok"
    assert found["kafka.transactions-topic"].level.value == "ok"
    assert found["kafka.board"].level.value == "ok"
    assert found["kafka.clock"].level.value == "by-hand"
    assert {check for check, finding in found.items() if finding.level.value == "unknown"} == set()
    missing = KafkaInspector(KafkaSettings(backend.properties), "no-such-topic")
    assert next(f.level.value for f in await missing.inspect("source", 1)) == "fail"
    await log.close()
