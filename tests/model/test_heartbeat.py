"""A heartbeat that the board does not take ends nothing: what is copied does not hang on what is told of it."""

import asyncio
from types import SimpleNamespace

import structlog
from test_stopping import Hanging, Member
from virtual import run_virtual

from crossfade.errors import UsageError
from crossfade.relay import service as service_module
from crossfade.relay.documents import Desired
from crossfade.relay.service import RelayService


class Refusing(Hanging):
    """Its board takes no heartbeat but every third, and not the last one."""

    async def report(self, report):
        self.said.append(report)
        if len(self.said) % 3:
            raise UsageError("the document 'status/r/one' has 70000 bytes; at most 65536 fit", hint="make it smaller")


def test_a_heartbeat_that_cannot_be_stored_ends_nothing_and_is_told_once(monkeypatch):
    refusing = Refusing()
    monkeypatch.setattr(service_module, "make_report", lambda copier, at_s: type("Made", (), {"state": "copying"})())

    async def main():
        service = RelayService(refusing, Member(refusing))
        running = asyncio.ensure_future(service.run())
        await asyncio.sleep(6.5)
        assert not running.done()
        service.stop()
        await running

    with structlog.testing.capture_logs() as logs:
        run_virtual(main())
    told = [line for line in logs if line["event"] == "the heartbeat cannot be stored"]
    assert len(refusing.said) == 8
    assert len(told) == 3  # once in a row: after each that was stored
    assert told[0]["hint"] == "make it smaller"
    assert not [line for line in logs if line["event"] == "stop cut short"]


def test_wishes_that_are_gone_from_the_board_stay_in_force_and_are_told_once(monkeypatch):
    """Whoever deleted the board did not wish that a paused lane is copied."""
    board = Hanging()
    monkeypatch.setattr(service_module, "make_report", lambda copier, at_s: SimpleNamespace(state="copying"))
    wishes, alarms = [Desired(paused_lanes=[2])], []
    board.tell_alarm = alarms.append

    async def wished():
        return wishes[-1]

    board.board.desired_if_any = wished

    async def main():
        service = RelayService(board, Member(board))
        running = asyncio.ensure_future(service.run())
        await asyncio.sleep(3.5)
        assert board.desired.paused_lanes == [2]
        for _ in range(2):
            wishes.append(None)
            await asyncio.sleep(5)
            assert board.desired.paused_lanes == [2]
            assert "is gone from the board" in alarms.pop()
            assert not alarms
            wishes.append(Desired(paused_lanes=[2]))
            await asyncio.sleep(5)
        wishes.append(Desired())
        await asyncio.sleep(5)
        assert board.desired == Desired()
        wishes.append(None)
        await asyncio.sleep(5)
        service.stop()
        await running

    run_virtual(main())
    assert not alarms
