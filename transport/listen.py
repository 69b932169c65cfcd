"""Every listener of a service is opened here: a Unix socket for its user alone, or loopback."""

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Final

import uvicorn

from transport.address import Address, AddressError
from transport.body import BodyLimit

GRACE_SECONDS: Final = 3
BACKLOG: Final = 1024
PROBE_SECONDS: Final = 1.0

ASGIApp = Callable[[Any, Any, Any], Awaitable[None]]


class _Server(uvicorn.Server):
    """A server that leaves signals to whoever runs it, so that one process can have several listeners."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def serve(app: ASGIApp, addresses: list[Address], stop: asyncio.Event) -> None:
    """Serve `app` at every address until `stop` is set, then finish open requests within `GRACE_SECONDS`."""
    sockets = [_bind(address) for address in addresses]
    config = uvicorn.Config(
        BodyLimit(app),
        log_config=None,
        access_log=False,
        http="httptools",
        timeout_keep_alive=75,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=64 * 1024,
    )
    server = _Server(config)
    stopper = asyncio.create_task(_stop(server, stop))
    try:
        await server.serve(sockets)
    finally:
        stopper.cancel()
        for address in addresses:
            if address.path:
                address.path.unlink(missing_ok=True)


async def _stop(server: uvicorn.Server, stop: asyncio.Event) -> None:
    await stop.wait()
    server.should_exit = True


def _bind(address: Address) -> socket.socket:
    address.require_local()
    if address.path is None:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, address.port))
        except OSError as error:
            listener.close()
            raise AddressError(f"cannot listen at {address}: {error.strerror}; is a service running there?") from None
    else:
        listener = _bind_unix(address)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _bind_unix(address: Address) -> socket.socket:
    path = address.socket_path()
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
    _remove_stale(address, path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # the socket must never exist with wider permissions
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    return listener


def _remove_stale(address: Address, path: str) -> None:
    """Remove the socket file of a service that died; refuse when one still answers, or when it is another file."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AddressError(f"cannot listen at {address}: there is a file that is no socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108
            return
        except PermissionError:
            raise AddressError(f"cannot listen at {address}: the socket there belongs to another user") from None
        except TimeoutError:
            pass  # a queue that is full is a service that runs
    raise AddressError(f"a service is already running at {address}")
