"""How a writer hands the records of a transaction to the client."""

import pytest

from crossfade.brokers.kafka import writer as writing
from crossfade.brokers.kafka.settings import DOUBT_S, KafkaSettings
from crossfade.brokers.kafka.writer import _BATCHES_SENT_MAX, Lot, Writer
from crossfade.errors import Indeterminate


class Client:
    """Acknowledges one batch a poll, the oldest first."""

    def __init__(self):
        self.produced, self.waiting, self.most_waiting = [], [], 0

    def produce(self, topic, value, key, lane, callback, partitioner, time_ms, headers):
        self.produced.append((lane, value))
        if callback is not None:
            self.waiting.append((callback, len(self.produced) - 1))
            self.most_waiting = max(self.most_waiting, len(self.waiting))

    def poll(self, wait_s):
        if not self.waiting or not wait_s:
            return 0
        callback, offset = self.waiting.pop(0)
        callback(None, type("Message", (), {"offset": lambda self: offset})())
        return 1


def lot(lane, count):
    rows = [(b"k", b"%d" % number, None, 1) for number in range(count)]
    return Lot((lane, lane), rows, list(range(count)), 0, "1;r/0@", ";1", {})


def make_writer():
    return Writer(KafkaSettings({"bootstrap.servers": "127.0.0.1:1"}), "id", "topic", message_bytes_max=1_000_000)


def write(lots):
    writer = make_writer()
    writer._producer = client = Client()
    delivered, failed = {}, []
    writer._produce_lots(lots, delivered, failed)
    return client, delivered


def test_hardly_more_batches_are_produced_than_can_be_sent():
    client, _ = write([lot(lane, 3) for lane in range(100)])
    assert client.most_waiting == _BATCHES_SENT_MAX
    assert client.produced == [(lane, b"%d" % number) for lane in range(100) for number in range(3)]


def test_every_record_of_a_lane_is_produced_in_order_whatever_its_batches():
    sizes = {0: 4_000, 1: 1, 2: 1_500, 3: 1_501, 4: 9_000}
    client, _ = write([lot(lane, count) for lane, count in sizes.items()])
    for lane, count in sizes.items():
        assert [value for at, value in client.produced if at == lane] == [b"%d" % number for number in range(count)]


class Clock:
    """Time passes only where something is done."""

    def __init__(self):
        self.now_s = 100.0

    def monotonic(self):
        return self.now_s

    def takes(self, seconds):
        def do():
            self.now_s += seconds

        return do


@pytest.mark.parametrize(
    ("round_trip_s", "requests", "took_s", "is_in_doubt"),
    [
        (0.0, 1, 0.39, False),
        (0.0, 1, 0.41, True),
        (0.001, 2, 0.41, True),
        (0.2, 2, 0.6, False),  # a third request, to find the coordinator
        (0.2, 2, 0.8, True),  # what a step that was sent twice takes at least
        (0.2, 1, 0.6, True),
    ],
)
def test_a_step_that_may_have_been_sent_twice_is_in_doubt(monkeypatch, round_trip_s, requests, took_s, is_in_doubt):
    assert not is_in_doubt or took_s > DOUBT_S
    writer, clock = make_writer(), Clock()
    monkeypatch.setattr(writing, "time", clock)
    writer._round_trip_s = round_trip_s
    if is_in_doubt:
        with pytest.raises(Indeterminate):
            writer._in_time("committing", Indeterminate, requests, clock.takes(took_s))
    else:
        writer._in_time("committing", Indeterminate, requests, clock.takes(took_s))


def test_brokers_that_were_once_near_count_as_near(monkeypatch):
    writer, clock = make_writer(), Clock()
    monkeypatch.setattr(writing, "time", clock)
    writer._round_trip_s = 0.2
    writer._in_time("committing", Indeterminate, 1, clock.takes(0.01))
    with pytest.raises(Indeterminate):
        writer._in_time("committing", Indeterminate, 1, clock.takes(0.45))
