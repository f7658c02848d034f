"""A relay that damages exactly one record: `python -m demo.saboteur relay run forward ...`, with SABOTAGE set.

It wraps the mapping that the route uses and then runs the ordinary command line, so everything else is the product. The
damage belongs to one record, named in the file SABOTAGE_NOTE: when that record comes by again (its transaction was
aborted, or the relay was killed) it is damaged again, so exactly one damaged record ends up in the target.

    drop    one record is left out                  alter   one byte of its value is another
    dup     it is there twice                       invent  behind it stands a record that nobody sent
    swap    it and its neighbour change places
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crossfade.model import mapping as mappings
from crossfade.model.mapping import Mapping
from crossfade.model.record import Batch, Mapped, Row, Shape

KINDS = ("drop", "dup", "swap", "alter", "invent")
#: damage the first record at or after this one of the workload
_FIRST_ID = int(os.environ.get("SABOTAGE_FROM_ID", "20000"))
_ID = re.compile(rb'"id":"(\d{16})"')


class Saboteur:
    """A Mapping that damages one record on its way and is honest about the rest."""

    def __init__(self, inner: Mapping, kind: str, note: Path) -> None:
        self._inner = inner
        self._damage = _DAMAGES[kind]
        self._kind = kind
        self._note = note
        self._chosen: bytes | None = json.loads(note.read_text())["id"].encode() if note.exists() else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def translate(self, batch: Batch, target: Shape) -> Mapped:
        """The honest translation, with the one damage where it belongs."""
        mapped = self._inner.translate(batch, target)
        at = self._find(mapped, target)
        if at is None:
            return mapped
        positions, rows = list(mapped.positions), list(mapped.rows)
        self._damage(positions, rows, at, target)
        return Mapped(positions, rows, mapped.rejects)

    def _find(self, mapped: Mapped, target: Shape) -> int | None:
        """Index of the record to damage in this batch."""
        if self._kind == "swap" and len(mapped.rows) < 2:
            return None
        for at, row in enumerate(mapped.rows):
            found = _ID.search(_value_of(row, target))
            if found is None:
                continue
            if self._chosen is None and int(found[1]) >= _FIRST_ID:
                self._chosen = found[1]
                position = mapped.positions[at]
                shown = position.decode() if isinstance(position, bytes) else str(position)
                self._note.write_text(json.dumps({"kind": self._kind, "id": found[1].decode(), "position": shown}))
            if found[1] == self._chosen:
                return at
        return None


def _value_of(row: Row, shape: Shape) -> bytes:
    return (row[1] or b"") if shape is Shape.RECORD else b" ".join(row[0])


def _with_value(row: Row, shape: Shape, change: Callable[[bytes], bytes]) -> Row:
    if shape is Shape.RECORD:
        return (row[0], change(row[1] or b""), *row[2:])
    return ([*row[0][:-1], change(row[0][-1])], *row[1:])


def _drop(positions: list[Any], rows: list[Row], at: int, shape: Shape) -> None:
    del positions[at], rows[at]


def _dup(positions: list[Any], rows: list[Row], at: int, shape: Shape) -> None:
    positions.insert(at, positions[at])
    rows.insert(at, rows[at])


def _swap(positions: list[Any], rows: list[Row], at: int, shape: Shape) -> None:
    other = at + 1 if at + 1 < len(rows) else at - 1
    positions[at], positions[other] = positions[other], positions[at]
    rows[at], rows[other] = rows[other], rows[at]


def _alter(positions: list[Any], rows: list[Row], at: int, shape: Shape) -> None:
    rows[at] = _with_value(rows[at], shape, lambda value: value[:-5] + bytes([value[-5] ^ 1]) + value[-4:])


def _invent(positions: list[Any], rows: list[Row], at: int, shape: Shape) -> None:
    positions.insert(at, positions[at])
    rows.insert(at, _with_value(rows[at], shape, lambda value: _ID.sub(b'"id":"9999999999999999"', value)))


_DAMAGES = {"drop": _drop, "dup": _dup, "swap": _swap, "alter": _alter, "invent": _invent}


def main() -> None:
    """Wrap the mappings, then be `crossfade`."""
    kind, note = os.environ["SABOTAGE"], Path(os.environ["SABOTAGE_NOTE"])
    honest = mappings.mapping_named

    def sabotaged(name: str, **options: object) -> Mapping:
        return Saboteur(honest(name, **options), kind, note)

    # Before wiring is imported, so that it takes the wrapped one whichever way it imports it.
    mappings.mapping_named = sabotaged
    from crossfade.cli.main import main as crossfade

    crossfade(sys.argv[1:])


if __name__ == "__main__":
    main()
