"""Request bodies have a size and a time; what exceeds them is refused before it is read whole."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from protocol.canonical import MAX_BYTES
from protocol.messages import MAX_BATCH_BYTES
from transport.problem import ProblemError, problem_response

BODY_SECONDS: Final = 30.0
BATCH_SUFFIXES: Final = (":batch", "/endorse", "/sign-header")
"""Paths that take a batch or a block end like this; all others take a single message."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _DisconnectedError(Exception):
    """The client went away before its body was complete."""


class BodyLimit:
    """ASGI middleware: 413 beyond the limit of the path, 408 when the body does not come."""

    def __init__(self, app: Callable[[Any, Any, Any], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD", "OPTIONS"}:
            await self._app(scope, receive, send)
            return
        limit = MAX_BATCH_BYTES if scope["path"].endswith(BATCH_SUFFIXES) else MAX_BYTES
        try:
            body = await self._read(scope, receive, limit)
        except _DisconnectedError:
            return  # half a body is no request
        except ProblemError as error:
            response = problem_response(error.problem, {"Connection": "close"})
            await response(scope, receive, send)
            return
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _read(self, scope: Scope, receive: Receive, limit: int) -> bytes:
        too_large = ProblemError(413, "too-large", f"the body is larger than {limit} bytes")
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > limit:
                raise too_large
        body = bytearray()  # not a list of chunks: those of a few bytes would weigh many times their size
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _DisconnectedError
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise ProblemError(408, "body-timeout", f"the body did not come within {BODY_SECONDS:.0f} s") from None
