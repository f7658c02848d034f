"""The board on Redis: one hash of small versioned documents, changed by compare-and-set in a script.

Hides the encoding of version and body. Invariant: a document's version only rises, even when it was removed and made
anew, so that an old reader's compare-and-set fails. Called by `wiring`, `cli` and the relay's documents.
"""

from __future__ import annotations

from typing import Any

from ...errors import Indeterminate, UsageError
from ..protocol import DOCUMENT_BYTES_MAX, Document, VersionConflict
from .keys import BOARD_KEY, VERSIONS_FIELD
from .link import Command, LinkLost
from .nodes import Nodes, call_key
from .replies import check, code_of, is_error
from .scripts import script
from .settings import RedisSettings

_SCAN_COUNT = 200


class RedisBoard:
    """One process's connection to the board."""

    def __init__(self, settings: RedisSettings) -> None:
        self._nodes = Nodes(settings)

    async def get(self, name: str) -> Document | None:
        """The document, or None. Raises Unreachable, AccessRefused."""
        (reply,) = await call_key(self._nodes, BOARD_KEY, [("HGET", BOARD_KEY, name)], "reading the board")
        value = check(reply, "reading the board")
        return None if value is None else _document(value)

    async def list(self, prefix: str) -> dict[str, Document]:
        """All documents whose name starts with `prefix`, by name. Raises Unreachable, AccessRefused."""
        found: dict[str, Document] = {}
        cursor: Any = 0
        pattern = prefix.translate({ord(char): f"\\{char}" for char in "*?[]^\\"}) + "*"
        while True:
            scan: Command = ("HSCAN", BOARD_KEY, cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT)
            (reply,) = await call_key(self._nodes, BOARD_KEY, [scan], "listing the board")
            cursor, flat = check(reply, "listing the board")
            for name, value in zip(flat[::2], flat[1::2], strict=True):
                if name != VERSIONS_FIELD:
                    found[name.decode()] = _document(value)
            if int(cursor) == 0:
                return dict(sorted(found.items()))

    async def put(self, name: str, body: bytes, expected_version: int | None = None) -> int:
        """Store and return the new version. Raises VersionConflict, UsageError, Indeterminate, Unreachable,
        AccessRefused."""
        if len(body) > DOCUMENT_BYTES_MAX:
            raise UsageError(
                f"the document {name!r} has {len(body)} bytes; at most {DOCUMENT_BYTES_MAX} fit", hint="make it smaller"
            )
        expected = "" if expected_version is None else str(expected_version)
        verdict, version = await self._run(name, expected, body)
        if verdict == b"CONFLICT":
            raise VersionConflict(
                f"the document {name!r} has version {version}, not {expected_version}", hint="read it again"
            )
        return version

    async def delete(self, name: str) -> None:
        """Remove the document if it is there. Raises Indeterminate, Unreachable, AccessRefused."""
        await self._run(name, "")

    async def close(self) -> None:
        """Close the connection."""
        await self._nodes.close()

    async def _run(self, name: str, expected: str, *body: bytes) -> tuple[bytes, int]:
        link = await self._nodes.of_key(BOARD_KEY)
        for attempt in range(2):
            commands = script("board").ensure(link)
            commands.append(script("board").call([BOARD_KEY], name, expected, *body))
            try:
                replies = await link.call(commands)
            except LinkLost as error:
                self._nodes.distrust()
                raise Indeterminate(f"writing {name!r} to the board: {error}", hint="read it back") from error
            if not attempt and is_error(replies[-1]) and code_of(replies[-1]) == "NOSCRIPT":
                link.scripts.discard(script("board").digest)
                continue
            break
        for reply in replies:
            if is_error(reply):
                self._nodes.distrust()
            check(reply, "writing to the board")
        verdict, version = replies[-1]
        return verdict, version


def _document(value: bytes) -> Document:
    version, _, body = value.partition(b" ")
    return Document(int(version), body)
