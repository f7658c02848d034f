"""An asyncio loop in virtual time: waiting costs nothing, and a run is the same every time."""

import asyncio
import selectors


class Deadlock(RuntimeError):
    """Everything waits for something that nothing will do."""


class _NoWaiting(selectors.BaseSelector):
    """Knows the loop's own pipe and nothing else; instead of waiting it moves the clock."""

    def __init__(self):
        self.now_s = 0.0
        self._keys = {}

    def register(self, fileobj, events, data=None):
        key = self._keys[fileobj] = selectors.SelectorKey(fileobj, 0, events, data)
        return key

    def unregister(self, fileobj):
        return self._keys.pop(fileobj)

    def select(self, timeout=None):
        if timeout is None:
            raise Deadlock("no timer is set and nothing is ready")
        self.now_s += max(0.0, timeout)
        return []

    def get_map(self):
        return self._keys


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        self._clock = _NoWaiting()
        super().__init__(self._clock)

    def time(self):
        return self._clock.now_s


def run_virtual(main):
    """Run the coroutine to its end; returns what it returns."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
