"""What an audit found, in words: the verdict, the counts, each named record, and the exit code that goes with them.

The verdict has three values: equal, different, or none. Nothing here asks a broker. Called by the `verify` commands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import TargetTooNarrow

if TYPE_CHECKING:
    from ..verify.report import AuditReport

DIFFERENT = 3
NO_VERDICT = 1
#: what each exit code says, in JSON
VERDICTS = {0: "equal", DIFFERENT: "different", NO_VERDICT: "none"}
#: what differences are called, in the order in which they are told
KINDS = ("missing", "extra", "duplicate", "reordered", "altered")
_ASIDE = {
    "pending": "not yet on the target",
    "quarantined": "quarantined or refused by the mapping: not on the target",
    "echoes": "brought by the other route of the pair: on the target already",
    "before_target": "not on the target any more, or before the copy's start",
    "source_gone": "on the target, but their originals are gone from the source",
}
_LANES = {"held_up": "held up", "not_done": "not compared to the end"}


def exit_code_of(reports: Sequence[AuditReport]) -> int:
    """3 for a difference; 1 where there is none, but a route has no verdict; else 0. A route at rest, of which neither
    side holds anything, counts only alone."""
    verdicts = {report.verdict for report in reports if not report.is_empty} or {"none"}
    if "different" in verdicts:
        return DIFFERENT
    return NO_VERDICT if "none" in verdicts else 0


def text_of(route: str, report: AuditReport) -> str:
    """The verdict of one route for people."""
    lines = [f"route {route}: {report.source} -> {report.target}, {len(report.lanes)} lanes"]
    counts = "  ".join(f"{name} {report.total(name):,}" for name in KINDS)
    lines.append(f"  matched {report.matched:,}  {counts}")
    lines += [f"  {report.total(name):,} {words}" for name, words in _ASIDE.items() if report.total(name)]
    held_up = [lane.held_up for lane in report.lanes.values() if lane.held_up]
    if held_up:
        lines.append(f"  records that readers cannot see yet, in {len(held_up)} lanes: {held_up[0]}")
    lines += named_lines(report)
    for lane in report.lanes.values():
        if lane.error is not None:
            # what others say of a loss is written for the relay, whose next step is this audit
            hint = f"; {lane.error.hint}" if isinstance(lane.error, TargetTooNarrow) else ""
            lines.append(f"  lane {lane.lane} was not compared to its end: {lane.error.message}{hint}")
    if report.total("stale_epochs"):
        lines.append(f"  {report.total('stale_epochs'):,} records of an older epoch stand behind a newer one")
    lines.append(f"  {verdict_of(report)} ({report.seconds:.1f} s, {report.records_per_s:,.0f} records/s)")
    return "\n".join(lines)


def named_lines(report: AuditReport) -> list[str]:
    """One line for each difference that has a name."""
    lines = []
    for kept in report.named.values():
        for named in kept:
            told = named.as_dict()
            places = ", ".join(f"{end} {told[end]}" for end in ("source", "target") if told[end] is not None)
            detail = f": {told['detail']}" if told["detail"] else ""
            lines.append(f"  {told['kind']}: lane {told['lane']}, {places}{detail}")
        total = report.total(kept[0].difference.kind.value) if kept else 0
        if total > len(kept):
            lines.append(f"  ... and {total - len(kept):,} more of them")
    return lines


def verdict_of(report: AuditReport) -> str:
    """One sentence: what the audit proves."""
    code = exit_code_of([report])
    if code == DIFFERENT:
        return f"DIFFERENT: {report.differences + report.total('stale_epochs'):,} findings"
    if any(lane.is_mixed for lane in report.lanes.values()):
        return "NO VERDICT: a topic was deleted or made anew while it was read; what was read may be of either"
    if code == NO_VERDICT and all(lane.ok for lane in report.lanes.values()):
        return "NO VERDICT: nothing to compare, no record is on both sides"
    if code == NO_VERDICT:
        return "NO VERDICT: what was compared is equal, but not all could be compared"
    uncompared = report.uncompared
    if set(uncompared) == {"quarantined"}:
        refused = f"{uncompared['quarantined']:,} records that the target or the mapping refused"
        return f"equal, except {refused}: they are not on the target"
    return "equal as far as both sides can be compared" if uncompared else "equal"


def incomplete_text(reports: Sequence[AuditReport]) -> str:
    """Why `--complete` gives no verdict."""
    uncompared: Counter[str] = sum((report.uncompared for report in reports), Counter())
    told = [f"{count:,} {name}" for name, count in uncompared.items() if name not in _LANES]
    told += [
        f"{uncompared[name]:,} {'lane' if uncompared[name] == 1 else 'lanes'} {words}"
        for name, words in _LANES.items()
        if uncompared[name]
    ]
    return f"NO VERDICT (--complete): {', '.join(told)}"
