"""Versioned text formats: the `xf` header (or field) of a relayed record, and the marker.

`xf` is `1;<route>/<source lane>@<source position>#<ordinal>;<epoch>` and, only where the target cannot give a record's
own time back, `;t=<milliseconds>`. Loss, duplicates, order and zombies show from the target alone.
A reader refuses a newer major version; fields that it does not know are ignored.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from ..errors import UsageError
from .position import Marker
from .record import Row, Shape

#: name of the Kafka header, and of the Redis field, that carries the origin
XF = "xf"
XF_FIELD = b"xf"
#: Kafka refuses group-offset metadata above this many UTF-16 units
MARKER_UNITS_MAX = 4095

# Numbers are bounded: the text may come from anyone, and int() refuses thousands of digits by raising.
_ORIGIN = re.compile(
    r"1;([a-z0-9-]{1,63})/(\d{1,9})@(\d{1,20}(?:-\d{1,20})?)#(\d{1,19});(\d{1,19})((?:;[a-z]+=[^;]*)*)", re.ASCII
)
_OWN_TIME = re.compile(r"-?\d{1,20}", re.ASCII)
#: what a source can give: a Kafka time is a signed 64-bit number, the time in an entry id an unsigned one
OWN_TIME_MS_MIN, OWN_TIME_MS_MAX = -(2**63), 2**64 - 1


class Origin(NamedTuple):
    """Where a relayed record came from."""

    route: str
    lane: int  # of the source
    position: str  # in the source
    ordinal: int
    epoch: int
    time_ms: int | None = None  # the record's own time, where the target shows another


def origin_prefix(route: str, source_lane: int) -> str:
    """The part of `xf` that is equal for all records of a lane; append position, `#`, ordinal, `origin_suffix`."""
    return f"1;{route}/{source_lane}@"


def origin_suffix(epoch: int) -> str:
    """The part of `xf` behind the ordinal that is equal for all records of a claim."""
    return f";{epoch}"


def encode_origin(origin: Origin) -> str:
    """One `xf` value. The hot path builds the same text from prefix and suffix."""
    prefix = origin_prefix(origin.route, origin.lane)
    own_time = "" if origin.time_ms is None else f";t={origin.time_ms}"
    return f"{prefix}{origin.position}#{origin.ordinal}{origin_suffix(origin.epoch)}{own_time}"


def decode_origin(text: str | bytes | None) -> Origin | None:
    """The origin in an `xf` value, or None where the text is not ours (applications may use the name too)."""
    if text is None:
        return None
    if isinstance(text, bytes):
        try:
            text = text.decode("ascii")
        except UnicodeDecodeError:
            return None
    match = _ORIGIN.fullmatch(text)
    if match is None:
        return None
    route, lane, position, ordinal, epoch, extras = match.groups()
    time_ms = None
    for extra in extras.split(";")[1:]:
        name, _, value = extra.partition("=")
        if name == "t" and _OWN_TIME.fullmatch(value):
            own_time_ms = int(value)
            if OWN_TIME_MS_MIN <= own_time_ms <= OWN_TIME_MS_MAX:
                time_ms = own_time_ms
    return Origin(route, int(lane), position, int(ordinal), int(epoch), time_ms)


def newest_origin(row: Row, shape: Shape) -> Origin | None:
    """The origin in the last mark of a row."""
    if shape is Shape.RECORD:
        for name, content in reversed(row[2] or ()):
            if name == XF and (origin := decode_origin(content)) is not None:
                return origin
        return None
    fields: list[bytes] = row[0]
    if XF_FIELD in fields:
        for at in range(len(fields) // 2 * 2 - 2, -1, -2):
            if fields[at] == XF_FIELD and (origin := decode_origin(fields[at + 1])) is not None:
                return origin
    return None


def encode_marker(marker: Marker) -> str:
    """The marker as text, at most MARKER_UNITS_MAX units (it is ASCII)."""
    return "1;" + msgspec.json.encode(marker).decode()


def decode_marker(text: str) -> Marker:
    """The marker in `text`.

    Raises UsageError when a newer release wrote it, msgspec.DecodeError when nobody did.
    """
    version, _, body = text.partition(";")
    if version != "1":
        raise UsageError(
            f"a marker of format version {version!r} was found; this release reads version 1",
            hint="run the release that wrote it, or a newer one",
        )
    return msgspec.json.decode(body, type=Marker)
