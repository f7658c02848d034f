"""The board's topic: how it is made, and how long a large one is read."""

import asyncio
from types import SimpleNamespace

import pytest

from crossfade.brokers.kafka import KafkaBoard, KafkaSettings
from crossfade.brokers.kafka import board as board_module
from crossfade.brokers.kafka.board import _Reader
from crossfade.errors import AccessRefused, Unreachable

SETTINGS = KafkaSettings({"bootstrap.servers": "127.0.0.1:1"})


class Message:
    def __init__(self, offset):
        self._offset = offset

    def error(self):
        return None

    def offset(self):
        return self._offset

    def key(self):
        return b"status/r/%d" % (self._offset % 3)

    def value(self):
        return b"%d" % self._offset


class SlowConsumer:
    """One record each four seconds; none from `stops_at` on."""

    def __init__(self, clock, stops_at):
        self._clock, self._stops_at, self._next = clock, stops_at, 0

    def assign(self, lanes):
        pass

    pause = resume = assign

    def consume(self, records_max, wait_s):
        if not wait_s:
            return []
        self._clock[0] += 4.0
        if self._next >= self._stops_at:
            return []
        self._next += 1
        return [Message(self._next - 1)]


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(board_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def reader_of(monkeypatch, clock, stops_at):
    monkeypatch.setattr(board_module, "Consumer", lambda properties: SlowConsumer(clock, stops_at))
    return _Reader(SETTINGS)


def test_a_large_board_is_read_to_its_end_however_long_it_takes(monkeypatch, clock):
    found = reader_of(monkeypatch, clock, 50).catch_up(50)
    assert clock[0] == 200.0
    assert {name: (one.version, one.body) for name, one in found.items()} == {
        "status/r/0": (49, b"48"),
        "status/r/1": (50, b"49"),
        "status/r/2": (48, b"47"),
    }


def test_a_board_that_stops_coming_is_given_up(monkeypatch, clock):
    with pytest.raises(Unreachable, match=r"nothing came for 10 s, at offset 5 of 50 of topic crossfade\.control"):
        reader_of(monkeypatch, clock, 5).catch_up(50)
    assert 30.0 <= clock[0] <= 36.0


class Topic:
    """Records of a topic by their offsets, under an id, until it is made anew; and the consumers of it."""

    def __init__(self, topic_id, bodies):
        self.topic_id, self.bodies, self.consumers = topic_id, bodies, []

    def __call__(self, properties):
        self.consumers.append(Tail(self))
        return self.consumers[-1]


class Tail:
    def __init__(self, topic):
        self._topic, self._bodies, self._next, self.is_closed = topic, topic.bodies, 0, False

    def assign(self, lanes):
        pass

    pause = resume = assign

    def close(self):
        self.is_closed = True

    def consume(self, records_max, wait_s):
        assert not self.is_closed
        found = [Told(at, *self._bodies[at]) for at in range(self._next, len(self._bodies))]
        self._next = len(self._bodies)
        return found


class Told(Message):
    def __init__(self, offset, name, body):
        super().__init__(offset)
        self.key, self.value = lambda: name, lambda: body


@pytest.mark.parametrize(
    ("topic_id", "bodies"),
    [
        ("new", [(b"a", b"new")]),
        ("", [(b"a", b"new")]),  # no broker could tell
        ("new", [(b"a", b"new"), *[(b"c", b"beat")] * 9]),  # it has grown beyond the old one
        ("new", []),
    ],
)
def test_of_a_board_that_was_made_anew_nothing_old_is_told(monkeypatch, topic_id, bodies):
    topic = Topic("old", [(b"b", b"old"), (b"b", b"old"), (b"a", b"old")])
    monkeypatch.setattr(board_module, "Consumer", topic)
    reader = _Reader(KafkaSettings({"bootstrap.servers": "127.0.0.1:1"}))
    assert reader.catch_up(3, "old").keys() == {"a", "b"}
    topic.bodies = bodies
    for _ in range(2):
        found = reader.catch_up(len(bodies), topic_id)
        assert {name: one.body for name, one in found.items()} == {name.decode(): body for name, body in bodies}
        assert not bodies or found["a"].version == 1
    assert len(topic.consumers) == (2 if bodies else 1)
    assert topic.consumers[0].is_closed
    assert len(reader._settings._handles) == len(topic.consumers) - 1


def test_a_board_whose_id_is_not_told_for_a_moment_is_read_on(monkeypatch):
    topic = Topic("old", [(b"a", b"1")])
    monkeypatch.setattr(board_module, "Consumer", topic)
    reader = _Reader(SETTINGS)
    for topic_id in ("", "id", "", "A" * 22, "id"):
        topic.bodies.append((b"a", b"next"))
        assert reader.catch_up(len(topic.bodies), topic_id)["a"].version == len(topic.bodies)
    assert len(topic.consumers) == 1


class Answers:
    """A cluster of which `topic` is the board, that answers late by so much, and grows meanwhile."""

    def __init__(self, topic, *delays_s):
        self._topic, self._delays_s = topic, list(delays_s)
        self.has_board, self.refusal = True, None

    async def topic(self, name):
        return name if self.has_board else None

    async def topic_id(self, name, tries=3):
        if isinstance(self.refusal, Unreachable):
            return None
        return self._topic.topic_id if self.has_board else ""

    async def offsets(self, name, lanes, spec):
        if self.refusal is not None:
            raise self.refusal
        if not self.has_board:
            raise Unreachable("no leaders found")
        end = len(self._topic.bodies)
        self._topic.bodies.append((b"a", b"beat"))
        await asyncio.sleep(self._delays_s.pop(0) if self._delays_s else 0.0)
        return {0: end}

    async def describe(self):
        return SimpleNamespace(nodes=[1])

    async def ensure_topic(self, name, lanes, replication, config):
        self.has_board = True

    async def write(self, name, body):
        """As the producer of heartbeats."""
        return 1

    def close(self):
        pass


@pytest.fixture
def board_of(monkeypatch):
    """A function to make a board with, of a cluster that answers late by so much."""
    topic = Topic("id", [(b"a", b"1")])
    monkeypatch.setattr(board_module, "Consumer", topic)

    def made(*delays_s):
        cluster = Answers(topic, *delays_s)
        monkeypatch.setattr(board_module, "_PlainWriter", lambda settings: cluster)
        return KafkaBoard(SETTINGS, cluster), cluster, topic

    return made


async def test_a_board_that_is_read_twice_at_once_is_not_taken_for_one_made_anew(board_of):
    board, _, topic = board_of(0.1)
    await asyncio.gather(board.get("a"), board.get("a"))
    assert len(topic.consumers) == 1  # another one would read all of it from its start
    await board.close()


async def test_a_board_that_is_deleted_is_empty_and_made_anew_by_the_next_write(board_of, monkeypatch):
    board, cluster, _ = board_of()
    assert await board.get("a") is not None
    cluster.has_board = False
    with pytest.raises(Unreachable):
        await board.get("a")  # brokers that have just started may not know it yet
    monkeypatch.setattr(board_module, "_GONE_S", 0.0)
    for _ in range(2):
        assert await board.list("") == {}
    assert not cluster.has_board  # reading creates nothing
    await board.put("status/x", b"beat")
    assert cluster.has_board
    assert await board.get("a") is not None
    await board.close()


async def test_what_was_read_of_a_deleted_board_is_let_go_of(board_of, monkeypatch):
    """Where brokers tell no topic ids, one that was made anew and has grown would be read from the middle."""
    board, cluster, topic = board_of()
    await board.get("a")
    cluster.has_board = False
    monkeypatch.setattr(board_module, "_GONE_S", 0.0)
    assert await board.list("") == {}
    assert topic.consumers[0].is_closed
    cluster.has_board, topic.topic_id = True, ""
    topic.bodies = [(b"b", b"new")] * 9
    assert "b" in await board.list("")
    await board.close()


async def test_a_board_that_is_missed_now_and_then_is_not_taken_for_a_deleted_one(board_of, clock):
    board, cluster, _ = board_of()
    clock[0] = 1.0
    await board.get("a")
    cluster.has_board = False
    for _ in range(3):
        with pytest.raises(Unreachable):
            await board.get("a")
        clock[0] += 3600.0
    with pytest.raises(Unreachable):
        await board.get("a")
    clock[0] += 6.0
    assert await board.list("") == {}
    await board.close()


async def test_a_refusal_of_a_board_that_is_just_gone_ends_nobody(board_of):
    board, cluster, _ = board_of()
    await board.get("a")
    cluster.has_board, cluster.refusal = False, AccessRefused("unknown topic or partition")
    with pytest.raises(Unreachable, match="unknown topic") as told:
        await board.get("a")
    assert "made anew" in told.value.hint
    await board.close()


@pytest.mark.parametrize("refusal", [AccessRefused("not allowed"), Unreachable("nobody answers")])
async def test_a_board_that_cannot_be_read_is_not_taken_for_a_deleted_one(board_of, refusal):
    board, cluster, _ = board_of()
    await board.get("a")
    cluster.refusal = refusal
    for _ in range(2):
        with pytest.raises(type(refusal)):
            await board.get("a")
    await board.close()


class NewCluster:
    """Three brokers, and no board yet."""

    made: dict

    async def topic(self, name):
        return None

    async def describe(self):
        return SimpleNamespace(nodes=[1, 2, 3])

    async def ensure_topic(self, name, lanes, replication, config):
        self.made = {"name": name, "lanes": lanes, "replication": replication} | config


async def test_old_heartbeats_are_compacted_away_before_they_pile_up():
    cluster = NewCluster()
    board = KafkaBoard(SETTINGS, cluster)
    await board._prepare()
    made = cluster.made
    assert (made["name"], made["lanes"], made["replication"]) == ("crossfade.control", 1, 3)
    assert (made["cleanup.policy"], made["min.insync.replicas"]) == ("compact", "2")
    # 256 lanes tell 48 KB a second: what is not compacted yet is read by every command.
    assert int(made["segment.bytes"]) <= 16 << 20
    assert int(made["segment.ms"]) <= 3_600_000
    assert int(made["min.compaction.lag.ms"]) <= 600_000
    assert float(made["min.cleanable.dirty.ratio"]) <= 0.1
    # A reader that was cut off must learn what was deleted: no less than brokers keep it by default.
    assert int(made["delete.retention.ms"]) >= 86_400_000
