"""Group commit: whatever waits becomes durable together, in one commit, in a thread of its own."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog

from management.errors import StoppingError
from management.metrics import Metrics
from management.records import Known, RecordStore, Row, Settlement, Work

MOST_ROWS: Final = 5000
"""Most transactions in one commit, so that nobody waits long for the others."""

_log = structlog.get_logger()


class GroupCommit:
    """Collects what is to be written while the commit before it is on its way to the disk."""

    def __init__(self, store: RecordStore, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, "record-pool")
        self._waiting: list[tuple[Work, asyncio.Future[Known]]] = []
        self._wake = asyncio.Event()
        self._closed = False

    async def admit(self, rows: list[Row]) -> Known:
        """Return when `rows` are durable; those in the answer were not taken, because their outcome is known."""
        return await self._add(Work(rows=rows))

    async def settle(self, settlements: list[Settlement]) -> None:
        """Return when these outcomes are durable and their transactions out of the pool."""
        await self._add(Work(settlements=settlements))

    async def run(self, stop: asyncio.Event) -> None:
        """Write until `stop` is set and nothing waits any more."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    taken, together = self._take()
                    started = time.monotonic()
                    try:
                        known = await loop.run_in_executor(self._thread, self._store.write, together)
                    except Exception as error:  # noqa: BLE001  whoever waits is told, whatever it was
                        _log.exception("the record pool cannot be written", reason=str(error))
                        for _, future in taken:
                            if not future.done():
                                future.set_exception(error)
                        continue
                    self._metrics.group_commit.observe(time.monotonic() - started)
                    for _, future in taken:
                        if not future.done():
                            future.set_result(known)
                if stop.is_set():
                    return
        finally:
            self._closed = True
            for _, future in self._waiting:
                future.cancel()
            self._thread.shutdown(wait=True)

    def wake(self) -> None:
        """Look again whether to stop."""
        self._wake.set()

    async def _add(self, work: Work) -> Known:
        if self._closed:
            raise StoppingError("the service stops; send the transaction again to find out where it stands")
        future: asyncio.Future[Known] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, future))
        self._wake.set()
        return await future

    def _take(self) -> tuple[list[tuple[Work, asyncio.Future[Known]]], Work]:
        together = Work(rows=[], settlements=[])
        count = 0
        for work, _ in self._waiting:
            if count and len(together.rows) + len(work.rows) > MOST_ROWS:
                break
            together.rows.extend(work.rows)
            together.settlements.extend(work.settlements)
            count += 1
        taken, self._waiting = self._waiting[:count], self._waiting[count:]
        return taken, together
