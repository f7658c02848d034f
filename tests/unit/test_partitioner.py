"""Partitioners against published vectors: a wrong bit here sends a key to another lane."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossfade.errors import UsageError
from crossfade.model import partitioner
from crossfade.model.partitioner import PARTITIONERS, murmur2, murmur3, partition, partition_many


def signed(number: int) -> int:
    return number - (1 << 32) if number >= 1 << 31 else number


@pytest.mark.parametrize(
    ("text", "expected"),
    [  # from the unit tests of Kafka's Java client, as Java shows them (signed)
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
        # every length modulo four, as Java computes them
        ("1", -1993445489),
        ("12", 126087238),
        ("123", -267702483),
        ("1234", -1614185708),
        ("12345", -1188365604),
        # from librdkafka's own unit test
        ("kafka", signed(0xD067CF64)),
    ],
)
def test_murmur2_matches_the_java_client(text, expected):
    assert signed(murmur2(text.encode())) == expected


def test_murmur2_lane_masks_the_sign_and_does_not_negate():
    # -973932308 & 0x7fffffff = 1173551340; abs would give 973932308, another lane
    assert partition("murmur2", b"21", 7) == 1173551340 % 7
    assert 1173551340 % 7 != 973932308 % 7


@pytest.mark.parametrize(
    ("key", "expected"),
    [  # MurmurHash3_x86_32, seed 0: the vectors everyone's implementation is checked with
        (b"", 0),
        (b"\xff\xff\xff\xff", 0x76293B50),
        (b"\x21\x43\x65\x87", 0xF55B516B),
        (b"\x21\x43\x65", 0x7E4A8634),
        (b"\x21\x43", 0xA0F7B07A),
        (b"\x21", 0x72661CF4),
        (b"\x00\x00\x00\x00", 0x2362F9DE),
        (b"\x00\x00\x00", 0x85F0B427),
        (b"\x00\x00", 0x30F4C306),
        (b"\x00", 0x514E28B7),
        (b"hello", 0x248BFA47),
        (b"hello, world", 0x149BBB7F),
        (b"The quick brown fox jumps over the lazy dog", 0x2E4FF723),
    ],
)
def test_murmur3_matches_the_reference(key, expected):
    assert murmur3(key) == expected


def unshift(number: int, by: int) -> int:
    """Undo `x ^= x >> by`."""
    found = number
    for _ in range(32 // by + 1):
        found = number ^ (found >> by)
    return found


def key_with_murmur3(hashed: int) -> bytes:
    """The one four-byte key that hashes to `hashed` (the function is invertible on four bytes)."""
    inverse = {m: pow(m, -1, 1 << 32) for m in (0x85EBCA6B, 0xC2B2AE35, 0xCC9E2D51, 0x1B873593, 5)}
    mask = (1 << 32) - 1
    h = unshift(hashed, 16)
    h = unshift(h * inverse[0xC2B2AE35] & mask, 13)
    h = unshift(h * inverse[0x85EBCA6B] & mask, 16) ^ 4
    h = (h - 0xE6546B64) * inverse[5] & mask
    k = ((h >> 13) | (h << 19)) & mask
    k = k * inverse[0x1B873593] & mask
    k = ((k >> 15) | (k << 17)) & mask
    return (k * inverse[0xCC9E2D51] & mask).to_bytes(4, "little")


@pytest.mark.parametrize("lanes", [1, 3, 7, 12, 16])
def test_murmur3_of_the_most_negative_hash_has_a_lane(lanes):
    key = key_with_murmur3(0x80000000)
    assert murmur3(key) == 0x80000000
    assert partition("murmur3", key, lanes) == 2**31 % lanes


def test_murmur3_negates_a_negative_hash():
    key = b"\x21\x43\x65\x87"  # 0xF55B516B, signed -178564757
    assert partition("murmur3", key, 7) == 178564757 % 7
    assert partition("murmur3-unsigned", key, 7) == 0xF55B516B % 7
    assert 178564757 % 7 != 0xF55B516B % 7


def test_crc32_is_the_consistent_partitioner_of_librdkafka():
    assert zlib.crc32(b"123456789") == 0xCBF43926  # the check value of CRC-32
    assert partition("crc32", b"123456789", 12) == 0xCBF43926 % 12
    assert partition("crc32", b"", 12) == 0


@pytest.mark.parametrize("name", PARTITIONERS)
def test_without_a_key_the_source_lane_decides(name):
    assert partition(name, None, 4, source_lane=6) == 2
    assert partition_many(name, [None, b"k", None], 4, source_lane=6) == [2, partition(name, b"k", 4), 2]
    # an empty key is a key
    assert partition(name, b"", 5, source_lane=4) == partition(name, b"", 5, source_lane=1)


@given(name=st.sampled_from(PARTITIONERS), keys=st.lists(st.none() | st.binary()), lanes=st.integers(1, 300))
def test_a_list_goes_where_its_keys_go(name, keys, lanes):
    many = partition_many(name, keys, lanes, source_lane=7)
    assert many == [partition(name, key, lanes, source_lane=7) for key in keys]
    assert all(0 <= lane < lanes for lane in many)


def test_the_memory_of_keys_is_bounded(monkeypatch):
    monkeypatch.setattr(partitioner, "KEYS_REMEMBERED_MAX", 10)
    monkeypatch.setattr(partitioner, "_SEEN", {})
    keys = [b"%d" % n for n in range(25)] + [b"x" * 10_000]
    lanes = partition_many("murmur2", keys, 9)
    assert lanes == partition_many("murmur2", keys, 9) == [(murmur2(key) & 0x7FFFFFFF) % 9 for key in keys]
    remembered = partitioner._SEEN["murmur2", 9]
    assert len(remembered) <= 10
    assert max(map(len, remembered)) <= partitioner.KEY_REMEMBERED_BYTES_MAX


def test_an_unknown_partitioner_or_no_lane_is_a_usage_error():
    with pytest.raises(UsageError, match="no partitioner named 'sha1'"):
        partition("sha1", b"k", 3)
    with pytest.raises(UsageError, match="0 lanes"):
        partition_many("murmur2", [b"k"], 0)
