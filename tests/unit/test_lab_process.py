"""Processes of a lab: a recycled pid is never signalled, a tagged child is always found."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crossfade.lab import heals, state
from crossfade.lab.errors import LabError, LabUsage
from crossfade.lab.lab import Lab
from crossfade.lab.launch import Launch
from crossfade.lab.process import Process, collect, identify, spawn, stop_all, tagged, wait_until


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Process]:
    process = spawn([sys.executable, "-c", "import time; time.sleep(600)"], lab_dir=tmp_path, log=tmp_path / "log")
    yield process
    process.kill()
    collect(process)


def test_a_process_is_its_pid_and_its_start(sleeper: Process) -> None:
    assert sleeper.is_alive()
    assert identify(sleeper.pid) == sleeper
    stranger = Process(sleeper.pid, sleeper.started_ticks - 1)
    assert not stranger.is_alive()
    assert not stranger.send(signal.SIGKILL)
    assert stranger.kill()
    time.sleep(0.05)
    assert sleeper.is_alive()


def test_a_killed_process_is_gone_also_as_a_zombie(sleeper: Process) -> None:
    assert sleeper.kill()
    assert not sleeper.is_alive()
    assert identify(sleeper.pid) is None


def test_frozen_is_seen_and_stop_thaws(sleeper: Process) -> None:
    sleeper.send(signal.SIGSTOP)
    assert wait_until(sleeper.is_frozen, 5)
    began = time.monotonic()
    stop_all([sleeper], grace_s=5)
    assert not sleeper.is_alive()
    assert time.monotonic() - began < 4


def test_what_ignores_the_request_to_stop_is_killed(tmp_path: Path) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
    )
    process = spawn([sys.executable, "-c", code], lab_dir=tmp_path, log=tmp_path / "log")
    assert wait_until(lambda: (tmp_path / "log").read_text() == "on\n", 5)
    stop_all([process], grace_s=0.2)
    assert not process.is_alive()


def test_tagged_finds_children_and_only_this_labs(sleeper: Process, tmp_path: Path) -> None:
    assert wait_until(lambda: tagged(tmp_path) == [sleeper], 5)
    assert tagged(tmp_path / "other") == []


def test_a_server_gets_its_own_session(sleeper: Process) -> None:
    assert os.getsid(sleeper.pid) == sleeper.pid != os.getsid(0)


def test_the_state_survives_a_round_trip_and_names_what_is_missing(tmp_path: Path) -> None:
    options = state.Options(brokers=1)
    kept = state.State(name="a", options=options, owner=(1, 2), ports={"kafka-1.CLIENT": 20_000})
    folder = tmp_path / "a"
    folder.mkdir()
    state.write(folder, kept)
    assert state.read(folder) == kept
    with pytest.raises(LabUsage) as caught:
        state.read(tmp_path / "b")
    assert caught.value.hint == "known: a"
    (folder / "lab.json").write_text('{"version": 99, "name": "a", "options": {}}')
    with pytest.raises(LabError, match="version 99"):
        state.read(folder)
    (folder / "lab.json").write_text("{")
    with pytest.raises(LabError, match="damaged"):
        state.read(folder)


@pytest.mark.parametrize("name", ["", "A", "a/b", "..", "a" * 64])
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(LabUsage):
        state.lab_dir(name)


def test_ports_are_kept_while_they_are_free() -> None:
    first = state.free_ports(["a", "b"], {})
    assert state.free_ports(["a", "b"], first) == first
    import socket

    with socket.create_server(("127.0.0.1", first["a"])):
        second = state.free_ports(["a", "b"], first)
    assert second["a"] != first["a"]
    assert second["b"] == first["b"]
    assert len(set(second.values())) == 2


def test_ports_of_labs_that_start_at_the_same_time_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(state, "PORTS", range(21_000, 21_008))
    held: list[int] = []
    first = state.free_ports(["a", "b", "c"], {}, held)
    second = state.free_ports(["a", "b", "c"], first, held)  # another lab, nothing listens yet
    assert not set(first.values()) & set(second.values())
    for fd in held:
        os.close(fd)
    assert state.free_ports(["a", "b", "c"], first) == first


def test_a_note_is_healed_once(sleeper: Process, tmp_path: Path) -> None:
    sleeper.send(signal.SIGSTOP)
    assert wait_until(sleeper.is_frozen, 5)
    now = time.monotonic()
    note = heals.Note(kind="thaw", subject="s", deadline=now + 5, pid=sleeper.pid, started_ticks=sleeper.started_ticks)
    heals.leave(tmp_path, note)
    assert heals.pending(tmp_path) == [note]
    assert heals.heal_due(tmp_path, now) == 0
    assert sleeper.is_frozen()
    assert heals.heal_due(tmp_path, now + 6) == 1
    assert wait_until(lambda: not sleeper.is_frozen(), 5)
    assert heals.heal_due(tmp_path, now + 6) == 0
    assert not heals.take(tmp_path, note)


def test_no_trouble_keeps_the_notes_behind_it_from_being_healed(
    sleeper: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state.write(tmp_path, state.State(name="a", options=state.Options()))
    sleeper.send(signal.SIGSTOP)
    assert wait_until(sleeper.is_frozen, 5)
    first = heals.Note(
        kind="create", subject="t", deadline=1.0, id="0", topic=heals.TopicShape(partitions=1, replicas=1)
    )
    thaw = heals.Note(kind="thaw", subject="s", deadline=2.0, pid=sleeper.pid, started_ticks=sleeper.started_ticks)
    thaw.id = "1"
    for note in (first, thaw):
        heals.leave(tmp_path, note)

    class Broken:
        def leaders(self, topic: str) -> dict[int, int]:
            raise RuntimeError("of a library")

    monkeypatch.setattr("crossfade.lab.lab.Lab.admin", Broken())
    assert heals.heal_due(tmp_path, time.monotonic()) == 1
    assert wait_until(lambda: not sleeper.is_frozen(), 5)
    assert "healing create t: RuntimeError: of a library" in capsys.readouterr().out
    (kept,) = heals.pending(tmp_path)
    assert kept.subject == "t"
    assert kept.deadline > time.monotonic()


def test_a_note_over_which_a_watchdog_died_is_taken_up_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.write(tmp_path, state.State(name="a", options=state.Options()))
    note = heals.leave(tmp_path, heals.Note(kind="start", subject="s", deadline=1.0))

    class Killed(BaseException):
        """Stands for the death of the watchdog."""

    def dies(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(heals, "heal", dies)
    with pytest.raises(Killed):
        heals.heal_due(tmp_path, time.monotonic())
    assert heals.pending(tmp_path) == []
    heals.take_up(tmp_path)
    assert heals.pending(tmp_path) == [note]


def test_a_damaged_note_is_put_aside(tmp_path: Path) -> None:
    note = heals.leave(tmp_path, heals.Note(kind="thaw", subject="s", deadline=1.0))
    (tmp_path / "heals" / "0.json").write_text("{")
    assert heals.pending(tmp_path) == [note]
    assert sorted(path.name for path in (tmp_path / "heals").iterdir()) == ["0.damaged", f"{note.id}.json"]


def test_a_note_outlives_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state.write(tmp_path, state.State(name="a", options=state.Options()))
    note = heals.leave(tmp_path, heals.Note(kind="start", subject="nobody", deadline=1.0))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(heals, "leave", full)
        assert heals.heal_due(tmp_path, time.monotonic()) == 0
    assert heals.pending(tmp_path) == [note]


def leave_two(folder: Path) -> None:
    """One note that waits, and one that a watchdog has put aside."""
    for name in ("waiting.json", "held.aside"):
        note = heals.Note(kind="start", subject="s", deadline=1.0, id=name)
        heals.leave(folder, note).id = name
        (folder / "heals" / f"{name}.json").rename(folder / "heals" / name)


def test_no_note_outlives_a_lab_that_keeps_its_data(tmp_path: Path) -> None:
    state.write(tmp_path, state.State(name="a", options=state.Options()))
    leave_two(tmp_path)
    Lab(tmp_path).down(remove_data=False)
    heals.take_up(tmp_path)
    assert heals.pending(tmp_path) == []


def test_a_note_that_the_watchdog_leaves_while_it_is_ended_is_removed_too(tmp_path: Path) -> None:
    late = tmp_path / "heals" / "late.json"
    code = f"""
import pathlib, signal, sys, time
def end(*_):
    pathlib.Path({str(late)!r}).write_text("{{}}")
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("on", flush=True)
time.sleep(600)
"""
    late.parent.mkdir()
    watchdog = spawn([sys.executable, "-c", code], lab_dir=tmp_path, log=tmp_path / "log")
    assert wait_until(lambda: (tmp_path / "log").read_text() == "on\n", 5)
    made = state.State(name="a", options=state.Options())
    made.helpers = {"watchdog": (watchdog.pid, watchdog.started_ticks)}
    state.write(tmp_path, made)
    Lab(tmp_path).down(remove_data=False)
    assert not watchdog.is_alive()
    assert list(late.parent.iterdir()) == []


def test_a_lab_starts_without_the_notes_of_an_earlier_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_two(tmp_path)
    found: list[list[Path]] = []

    class Enough(Exception):
        """The watchdog is about to start."""

    def start_helper(*_: object) -> None:
        found.append(list((tmp_path / "heals").iterdir()))
        raise Enough

    monkeypatch.setattr(Lab, "start_helper", start_helper)
    with pytest.raises(Enough):
        Launch(Lab(tmp_path)).start()
    assert found == [[]]
