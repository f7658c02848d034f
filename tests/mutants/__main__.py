"""Plant each named fault in a copy of the source and see its test go red: `python -m tests.mutants [--lab] [name ...]`.

Faults that only real brokers show are passed over without `--lab`, unless they are named. Exits with 1 where a fault
survives, or no longer fits the source.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.catalogue import MUTANTS, Mutant

_ROOT = Path(__file__).parents[2]
_SOURCE = _ROOT / "src" / "crossfade"
_TIMEOUT_S = 600
_FAILED = 1  # pytest's exit code for red tests; anything else but 0 means that they did not run
#: in pytest's last line: tests that were red themselves, not the fixtures around them
_RED = re.compile(r"\b[1-9]\d* failed\b")
_GREEN = re.compile(r"\b[1-9]\d* passed\b")


def plant(mutant: Mutant, folder: Path) -> str:
    """Copy the source with the fault in it. Returns what is wrong with the fault, "" = nothing."""
    shutil.copytree(_SOURCE, folder / "crossfade", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "crossfade" / mutant.file
    text = path.read_text()
    found = text.count(mutant.old)
    if found != 1:
        return f"stands {found} times in {mutant.file}: mend the catalogue"
    path.write_text(text.replace(mutant.old, mutant.new))
    return ""


def judge(mutant: Mutant) -> str:
    """Run the mutant's test on the planted fault. Returns what is wrong, "" = it was killed."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name)
        trouble = plant(mutant, folder)
        if trouble:
            return trouble
        marks = "lab and not long" if mutant.lab else "not lab and not long"
        argv = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", marks]
        # A seed of its own per run would make a survivor come and go.
        environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                [*argv, mutant.test], cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            # A relay that hangs is caught, too; servers that do not start tell nothing.
            return "its test did not end" if mutant.lab else ""
        last = (done.stdout.rstrip().splitlines() or [""])[-1]
        if done.returncode == 0 and _GREEN.search(last):
            return f"survived {mutant.test}"
        if done.returncode != _FAILED or not _RED.search(last):
            return f"its test did not run (exit {done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-500:]}"
        return ""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--lab", action="store_true", help="also the faults that only real brokers show")
    parser.add_argument("names", nargs="*", metavar="name")
    given = parser.parse_args(arguments)
    unknown = set(given.names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        print(f"there is no mutant named {sorted(unknown)}", file=sys.stderr)
        return 2
    named = [mutant for mutant in MUTANTS if not given.names or mutant.name in given.names]
    chosen = [mutant for mutant in named if not mutant.lab or given.lab or given.names]
    quick, slow = ([mutant for mutant in chosen if mutant.lab is lab] for lab in (False, True))
    survivors = 0
    # Real servers one set at a time: they need what processors there are.
    for mutants, workers in ((quick, max(1, (os.cpu_count() or 2) - 1)), (slow, 1)):
        with ThreadPoolExecutor(max_workers=workers) as pool:
            for mutant, trouble in zip(mutants, pool.map(judge, mutants), strict=True):
                print(f"{'SURVIVED' if trouble else 'killed  '}  {mutant.name}  {trouble}", flush=True)
                survivors += bool(trouble)
    for mutant in named:
        if mutant not in chosen:
            print(f"skipped   {mutant.name}  it needs real brokers: --lab")
    print(f"{len(chosen) - survivors} of {len(chosen)} faults killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
