"""The process that heals what nobody else heals: one per lab, started before anything else.

Every fault leaves a note (`heals/<id>.json`) with a deadline before it acts; when the deadline passes and the note is
still there, this process heals, whoever asked. When the lab's owner is gone, or its folder was removed under its feet,
it ends the whole lab, also what was started but not yet written down. Started by lab, talks to nobody.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from crossfade.lab import heals, state
from crossfade.lab.errors import LabError, LabUsage
from crossfade.lab.process import Process

_PAUSE_S = 0.2


def main(argv: list[str]) -> int:
    """`python -m crossfade.lab.watchdog FOLDER`"""
    folder = Path(argv[0])
    heals.take_up(folder)
    while (folder / "lab.json").exists():
        try:
            owner = state.read(folder).owner
        except LabUsage:
            continue  # removed just now
        except LabError as error:
            print(f"watchdog: {error}", flush=True)
            return 1
        if owner is not None and not Process(*owner).is_alive():
            print(f"watchdog: the owner {owner[0]} is gone, ending the lab", flush=True)
            _end_lab(folder)
            return 0
        heals.heal_due(folder, time.monotonic())
        time.sleep(_PAUSE_S)
    # `down` stops this process before it removes anything: somebody else has removed the folder of a running lab.
    print("watchdog: the lab's folder is gone, ending its processes", flush=True)
    _end_lab(folder)
    return 0


def _end_lab(folder: Path) -> None:
    from crossfade.lab.lab import Lab

    Lab(folder).down(remove_data=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
