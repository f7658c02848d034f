"""One thread per librdkafka handle; lists cross between it and the event loop.

Hides that librdkafka's calls block. Invariant: a handle is used by its own thread alone, in the order of the calls.
Threads are daemons: one that is stuck in a call never keeps the process from ending.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import structlog

from ...errors import Unreachable

P = ParamSpec("P")
T = TypeVar("T")

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
        return await future

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
            del function, job  # a handle must not stay alive until the next job comes
            if failure is not None and future is None:
                structlog.get_logger("kafka").warning("a background step failed", error=str(failure))
            if loop is not None and future is not None:
                try:
                    loop.call_soon_threadsafe(_settle, future, result, failure)
                except RuntimeError:  # the loop is closed: nobody waits any more
                    continue
            result = failure = future = None


def _settle(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)
