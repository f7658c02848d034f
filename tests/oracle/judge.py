"""Compares two sides lane by lane: exact counts, the first few examples named.

Equal content is matched first to first; what is left over is named: `altered` where a missing and an extra row are the
same record, `misplaced` where the missing row is on another lane, `duplicated` where the source has it but once,
`lost`, `invented`. `reordered` is the least number of rows that would have to move.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from .rows import Lane

KINDS = ("lost", "duplicated", "reordered", "altered", "invented", "misplaced")
EXAMPLES_MAX = 20


@dataclass
class Judgement:
    source_records: int = 0
    records: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    examples: dict[str, list[dict[str, object]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def differences(self) -> int:
        return sum(self.counts.values())

    def name(self, kind: str, **what: object) -> None:
        self.counts[kind] += 1
        if len(self.examples[kind]) < EXAMPLES_MAX:
            self.examples[kind].append(what)

    def as_dict(self) -> dict[str, object]:
        counts: dict[str, object] = {"source_records": self.source_records, "records": self.records}
        return counts | self.counts | {"examples": dict(self.examples)}


def judge(source: dict[int, Lane], target: dict[int, Lane]) -> Judgement:
    """`target` is a right copy of `source` exactly where the result has no differences."""
    result = Judgement(sum(map(len, source.values())), sum(map(len, target.values())))
    missing: list[tuple[int, int]] = []
    extra: list[tuple[int, int]] = []
    for number in sorted(source.keys() | target.keys()):
        left, right = source.get(number, Lane()), target.get(number, Lane())
        if left.content == right.content and left.time_ms == right.time_ms:
            continue
        gone, new = _match_lane(result, number, left, right)
        missing += ((number, at) for at in gone)
        extra += ((number, at) for at in new)
    _name_rest(result, source, target, missing, extra)
    return result


def _match_lane(result: Judgement, number: int, left: Lane, right: Lane) -> tuple[list[int], list[int]]:
    """Name what is reordered or altered in the lane; what has no partner goes back as (missing, extra)."""
    places: dict[int, deque[int]] = defaultdict(deque)
    for at, content in enumerate(left.content):
        places[content].append(at)
    partner = [-1] * len(right)
    for at, content in enumerate(right.content):
        waiting = places.get(content)
        if waiting:
            partner[at] = waiting.popleft()
    matched = [(at, to) for to, at in enumerate(partner) if at >= 0]
    for at, to in matched:
        if left.time_ms[at] != right.time_ms[to]:
            times = f"time {left.time_ms[at]} became {right.time_ms[to]}"
            result.name("altered", lane=number, **_names(left, at, right, to), why=times)
    stays = _longest_rise([at for at, _ in matched])
    for order, (at, to) in enumerate(matched):
        if order not in stays and len(stays) < len(matched):
            result.name("reordered", lane=number, **_names(left, at, right, to))
    gone = sorted(at for waiting in places.values() for at in waiting)
    new = [to for to, at in enumerate(partner) if at < 0]
    return _pair_altered(result, number, left, right, gone, new, partner)


def _pair_altered(
    result: Judgement, number: int, left: Lane, right: Lane, gone: list[int], new: list[int], partner: list[int]
) -> tuple[list[int], list[int]]:
    """A missing and an extra row are one altered record where they have one id, or, without ids, one place."""
    by_id = {left.id[at]: at for at in gone if left.id[at] >= 0}
    by_place = {at: at for at in gone}
    taken: set[int] = set()
    rest: list[int] = []
    for to in new:
        at = by_id.get(right.id[to], -1) if right.id[to] >= 0 else -1
        if at < 0:
            before = partner[to - 1] if to else -1
            at = by_place.get(before + 1, -1) if before >= 0 or to == 0 else -1
            if at >= 0 and left.id[at] >= 0 and right.id[to] >= 0:
                at = -1  # two different records
        if at < 0 or at in taken:
            rest.append(to)
            continue
        taken.add(at)
        partner[to] = at
        result.name("altered", lane=number, **_names(left, at, right, to), why="bytes differ")
    return [at for at in gone if at not in taken], rest


def _name_rest(
    result: Judgement,
    source: dict[int, Lane],
    target: dict[int, Lane],
    missing: list[tuple[int, int]],
    extra: list[tuple[int, int]],
) -> None:
    if not missing and not extra:
        return
    gone: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, at in missing:
        gone[source[number].content[at]].append((number, at))
    wanted = {target[number].content[to] for number, to in extra}
    known = {content for lane in source.values() for content in lane.content if content in wanted}
    for number, to in extra:
        content = target[number].content[to]
        where = _place(target[number], to)
        if gone[content]:
            home, at = gone[content].pop()
            result.name("misplaced", lane=number, target=where, belongs_to_lane=home, source=_place(source[home], at))
        elif content in known:
            result.name("duplicated", lane=number, target=where, id=target[number].id[to])
        else:
            result.name("invented", lane=number, target=where, id=target[number].id[to])
    for number, at in sorted(item for rest in gone.values() for item in rest):
        result.name("lost", lane=number, source=_place(source[number], at), id=source[number].id[at])


def _longest_rise(values: list[int]) -> set[int]:
    """Indexes of one longest rising subsequence; all of them, cheaply, where `values` rises anyway."""
    if all(a < b for a, b in pairwise(values)):
        return set(range(len(values)))
    tails: list[int] = []
    tail_at: list[int] = []
    before = [-1] * len(values)
    for index, value in enumerate(values):
        depth = bisect_left(tails, value)
        before[index] = tail_at[depth - 1] if depth else -1
        tails[depth : depth + 1] = [value]
        tail_at[depth : depth + 1] = [index]
    return set(_chain(tail_at[-1], before))


def _chain(last: int, before: list[int]) -> Iterable[int]:
    while last >= 0:
        yield last
        last = before[last]


def _place(lane: Lane, at: int) -> str:
    return f"{lane.major[at]}-{lane.minor[at]}"


def _names(left: Lane, at: int, right: Lane, to: int) -> dict[str, object]:
    return {"source": _place(left, at), "target": _place(right, to), "id": left.id[at]}
