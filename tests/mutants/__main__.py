"""Plant each named fault in a copy of the source and see its test go red: `python -m tests.mutants [name ...]`.

Exits with 1 where a fault survives, or no longer fits the source.
"""

import os
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
        argv = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not lab and not long"]
        # A seed of its own per run would make a survivor come and go.
        environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                [*argv, mutant.test], cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            return ""  # a relay that hangs is caught, too
        if done.returncode == 0:
            return f"survived {mutant.test}"
        if done.returncode != _FAILED:
            return f"its test did not run (exit {done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-500:]}"
        return ""


def main(names: list[str]) -> int:
    unknown = set(names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        print(f"there is no mutant named {sorted(unknown)}", file=sys.stderr)
        return 2
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    survivors = 0
    with ThreadPoolExecutor(max_workers=max(1, (os.cpu_count() or 2) - 1)) as pool:
        for mutant, trouble in zip(chosen, pool.map(judge, chosen), strict=True):
            print(f"{'SURVIVED' if trouble else 'killed  '}  {mutant.name}  {trouble}", flush=True)
            survivors += bool(trouble)
    print(f"{len(chosen) - survivors} of {len(chosen)} faults killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
