"""The README's tour works as typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
#: done already, or there would be no test
_SETUP = {"make setup", "source .venv/bin/activate"}


def _tour() -> str:
    text = (_ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## Five minutes by hand.*?```bash\n(.*?)```", text, re.DOTALL)
    assert block, "the README has a tour"
    lines = block[1].splitlines()
    assert set(lines) >= _SETUP, "the tour starts with the set-up"
    return "\n".join(line for line in lines if line not in _SETUP)


@pytest.mark.lab
@pytest.mark.timeout(300)
def test_the_tour_works_as_typed(tmp_path: Path) -> None:
    # Every line must succeed, `verify` and `uninstall` too; the lab goes away even when one fails.
    script = f"set -eu -o pipefail\ntrap 'crossfade lab down tour >&2 || true' ERR\n{_tour()}\n"
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    assert re.search(r"matched 20,000 .*missing 0 .*extra 0", done.stdout + done.stderr), done.stdout[-3000:]


def test_every_file_that_the_documents_link_to_exists() -> None:
    pages = [*_ROOT.glob("*.md"), *(_ROOT / "docs").rglob("*.md")]
    broken = []
    for page in pages:
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not (page.parent / link).exists():
                broken.append(f"{page.relative_to(_ROOT)}: {link}")
    assert not broken
