"""Handles end when they are let go of, also where their calls have failed: an outage must not pile up connections."""

import asyncio
import gc
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, OffsetSpec

from crossfade.brokers.kafka import KafkaLog, cluster, writer
from crossfade.brokers.kafka.board import _PlainWriter, _Reader
from crossfade.brokers.kafka.cluster import LATEST, Cluster
from crossfade.brokers.kafka.edges import EdgeReader
from crossfade.brokers.kafka.failures import HandleHealth, PropertiesRefused
from crossfade.brokers.kafka.markers import MarkerReader
from crossfade.brokers.kafka.settings import KafkaSettings
from crossfade.brokers.kafka.source import SourceReader
from crossfade.brokers.kafka.writer import Writer
from crossfade.errors import BrokerError, CrossfadeError, Kind, Unreachable
from crossfade.lab import pki

_NOBODY = {"bootstrap.servers": "127.0.0.1:1,127.0.0.1:2,127.0.0.1:3", "log_level": 0}


def _handles() -> int:
    """How many handles live: each has one thread of this name."""
    names = []
    for comm in Path("/proc/self/task").glob("*/comm"):
        try:
            names.append(comm.read_text().strip())
        except OSError:  # it has just ended
            continue
    return names.count("rdk:main")


@asynccontextmanager
async def _nothing_stays():
    """No handle more than before, without a collection of cycles: a relay makes one every few hours."""
    gc.collect()
    before = _handles()
    gc.disable()
    try:
        yield
        deadline = time.monotonic() + 30
        while _handles() > before:
            assert time.monotonic() < deadline, f"{_handles() - before} handles are left"
            await asyncio.sleep(0.05)
    finally:
        gc.enable()


async def test_writers_whose_transactions_fail_leave_nothing(monkeypatch):
    monkeypatch.setattr(writer, "_INIT_S", 0.2)
    kept = []  # as the state of a halted lane keeps its error
    async with _nothing_stays():
        for _ in range(3):
            made = Writer(KafkaSettings(_NOBODY), "crossfade.r.i", "t", message_bytes_max=1_000_000)
            with pytest.raises(BrokerError) as refused:
                await made.open()
            with pytest.raises(BrokerError) as failed:
                await made.commit([], [], None, None)
            kept += [refused.value, failed.value]
            await asyncio.to_thread(made.join, 30)
        del made


async def test_requests_that_fail_leave_nothing(monkeypatch):
    monkeypatch.setattr(cluster, "_PERSIST_S", 1.0)
    monkeypatch.setattr(cluster, "_REQUEST_S", 0.3)
    async with _nothing_stays():
        asked = Cluster(KafkaSettings(_NOBODY))
        for _ in range(2):
            with pytest.raises(CrossfadeError):
                await asked.offsets("t", [0], OffsetSpec.latest())
            with pytest.raises(CrossfadeError):
                await asked.topic("t")
        asked.close()


async def test_a_log_that_is_away_leaves_nothing(monkeypatch):
    monkeypatch.setattr(cluster, "_PERSIST_S", 1.0)
    monkeypatch.setattr(cluster, "_REQUEST_S", 0.3)
    async with _nothing_stays():
        log = KafkaLog(KafkaSettings(_NOBODY), "t")
        for _ in range(3):
            with pytest.raises(CrossfadeError):
                await log.bounds([0])
        await log.close()


async def test_a_handle_ends_in_a_thread_of_its_own():
    """Its end waits for the threads of the brokers, one of which may be resolving a name."""
    ended_in, has_ended = [], threading.Event()

    class Handle:
        def __del__(self):
            ended_in.append(threading.current_thread().name)
            has_ended.set()

    asked = Cluster(KafkaSettings(_NOBODY))
    asked._admin = Handle()
    asked.close()
    assert await asyncio.to_thread(has_ended.wait, 30)
    assert ended_in == ["kafka-admin-end"]


# -- TLS files that change while a relay runs ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    pki.make(folder, ["relay", "renewed"])
    return folder


@pytest.fixture
def half_done(certificates, tmp_path):
    """What somebody who renews them has written so far: file -> its bytes, beside those of before."""
    whole = {name: (certificates / name).read_bytes() for name in ("ca.pem", "relay.crt", "renewed.crt", "relay.key")}
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    tls = {"ca": "ca.pem", "certificate": "relay.crt", "key": "relay.key"}
    files = {f"ssl.{what}.location": str(tmp_path / name) for what, name in tls.items()}
    return _NOBODY | {"security.protocol": "ssl"} | files, tmp_path, whole


async def _write(settings):
    made = Writer(settings, "crossfade.r.i", "t", message_bytes_max=1_000_000)
    try:
        await made.open()
    finally:
        made.discard()


async def _beat(settings):
    made = _PlainWriter(settings)
    try:
        await made.write("status/r/0", b"{}")
    finally:
        made.close()


async def _read_board(settings):
    _Reader(settings).catch_up(1)


async def _look(settings):
    made = EdgeReader(settings, "t", "crossfade.r")
    try:
        await made.look({0: (0, 1)}, lambda lane, message: True, 5.0)
    finally:
        made.close()


async def _read_markers(settings):
    MarkerReader(settings, "r")


async def _read_source(settings):
    SourceReader(settings, "t", group="crossfade.r", queue_kbytes_max=1024)


async def _ask(settings):
    await Cluster(settings).offsets("t", [0], LATEST)


@pytest.mark.parametrize("how", ["of two pairs", "half an authority", "half a key"])
@pytest.mark.parametrize("use", [_write, _beat, _read_board, _look, _read_markers, _read_source, _ask])
async def test_tls_files_that_are_just_renewed_are_waited_for(use, how, half_done):
    properties, folder, whole = half_done
    changed, content = {
        "of two pairs": ("relay.crt", whole["renewed.crt"]),
        "half an authority": ("ca.pem", whole["ca.pem"][:200]),
        "half a key": ("relay.key", whole["relay.key"][:100]),
    }[how]
    (folder / changed).write_bytes(content)
    with pytest.raises(Unreachable, match="cannot be used now: ") as told:
        await use(KafkaSettings(properties))
    assert str(folder / changed) in told.value.message
    assert (told.value.kind, "tries again" in told.value.hint) == (Kind.RETRY, True)


async def test_the_id_of_a_topic_is_not_told_while_tls_files_are_renewed(half_done):
    properties, folder, whole = half_done
    (folder / "relay.crt").write_bytes(whole["renewed.crt"])
    assert await Cluster(KafkaSettings(properties)).topic_id("t") is None


@pytest.mark.parametrize("kind", [Producer, Consumer, AdminClient])
def test_a_handle_is_made_of_files_that_are_whole_again_and_gets_every_new_login(kind, half_done):
    properties, folder, whole = half_done
    settings, health = KafkaSettings(properties), HandleHealth("test")
    named = {"group_id": "g"} if kind is Consumer else {}
    (folder / "relay.crt").write_bytes(whole["renewed.crt"])
    with pytest.raises(Unreachable, match="key values mismatch"):
        settings.make(kind, settings.consumer(health, **named))
    (folder / "relay.crt").write_bytes(whole["relay.crt"])
    handle = settings.make(kind, settings.consumer(health, **named))
    assert list(settings._handles.values()) == [handle]
    settings.untrack(handle)


def test_certificates_that_are_given_as_secrets_are_waited_for_too(certificates):
    texts = {name: (certificates / name).read_text() for name in ("relay.key", "renewed.crt")}
    pems = {"ssl.key.pem": lambda: texts["relay.key"], "ssl.certificate.pem": lambda: texts["renewed.crt"]}
    settings = KafkaSettings(_NOBODY | {"security.protocol": "ssl"} | pems)
    with pytest.raises(Unreachable, match=r"cannot be used now: .*key values mismatch") as told:
        settings.make(Producer, settings.producer(HandleHealth("test")))
    assert "BEGIN" not in str(told.value)


def test_properties_that_are_never_right_are_not_waited_for():
    settings = KafkaSettings(_NOBODY | {"security.protocol": "ssl", "ssl.cipher.suites": "none"})
    with pytest.raises(PropertiesRefused, match=r"ssl\.cipher\.suites"):
        settings.make(Producer, settings.producer(HandleHealth("test")))
