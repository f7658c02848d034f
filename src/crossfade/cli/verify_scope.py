"""What of a route `verify` compares (lanes, positions, times), and the file in which an audit's state is kept.

Hides how an audit goes on where an earlier one ended: `--resume FILE` keeps the state, also when the audit is cut off.
Called by the `verify` commands.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..brokers.protocol import From, Start
from ..errors import UsageError
from ..model.position import position_order

if TYPE_CHECKING:
    from ..verify.report import Keeping

STATE_VERSION = 1
#: how often the state of a running audit is kept
SAVE_EVERY_S = 10.0
_LANES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


@dataclass(frozen=True)
class Scope:
    """What of a route is compared."""

    lanes: str | None = None
    since: Start | None = None
    until: Start | None = None
    is_settled: bool = False
    keep: Keeping | None = None

    def check(self, *, is_kept: bool) -> None:
        """Raises UsageError for what means nothing whatever the brokers hold."""
        if self.lanes is not None:
            _check_lanes(self.lanes)
        limits = [limit for limit in (self.since, self.until) if limit is not None]
        if limits and is_kept:
            raise UsageError("--resume goes on from an earlier audit: it has no --from and --to", hint="leave one out")
        if self.lanes is not None and len(set(map(int, re.findall(r"\d+", self.lanes)))) > 1:
            self.check_positions(2)
        if self.since and self.until and self.since.where is self.until.where:
            begin, end = position_order(self.since.value), position_order(self.until.value)
            if begin > end and not (end[0] == begin[0] and "-" not in self.until.value):
                raise UsageError("--from lies behind --to", hint="exchange them")

    def check_positions(self, lanes: int) -> None:
        """Raises UsageError for a position where so many lanes are compared."""
        if lanes != 1 and any(limit and limit.where is From.POSITION for limit in (self.since, self.until)):
            raise UsageError(
                "a position belongs to one lane", hint="name it with --lanes, or give a time for all of them"
            )


def parse_limit(option: str, text: str | None) -> Start | None:
    """`time:<ISO 8601>` or `position:<position>` as a place in the source; None stays None. Raises UsageError."""
    if text is None:
        return None
    word, _, value = text.partition(":")
    if word == "position" and re.fullmatch(r"\d{1,20}(-\d{1,20})?", value, re.ASCII):
        return Start(From.POSITION, value)
    if word == "time":
        with contextlib.suppress(ValueError, OverflowError):
            moment = datetime.fromisoformat(value)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return Start(From.TIME, str(max(0, int(moment.timestamp() * 1000))))
    raise UsageError(
        f"{option} {text!r} is no place in a stream", hint="use time:2026-01-01T00:00:00Z or position:1700000000000-0"
    )


def parse_lanes(text: str | None, count: int) -> list[int]:
    """`0,3-5` as lane numbers; None is all of them. Raises UsageError."""
    if text is None:
        return list(range(count))
    _check_lanes(text)
    chosen: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not int(first) <= int(last or first) < count:
            raise UsageError(
                f"--lanes {text!r} names lanes that are not there", hint=f"the source has lanes 0 to {count - 1}"
            )
        chosen |= set(range(int(first), int(last or first) + 1))
    return sorted(chosen)


def _check_lanes(text: str) -> None:
    if not _LANES.fullmatch(text):
        raise UsageError(f"--lanes {text!r} names no lanes", hint="use numbers and ranges, such as 0,3-5")


class Store:
    """The file of `--resume`: the state of each route's audit."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._states: dict[str, Any] = {}
        self._saved_s = time.monotonic()
        #: why the file does not hold the newest state
        self.failure: UsageError | None = None
        if path is not None and _is_there(path):
            self._states = self._read(path)

    @property
    def is_kept(self) -> bool:
        """Whether there is a file."""
        return self._path is not None

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            version, states = body["version"], dict(body["routes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} holds no state of an audit", hint="name another file, or remove it") from error
        if version != STATE_VERSION:
            raise UsageError(
                f"{path} has version {version}; this release reads version {STATE_VERSION}",
                hint="run the release that wrote it, or remove the file to begin again",
            )
        return states

    def state_of(self, route_id: str) -> Any:
        return self._states.get(route_id)

    @property
    def is_due(self) -> bool:
        """Whether the state of a running audit should be kept now."""
        return self._path is not None and time.monotonic() - self._saved_s >= SAVE_EVERY_S

    def trim(self, ranges_max: int) -> None:
        """Forget all but the newest ranges of digests: who audits for ever must not grow."""
        for state in self._states.values():
            for lane in state["lanes"].values():
                del lane["ranges"][:-ranges_max]

    def save(self, route_id: str, state: Mapping[str, Any]) -> None:
        """Replace the file in one step: a cut leaves the state before.

        Where it cannot be written, that is the store's `failure` until a later one succeeds: the audit goes on, and
        its verdict is told before it.
        """
        # An audit of some lanes keeps what is known of the others.
        known = self._states.get(route_id, {}).get("lanes", {})
        self._states[route_id] = {**state, "lanes": {**known, **state.get("lanes", {})}}
        self._saved_s = time.monotonic()
        if self._path is None:
            return
        draft = self._path.with_name(self._path.name + ".new")
        try:
            draft.write_text(json.dumps({"version": STATE_VERSION, "routes": self._states}), encoding="utf-8")
            draft.replace(self._path)
        except OSError as error:
            self.failure = UsageError(f"cannot write {self._path}: {error.strerror}", hint="name another file")
        else:
            self.failure = None


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        raise UsageError(f"cannot read {path}: {error.strerror}", hint="name another file") from None
