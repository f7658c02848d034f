"""A name that the group gives to a newer process, perhaps this one itself: the heartbeats decide, in virtual time."""

import asyncio

import pytest
import structlog
from test_stopping import Hanging
from virtual import run_virtual

from crossfade.errors import Fenced, NameLost, Unreachable
from crossfade.relay import service as service_module
from crossfade.relay.documents import STOPPED, Report
from crossfade.relay.service import RelayService


class Telling(Hanging):
    """Its board keeps one heartbeat under the name, whoever's is the last."""

    def __init__(self, outages=0):
        super().__init__()
        self.process = "this one"
        self.kept = None
        self.outages = outages
        self.board.reports = self.reports

    async def report(self, report):
        self.kept = report
        await super().report(report)

    async def reports(self):
        if self.outages:
            self.outages -= 1
            raise Unreachable("no broker answers")
        return [] if self.kept is None else [self.kept]


class LosingItsName:
    """An assignment that loses its name `times` times, each after half a second; then its brokers are away."""

    def __init__(self, times, outages=0):
        self.times, self.runs, self.outages = times, 0, outages

    async def run(self, listener):
        self.runs += 1
        await asyncio.sleep(0.5)
        if self.runs <= self.times:
            raise NameLost("another process runs as instance 'one'", hint="give every process its own --instance")
        if self.runs <= self.times + self.outages:
            raise Unreachable("no broker answers")
        await asyncio.Event().wait()


def play(monkeypatch, telling, losing, wait_s, *, other=None, waits=False):
    """Run the service for `wait_s`; `other` is a process of the same name, beside it."""
    monkeypatch.setattr(
        service_module,
        "make_report",
        lambda copier, at_s: Report("one", asyncio.get_running_loop().time(), process=copier.process),
    )

    async def main():
        service = RelayService(telling, losing, waits=waits)
        running = asyncio.ensure_future(service.run())
        beside = asyncio.ensure_future(other(telling)) if other else None
        await asyncio.wait([running], timeout=wait_s)
        if beside is not None:
            beside.cancel()
        if not running.done():
            service.stop()
        await running

    with structlog.testing.capture_logs() as logs:
        run_virtual(main())
    return [line["event"] for line in logs]


def test_a_name_that_nobody_else_uses_is_taken_again(monkeypatch):
    telling, losing = Telling(), LosingItsName(times=1)
    events = play(monkeypatch, telling, losing, 20.0)
    assert losing.runs == 2
    assert "nobody else has the name: it was an own try to join, whose answer was lost" in events
    assert telling.kept.process == "this one"  # and it tells again
    assert telling.kept.state == STOPPED


def test_a_process_whose_name_another_one_has_ends_and_says_who(monkeypatch):
    async def other(telling):
        for n in range(100):
            await asyncio.sleep(0.9)
            telling.kept = Report("one", 1000.0 + n, process="pid 7 on elsewhere")

    telling, losing = Telling(), LosingItsName(times=9)
    with pytest.raises(Fenced, match="instance 'one': pid 7 on elsewhere"):
        play(monkeypatch, telling, losing, 60.0, other=other)
    assert losing.runs == 1
    assert telling.kept.process == "pid 7 on elsewhere"  # a goodbye of this one would say that the other has stopped


def test_brokers_that_are_still_away_are_waited_for(monkeypatch):
    losing = LosingItsName(times=1, outages=3)
    play(monkeypatch, Telling(), losing, 30.0)
    assert losing.runs == 5


def test_brokers_that_are_away_at_the_start_are_told(monkeypatch):
    with pytest.raises(Unreachable):
        play(monkeypatch, Telling(), LosingItsName(times=0, outages=1), 30.0)
    losing = LosingItsName(times=0, outages=3)
    play(monkeypatch, Telling(), losing, 30.0, waits=True)  # a route that was opened anew has run before
    assert losing.runs == 4


def test_a_board_that_is_slow_hides_nobody(monkeypatch):
    async def other(telling):
        for n in range(100):
            await asyncio.sleep(0.9)
            telling.kept = Report("one", 1000.0 + n, process="pid 7 on elsewhere")

    telling = Telling()
    quick = telling.board.reports

    async def slow():
        await asyncio.sleep(6.0)
        return await quick()

    telling.board.reports = slow
    with pytest.raises(Fenced, match="pid 7"):
        play(monkeypatch, telling, LosingItsName(times=1), 90.0, other=other)


@pytest.mark.parametrize("state", ["copying", STOPPED])
def test_the_last_word_of_a_process_that_is_gone_takes_no_name(monkeypatch, state):
    async def other(telling):
        await asyncio.sleep(0.55)
        telling.kept = Report("one", 1000.0, state=state, process="pid 7 on elsewhere")

    losing = LosingItsName(times=1)
    play(monkeypatch, Telling(), losing, 30.0, other=other)
    assert losing.runs == 2


def test_while_the_board_does_not_answer_nothing_is_decided(monkeypatch):
    async def other(telling):
        await asyncio.sleep(15.0)
        for n in range(100):
            await asyncio.sleep(0.9)
            telling.kept = Report("one", 1000.0 + n, process="pid 7 on elsewhere")

    losing = LosingItsName(times=1)
    with pytest.raises(Fenced, match="pid 7"):
        play(monkeypatch, Telling(outages=30), losing, 60.0, other=other)


def test_a_name_that_is_lost_again_and_again_is_given_up(monkeypatch):
    telling, losing = Telling(), LosingItsName(times=100)
    with pytest.raises(NameLost, match="6 times; no heartbeat of it was seen"):
        play(monkeypatch, telling, losing, 600.0)
    assert losing.runs == 6
    assert telling.kept.state == STOPPED
