"""Which marks in a target tell that an older marker was put back."""

import pytest

from crossfade.brokers.redis.outrun import _ahead_by_mark
from crossfade.model.position import Marker, Place
from crossfade.model.wire import Origin


def ahead(position: str, ordinal: int, epoch: int, marker: Marker, *, is_begun: bool = True) -> dict[int, str]:
    return _ahead_by_mark([Origin("r", 0, position, ordinal, epoch)], {0: marker}, is_begun=is_begun)


def test_a_copy_behind_the_marker_is_ahead_of_it() -> None:
    marker = Marker(Place("5", 6), ordinal=6, relayed="5", epoch=3)
    assert ahead("6", 7, 3, marker) == {0: "6"}
    assert ahead("6", 7, 4, marker) == {0: "6"}
    assert ahead("5", 7, 4, marker) == ahead("6", 6, 4, marker) == {}


def test_a_mark_of_an_older_epoch_is_of_a_source_before_it_was_made_anew() -> None:
    """An application moved the copy: its ordinal and offset are higher than those of the new topic so far."""
    marker = Marker(Place("9", 10), ordinal=10, relayed="9", epoch=5)
    assert ahead("2999", 3000, 4, marker) == {}


@pytest.mark.parametrize("count", [0, 7])
def test_copies_of_a_redis_source_that_was_made_anew_do_not_hold_up_a_lane_that_has_not_begun(count: int) -> None:
    """The place before all entries of the new stream has no id to compare with, and a count of its own."""
    marker = Marker(Place("", count), epoch=1)
    assert ahead("1763859371234-0", 1, 1, marker, is_begun=False) == {}


def test_a_kafka_lane_that_has_not_begun_knows_by_the_offset() -> None:
    marker = Marker(Place("", 100), epoch=1)
    assert ahead("100", 1, 1, marker, is_begun=False) == {0: "100"}
    assert ahead("99", 1, 1, marker, is_begun=False) == {}
