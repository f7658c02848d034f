"""The workload never lies about a send: ok is there, unknown may be, refused is not, and nothing is sent twice."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import hiredis
import pytest

from crossfade.lab import pki, senders, workload
from crossfade.lab.checker import check
from crossfade.lab.errors import LabError, LabUsage
from crossfade.lab.history import FAIL, OK, HistoryWriter, digest_of, digest_of_entry, id_in, read_history
from crossfade.lab.payloads import Values, mixed_entry, mixed_record
from crossfade.lab.state import free_ports


class FakeRedis:
    """Takes PING and XADD; cuts the link after some XADDs (before or after storing the last one); refuses some."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.refusal = b"-OOM command not allowed\r\n"
        self.entries: dict[bytes, list[tuple[bytes, list[bytes]]]] = {}
        self.cut_after: list[int] = []
        self.refuse_every = 0
        self.links = 0
        self._count = self._since_cut = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis{'s' if tls else ''}://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._server.accept()
            except OSError:
                return
            self.links += 1
            with contextlib.suppress(OSError):  # a killed client resets its link
                self._serve(self._tls.wrap_socket(link, server_side=True) if self._tls else link)

    def _serve(self, link: socket.socket) -> None:
        reader = hiredis.Reader()
        with link:
            while data := link.recv(1 << 16):
                reader.feed(data)
                replies = []
                while (command := reader.gets()) is not False:
                    reply = self._answer(command)
                    if reply is None:
                        link.sendall(b"".join(replies))
                        return
                    replies.append(reply)
                link.sendall(b"".join(replies))

    def _answer(self, command: list[bytes]) -> bytes | None:
        if command[0] != b"XADD":
            return b"+PONG\r\n"
        self._count += 1
        self._since_cut += 1
        if self.refuse_every and self._count % self.refuse_every == 0:
            return self.refusal
        if self.cut_after and self._since_cut > self.cut_after[0]:
            if len(self.cut_after) % 2:
                self._store(command)  # stored, and nobody is told
            self.cut_after.pop(0)
            self._since_cut = 0
            return None
        name = self._store(command)
        return b"$%d\r\n%b\r\n" % (len(name), name)

    def _store(self, command: list[bytes]) -> bytes:
        stream = self.entries.setdefault(command[1], [])
        name = b"1700000000000-%d" % self._count
        stream.append((name, command[3:]))
        return name

    def seen(self, lanes: int) -> dict[int, list[tuple[int | None, int, object]]]:
        return {
            lane: [
                (id_in(b"".join(fields)), digest_of_entry(fields), name)
                for name, fields in self.entries.get(b"msg:stream:%d" % lane, [])
            ]
            for lane in range(lanes)
        }

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def redis() -> Iterator[FakeRedis]:
    server = FakeRedis()
    yield server
    server.close()


def run(redis: FakeRedis, history: Path, *more: str) -> None:
    arguments = ["--redis", redis.url, "--lanes", "4", "--history", str(history), "--records", "3000", *more]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert workload.main(arguments) == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("more", [(), ("--mixed",)])
def test_history_matches_what_the_server_holds(redis: FakeRedis, tmp_path: Path, more: tuple[str, ...]) -> None:
    run(redis, tmp_path / "h", *more)
    sent = read_history(tmp_path / "h")
    report = check(sent, source=redis.seen(4), target=redis.seen(4))
    assert report.ok, report.as_dict()
    assert report.sent_ok == 3000
    assert report.target.records == 3000
    assert all(redis.entries.values())


def test_cut_links_leave_unknown_sends_and_nothing_twice(redis: FakeRedis, tmp_path: Path) -> None:
    redis.cut_after = [700, 3, 900, 0]
    run(redis, tmp_path / "h")
    assert redis.links == 5
    report = check(read_history(tmp_path / "h"), source=redis.seen(4), target=redis.seen(4))
    assert report.ok, report.as_dict()
    assert report.sent_ok == 3000
    assert report.sent_unknown > 0
    assert report.target.records > 3000, "the fake stores the record of every second cut"


def test_refused_records_are_failures(redis: FakeRedis, tmp_path: Path) -> None:
    redis.refuse_every = 1000
    run(redis, tmp_path / "h")
    report = check(read_history(tmp_path / "h"), source=redis.seen(4), target=redis.seen(4))
    assert report.ok, report.as_dict()
    assert (report.sent_ok, report.sent_fail) == (3000, 3)


def test_killed_and_started_again_it_goes_on_and_forgets_nothing(redis: FakeRedis, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "crossfade.lab.workload", "--redis", redis.url, "--lanes", "4", "--progress"]
    command += ["--history", str(tmp_path / "h")]
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        assert process.stdout is not None
        assert re.search(rb'"ok": \d+', process.stdout.readline())
        process.send_signal(number)
        code = process.wait(10)
        process.stdout.close()
        assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        time.sleep(0.1)
    sent = read_history(tmp_path / "h")
    report = check(sent, source=redis.seen(4), target=redis.seen(4))
    assert report.ok, report.as_dict()
    assert report.sent_ok > 0


# -- what it does not wait for


def play(url: str, history: Path) -> None:
    workload.play(["--redis", url, "--lanes", "4", "--history", str(history), "--records", "600"])


@pytest.fixture
def certified(tmp_path: Path) -> Iterator[FakeRedis]:
    pki.make(tmp_path / "pki", [])
    pki.make(tmp_path / "other", [])
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "pki" / "server.crt", tmp_path / "pki" / "server.key")
    server = FakeRedis(tls)
    yield server
    server.close()


def test_the_authority_that_the_url_names_is_trusted(certified: FakeRedis, tmp_path: Path) -> None:
    play(f"{certified.url}/0?ssl_ca_certs={tmp_path}/pki/ca.pem", tmp_path / "h")
    assert read_history(tmp_path / "h").count(OK) == 600


def test_a_server_that_is_not_trusted_is_not_asked_again(certified: FakeRedis, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="is not trusted: unable to get local issuer"):
        play(f"{certified.url}/0?ssl_ca_certs={tmp_path}/other/ca.pem", tmp_path / "h")
    assert certified.links == 1
    with pytest.raises(LabUsage, match=r"ca\.pem cannot be used: No such file"):
        play(f"{certified.url}/0?ssl_ca_certs={tmp_path}/nowhere/ca.pem", tmp_path / "h")


def test_it_gives_up_where_nobody_ever_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(senders, "FIRST_LINK_S", 0.3)
    url = f"redis://127.0.0.1:{free_ports(['nobody'], {})['nobody']}"
    arguments = ["--redis", url, "--lanes", "4", "--history", str(tmp_path / "h"), "--records", "600"]
    assert workload.main(arguments) == 1
    told = capsys.readouterr()
    assert "no link to 127.0.0.1:" in told.err
    assert told.out == ""


@pytest.mark.parametrize("refusal", ["READONLY You can't write against a replica", "MOVED 1 127.0.0.1:7", "NOPERM"])
def test_it_gives_up_where_a_refusal_lasts(redis: FakeRedis, tmp_path: Path, refusal: str) -> None:
    redis.refuse_every, redis.refusal = 1, f"-{refusal}\r\n".encode()
    with pytest.raises(LabError, match=refusal):
        play(redis.url, tmp_path / "h")
    sent = read_history(tmp_path / "h")
    assert sent.count(FAIL) > 0
    assert sent.count(OK) == 0


def test_a_history_that_is_none_is_never_written_over(tmp_path: Path) -> None:
    for text in (b"crossfade-histories {}\n", b"x" * 40, b'{"a": 1}\n'):
        (tmp_path / "h").write_bytes(text)
        with pytest.raises(LabUsage, match="is no history"):
            HistoryWriter(tmp_path / "h", {})
        with pytest.raises(LabUsage, match="is no history"):
            read_history(tmp_path / "h")
        assert (tmp_path / "h").read_bytes() == text
    (tmp_path / "h").write_bytes(b"crossfade-history 1 {\n")
    with pytest.raises(LabUsage, match="is damaged"):
        read_history(tmp_path / "h")


# -- what it writes


def test_values_are_unique_keyed_and_of_the_size_asked_for() -> None:
    values = Values(seed=1, keys=4000, lanes=16, value_bytes=512)
    made = [values.value(id) for id in range(5000)]
    assert {len(value) for value in made} == {512}
    assert len(set(made)) == 5000
    assert [id_in(value) for value in made] == list(range(5000))
    assert len({values.key_index(id) for id in range(20_000)}) > 3500
    assert set(values.lane_of) == set(range(16))
    again = Values(seed=1, keys=4000, lanes=16, value_bytes=512)
    assert made[7] == again.value(7)


def test_values_halve_under_lz4_in_batches() -> None:
    lz4 = pytest.importorskip("lz4.frame")
    values = Values(seed=1, keys=4000, lanes=16, value_bytes=512)
    batch = b"".join(values.value(id) for id in range(1000))
    assert 0.4 < len(lz4.compress(batch)) / len(batch) < 0.6


def test_every_mixed_shape_carries_its_id() -> None:
    for id in range(8):
        value = b'{"id":"%016d","body":"x"}' % id
        assert id_in(b"".join(mixed_entry(id, b"k", value))) == id
        key, body, headers = mixed_record(id, b"k", value)
        assert id_in(b"".join(part or b"" for part in (key, body, *(content for _, content in headers or ())))) == id
        assert digest_of(key, body, headers) != digest_of(key, body, [*(headers or ()), ("more", b"")])
