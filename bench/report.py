"""What is left of a benchmark: `build/bench.json`, and the same as a table for people."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .cases import Row, Spread

_PACKAGES = ("crossfade", "confluent-kafka", "redis", "hiredis")


def machine() -> dict[str, Any]:
    """Processor, cores and memory of this machine."""
    model = "?"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory_kib = next(
        int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory_kib / (1 << 20), 1),
        "system": platform.platform(),
        "load_at_start": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Versions of Python, of Crossfade and of the clients."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def write(path: Path, rows: Sequence[Row], facts: dict[str, Any]) -> None:
    """Replace the report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"version": 1, **facts, "rows": [row.as_dict() for row in rows]}
    path.write_text(json.dumps(document, indent=1) + "\n")


def table(rows: Sequence[Row]) -> str:
    """The rows for people: min / median / max, what was promised, and whether it holds."""
    head = ("case", "what", "records/s", "CPU s/M", "beside", "its records/s", "figure", "min / median / max", "must")
    lines = [(*head, "aim", "verdict")]
    for row in rows:
        lines.append(
            (
                row.case,
                row.subject,
                _median(row.records_per_s, "{:,.0f}"),
                _median(row.cpu_s_per_million, "{:.2f}"),
                row.reference,
                _median(row.reference_records_per_s, "{:,.0f}"),
                row.figure,
                _three(row.value) or row.note,
                _limit(row, "must"),
                _limit(row, "aim"),
                row.verdict,
            )
        )
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _median(spread: Spread | None, form: str) -> str:
    return form.format(spread.median) if spread else ""


def _three(spread: Spread | None) -> str:
    return " / ".join(f"{figure:.3g}" for figure in (spread.min, spread.median, spread.max)) if spread else ""


def _limit(row: Row, name: str) -> str:
    if row.promise is None:
        return ""
    return f"{'>=' if row.promise.at_least else '<='} {getattr(row.promise, name):g}"
