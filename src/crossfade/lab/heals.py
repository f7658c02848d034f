"""Notes of what has to be healed and until when, one file each, and how each kind is healed.

A note is written before the fault acts, so that no death in between leaves a fault without an end. Whoever heals
first, the caller or the watchdog, takes the note away; the other finds nothing to do. The watchdog only puts it aside
until the heal has succeeded: no trouble loses a note, and none ends the healing of the others. A note is for one
life of the lab. Called by faults, launch and watchdog.
"""

from __future__ import annotations

import contextlib
import signal
import time
import uuid
from pathlib import Path

import msgspec

from crossfade.lab import disk
from crossfade.lab.process import Process

_AGAIN_AFTER_S = 1.0


class TopicShape(msgspec.Struct, frozen=True, kw_only=True):
    """What a topic is made anew from."""

    partitions: int
    replicas: int
    settings: dict[str, str] = {}


class Note(msgspec.Struct, kw_only=True):
    """What to do at the deadline: `thaw` or `start` a server, `unfill` its disk, or `create` a topic anew."""

    kind: str
    subject: str
    deadline: float  # on this machine's monotonic clock, which all its processes share
    pid: int = 0
    started_ticks: int = 0
    topic: TopicShape | None = None
    id: str = msgspec.field(default_factory=lambda: uuid.uuid4().hex)


def leave(folder: Path, note: Note) -> Note:
    """Write the note down."""
    place = folder / "heals"
    place.mkdir(exist_ok=True)
    partial = place / f".{note.id}"
    partial.write_bytes(msgspec.json.encode(note))
    partial.replace(place / f"{note.id}.json")
    return note


def pending(folder: Path) -> list[Note]:
    """The notes that wait for their deadline."""
    out = []
    for path in sorted((folder / "heals").glob("*.json")):
        try:
            out.append(msgspec.json.decode(path.read_bytes(), type=Note))
        except FileNotFoundError:
            continue  # healed meanwhile
        except msgspec.MsgspecError as error:
            print(f"{path} is no note: {error}", flush=True)
            path.replace(path.with_suffix(".damaged"))
    return out


def take_up(folder: Path) -> None:
    """Put back the notes that an earlier watchdog died over."""
    for aside in (folder / "heals").glob("*.aside"):
        aside.replace(aside.with_suffix(".json"))


def forget(folder: Path) -> None:
    """Remove every note, also what a watchdog has put aside: no heal acts in another life of the lab."""
    for pattern in ("*.json", "*.aside"):
        for path in (folder / "heals").glob(pattern):
            path.unlink(missing_ok=True)


def take(folder: Path, note: Note) -> bool:
    """Take the note away; False when somebody else has done so."""
    try:
        (folder / "heals" / f"{note.id}.json").unlink()
    except FileNotFoundError:
        return False
    return True


def heal(folder: Path, note: Note) -> None:
    """Do what the note says.  Raises LabError, StartFailed."""
    from crossfade.lab.lab import Lab  # whose launch removes notes

    if note.kind == "thaw":
        Process(note.pid, note.started_ticks).send(signal.SIGCONT)
    elif note.kind == "start":
        Lab(folder).start_server(note.subject, wait=False)
    elif note.kind == "unfill":
        disk.make_room(Process(note.pid, note.started_ticks))
        Lab(folder).start_server(note.subject, wait=False)  # a broker ends when its disk is full
    elif note.kind == "create" and note.topic is not None:
        admin = Lab(folder).admin
        if not admin.leaders(note.subject):  # whoever deleted it died before it was there again
            admin.create_topic(note.subject, note.topic.partitions, note.topic.replicas, note.topic.settings)


def heal_due(folder: Path, now: float) -> int:
    """Heal everything whose deadline has passed; says how many. A heal that fails is said aloud and tried again."""
    healed = 0
    for note in pending(folder):
        path = folder / "heals" / f"{note.id}.json"
        aside = path.with_suffix(".aside")
        if note.deadline > now:
            continue
        try:
            path.rename(aside)
        except FileNotFoundError:
            continue  # healed meanwhile
        try:
            heal(folder, note)
            healed += 1
            print(f"healed {note.kind} {note.subject}", flush=True)
        except Exception as error:  # noqa: BLE001 - nobody else heals what comes after this one
            print(f"healing {note.kind} {note.subject}: {type(error).__name__}: {error}", flush=True)
            if (folder / "lab.json").exists():
                _put_back(folder, note, aside)
        aside.unlink(missing_ok=True)
    return healed


def _put_back(folder: Path, note: Note, aside: Path) -> None:
    """Leave the note again with a later deadline, or as it was where a full disk takes no new one."""
    note.deadline = time.monotonic() + _AGAIN_AFTER_S
    try:
        leave(folder, note)
    except OSError:
        with contextlib.suppress(OSError):
            aside.rename(aside.with_suffix(".json"))
