"""The board of a broker in memory. Its documents live in the broker, so that all connections share them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from ...errors import BrokerError, Indeterminate, Unreachable, UsageError
from ..protocol import DOCUMENT_BYTES_MAX, Document, VersionConflict
from .broker import MemoryBroker
from .faults import Crash, Outcome

_T = TypeVar("_T")


class MemoryBoard:
    """One process's connection to the board."""

    def __init__(self, broker: MemoryBroker, *, instance: str = "") -> None:
        self._broker = broker
        self._instance = instance
        self._is_dead = False

    async def get(self, name: str) -> Document | None:
        return await self._step("board.get", lambda: self._broker.documents.get(name))

    async def list(self, prefix: str) -> dict[str, Document]:
        found = self._broker.documents
        return await self._step(
            "board.list", lambda: {name: found[name] for name in sorted(found) if name.startswith(prefix)}
        )

    async def put(self, name: str, body: bytes, expected_version: int | None = None) -> int:
        """Store and return the new version. Raises VersionConflict, UsageError (too large), Indeterminate."""
        if len(body) > DOCUMENT_BYTES_MAX:
            raise UsageError(f"the document {name!r} has {len(body)} bytes; at most {DOCUMENT_BYTES_MAX} fit")

        def store() -> int:
            found = self._broker.documents.get(name)
            version = found.version if found else 0
            if expected_version is not None and expected_version != version:
                raise VersionConflict(f"the document {name!r} has version {version}, not {expected_version}")
            self._broker.documents[name] = Document(version + 1, body)
            return version + 1

        return await self._step("board.put", store)

    async def delete(self, name: str) -> None:
        await self._step("board.delete", lambda: self._broker.documents.pop(name, None))

    async def close(self) -> None:
        return

    async def _step(self, method: str, effect: Callable[[], _T]) -> _T:
        if self._is_dead:
            raise Crash(method)
        await asyncio.sleep(self._broker.latency_s())
        outcome = self._broker.outcome(method, "", self._instance)
        if outcome is Outcome.CRASH_BEFORE:
            self._is_dead = True
            raise Crash(method)
        doubt: type[BrokerError] = Indeterminate if method in ("board.put", "board.delete") else Unreachable
        if outcome in (Outcome.UNKNOWN_NOT_APPLIED, Outcome.APPLIED_LATE):
            raise doubt(f"{method}: no answer", hint="read it back")
        result = effect()
        if outcome is Outcome.CRASH_AFTER:
            self._is_dead = True
            raise Crash(method)
        if outcome is Outcome.UNKNOWN_APPLIED:
            raise doubt(f"{method}: no answer", hint="read it back")
        return result
