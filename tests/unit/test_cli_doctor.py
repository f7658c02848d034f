"""What the doctor promises where `allow_weak: true` accepts what is wrong with a Kafka target."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from crossfade import wiring
from crossfade.brokers.kafka import verdicts
from crossfade.brokers.kafka.cluster import ConfigValue, TopicFacts
from crossfade.brokers.protocol import Finding, Level
from crossfade.cli.main import run
from crossfade.config import Config

_FILE = """\
version: 1
brokers:
  old: {kind: redis, url: "redis://127.0.0.1:1"}
  new: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:1"}}
streams:
  messages:
    old: {lanes: "m:<lane>", count: 1}
    new: {topic: t}
routes:
  forward: {id: idforward, stream: messages, source: old, target: new, allow_weak: ALLOW}
"""
_OK = Finding("x.version", Level.OK, "9.1")
_ONE = TopicFacts("t", "id", ((1,),), ((1,),), (1,), frozenset({"ALL"}))
_SETTINGS = {"min.insync.replicas": "1", "retention.ms": "-1", "message.timestamp.after.max.ms": str(1 << 62)}


def told(**more: str) -> dict[str, ConfigValue]:
    settings = _SETTINGS | {name.replace("_", "."): value for name, value in more.items()}
    return {name: ConfigValue(value, False) for name, value in settings.items()}


@dataclass
class Known:
    """An Inspector with fixed answers."""

    findings: list[Finding]
    lanes: int = 1
    oldest_s: float | None = 5.0

    async def inspect(self, role: str, retention_needed_s: float, oldest_s: float | None = None) -> list[Finding]:
        return self.findings


class NothingStarted:
    """The part of a RouteBoard that the doctor reads."""

    async def first_lanes(self) -> int:
        return 0


@dataclass
class Answers:
    old: list[Finding] = field(default_factory=lambda: [_OK])
    new: list[Finding] = field(default_factory=lambda: [_OK])


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    made = Answers()

    @asynccontextmanager
    async def open_inspectors(
        config: Config, name: str, roles: tuple[str, ...], source_lanes: int = 0
    ) -> AsyncIterator[list[tuple[str, str, Known]]]:
        ends = {"source": config.routes[name].source, "target": config.routes[name].target}
        yield [(ends[role], role, Known(getattr(made, ends[role]))) for role in roles]

    @asynccontextmanager
    async def open_board(config: Config, name: str) -> AsyncIterator[NothingStarted]:
        yield NothingStarted()

    monkeypatch.setattr(wiring, "open_inspectors", open_inspectors)
    monkeypatch.setattr(wiring, "open_board", open_board)
    monkeypatch.chdir(tmp_path)
    return made


def doctor(capsys: pytest.CaptureFixture[str], *, allow_weak: bool) -> tuple[int, str]:
    Path("crossfade.yaml").write_text(_FILE.replace("ALLOW", str(allow_weak).lower()))
    code = run(["doctor", "forward"])
    return code, capsys.readouterr().out


def test_an_accepted_weakness_warns_and_weakens_the_guarantee(
    answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    answers.new = verdicts.topic_findings("target", _ONE, told(), 1.0, 1.0)
    code, shown = doctor(capsys, allow_weak=False)
    assert code == 3
    assert "guarantee: none as things are: new kafka.replication, new kafka.min-insync-replicas failed" in shown
    code, shown = doctor(capsys, allow_weak=True)
    assert code == 0
    assert "WARN     kafka.replication          t has 1 replica\n" in shown
    assert "FAIL" not in shown
    weak = "exactly once while no broker is lost (t has 1 replica; t: min.insync.replicas=1 of 1)"
    assert shown.rstrip().endswith(f"guarantee: {weak}")


def test_what_could_not_be_asked_is_said_beside_a_weakness(
    answers: Answers, capsys: pytest.CaptureFixture[str]
) -> None:
    answers.new = verdicts.topic_findings("target", _ONE, None, 1.0, 1.0)
    code, shown = doctor(capsys, allow_weak=True)
    assert code == 0
    weak = "exactly once while no broker is lost (t has 1 replica)"
    assert f"{weak}; not proven, because it could not be asked: new kafka.topic-config" in shown


def test_kafkas_own_topics_are_accepted_with_the_rest(answers: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    answers.new = verdicts.internal_findings("__consumer_offsets", "kafka.offsets-topic", _ONE, told())
    assert doctor(capsys, allow_weak=False)[0] == 3
    code, shown = doctor(capsys, allow_weak=True)
    assert code == 0
    assert "exactly once while no broker is lost (__consumer_offsets has 1 replica)" in shown


def test_no_other_failure_is_accepted(answers: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    answers.new = verdicts.topic_findings("target", _ONE, told(retention_ms="1000"), 3600.0, 7200.0)
    code, shown = doctor(capsys, allow_weak=True)
    assert code == 3
    assert "guarantee: none as things are: new kafka.retention failed" in shown


def test_a_fit_topic_keeps_the_whole_guarantee(answers: Answers, capsys: pytest.CaptureFixture[str]) -> None:
    three = TopicFacts("t", "id", ((1, 2, 3),), ((1, 2, 3),), (1,), frozenset({"ALL"}))
    answers.new = verdicts.topic_findings("target", three, told(min_insync_replicas="2"), 1.0, 1.0)
    code, shown = doctor(capsys, allow_weak=True)
    assert code == 0
    assert "guarantee: exactly once, in order per lane" in shown
