"""A broker in memory: the real semantics of Kafka and Redis, and every fault on demand.

`MemoryBroker` is the state; a `MemoryLog` is one process's connection to one stream of it. Simulation, unit tests,
documentation and the contract suite run on it. Nothing here reads a clock: time is injected.
"""

from .board import MemoryBoard
from .broker import MemoryBroker
from .faults import Crash, Outcome, Step
from .group import MemoryGroup
from .log import MemoryLog

__all__ = ["Crash", "MemoryBoard", "MemoryBroker", "MemoryGroup", "MemoryLog", "Outcome", "Step"]
