"""Real servers on this machine, as plain processes on loopback, and the faults to try on them.

`Lab.up` starts Kafka (KRaft) and Valkey or Redis from packages, without root and without containers, each behind a
TCP proxy, watched by a process that heals faults and removes a lab whose owner is gone. The demo, the drills, the
system tests and the benchmarks stand on it; nothing else in the product imports it. Linux x86-64 only.
"""

from crossfade.lab.errors import LabError, LabUsage, NotPossibleHere, PackageError, StartFailed
from crossfade.lab.lab import Lab

__all__ = ["Lab", "LabError", "LabUsage", "NotPossibleHere", "PackageError", "StartFailed"]
