"""SIGTERM while a relay is still opening its routes: a real process, whose brokers never answer."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

_SCRIPT = """\
import asyncio, contextlib, signal, sys, types

signal.signal(signal.SIGHUP, signal.{hangup})  # or the tests' own nohup would be inherited
from crossfade.cli import relay
from crossfade.cli.relay_stop import Ending
from crossfade.telemetry import setup_logging

setup_logging(json=True)
told = []

class Fleet:
    names = ["forward"]
    copiers, metrics = [], None

    async def open(self):
        print("opening", flush=True)
        {open}

    def stop(self):
        told.append("stop")

    async def run(self):
        told.append("run")

    async def close(self):
        told.append("close")

ending = Ending()
relay._run(relay._serve(Fleet(), 0, 0, ending))
ending.finish()
print(*told)
"""


@pytest.mark.parametrize(
    "opening",
    [
        "await asyncio.Event().wait()",
        # what does not let itself be cancelled, or makes another error of it
        "with contextlib.suppress(asyncio.CancelledError): await asyncio.Event().wait()",
        "\n        ".join(["try: await asyncio.Event().wait()", "finally: raise ValueError"]),
    ],
    ids=["waits", "ends well", "fails"],
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_relay_that_is_opening_its_routes_can_be_stopped(opening: str, number: signal.Signals) -> None:
    script = _SCRIPT.format(open=opening, hangup="SIG_DFL")
    relay = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert relay.stdout is not None
    assert relay.stdout.readline() == "opening\n"
    began_s = time.monotonic()
    relay.send_signal(number)
    out, err = relay.communicate(timeout=60)
    assert (relay.returncode, out, err) == (0, "stop close\n", "")
    assert time.monotonic() - began_s < 4.0


def test_a_relay_that_was_started_with_nohup_outlives_its_terminal() -> None:
    script = _SCRIPT.format(open="await asyncio.Event().wait()", hangup="SIG_IGN")
    relay = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert relay.stdout is not None
    assert relay.stdout.readline() == "opening\n"
    relay.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        relay.wait(1.0)
    relay.send_signal(signal.SIGTERM)
    out, err = relay.communicate(timeout=60)
    assert (relay.returncode, out, err) == (0, "stop close\n", "")
