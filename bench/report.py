"""What is left of a benchmark: `build/bench.json`, the same as a table for people, and as a page of the documents.

`python -m bench.report build/bench.json --into docs/performance.md` replaces the measured part of that page, so that no
figure is ever copied by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .cases import Row, Spread

_PACKAGES = ("crossfade", "confluent-kafka", "redis", "hiredis")
#: beside the servers' versions, the client needs a name of its own
_LABELS = {"redis": "redis-py"}


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


# --------------------------------------------------------------------------------------------------- the documents

_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"


def page(text: str, document: dict[str, Any]) -> str:
    """The page with its measured part replaced. Raises ValueError when it has none."""
    head, begin, rest = text.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not begin or not end:
        raise ValueError(f"the page has no {_BEGIN} ... {_END}")
    return f"{head}{_BEGIN}\n{markdown(document)}{_END}{tail}"


def markdown(document: dict[str, Any]) -> str:
    """Machine, versions and rows of a report."""
    machine, versions = document["machine"], document["versions"]
    lines = [
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; load when it began "
        f"{machine['load_at_start']:.1f}. {document['records']:,} records a run, up to {document['rounds_max']} "
        "rounds.",
        f"Versions: {', '.join(f'{_LABELS.get(name, name)} {number}' for name, number in versions.items())}.",
        "",
        "| case | what | records/s | CPU s/M | beside (records/s) | figure | min / median / max | must | aim | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_markdown_row(row) for row in document["rows"]]
    return "\n".join(lines) + "\n"


def _markdown_row(row: dict[str, Any]) -> str:
    beside = _middle(row["reference_records_per_s"], "{:,.0f}")
    cells = (
        row["case"],
        row["subject"],
        _middle(row["records_per_s"], "{:,.0f}"),
        _middle(row["cpu_s_per_million"], "{:.2f}"),
        f"{row['reference']} ({beside})" if beside else row["reference"],
        row["figure"],
        " / ".join(f"{row['value'][name]:.3g}" for name in ("min", "median", "max")) if row["value"] else row["note"],
        "" if row["must"] is None else f"{row['must']:g}",
        "" if row["aim"] is None else f"{row['aim']:g}",
        _word(row),
    )
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def _middle(spread: dict[str, float] | None, form: str) -> str:
    return form.format(spread["median"]) if spread else ""


def _word(row: dict[str, Any]) -> str:
    if row["must"] is None or row["verdict"] == "FAIL":
        return "" if row["verdict"] == "-" else "not kept"
    return "aim met" if row["aim_met"] else "kept"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a report as Markdown, or put it into a page."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--into", type=Path, metavar="PAGE", help="replace the measured part of this page")
    options = parser.parse_args(arguments)
    document = json.loads(options.file.read_text())
    if options.into:
        options.into.write_text(page(options.into.read_text(), document))
    else:
        print(markdown(document), end="")


if __name__ == "__main__":
    main()
