"""An answer that never ends: lines as they come, each sent within a time, ended when the reader goes away."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from transport.stream import MEDIA_TYPE

SEND_SECONDS: Final = 30.0
"""A reader that takes nothing for so long is dropped: it can come back and go on where it was."""


class LineStream(Response):
    """NDJSON from an iterator of lines that carry their line feeds."""

    media_type = MEDIA_TYPE

    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI has three
        """Serve one reader."""
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, TimeoutError, OSError):
                await sending

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self._lines) as lines:  # type: ignore[type-var]  # generators can be closed
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for line in lines:
                async with asyncio.timeout(SEND_SECONDS):
                    await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
