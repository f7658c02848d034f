"""Says in a few words what of a row is other than it should be. Pure; for people, so bounded in length."""

from __future__ import annotations

from ..model.record import Row

_SHOWN_MAX = 60


def describe(expected: Row, found: Row) -> str:
    """What differs between two rows of one shape."""
    names = ("key", "value", "headers", "time") if len(expected) == 4 else ("fields", "time")
    parts = []
    for name, left, right in zip(names, expected, found, strict=True):
        if left == right:
            continue
        if isinstance(left, bytes) and isinstance(right, bytes):
            parts.append(f"{name} {_bytes(left, right)}")
        elif name == "fields":
            parts.append(_fields(left, right))
        else:
            parts.append(f"{name} {_short(left)} became {_short(right)}")
    return "; ".join(parts)


def _fields(left: list[bytes], right: list[bytes]) -> str:
    if len(left) != len(right):
        return f"{len(left) // 2} fields became {len(right) // 2}"
    for at, (one, other) in enumerate(zip(left, right, strict=True)):
        if one != other:
            what = "name" if at % 2 == 0 else f"value of {_short(left[at - 1])}"
            return f"field {at // 2}: {what} {_bytes(one, other)}"
    return "fields differ"


def _bytes(left: bytes, right: bytes) -> str:
    at = next((at for at, (one, other) in enumerate(zip(left, right, strict=False)) if one != other), None)
    at = min(len(left), len(right)) if at is None else at
    sizes = "" if len(left) == len(right) else f" ({len(left)} bytes became {len(right)})"
    return f"differs from byte {at} on{sizes}: {_short(left[at : at + 16])} became {_short(right[at : at + 16])}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX - 3]}..."
