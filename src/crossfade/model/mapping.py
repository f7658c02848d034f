"""Mappings: how a row of one shape becomes a row of the other, chosen per stream.

Hides the layouts (docs/records.md). `lossless`, the default, keeps everything both ways; `body`, `json` and `headers`
are layouts that applications already use. Copies within one shape only lose `xf`, which an older hop added. Invariant:
a row is translated exactly, or it becomes a Reject with its reason; a batch never fails as a whole, and positions stay
with their rows. Called by the relay on the hot path, and by the auditor to know what to expect.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import Any, Protocol

from ..errors import UsageError
from .lossless import (
    KEY,
    MAGIC,
    VALUE,
    NotCarried,
    entry_of,
    has_origin,
    record_of,
    without_origin_entry,
    without_origin_record,
)
from .record import Batch, EntryColumns, Mapped, RecordColumns, Reject, Row, Shape
from .wire import XF, XF_FIELD, decode_origin


class Mapping(Protocol):
    """One way of turning entries into records and back."""

    name: str

    def translate(self, batch: Batch, target: Shape) -> Mapped:
        """Give the batch in the target's shape. Rows that cannot be carried are in `rejects`."""
        ...

    def key_of(self, row: Row, shape: Shape) -> bytes | None:
        """The key that the row has as a Kafka record, None where it has none (or cannot be carried)."""
        ...

    def digest(self) -> str:
        """Stable text of name and options: a route whose mapping changed is another route."""
        ...


def mapping_named(name: str, **options: object) -> Mapping:
    """Make the mapping `name` (`lossless`, `body`, `json`, `headers`) with its options.

    Raises UsageError for an unknown mapping, or an unknown or wrong option.
    """
    factory = _FACTORIES.get(name)
    if factory is None:
        raise UsageError(f"there is no mapping named {name!r}", hint=f"name one of {', '.join(_FACTORIES)}")
    unknown = sorted(set(options) - set(factory.options))
    if unknown:
        known = ", ".join(factory.options)
        raise UsageError(f"mapping {name!r} has no option {unknown[0]!r}", hint=f"it has: {known}")
    given = {option: value for option, value in options.items() if value is not None}
    for option, value in given.items():
        if not isinstance(value, str) or not value:
            raise UsageError(f"option {option!r} of mapping {name!r} must be a non-empty text, not {value!r}")
    return factory(**{option: str(value) for option, value in given.items()})


# ------------------------------------------------------------------------------------------------ what all share


class _Translation:
    """Translates row by row through `_record` and `_entry`; `Lossless` adds faster ways for plain rows."""

    name = ""
    options: tuple[str, ...] = ()

    def __init__(self, **options: str) -> None:
        self._given = options
        key_field = options.get("key_field")
        self._key_field = None if key_field is None else key_field.encode()

    def digest(self) -> str:
        return json.dumps({"mapping": self.name, "version": 1, **self._given}, sort_keys=True)

    def key_of(self, row: Row, shape: Shape) -> bytes | None:
        if shape is Shape.RECORD:
            key: bytes | None = row[0]
            return key
        try:
            key = self._record(*without_origin_entry(row))[0]
        except NotCarried:
            return None
        return key

    def translate(self, batch: Batch, target: Shape) -> Mapped:
        if batch.shape is target:
            strip = _strip_records if target is Shape.RECORD else _strip_entries
            return Mapped(batch.positions, strip(batch.rows), [])
        rows = self._records(batch.rows) if target is Shape.RECORD else self._entries(batch.rows)
        return _sorted_out(batch, rows)

    def _records(self, rows: Sequence[Row]) -> Sequence[Row]:
        """One record per entry; a text where it cannot be carried: the reason."""
        return [_tried(self._record, without_origin_entry(row)) for row in rows]

    def _entries(self, rows: Sequence[Row]) -> Sequence[Row]:
        """One entry per record; a text where it cannot be carried: the reason."""
        return [_tried(self._entry, without_origin_record(row)) for row in rows]

    def _record(self, fields: list[bytes], time_ms: int) -> Row:
        """The record of an entry without origin. Raises NotCarried."""
        raise TypeError(f"{type(self).__name__} makes no records")

    def _entry(self, key: bytes | None, value: bytes | None, headers: Any, time_ms: int) -> Row:
        """The entry of a record without origin. Raises NotCarried."""
        raise TypeError(f"{type(self).__name__} makes no entries")


def _tried(convert: Callable[..., Row], row: Row) -> Row:
    try:
        return convert(*row)
    except NotCarried as reason:
        return str(reason)
    except RecursionError:
        return "the value is nested too deeply"


def _sorted_out(batch: Batch, rows: Sequence[Row]) -> Mapped:
    """Part the carried rows from the refused ones (texts)."""
    if isinstance(rows, EntryColumns | RecordColumns) or str not in set(map(type, rows)):
        return Mapped(batch.positions, rows, [])
    positions: list[Any] = []
    carried: list[Row] = []
    rejects: list[Reject] = []
    for position, source_row, row in zip(batch.positions, batch.rows, rows, strict=True):
        if isinstance(row, str):
            rejects.append(Reject(position, source_row, row, batch.shape))
        else:
            positions.append(position)
            carried.append(row)
    return Mapped(positions, carried, rejects)


def _strip_records(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows without origins: the very same where there are none."""
    if isinstance(rows, RecordColumns) and not any(rows.headers):
        return rows
    for row in rows:
        if row[2]:
            for name, content in row[2]:
                if name == XF and decode_origin(content):
                    return [without_origin_record(row) for row in rows]
    return rows


def _strip_entries(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows without origins: the very same where there are none."""
    if isinstance(rows, EntryColumns) and XF_FIELD not in rows.names:
        return rows
    for row in rows:
        if has_origin(row[0]):
            return [without_origin_entry(row) for row in rows]
    return rows


# ------------------------------------------------------------------------------------------------ the mappings

_begins_packed = methodcaller("startswith", MAGIC)


def _has_packed(values: list[bytes]) -> bool:
    """Whether any of these values begins as a packed entry does. Text never sorts behind its first byte, 0xff."""
    return bool(values) and max(values) >= MAGIC and True in map(_begins_packed, values)


class _Lossless(_Translation):
    """Everything is kept, both ways. `key_field` names the field that gives packed entries their key."""

    name = "lossless"
    options = ("key_field",)

    def key_of(self, row: Row, shape: Shape) -> bytes | None:
        if shape is Shape.ENTRY:
            fields = row[0]
            if len(fields) == 4 and fields[2] == VALUE and fields[0] == KEY and not fields[3].startswith(MAGIC):
                key: bytes | None = fields[1]
                return key
        return super().key_of(row, shape)

    def _records(self, rows: Sequence[Row]) -> Sequence[Row]:
        # Canonical entries with key and value alone are what our client and our relay write.
        if isinstance(rows, EntryColumns) and (plain := _plain_records(rows)) is not None:
            return plain
        slow = self._slow_record
        return [
            (fields[1], fields[3], None, time_ms)
            if len(fields) == 4 and fields[2] == VALUE and fields[0] == KEY and not fields[3].startswith(MAGIC)
            else slow(fields, time_ms)
            for fields, time_ms in rows
        ]

    def _entries(self, rows: Sequence[Row]) -> Sequence[Row]:
        if isinstance(rows, RecordColumns) and (plain := _plain_entries(rows)) is not None:
            return plain
        slow = self._slow_entry
        return [
            ([KEY, key, VALUE, value], time_ms)
            if not headers and key is not None and value is not None and not value.startswith(MAGIC)
            else slow(key, value, headers, time_ms)
            for key, value, headers, time_ms in rows
        ]

    def _slow_record(self, fields: list[bytes], time_ms: int) -> Row:
        row = (fields, time_ms)
        return _tried(self._record, without_origin_entry(row) if XF_FIELD in fields else row)

    def _slow_entry(self, key: bytes | None, value: bytes | None, headers: Any, time_ms: int) -> Row:
        return _tried(self._entry, without_origin_record((key, value, headers, time_ms)))

    def _record(self, fields: list[bytes], time_ms: int) -> Row:
        return record_of(fields, time_ms, self._key_field)

    def _entry(self, key: bytes | None, value: bytes | None, headers: Any, time_ms: int) -> Row:
        return entry_of(key, value, headers, time_ms, self._key_field)


def _plain_entries(rows: RecordColumns) -> EntryColumns | None:
    """Records that have nothing but values, all with a key or all without, as canonical entries; else None."""
    keys, values = rows.keys, rows.values
    if any(rows.headers) or None in values or _has_packed(values):
        return None
    if None not in keys:
        return EntryColumns([KEY, VALUE], [keys, values], rows.times)
    return EntryColumns([VALUE], [values], rows.times) if keys.count(None) == len(keys) else None


def _plain_records(rows: EntryColumns) -> RecordColumns | None:
    """Canonical entries with key and value as records; None where they are others."""
    if rows.names != [KEY, VALUE] or _has_packed(rows.values[1]):
        return None
    keys, values = rows.values
    return RecordColumns(list(keys), values, [None] * len(values), rows.times)


class _Chosen(_Translation):
    """A layout that cannot carry everything: `others` says what becomes of the rest."""

    def __init__(self, **options: str) -> None:
        super().__init__(**options)
        others = options.get("others", "reject")
        if others not in ("reject", "drop"):
            raise UsageError(f"option 'others' of mapping {self.name!r} is {others!r}", hint="say reject or drop")
        self._drop = others == "drop"

    def _refuse(self, sentence: str) -> None:
        """Raise NotCarried(sentence), unless the rest is dropped."""
        if not self._drop:
            raise NotCarried(sentence)

    def _taken(self, fields: list[bytes], wanted: tuple[bytes | None, ...]) -> dict[bytes, bytes]:
        """The first values of the wanted fields; refuses repeats of them."""
        if not fields or len(fields) % 2:
            raise NotCarried(f"the entry has {len(fields)} names and values, which is not a list of pairs")
        taken: dict[bytes, bytes] = {}
        for at in range(0, len(fields), 2):
            name = fields[at]
            if name in wanted:
                if name in taken:
                    self._refuse(f"the field {_shown(name)} is there twice")
                else:
                    taken[name] = fields[at + 1]
        return taken


class _Body(_Chosen):
    """One field is the record's value; `key_field`, where named, is its key."""

    name = "body"
    options = ("field", "key_field", "others")

    def __init__(self, **options: str) -> None:
        super().__init__(**options)
        self._field = options.get("field", "body").encode()
        if self._field == self._key_field:
            raise UsageError("mapping 'body' cannot take value and key from one field", hint="name two fields")

    def _record(self, fields: list[bytes], time_ms: int) -> Row:
        taken = self._taken(fields, (self._field, self._key_field))
        if self._field not in taken:
            raise NotCarried(f"the entry has no field {_shown(self._field)}")
        if len(taken) * 2 < len(fields):
            self._refuse(f"the entry has fields besides {_shown(self._field)}")
        key = None if self._key_field is None else taken.get(self._key_field)
        return (key, taken[self._field], None, time_ms)

    def _entry(self, key: bytes | None, value: bytes | None, headers: Any, time_ms: int) -> Row:
        if value is None:
            raise NotCarried("the record has no value (a tombstone)")
        if headers:
            self._refuse("the record has headers")
        if key is None or self._key_field is None:
            if key is not None:
                self._refuse("the record has a key and no key_field is named")
            return ([self._field, value], time_ms)
        return ([self._key_field, key, self._field, value], time_ms)


class _Headers(_Chosen):
    """One field is the record's value, `key_field` its key, and all others are its headers, in order."""

    name = "headers"
    options = ("field", "key_field", "others")

    def __init__(self, **options: str) -> None:
        super().__init__(**options)
        self._field = options.get("field", "value").encode()
        if self._field == self._key_field:
            raise UsageError("mapping 'headers' cannot take value and key from one field", hint="name two fields")

    def _record(self, fields: list[bytes], time_ms: int) -> Row:
        own = (self._field, self._key_field)
        taken = self._taken(fields, own)
        headers = []
        for at in range(0, len(fields), 2):
            if fields[at] not in own:
                try:
                    name = fields[at].decode()
                except UnicodeDecodeError:
                    self._refuse(f"the field name {_shown(fields[at])} is not valid UTF-8")
                    continue
                headers.append((name, fields[at + 1]))
        key = None if self._key_field is None else taken.get(self._key_field)
        return (key, taken.get(self._field), headers or None, time_ms)

    def _entry(self, key: bytes | None, value: bytes | None, headers: Any, time_ms: int) -> Row:
        fields: list[bytes] = []
        if key is not None and self._key_field is not None:
            fields += (self._key_field, key)
        elif key is not None:
            self._refuse("the record has a key and no key_field is named")
        if value is not None:
            fields += (self._field, value)
        for name, content in headers or ():
            try:
                encoded = name.encode()
            except UnicodeEncodeError:
                raise NotCarried(f"the header name {name!r} is not valid UTF-8") from None
            if content is None:
                self._refuse(f"the header {name!r} has no value")
            elif encoded in (self._field, self._key_field):
                self._refuse(f"the header {name!r} is named as the field of the value or the key")
            else:
                fields += (encoded, content)
        if not fields:
            raise NotCarried("the record has nothing that becomes a field")
        return (fields, time_ms)


class _Json(_Chosen):
    """The record's value is a JSON object of texts; `key_field`, where named, is also the record's key."""

    name = "json"
    options = ("key_field", "others")

    def _record(self, fields: list[bytes], time_ms: int) -> Row:
        key = None
        if self._key_field is not None:
            key = self._taken(fields, (self._key_field,)).get(self._key_field)
        elif not fields or len(fields) % 2:
            raise NotCarried(f"the entry has {len(fields)} names and values, which is not a list of pairs")
        document: dict[str, str] = {}
        for at in range(0, len(fields), 2):
            try:
                name, text = fields[at].decode(), fields[at + 1].decode()
            except UnicodeDecodeError:
                self._refuse(f"the field {_shown(fields[at])} is not valid UTF-8")
                continue
            if name in document:
                self._refuse(f"the field {name!r} is there twice")
                continue
            document[name] = text
        value = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
        return (key, value, None, time_ms)

    def _entry(self, key: bytes | None, value: bytes | None, headers: Any, time_ms: int) -> Row:
        if headers:
            self._refuse("the record has headers")
        fields: list[bytes] = []
        names = set()
        for name, content in _json_pairs(value):
            if name in names:
                self._refuse(f"the name {_shown(name)} is there twice")
                continue
            names.add(name)
            if not isinstance(content, str):
                self._refuse(f"the value of {_shown(name)} is not a text")
                content = _json_text(content)
            fields += (name, _encoded(content))
        if not fields:
            raise NotCarried("the JSON object is empty")
        if key is not None and (
            self._key_field is None or self._taken(fields, (self._key_field,)).get(self._key_field) != key
        ):
            self._refuse("the record's key is not the text of key_field")
        return (fields, time_ms)


def _json_pairs(value: bytes | None) -> list[tuple[bytes, Any]]:
    """Names and values of a JSON object, in order, repeats included, see `_json_text`. Raises NotCarried."""
    if value is None:
        raise NotCarried("the record has no value (a tombstone)")
    try:
        found = json.loads(
            value.decode(),
            object_pairs_hook=_Pairs,
            parse_int=_Number,
            parse_float=_Number,
            parse_constant=_Number,
        )
    except ValueError:
        raise NotCarried("the value is not JSON") from None
    if not isinstance(found, _Pairs):
        raise NotCarried("the value is JSON, but not an object")
    return [(_encoded(name), content) for name, content in found]


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs: a dict would lose repeats in silence."""


class _Number:
    """A JSON number as it is written: as a float it would lose digits, as an integer it may be too long."""

    def __init__(self, text: str) -> None:
        self.text = text


def _json_text(content: Any) -> str:
    """A value of `_json_pairs` as JSON again, without spaces; numbers, and names that repeat, as they were."""
    if isinstance(content, _Number):
        return content.text
    if isinstance(content, _Pairs):
        return "{" + ",".join(f"{_json_text(name)}:{_json_text(inner)}" for name, inner in content) + "}"
    if isinstance(content, list):
        return "[" + ",".join(map(_json_text, content)) + "]"
    return json.dumps(content, ensure_ascii=False)


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise NotCarried("the JSON text holds half of a surrogate pair") from None


def _shown(name: bytes) -> str:
    """A field name for people."""
    return repr(name.decode(errors="backslashreplace")[:80])


_FACTORIES: dict[str, type[_Translation]] = {kind.name: kind for kind in (_Lossless, _Body, _Json, _Headers)}
#: names that `mapping_named` knows
MAPPINGS: tuple[str, ...] = tuple(_FACTORIES)
