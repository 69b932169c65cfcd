"""A distance that can be set: stream proxies that hold every byte for a one-way delay, in order.

Each link is a Unix socket in front of a service. What comes in on one side leaves on the other `delay` seconds
later, in both directions; many bytes can be under way at once, so a link adds latency and does not limit the rate.
A new connection waits one round trip more before its first byte, as the handshake of TCP does.
"""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from transport.address import Address

CHUNK: Final = 64 << 10
MOST_CHUNKS: Final = 1024
"""Chunks under way in one direction of a connection; a sender beyond them waits."""
CALL_SECONDS: Final = 5.0

T = TypeVar("T")


class Link:
    """One socket in front of one service. `delay` (seconds, one way) may be set at any time, from any thread."""

    def __init__(self, listen: Address, target: Address, delay: float = 0.0) -> None:
        self.listen = listen
        self.target = target
        self.delay = delay
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen."""
        self._server = await asyncio.start_unix_server(self._accept, self.listen.socket_path())

    async def stop(self) -> None:
        """Close the socket and every connection."""
        if self._server is None:
            return
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)
        if self.listen.path:
            self.listen.path.unlink(missing_ok=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A task of our own: the server's would report its cancellation as an error when the link is stopped.
        task = asyncio.create_task(self._carry(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until both of its directions have ended, or one has failed."""
        self.connections += 1
        opened = asyncio.get_running_loop().time() + 2 * self.delay
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_unix_connection(self.target.socket_path())
            writers.append(far_writer)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._one_way(reader, far_writer, opened))
                both.create_task(self._one_way(far_reader, writer, opened))
            writer.close()
            far_writer.close()
        except* OSError:
            pass  # the service is away, or one side broke off: so does the other
        finally:
            for each in writers:
                if not each.is_closing():
                    each.transport.abort()

    async def _one_way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, opened: float) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(MOST_CHUNKS)
        async with asyncio.TaskGroup() as halves:
            halves.create_task(self._take(reader, under_way, opened))
            halves.create_task(_deliver(under_way, writer))

    async def _take(
        self, reader: asyncio.StreamReader, under_way: "asyncio.Queue[tuple[float, bytes]]", opened: float
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            chunk = await reader.read(CHUNK)  # empty at the end, which travels like any other byte
            await under_way.put((max(loop.time(), opened) + self.delay, chunk))
            if not chunk:
                return


async def _deliver(under_way: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due, chunk = await under_way.get()
        if (wait := due - loop.time()) > 0:
            await asyncio.sleep(wait)
        if not chunk:
            with contextlib.suppress(OSError):  # closed already, and so is this direction
                writer.write_eof()
            return
        writer.write(chunk)
        await writer.drain()


class Distance:
    """Links that live in a thread and an event loop of their own. A context manager: leaving it closes them all."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="distance", daemon=True)
        self._links: list[Link] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for link in self._links:
                self._call(link.stop())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(CALL_SECONDS)
            self._loop.close()

    def link(self, listen: Address, target: Address, delay: float = 0.0) -> Link:
        """A new link that listens at `listen` and leads to `target`; `delay` in seconds, one way."""
        link = Link(listen, target, delay)
        self._call(link.start())
        self._links.append(link)
        return link

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_SECONDS)
