"""What a process that audits a part of the lanes is told: the configuration that its parent has read."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from crossfade import wiring
from crossfade.cli import verify_parts, verify_run
from crossfade.cli.output import Output
from crossfade.cli.verify_parts import Part, audit_part, packed, unpacked
from crossfade.cli.verify_scope import Scope
from crossfade.config import Config
from crossfade.errors import CrossfadeError
from crossfade.verify.report import AuditReport

CONFIG = """\
version: 1
brokers:
  old: {kind: redis, url: "redis://127.0.0.1:1", username: app, password: "${env:PARTS_PASSWORD}"}
  new: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:1", sasl.password: "${file:password}"}}
streams:
  messages:
    old: {lanes: "msg:stream:<lane>", count: 16}
    new: {topic: messages.v1}
    mapping: lossless
    from: {time: 2026-01-31T12:00:00Z}
routes:
  forward: {id: idforward, stream: messages, source: old, target: new}
"""


@pytest.fixture(name="config")
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARTS_PASSWORD", "from-the-environment")
    Path("password").write_text("from-a-file")
    Path("crossfade.yaml").write_text(CONFIG)
    return Output(config_path=Path("crossfade.yaml")).config()


async def test_a_part_is_audited_with_what_the_parent_has_read(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Config] = []

    @asynccontextmanager
    async def open_route(config: Config, name: str, **_: object) -> AsyncIterator[None]:
        used.append(config)
        yield None

    async def audit_opened(*_: object) -> None:
        return None

    monkeypatch.setattr(wiring, "open_route", open_route)
    monkeypatch.setattr(verify_run, "audit_opened", audit_opened)
    data = packed(Part(config, "forward", [1], 2, Scope(), None, is_kept=False))
    Path("crossfade.yaml").write_text(CONFIG.replace("messages.v1", "messages.v2"))
    await audit_part(unpacked(data), io.BytesIO())
    assert used == [config]


def test_passwords_of_elsewhere_stay_there(config: Config) -> None:
    data = packed(Part(config, "forward", [1], 2, Scope(), None, is_kept=False))
    assert b"from-the-environment" not in data
    assert b"from-a-file" not in data
    made = unpacked(data).config.brokers
    assert made["old"].password.get() == "from-the-environment"  # type: ignore[union-attr]
    os.environ["PARTS_PASSWORD"] = "another"  # a secret is read anew each time that it is asked for
    assert made["old"].password.get() == "another"  # type: ignore[union-attr]
    assert made["new"].plain_properties()["sasl.password"] == "from-a-file"  # type: ignore[union-attr]


async def test_a_child_needs_no_configuration_file(config: Config) -> None:
    part = Part(config, "forward", [1], 2, Scope(), None, is_kept=False)
    Path("crossfade.yaml").unlink()
    Path("password").unlink()  # it reads this one itself, when it connects
    with pytest.raises(CrossfadeError, match="cannot read password: No such file"):
        await verify_parts._audit_there(part, [verify_parts._Told(), verify_parts._Told()], 1)


class Child:
    """A process that has said these things."""

    def __init__(self, *messages: tuple[str, object]) -> None:
        pipe = io.BytesIO()
        for kind, body in messages:
            verify_parts._send(pipe, kind, body)
        self.stdout = asyncio.StreamReader()
        self.stdout.feed_data(pipe.getvalue())
        self.stdout.feed_eof()
        self.stdin = self

    def write(self, data: bytes) -> None:
        assert unpacked(data).lanes == [1]

    def close(self) -> None: ...

    def kill(self) -> None: ...

    async def wait(self) -> None: ...


async def test_what_a_part_told_of_its_lanes_is_kept_until_it_tells_more(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = verify_parts._Told
    child = Child(
        ("progress", told(records=5, lanes={"1": {"matched": 5}})),
        ("progress", told(records=9)),
        ("report", AuditReport("a", "b", {})),
    )

    async def start(*_: object, **__: object) -> Child:
        return child

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    heard = [told(), told()]
    await verify_parts._audit_there(Part(config, "forward", [1], 2, Scope(), None, is_kept=True), heard, 1)
    assert (heard[1].records, heard[1].lanes) == (9, {"1": {"matched": 5}})
