"""One thread per librdkafka handle; lists cross between it and the event loop.

Hides that librdkafka's calls block. Invariant: a handle is used by its own thread alone, in the order of the calls.
Threads are daemons: one that is stuck in a call never keeps the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import queue
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import structlog
from confluent_kafka import KafkaException

from ...errors import Unreachable
from .failures import error_of, is_fenced

P = ParamSpec("P")
T = TypeVar("T")

#: another thread looks every millisecond whether a consumer is free
_BREATH_S = 0.003
#: the client tells of records that are dropped within this time, unless a broker's thread is busy elsewhere
_PURGE_S = 1.0

_CAN_WAIT = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR

_Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop | None, "asyncio.Future[Any] | None"]


class HandleThread:
    """Runs functions one after the other in a thread of its own."""

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=f"kafka-{name}", daemon=True)
        self._thread.start()

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in the thread and give its result. A cancelled caller does not stop the function."""
        if self._stopped:
            raise Unreachable("the Kafka connection is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put((lambda: function(*args, **kwargs), loop, future))
        try:
            return await future
        finally:
            del future  # it holds the error whose traceback holds this frame

    def post(self, function: Callable[[], Any]) -> None:
        """Run `function` in the thread, after what is queued, and forget it."""
        self._jobs.put((function, None, None))

    def stop(self) -> None:
        """End the thread after what is queued. Returns at once."""
        if not self._stopped:
            self._stopped = True
            self._jobs.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait for the end of a stopped thread."""
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            function, loop, future = job
            result: Any = None
            failure: BaseException | None = None
            try:
                result = function()
            except BaseException as error:  # noqa: BLE001 - it is raised again at the caller
                failure = error
                _forget_locals(error)
            del function, job  # a handle must not stay alive until the next job comes
            if failure is not None and future is None:
                structlog.get_logger("kafka").warning("a background step failed", error=str(failure))
            if loop is not None and future is not None:
                try:
                    loop.call_soon_threadsafe(settle, future, result, failure)
                except RuntimeError:  # the loop is closed: nobody waits any more
                    continue
            result = failure = future = None


def _forget_locals(error: BaseException) -> None:
    """Let go of what the frames of an error hold: whoever keeps the error would keep a handle alive, with its threads
    and connections."""
    chain: list[BaseException | None] = [error]
    seen: set[int] = set()
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            for frame, _ in traceback.walk_tb(one.__traceback__):
                if not frame.f_code.co_flags & _CAN_WAIT:  # one that waits would be ended
                    with contextlib.suppress(RuntimeError):  # it is still running
                        frame.clear()
            chain += [one.__cause__, one.__context__]


def throw_away(producer: Any) -> None:
    """Drop what a producer has queued and in flight; the caller then drops its last reference.

    Records that are still queued when a handle ends are never freed.
    """
    try:
        # confluent-kafka 2.16 takes `blocking` for its opposite: False waits for the thread of each broker, as long as
        # a name takes to resolve, and all of Python with it.
        producer.purge(in_queue=True, in_flight=True, blocking=True)
        deadline = time.monotonic() + _PURGE_S
        while len(producer) and time.monotonic() < deadline:
            producer.poll(0.05)
    except KafkaException as failure:
        if not is_fenced(error_of(failure)) and not error_of(failure).fatal():
            raise


def breathe() -> None:
    """Let another thread use a consumer, to give it a new login: for loops over one, while nothing comes.

    Such a call waits until the consumer is free while it has the interpreter; between two calls in a row it never is.
    """
    time.sleep(_BREATH_S)


def settle(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    """Give a future what came of its call, unless nobody waits for it any more."""
    if future.done():
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)
