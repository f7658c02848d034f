"""One audit of one route: opens its brokers, says how far it is, keeps its state, and gives the report.

Hides whether lanes are mapped one to one or by key, and whether this process audits all of them or shares them with
others (`verify_parts`). Called by the `verify` commands.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .output import Output
from .verify_parts import Part, Workers, audit_in_parts
from .verify_scope import Scope, Store, parse_lanes

if TYPE_CHECKING:
    from ..brokers.protocol import Start
    from ..config import Config
    from ..verify.progress import Progress
    from ..verify.report import AuditReport
    from ..wiring import OpenRoute

#: another process costs connections and 60 MiB: it must have this many records to compare
PART_RECORDS_MIN = 250_000


async def audit_route(
    config: Config, output: Output, name: str, scope: Scope, store: Store, workers: Workers, *, shares: bool = False
) -> AuditReport:
    """Audit a route as `scope` says, going on from the store's state, beside as many workers as are worth it.

    `shares`: all of them, however little there is to compare.

    A state that cannot be kept ends no audit: see `Store.failure`. Raises UsageError, Unreachable, AccessRefused.
    """
    from .. import wiring
    from ..model.route import LaneMap

    async with wiring.open_route(config, name, instance="verify", copies=False) as opened:
        by_key = opened.route.lane_map is LaneMap.BY_KEY
        if by_key and (scope.lanes is not None or store.is_kept):
            raise UsageError(
                f"route {name!r} maps lanes by key: it is verified as a whole, from its beginning",
                hint="leave out --lanes and --resume",
            )
        lanes = parse_lanes(scope.lanes, opened.route.source_lanes)
        scope.check_positions(len(lanes))
        state = store.state_of(opened.route.id)
        with output.progress(f"verify {name}") as progress:

            def tell(now: Progress) -> None:
                progress.total = now.records_total
                progress.advance(now.records - progress.done)
                if store.is_due:
                    had_failed = store.failure is not None
                    store.save(opened.route.id, now.state())
                    if store.failure is not None and not had_failed:
                        output.note(f"{store.failure.message}; the audit goes on")

            if by_key:  # no lane is without lanes of the other side
                return await audit_opened(opened, lanes, scope, None, tell)
            parts = share_out(lanes, await _worth(opened, lanes, workers, shares=shares))
            if len(parts) == 1:
                report = await audit_opened(opened, lanes, scope, state, tell)
            else:
                others = [Part(name, part, len(parts), scope, state, store.is_kept) for part in parts[1:]]
                report = await audit_in_parts(opened, parts[0], others, workers, scope, state, tell)
        store.save(opened.route.id, report.state)
        if scope.lanes is None:
            await _add_unpaired(opened, scope, report)
    return report


async def audit_opened(
    opened: OpenRoute,
    lanes: Sequence[int],
    scope: Scope,
    state: Any,
    tell: Callable[[Progress], None],
    parts: int = 1,
) -> AuditReport:
    """Audit lanes of an open route in this process, one of `parts`. Raises UsageError, Unreachable, AccessRefused."""
    from ..model.route import LaneMap
    from ..verify.audit import audit
    from ..verify.by_key import audit_by_key
    from ..verify.extent import extents_of
    from ..verify.one_way import copies_only, without_echoes

    extents = await extents_of(opened.source, lanes, scope.since, scope.until)
    quarantined = partial(opened.target.quarantined, opened.route.id)
    starts = await _starts(opened)
    if opened.route.lane_map is LaneMap.BY_KEY:
        return await audit_by_key(
            opened.source,
            opened.target,
            opened.mapping,
            route_id=opened.route.id,
            partitioner=opened.route.partitioner,
            on_progress=tell,
            starts=starts,
            first_lanes=await opened.board.first_lanes(),
            is_settled=scope.is_settled,
            quarantined=quarantined,
            extents=extents,
            keep=scope.keep,
        )
    source, target = opened.source, opened.target
    echoes: dict[int, int] = {}
    if opened.route.pair:
        source, echoes = without_echoes(source, opened.route.pair)
        target = copies_only(target, opened.route.id)
    report = await audit(
        source,
        target,
        opened.mapping,
        route_id=opened.route.id,
        lanes=lanes,
        on_progress=tell,
        resume=state,
        starts=starts,
        is_settled=scope.is_settled,
        quarantined=quarantined,
        extents=extents,
        keep=scope.keep,
        parts=parts,
    )
    for lane, count in echoes.items():
        report.lanes[lane].echoes += count
    return report


async def _add_unpaired(opened: OpenRoute, scope: Scope, report: AuditReport) -> None:
    """Name what lies in lanes that only one side has. Raises UsageError, Unreachable, AccessRefused."""
    from ..relay.entering import lanes_without_target
    from ..verify.beyond import add_beyond
    from ..verify.report import LaneReport

    route, source, target = opened.route, opened.source, opened.target
    for lane, state in lanes_without_target(route, source, target).items():
        report.lanes[lane] = LaneReport(lane, state.name, "", error=state.error)
    if not route.pair and scope.since is None and scope.until is None:
        await add_beyond(source, target, report)


async def _starts(opened: OpenRoute) -> dict[int, Start]:
    """Where the copy of each lane began; what the file says of lanes that were begun before the board kept it."""
    return dict.fromkeys(range(opened.source.lanes), opened.start) | await opened.board.beginnings()


async def _worth(opened: OpenRoute, lanes: Sequence[int], workers: Workers, *, shares: bool) -> int:
    """How many processes to use, this one included."""
    if shares or not workers:
        return 1 + len(workers)
    bounds = await opened.source.bounds(lanes)
    records = sum(bound.length for bound in bounds.values())
    return max(1, min(1 + len(workers), records // PART_RECORDS_MIN))


def share_out(lanes: Sequence[int], processes: int) -> list[list[int]]:
    """The lanes in turn, in as many lists as there are processes, at most one per lane."""
    count = max(1, min(processes, len(lanes)))
    return [list(lanes[first::count]) for first in range(count)]
