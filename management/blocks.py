"""Cutting blocks: every period, or when enough waits; decided first, then signed, then appended (M-4, E-13).

A crash before the decision is durable: nothing was signed, the pool is as it was. A crash after it: the next start
finds the decision and goes on with signing; a device that signed before returns the same signature. A crash after
the append: the block, the decision and the pool changed in that one commit.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import msgspec
import structlog

from ledger.replica import CheckedBlock, Replica
from management.draft import Draft, draft
from management.endorsing import Endorsing
from management.errors import BadAnswerError, ManagementError
from management.feed import Feed
from management.metrics import Metrics
from management.outcome import Status
from management.pool import Endorsed, Pool
from management.records import RecordStore
from management.settling import Settling
from management.signer import HeaderSigner
from management.waiters import Waiters
from protocol import canonical
from protocol.block import VALID, Block, verify_header
from protocol.canonical import TxId
from protocol.envelope import Envelope
from protocol.errors import ProtocolError

FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 5.0
STOP_SECONDS: Final = 2.0

Result = TypeVar("Result")

_log = structlog.get_logger()


class Appended(msgspec.Struct, frozen=True):
    """A block that is in the chain: what streams and waiters are told."""

    height: int
    block: bytes
    event: bytes


class Blocks:
    """Cuts one block after the other; nothing else appends to the chain."""

    def __init__(
        self,
        replica: Replica,
        records: RecordStore,
        pool: Pool,
        *,
        endorsing: Endorsing,
        settling: Settling,
        signer: HeaderSigner,
        waiters: Waiters,
        feed: Feed,
        metrics: Metrics,
        ledger: ThreadPoolExecutor,
        center: str,
        period: float,
        heartbeat: float,
        most: int,
    ) -> None:
        self.trouble = ""
        """Why no block can be signed now; empty when all is well."""
        self._replica = replica
        self._records = records
        self._pool = pool
        self._endorsing = endorsing
        self._settling = settling
        self._signer = signer
        self._waiters = waiters
        self._feed = feed
        self._metrics = metrics
        self._ledger = ledger
        self._center = center
        self._period = period
        self._heartbeat = heartbeat
        self._most = most
        since = max(0.0, time.time() - replica.time / 1000)
        self._last_append = time.monotonic() - min(since, heartbeat)
        self._last_cut = 0.0

    async def run(self, stop: asyncio.Event) -> None:
        """Finish what was decided before the last stop, then cut until `stop` is set."""
        body = await self._in_ledger(lambda: self._records.undecided_body(self._replica.height + 1))
        if body is not None:
            _log.info("a decided block is there; it is signed and appended first", height=self._replica.height + 1)
            checked = await self._in_ledger(lambda: self._replica.check(Block.decode(body), signed=False))
            await self._sign_and_append(checked, body, stop)
        while not stop.is_set():
            if await self._is_time(stop):
                await self._cut(stop)

    async def _is_time(self, stop: asyncio.Event) -> bool:
        """Wait for the next cut, at most a while; whether it has come."""
        now = time.monotonic()
        due = self._last_append + self._heartbeat
        if self._pool.ready:
            due = min(due, self._last_cut + self._period)
        if self._pool.ready >= self._most or now >= due:
            return not stop.is_set()
        self._pool.changed.clear()
        waits = [asyncio.ensure_future(self._pool.changed.wait()), asyncio.ensure_future(stop.wait())]
        try:
            await asyncio.wait(waits, timeout=due - now, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return False

    async def _cut(self, stop: asyncio.Event) -> None:
        started = self._last_cut = time.monotonic()
        waiting = self._pool.oldest(self._most)
        empty = started >= self._last_append + self._heartbeat
        made, body = await self._in_ledger(lambda: self._decide(waiting, empty=empty))
        self._settling.let_go(made.dropped)
        if made.again:
            _log.info("what was endorsed does not satisfy what is in force; asking again", transactions=len(made.again))
            self._pool.withdraw(made.again, "pending")
            self._endorsing.add(made.again)
        if made.checked is not None:
            await self._sign_and_append(made.checked, body, stop)
            self._metrics.cut.observe(time.monotonic() - started)

    def _decide(self, waiting: list[Endorsed], *, empty: bool) -> tuple[Draft, bytes]:
        """In the ledger's thread: draft the block and make the decision durable."""
        made = draft(self._replica, waiting, time.time_ns() // 1_000_000, empty=empty)
        body = b""
        if made.checked is not None:
            body = made.checked.block.encode()
            self._records.decide(made.checked.block, body, self._center)
        return made, body

    async def _sign_and_append(self, checked: CheckedBlock, body: bytes, stop: asyncio.Event) -> None:
        """Decided is decided: this block is signed and appended, however long it takes, and no other is cut."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                envelope = await self._unless_stopped(self._sign(checked.block, body), stop)
                break
            except ManagementError as error:
                self.trouble = f"block {checked.block.header.height} is decided and not signed: {error}"
                self._metrics.sign_failures.inc()
                _log.error("the header is not signed; trying again", reason=str(error), pause=pause)
            try:
                await asyncio.wait_for(stop.wait(), pause)
            except TimeoutError:
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            else:
                return  # the next start goes on here
        if envelope is None:
            return
        self.trouble = ""
        signed = msgspec.structs.replace(checked, block=checked.block.signed(envelope))
        appended = await self._in_ledger(lambda: self._append(signed))
        self._last_append = time.monotonic()
        self._tell(signed, appended)

    async def _unless_stopped(self, work: Coroutine[Any, Any, Result], stop: asyncio.Event) -> Result | None:
        """The result, or None when a stop comes and the result does not follow soon."""
        task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait((task,), timeout=STOP_SECONDS)
            return task.result() if task.done() else None
        finally:
            stopping.cancel()
            task.cancel()

    async def _sign(self, block: Block, body: bytes) -> Envelope:
        """The header with the center's signature, verified. Raises `ManagementError`."""
        signature = await self._signer.sign_header(body)
        envelope = Envelope(block.envelope.payload, block.envelope.payload_type, (signature,))
        view, header = self._replica.registry, block.header
        kinds = {each.kind for each in block.transactions}
        centers = view.centers_for(height=header.height, time=header.time, kinds=kinds)
        try:
            verify_header(envelope, tuple(centers.values()), view.channel.centers_needed)
        except ProtocolError as error:
            raise BadAnswerError(f"the signature under the header does not hold: {error}") from None
        return envelope

    def _append(self, signed: CheckedBlock) -> Appended:
        """In the ledger's thread: one commit for the block, the decision and the pool."""
        block = signed.block
        with self._records.write_lock:
            self._replica.append(signed, also=lambda connection: self._records.finish(connection, block))
        height = block.header.height
        event = self._replica.store.event(height)
        return Appended(height, self._replica.store.block(height) or b"", canonical.encode(event))

    def _tell(self, signed: CheckedBlock, appended: Appended) -> None:
        height = appended.height
        self._pool.remove(TxId(outcome.transaction) for outcome in signed.outcomes)
        expected = self._waiters.expected
        self._waiters.settle(
            Status(TxId(outcome.transaction), "committed", height, outcome.code)
            for outcome in signed.outcomes
            if outcome.transaction in expected
        )
        self._feed.publish(height, appended.block, appended.event)
        self._metrics.blocks.inc()
        self._metrics.committed.inc(len(signed.outcomes))
        self._metrics.height.set(height)
        invalid = sum(outcome.code != VALID for outcome in signed.outcomes)
        _log.info("block appended", height=height, transactions=len(signed.outcomes), invalid=invalid)

    async def _in_ledger(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._ledger, work)
