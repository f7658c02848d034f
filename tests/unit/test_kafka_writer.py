"""How a writer hands the records of a transaction to the client."""

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME
from hypothesis import example, given
from hypothesis import strategies as st

from crossfade.brokers.kafka import writer as writing
from crossfade.brokers.kafka.settings import DOUBT_S, KafkaSettings
from crossfade.brokers.kafka.writer import _BATCHES_SENT_MAX, Lot, Patience, Writer
from crossfade.errors import Indeterminate, InvariantBroken, Unreachable, UsageError
from crossfade.model.lossless import without_origin_record


class Acknowledged:
    """What a client tells of a record that is there."""

    def __init__(self, offset):
        self._offset = offset

    def offset(self):
        return self._offset

    def timestamp(self):
        return TIMESTAMP_CREATE_TIME, 1


class Client:
    """Acknowledges one batch a poll, the oldest first."""

    def __init__(self):
        self.produced, self.waiting, self.most_waiting = [], [], 0

    def produce(self, topic, value, key, lane, callback, partitioner, time_ms, headers):
        self.produced.append((lane, value))
        if callback is not None:
            self.waiting.append((callback, len(self.produced) - 1))
            self.most_waiting = max(self.most_waiting, len(self.waiting))

    def begin_transaction(self):
        pass

    def poll(self, wait_s):
        if not self.waiting or not wait_s:
            return 0
        callback, offset = self.waiting.pop(0)
        callback(None, Acknowledged(offset))
        return 1

    def purge(self, in_queue, in_flight, blocking):
        self.waiting.clear()

    def __len__(self):
        return len(self.waiting)


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


def test_a_dead_relay_holds_up_readers_for_ten_seconds():
    assert make_writer()._properties["transaction.timeout.ms"] == 10_000
    with pytest.raises(UsageError, match=r"transaction\.timeout\.ms"):
        KafkaSettings({"bootstrap.servers": "127.0.0.1:1", "transaction.timeout.ms": "60000"})


def test_hardly_more_batches_are_produced_than_can_be_sent():
    client, _ = write([lot(lane, 3) for lane in range(100)])
    assert client.most_waiting == _BATCHES_SENT_MAX
    assert client.produced == [(lane, b"%d" % number) for lane in range(100) for number in range(3)]


def test_every_record_of_a_lane_is_produced_in_order_whatever_its_batches():
    sizes = {0: 4_000, 1: 1, 2: 1_500, 3: 1_501, 4: 9_000}
    client, _ = write([lot(lane, count) for lane, count in sizes.items()])
    for lane, count in sizes.items():
        assert [value for at, value in client.produced if at == lane] == [b"%d" % number for number in range(count)]


@given(times=st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=4))
@example([1_700_000_000_000_000_000, 18_446_744_073_709_551_615])
def test_every_own_time_that_is_written_is_read_back(times):
    rows = [(b"k", b"v", None, 1) for _ in times]
    own = dict(enumerate(times))
    carried = []
    writer = make_writer()
    writer._producer = client = Client()
    client.produce = lambda *record: (carried.append(record[-1]), Client.produce(client, *record))
    writer._produce_lots([Lot((0, 0), rows, list(range(len(rows))), 0, "1;r/0@", ";1", own)], {}, [])
    found = [[(name, text.encode()) for name, text in headers] for headers in carried]
    assert [without_origin_record((b"k", b"v", headers, 1))[3] for headers in found] == times


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


def seconds(doing):
    """A step that takes so long and is given its limit."""
    return lambda limit_s: doing()


@pytest.mark.parametrize(
    ("round_trip_s", "requests", "took_s", "is_spent"),
    [
        (0.0, 1, 0.39, False),
        (0.0, 1, 0.41, True),
        (0.001, 2, 0.41, True),
        (0.2, 2, 0.6, False),  # a third request, to find the coordinator
        (0.2, 2, 0.8, True),  # what a step that was sent twice takes at least
        (0.2, 1, 0.6, True),
    ],
)
def test_behind_a_step_that_may_have_been_sent_twice_the_producer_is_spent(
    monkeypatch, round_trip_s, requests, took_s, is_spent
):
    assert not is_spent or took_s > DOUBT_S
    writer, clock = make_writer(), Clock()
    monkeypatch.setattr(writing, "time", clock)
    writer._patience.round_trip_s = round_trip_s
    writer._timed("committing", requests, seconds(clock.takes(took_s)))
    assert writer.is_spent is is_spent
    writer._timed("committing", requests, seconds(clock.takes(0.01)))
    assert writer.is_spent is is_spent  # a fast step behind it does not make it whole


def test_brokers_that_were_once_near_count_as_near(monkeypatch):
    writer, clock = make_writer(), Clock()
    monkeypatch.setattr(writing, "time", clock)
    writer._patience.round_trip_s = 0.2
    writer._timed("committing", 1, seconds(clock.takes(0.01)))
    writer._timed("committing", 1, seconds(clock.takes(0.45)))
    assert writer.is_spent


class Transactions(Client):
    """Steps of a transaction that take a given time each."""

    def __init__(self, clock, takes_s):
        super().__init__()
        self.clock, self.takes_s, self.steps = clock, takes_s, []

    def _step(self, name):
        self.steps.append(name)
        self.clock.now_s += self.takes_s

    def send_offsets_to_transaction(self, offsets, group, limit_s):
        self._step("offsets")

    def commit_transaction(self, limit_s):
        self._step("commit")


async def test_a_slow_transaction_is_committed_and_is_the_last_one_of_its_producer(monkeypatch):
    writer, clock = make_writer(), Clock()
    monkeypatch.setattr(writing, "time", clock)
    writer._producer = client = Transactions(clock, takes_s=0.7)
    assert await writer.commit([lot(0, 3)], [], lambda ends: [], None) == {(0, 0): 2}
    assert client.steps == ["offsets", "commit"]
    assert writer.is_spent
    assert not writer.is_dead
    with pytest.raises(InvariantBroken):
        await writer.commit([lot(0, 3)], [], lambda ends: [], None)
    assert client.steps == ["offsets", "commit"]
    writer._producer = None
    writer.discard()


class Starved(Transactions):
    """Acknowledges each batch after two seconds."""

    def poll(self, wait_s):
        if wait_s:
            self.clock.now_s += 2
        return super().poll(wait_s)


async def test_all_records_of_a_transaction_have_one_deadline(monkeypatch):
    """Each batch in its own time would be longer than the brokers keep a transaction open."""
    writer, clock = make_writer(), Clock()
    monkeypatch.setattr(writing, "time", clock)
    writer._producer = client = Starved(clock, takes_s=0.01)
    began = clock.now_s
    with pytest.raises(Indeterminate, match=r"not delivered to topic.* within 8 s"):
        await writer.commit([lot(lane, 10_000) for lane in range(4)], [], lambda ends: [], None)
    assert clock.now_s - began <= 10
    assert client.steps == []
    assert writer.is_dead


async def test_no_step_goes_on_when_the_brokers_have_ended_the_transaction(monkeypatch):
    writer, clock, limits = make_writer(), Clock(), []
    monkeypatch.setattr(writing, "time", clock)
    writer._patience.limit_s = 6.0
    writer._producer = client = Transactions(clock, takes_s=5.5)
    client.send_offsets_to_transaction = lambda offsets, group, limit_s: (
        limits.append(limit_s) or client._step("offsets")
    )
    client.commit_transaction = lambda limit_s: limits.append(limit_s) or client._step("commit")
    await writer.commit([lot(0, 3)], [], lambda ends: [], None)
    assert limits == [6.0, 4.5]
    writer._producer = None
    writer.discard()


def test_brokers_that_are_slow_when_a_producer_is_made_anew_do_not_count_as_distant():
    patience = Patience()
    for took_s in (0.2, 0.05, 0.15):
        patience.observe_round_trip(took_s)
    assert patience.round_trip_s == 0.05


def test_slow_brokers_are_given_more_time_and_fast_ones_less_again():
    patience = Patience()
    assert patience.limit_s == 2.0
    patience.observe(0.01)
    assert patience.limit_s == 2.0
    patience.observe(2.0)  # it ran out
    assert patience.limit_s == 6.0
    patience.observe(1.2)
    assert patience.limit_s == pytest.approx(4.8)
    for _ in range(3):
        patience.observe(0.01)
    assert patience.limit_s == 2.0


class Stamping(Transactions):
    """Brokers acknowledge each batch with one time for all of its records."""

    def __init__(self, clock, time_ms):
        super().__init__(clock, takes_s=0.01)
        self.time_ms = time_ms

    def poll(self, wait_s):
        if not self.waiting or not wait_s:
            return 0
        callback, offset = self.waiting.pop(0)
        told = Acknowledged(offset)
        told.timestamp = lambda: (TIMESTAMP_LOG_APPEND_TIME, self.time_ms)
        callback(None, told)
        return 1


def timed_lot(times, own_times, lane=0):
    return Lot(
        (lane, lane), [(b"k", b"v", None, at) for at in times], list(range(len(times))), 0, "1;r/0@", ";1", own_times
    )


async def commit_stamped(lots, time_ms, gives_times=None):
    writer, clock = make_writer(), Clock()
    writer._producer = client = Stamping(clock, time_ms)
    try:
        await writer.commit(lots, [], lambda ends: [], None, gives_times=gives_times)
    finally:
        writer._producer = None
        writer.discard()
        assert client.steps in ([], ["offsets", "commit"])


@pytest.mark.parametrize(
    ("count", "own", "is_refused"),
    [
        (10, range(10), False),
        (10, [9], True),  # nine would lose theirs
        (10, [0], True),
        (10, [], True),
        (3_000, range(3_000), False),
        (3_000, range(1_500), True),  # the second batch would
        (3_000, range(1_500, 3_000), True),
    ],
)
async def test_a_time_that_the_broker_gives_is_refused_where_one_record_would_lose_its_own(count, own, is_refused):
    lots = [timed_lot([5] * count, dict.fromkeys(own, 3))]
    if is_refused:
        with pytest.raises(Indeterminate, match="its own time"):
            await commit_stamped(lots, 77)
    else:
        await commit_stamped(lots, 77)


class Topic:
    """Tells, or does not tell, whether it gives records its own time."""

    def __init__(self, tells):
        self.tells, self.asked = tells, 0

    async def gives_times(self):
        self.asked += 1
        if isinstance(self.tells, Exception):
            raise self.tells
        return self.tells


@pytest.mark.parametrize(
    ("tells", "words"),
    [(False, ""), (True, "its own time since"), (Unreachable("nobody is there"), "cannot be asked.*nobody is there")],
)
async def test_a_batch_that_was_sent_again_is_no_topic_that_gives_its_own_time(tells, words):
    """A broker that has it already acknowledges it with the latest of its records' times, as if it had given that."""
    topic = Topic(tells)
    lots = [timed_lot([5, 7, 6], {}), timed_lot([1, 9], {}, lane=1)]
    if words:
        with pytest.raises(Indeterminate, match=words):
            await commit_stamped(lots[:1], 7, topic.gives_times)
    else:
        await commit_stamped(lots[:1], 7, topic.gives_times)
    assert topic.asked == 1
    with pytest.raises(Indeterminate, match="its own time since"):  # another lane has no such time
        await commit_stamped(lots, 7, topic.gives_times)
    assert topic.asked == 1
