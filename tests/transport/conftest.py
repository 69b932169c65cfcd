"""A server of this process on a Unix socket, around any application."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from transport import listen
from transport.address import Address
from transport.listen import ASGIApp

Serve = Callable[[ASGIApp], Awaitable[Address]]


@pytest.fixture
async def serving(tmp_path: Path) -> AsyncIterator[Serve]:
    """Serve an application; the address at which it answers."""
    stop = asyncio.Event()
    running: list[asyncio.Task[None]] = []

    async def serve(app: ASGIApp) -> Address:
        address = Address(path=tmp_path / f"{len(running)}.sock")
        running.append(asyncio.create_task(listen.serve(app, [address], stop)))
        async with asyncio.timeout(10):
            while not (address.path and address.path.exists()):  # noqa: ASYNC110  the file is made by the server
                await asyncio.sleep(0.01)
        return address

    yield serve
    stop.set()
    await asyncio.gather(*running)
