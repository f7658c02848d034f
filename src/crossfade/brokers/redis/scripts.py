"""The Lua scripts that ship beside this file, and how to have one at hand on a connection.

Invariant: a script is sent once per connection, in the pipeline, ahead of its first call; a server that forgot it
(SCRIPT FLUSH, failover) answers NOSCRIPT without having done anything, so calling again is safe.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from .link import Argument, Command, Link


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script and its digest."""

    name: str
    text: bytes
    digest: str

    def call(self, keys: list[bytes], *arguments: Argument) -> Command:
        """The command that runs it."""
        return ("EVALSHA", self.digest, len(keys), *keys, *arguments)

    def ensure(self, link: Link) -> list[Command]:
        """What has to be sent on `link` before the first call: one command or none."""
        if self.digest in link.scripts:
            return []
        link.scripts.add(self.digest)
        return [("SCRIPT", "LOAD", self.text)]


@cache
def script(name: str, *, over_memory: bool = False) -> Script:
    """The script `<name>.lua`; `over_memory`: as one that may also write above maxmemory."""
    text = (files(__package__) / f"{name}.lua").read_bytes()
    if over_memory:
        text = text.replace(b"#!lua\n", b"#!lua flags=allow-oom\n", 1)
    return Script(name, text, hashlib.sha1(text, usedforsecurity=False).hexdigest())
