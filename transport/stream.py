"""NDJSON streams: lines from a service, followed over every break of the connection."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
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
ERROR_BYTES: Final = 64 * 1024


async def lines(
    address: Address, path: str, *, limit: int, heard: Callable[[], None] | None = None
) -> AsyncGenerator[bytes]:
    """The lines of one connection, without line feeds; keep-alives are dropped (`heard` is told of them too).

    Raises `httpx2.HTTPError` when the connection breaks or is silent for `SILENCE_SECONDS`, `ProblemError` for a
    refusal, `ValueError` for a line beyond `limit` bytes.
    """
    async with (
        connect(address, timeout=SILENCE_SECONDS, connections=1) as client,
        client.stream("GET", path, headers={"Accept": MEDIA_TYPE}) as response,
    ):
        if response.is_error:
            raise_for_problem(response.status_code, await _beginning(response))
        if heard:
            heard()
        pending = bytearray()
        async for chunk in response.aiter_raw():
            if heard:
                heard()
            *complete, rest = chunk.split(b"\n")
            for part in complete:
                line = bytes(pending + part)
                pending.clear()
                if len(line) > limit:
                    raise _too_long(limit, address)
                if line:
                    yield line
            pending += rest
            if len(pending) > limit:
                raise _too_long(limit, address)


def _too_long(limit: int, address: Address) -> ValueError:
    return ValueError(f"a line of more than {limit} bytes from {address}")


async def _beginning(response: httpx2.Response) -> bytes:
    """As much of an error's body as is looked at: whoever answers must not be able to fill the memory."""
    body = b""
    async with contextlib.aclosing(response.aiter_raw()) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) >= ERROR_BYTES:
                break
    return body[:ERROR_BYTES]


async def follow(
    address: Address, path_from: Callable[[], str], *, limit: int, on_break: Callable[[Exception], None]
) -> AsyncGenerator[bytes]:
    """Lines for ever: after each break (told to `on_break`) it pauses and asks for `path_from()` again."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            async with contextlib.aclosing(lines(address, path_from(), limit=limit)) as connection:
                async for line in connection:
                    pause = FIRST_PAUSE_SECONDS
                    yield line
        except (httpx2.HTTPError, OSError) as error:
            on_break(error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
