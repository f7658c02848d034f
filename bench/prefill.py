"""The data: 512-byte texts that LZ4 halves, keyed, put quickly into stream keys or a topic before anything is measured.

The same seed gives the same records on both brokers, in the same lanes. Constant values would flatter compression.
"""

from __future__ import annotations

import socket

import hiredis
from confluent_kafka import Producer

from crossfade.lab.workload import Values

from .children import Trouble

SEED = 7
KEYS = 4000
_PIPELINE = 1000
_REPORT_S = 120.0


def make_values(lanes: int, value_bytes: int) -> Values:
    """The records of the benchmark for this many lanes."""
    return Values(seed=SEED, keys=KEYS, lanes=lanes, value_bytes=value_bytes)


def fill_redis(port: int, pattern: str, lanes: int, records: int, value_bytes: int) -> None:
    """XADD `records` entries `key`, `value` over the stream keys. Raises Trouble, OSError."""
    values = make_values(lanes, value_bytes)
    heads = []
    for index, key in enumerate(values.keys):
        stream = pattern.replace("<lane>", str(values.lane_of[index])).encode()
        head = b"*7\r\n$4\r\nXADD\r\n$%d\r\n%b\r\n$1\r\n*\r\n" % (len(stream), stream)
        heads.append(head + b"$3\r\nkey\r\n$%d\r\n%b\r\n$5\r\nvalue\r\n$%d\r\n" % (len(key), key, value_bytes))
    with socket.create_connection(("127.0.0.1", port), timeout=30) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = hiredis.Reader()
        waiting = 0
        for first in range(0, records, _PIPELINE):
            ids = range(first, min(first + _PIPELINE, records))
            link.sendall(b"".join([b"%b%b\r\n" % (heads[values.key_index(id)], values.value(id)) for id in ids]))
            waiting += len(ids)
            if waiting > 4 * _PIPELINE:
                waiting -= _take_answers(link, reader, waiting - 3 * _PIPELINE)
        _take_answers(link, reader, waiting)


def _take_answers(link: socket.socket, reader: hiredis.Reader, wanted: int) -> int:
    """Read at least `wanted` answers and say how many it were."""
    taken = 0
    while taken < wanted:
        answer = reader.gets()
        if answer is False:
            data = link.recv(1 << 18)
            if not data:
                raise Trouble("Redis closed the connection while the data was written")
            reader.feed(data)
        elif isinstance(answer, Exception):
            raise Trouble(f"Redis refused a record: {answer}")
        else:
            taken += 1
    return taken


def fill_kafka(bootstrap: str, topic: str, lanes: int, records: int, value_bytes: int) -> None:
    """Produce `records` keyed records into the topic's partitions. Raises Trouble."""
    values = make_values(lanes, value_bytes)
    failed: list[str] = []

    def report(error: object, _: object) -> None:
        if error is not None:
            failed.append(str(error))

    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "compression.type": "lz4",
            "linger.ms": 20,
            "batch.size": 1 << 20,
            "queue.buffering.max.messages": 500_000,
            # only failures come back: a Python call per record would cost more than producing it
            "delivery.report.only.error": True,
            "on_delivery": report,
            "log_level": 0,
        }
    )
    for id in range(records):
        index = values.key_index(id)
        while True:
            try:
                producer.produce(topic, values.value(id), values.keys[index], values.lane_of[index])
                break
            except BufferError:
                producer.poll(0.05)
        if not id % 10_000:
            producer.poll(0)
    left = producer.flush(_REPORT_S)
    if left or failed:
        raise Trouble(f"writing the data into Kafka: {left} records unanswered, {failed[:1]}")
