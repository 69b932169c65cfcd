"""NDJSON streams: lines from a service, followed over every break of the connection."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

import httpx2

from transport.address import Address
from transport.connect import connect
from transport.problem import raise_for_problem

MEDIA_TYPE: Final = "application/x-ndjson"
KEEPALIVE_SECONDS: Final = 5.0
"""A server sends an empty line at least this often, so that silence means a dead connection."""
SILENCE_SECONDS: Final = 3 * KEEPALIVE_SECONDS
FIRST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 2.0


async def lines(address: Address, path: str, *, limit: int) -> AsyncIterator[bytes]:
    """The lines of one connection, without line feeds; keep-alives are dropped.

    Raises `httpx2.HTTPError` when the connection breaks or is silent for `SILENCE_SECONDS`, `ProblemError` for a
    refusal, `ValueError` for a line beyond `limit` bytes.
    """
    async with (
        connect(address, timeout=SILENCE_SECONDS, connections=1) as client,
        client.stream("GET", path, headers={"Accept": MEDIA_TYPE}) as response,
    ):
        if response.is_error:
            raise_for_problem(response.status_code, await response.aread())
        pending: list[bytes] = []
        size = 0
        async for chunk in response.aiter_raw():
            *complete, rest = chunk.split(b"\n")
            for part in complete:
                line = b"".join((*pending, part))
                pending, size = [], 0
                if line:
                    yield line
            if rest:
                pending.append(rest)
                size += len(rest)
                if size > limit:
                    raise ValueError(f"a line of more than {limit} bytes from {address}")


async def follow(
    address: Address, path_from: Callable[[], str], *, limit: int, on_break: Callable[[Exception], None]
) -> AsyncIterator[bytes]:
    """Lines for ever: after each break (told to `on_break`) it pauses and asks for `path_from()` again."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            async for line in lines(address, path_from(), limit=limit):
                pause = FIRST_PAUSE_SECONDS
                yield line
        except (httpx2.HTTPError, OSError) as error:
            on_break(error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
