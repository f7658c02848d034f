"""`python -m demo`: copy live streams both ways under kill -9, and prove that nothing was lost, doubled or moved."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from crossfade.errors import CrossfadeError

from .children import ROOT, Trouble
from .report import broken_off, write_json
from .run import Plan, Run
from .saboteur import KINDS as SABOTAGES

_INTERRUPTED = 130
#: of the tables where no terminal says its width
_WIDTH_ALONE = 140


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description=__doc__,
        epilog="Exit codes: 0 every judge found a right copy and every fault took effect; 1 not so; 2 wrong usage; "
        "130 interrupted. The report is build/demo.json; an interrupted run leaves none.",
    )
    parser.add_argument("--quick", action="store_true", help="one direction, fewer records and faults: under a minute")
    parser.add_argument(
        "--repeat", type=int, default=1, metavar="N", help="N runs with a fresh seed each; the first failure ends it"
    )
    parser.add_argument("--seed", type=int, help="of the moments and the order of the faults; default: a new one")
    parser.add_argument(
        "--sabotage",
        choices=SABOTAGES,
        default=os.environ.get("SABOTAGE") or None,
        help="damage one record on the way: the demo has to find and name it, and to fail (also: SABOTAGE=...)",
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the logs and the followers' files also when all is well"
    )
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "demo", help="where it works and keeps logs")
    parser.add_argument("--report", type=Path, default=ROOT / "build" / "demo.json", metavar="FILE")
    return parser


def main() -> int:
    """Run it once or several times; the exit code."""
    parser = _arguments()
    options = parser.parse_args()
    if options.sabotage is not None and options.sabotage not in SABOTAGES:
        parser.error(f"SABOTAGE={options.sabotage} is none of {', '.join(SABOTAGES)}")
    console = Console(stderr=True) if sys.stderr.isatty() else Console(stderr=True, width=_WIDTH_ALONE, soft_wrap=True)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _as_interrupt)
    for number in range(1, options.repeat + 1):
        seed = options.seed if options.seed is not None and number == 1 else random.SystemRandom().randrange(1 << 31)
        if options.repeat > 1:
            console.rule(f"run {number} of {options.repeat}, seed {seed}")
        code = _once(options, seed, console)
        if code != 0:
            if options.repeat > 1:
                console.print(
                    f"run {number} of {options.repeat} (seed {seed}) failed; the runs end here", highlight=False
                )
            return code
    return 0


def _once(options: argparse.Namespace, seed: int, console: Console) -> int:
    sabotage = options.sabotage or ""
    plan = Plan.quick(seed, sabotage) if options.quick else Plan(seed, sabotage=sabotage)
    logs = options.folder / "logs"
    # However this run ends: what an earlier one proved says nothing about it.
    options.report.unlink(missing_ok=True)
    try:
        document = Run(plan, options.folder, console).play()
    except KeyboardInterrupt:
        console.print(f"interrupted; everything is stopped; logs: {logs}", highlight=False)
        _remove_data(options.folder, keep_logs=True)
        return _INTERRUPTED
    except (Trouble, CrossfadeError) as error:
        console.print(f"[red]the demo could not go on[/red]: {escape(str(error))}", highlight=False)
        if hint := getattr(error, "hint", ""):
            console.print(f"hint: {escape(hint)}", highlight=False)
        console.print(f"logs: {logs}", highlight=False)
        write_json(options.report, broken_off(seed, str(error), sabotage))
        console.print(f"report: {options.report}", highlight=False)
        return 1
    write_json(options.report, document)
    return _tell(document, options, console)


def _tell(document: dict[str, Any], options: argparse.Namespace, console: Console) -> int:
    console.print(f"report: {options.report} ({document['seconds']:.0f} s)", highlight=False)
    if document["ok"]:
        console.print("[green]lost 0, duplicated 0, reordered 0, altered 0, invented 0[/green]", highlight=False)
        if not options.keep:
            _remove_data(options.folder)
        return 0
    for problem in document["problems"]:
        console.print(f"[red]{escape(problem)}[/red]", highlight=False)
    console.print(f"[red]not proven[/red]; logs: {options.folder / 'logs'}", highlight=False)
    _remove_data(options.folder, keep_logs=True)
    return 1


def _remove_data(folder: Path, *, keep_logs: bool = False) -> None:
    if not keep_logs:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_file():
            path.unlink()


def _as_interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
