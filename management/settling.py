"""Letting go of pooled transactions that will be in no block: durably first, then whoever waits is told."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Final

import structlog

from management.errors import StoppingError
from management.group_commit import GroupCommit
from management.metrics import Metrics
from management.outcome import Refusal, refused
from management.pool import Pool, Record
from management.records import Settlement
from management.waiters import Waiters

PAUSE_SECONDS: Final = 1.0

_log = structlog.get_logger()


class Settling:
    """Ends the stay of transactions in the pool, a batch at a time."""

    def __init__(self, pool: Pool, group: GroupCommit, waiters: Waiters, metrics: Metrics) -> None:
        self._pool = pool
        self._group = group
        self._waiters = waiters
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()

    def let_go(self, ended: Sequence[tuple[Record, Refusal]]) -> None:
        """These will be in no block; from now on none of them is taken for a cut."""
        if not ended:
            return
        self._pool.withdraw((record for record, _ in ended), "settling")
        task = asyncio.create_task(self._settle(ended))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _settle(self, ended: Sequence[tuple[Record, Refusal]]) -> None:
        now = time.time_ns() // 1_000_000
        settlements = [Settlement(record.id, refusal, now) for record, refusal in ended]
        while True:
            try:
                await self._group.settle(settlements)
                break
            except StoppingError:
                return  # they stay in the pool, and come to the same end after the next start
            except Exception as error:  # noqa: BLE001  the disk may be full: nothing is lost by waiting
                _log.error("outcomes cannot be written; trying again", reason=str(error))
                await asyncio.sleep(PAUSE_SECONDS)
        self._pool.remove(record.id for record, _ in ended)
        self._waiters.settle(refused(record.id, refusal) for record, refusal in ended)
        for code, count in Counter(refusal.reason or refusal.code for _, refusal in ended).items():
            self._metrics.settled.labels(code).inc(count)
