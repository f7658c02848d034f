"""An admin call that nobody waits for any more makes no noise when the library ends it later on."""

import asyncio
from concurrent.futures import Future

import pytest

from crossfade.brokers.kafka.cluster import _answer_of


async def test_a_call_that_is_given_up_may_still_be_ended_by_the_library() -> None:
    called: Future[str] = Future()
    answer = _answer_of(called)
    answer.cancel()
    await asyncio.sleep(0)
    called.set_exception(RuntimeError("the handle was closed"))  # InvalidStateError where this future was cancelled too
    await asyncio.sleep(0)
    assert answer.cancelled()


async def test_an_answer_and_a_failure_come_through() -> None:
    good: Future[str] = Future()
    bad: Future[str] = Future()
    answers = _answer_of(good), _answer_of(bad)
    good.set_result("three brokers")
    bad.set_exception(RuntimeError("no"))
    assert await answers[0] == "three brokers"
    with pytest.raises(RuntimeError, match="no"):
        await answers[1]


def test_a_call_that_ends_after_its_loop_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    called: Future[str] = Future()

    async def ask() -> None:
        _answer_of(called).cancel()

    asyncio.run(ask())
    called.set_exception(RuntimeError("the handle was closed"))
    assert not caplog.records  # a callback that raises is logged by concurrent.futures
