"""The one admin request that no client library here has: a partition's replicas in a new order.

The first replica of the list is the preferred leader, so a new order plus a preferred election moves leadership without
a crash. AlterPartitionReassignments (key 45, version 0) is written out by hand; a secured lab's direct listener is
greeted with SASL PLAIN first. Called by faults.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

from crossfade.lab.errors import LabError
from crossfade.lab.lab import Lab

_TIMEOUT_S = 10.0


def set_replicas(lab: Lab, topic: str, partition: int, replicas: Sequence[int]) -> None:
    """Ask the cluster for this replica order.  Raises LabError when it refuses or does not answer."""
    properties = lab.kafka_properties(direct=True)
    trouble = "no broker"
    for address in properties["bootstrap.servers"].split(","):
        host, port = address.rsplit(":", 1)
        try:
            with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as sock:
                if "sasl.username" in properties:
                    _greet(sock, properties["sasl.username"], properties["sasl.password"])
                _reassign(sock, topic, partition, replicas)
            return
        except OSError as error:  # that broker may be the one a fault has hit
            trouble = str(error)
    raise LabError(f"no broker took the new replica order of {topic}/{partition}: {trouble}")


def _reassign(sock: socket.socket, topic: str, partition: int, replicas: Sequence[int]) -> None:
    name = topic.encode()
    body = b"".join(
        (
            struct.pack(">i", int(_TIMEOUT_S * 1000)),
            b"\x02",  # one topic (compact lengths are one more)
            _varint(len(name) + 1) + name,
            b"\x02" + struct.pack(">i", partition),
            _varint(len(replicas) + 1) + struct.pack(f">{len(replicas)}i", *replicas),
            b"\x00\x00\x00",  # no tags: partition, topic, request
        )
    )
    answer = _call(sock, 45, 0, b"\x00" + body)  # a flexible header ends with its own tags
    # correlation 4, tags 1, throttle 4, then the error code of the whole request
    (error,) = struct.unpack_from(">h", answer, 9)
    offset = 11
    size, offset = _read_varint(answer, offset)
    offset += max(0, size - 1)  # the error's text
    topics, offset = _read_varint(answer, offset)
    if error == 0 and topics > 1:
        size, offset = _read_varint(answer, offset)
        offset += size - 1
        _, offset = _read_varint(answer, offset)
        (error,) = struct.unpack_from(">h", answer, offset + 4)
    if error:
        raise LabError(f"Kafka refused the new replica order of {topic}/{partition}: error {error}")


def _greet(sock: socket.socket, user: str, password: str) -> None:
    mechanism = b"PLAIN"
    answer = _call(sock, 17, 1, struct.pack(">h", len(mechanism)) + mechanism)
    (error,) = struct.unpack_from(">h", answer, 4)
    if error == 0:
        token = b"\0" + user.encode() + b"\0" + password.encode()
        answer = _call(sock, 36, 0, struct.pack(">i", len(token)) + token)
        (error,) = struct.unpack_from(">h", answer, 4)
    if error:
        raise LabError(f"the direct listener refused {user!r}: error {error}")


def _call(sock: socket.socket, api_key: int, version: int, rest: bytes) -> bytes:
    client = b"crossfade-lab"
    header = struct.pack(">hhih", api_key, version, 1, len(client)) + client
    sock.sendall(struct.pack(">i", len(header) + len(rest)) + header + rest)
    (size,) = struct.unpack(">i", _exactly(sock, 4))
    return _exactly(sock, size)


def _exactly(sock: socket.socket, size_bytes: int) -> bytes:
    out = bytearray()
    while len(out) < size_bytes:
        part = sock.recv(size_bytes - len(out))
        if not part:
            raise ConnectionError("the broker closed the connection")
        out += part
    return bytes(out)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, offset
