"""The frame around every service process: event loop, signals, logs, exit code."""

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable
from typing import Final

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
