"""Request bodies have a size and a time, and a room that they share; what exceeds them is refused before it is read."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from protocol.canonical import MAX_BYTES
from protocol.messages import MAX_BATCH_BYTES
from transport.problem import ProblemError, problem_response

BODY_SECONDS: Final = 30.0
SHARED_BYTES: Final = 8 * MAX_BATCH_BYTES
"""Room for all large bodies of a listener together: many that come at once, or never end, must not fill the memory."""
SMALL_BYTES: Final = 64 << 10
"""A body up to this size needs none of the shared room, so that large ones cannot keep single transactions out."""
BATCH_SUFFIXES: Final = (":batch", "/endorse", "/sign-header", "/sign-crl")
"""Paths that take a batch, a block or a list end like this; all others take a single message."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _DisconnectedError(Exception):
    """The client went away before its body was complete."""


class _Share:
    """The part of the shared room that one request takes."""

    def __init__(self) -> None:
        self.taken = 0


class BodyLimit:
    """ASGI middleware: 413 beyond the limit of the path, 408 when the body does not come, 429 without room for it."""

    def __init__(self, app: Callable[[Any, Any, Any], Awaitable[None]]) -> None:
        self._app = app
        self._room = SHARED_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or scope["method"] in {"GET", "HEAD", "OPTIONS"}:
            await self._app(scope, receive, send)
            return
        share = _Share()
        try:
            await self._serve(scope, receive, send, share)
        finally:
            self._room += share.taken

    async def _serve(self, scope: Scope, receive: Receive, send: Send, share: _Share) -> None:
        limit = MAX_BATCH_BYTES if scope["path"].endswith(BATCH_SUFFIXES) else MAX_BYTES
        try:
            body = await self._read(scope, receive, limit, share)
        except _DisconnectedError:
            return  # half a body is no request
        except ProblemError as error:
            response = problem_response(error.problem, {"Connection": "close"} | (error.headers or {}))
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

    async def _read(self, scope: Scope, receive: Receive, limit: int, share: _Share) -> bytes:
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
                    self._take(share, len(body))
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            raise ProblemError(408, "body-timeout", f"the body did not come within {BODY_SECONDS:.0f} s") from None

    def _take(self, share: _Share, size: int) -> None:
        """Take room for a body that has grown to `size` bytes; raises `ProblemError` when there is none left."""
        if size <= SMALL_BYTES:
            return
        more = size - share.taken
        if more > self._room:
            detail = "too many large bodies are under way; send this one again in a second"
            raise ProblemError(429, "busy", detail, headers={"Retry-After": "1"})
        self._room -= more
        share.taken = size
