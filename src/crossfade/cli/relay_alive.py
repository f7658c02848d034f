"""Whether a relay of a route lives, as far as its heartbeats on the board tell.

Hides that the clocks of two hosts differ, and that a process may have died without a word. Called by `uninstall` and by
`verify --repair apply`, which remove nothing under a running relay; `relay status` counts as silent what it does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import RefusedByRail

if TYPE_CHECKING:
    from ..config import Config
    from ..relay.documents import Report, RouteBoard

#: a process whose heartbeat is older is gone
SILENT_S = 10.0
#: how often, and how far apart, it is looked whether a heartbeat that seems old goes on; relays beat once a second
_LIFE_LOOKS = 6
_LIFE_PAUSE_S = 0.5


async def refuse_running(config: Config, name: str) -> None:
    """Raises RefusedByRail while a relay of the route gives signs of life."""
    from .. import wiring

    async with wiring.open_board(config, name) as board:
        running = await _running(board)
    if running:
        raise RefusedByRail(
            f"route {name!r} has running relays: {', '.join(running)}",
            hint="stop them first (SIGTERM), then run it again",
        )


async def _running(board: RouteBoard) -> list[str]:
    """Names of the relay processes that live. It takes a few seconds where one may have died without a word."""
    reports = await board.reports()
    seen = {report.instance: report.at_s for report in reports}
    running = running_instances(reports, seen, time.time())
    for _ in range(_LIFE_LOOKS):
        if running or all(report.is_stopped for report in reports):
            break
        await asyncio.sleep(_LIFE_PAUSE_S)
        reports = await board.reports()
        running = running_instances(reports, seen, time.time())
    return running


def running_instances(reports: Sequence[Report], seen: Mapping[str, float], now_s: float) -> list[str]:
    """Names of the relay processes that did not stop, and whose heartbeat is fresh or another than was `seen`.

    Another heartbeat is a sign of life whatever it says of the time: the clocks of two hosts differ.
    """
    return [
        report.instance
        for report in reports
        if not report.is_stopped and (abs(now_s - report.at_s) <= SILENT_S or report.at_s != seen.get(report.instance))
    ]
