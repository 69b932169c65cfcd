"""One HTTP/1.1 connection of the load generator: prepared bytes go out, a status and a body come back.

The generator shares its processors with what it measures, so a request must cost it next to nothing: a general
client takes several times as long for each as all the rest of the generator.
"""

import asyncio
from typing import Final

import httptools

from transport.address import Address

ANSWER_SECONDS: Final = 60.0


class Connection(asyncio.Protocol):
    """Sends one request at a time. Make one with `open`."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    @staticmethod
    async def open(address: Address) -> "Connection":
        """A connection to a service; raises `OSError`."""
        loop = asyncio.get_running_loop()
        if address.path is not None:
            _, connection = await loop.create_unix_connection(Connection, address.socket_path())
        else:
            _, connection = await loop.create_connection(Connection, address.host, address.port)
        return connection

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """The status and body that a whole request (see `post`) is answered with; raises `OSError`, `TimeoutError`."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(ANSWER_SECONDS):
            return await self._answer

    def close(self) -> None:
        """Hang up."""
        if self._transport:
            self._transport.close()

    # ---- asyncio.Protocol, then the parser's events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  what stream connections have
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        if self._answer and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the service hung up"))

    def on_message_begin(self) -> None:
        """Called by the parser."""
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        if self._answer and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), b"".join(self._body)))
        self._parser = httptools.HttpResponseParser(self)


def post(path: str, body: bytes) -> bytes:
    """The bytes of a POST request."""
    head = f"POST {path} HTTP/1.1\r\nHost: management\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n".encode() + body
