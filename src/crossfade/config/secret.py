"""Text that refers to the environment or to a file, and is read again each time it is asked for.

Hides `${env:NAME}` and `${file:PATH}`. Keeps one invariant: a secret's value appears in no repr, log line or error.
The configuration reader makes secrets; adapters call `get()` at each connect, by `read_again`, so that a rotated
password is picked up without a restart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import Unreachable, UsageError
from .addresses import at_home

_REFERENCE = re.compile(r"\$\{([^}]*)\}?")
_KNOWN = re.compile(r"(env|file):(.+)")
#: what stands before a server in a URL, up to the last @: a password may hold any character, also / and @
_USERINFO = re.compile(r"(\w+:/+)?.*@", re.DOTALL)
_AFTER_PASSWORD = re.compile(r"((?:password|passwd|secret|token)[^=:]*[=:]).+", re.DOTALL | re.IGNORECASE)


class Secret:
    """A value that may change while the process runs and must never be shown."""

    __slots__ = ("_directory", "_environ", "_text")

    def __init__(self, text: str, environ: Mapping[str, str] | None = None, directory: Path | None = None) -> None:
        self._text = text
        self._environ: Mapping[str, str] = {} if environ is None else environ
        self._directory = Path() if directory is None else directory

    def get(self) -> str:
        """The value now; files and variables are read anew.

        Raises UsageError when a variable is not set or a file cannot be read.
        """
        return _REFERENCE.sub(self._resolve, self._text)

    def _resolve(self, match: re.Match[str]) -> str:
        known = _KNOWN.fullmatch(match[1])
        if known is None or not match[0].endswith("}"):
            raise UsageError(f"{match[0]} is neither ${{env:NAME}} nor ${{file:PATH}}")
        kind, name = known.groups()
        if kind == "env":
            value = self._environ.get(name)
            if value is None:
                raise UsageError(f"the environment variable {name} is not set")
            if any("\ud800" <= char <= "\udfff" for char in value):
                raise UsageError(f"the environment variable {name} is not UTF-8 text")
            return value
        path = at_home(self._directory, name)
        try:
            return path.read_text(encoding="utf-8").rstrip("\r\n")
        except OSError as error:
            reason = error.strerror
        except UnicodeDecodeError:
            reason = "it is not UTF-8 text"
        except ValueError as error:  # a NUL in its name
            reason = str(error)
        raise UsageError(f"cannot read {path}: {reason}")

    def __repr__(self) -> str:
        # References are safe to show, and help; anything literal beside them is not.
        references = [match[0] for match in _REFERENCE.finditer(self._text)]
        return f"Secret({''.join(references)})" if "".join(references) == self._text and references else "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and (self._text, self._directory) == (other._text, other._directory)

    def __hash__(self) -> int:
        return hash((self._text, self._directory))


def read_again(read: Callable[[], str], what: str, *, may_be_empty: bool = False) -> str:
    """What `read` gives, for a connection that is made now; it was there when the configuration was read.

    Raises Unreachable where it cannot be read, or is empty: whoever writes its file anew may not be done.
    """
    hint = "the relay tries again; see that the file is there, holds the secret, and is readable by this user"
    try:
        value = read()
    except UsageError as error:
        raise Unreachable(f"{what} cannot be read now: {error.message}", hint=hint) from error
    if not value and not may_be_empty:
        raise Unreachable(f"{what} cannot be read now: it is empty", hint=hint)
    return value


def masked(text: str) -> str:
    """What a person wrote, for an error: without what may be a password, wherever it stands."""
    return _AFTER_PASSWORD.sub(r"\1***", _USERINFO.sub(r"\1***@", text, count=1))


def has_reference(text: str) -> bool:
    """True where `text` holds something that looks like a reference, well-formed or not."""
    return "${" in text
