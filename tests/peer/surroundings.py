"""What surrounds a peer in its tests: a chain of software keys, a source that can lie, the peer itself."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2

from ledger.replica import Replica
from ledger.store import ChainStore, url_of
from peer.config import Config
from peer.service import serve
from protocol.transaction import Transaction
from tests.chain_builder import Network
from transport import listen
from transport.address import Address
from transport.connect import connect

Answer = Callable[[int], AsyncIterator[bytes]]


class Chain:
    """What an honest center holds: every block, and the replica that they came from."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.network = network
        self.genesis = network.genesis()
        self.replica = Replica.create(ChainStore.create(url_of(folder / "center.db")), self.genesis)
        self.blocks = [self.genesis]

    def cut(self, *transactions: Transaction) -> bytes:
        """Append a block of these transactions, endorsed by A and B."""
        block = self.network.block(self.replica, transactions).encode()
        self.replica.apply(block)
        self.blocks.append(block)
        return block

    def grow(self, blocks: int) -> None:
        """Append blocks of one evidence record each."""
        for _ in range(blocks):
            self.cut(self.network.evidence(f"subject-{len(self.blocks)}"))

    @property
    def height(self) -> int:
        """The height of the last block."""
        return len(self.blocks) - 1


class Source:
    """A center's stream of blocks. `lie` replaces single blocks, `answer` the whole answer, `status` refuses."""

    def __init__(self, address: Address, chain: Chain) -> None:
        self.address = address
        self.chain = chain
        self.lie: Callable[[int, bytes], bytes] = lambda _height, block: block
        self.answer: Answer = self.honest
        self.status = 200
        self.asked: list[int] = []
        self._stop = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen."""
        self._stop = asyncio.Event()
        self._running = asyncio.create_task(listen.serve(self, [self.address], self._stop))
        await until(lambda: bool(self.address.path and self.address.path.exists()))

    async def stop(self) -> None:
        """Go away; every connection breaks."""
        self._stop.set()
        if self._running:
            await self._running

    async def honest(self, height: int) -> AsyncIterator[bytes]:
        """The blocks from a height on, for ever, with keep-alives in between."""
        while not self._stop.is_set():
            while height < len(self.chain.blocks):
                yield self.lie(height, self.chain.blocks[height]) + b"\n"
                height += 1
            yield b"\n"
            await asyncio.sleep(0.02)

    async def __call__(
        self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        height = int(scope["query_string"].removeprefix(b"from="))
        self.asked.append(height)
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        # A source does not hear that its client left while it is silent, so both are waited for.
        sending = asyncio.create_task(self._send(height, send))
        leaving = asyncio.create_task(_disconnected(receive))
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        for task in (sending, leaving):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _send(self, height: int, send: Callable[[Any], Awaitable[None]]) -> None:
        async for chunk in self.answer(height):
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class RunningPeer:
    """A whole peer service in this process, reached over its socket."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._stop = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the service; wait until it answers."""
        self._stop = asyncio.Event()
        self._running = asyncio.create_task(serve(self.config, self._stop))
        path = self.config.listen[0].path
        await until(lambda: bool(path and path.exists()) or bool(self._running and self._running.done()))
        if self._running.done():
            await self._running

    async def stop(self) -> None:
        """Stop it as SIGTERM would; raises what it failed with."""
        self._stop.set()
        if self._running:
            await self._running
            self._running = None

    async def get(self, path: str) -> httpx2.Response:
        """One request to the peer."""
        async with connect(self.config.listen[0], timeout=10) as client:
            return await client.get(path)

    async def status(self) -> dict[str, Any]:
        """What `/v1/status` says."""
        return dict((await self.get("/v1/status")).json())

    async def reach(self, height: int, *, seconds: float = 20) -> dict[str, Any]:
        """Wait until the peer has applied `height`."""
        return await self._status_when(lambda status: status["height"] >= height, seconds)

    async def halt(self, *, seconds: float = 20) -> dict[str, Any]:
        """Wait until the peer has halted; what it says of it."""
        return dict((await self._status_when(lambda status: bool(status["halted"]), seconds))["halted"])

    async def _status_when(self, wanted: Callable[[dict[str, Any]], bool], seconds: float) -> dict[str, Any]:
        async with asyncio.timeout(seconds):
            while not wanted(status := await self.status()):  # noqa: ASYNC110  the peer is asked over its socket
                await asyncio.sleep(0.02)
        return status


async def until(condition: Callable[[], bool], *, seconds: float = 10) -> None:
    """Wait for a condition of this process."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  any condition, without an event of its own
            await asyncio.sleep(0.01)
