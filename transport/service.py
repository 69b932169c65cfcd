"""The frame around every service process: event loop, signals, logs, exit code, and how its parts end together."""

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Final

import structlog
import uvloop

from transport import logs

COLLECT_AFTER: Final = 50_000
"""Objects made before the collector looks for cycles among them. Requests make many, and next to no cycles."""

Main = Callable[[asyncio.Event], Awaitable[None]]
"""Runs until the event is set, then ends by itself."""


def run(service: str, main: Main) -> int:
    """Run `main` until SIGINT or SIGTERM; the exit code is 0 after a clean stop and 1 after a failure."""
    logs.configure(service)
    gc.set_threshold(COLLECT_AFTER)
    log = structlog.get_logger()

    async def supervised() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        await main(stop)

    try:
        uvloop.run(supervised())
    except Exception as error:
        log.exception("service failed", reason=str(error))
        return 1
    log.info("service stopped")
    return 0


async def run_together(parts: Iterable[Coroutine[Any, Any, None]], stop: asyncio.Event, ending: asyncio.Event) -> None:
    """Run the parts of a service until `stop` is set or one of them ends; then set `ending`, at which all must end.

    Raises what a part failed with.
    """
    tasks = [asyncio.create_task(part) for part in parts]
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({*tasks, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        ending.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
