"""Every `crossfade lab fault` command on real servers, as a program calls it: exit 0, and JSON of what was seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crossfade.cli.main import load_command, run
from crossfade.lab import Lab

LASTING = ["--heal-after", "2", "--wait"]
#: of each command: its arguments, what it acts on, and what has to be in `observed` (None: any value)
CASES: dict[str, tuple[list[str], str, dict[str, Any]]] = {
    "cut": (["redis-0", *LASTING], "redis-0", {"connections_reset": None, "healed_after_s": None}),
    "delay": (["redis-0", "50", *LASTING], "redis-0", {"bytes_held": 0, "healed_after_s": None}),
    "half-open": (["redis-0", *LASTING], "redis-0", {"bytes_dropped": 0, "healed_after_s": None}),
    "hold-replies": (["redis-0", *LASTING], "redis-0", {"bytes_held_max": None, "healed_after_s": None}),
    "drop-replies": (["redis-0", *LASTING], "redis-0", {"bytes_dropped": 0, "healed_after_s": None}),
    "hold-requests": (["redis-0", *LASTING], "redis-0", {"bytes_held_max": None, "healed_after_s": None}),
    "reset": (["kafka-1"], "kafka-1", {"connections_reset": None}),
    "freeze": (["redis-0", *LASTING], "redis-0", {"frozen": True, "healed_after_s": None}),
    "kill": (["redis-0", *LASTING], "redis-0", {"pid_gone": True, "healed_after_s": None}),
    "restart": (["redis-0"], "redis-0", {"old_pid": None, "new_pid": None, "answered_after_s": None}),
    "disk-full": (["redis-0", *LASTING], "redis-0", {"disk_is_full": True, "healed_after_s": None}),
    "cut-aof": (["redis-0", "10"], "redis-0", {"size_before_bytes": None, "size_after_bytes": None}),
    "trim-stream": (["lanes:0", "--keep", "5"], "lanes:0", {"removed_records": None, "first_after": None}),
    "recreate-key": (["lanes:0"], "lanes:0", {"removed_records": 5}),
    "move-leader": (["orders"], "orders/0", {"old_leader": None, "new_leader": None}),
    "trim-topic": (["orders"], "orders/0", {"removed_offsets": 0, "first_before": 0, "first_after": 0}),
    "recreate-topic": (["orders"], "orders", {"old_id": None, "new_id": None}),
    "kill-leader": (["orders", *LASTING], "orders/0", {"pid_gone": True, "new_leader": None, "healed_after_s": None}),
}


def test_every_fault_command_is_tried() -> None:
    assert set(load_command("lab").commands["fault"].commands) == set(CASES)


@pytest.mark.lab
@pytest.mark.timeout(600)
def test_every_fault_command_works_and_prints_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CROSSFADE_LAB_ROOT", str(tmp_path))
    monkeypatch.setenv("CROSSFADE_LAB", "faults")

    def told(*words: str) -> dict[str, Any]:
        capsys.readouterr()
        code = run(["lab", *words, "-o", "json"])
        shown = capsys.readouterr()
        assert code == 0, f"{words}: {shown.err}"
        document: dict[str, Any] = json.loads(shown.out)
        assert document.pop("version") == 1
        return document

    with Lab.up("faults", owner_pid=os.getpid()) as lab:
        assert told("topic", "orders", "--partitions", "2") == {"lab": "faults", "topic": "orders", "partitions": 2}
        written = ["--pattern", "lanes:<lane>", "--lanes", "1", "--records", "200", "--rate", "0"]
        assert told("workload", *written)["ok"] == 200
        assert completed("crossfade lab fault move-leader or") == ["orders"]
        for name, (arguments, subject, seen) in CASES.items():
            document = told("fault", name, *arguments)
            assert document["subject"] == subject, name
            assert document["heal_after_s"] == (2.0 if "--wait" in arguments else None), name
            observed = document["observed"]
            assert observed.keys() >= seen.keys(), name
            assert {key: observed[key] for key, value in seen.items() if value is not None} == {
                key: value for key, value in seen.items() if value is not None
            }, name
        with lab.client_of_redis() as client:
            client.set("text", "no stream")
        for slip in (["trim-stream", "text"], ["recreate-key", "text"], ["move-leader", "orders", "--partition", "9"]):
            assert run(["lab", "fault", *slip]) == 2, capsys.readouterr().err
        assert lab.admin.wait_brokers(3, 60)
        assert lab.status()["running"]
        assert list((lab.folder / "heals").glob("*.json")) == []  # nothing is left to heal


def completed(words: str) -> list[str]:
    settings = {"_CROSSFADE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = "from crossfade.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stderr == ""
    return done.stdout.split()
