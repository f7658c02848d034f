"""What log lines say of the steps that the process has passed."""

from __future__ import annotations

import json
from collections.abc import Iterator

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
