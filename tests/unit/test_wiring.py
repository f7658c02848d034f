"""What wiring refuses before any broker is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossfade import wiring
from crossfade.config import Config, load
from crossfade.errors import GuaranteeRefused, UsageError

_FILE = """
version: 1
brokers:
  old: {kind: redis, url: "redis://127.0.0.1:1"}
  new: {kind: kafka, properties: {bootstrap.servers: "127.0.0.1:1"}}
streams:
  messages:
    old: {lanes: "msg:<lane>", count: 2}
    new: {topic: messages}
  copies:
    old: {lanes: "BACK:<lane>", count: 2}
    new: {topic: messages}
routes:
  forward: {id: abc, stream: messages, source: old, target: new}
  back: {id: def, stream: copies, source: new, target: old}
"""


def config(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "crossfade.yaml"
    path.write_text(text)
    return load(path, {}, {})


def test_two_routes_that_feed_each_other_are_refused_by_name(tmp_path: Path) -> None:
    looped = config(tmp_path, _FILE.replace("BACK:", "msg:"))
    for name in ("forward", "back"):
        with pytest.raises(GuaranteeRefused, match="copy in a circle") as refused:
            wiring.refuse_loop(looped, name)
        assert {"forward", "back"} <= set(refused.value.message.replace("->", " ").split())


def test_a_way_back_into_other_stream_keys_is_no_circle(tmp_path: Path) -> None:
    fine = config(tmp_path, _FILE.replace("BACK:", "back:"))
    wiring.refuse_loop(fine, "forward")
    wiring.refuse_loop(fine, "back")


def test_an_unknown_route_comes_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no route 'forwart'") as refused:
        wiring.route_settings(config(tmp_path, _FILE), "forwart")
    assert "forward" in refused.value.hint
