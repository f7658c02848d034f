"""The end of a relay that was asked to stop has one deadline, in virtual time, whatever hangs; and it says what did."""

import asyncio
from types import SimpleNamespace

import pytest
import structlog
from virtual import run_virtual

from crossfade.errors import Fenced
from crossfade.relay import service as service_module
from crossfade.relay.documents import Desired
from crossfade.relay.service import RelayService

#: five seconds are promised for the process; what comes behind the service takes some of them
LIMIT_S = 4.0


class Hanging:
    """A copier and a board of which those in `what` never answer; `stubborn` ones swallow being cancelled."""

    def __init__(self, *what, stubborn=False):
        self.what, self.stubborn = set(what), stubborn
        self.said = []
        self.left = False
        self.lanes = {}
        self.records_total = 7
        self.instance = "one"
        self.route = SimpleNamespace(name="copy")
        self.limits = SimpleNamespace(discover_s=60.0)
        self.has_new_lanes = asyncio.Event()
        self.desired = Desired()
        self.board = SimpleNamespace(report=self.report, desired_if_any=self.wished)
        self._stop = asyncio.Event()

    async def answer(self, name):
        while name in self.what:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if not self.stubborn or not self.what:
                    raise
        await asyncio.sleep(0.01)

    def stop(self):
        self._stop.set()

    async def run(self, listener=None):
        if listener is None:  # as a copier
            await self._stop.wait()
            await self.answer("append")

    async def report(self, report):
        await self.answer("heartbeat")
        self.said.append(report.state)

    async def wished(self):
        await self.answer("board")

    async def obey(self, desired):
        self.desired = desired

    async def note_owned(self):
        pass


class Member:
    def __init__(self, hanging, error=None):
        self.hanging, self.error = hanging, error

    async def run(self, listener):
        try:
            await asyncio.sleep(1.5)
            if self.error is not None:
                raise self.error
            await asyncio.Event().wait()
        finally:
            await self.hanging.answer("leave")
            self.hanging.left = True


def stop(hanging, monkeypatch, error=None):
    """(what it took from `stop()` to the end, the warnings) in virtual time."""
    monkeypatch.setattr(
        service_module, "make_report", lambda copier, at_s: SimpleNamespace(state="copying"), raising=True
    )
    took = []

    async def main():
        service = RelayService(hanging, Member(hanging, error))
        running = asyncio.ensure_future(service.run())
        await asyncio.sleep(1.2)
        began_s = asyncio.get_running_loop().time()
        service.stop()
        done, _ = await asyncio.wait([running], timeout=300)
        took.append(asyncio.get_running_loop().time() - began_s)
        hanging.what.clear()  # lets the loop close
        assert done, "it goes on for ever"
        await running

    with structlog.testing.capture_logs() as logs:
        run_virtual(main())
    return took[0], {name for line in logs if line["event"] == "stop cut short" for name in line["unfinished"]}


def test_nothing_hangs(monkeypatch):
    hanging = Hanging()
    took_s, unfinished = stop(hanging, monkeypatch)
    assert took_s < 0.1
    assert unfinished == set()
    assert hanging.left
    assert hanging.said[-1] == "stopped"


@pytest.mark.parametrize("stubborn", [False, True])
@pytest.mark.parametrize(
    ("what", "named"),
    [
        (["append"], {"read or append under way"}),
        (["leave"], {"leaving the group"}),
        (["heartbeat"], {"last heartbeat"}),
        (["append", "leave", "heartbeat"], {"read or append under way", "leaving the group", "last heartbeat"}),
    ],
)
def test_the_deadline_holds_whatever_hangs(monkeypatch, what, named, stubborn):
    hanging = Hanging(*what, stubborn=stubborn)
    took_s, unfinished = stop(hanging, monkeypatch)
    assert took_s <= LIMIT_S + 0.01
    assert named <= unfinished
    if "heartbeat" not in what and what != ["leave"]:
        assert hanging.said[-1] == "stopped"


def test_what_ends_the_process_while_it_stops_is_its_error(monkeypatch):
    hanging = Hanging("append")
    with pytest.raises(Fenced, match="another"):
        stop(hanging, monkeypatch, Fenced("another process took the name"))
