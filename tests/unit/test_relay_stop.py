"""The deadline of a relay process that was asked to stop: real processes, in which something hangs for ever."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

_SCRIPT = """\
import asyncio, sys, threading, time
from crossfade.cli.relay_stop import Ending
from crossfade.errors import Fenced
from crossfade.telemetry import setup_logging

setup_logging(json=True)
print("the output", end="")
ending = Ending({stop_s})

async def main():
    {body}

asyncio.run(main())
ending.finish()
print("the end")
"""


def _play(body: str, *, stop_s: float = 0.3) -> tuple[int, str, str, float]:
    """(exit code, stdout, stderr, seconds) of a process with this body."""
    began_s = time.monotonic()
    script = _SCRIPT.format(body=body.replace("\n", "\n    "), stop_s=stop_s)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout, done.stderr, time.monotonic() - began_s


@pytest.mark.parametrize(
    "body",
    [
        "ending.begin(); await asyncio.Event().wait()",
        "ending.begin(); time.sleep(40)",
        # what asyncio.run itself waits for: a thread of to_thread
        "asyncio.create_task(asyncio.to_thread(time.sleep, 40)); await asyncio.sleep(0.1); ending.begin()",
        # and what the interpreter waits for
        "threading.Thread(target=time.sleep, args=(40,)).start(); ending.begin()",
    ],
    ids=["task", "loop", "to_thread", "thread"],
)
def test_the_process_ends_at_the_deadline_and_says_what_was_not_finished(body: str) -> None:
    code, out, err, took_s = _play(body)
    assert code == 0, err
    assert took_s < 20
    assert out.startswith("the output")
    assert '"stop cut off"' in err
    assert '"unfinished"' in err
    assert "nothing is lost" in err


def test_a_log_that_nobody_reads_does_not_hold_up_the_end() -> None:
    began_s = time.monotonic()
    body = "ending.begin(); sys.stderr.write('x' * 1_000_000)"
    script = _SCRIPT.format(body=body, stop_s=0.3)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
    assert time.monotonic() - began_s < 20


def test_the_exit_code_of_an_error_stays() -> None:
    code, _, err, _ = _play("ending.begin(); ending.failed(Fenced('taken over')); time.sleep(40)")
    assert code == 5
    assert "taken over" in err


def test_a_handle_that_is_stuck_in_its_broker_does_not_hold_up_the_end() -> None:
    stuck = "threading.Thread(target=time.sleep, args=(40,), name='kafka-x').start(); ending.begin()"
    code, out, err, took_s = _play(stuck, stop_s=30)
    assert (code, out, took_s < 20) == (0, "the output", True), err
    assert "stop cut off" not in err


def test_without_a_signal_there_is_no_deadline() -> None:
    code, out, err, _ = _play("await asyncio.sleep(0.6)")
    assert (code, out, err) == (0, "the outputthe end\n", "")
