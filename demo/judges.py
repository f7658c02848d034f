"""Three judges who share no code decide whether a copy was right; all of them must agree.

`crossfade verify` is the product's own auditor. The oracle (tests/oracle) reads with other client libraries and knows
nothing of the product. The history check knows what the workload sent. Each runs as a process of its own and answers
with counts and with the damaged records by name.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .children import ROOT, crossfade_command
from .stage import Stage

KINDS = ("lost", "duplicated", "reordered", "altered", "invented")
#: a judge that needs longer than this for the records of one run is stuck
_LIMIT_S = 180
_NAMED_MAX = 5


@dataclass
class Verdict:
    """What one judge says of one direction."""

    judge: str
    ok: bool = False
    records: int = 0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    #: damaged records by name: lane, position, id
    named: list[str] = field(default_factory=list)
    #: why there is no verdict
    error: str = ""
    seconds: float = 0.0

    def problems(self) -> list[str]:
        """What speaks against the copy, in sentences."""
        if self.error:
            return [self.error]
        found = [f"{count} {kind}" for kind, count in self.counts.items() if count]
        if not found and not self.ok:
            found = ["the copy is not right"]
        return found

    def as_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "records": self.records,
            **self.counts,
            "named": self.named,
            "error": self.error,
            "seconds": round(self.seconds, 1),
        }


def judge_all(
    stage: Stage, directions: Sequence[tuple[str, str]], history: Path, records_min: int
) -> list[list[Verdict]]:
    """All judges on each (direction, route); directions are "r2k" and "k2r". Two run at a time.

    When it is interrupted the judges at work are killed.
    """
    court = _Court(stage)
    with ThreadPoolExecutor(2) as pool:
        futures = [
            [
                pool.submit(_timed, _verify, court, route),
                pool.submit(_timed, _oracle, court, direction, records_min),
                pool.submit(_timed, _history, court, direction, history),
            ]
            for direction, route in directions
        ]
        try:
            return [[future.result() for future in row] for row in futures]
        except BaseException:  # Ctrl-C too: no judge goes on alone
            court.dismiss()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _timed(judge: Callable[..., Verdict], *arguments: object) -> Verdict:
    started = time.monotonic()
    verdict = judge(*arguments)
    verdict.seconds = time.monotonic() - started
    return verdict


class _Court:
    """Runs judges as processes and knows which are at work."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._at_work: set[subprocess.Popen[str]] = set()
        self._is_dismissed = False
        self._lock = threading.Lock()

    def dismiss(self) -> None:
        """Kill those at work and let no other begin."""
        with self._lock:
            self._is_dismissed = True
            for process in self._at_work:
                process.kill()

    def hear(self, judge: str, subject: str, argv: list[str]) -> tuple[int, dict[str, Any], str]:
        """Exit code, JSON from stdout, and the last words from stderr."""
        with self._lock:
            if self._is_dismissed:
                return -1, {}, "dismissed"
            process = subprocess.Popen(
                argv,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=self.stage.child_env(),
                start_new_session=True,
            )
            self._at_work.add(process)
        try:
            out, words = process.communicate(timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return -1, {}, f"no answer after {_LIMIT_S} s"
        finally:
            with self._lock:
                self._at_work.discard(process)
        log = self.stage.logs / f"{judge}-{subject}.log"
        log.write_text(f"$ {' '.join(argv)}\n{out}\n{words}\nexit {process.returncode}\n")
        try:
            document = json.loads(out)
        except ValueError:
            document = {}
        lines = words.strip().splitlines()
        return process.returncode, document if isinstance(document, dict) else {}, lines[-1] if lines else ""


def _verify(court: _Court, route: str) -> Verdict:
    argv = [*crossfade_command(), "-c", str(court.stage.config), "verify", route]
    argv += ["--settled", "--complete", "-o", "json"]
    return _from_verify(*court.hear("verify", route, argv))


def _oracle(court: _Court, direction: str, records_min: int) -> Verdict:
    argv = [sys.executable, "-m", "tests.oracle", *_sides(court.stage, direction), "-o", "json"]
    code, document, words = court.hear("oracle", direction, [*argv, "--records-min", str(records_min)])
    verdict = Verdict("oracle", code == 0, document.get("records", 0))
    if code not in (0, 1) or "ok" not in document:
        verdict.error = f"gave no verdict (exit {code}): {words}"
        return verdict
    for kind in KINDS:
        verdict.counts[kind] = document[kind]
    verdict.counts["reordered"] += document.get("misplaced", 0)
    verdict.named = _named(document.get("examples", {}))
    return verdict


_HISTORY_NAMES = {
    "lost-write": "lost",
    "unseen": "lost",
    "duplicate": "duplicated",
    "nonmonotonic": "reordered",
    "misplaced": "reordered",
    "altered": "altered",
    "invented": "invented",
    "G1a": "invented",
}


def _history(court: _Court, direction: str, history: Path) -> Verdict:
    argv = [sys.executable, "-m", "demo.history_check", *_sides(court.stage, direction), "--history", str(history)]
    code, document, words = court.hear("history", direction, argv)
    verdict = Verdict("history", code == 0)
    if code not in (0, 1) or "target" not in document:
        verdict.error = f"gave no verdict (exit {code}): {words}"
        return verdict
    target = document["target"]
    verdict.records = target["records"]
    for anomaly, kind in _HISTORY_NAMES.items():
        verdict.counts[kind] += target["counts"][anomaly]
    verdict.named = _named(target["examples"])
    if not document["source"]["ok"]:
        # What the source lost itself is no fault of the copy, but then the run proves nothing.
        verdict.error = f"the source itself is not what was sent: {document['source']['counts']}"
    return verdict


def _sides(stage: Stage, direction: str) -> list[str]:
    pattern = stage.pattern if direction == "r2k" else stage.back_pattern
    return [
        *("--direction", direction, "--redis", stage.redis_direct, "--pattern", pattern),
        *("--kafka", stage.bootstrap_direct, "--topic", stage.topic, "--lanes", str(stage.lanes)),
    ]


def _named(examples: dict[str, list[dict[str, Any]]]) -> list[str]:
    """`lost: lane 3, source 1700000000000-5, id 20001` for the first few of each kind."""
    lines = []
    for kind, found in examples.items():
        for example in found[:_NAMED_MAX]:
            what = ", ".join(f"{name} {value}" for name, value in example.items() if value is not None)
            lines.append(f"{kind}: {what}")
    return lines


_VERIFY_NAMES = {
    "missing": "lost",
    "pending": "lost",  # everything is stopped: what is not there now never comes
    "duplicate": "duplicated",
    "reordered": "reordered",
    "altered": "altered",
    "extra": "invented",
}
#: what the demo never brings about, so that none of it may be there
_VERIFY_ASIDE = ("quarantined", "before_target", "source_gone", "stale_epochs")


def _from_verify(code: int, document: dict[str, Any], words: str) -> Verdict:
    """The product's auditor: exit 0 equal, 3 differences; anything else is no verdict."""
    verdict = Verdict("verify", code == 0)
    if code not in (0, 3) or not document.get("routes"):
        verdict.error = f"gave no verdict (exit {code}): {words}"
        return verdict
    (found,) = document["routes"]
    verdict.records = found["matched"]
    for name, kind in _VERIFY_NAMES.items():
        verdict.counts[kind] += found[name]
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for difference in found["differences"]:
        by_kind.setdefault(difference.pop("kind"), []).append(difference)
    verdict.named = _named(by_kind)
    aside = {name: found[name] for name in _VERIFY_ASIDE if found[name]}
    if aside:
        verdict.error = f"not everything could be compared: {aside}"
    return verdict
