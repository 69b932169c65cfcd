"""The device's own copy of the chain: it follows the stream of blocks, verifies, executes, and answers questions.

The replica belongs to one thread, the `ledger` thread. A block that its centers signed and that this device
cannot accept halts it: it signs nothing more, and says why. All other troubles are a source's, and the next one
is asked.
"""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import httpx2
import sqlalchemy.exc
import structlog

from hsm_endorser.errors import NotReadyError
from ledger.errors import BadCopyError, BlockRefusedError, DivergedError, NotNextError, StoreError
from ledger.registry_view import RegistryView
from ledger.replica import CheckedBlock, Replica
from protocol.block import MAX_BLOCK_BYTES
from protocol.errors import ProtocolError
from transport.address import Address
from transport.problem import ProblemError
from transport.stream import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, lines

T = TypeVar("T")
Applied = Callable[[CheckedBlock], None]
"""Told of every block that was applied."""

BEHIND_SECONDS: Final = 2.0
"""How long a request waits for the height that it needs."""

SOURCE_ERRORS: Final = (
    BadCopyError,
    NotNextError,
    ProtocolError,
    ProblemError,
    httpx2.HTTPError,
    OSError,
    ValueError,
)
"""What says something about a source and nothing about the chain."""

log = structlog.get_logger()


class Chain:
    """A replica in a thread of its own, and who waits for it."""

    def __init__(self, replica: Replica, thread: ThreadPoolExecutor) -> None:
        self.halted = ""
        self.network = replica.network
        self._replica = replica
        self._thread = thread
        self._moved = asyncio.Event()

    @property
    def height(self) -> int:
        """The height that was applied last."""
        return self._replica.height

    @property
    def time(self) -> int:
        """The last block's time, in milliseconds since the epoch."""
        return self._replica.time

    @property
    def registry(self) -> RegistryView:
        """What is in force for the next block; a value that never changes."""
        return self._replica.registry

    async def run(self, work: Callable[[Replica], T]) -> T:
        """Run `work` on the replica, in its thread; it runs to its end even when the caller goes away."""
        running = asyncio.get_running_loop().run_in_executor(self._thread, work, self._replica)
        return await asyncio.shield(running)

    async def reach(self, height: int, *, seconds: float = BEHIND_SECONDS) -> None:
        """Wait until `height` was applied; raises `NotReadyError` when it is not in time, or never."""
        try:
            async with asyncio.timeout(seconds):
                while self.height < height and not self.halted:
                    await self._moved.wait()
        except TimeoutError:
            raise NotReadyError(
                f"this device has applied height {self.height}, height {height} is needed; try again in a moment"
            ) from None
        if self.halted:
            raise NotReadyError(f"this device has halted: {self.halted}")

    async def follow(self, sources: tuple[Address, ...], applied: Applied, stop: asyncio.Event) -> None:
        """Apply blocks until `stop` is set; the sources are asked in turn."""
        following = asyncio.create_task(self._follow_all(sources, applied))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not following.done():
            following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following

    async def _follow_all(self, sources: tuple[Address, ...], applied: Applied) -> None:
        pause, turn = FIRST_PAUSE_SECONDS, 0
        while not self.halted:
            before = self.height
            source = sources[turn % len(sources)]
            try:
                await self._follow(source, applied)
            except (BlockRefusedError, DivergedError) as error:
                self.halt(f"block {self.height + 1}: {error.code}: {error}")
                return
            except (StoreError, sqlalchemy.exc.SQLAlchemyError) as error:
                log.error("the chain cannot be stored", height=self.height + 1, reason=str(error))  # noqa: TRY400
            except (
                BadCopyError,
                NotNextError,
                ProtocolError,
                ProblemError,
                httpx2.HTTPError,
                OSError,
                ValueError,
            ) as error:
                log.info("left source", source=str(source), reason=str(error) or type(error).__name__)
            turn += 1
            pause = FIRST_PAUSE_SECONDS if self.height > before else min(2 * pause, LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause)

    async def _follow(self, source: Address, applied: Applied) -> None:
        path = f"/v1/blocks?from={self.height + 1}"
        async with contextlib.aclosing(lines(source, path, limit=MAX_BLOCK_BYTES)) as stream:
            async for line in stream:
                await self.apply(line, applied)

    async def apply(self, line: bytes, applied: Applied | None = None) -> CheckedBlock:
        """Verify, execute and store the next block; raises as `Replica.apply` does."""
        checked = await self.run(lambda replica: replica.apply(line))
        if applied:
            applied(checked)
        self._wake()
        return checked

    def halt(self, reason: str) -> None:
        """Never sign or apply anything again; the reason is shown to whoever asks."""
        self.halted = reason
        log.critical("halted", reason=reason)
        self._wake()

    def _wake(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
