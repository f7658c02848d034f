"""The lab's proxy on bare sockets: each mode does what its name says, and heals without being told."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crossfade.lab.control import ask
from crossfade.lab.errors import LabError
from crossfade.lab.process import wait_until
from crossfade.lab.state import free_ports


class Server:
    """Remembers what arrived; answers every chunk with `answer(chunk)`."""

    def __init__(self, answer: Callable[[bytes], bytes] = lambda chunk: chunk) -> None:
        self.answer = answer
        self.received = bytearray()
        self.ends = 0
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                conn, _ = self.sock.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn: socket.socket) -> None:
        with conn:
            try:
                while chunk := conn.recv(1 << 16):
                    self.received += chunk
                    conn.sendall(self.answer(chunk))
            except OSError:
                pass
            self.ends += 1


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    # Deeper than a Unix socket's path may be long.
    folder = tmp_path_factory.mktemp("proxy") / ("d" * 100)
    folder.mkdir()
    with running(folder / "proxy.sock"):
        yield folder / "proxy.sock"


@contextlib.contextmanager
def running(path: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A proxy that listens to orders at `path`."""
    with subprocess.Popen([sys.executable, "-m", "crossfade.lab.proxy", str(path)], **options) as process:
        try:
            assert wait_until(lambda: answers(path), 10)
            yield process
        finally:
            process.terminate()
            code = process.wait(5)
        assert code == 0


def answers(path: Path) -> bool:
    try:
        ask(path, {"op": "stats"})
    except LabError:
        return False
    return True


class Rig:
    """A server behind a link."""

    def __init__(self, control: Path, name: str, server: Server) -> None:
        self.control, self.name, self.server = control, name, server
        self.port = free_ports([name], {})[name]
        request = {"op": "add", "link": name, "port": self.port, "host": "127.0.0.1", "target_port": server.port}
        ask(control, request)

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        sock.settimeout(5)
        return sock

    def set(self, mode: str, **more: Any) -> dict[str, Any]:
        return ask(self.control, {"op": "set", "link": self.name, "mode": mode, **more})

    def stats(self) -> dict[str, Any]:
        links = ask(self.control, {"op": "stats"})["links"]
        return next(link for link in links if link["link"] == self.name)


@pytest.fixture
def rig(control: Path, request: pytest.FixtureRequest) -> Rig:
    return Rig(control, request.node.name, Server())


def echo(sock: socket.socket, data: bytes) -> bytes:
    sock.sendall(data)
    return exactly(sock, len(data))


def exactly(sock: socket.socket, size: int) -> bytes:
    out = b""
    while len(out) < size:
        part = sock.recv(size - len(out))
        if not part:
            break
        out += part
    return out


def is_silent(sock: socket.socket, seconds: float) -> bool:
    sock.settimeout(seconds)
    try:
        return sock.recv(1) is None
    except TimeoutError:
        return True
    finally:
        sock.settimeout(5)


def test_bytes_pass_whole_and_in_order_though_both_sides_are_slow(control: Path) -> None:
    rig = Rig(control, "large", Server())
    data = os.urandom(24 << 20)
    with rig.connect() as sock:
        got = hashlib.sha256()

        def read() -> None:
            left = len(data)
            while left:
                part = sock.recv(1 << 16)
                got.update(part)
                left -= len(part)
                if left % 7 == 0:
                    time.sleep(0.001)

        reader = threading.Thread(target=read)
        reader.start()
        sock.settimeout(30)
        sock.sendall(data)
        reader.join(30)
    assert got.hexdigest() == hashlib.sha256(data).hexdigest()
    assert bytes(rig.server.received) == data


def test_an_end_of_stream_passes_through(control: Path) -> None:
    rig = Rig(control, "ends", Server(lambda chunk: b"seen"))
    with rig.connect() as sock:
        sock.sendall(b"last words")
        sock.shutdown(socket.SHUT_WR)
        assert exactly(sock, 4) == b"seen"
        assert sock.recv(1) == b""
    assert bytes(rig.server.received) == b"last words"
    assert wait_until(lambda: rig.stats()["connections"] == 0, 5)


def test_a_missing_server_resets_the_client(control: Path) -> None:
    server = Server()
    rig = Rig(control, "missing", server)
    server.sock.shutdown(socket.SHUT_RDWR)
    server.sock.close()

    def touch() -> None:
        with rig.connect() as sock:
            sock.recv(1)

    with pytest.raises(ConnectionResetError):  # on connecting already, or at the first read
        touch()


def test_cut_resets_and_refuses_until_its_deadline(rig: Rig) -> None:
    with rig.connect() as sock:
        assert echo(sock, b"a") == b"a"
        assert rig.set("cut", deadline_s=0.6)["reset"] == 1
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            rig.connect()
    began = time.monotonic()
    assert wait_until(lambda: rig.stats()["mode"] == "pass", 5)
    assert time.monotonic() - began < 2
    with rig.connect() as sock:
        assert echo(sock, b"b") == b"b"


def test_delay_delays_both_ways_and_keeps_order(rig: Rig) -> None:
    with rig.connect() as sock:
        assert echo(sock, b"warm") == b"warm"
        rig.set("delay", delay_ms=150)
        began = time.monotonic()
        for number in range(50):
            sock.sendall(b"%03d" % number)
        assert exactly(sock, 150) == b"".join(b"%03d" % number for number in range(50))
        assert 0.29 < time.monotonic() - began < 1.5
        sock.sendall(b"on its way")
        rig.set("pass")
        assert exactly(sock, 10) == b"on its way"
        began = time.monotonic()
        assert echo(sock, b"quick") == b"quick"
        assert time.monotonic() - began < 0.1


def test_held_replies_come_at_the_heal_and_requests_arrive_before(rig: Rig) -> None:
    with rig.connect() as sock:
        rig.set("hold-replies")
        sock.sendall(b"request")
        assert wait_until(lambda: rig.stats()["held_bytes"] == 7, 5)
        assert bytes(rig.server.received) == b"request"
        assert is_silent(sock, 0.2)
        rig.set("pass")
        assert exactly(sock, 7) == b"request"
        assert rig.stats()["held_bytes"] == 0
        assert rig.stats()["held_bytes_max"] == 7
        assert echo(sock, b"more") == b"more"


def test_dropped_replies_never_come_and_the_heal_resets(rig: Rig) -> None:
    with rig.connect() as sock, rig.connect() as idle:
        assert echo(idle, b"x") == b"x"
        rig.set("drop-replies")
        sock.sendall(b"request")
        assert wait_until(lambda: rig.stats()["dropped_bytes"] == 7, 5)
        assert is_silent(sock, 0.1)
        rig.set("pass")
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert echo(idle, b"y") == b"y"  # nothing of it was lost, so it lives on


def test_half_open_accepts_and_swallows(rig: Rig) -> None:
    with rig.connect() as old:
        assert echo(old, b"x") == b"x"
        rig.set("half-open", deadline_s=0.8)
        with rig.connect() as new:
            for sock in (old, new):
                sock.sendall(b"into the dark")
                assert is_silent(sock, 0.1)
            assert rig.stats()["dropped_bytes"] == 26
            assert bytes(rig.server.received) == b"x"
            for sock in (old, new):
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
    with rig.connect() as sock:
        assert echo(sock, b"y") == b"y"


def test_held_requests_arrive_though_their_client_has_gone(rig: Rig) -> None:
    rig.set("hold-requests")
    with rig.connect() as sock:
        sock.sendall(b"late ")
        sock.sendall(b"words")
        assert wait_until(lambda: rig.stats()["held_bytes"] == 10, 5)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    time.sleep(0.2)
    assert bytes(rig.server.received) == b""
    rig.set("pass")
    assert wait_until(lambda: bytes(rig.server.received) == b"late words", 5)
    assert wait_until(lambda: rig.server.ends == 1 and rig.stats()["connections"] == 0, 5)


def test_a_held_flood_is_bounded_and_loses_nothing(control: Path) -> None:
    block = os.urandom(1 << 20)
    server = Server()
    server.sock.shutdown(socket.SHUT_RDWR)  # this test accepts by itself
    server.sock.close()
    flood = socket.create_server(("127.0.0.1", server.port))
    rig = Rig(control, "flood", server)
    rig.set("hold-replies")
    with rig.connect() as sock:
        peer, _ = flood.accept()
        sent = hashlib.sha256()

        def send() -> None:
            with peer:
                for _ in range(160):  # more than proxy and socket buffers together can take
                    peer.sendall(block)
                    sent.update(block)

        sender = threading.Thread(target=send)
        sender.start()
        assert wait_until(lambda: rig.stats()["held_bytes"] >= 32 << 20, 10)
        time.sleep(0.2)
        assert rig.stats()["held_bytes"] < 34 << 20
        assert sender.is_alive()
        rig.set("pass")
        got, size = hashlib.sha256(), 0
        while part := sock.recv(1 << 20):
            got.update(part)
            size += len(part)
        sender.join(10)
    flood.close()
    assert size == 160 << 20
    assert got.hexdigest() == sent.hexdigest()


def test_reset_hits_each_connection_once(rig: Rig) -> None:
    with rig.connect() as one, rig.connect() as two:
        assert echo(one, b"1") + echo(two, b"2") == b"12"
        assert ask(rig.control, {"op": "reset", "link": rig.name})["connections_reset"] == 2
        for sock in (one, two):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
    with rig.connect() as sock:
        assert echo(sock, b"3") == b"3"


def test_a_wrong_order_is_refused_and_the_proxy_lives(rig: Rig) -> None:
    no_port = {"op": "add", "link": "x", "port": 0, "host": "127.0.0.1", "target_port": 1}
    nobody = {"op": "set", "link": "nobody", "mode": "cut"}
    for request in (nobody, {"op": "dance", "link": rig.name}, no_port, {**no_port, "port": None}, {}):
        with pytest.raises(LabError, match="refused"):
            ask(rig.control, request)
    with pytest.raises(LabError, match="not a valid Mode"):
        rig.set("sideways")
    with rig.connect() as sock:
        assert echo(sock, b"alive") == b"alive"


# -- descriptors


def limited(soft: int, hard: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_opens_as_many_files_as_it_may(tmp_path: Path) -> None:
    with running(tmp_path / "proxy.sock", preexec_fn=limited(64, 200)) as process:
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        assert limits.partition("Max open files")[2].split()[:2] == ["200", "200"]


@pytest.mark.parametrize("open_max", range(64, 70))  # it runs out at each of a connection's descriptors
def test_connections_that_there_is_no_room_for_are_reset_and_the_others_live_on(
    open_max: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "proxy.sock"
    with running(path, preexec_fn=limited(open_max, open_max)) as process, contextlib.ExitStack() as opened:
        rig = Rig(path, "narrow", Server())
        before = len(os.listdir(f"/proc/{process.pid}/fd"))
        served: list[socket.socket] = []
        for _ in range(30):
            with contextlib.suppress(ConnectionError):  # reset, on connecting already or later
                sock = opened.enter_context(rig.connect())
                if echo(sock, b"x") == b"x":
                    served.append(sock)
        assert 5 < len(served) < 12  # six descriptors each
        assert rig.stats()["connections"] == len(served)
        assert rig.stats()["reset"] == 30 - len(served)
        assert all(echo(sock, b"still here") == b"still here" for sock in served)
        served[0].close()
        assert wait_until(lambda: rig.stats()["connections"] == len(served) - 1, 5)
        assert echo(opened.enter_context(rig.connect()), b"new") == b"new"
        opened.close()
        assert wait_until(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) <= before, 5)
    assert capfd.readouterr().out.count("no room for every connection") == 1
