"""The arithmetic of losses against a small model of a Redis stream that knows what really happened.

The model does what the server does with its counters; the truth is kept beside it. Whatever the counters look like,
a verdict without error may never be given at the end of a lane while a record that was never read is gone.
"""

import copy

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from crossfade.brokers.redis.reckoning import Fault, Look, judge, witness_text
from crossfade.model.position import Place


def id_text(number):
    return f"{number}-0"


class Server:
    """One stream key, with what really happened beside what the server knows."""

    def __init__(self):
        self.history = 0
        self.births = 0
        self.snapshots = []
        self.wipe()

    def wipe(self):
        self.exists = False
        self.entries = []  # (id, uid)
        self.added = self.last = self.max_deleted = 0
        self.birth = ""
        self.vouched = 0
        #: uids ever added in this history of this key, in order
        self.truth = []
        #: their ids
        self.numbers = {}

    def state(self):
        return copy.deepcopy({name: value for name, value in vars(self).items() if name not in ("snapshots", "births")})

    def snapshot(self):
        self.snapshots = [*self.snapshots[-5:], self.state()]

    def add(self, uid, number):
        self.exists = True
        self.last = max(number, self.last + 1)
        self.entries.append((self.last, uid))
        self.truth.append(uid)
        self.numbers[uid] = self.last
        self.added += 1

    def trim(self, keep):
        self.entries = self.entries[len(self.entries) - keep :] if keep else []

    def delete(self, index):
        if self.entries:
            number, _ = self.entries.pop(index % len(self.entries))
            self.max_deleted = max(self.max_deleted, number)

    def give_birth(self):
        if not self.birth:
            self.exists = True
            self.births += 1
            self.birth, self.vouched = f"crossfade.{self.births}", self.last

    def fail_over(self, back, fresh_history):
        if self.snapshots:
            state = copy.deepcopy(self.snapshots[-1 - back % len(self.snapshots)])
            vars(self).update(state)
            self.snapshots = []
        self.history = fresh_history

    def look(self, place, count):
        if not self.exists:
            return Look(exists=False, history=str(self.history)), []
        own = int(place.position.partition("-")[0]) if place.position else -1
        window = [entry for entry in self.entries if entry[0] >= own][: count + 1]
        at_end = len(window) < count + 1
        has_own = bool(window) and window[0][0] == own
        witness = str(window[0][1]) if has_own else ""
        rows = window[1:] if has_own else window[:count]
        look = Look(
            exists=True,
            births={self.birth: id_text(self.vouched)} if self.birth else {},
            added=self.added,
            length=len(self.entries),
            last=id_text(self.last),
            max_deleted=id_text(self.max_deleted),
            first=id_text(self.entries[0][0]) if self.entries else "",
            history=f"h{self.history}",
        )
        return look.with_read(has_own=has_own, witness=witness, rows=len(rows), at_end=at_end), rows


class Reader:
    """A relay that copies everything at once, as `source` does."""

    def __init__(self, server, *, start, counts_deleted):
        server.give_birth()
        #: what is deleted up to this id is not seen
        self.blind_until = 0
        self.counts_deleted = counts_deleted
        self.forgiven = 0
        if start != "earliest" and server.entries:
            number, uid = server.entries[-1 if start == "latest" else len(server.entries) // 3]
            is_last = number == server.entries[-1][0]
            count = server.added if is_last else -1
            look, _ = server.look(Place(), 0)
            self.place = Place(id_text(number), count, server.birth, witness_text(str(uid), look, count))
            self.blind_until = 0 if is_last else server.max_deleted
            self.copied = [uid for uid in server.truth if server.numbers[uid] <= number]
        else:
            self.place = Place("", server.added - len(server.entries), server.birth)
            gone = set(server.truth) - {uid for _, uid in server.entries}
            self.copied = [uid for uid in server.truth if uid in gone]
        self.vouching = self.place

    def read(self, server, count):
        """(verdict, whether the end was seen)."""
        look, rows = server.look(self.place, count)
        verdict = judge(self.place, look, counts_deleted=self.counts_deleted)
        if verdict.fault is None:
            self.forgiven += verdict.forgiven_records
            self.copied += [uid for _, uid in rows]
            place = self.place
            if rows:
                number, uid = rows[-1]
                self.place = Place(
                    id_text(number),
                    verdict.count,
                    place.incarnation,
                    witness_text(str(uid), look, verdict.count),
                )
            else:
                self.place = Place(place.position, verdict.count, place.incarnation, place.witness)
        return verdict, look.at_end

    def vouch(self, server):
        """XGROUP SETID on the birth group, one round behind."""
        if server.birth == self.vouching.incarnation and self.vouching.position:
            server.vouched = int(self.vouching.position.partition("-")[0])
        self.vouching = self.place


def run(program, *, start, counts_deleted=False):
    """Play a program of operations; returns the verdict that halted the reader, or None."""
    server, reader, uid, clock, fresh = Server(), None, 0, 0, 0
    for operation, number in program:
        if operation == "start":
            if reader is None:
                reader = Reader(server, start=start, counts_deleted=counts_deleted)
        elif operation == "read":
            if reader is not None:
                verdict, at_end = reader.read(server, number)
                if verdict.fault is not None:
                    event(f"halted: {verdict.fault.value}")
                    return verdict
                if at_end:
                    seen = (uid for uid in server.truth if server.numbers[uid] > reader.blind_until)
                    missing = set(seen) - set(reader.copied)
                    assert len(missing) <= reader.forgiven, f"{missing} are gone and nothing was said"
                    event("an end was fine")
        else:
            server.snapshot()
            if operation == "add":
                for _ in range(number):
                    uid, clock = uid + 1, clock + 1
                    server.add(uid, clock)
            elif operation == "add_again":  # ids are given by the application: after a failover they repeat
                uid += 1
                server.add(uid, server.last + 1)
            elif operation == "trim":
                server.trim(min(number, len(server.entries)))
            elif operation == "delete":
                server.delete(number)
            elif operation == "wipe":
                server.wipe()
            elif operation == "fail_over":
                fresh += 1
                server.fail_over(number, fresh)
            elif operation == "restart":
                fresh += 1
                server.history = fresh
            elif operation == "vouch" and reader is not None:
                reader.vouch(server)
    return None


def programs(*operations):
    steps = [st.tuples(st.just(name), st.integers(low, high)) for name, low, high in operations]
    return st.lists(st.one_of(steps), min_size=3, max_size=24).map(
        lambda steps: [("add", 8), ("start", 0), ("read", 2), *steps, ("read", 50)]
    )


STARTS = st.sampled_from(["earliest", "latest", "inside"])
ADD, READ, TRIM = ("add", 1, 5), ("read", 1, 6), ("trim", 0, 4)
DELETE, WIPE, VOUCH = ("delete", 0, 9), ("wipe", 0, 0), ("vouch", 0, 0)
FAIL_OVER, RESTART, ADD_AGAIN = ("fail_over", 0, 4), ("restart", 0, 0), ("add_again", 0, 0)

relaxed = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@relaxed
@given(programs(ADD, READ, READ, TRIM, DELETE, WIPE, VOUCH, FAIL_OVER, RESTART, ADD_AGAIN), STARTS)
def test_nothing_is_ever_lost_in_silence(program, start):
    run(program, start=start)


@relaxed
@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 3), st.booleans()),
    st.lists(st.one_of([st.tuples(st.just(n), st.integers(a, b)) for n, a, b in (ADD, TRIM, DELETE, ADD_AGAIN)])),
)
def test_a_failover_hides_nothing(before, damage):
    """The counters of the new history may add up by chance: as many entries undone as trimmed or deleted later."""
    first, second, back, is_vouched = before
    program = [("add", first), ("start", 0), ("read", 50), ("add", second), ("read", 50)]
    program += [("vouch", 0), ("vouch", 0)] if is_vouched else []
    run([*program, ("fail_over", back), *damage, ("read", 50)], start="earliest")


@relaxed
@given(programs(ADD, ADD, READ, READ, TRIM, DELETE), st.sampled_from(["earliest", "latest"]))
def test_under_policy_count_what_is_gone_is_counted(program, start):
    run(program, start=start, counts_deleted=True)


@relaxed
@given(programs(ADD, READ, VOUCH, RESTART), STARTS)
def test_a_stream_that_is_only_written_never_halts(program, start):
    assert run(program, start=start) is None


@relaxed
@given(programs(ADD, READ), st.lists(st.integers(0, 20), max_size=4))
def test_what_was_deleted_before_a_start_never_halts(program, deleted):
    damage = [("add", 8), *(("delete", index) for index in deleted)]
    assert run([*damage, *program], start="inside") is None


@relaxed
@given(programs(ADD, READ, VOUCH), STARTS, st.integers(1, 5))
def test_trimming_behind_a_reader_that_is_at_the_end_never_halts(program, start, keep):
    trimmed = [step for operation in program for step in (operation, ("read", 50), ("trim", keep))]
    assert run(trimmed, start=start) is None


# one sentence each: what must be said, and how many are gone


def place_at(number, count, *, history="h0", uid=None):
    known = Look(exists=True, history=history)
    return Place(id_text(number), count, "crossfade.1", witness_text(str(number if uid is None else uid), known, count))


def look_at(first, last, added, **more):
    """A key that holds `first` .. `last` without holes, of `added` entries ever added."""
    length = last - first + 1 if first else 0
    values = {
        "exists": True,
        "births": {"crossfade.1": "0-0"},
        "added": added,
        "length": length,
        "last": id_text(last),
        "first": id_text(first) if first else "",
        "history": "h0",
    }
    return Look(**(values | more))


@pytest.mark.parametrize(
    ("place", "look", "fault", "lost"),
    [
        # trimmed behind, up to, and past the place
        (place_at(10, 10), look_at(5, 20, 20, has_own=True, witness="10", rows=10), None, -1),
        (place_at(10, 10), look_at(11, 20, 20, rows=10), None, -1),
        (place_at(10, 10), look_at(14, 20, 20, rows=7), Fault.TRIMMED, 3),
        (place_at(10, 10), look_at(0, 20, 20, rows=0), Fault.TRIMMED, 10),
        (place_at(10, 10), look_at(14, 20, 20, rows=2, at_end=False), Fault.TRIMMED, 3),
        # one deleted behind the place
        (place_at(10, 10), look_at(5, 20, 21, has_own=True, witness="10", rows=10), Fault.DELETED, 1),
        # the place's own entry deleted after it was copied
        (place_at(10, 10), look_at(5, 20, 20, max_deleted=id_text(10), length=15, rows=10), None, -1),
        # re-created: marker at 100, 200 new entries, 150 left (attack 6)
        (place_at(100, 100), look_at(151, 300, 200, births={}, rows=150), Fault.RESET, -1),
        (place_at(100, 100), Look(exists=False), Fault.RESET, -1),
        # the group alone is gone: the place's own entry stands and the counters go on
        (place_at(10, 10), look_at(5, 20, 20, births={}, has_own=True, witness="10", rows=10), Fault.ORPHANED, -1),
        (place_at(10, -1), look_at(5, 20, 20, births={}, has_own=True, witness="10", rows=10), Fault.ORPHANED, -1),
        (place_at(10, 10), look_at(5, 20, 22, births={}, has_own=True, witness="10", rows=10), Fault.ORPHANED, -1),
        # made anew with the same ids: another entry, no digest to compare, counters that went back
        (place_at(10, 10), look_at(5, 20, 20, births={}, has_own=True, witness="other", rows=10), Fault.RESET, -1),
        (place_at(10, 10, uid=""), look_at(5, 20, 20, births={}, has_own=True, rows=10), Fault.RESET, -1),
        (place_at(10, 10), look_at(5, 20, 16, births={}, has_own=True, witness="10", rows=10), Fault.RESET, -1),
        (place_at(10, 10), look_at(5, 20, 9, births={}, has_own=True, witness="10", at_end=False), Fault.RESET, -1),
        # a failover that lost what was read
        (place_at(10, 10), look_at(1, 8, 8, rows=0), Fault.REGRESSED, -1),
        (place_at(10, 10), look_at(0, 8, 10, rows=0), Fault.REGRESSED, -1),
        (place_at(10, 10, history=""), look_at(1, 20, 20, history="", length=18, rows=10), Fault.REGRESSED, -1),
        (place_at(10, 10), look_at(1, 20, 20, has_own=True, witness="other", rows=10), Fault.REGRESSED, -1),
        (place_at(10, 10), look_at(1, 20, 18, history="h1", length=18, rows=10), Fault.REGRESSED, -1),
        # history changed and nothing vouches for the place; then the birth group does
        (place_at(10, 10), look_at(11, 20, 20, history="h1", rows=10), Fault.REGRESSED, -1),
        (place_at(10, 10), look_at(11, 20, 20, history="h1", births={"crossfade.1": id_text(10)}, rows=10), None, -1),
        (
            place_at(10, 10),
            look_at(11, 20, 20, history="h1", births={"crossfade.1": id_text(12)}, rows=10),
            Fault.REGRESSED,
            -1,
        ),
        # what another route's group says of its own place is nothing to this one
        (
            place_at(10, 10),
            look_at(11, 20, 20, history="h1", births={"crossfade.0": id_text(10), "crossfade.1": "0-0"}, rows=10),
            Fault.REGRESSED,
            -1,
        ),
        (
            place_at(10, 10),
            look_at(11, 20, 20, history="h1", births={"crossfade.0": "0-0", "crossfade.1": id_text(10)}, rows=10),
            None,
            -1,
        ),
        # counters rewritten
        (place_at(10, 10), look_at(11, 20, 15, rows=10), Fault.REGRESSED, -1),
        # something else was put in its place
        (place_at(10, 10), Look(exists=True, is_stream=False), Fault.REPLACED, -1),
        (Place("", 0, ""), Look(exists=True, is_stream=False), Fault.REPLACED, -1),
        # never existed
        (Place("", 0, ""), Look(exists=False), None, -1),
    ],
)
def test_verdicts(place, look, fault, lost):
    verdict = judge(place, look, counts_deleted=False)
    assert (verdict.fault, verdict.lost_records) == (fault, lost)
    assert bool(verdict.why) == (fault is not None)


@pytest.mark.parametrize(
    ("place", "look", "names"),
    [
        (place_at(10, 10), look_at(1, 8, 8, rows=0), True),
        (place_at(10, 10), look_at(11, 20, 15, rows=10), True),
        # such a lane goes on from its beginning
        (Place("", 10, "crossfade.1"), look_at(1, 8, 8, rows=8), False),
    ],
)
def test_a_server_that_went_back_names_what_an_accepted_loss_passes_over(place, look, names):
    verdict = judge(place, look, counts_deleted=False)
    assert verdict.fault is Fault.REGRESSED
    assert ("written since with ids up to 10-0" in verdict.why) is names


def test_trimmed_beside_a_deletion_is_counted_as_deleted():
    """No counter says how much of what is gone was deleted, and how much trimmed."""
    look = look_at(901, 1000, 1000, rows=100, max_deleted=id_text(990))
    verdict = judge(place_at(100, 100), look, counts_deleted=True)
    assert (verdict.fault, verdict.forgiven_records, verdict.count) == (None, 800, 1000)
    halted = judge(place_at(100, 100), look, counts_deleted=False)
    assert (halted.fault, halted.lost_records) == (Fault.DELETED, 800)
    assert "deleted or trimmed" in halted.why


def test_an_unknown_count_becomes_known_at_the_end():
    start = Place(id_text(10), -1, "crossfade.1", "10.h0")
    midway = judge(start, look_at(1, 20, 25, has_own=True, witness="10", rows=3, at_end=False), counts_deleted=False)
    assert (midway.fault, midway.count) == (None, -1)
    at_end = judge(start, look_at(1, 20, 25, has_own=True, witness="10", rows=10), counts_deleted=False)
    assert (at_end.fault, at_end.count) == (None, 25)
    gone = judge(start, look_at(15, 20, 25, rows=6), counts_deleted=False)
    assert (gone.fault, gone.lost_records) == (Fault.TRIMMED, -1)


@pytest.mark.parametrize(
    ("witness", "max_deleted", "fault"),
    [
        ("5.h0.", 5, None),  # what was copied may go
        ("5.h0.", 6, Fault.DELETED),
        ("5.h0.7-0", 7, None),  # it was gone when the place was made
        ("5.h0.7-0", 8, Fault.DELETED),
        ("5.h0.3-0", 4, None),
        ("5..7-0", 8, Fault.DELETED),  # INFO is not allowed
        ("5.h0", 8, None),  # places of earlier releases do not say; nor do those that were found in the data
        ("", 8, None),
    ],
)
def test_while_the_count_is_unknown_the_highest_deleted_id_tells(witness, max_deleted, fault):
    place = Place("5-0", -1, "crossfade.1", witness)
    gone = look_at(1, 9, 10, length=7, has_own=True, witness="5", rows=3, max_deleted=id_text(max_deleted))
    verdict = judge(place, gone, counts_deleted=False)
    assert (verdict.fault, verdict.lost_records) == (fault, -1)
    assert judge(place, gone, counts_deleted=True).fault is None


def test_policy_count_forgives_deletions_but_not_trimming():
    place = place_at(10, 10)
    deleted = look_at(5, 20, 23, has_own=True, witness="10", rows=10, max_deleted=id_text(15))
    verdict = judge(place, deleted, counts_deleted=True)
    assert (verdict.fault, verdict.forgiven_records, verdict.count) == (None, 3, 23)
    trimmed = judge(place, look_at(14, 20, 20, rows=7), counts_deleted=True)
    assert (trimmed.fault, trimmed.lost_records) == (Fault.TRIMMED, 3)
