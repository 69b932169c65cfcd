"""Intake: transactions are checked, kept durably, and only then acknowledged (requirements E-2, M-9).

In this order: decoding, network, expiry, whitelist, reference signature; what is known by its id already; room in
the pool; one commit for all that wait. All work is done for a batch, a single transaction being a batch of one.
"""

import asyncio
import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

from ledger.contracts.registry import NAME as REGISTRY
from ledger.replica import Replica
from management.admission import admit
from management.errors import BusyError, StoppingError
from management.group_commit import GroupCommit
from management.metrics import Metrics
from management.outcome import ALREADY_EXECUTED, Refusal, Status, refused
from management.pool import Endorsed, Pool, Record
from management.records import Known, RecordStore, Row
from management.waiters import Waiters
from protocol.block import VALID
from protocol.canonical import TxId
from protocol.transaction import Transaction

CHUNK: Final = 128
"""Transactions that one thread checks before it looks after others: some 10 ms."""
CHUNKS_AT_ONCE: Final = 2
MOST_SUBMISSIONS: Final = 1024
"""Submissions that are checked or committed at one moment; more are told to come back."""
INLINE_BYTES: Final = 16 << 10
POOL_FULL: Final = "pool-full"

Answer = Status | Refusal
Endorse = Callable[[list[Record]], None]


class Intake:
    """Takes batches of transactions, each in its canonical bytes."""

    def __init__(
        self,
        replica: Replica,
        pool: Pool,
        store: RecordStore,
        group: GroupCommit,
        *,
        endorse: Endorse,
        waiters: Waiters,
        checkers: Executor,
        ledger: Executor,
        metrics: Metrics,
    ) -> None:
        self._replica = replica
        self._pool = pool
        self._store = store
        self._group = group
        self._endorse = endorse
        self._waiters = waiters
        self._checkers = checkers
        self._ledger = ledger
        self._metrics = metrics
        self._under_way = 0

    async def submit(self, lines: Sequence[bytes]) -> list[Answer]:
        """What becomes of each transaction: a status once it is durable (or was known), or why it is not taken.

        Raises `BusyError`.
        """
        if self._under_way >= MOST_SUBMISSIONS:
            raise BusyError(f"{self._under_way} submissions are under way; send more transactions in each, later")
        self._under_way += 1
        # Whoever hangs up leaves nothing half done: the work goes on, and a repeat finds it by its id.
        work = asyncio.create_task(self._submit(lines))
        work.add_done_callback(self._done)
        return await asyncio.shield(work)

    def _done(self, work: "asyncio.Task[list[Answer]]") -> None:
        self._under_way -= 1
        if not work.cancelled():
            work.exception()  # seen, should nobody wait any more

    async def _submit(self, lines: Sequence[bytes]) -> list[Answer]:
        judged = await self._judge(lines)
        refusals: dict[int, Refusal] = {}
        arriving: list[Record] = []
        others: set[asyncio.Future[None]] = set()
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        height = self._replica.height
        for index, item in enumerate(judged):
            if isinstance(item, Refusal):
                refusals[index] = item
                continue
            record = self._pool.find(item.id)
            if record is None:
                if self._pool.is_full:
                    refusals[index] = _pool_full(item.id, self._pool.limit)
                    continue
                record = self._pool.add(item, height)
                record.durable = durable
                arriving.append(record)
            elif record.durable is not None and record.durable is not durable:
                others.add(record.durable)
        for code, count in Counter(refusal.code for refusal in refusals.values()).items():
            self._metrics.refused_at_intake.labels(code).inc(count)
        known = await self._keep(arriving, durable)
        for other in others:
            await asyncio.shield(other)
        statuses = await self._statuses([item.id for item in judged if isinstance(item, Transaction)], known)
        return [
            refusals[index] if index in refusals or isinstance(item, Refusal) else statuses[item.id]
            for index, item in enumerate(judged)
        ]

    async def _keep(self, arriving: list[Record], durable: "asyncio.Future[None]") -> Known:
        """Make new records durable and send them on their way; what turns out to be known is let go."""
        if not arriving:
            return Known()
        now = time.time_ns() // 1_000_000
        try:
            known = await self._group.admit([Row(record.sequence, record.transaction, now) for record in arriving])
        except BaseException as error:
            self._pool.remove(record.id for record in arriving)
            durable.set_exception(error if isinstance(error, Exception) else StoppingError("the service stops"))
            durable.exception()  # seen: perhaps nobody else waits for it
            raise
        self._pool.remove(record.id for record in arriving if record.id in known)
        taken = [record for record in arriving if record.id not in known]
        for record in taken:
            record.durable = None
            record.stage = "pending"
        durable.set_result(None)
        self._metrics.admitted.inc(len(taken))
        by_administrators = [record for record in taken if record.transaction.payload.contract == REGISTRY]
        if by_administrators:
            self._pool.put(Endorsed(record, {}) for record in by_administrators)
        self._endorse([record for record in taken if record.transaction.payload.contract != REGISTRY])
        return known

    async def _statuses(self, ids: Sequence[TxId], known: Known) -> dict[TxId, Answer]:
        """Where each transaction stands now; what has left the pool meanwhile is looked up."""
        found: dict[TxId, Answer] = {}
        missing: list[TxId] = []
        for each in ids:
            record = self._pool.find(each)
            if record is not None:
                found[each] = _pooled(record)
            elif each in known:
                found[each] = _known(each, known)
            else:
                missing.append(each)
        if missing:
            later = await self.outcomes(missing)
            found.update((each, _known(each, later)) for each in missing)
        return found

    async def outcomes(self, ids: Sequence[TxId]) -> Known:
        """What the database knows of transactions that are not in the pool."""
        return await asyncio.get_running_loop().run_in_executor(self._checkers, self._store.outcomes, ids)

    async def submit_one(self, line: bytes, seconds: float, *, until_endorsed: bool = False) -> Answer:
        """Like `submit`, and then at most `seconds` for what becomes of it, or for its endorsements alone."""
        (answer,) = await self.submit([line])
        if seconds and isinstance(answer, Status) and not answer.is_settled:
            return await self._settled(answer.transaction, seconds, until_endorsed=until_endorsed) or answer
        return answer

    async def status(self, transaction: TxId, seconds: float) -> Status | None:
        """Where a transaction stands, after at most `seconds` for it to be settled; None when it is not known."""
        record = self._pool.find(transaction)
        if record is None or record.stage == "arriving":
            return await self._recorded(transaction)
        if seconds:
            return await self._settled(transaction, seconds)
        return _pooled(record)

    async def _settled(self, transaction: TxId, seconds: float, *, until_endorsed: bool = False) -> Status | None:
        future = self._waiters.expect(transaction, until_endorsed=until_endorsed)
        try:
            pooled = self._pool.find(transaction)
            if pooled is not None and not (until_endorsed and pooled.stage == "endorsed"):
                settled = await asyncio.wait_for(asyncio.shield(future), seconds)
                if settled is not None:
                    return settled
        except TimeoutError:
            pass
        finally:
            self._waiters.forget(transaction, future)
        record = self._pool.find(transaction)
        return _pooled(record) if record else await self._recorded(transaction)

    async def _recorded(self, transaction: TxId) -> Status | None:
        known = await self.outcomes([transaction])
        if transaction in known.located:
            location = known.located[transaction]
            return Status(transaction, "committed", location.height, location.code)
        refusal = known.refused.get(transaction)
        return refused(transaction, refusal) if refusal else None

    async def _judge(self, lines: Sequence[bytes]) -> list[Transaction | Refusal]:
        now = time.time_ns() // 1_000_000
        check = functools.partial(
            admit, registry=self._replica.registry, memory=self._replica.memory, height=self._replica.height, now=now
        )
        if len(lines) == 1 and len(lines[0]) <= INLINE_BYTES:
            judged = check(lines)  # cheaper than a change of threads
        else:
            loop = asyncio.get_running_loop()
            chunks = [lines[i : i + CHUNK] for i in range(0, len(lines), CHUNK)]
            judged = []
            for i in range(0, len(chunks), CHUNKS_AT_ONCE):  # few at once: single transactions get their turn
                parts = [loop.run_in_executor(self._checkers, check, chunk) for chunk in chunks[i : i + CHUNKS_AT_ONCE]]
                for part in parts:
                    judged.extend(await part)
        return await self._rehearse(judged)

    async def _rehearse(self, judged: list[Transaction | Refusal]) -> list[Transaction | Refusal]:
        """No device simulates registry transactions, so those that do not apply are refused here."""
        own = {
            index: item
            for index, item in enumerate(judged)
            if isinstance(item, Transaction) and item.payload.contract == REGISTRY
        }
        if own:
            loop = asyncio.get_running_loop()
            codes = await loop.run_in_executor(self._ledger, self._replica.simulate, list(own.values()))
            for (index, item), code in zip(own.items(), codes, strict=True):
                if code not in {VALID, ALREADY_EXECUTED}:
                    detail = f"executed now, {item.kind} would come to {code}"
                    judged[index] = Refusal(code=code, detail=detail, transaction=item.id)
        return judged


def _pooled(record: Record) -> Status:
    return Status(record.id, "endorsed" if record.stage == "endorsed" else "pending")


def _pool_full(transaction: TxId, limit: int) -> Refusal:
    return Refusal(
        code=POOL_FULL,
        detail=f"{limit} transactions wait already; send this one again in a second",
        transaction=transaction,
    )


def _known(transaction: TxId, known: Known) -> Answer:
    location = known.located.get(transaction)
    if location:
        return Status(transaction, "committed", location.height, location.code)
    return known.refused.get(transaction) or Refusal(
        code="not-kept", detail="the transaction is not kept; send it again", transaction=transaction
    )
