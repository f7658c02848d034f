"""The only place where concrete classes meet: from a configuration to open brokers.

Adapters are imported when a broker of their kind is opened, so `crossfade --help` stays quick. The commands call it
as `wiring.open_route(..)`; its modules import each other one way: `settings` <- `discovery` <- `opening`, `inspectors`
<- `split`, `rights`.
"""

from __future__ import annotations

from .inspectors import open_inspectors
from .opening import OpenRoute, fit_lanes, load_adapters, open_board, open_route, remover_of
from .rights import Rights, least_rights
from .settings import route_settings, unknown_route
from .split import Split, open_split

__all__ = [
    "OpenRoute",
    "Rights",
    "Split",
    "fit_lanes",
    "least_rights",
    "load_adapters",
    "open_board",
    "open_inspectors",
    "open_route",
    "open_split",
    "remover_of",
    "route_settings",
    "unknown_route",
]
