"""What commands print: tables, JSON, words, progress.

Hides `-o text|json`: a command hands over rows and never asks which form is wanted. Keeps stdout for data and stderr
for words. Each JSON document carries `version`; with `--watch` it is one document a line.
Every command gets its `Output` by `output_of(context)`; `main` makes it from the global options.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from ..config import Config, PropertyMistake

#: version of every `-o json` document; a change that breaks readers raises it
JSON_VERSION = 1
#: wider than any table
_ENDLESS = 10_000


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: the key in each row, and where its text stands."""

    name: str
    right: bool = False
    #: what stands above it where that is not its name: a long name in two lines
    head: str = ""


@dataclass(frozen=True, slots=True)
class Brief:
    """What a terminal shows instead of a table: fewer rows and columns, whose cells are never broken, and lines below.

    `spare`: columns that are left out where the terminal is too narrow, the first one first; that is told.
    """

    rows: Sequence[Mapping[str, Any]]
    columns: Sequence[Column]
    below: Sequence[str] = ()
    spare: Sequence[str] = ()


@dataclass(slots=True)
class Output:
    """Where one command's data and words go, and the global options that it was called with."""

    is_json: bool = False
    is_verbose: bool = False
    config_path: Path | None = None
    #: `--set KEY=VALUE`, by dotted key
    sets: dict[str, str] = field(default_factory=dict)

    def config(self) -> Config:
        """The configuration that the global options name. Raises ConfigError."""
        import structlog

        from ..config import load
        from ..telemetry import setup_logging

        # Unless told otherwise structlog prints to stdout, where only data belongs.
        if not structlog.is_configured():
            setup_logging(json=self.is_json, level="debug" if self.is_verbose else "warning")
        return load(self.config_path, self.sets, os.environ, _property_mistakes)

    def table(
        self,
        rows: Sequence[Mapping[str, Any]],
        columns: Sequence[Column],
        *,
        live: bool = False,
        brief: Brief | None = None,
    ) -> None:
        """Print rows: a table of `columns`, or JSON with everything that the rows hold.

        `live` rows replace the ones before on a terminal, and are one line each time in JSON. A terminal shows `brief`
        instead of `columns` where there is one.
        """
        if self.is_json:
            self._json({"rows": list(rows)}, is_line=live)
            return
        if live and sys.stdout.isatty():
            sys.stdout.write("\x1b[H\x1b[J")
        if brief is not None and sys.stdout.isatty():
            self._print_brief(brief)
        else:
            self._print_table(rows, columns)

    def document(self, body: Mapping[str, Any], text: str, *, live: bool = False) -> None:
        """Print one thing: `body` as JSON, in one line where it is one of many (`live`), or `text` for people."""
        if self.is_json:
            self._json(body, is_line=live)
        else:
            sys.stdout.write(printable(text) + "\n")
            sys.stdout.flush()

    def note(self, text: str) -> None:
        """Say something to the person, not to a program."""
        sys.stderr.write(printable(text) + "\n")
        sys.stderr.flush()

    def note_lines(self, text: str) -> None:
        """Say each line of `text` to the person; an empty text is nothing to say."""
        for line in text.splitlines():
            self.note(line)

    def progress(self, what: str, total: int | None = None, unit: str = "records") -> Progress:
        """Show how far a long command is, with rate and time left, on stderr."""
        return Progress(what, total, unit)

    def _json(self, body: Mapping[str, Any], *, is_line: bool = False) -> None:
        text = json.dumps({"version": JSON_VERSION, **body}, default=str, indent=None if is_line else 2)
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def _print_table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> None:
        from rich.console import Console

        # Without a terminal there is nothing to fit into: a cut position is of no use to grep.
        width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _ENDLESS
        console = Console(file=sys.stdout, width=width, highlight=False, soft_wrap=False)
        console.print(_rich_table(rows, columns))
        sys.stdout.flush()

    def _print_brief(self, brief: Brief) -> None:
        from rich.console import Console

        # Where it is too wide all the same, the terminal goes on in a second line, and the cells stay whole.
        console = Console(file=sys.stdout, width=_ENDLESS, highlight=False, soft_wrap=False)
        room = Console(file=sys.stdout).width
        columns, left_out = list(brief.columns), []
        for name in brief.spare:
            if console.measure(_rich_table(brief.rows, columns, is_brief=True)).maximum > room:
                left_out += [column.name for column in columns if column.name == name]
                columns = [column for column in columns if column.name != name]
        console.print(_rich_table(brief.rows, columns, is_brief=True))
        too_narrow = [f"{', '.join(left_out)}: left out, the terminal is too narrow"] if left_out else []
        sys.stdout.writelines(printable(line) + "\n" for line in [*brief.below, *too_narrow])
        sys.stdout.flush()


def _property_mistakes(properties: Mapping[str, str]) -> list[PropertyMistake]:
    from ..brokers.kafka.properties import property_mistakes

    return property_mistakes(properties)


def output_of(context: typer.Context) -> Output:
    """The Output of this invocation; a plain one where a command group runs without `main`."""
    root = context.find_root()
    if not isinstance(root.obj, Output):
        root.obj = Output()
    return root.obj


def _rich_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, is_brief: bool = False) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=is_brief)
    for column in columns:
        table.add_column(
            column.head or column.name,
            justify="right" if column.right else "left",
            overflow="fold",
            vertical="bottom" if is_brief else "top",
        )
    for row in rows:
        table.add_row(*(Text(cell(row.get(column.name), numeric=column.right)) for column in columns))
    return table


def cell(value: Any, *, numeric: bool = False) -> str:
    """One value as a table shows it; nothing is "-"."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if numeric and isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(cell(item) for item in value) or "-"
    return printable(str(value))


def printable(text: str) -> str:
    """`text` without anything that would steer a terminal: keys and values come from strangers."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" for c in text)


class Progress:
    """A line on stderr that is rewritten on a terminal, and repeated now and then elsewhere."""

    def __init__(
        self,
        what: str,
        total: int | None,
        unit: str,
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total = total
        self.done = 0
        self._what, self._unit = what, unit
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._is_terminal = self._stream.isatty()
        self._period_s = 0.2 if self._is_terminal else 10.0
        self._started_s = self._shown_s = clock()

    def advance(self, count: int) -> None:
        """`count` more are done."""
        self.done += count
        now_s = self._clock()
        if now_s - self._shown_s >= self._period_s:
            self._show(now_s)

    def text(self, now_s: float) -> str:
        """The line at `now_s`."""
        elapsed_s = max(now_s - self._started_s, 1e-9)
        rate = self.done / elapsed_s
        if not self.total:
            return f"{self._what}: {self.done:,} {self._unit}, {rate:,.0f}/s"
        left_s = (self.total - self.done) / rate if rate > 0 else 0.0
        left = f", {_span(max(left_s, 0.0))} left" if rate > 0 else ""
        percent = min(100.0, 100.0 * self.done / self.total)
        return f"{self._what}: {self.done:,} of {self.total:,} {self._unit} ({percent:.0f} %), {rate:,.0f}/s{left}"

    def _show(self, now_s: float) -> None:
        self._shown_s = now_s
        start, end = ("\r", "\x1b[K") if self._is_terminal else ("", "\n")
        self._stream.write(f"{start}{self.text(now_s)}{end}")
        self._stream.flush()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
