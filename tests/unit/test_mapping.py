"""Mappings: `lossless` is proven a bijection, the others are exact in what they take and loud in what they do not."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crossfade.errors import UsageError
from crossfade.model.lossless import MAGIC, without_origin_entry, without_origin_record
from crossfade.model.mapping import MAPPINGS, mapping_named
from crossfade.model.position import Place
from crossfade.model.record import Batch, Shape

RECORD, ENTRY = Shape.RECORD, Shape.ENTRY
ORIGIN = b"1;route/0@17-0#4;2"
ORIGIN_TIME = b"1;route/0@17-0#4;2;t=99"


def batch(rows, shape):
    return Batch(0, shape, list(range(len(rows))), rows, Place())


def to_records(rows, **options):
    mapped = mapping_named(options.pop("name", "lossless"), **options).translate(batch(rows, ENTRY), RECORD)
    assert mapped.positions == list(range(len(rows))), mapped.rejects
    return mapped.rows


def to_entries(rows, **options):
    mapped = mapping_named(options.pop("name", "lossless"), **options).translate(batch(rows, RECORD), ENTRY)
    assert mapped.positions == list(range(len(rows))), mapped.rejects
    return mapped.rows


def pack(fields):
    return MAGIC + b"".join(len(part).to_bytes(4, "big") + part for part in fields)


# Blobs that collide with everything the mapping means something by, nested packed forms among them.
plain_blobs = st.binary(max_size=12)
origins = st.sampled_from([ORIGIN, ORIGIN_TIME, ORIGIN + b" "])
names = st.one_of(
    plain_blobs,
    st.sampled_from(
        [
            b"key",
            b"value",
            b"tombstone",
            b"header:",
            b"header:a",
            b"header-null:",
            b"header-null:a",
            b"xf",
            b"header:xf",
            b"header:\xff",
            b"id",
            b"",
            b"header-null:xf",
            b"Key",
        ]
    ),
)


def packed_forms(inner):
    fields = st.lists(st.tuples(names, inner), min_size=1, max_size=3).map(flat)
    likely = st.one_of(
        inner.map(lambda value: [b"value", value]),
        st.tuples(plain_blobs, inner).map(lambda pair: [b"key", pair[0], b"value", pair[1]]),
    )
    damage = st.sampled_from([b"", b"", b"", b"\x00", b"\x00\x00\x00\x00"])
    return st.tuples(fields | likely, damage).map(lambda pair: pack(pair[0]) + pair[1])


def flat(pairs):
    return [part for pair in pairs for part in pair]


blobs = st.recursive(plain_blobs | origins | st.just(MAGIC), packed_forms, max_leaves=6)
times = st.integers(-1, 2**53)
entries = st.one_of(
    st.lists(st.tuples(names, blobs), min_size=1, max_size=5).map(flat),
    blobs.map(lambda value: [b"value", value]),
    st.tuples(blobs, blobs).map(lambda pair: [b"key", pair[0], b"value", pair[1]]),
    st.tuples(blobs, names, blobs).map(lambda three: [b"value", three[0], three[1], three[2]]),
    # texts under different names, as `json` takes them
    st.dictionaries(st.text(max_size=4) | st.sampled_from(["id", "xf"]), st.text(max_size=4), min_size=1).map(
        lambda texts: [part.encode() for pair in texts.items() for part in pair]
    ),
)
header_names = st.text(max_size=8) | st.sampled_from(["xf", "", "a", "null:a", "key"])
headers = st.lists(st.tuples(header_names, st.none() | blobs), max_size=4).map(lambda found: found or None)
records = st.tuples(st.none() | blobs, st.none() | blobs, headers, times)
key_fields = st.sampled_from([None, "id", "key", "value", "xf"])


@settings(max_examples=500)
@given(rows=st.lists(st.tuples(entries, times), max_size=4), key_field=key_fields)
def test_every_entry_comes_back_from_kafka(rows, key_field):
    expected = [without_origin_entry(row) for row in rows]
    there = to_records(rows, key_field=key_field)
    assert to_entries(there, key_field=key_field) == expected
    # what arrived carries nothing that a later hop would strip
    assert [without_origin_record(row) for row in there] == there


@settings(max_examples=500)
@given(rows=st.lists(records, max_size=4), key_field=key_fields)
def test_every_record_comes_back_from_redis(rows, key_field):
    expected = [without_origin_record(row) for row in rows]
    there = to_entries(rows, key_field=key_field)
    assert all(fields and len(fields) % 2 == 0 for fields, _ in there)
    assert to_records(there, key_field=key_field) == expected
    assert [without_origin_entry(row) for row in there] == there


@settings(max_examples=500)
@given(left=entries, right=entries)
def test_two_entries_never_meet_in_one_record(left, right):
    left, right = without_origin_entry((left, 1)), without_origin_entry((right, 1))
    assert (to_records([left]) == to_records([right])) == (left == right)


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        ((b"k", b"v", None, 5), [b"key", b"k", b"value", b"v"]),
        ((None, b"v", None, 5), [b"value", b"v"]),
        ((b"k", None, None, 5), [b"key", b"k"]),
        ((b"", b"", None, 5), [b"key", b"", b"value", b""]),
        ((None, None, None, 5), [b"tombstone", b""]),
        (
            (b"k", b"v", [("a", b"1"), ("a", b"1"), ("", None), ("ü", b"")], 5),
            [
                b"key",
                b"k",
                b"value",
                b"v",
                b"header:a",
                b"1",
                b"header:a",
                b"1",
                b"header-null:",
                b"",
                b"header:\xc3\xbc",
                b"",
            ],
        ),
        ((None, None, [("a", b"")], 5), [b"header:a", b""]),
    ],
)
def test_the_canonical_layout(record, fields):
    assert to_entries([record]) == [(fields, 5)]
    assert to_records([(fields, 5)]) == [record]


@pytest.mark.parametrize(
    "fields",
    [
        [b"data", b"1"],
        [b"value", b"v", b"key", b"k"],  # order
        [b"key", b"k", b"key", b"k"],  # repeat
        [b"value", b"v", b"value", b"v"],
        [b"header:a", b"1", b"value", b"v"],
        [b"header:\xff", b"1"],  # header names are text
        [b"header-null:a", b"x"],  # null has no bytes
        [b"tombstone", b"x"],
        [b"tombstone", b"", b"header:a", b"1"],
        [b"key", b"k", b"tombstone", b""],
        [b"KEY", b"k", b"value", b"v"],
        [b"", b""],
        [b"value", pack([b"data", b"1"])],  # looks canonical, but its record is a packed form
        [b"header:xf", ORIGIN],  # would be stripped as a header
    ],
)
def test_any_other_layout_is_packed(fields):
    (record,) = to_records([(fields, 5)])
    assert record == (None, pack(fields), None, 5)
    assert to_entries([record]) == [(fields, 5)]


@pytest.mark.parametrize(
    "record",
    [
        (None, MAGIC, None, 5),  # holds nothing
        (None, MAGIC + b"\x00\x00\x00", None, 5),
        (None, pack([b"a"]), None, 5),  # a name without a value
        (None, pack([b"a", b"b"]) + b"\x00", None, 5),  # goes on behind the entry
        (None, pack([b"a", b"b"])[:-1], None, 5),
        (b"k", pack([b"a", b"b"]), None, 5),  # an entry without key field has no key
        (None, pack([b"a", b"b"]), [("h", b"1")], 5),  # packed forms have no headers
        (None, pack([b"value", b"v"]), None, 5),  # this entry is canonical and never packed
        (None, pack([b"a", b"b", b"xf", ORIGIN]), None, 5),  # no reader hands on an origin
    ],
)
def test_a_value_that_only_begins_like_a_packed_entry_is_a_value(record):
    (entry,) = to_entries([record])
    assert b"value" in entry[0]
    assert to_records([entry]) == [record]


def test_the_key_field_gives_packed_entries_their_key():
    rows = [([b"data", b"1", b"id", b"seven", b"id", b"eight"], 1), ([b"data", b"id"], 1)]
    assert [record[0] for record in to_records(rows, key_field="id")] == [b"seven", None]
    mapping = mapping_named("lossless", key_field="id")
    assert [mapping.key_of(row, ENTRY) for row in rows] == [b"seven", None]
    assert mapping.key_of(([b"key", b"k", b"value", b"v"], 1), ENTRY) == b"k"
    assert mapping.key_of((b"k", b"v", None, 1), RECORD) == b"k"


@given(row=st.tuples(entries, times), key_field=key_fields)
def test_key_of_an_entry_is_the_key_of_its_record(row, key_field):
    mapping = mapping_named("lossless", key_field=key_field)
    (record,) = to_records([row], key_field=key_field)
    assert mapping.key_of(row, ENTRY) == mapping.key_of(record, RECORD)


def test_a_thousand_levels_of_packing_cost_their_length_once():
    value = b"x"
    for _ in range(20_000):
        value = pack([b"value", value])
    (entry,) = to_entries([(None, value, None, 1)])  # no level has a non-canonical entry inside: a plain value
    assert entry == ([b"value", value], 1)
    value = pack([b"data", b"x"])
    for _ in range(20_000):
        value = pack([b"value", value])
    (entry,) = to_entries([(None, value, None, 1)])
    assert to_records([entry]) == [(None, value, None, 1)]


# --------------------------------------------------------------------------------------------------- xf


def test_an_origin_of_an_older_hop_is_stripped_and_gives_the_time():
    assert to_records([([b"key", b"k", b"value", b"v", b"xf", ORIGIN_TIME], 5)]) == [(b"k", b"v", None, 99)]
    assert to_entries([(b"k", b"v", [("a", b"1"), ("xf", ORIGIN)], 5)]) == [
        ([b"key", b"k", b"value", b"v", b"header:a", b"1"], 5)
    ]


def test_an_xf_that_is_no_origin_is_user_data():
    assert to_entries([(None, b"v", [("xf", b"mine"), ("xf", None)], 5)]) == [
        ([b"value", b"v", b"header:xf", b"mine", b"header-null:xf", b""], 5)
    ]
    fields = [b"xf", b"mine", b"a", b"b"]
    assert to_entries(to_records([(fields, 5)])) == [(fields, 5)]


def test_an_entry_is_never_stripped_to_nothing():
    assert without_origin_entry(([b"xf", ORIGIN_TIME], 5)) == ([b"xf", ORIGIN_TIME], 5)
    # the relay that wrote the second one was told so by the first rule: the first is the application's
    assert without_origin_entry(([b"xf", ORIGIN_TIME, b"xf", ORIGIN], 5)) == ([b"xf", ORIGIN_TIME], 5)


@pytest.mark.parametrize("name", MAPPINGS)
def test_copies_within_one_shape_only_lose_the_origin(name):
    mapping = mapping_named(name)
    given_rows = [(b"k", b"v", None, 5), (None, None, [("xf", b"mine"), ("a", None)], 5)]
    mapped = mapping.translate(batch(given_rows, RECORD), RECORD)
    assert mapped.rows is given_rows  # nothing to strip: nothing is copied
    relayed = [*given_rows, (b"k", b"v", [("a", b"1"), ("xf", ORIGIN_TIME)], 5), (b"k", b"v", [("xf", ORIGIN)], 5)]
    mapped = mapping.translate(batch(relayed, RECORD), RECORD)
    assert mapped.rows == [*given_rows, (b"k", b"v", [("a", b"1")], 99), (b"k", b"v", None, 5)]
    assert mapped.positions == [0, 1, 2, 3]

    given_rows = [([b"a", b"xf"], 5), ([b"xf", b"mine"], 5)]
    mapped = mapping.translate(batch(given_rows, ENTRY), ENTRY)
    assert mapped.rows is given_rows
    mapped = mapping.translate(batch([*given_rows, ([b"a", b"1", b"xf", ORIGIN_TIME], 5)], ENTRY), ENTRY)
    assert mapped.rows == [*given_rows, ([b"a", b"1"], 99)]


# --------------------------------------------------------------------------------------------------- rejects


def test_a_row_that_cannot_be_carried_leaves_the_batch_with_its_reason():
    rows = [([b"body", b"1"], 1), ([b"other", b"2"], 2), ([b"body", b"3"], 3), ([b"body", b"4", b"x", b""], 4)]
    mapped = mapping_named("body").translate(Batch(2, ENTRY, [b"1-0", b"2-0", b"3-0", b"4-0"], rows, Place()), RECORD)
    assert mapped.rows == [(None, b"1", None, 1), (None, b"3", None, 3)]
    assert mapped.positions == [b"1-0", b"3-0"]
    assert [(reject.position, reject.row, reject.shape) for reject in mapped.rejects] == [
        (b"2-0", rows[1], ENTRY),
        (b"4-0", rows[3], ENTRY),
    ]
    assert mapped.rejects[0].reason == "the entry has no field 'body'"


@pytest.mark.parametrize("name", MAPPINGS)
def test_a_list_that_is_no_pairs_is_refused(name):
    mapped = mapping_named(name).translate(batch([([b"value", b"v", b"body"], 1), ([], 1)], ENTRY), RECORD)
    assert [reject.position for reject in mapped.rejects] == [0, 1]
    assert "3 names and values" in mapped.rejects[0].reason


def test_a_header_name_that_is_no_text_is_refused():
    for name in ("lossless", "headers"):
        mapped = mapping_named(name).translate(batch([(None, b"v", [("\ud800", b"1")], 1)], RECORD), ENTRY)
        assert "not valid UTF-8" in mapped.rejects[0].reason


@pytest.mark.parametrize("name", MAPPINGS)
@given(rows=st.lists(records, max_size=3), others=st.sampled_from(["reject", "drop"]))
def test_what_a_mapping_takes_it_gives_back_and_it_never_fails_on_records(name, rows, others):
    options = {} if name == "lossless" else {"others": others}
    mapping = mapping_named(name, key_field="id", **options)
    there = mapping.translate(batch(rows, RECORD), ENTRY)
    assert sorted(there.positions + [reject.position for reject in there.rejects]) == list(range(len(rows)))
    back = mapping.translate(Batch(0, ENTRY, there.positions, there.rows, Place()), RECORD)
    if others == "reject" and name != "json":
        expected = [without_origin_record(rows[at]) for at in there.positions]
        if name in ("body", "headers"):  # a field `xf` would be an origin on the way back: applications cannot keep one
            pairs = [
                (found, wanted)
                for found, wanted, entry in zip(back.rows, expected, there.rows, strict=True)
                if without_origin_entry(entry) is entry
            ]
        else:
            pairs = list(zip(back.rows, expected, strict=True))
        for found, wanted in pairs:
            assert found == wanted


@pytest.mark.parametrize("name", MAPPINGS)
@given(rows=st.lists(st.tuples(entries, times), max_size=3), others=st.sampled_from(["reject", "drop"]))
@example(rows=[([b"b", b" 1 ", b"a", "ü".encode(), b"xf", b"mine", b"", b""], 5)], others="reject")
def test_no_entry_makes_a_mapping_fail(name, rows, others):
    options = {} if name == "lossless" else {"others": others}
    mapping = mapping_named(name, key_field="id", **options)
    there = mapping.translate(batch(rows, ENTRY), RECORD)
    assert sorted(there.positions + [reject.position for reject in there.rejects]) == list(range(len(rows)))
    if name == "lossless" or (name == "json" and others == "reject"):  # the others put key and value in an order
        back = mapping.translate(Batch(0, RECORD, there.positions, there.rows, Place()), ENTRY)
        assert back.rejects == []
        assert list(back.rows) == [without_origin_entry(rows[at]) for at in there.positions]


# ------------------------------------------------------------------------------------- body, headers, json


def test_body_takes_one_field_and_a_key():
    rows = [([b"user", b"u1", b"data", b"\xff"], 5)]
    options = {"name": "body", "field": "data", "key_field": "user"}
    assert to_records(rows, **options) == [(b"u1", b"\xff", None, 5)]
    assert to_entries(to_records(rows, **options), **options) == rows


def reasons(rows, shape, name, **options):
    target = ENTRY if shape is RECORD else RECORD
    return [reject.reason for reject in mapping_named(name, **options).translate(batch(rows, shape), target).rejects]


def test_body_refuses_what_it_cannot_carry():
    assert reasons([(b"k", b"v", None, 1), (None, None, None, 1), (None, b"v", [("a", b"")], 1)], RECORD, "body") == [
        "the record has a key and no key_field is named",
        "the record has no value (a tombstone)",
        "the record has headers",
    ]
    assert reasons([([b"body", b"1", b"body", b"2"], 1)], ENTRY, "body") == ["the field 'body' is there twice"]
    dropped = mapping_named("body", others="drop").translate(batch([([b"body", b"1", b"x", b"2"], 1)], ENTRY), RECORD)
    assert dropped.rows == [(None, b"1", None, 1)]


def test_headers_takes_the_other_fields_as_headers():
    rows = [([b"id", b"7", b"value", b"v", b"type", b"a", b"type", b"b"], 5)]
    options = {"name": "headers", "key_field": "id"}
    assert to_records(rows, **options) == [(b"7", b"v", [("type", b"a"), ("type", b"b")], 5)]
    assert to_entries(to_records(rows, **options), **options) == rows
    assert reasons([([b"\xff", b"1"], 1)], ENTRY, "headers") == [r"the field name '\\xff' is not valid UTF-8"]
    assert reasons(
        [(None, b"v", [("a", None)], 1), (None, b"v", [("value", b"")], 1), (None, None, None, 1)], RECORD, "headers"
    ) == [
        "the header 'a' has no value",
        "the header 'value' is named as the field of the value or the key",
        "the record has nothing that becomes a field",
    ]


def test_json_carries_texts_in_order():
    rows = [([b"b", b"1", b"a", "ü".encode(), b"", b""], 5)]
    there = to_records(rows, name="json", key_field="b")
    assert there == [(b"1", '{"b":"1","a":"ü","":""}'.encode(), None, 5)]
    assert to_entries(there, name="json", key_field="b") == rows


def test_json_refuses_what_is_no_text():
    assert reasons([([b"a", b"\xff"], 1), ([b"a", b"1", b"a", b"2"], 1)], ENTRY, "json") == [
        "the field 'a' is not valid UTF-8",
        "the field 'a' is there twice",
    ]
    values = [b"{", b"[]", b"{}", b'{"a":1}', b'{"a":"1","a":"2"}', b'{"a":"\\ud800"}', None, b"\xff", b"[" * 100_000]
    found = reasons([(None, value, None, 1) for value in values] + [(b"k", b'{"a":"1"}', None, 1)], RECORD, "json")
    assert found == [
        "the value is not JSON",
        "the value is JSON, but not an object",
        "the JSON object is empty",
        "the value of 'a' is not a text",
        "the name 'a' is there twice",
        "the JSON text holds half of a surrogate pair",
        "the record has no value (a tombstone)",
        "the value is not JSON",
        "the value is nested too deeply",
        "the record's key is not the text of key_field",
    ]


def test_json_writes_numbers_and_objects_as_text_where_told_to_drop():
    rows = [(b"k", b'{"a":1.5,"b":{"c":[true,null]},"a":"2"}', [("h", b"")], 1)]
    assert to_entries(rows, name="json", others="drop") == [([b"a", b"1.5", b"b", b'{"c":[true,null]}'], 1)]


@pytest.mark.parametrize("text", ["1.10", "1e400", "12345678901234567890.123456789", "-0", "1" * 5000, "NaN"])
def test_json_writes_numbers_as_they_stand_where_told_to_drop(text):
    nested = f'{{"x":{text},"x":[{text},"\u00e9"]}}'
    rows = [(None, f'{{"a": {text}, "b": {nested}}}'.encode(), None, 1)]
    assert to_entries(rows, name="json", others="drop") == [([b"a", text.encode(), b"b", nested.encode()], 1)]


# --------------------------------------------------------------------------------------------------- names and digests


def test_digests_tell_mappings_apart():
    digests = {
        mapping_named(name, **options).digest()
        for name, options in [
            ("lossless", {}),
            ("lossless", {"key_field": "id"}),
            ("body", {}),
            ("body", {"field": "data"}),
            ("body", {"others": "drop"}),
            ("headers", {}),
            ("json", {}),
        ]
    }
    assert len(digests) == 7
    assert mapping_named("lossless").digest() == '{"mapping": "lossless", "version": 1}'  # stored in markers: stable


def test_wrong_names_and_options_are_usage_errors():
    for name, options, words in [
        ("nope", {}, "no mapping named 'nope'"),
        ("body", {"feild": "x"}, "no option 'feild'"),
        ("lossless", {"others": "drop"}, "no option 'others'"),
        ("body", {"others": "maybe"}, "'maybe'"),
        ("body", {"field": 3}, "non-empty text"),
        ("body", {"field": "a", "key_field": "a"}, "one field"),
        ("headers", {"key_field": "value"}, "one field"),
    ]:
        with pytest.raises(UsageError, match=words):
            mapping_named(name, **options)
