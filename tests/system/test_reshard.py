"""A route that is split by hand is split anew while its old processes still run: nothing twice, nothing left out."""

from __future__ import annotations

import pytest
from rig import Copy, Writer

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]


@pytest.mark.long
def test_the_split_is_changed_under_running_shards(workshop) -> None:
    copy: Copy = workshop.copy("r", "k")
    copy.start()
    writer = Writer(copy.source, records_max=40_000, pause_s=0.15)  # to the end, on a slow host too
    writer.start()
    old = [copy.run("--shard", f"{index}/1", instance=f"old-{index}") for index in range(1)]
    copy.wait_drained(records=200)

    refused = copy.run("--shard", "0/2", instance="early")
    assert refused.wait_end() == 4
    assert "crossfade relay reshard" in refused.said
    assert all(relay.is_running for relay in old)

    asked = copy.cli("relay", "reshard", "copy", "2")  # nobody answers: nothing is done
    assert asked.code != 0
    assert [row["shard"] for row in asked.rows] == ["0/2", "1/2"]
    assert all(relay.is_running for relay in old)

    many = copy.cli("relay", "reshard", "copy", "5", "--yes")
    assert many.code == 2

    done = copy.cli("relay", "reshard", "copy", "2", "--yes")
    assert done.code == 0, done.err
    new = [copy.run("--shard", f"{index}/2", instance=f"new-{index}") for index in range(2)]
    for relay in old:  # each ends at its next append, and says what to do
        assert relay.wait_end() == 4
        assert "--shard i/2" in relay.said
    written = writer.stop()
    copy.wait_drained()
    for relay in new:
        assert relay.stop() == 0
    assert copy.check(200).source_records == written

    again = copy.cli("relay", "reshard", "copy", "2", "--yes")
    assert again.code == 0
    assert "nothing to do" in again.err


def test_a_redis_target_needs_no_reshard(workshop) -> None:
    copy: Copy = workshop.copy("k", "r")
    answer = copy.cli("relay", "reshard", "copy", "2", "--yes")
    assert answer.code == 2
    assert "each claim fences its lanes" in answer.err
