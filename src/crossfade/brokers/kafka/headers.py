"""Headers of fetched messages, whatever names other clients gave them.

The protocol says that a header's name is UTF-8, and no broker checks it. The client library (2.16) fails at one that is
not, and keeps a half-made list that crashes the process when it is asked for again. Invariant: a message is asked
once. Called by `source` and `comparing`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from confluent_kafka import Message

_message: Any = Message
_headers_of = _message.headers

#: in place of headers that cannot be read: a name that no target takes, so that the record goes to quarantine
UNREADABLE: list[tuple[str, bytes | None]] = [("\udcff", None)]


def headers_of(messages: Sequence[Any]) -> list[Any]:
    """The headers of each message: pairs of name and content, None where there are none, `UNREADABLE`."""
    found: list[Any] = []
    left = map(_headers_of, messages)
    while True:
        try:
            found.extend(left)  # what came before a failure stays
            return found
        except (SystemError, UnicodeDecodeError):  # the library reports the one as the other
            found.append(UNREADABLE)
