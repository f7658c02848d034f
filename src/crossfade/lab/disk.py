"""A disk that fills up: a server's data moved onto a small memory file system, and a file that takes the rest.

Mounting needs a right that only root has, and not in every sandbox; without it the fault is refused with the reason.
Called by faults (filling), heals (making room) and lab (taking the mount down).
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from crossfade.lab.errors import LabError, NotPossibleHere

_FILLER = ".crossfade-filler"
#: room beyond the data of the moment, so that a healed server can go on
_ROOM_BYTES = 256 << 20


def check(folder: Path) -> None:
    """Try whether a memory file system can be mounted here.  Raises NotPossibleHere with the reason."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        done = _run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place)
        if done:
            raise NotPossibleHere(f"a full disk needs the right to mount: {done}", hint="run the lab as root")
        _run("umount", place)


def _run(*command: str) -> str:
    """Run a system command; empty when it worked, else what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        return f"no {command[0]} on this machine"
    return "" if done.returncode == 0 else (done.stderr.strip() or f"{command[0]} failed")


def move_to_small_disk(data_dir: Path) -> None:
    """Mount a memory file system over the data, filled with a copy of it. The server must be stopped.

    Raises LabError.
    """
    if os.path.ismount(data_dir):
        return
    used = sum(path.stat().st_size for path in data_dir.rglob("*") if path.is_file())
    aside = data_dir.with_name(f"{data_dir.name}.disk")
    data_dir.rename(aside)
    data_dir.mkdir()
    if trouble := _run("mount", "-t", "tmpfs", "-o", f"size={used + _ROOM_BYTES}", "tmpfs", str(data_dir)):
        data_dir.rmdir()
        aside.rename(data_dir)
        raise LabError(f"cannot mount a small disk: {trouble}")
    shutil.copytree(aside, data_dir, dirs_exist_ok=True, symlinks=True)


def fill(data_dir: Path, free_bytes: int) -> int:
    """Write a file that leaves `free_bytes`; returns what is free then."""
    path = data_dir / _FILLER
    block = bytes(1 << 20)
    with path.open("ab", buffering=0) as file:
        while (room := _free(data_dir) - free_bytes) > 0:
            try:
                file.write(block[: min(room, len(block))])
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    break
                raise
    return _free(data_dir)


def _free(data_dir: Path) -> int:
    found = os.statvfs(data_dir)
    return found.f_bavail * found.f_frsize


def is_filled(data_dir: Path) -> bool:
    """Whether the filler is still there."""
    return (data_dir / _FILLER).exists()


def make_room(data_dir: Path) -> None:
    """Remove the filler."""
    (data_dir / _FILLER).unlink(missing_ok=True)


def take_down(data_dir: Path, *, keep: bool) -> None:
    """Unmount a small disk after its server has ended; with `keep` its data go back to the real one."""
    if not os.path.ismount(data_dir):
        return
    make_room(data_dir)
    aside = data_dir.with_name(f"{data_dir.name}.disk")
    if keep:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(data_dir, aside, symlinks=True)
    # Lazily: a process of ours that still has a file open must not keep the lab from going away.
    _run("umount", "-l", str(data_dir))
    if keep:
        data_dir.rmdir()
        aside.rename(data_dir)
