"""Follows one of several sources, and appends what verifies. It trusts none of them.

- A connection that breaks, a refusal, a bad copy, a block out of step, silence: the next source is asked.
- A block that its centers signed and that this peer cannot accept: the peer halts and stays halted. It goes on
  answering from what it has, and says why it halted in its log, its status and its health.
- A database that cannot be written says nothing about the block: the same block is tried again.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import httpx2
import msgspec
import sqlalchemy.exc
import structlog

from ledger.errors import BadCopyError, BlockRefusedError, DivergedError, NotNextError, StoreError
from ledger.replica import CheckedBlock, Replica
from peer.activity import Activity
from peer.metrics import Metrics
from protocol.block import MAX_BLOCK_BYTES, Block
from protocol.errors import ProtocolError
from transport.address import Address
from transport.operations import Readiness
from transport.problem import ProblemError
from transport.stream import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, lines

HEARD_SECONDS: Final = 20.0
"""A peer is ready when a source said something (a block or a keep-alive) within this time."""
STALL_SECONDS: Final = 150.0
"""With several sources, one that sends keep-alives and no block is left after this time (two heartbeats and more)."""


class Head(msgspec.Struct, frozen=True):
    """The last block that was applied: height, time in milliseconds, authentication data."""

    height: int
    time: int
    authentication: str


class Halt(msgspec.Struct, frozen=True):
    """Why the peer stopped: the stable code, the reason in words, and the height of the block it cannot accept."""

    code: str
    reason: str
    height: int


class Follower:
    """Brings a replica forward. The replica is touched in the `ledger` thread alone."""

    def __init__(
        self,
        replica: Replica,
        ledger: ThreadPoolExecutor,
        sources: tuple[Address, ...],
        metrics: Metrics,
        activity: Activity,
    ) -> None:
        self.head = Head(replica.height, replica.time, replica.authentication)
        self.halted: Halt | None = None
        self._replica = replica
        self._activity = activity
        self._ledger = ledger
        self._sources = sources
        self._metrics = metrics
        self._heard: float | None = None
        self._trouble = ""
        self._log = structlog.get_logger()
        metrics.height.set(replica.height)

    async def run(self, stop: asyncio.Event) -> None:
        """Follow until `stop` is set or the peer halts; never raises for what a source does."""
        following = asyncio.create_task(self._follow_all())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not following.done():
            following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following  # raises what failed in it

    async def readiness(self) -> Readiness:
        """Ready: not halted, and a source was heard within `HEARD_SECONDS`."""
        if self.halted:
            chain = f"halted at height {self.halted.height}: {self.halted.code}: {self.halted.reason}"
        else:
            chain = self._trouble or "ok"
        silent = None if self._heard is None else time.monotonic() - self._heard
        if silent is not None and silent < HEARD_SECONDS:
            source = "ok"
        else:
            since = "since the start" if silent is None else f"for {silent:.0f} s"
            source = f"nothing heard {since}; check that one of these runs: {', '.join(map(str, self._sources))}"
        checks = {"chain": chain, "source": "ok" if self.halted else source}
        return Readiness(all(check == "ok" for check in checks.values()), checks)

    async def _follow_all(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        turn = 0
        while not self.halted:
            source = self._sources[turn % len(self._sources)]
            before = self.head.height
            await self._follow(source)
            turn += 1
            pause = FIRST_PAUSE_SECONDS if self.head.height > before else min(2 * pause, LONGEST_PAUSE_SECONDS)
            if not self.halted:
                await asyncio.sleep(pause)

    async def _follow(self, source: Address) -> None:
        """Apply what one source sends, until it or the peer has to stop."""
        path = f"/v1/blocks?from={self.head.height + 1}"
        try:
            async with contextlib.aclosing(lines(source, path, limit=MAX_BLOCK_BYTES, heard=self._hear)) as stream:
                while await self._apply(await self._next(stream)):
                    pass
        except StopAsyncIteration:
            self._leave(source, "ended", "the stream ended")
        except TimeoutError:
            self._leave(source, "stalled", f"no block for {STALL_SECONDS:.0f} s")
        except (BadCopyError, ProtocolError, ValueError) as error:
            self._leave(source, "bad-copy", str(error))
        except NotNextError as error:
            self._leave(source, "out-of-step", str(error))
        except (ProblemError, httpx2.HTTPError, OSError) as error:
            self._leave(source, "connection", str(error) or type(error).__name__)
        except (StoreError, sqlalchemy.exc.SQLAlchemyError) as error:
            self._trouble = f"the chain cannot be stored: {error}; make room or repair the database, it is tried again"
            self._log.error("cannot store", height=self.head.height + 1, reason=str(error))

    async def _next(self, stream: AsyncGenerator[bytes]) -> bytes:
        # With one source there is nobody else to ask, and a keep-alive is all that can be expected of it.
        async with asyncio.timeout(STALL_SECONDS if len(self._sources) > 1 else None):
            return await anext(stream)

    async def _apply(self, line: bytes) -> bool:
        """Verify, execute and store one block; False after one that this peer cannot accept."""
        began = time.monotonic()
        try:
            checked = await self._in_ledger_thread(line)
        except (BlockRefusedError, DivergedError) as error:
            self._halt(error)
            return False
        header = checked.block.header
        self.head = Head(header.height, header.time, checked.block.authentication)
        self._trouble = ""
        self._hear()
        self._metrics.apply_seconds.observe(time.monotonic() - began)
        self._metrics.height.set(header.height)
        self._metrics.blocks.inc()
        for outcome in checked.outcomes:
            self._metrics.transactions.labels(outcome.code).inc()
        return True

    async def _in_ledger_thread(self, line: bytes) -> CheckedBlock:
        running = asyncio.get_running_loop().run_in_executor(self._ledger, self._check_and_append, line)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # A commit cannot be taken back half-way: the stop waits for it.
            await asyncio.wait({running})
            raise

    def _check_and_append(self, line: bytes) -> CheckedBlock:
        checked = self._replica.check(Block.decode(line))
        self._replica.append(checked, also=lambda connection: self._activity.record(connection, checked.block))
        return checked

    def _halt(self, error: BlockRefusedError | DivergedError) -> None:
        self.halted = Halt(error.code, str(error), self.head.height + 1)
        self._metrics.halted.set(1)
        self._log.critical("halted", code=error.code, reason=str(error), height=self.halted.height)

    def _leave(self, source: Address, cause: str, reason: str) -> None:
        self._metrics.breaks.labels(cause).inc()
        self._log.warning("left source", source=str(source), cause=cause, reason=reason, height=self.head.height)

    def _hear(self) -> None:
        self._heard = time.monotonic()
