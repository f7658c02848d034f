"""What log lines say of the steps that the process has passed, and lines that nobody takes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from crossfade import telemetry


@pytest.fixture(autouse=True)
def as_configured_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


def test_warnings_and_errors_name_the_last_step(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telemetry, "_last_step", "")
    telemetry.setup_logging(json=True)
    log = structlog.get_logger()
    log.warning("before any step")
    telemetry.step("relay.claim.before")
    telemetry.step("relay.claim.after")
    log.info("claimed")
    log.warning("claim ended")
    log.error("lane halted")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line.get("last_step") for line in lines] == [None, None, "relay.claim.after", "relay.claim.after"]


def test_lines_that_the_disk_refuses_are_left_out_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log on a full disk must not stop the copy."""
    where = tmp_path / "log"
    with where.open("w", encoding="utf-8") as file:
        full, raw = os.open("/dev/full", os.O_WRONLY), os.dup(file.fileno())
        monkeypatch.setattr("sys.stderr", file)
        telemetry.setup_logging(json=True)
        log = structlog.get_logger()
        log.info("one")
        os.dup2(full, file.fileno())
        log.warning("two")
        log.error("three", reason="x" * 20_000)
        os.dup2(raw, file.fileno())
        log.info("four")
        log.info("five")
        os.close(full)
        os.close(raw)
    lines = [json.loads(line) for line in where.read_text().splitlines()]
    assert [(line["event"], line.get("lines_left_out")) for line in lines] == [
        ("one", None),
        ("four", 2),
        ("five", None),
    ]


def test_a_log_whose_reader_has_gone_ends_nothing() -> None:
    script = (
        "import os, sys, structlog\n"
        "from crossfade import telemetry\n"
        "telemetry.setup_logging(json=False)\n"
        "structlog.get_logger().warning('nobody reads this')\n"
        "print('the end')\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=writer, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stdout) == (0, "the end\n")


class _InParts(io.RawIOBase):
    """Takes what there is room for, as a disk does that is nearly full."""

    def __init__(self) -> None:
        self.taken, self.room = b"", 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data)[: self.room]
        if not part:
            raise OSError(28, "No space left on device")
        self.taken, self.room = self.taken + part, self.room - len(part)
        return len(part)


def test_a_line_that_was_cut_off_does_not_spoil_the_next_one() -> None:
    disk = _InParts()
    log = telemetry.LineLog(io.TextIOWrapper(io.BufferedWriter(disk), encoding="utf-8"))
    disk.room = 3
    log.info("first")
    disk.room = 100
    log.info("second")
    log.info("third")
    assert disk.taken == b"fir\nsecond\nthird\n"
