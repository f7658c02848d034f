"""How a writer hands the records of a transaction to the client."""

from crossfade.brokers.kafka.settings import KafkaSettings
from crossfade.brokers.kafka.writer import _BATCHES_SENT_MAX, Lot, Writer


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


def write(lots):
    writer = Writer(KafkaSettings({"bootstrap.servers": "127.0.0.1:1"}), "id", "topic", message_bytes_max=1_000_000)
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
