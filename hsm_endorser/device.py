"""The endorsement device: read, check, guard, sign, answer.

Proposals of all requests meet in one queue. A loop takes what waits, up to `MAX_VOTES` votes, judges it, and
signs one tree over it: one operation of the token for each node's key, however many votes there are. The next
batch fills while this one is being signed; there is no delay when nothing waits (requirement E-11).
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgspec
import structlog

from hsm_endorser import rules
from hsm_endorser.chain import Chain
from hsm_endorser.errors import BusyError, DeviceError, GuardError, NotReadyError, TokenError
from hsm_endorser.gate import Gate
from hsm_endorser.metrics import Metrics
from hsm_endorser.rules import Ballot, Bench, Case, Ruling
from hsm_endorser.signing import GuardedToken
from ledger.memory import SignatureMemory
from ledger.replica import Replica
from protocol import canonical, endorsement, merkle
from protocol.canonical import KeyId
from protocol.endorsement import Branch, Tree, TreeHead
from protocol.envelope import Envelope, pae
from protocol.messages import Answer, EndorseRequest, EndorseResponse, Failure, Proposal

MAX_VOTES: Final = 1024
"""Most votes in one tree."""
MAX_QUEUED: Final = 16384
"""Most proposals that wait at once."""
READ_TOGETHER: Final = 256
"""Proposals that one thread reads and verifies at a time."""
THREADS: Final = min(4, os.cpu_count() or 1)
FORGET_EVERY_SECONDS: Final = 60.0
NEWEST_WEIGHT: Final = 0.2
"""How much the newest batch counts in what is told of the pace."""

STOPPING: Final = Failure("stopping", "the device is being stopped; ask again when it is back")

log = structlog.get_logger()


class Result(msgspec.Struct, frozen=True):
    """What became of one proposal: the answer, the tree that holds its votes, the height that was judged at."""

    answer: Answer
    tree: Tree | None
    height: int


class Waiting(msgspec.Struct, frozen=True):
    """A case that waits for its turn, and who waits for its result."""

    case: Case
    result: asyncio.Future[Result]


class Device:
    """One device's judgement and signatures; every method belongs to one event loop."""

    def __init__(
        self, name: str, chain: Chain, signer: GuardedToken, memory: SignatureMemory, metrics: Metrics
    ) -> None:
        self.name = name
        self.gate = Gate()
        self.queued = 0
        self.batch_seconds = 0.0
        """Time of a batch lately, exponentially weighted: routing looks at it (requirement E-7)."""
        self.failed_share = 0.0
        """The share of batches that failed lately, weighted alike."""
        self._chain = chain
        self._signer = signer
        self._memory = memory
        self._metrics = metrics
        self._queue: deque[Waiting] = deque()
        self._filled = asyncio.Event()
        self._readers = ThreadPoolExecutor(max_workers=THREADS, thread_name_prefix="verify")
        self._forgot_at = time.monotonic()
        self._stopped = False

    def close(self) -> None:
        """Stop the threads."""
        self._readers.shutdown(cancel_futures=True)

    async def endorse(self, request: EndorseRequest) -> EndorseResponse:
        """The answers to a request. Raises `BusyError` when too many proposals wait already.

        What keeps the device from judging or signing is an answer too: a failure for every proposal.
        """
        count = len(request.proposals)
        if self.queued + count > MAX_QUEUED:
            raise BusyError(f"{self.queued} proposals wait for this device already; try again in a moment")
        self._count(count)
        try:
            results = await self._results(request)
        finally:
            self._count(-count)
        trees = {id(result.tree): result.tree for result in results if result.tree is not None}
        for result in results:
            if result.answer.failure:
                self._metrics.failures.labels(result.answer.failure.code).inc()
        return EndorseResponse(
            device=self.name,
            height=max(result.height for result in results),
            answers=tuple(result.answer for result in results),
            trees=tuple(trees.values()),
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Take what waits, and seal it, until `stop` is set."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                filled = asyncio.create_task(self._filled.wait())
                await asyncio.wait({filled, stopping}, return_when=asyncio.FIRST_COMPLETED)
                filled.cancel()
                if batch := self._take():
                    await self._seal_or_fail(batch)
                await self._forget()
        finally:
            stopping.cancel()
            self._stopped = True
            self._answer(self._queue, STOPPING)
            self._queue.clear()

    # --- read ---------------------------------------------------------------------------------------------

    async def _results(self, request: EndorseRequest) -> list[Result]:
        try:
            self._require_sound()
            await self._signer.token.usable()
            await self._chain.reach(request.least_height)
        except DeviceError as error:
            return [self._failed(Failure(error.code, str(error)))] * len(request.proposals)
        results = [self._queue_up(case) for case in await self._read(request.proposals)]
        return [await result for result in results]

    def _require_sound(self) -> None:
        if self._chain.halted:
            raise NotReadyError(f"this device has halted: {self._chain.halted}")
        if self._signer.guard.trouble:
            raise GuardError(self._signer.guard.trouble)

    async def _read(self, proposals: Sequence[Proposal]) -> list[Case | Failure]:
        """Decode and verify in threads: `cryptography` gives up the interpreter's lock while it verifies."""
        loop = asyncio.get_running_loop()
        registry = self._chain.registry

        def read(some: Sequence[Proposal]) -> list[Case | Failure]:
            return [rules.read(proposal, registry, self._memory) for proposal in some]

        parts = await asyncio.gather(
            *(
                loop.run_in_executor(self._readers, read, proposals[start : start + READ_TOGETHER])
                for start in range(0, len(proposals), READ_TOGETHER)
            )
        )
        return [case for part in parts for case in part]

    def _queue_up(self, case: Case | Failure) -> asyncio.Future[Result]:
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        if self._stopped:
            result.set_result(self._failed(STOPPING))
        elif isinstance(case, Failure):
            result.set_result(self._failed(case))
        else:
            self._queue.append(Waiting(case, result))
            self._filled.set()
        return result

    def _take(self) -> list[Waiting]:
        """All that waits, as far as it fits into one tree."""
        batch: list[Waiting] = []
        votes = 0
        while self._queue and (not batch or votes + len(self._queue[0].case.nodes) <= MAX_VOTES):
            waiting = self._queue.popleft()
            if waiting.result.cancelled():
                continue  # whoever asked is gone
            batch.append(waiting)
            votes += len(waiting.case.nodes)
        if not self._queue:
            self._filled.clear()
        return batch

    # --- check, guard, sign, answer -----------------------------------------------------------------------

    async def _seal_or_fail(self, batch: list[Waiting]) -> None:
        started = time.monotonic()
        sealed = False
        try:
            with self._metrics.batch_seconds.time():
                await self._seal(batch)
            sealed = True
        except (TokenError, GuardError) as error:
            log.warning("a batch was not signed", code=error.code, reason=str(error), proposals=len(batch))
            failure = Failure(error.code, str(error))
            self._answer(batch, failure)
            if self._signer.token.trouble:  # what waits would find the same: its callers have other devices to ask
                self._answer(self._queue, failure)
                self._queue.clear()
        except Exception as error:
            log.exception("a batch failed")
            self._answer(batch, Failure("internal-error", f"{type(error).__name__}; the device's log says more"))
        finally:
            spent = time.monotonic() - started
            self.batch_seconds += NEWEST_WEIGHT * (spent - self.batch_seconds) if self.batch_seconds else spent
            self.failed_share += NEWEST_WEIGHT * ((not sealed) - self.failed_share)

    async def _seal(self, batch: list[Waiting]) -> None:
        guard = self._signer.guard
        bench = Bench(self.name, self._signer.token.keys.keys(), guard.since, guard.recorded)
        height, rulings = await self._chain.run(lambda replica: self._judge(batch, replica, bench))
        ballots = {
            (ballot.record.vote.node, ballot.record.vote.transaction): ballot
            for ruling in rulings
            if not isinstance(ruling, Failure)
            for ballot in ruling
        }
        tree = await self._sign_tree(list(ballots.values()), height) if ballots else None
        for waiting, ruling in zip(batch, rulings, strict=True):
            if isinstance(ruling, Failure):
                result = self._failed(ruling, height)
            else:
                result = Result(Answer(tuple(ballot.record.vote for ballot in ruling)), tree, height)
            if not waiting.result.done():
                waiting.result.set_result(result)

    @staticmethod
    def _judge(batch: Sequence[Waiting], replica: Replica, bench: Bench) -> tuple[int, list[Ruling]]:
        return replica.height, rules.judge([waiting.case for waiting in batch], replica, bench)

    async def _sign_tree(self, ballots: Sequence[Ballot], height: int) -> Tree:
        """One tree over the ballots; each key signs the head of its own node once."""
        by_key: dict[KeyId, list[Ballot]] = {}
        for ballot in ballots:
            by_key.setdefault(ballot.key, []).append(ballot)
        groups = list(by_key.items())
        hashes = [[ballot.record.vote.leaf() for ballot in group] for _, group in groups]
        leaves = [leaf for some in hashes for leaf in some]
        root, sequence = merkle.root(leaves).hex(), self._signer.guard.sequence + 1
        payloads = [
            canonical.encode(
                TreeHead(
                    network=self._chain.network,
                    device=self.name,
                    node=group[0].record.vote.node,
                    key=key,
                    root=root,
                    size=len(leaves),
                    height=height,
                    sequence=sequence,
                )
            )
            for key, group in groups
        ]
        signatures = await self._signer.sign_heads(
            [ballot.record for ballot in ballots],
            sequence,
            [(key, pae(endorsement.PAYLOAD_TYPE, payload)) for (key, _), payload in zip(groups, payloads, strict=True)],
        )
        self._metrics.batch_votes.observe(len(leaves))
        for ballot in ballots:
            self._metrics.votes.labels(ballot.record.vote.verdict).inc()
        return Tree(
            tuple(
                Branch(
                    group[0].record.vote.node,
                    tuple(leaf.hex() for leaf in some),
                    Envelope(payload, endorsement.PAYLOAD_TYPE, (signature,)),
                )
                for (_, group), some, payload, signature in zip(groups, hashes, payloads, signatures, strict=True)
            )
        )

    async def _forget(self) -> None:
        """Now and then, drop the votes on transactions that have run out: they can be in no block any more."""
        if time.monotonic() - self._forgot_at < FORGET_EVERY_SECONDS:
            return
        self._forgot_at = time.monotonic()
        now = await self._chain.run(lambda replica: replica.time)
        try:
            await self._signer.in_guard_thread(lambda: self._signer.guard.forget(now))
        except GuardError as error:
            log.warning("nothing was forgotten", reason=str(error))

    def _answer(self, batch: Iterable[Waiting], failure: Failure) -> None:
        for waiting in batch:
            if not waiting.result.done():
                waiting.result.set_result(self._failed(failure))

    def _failed(self, failure: Failure, height: int | None = None) -> Result:
        return Result(Answer(failure=failure), None, self._chain.height if height is None else height)

    def _count(self, change: int) -> None:
        self.queued += change
        self._metrics.queued.set(self.queued)
