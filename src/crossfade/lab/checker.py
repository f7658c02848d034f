"""Decides from a history and from what two streams hold whether a copy was right; anomalies have Jepsen's names.

The order of a lane is the order of the source as it was read; where the source is no longer there (trimmed), the order
of the positions that the broker acknowledged. Memory is a few ints per record in arrays, whatever their size.
Called by the demo, drills and system tests; the auditor (`verify`) needs no history and shares nothing with this.

    lost-write    acknowledged (or in the source), a later record of its lane was seen, itself never
    unseen        the same at the end of the lane: not seen *yet*
    duplicate     seen more than once
    nonmonotonic  seen after a record that follows it in the source
    G1a           the broker had refused it, and yet it is there
    invented      never sent by this workload
    altered       its bytes are not those that were sent
    misplaced     on another lane than the one it was sent to
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from .history import FAIL, OK, Sent

#: of one lane, in the order of the lane: record id (None = none found in it), digest, position
Seen: TypeAlias = Iterable[tuple[int | None, int, object]]

ANOMALIES = ("lost-write", "unseen", "duplicate", "nonmonotonic", "G1a", "invented", "altered", "misplaced")
EXAMPLES_MAX = 20


@dataclass(slots=True)
class Verdict:
    """What one stream holds, judged: totals are exact, examples are the first few."""

    stream: str
    records: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ANOMALIES, 0))
    examples: dict[str, list[dict[str, object]]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not any(self.counts.values())

    def add(self, anomaly: str, lane: int, id: int | None, position: object = None, **more: object) -> None:
        self.counts[anomaly] += 1
        examples = self.examples.setdefault(anomaly, [])
        if len(examples) < EXAMPLES_MAX:
            where = position.decode() if isinstance(position, bytes) else position
            examples.append({"lane": lane, "id": id, "position": where, **more})

    def as_dict(self) -> dict[str, object]:
        return {"stream": self.stream, "records": self.records, "ok": self.ok} | {
            "counts": dict(self.counts),
            "examples": self.examples,
        }


@dataclass(slots=True)
class Report:
    """Both sides judged. `source` is None where only the target was given."""

    target: Verdict
    source: Verdict | None
    sent_ok: int
    sent_fail: int
    sent_unknown: int

    @property
    def ok(self) -> bool:
        return self.target.ok and (self.source is None or self.source.ok)

    def as_dict(self) -> dict[str, object]:
        return {
            "ok": self.ok,
            "sent": {"ok": self.sent_ok, "fail": self.sent_fail, "unknown": self.sent_unknown},
            "source": self.source.as_dict() if self.source else None,
            "target": self.target.as_dict(),
        }


def check(sent: Sent, *, target: Mapping[int, Seen], source: Mapping[int, Seen] | None = None) -> Report:
    """Judge the target against the source and the history; lanes are those of the source (one to one).

    The iterators are consumed one lane after the other and never kept.
    """
    by_history = _acknowledged_order(sent)
    if source is None:
        source_verdict = None
        expected = by_history
    else:
        # A source may hold sends of unknown outcome; its own order is the one to keep.
        source_verdict, expected = _judge("source", sent, by_history, source)
    target_verdict, _ = _judge("target", sent, expected, target)
    return Report(
        target_verdict, source_verdict, sent.count(OK), sent.count(FAIL), len(sent) - sent.count(OK) - sent.count(FAIL)
    )


@dataclass(slots=True)
class _Expected:
    """Per lane the record ids in their order, and per record its place in that order (-1 = not expected)."""

    order: dict[int, array[int]]
    rank: array[int]
    #: True: what the source held when it was read; False: what the broker acknowledged
    is_source: bool


def _acknowledged_order(sent: Sent) -> _Expected:
    by_lane: dict[int, list[int]] = {}
    for id, status in enumerate(sent.status):
        if status == OK:
            by_lane.setdefault(sent.lane[id], []).append(id)
    major, minor = sent.major, sent.minor
    order: dict[int, array[int]] = {}
    for lane, ids in by_lane.items():
        ids.sort(key=lambda id: (major[id] << 64) + minor[id])
        order[lane] = array("q", ids)
    return _ranked(order, len(sent), is_source=False)


def _ranked(order: dict[int, array[int]], records: int, *, is_source: bool) -> _Expected:
    rank = array("q", [-1]) * records
    for ids in order.values():
        for place, id in enumerate(ids):
            rank[id] = place
    return _Expected(order, rank, is_source)


def _judge(name: str, sent: Sent, expected: _Expected, seen: Mapping[int, Seen]) -> tuple[Verdict, _Expected]:
    """The verdict over `seen`, and its own order (first sightings) as what a copy of it has to follow."""
    verdict = Verdict(name)
    times_seen = bytearray(len(sent))
    first_order: dict[int, array[int]] = {}
    lasts: dict[int, int] = {}
    for lane, rows in sorted(seen.items()):
        first_order[lane], lasts[lane] = _judge_lane(verdict, sent, expected, times_seen, lane, rows)
    for lane, ids in sorted(expected.order.items()):
        last = lasts.get(lane, -1)
        for place, id in enumerate(ids):
            if not times_seen[id]:
                kind = "lost-write" if place < last else "unseen"
                verdict.add(kind, lane, id, _position(sent, id), key_order=place)
    return verdict, _ranked(first_order, len(sent), is_source=True)


def _judge_lane(
    verdict: Verdict, sent: Sent, expected: _Expected, times_seen: bytearray, lane: int, rows: Seen
) -> tuple[array[int], int]:
    rank, status, digests, lanes = expected.rank, sent.status, sent.digest, sent.lane
    size, order, last, records = len(sent), array("q"), -1, 0
    for id, digest, position in rows:
        records += 1
        if id is None or id >= size or not status[id]:
            verdict.add("invented", lane, id, position)
            continue
        if times_seen[id]:
            verdict.add("duplicate", lane, id, position)
            continue
        times_seen[id] = 1
        order.append(id)
        if status[id] == FAIL:
            verdict.add("G1a", lane, id, position)
        if digest != digests[id]:
            verdict.add("altered", lane, id, position)
        if lanes[id] != lane:
            verdict.add("misplaced", lane, id, position, sent_to_lane=lanes[id])
            continue
        place = rank[id]
        if place < 0:
            # A send of unknown outcome. The source may hold it; a copy may hold only what its source holds.
            if expected.is_source and status[id] != FAIL:
                verdict.add("G1a", lane, id, position, reason="the source does not hold it")
            continue
        if place < last:
            verdict.add("nonmonotonic", lane, id, position, key_order=place, after=last)
        else:
            last = place
    verdict.records += records
    return order, last


def _position(sent: Sent, id: int) -> str | None:
    if sent.status[id] != OK:
        return None
    return f"{sent.major[id]}" if sent.header.get("kind") == "kafka" else f"{sent.major[id]}-{sent.minor[id]}"
