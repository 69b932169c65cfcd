"""An event loop whose clock jumps to the next timer when nothing else is to be done.

Delays cost no time and have no noise: what a test measures in them depends on decisions alone.
"""

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time begins at one second, and passes only by waiting."""

    def __init__(self) -> None:
        super().__init__(_Jumping(self))
        self.now = 1.0

    def time(self) -> float:
        """The virtual time in seconds."""
        return self.now


class VirtualClock:
    """What stands in for the module `time` where the loop's own clock is meant."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.monotonic = loop.time
        self.time_ns = lambda: int(1e9 * loop.time())


class Inline(Executor):
    """Runs what it is given at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """See `Executor`."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  it belongs to whoever waits for the future
            future.set_exception(error)
        return future


class _Jumping(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> "list[tuple[selectors.SelectorKey, int]]":
        events = super().select(0)
        if not events and timeout:
            self._loop.now += timeout
        return events
