"""`crossfade verify`: the independent audit of a route, its verdict in words or JSON, and its state in a file.

Hides how an audit goes on where an earlier one ended: `--resume FILE` keeps the state, also when the audit is cut off.
Nothing is claimed and nothing is written to a broker. The verdict has three values: equal, different, or none.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..brokers.protocol import From, Start
from ..errors import UsageError
from ..model.position import position_order
from .doctor import routes_of
from .output import Output, complete_routes, output_of

if TYPE_CHECKING:
    from ..config import Config
    from ..verify.audit import Progress as AuditProgress
    from ..verify.report import AuditReport

verify_app = typer.Typer()

DIFFERENT = 3
NO_VERDICT = 1
STATE_VERSION = 1
#: how often the state of a running audit is kept
SAVE_EVERY_S = 10.0
_LANES = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_TOTALS = ("missing", "extra", "duplicate", "reordered", "altered")
_ASIDE = {
    "pending": "not yet on the target",
    "quarantined": "quarantined or refused by the mapping",
    "before_target": "not on the target any more, or before the copy's start",
    "source_gone": "on the target, but their originals are gone from the source",
}


@verify_app.command()
def verify(
    context: typer.Context,
    route: Annotated[
        str | None,
        typer.Argument(help="Only this route; by default all of them.", autocompletion=complete_routes),
    ] = None,
    lanes: Annotated[str | None, typer.Option("--lanes", help="Only these source lanes, such as 0,3-5.")] = None,
    settled: Annotated[
        bool,
        typer.Option("--settled", help="Nothing is on its way: what the target's end lacks is missing, not pending."),
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            "--from", help="Only from here on: time:2026-01-01T00:00:00Z, or position:ID with one lane in --lanes."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option("--to", help="Only up to here: time:... (records before it) or position:ID (that one too)."),
    ] = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="No verdict (exit code 1) unless every record was there to compare.")
    ] = False,
    resume: Annotated[
        Path | None, typer.Option("--resume", help="Keep the audit's state here, and go on from it the next time.")
    ] = None,
) -> None:
    """Prove both sides of a route equal, or name every record that differs.

    Reads both sides itself and shares no code with the relay. Live streams may be verified while they are copied: what
    is not yet on the target is pending, never a difference. After writers and relays have stopped, use --settled.
    What retention removed at either beginning cannot be compared and is counted; with --complete it is no proof.
    Exits with 0 when nothing differs, with 3 when something does, with 1 when a lane could not be compared to its end.

    \b
    Examples:
      crossfade verify
      crossfade verify forward --settled -o json
      crossfade verify forward --lanes 0-3 --resume audit.json
      crossfade verify forward --from time:2026-01-31T12:00:00Z --to time:2026-01-31T13:00:00Z
      crossfade verify forward --lanes 3 --from position:1769860800000-0
    """
    output = output_of(context)
    config = output.config()
    names = routes_of(config, route)
    store = _Store(resume)
    scope = Scope(lanes, parse_limit("--from", since), parse_limit("--to", until), settled)
    reports = {name: asyncio.run(_audit(config, name, scope, store, output)) for name in names}
    body = {
        "ok": all(report.ok for report in reports.values()),
        "complete": all(report.is_complete for report in reports.values()),
        "routes": [{"route": name, **report.as_dict()} for name, report in reports.items()],
    }
    output.document(body, "\n".join(text_of(name, report) for name, report in reports.items()))
    code = exit_code_of(list(reports.values()))
    if code == 0 and complete and not body["complete"]:
        code = NO_VERDICT
    if code:
        raise typer.Exit(code)


def exit_code_of(reports: Sequence[AuditReport]) -> int:
    """3 for a difference; 1 where there is none, but a lane could not be compared to its end; else 0."""
    if any(report.differences or report.total("stale_epochs") for report in reports):
        return DIFFERENT
    return 0 if all(report.ok for report in reports) else NO_VERDICT


async def _audit(config: Config, name: str, scope: Scope, store: _Store, output: Output) -> AuditReport:
    from .. import wiring
    from ..model.route import LaneMap
    from ..verify.audit import audit
    from ..verify.by_key import audit_by_key
    from ..verify.extent import extents_of

    async with wiring.open_route(config, name, instance="verify") as opened:
        by_key = opened.route.lane_map is LaneMap.BY_KEY
        if by_key and (scope.lanes is not None or store.is_kept):
            raise UsageError(
                f"route {name!r} maps lanes by key: it is verified as a whole, from its beginning",
                hint="leave out --lanes and --resume",
            )
        chosen = parse_lanes(scope.lanes, opened.route.source_lanes)
        scope.check(chosen, is_kept=store.is_kept)
        extents = await extents_of(opened.source, chosen, scope.since, scope.until)
        quarantined = await opened.target.quarantined(opened.route.id)
        with output.progress(f"verify {name}") as progress:

            def tell(now: AuditProgress) -> None:
                progress.total = now.records_total
                progress.advance(now.records - progress.done)
                store.save_sometimes(opened.route.id, now)

            if by_key:
                return await audit_by_key(
                    opened.source,
                    opened.target,
                    opened.mapping,
                    route_id=opened.route.id,
                    partitioner=opened.route.partitioner,
                    on_progress=tell,
                    start=opened.start,
                    is_settled=scope.is_settled,
                    quarantined=quarantined,
                    extents=extents,
                )
            report = await audit(
                opened.source,
                opened.target,
                opened.mapping,
                route_id=opened.route.id,
                lanes=chosen,
                on_progress=tell,
                resume=store.state_of(opened.route.id),
                start=opened.start,
                is_settled=scope.is_settled,
                quarantined=quarantined,
                extents=extents,
            )
    store.save(opened.route.id, report.state)
    return report


@dataclass(frozen=True)
class Scope:
    """What of a route is compared."""

    lanes: str | None = None
    since: Start | None = None
    until: Start | None = None
    is_settled: bool = False

    def check(self, lanes: Sequence[int], *, is_kept: bool) -> None:
        """Raises UsageError for limits that mean nothing for these lanes."""
        limits = [limit for limit in (self.since, self.until) if limit is not None]
        if limits and is_kept:
            raise UsageError("--resume goes on from an earlier audit: it has no --from and --to", hint="leave one out")
        if len(lanes) != 1 and any(limit.where is From.POSITION for limit in limits):
            raise UsageError(
                "a position belongs to one lane", hint="name it with --lanes, or give a time for all of them"
            )
        if self.since and self.until and self.since.where is self.until.where:
            begin, end = position_order(self.since.value), position_order(self.until.value)
            if begin > end and not (end[0] == begin[0] and "-" not in self.until.value):
                raise UsageError("--from lies behind --to", hint="exchange them")


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
    if not _LANES.fullmatch(text):
        raise UsageError(f"--lanes {text!r} names no lanes", hint="use numbers and ranges, such as 0,3-5")
    chosen: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        chosen |= set(range(int(first), min(int(last or first), count) + 1))
    if not chosen or max(chosen) >= count:
        raise UsageError(
            f"--lanes {text!r} names lanes that are not there", hint=f"the source has lanes 0 to {count - 1}"
        )
    return sorted(chosen)


class _Store:
    """The file of `--resume`: the state of each route's audit."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._states: dict[str, Any] = {}
        self._saved_s = time.monotonic()
        if path is not None and path.exists():
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

    def save_sometimes(self, route_id: str, progress: AuditProgress) -> None:
        if self._path is not None and time.monotonic() - self._saved_s >= SAVE_EVERY_S:
            self.save(route_id, progress.state())

    def save(self, route_id: str, state: dict[str, Any]) -> None:
        """Replace the file in one step: a cut leaves the state before."""
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
            raise UsageError(f"cannot write {self._path}: {error.strerror}", hint="name another file") from None


def text_of(route: str, report: AuditReport) -> str:
    """The verdict of one route for people."""
    lines = [f"route {route}: {report.source} -> {report.target}, {len(report.lanes)} lanes"]
    counts = "  ".join(f"{name} {report.total(name):,}" for name in _TOTALS)
    lines.append(f"  matched {report.records:,}  {counts}")
    lines += [f"  {report.total(name):,} {words}" for name, words in _ASIDE.items() if report.total(name)]
    for kept in report.named.values():
        for named in kept:
            told = named.as_dict()
            places = ", ".join(f"{end} {told[end]}" for end in ("source", "target") if told[end] is not None)
            detail = f": {told['detail']}" if told["detail"] else ""
            lines.append(f"  {told['kind']}: lane {told['lane']}, {places}{detail}")
        total = report.total(kept[0].difference.kind.value) if kept else 0
        if total > len(kept):
            lines.append(f"  ... and {total - len(kept):,} more of them")
    for lane in report.lanes.values():
        if lane.error is not None:
            lines.append(f"  lane {lane.lane} was not compared to its end: {lane.error.message}")
    if report.total("stale_epochs"):
        lines.append(f"  {report.total('stale_epochs'):,} records of an older epoch stand behind a newer one")
    lines.append(f"  {verdict_of(report)} ({report.seconds:.1f} s, {report.records_per_s:,.0f} records/s)")
    return "\n".join(lines)


def verdict_of(report: AuditReport) -> str:
    """One sentence: what the audit proves."""
    code = exit_code_of([report])
    if code == DIFFERENT:
        return f"DIFFERENT: {report.differences + report.total('stale_epochs'):,} findings"
    if code == NO_VERDICT:
        return "NO VERDICT: what was compared is equal, but not all could be compared"
    if not report.records:
        return "nothing to compare: no record is on both sides"
    return "equal" if report.is_complete else "equal as far as both sides can be compared"
