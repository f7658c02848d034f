"""The default mapping: a total bijection between Redis entries and Kafka records, and the stripping of `xf`.

Every record has a *canonical* entry: fields `key`, `value`, `header:<name>` (or `header-null:<name>`) in this order,
absent where the record has none, or the single field `tombstone` for a record with nothing at all. Every other entry
becomes a record whose value is the *packed* entry: a magic prefix and all names and values with their lengths.

A record that is itself some entry's packed form must not also be the target of its canonical entry, or two entries
would meet in one record. So an entry that looks canonical, but whose record is a packed form, counts as not canonical
and is packed once more. `packed_entry` decides this by following the chain of packed forms inwards, in linear time.

Invariant: `entry_of(record_of(e)) == e` and `record_of(entry_of(r)) == r` for all inputs without an origin in `xf`
(whoever reads strips those first). Called by `mapping`.
"""

from __future__ import annotations

from .record import Headers, Row
from .wire import XF, XF_FIELD, decode_origin

KEY = b"key"
VALUE = b"value"
HEADER = b"header:"
HEADER_NULL = b"header-null:"
HEADER_XF = HEADER + XF_FIELD
TOMBSTONE = b"tombstone"
#: begins the value of a record that holds a packed entry; not UTF-8, so that no text begins like this
MAGIC = b"\xffxf-entry;1;"

_LENGTH_BYTES = 4


class NotCarried(ValueError):
    """A row that the target's shape cannot carry; the text is the reason, one sentence."""


# ------------------------------------------------------------------------------------------------ entry -> record


def record_of(fields: list[bytes], time_ms: int, key_field: bytes | None) -> Row:
    """The record of an entry without `xf`. Raises NotCarried where the entry is no list of name-value pairs."""
    if not fields or len(fields) % 2:
        raise NotCarried(f"the entry has {len(fields)} names and values, which is not a list of pairs")
    canonical = _canonical_record(fields)
    if canonical is not None:
        key, value, headers = canonical
        if headers or value is None or packed_entry(key, value, key_field) is None:
            return (key, value, headers, time_ms)
    parts = [MAGIC]
    for part in fields:
        parts += (len(part).to_bytes(_LENGTH_BYTES, "big"), part)
    return (_field(fields, key_field), b"".join(parts), None, time_ms)


def _canonical_record(fields: list[bytes]) -> tuple[bytes | None, bytes | None, Headers | None] | None:
    """Key, value and headers of an entry that is exactly some record's canonical form, else None."""
    size = len(fields)
    at = 0
    key = value = headers = None
    if fields[0] == KEY:
        key = fields[1]
        at = 2
    if at < size and fields[at] == VALUE:
        value = fields[at + 1]
        at += 2
    if at == 0 and size == 2 and fields[0] == TOMBSTONE and not fields[1]:
        return (None, None, None)
    if at < size:
        headers = []
        for name_at in range(at, size, 2):
            header = _header(fields[name_at], fields[name_at + 1])
            if header is None:
                return None
            headers.append(header)
    return (key, value, headers)


def _header(name: bytes, value: bytes) -> tuple[str, bytes | None] | None:
    """The header that a canonical field stands for, else None. Kafka header names are UTF-8 text."""
    try:
        if name.startswith(HEADER):
            # A header `xf` that reads as an origin would be stripped on the way back: such an entry is packed.
            return None if name == HEADER_XF and decode_origin(value) else (name[len(HEADER) :].decode(), value)
        if name.startswith(HEADER_NULL) and not value:
            return (name[len(HEADER_NULL) :].decode(), None)
    except UnicodeDecodeError:
        return None
    return None


def _field(fields: list[bytes], name: bytes | None) -> bytes | None:
    """The first value of field `name`, None where there is none."""
    if name is None or name not in fields:
        return None
    for at in range(0, len(fields), 2):
        if fields[at] == name:
            return fields[at + 1]
    return None


# ------------------------------------------------------------------------------------------------ record -> entry


def entry_of(
    key: bytes | None, value: bytes | None, headers: Headers | None, time_ms: int, key_field: bytes | None
) -> Row:
    """The entry of a record without `xf`. Raises NotCarried where a header's name is no text."""
    if value is not None and not headers:
        packed = packed_entry(key, value, key_field)
        if packed is not None:
            return (packed, time_ms)
    fields: list[bytes] = []
    if key is not None:
        fields += (KEY, key)
    if value is not None:
        fields += (VALUE, value)
    for name, content in headers or ():
        try:
            encoded = name.encode()
        except UnicodeEncodeError:
            raise NotCarried(f"the header name {name!r} is not valid UTF-8") from None
        fields += (HEADER_NULL + encoded, b"") if content is None else (HEADER + encoded, content)
    return (fields or [TOMBSTONE, b""], time_ms)


def packed_entry(key: bytes | None, value: bytes, key_field: bytes | None) -> list[bytes] | None:
    """The entry whose packed form is exactly the header-less record (key, value), else None.

    A packed form may hold an entry that looks canonical with, again, a packed form in its `value`, and so on inwards.
    All of them are packed forms if the innermost entry is one that has no canonical reading; none is otherwise.
    Levels are read in place: a hostile value of a thousand levels costs its own length once, not squared.
    """
    if not value.startswith(MAGIC):
        return None
    outermost: list[bytes] | None = None
    start, end = 0, len(value)
    while True:
        spans = _spans(value, start, end)
        if spans is None or key != _span_field(value, spans, key_field):
            return None  # not the packed form of anything, so the entry outside it is canonical after all
        if outermost is None:
            outermost = [value[a:b] for a, b in spans]
        inner = _plain_value(value, spans)
        if inner is None:
            # With headers, a tombstone, or a key alone no further level follows: canonical or not, it ends here.
            innermost = [value[a:b] for a, b in spans]
            if _canonical_record(innermost) is not None or has_origin(innermost):
                return None
            return outermost
        key, start, end = inner
        if not value.startswith(MAGIC, start, end):
            return None


def _spans(value: bytes, start: int, end: int) -> list[tuple[int, int]] | None:
    """Where the names and values of the packed form in value[start:end] lie, None unless it parses exactly."""
    at = start + len(MAGIC)
    spans = []
    while at < end:
        begin = at + _LENGTH_BYTES
        at = begin + int.from_bytes(value[at:begin], "big")
        if begin > end or at > end:
            return None
        spans.append((begin, at))
    return spans if spans and len(spans) % 2 == 0 else None


def _span_field(value: bytes, spans: list[tuple[int, int]], name: bytes | None) -> bytes | None:
    if name is None:
        return None
    for at in range(0, len(spans), 2):
        begin, end = spans[at]
        if end - begin == len(name) and value.startswith(name, begin):
            begin, end = spans[at + 1]
            return value[begin:end]
    return None


def _plain_value(value: bytes, spans: list[tuple[int, int]]) -> tuple[bytes | None, int, int] | None:
    """Key and span of the value, where the spans are exactly the fields (`key`,) `value`; else None."""
    begin, end = spans[-2]
    if value[begin:end] != VALUE:
        return None
    if len(spans) == 2:
        return (None, *spans[1])
    begin, end = spans[0]
    if len(spans) != 4 or value[begin:end] != KEY:
        return None
    begin, end = spans[1]
    return (value[begin:end], *spans[3])


# ------------------------------------------------------------------------------------------------ xf


def without_origin_record(row: Row) -> Row:
    """The record without `xf` headers that an older hop left; its `t=` is the record's own time.

    The very same object comes back where there is nothing to strip.
    """
    key, value, headers, time_ms = row
    kept: Headers = []
    for header in headers or ():
        name, content = header
        origin = decode_origin(content) if name == XF else None
        if origin is None:
            kept.append(header)
        elif origin.time_ms is not None:
            time_ms = origin.time_ms
    if headers is None or len(kept) == len(headers):
        return row
    return (key, value, kept or None, time_ms)


def has_origin(fields: list[bytes]) -> bool:
    """True where `without_origin_entry` would strip something."""
    return XF_FIELD in fields and without_origin_entry((fields, 0))[0] is not fields


def without_origin_entry(row: Row) -> Row:
    """The entry without `xf` fields that an older hop left; its `t=` is the entry's own time.

    An entry is never empty, so where nothing else is there the first `xf` was the application's, and stays.
    The very same object comes back where there is nothing to strip.
    """
    fields, time_ms = row
    kept: list[bytes] = []
    stripped: list[tuple[bytes, int | None]] = []
    for at in range(0, len(fields) - 1, 2):
        name, content = fields[at], fields[at + 1]
        origin = decode_origin(content) if name == XF_FIELD else None
        if origin is None:
            kept += (name, content)
        else:
            stripped.append((content, origin.time_ms))
    if not stripped or len(fields) % 2:
        return row
    if not kept:
        kept = [XF_FIELD, stripped.pop(0)[0]]
    if not stripped:
        return row
    for _, own_time_ms in stripped:
        if own_time_ms is not None:
            time_ms = own_time_ms
    return (kept, time_ms)
