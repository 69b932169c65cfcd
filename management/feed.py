"""Blocks and commit events as lines, from any height on: history from the store, then live (E-13).

Subscribers pull: each has a position, nobody has a queue, and the bytes of the newest blocks are shared.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Final, Literal

from ledger.store import ChainStore
from management.errors import BusyError
from protocol import canonical
from transport.stream import KEEPALIVE_SECONDS

MOST_SUBSCRIBERS: Final = 256
KEPT_BYTES: Final = 64 << 20

Kind = Literal["blocks", "events"]


class Feed:
    """The chain as two streams of lines (canonical bytes, without line feeds)."""

    def __init__(self, store: ChainStore, height: int, readers: Executor) -> None:
        self._store = store
        self._height = height
        self._readers = readers
        self._recent: OrderedDict[int, tuple[bytes, bytes]] = OrderedDict()
        self._kept = 0
        self._subscribers = 0
        self._news = asyncio.Event()
        self._ended = False

    def publish(self, height: int, block: bytes, event: bytes) -> None:
        """A block is in the chain: wake up all who wait for it."""
        self._recent[height] = (block, event)
        self._kept += len(block) + len(event)
        while self._kept > KEPT_BYTES and len(self._recent) > 1:
            _, dropped = self._recent.popitem(last=False)
            self._kept -= sum(map(len, dropped))
        self._height = height
        self._wake()

    def end(self) -> None:
        """All streams end now."""
        self._ended = True
        self._wake()

    def subscribe(self, kind: Kind, start: int) -> AsyncIterator[bytes]:
        """Lines from height `start` on, for ever; an empty one as keep-alive. Raises `BusyError`."""
        if self._subscribers >= MOST_SUBSCRIBERS:
            raise BusyError(f"{self._subscribers} streams are open already; follow another center or a peer", 5)
        return self._lines(kind, start)

    async def block(self, height: int) -> bytes | None:
        """The canonical bytes of one block."""
        return await self._line("blocks", height)

    async def _lines(self, kind: Kind, start: int) -> AsyncIterator[bytes]:
        self._subscribers += 1
        try:
            height = start
            while not self._ended:
                news = self._news
                if height <= self._height:
                    line = await self._line(kind, height)
                    if line is None:
                        return
                    yield line + b"\n"
                    height += 1
                    continue
                try:
                    await asyncio.wait_for(news.wait(), KEEPALIVE_SECONDS)
                except TimeoutError:
                    yield b"\n"
        finally:
            self._subscribers -= 1

    async def _line(self, kind: Kind, height: int) -> bytes | None:
        recent = self._recent.get(height)
        if recent is not None:
            return recent[kind == "events"]
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, kind, height)

    def _read(self, kind: Kind, height: int) -> bytes | None:
        if kind == "blocks":
            return self._store.block(height)
        event = self._store.event(height)
        return None if event is None else canonical.encode(event)

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()
