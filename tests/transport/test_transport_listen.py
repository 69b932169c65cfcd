"""Listeners: for their own user alone, and never over another's file or service."""

import asyncio
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from tests.transport.conftest import Serve
from transport import listen
from transport.address import Address, AddressError
from transport.connect import connect


async def _hello(_request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


APP = Starlette(routes=[Route("/", _hello)])


async def _ask(address: Address) -> str:
    async with connect(address, timeout=5) as client:
        return (await client.get("/")).text


@pytest.mark.requirement("S-1")
async def test_a_socket_is_its_users_alone(serving: Serve) -> None:
    """Mode 0600 from the first moment on."""
    address = await serving(APP)
    assert address.path
    mode = address.path.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert await _ask(address) == "hello"


async def test_a_folder_that_is_made_for_a_socket_is_its_users_alone(tmp_path: Path) -> None:
    """A missing folder is made with mode 0700; the socket goes away when the service stops."""
    stop = asyncio.Event()
    address = Address(path=tmp_path / "run" / "a.sock")
    running = asyncio.create_task(listen.serve(APP, [address], stop))
    while not (address.path and address.path.exists()):  # noqa: ASYNC110  the file is made by the server
        await asyncio.sleep(0.01)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    stop.set()
    await running
    assert not address.path.exists()


async def test_the_socket_of_a_dead_service_is_taken_over(tmp_path: Path) -> None:
    """A socket file that nobody answers at is no hindrance after a crash."""
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert path.exists()
    stop = asyncio.Event()
    address = Address(path=path)
    running = asyncio.create_task(listen.serve(APP, [address], stop))
    async with asyncio.timeout(10):
        while stat.S_IMODE(path.lstat().st_mode) != 0o600:  # noqa: ASYNC110  the file is made by the server
            await asyncio.sleep(0.01)
    assert await _ask(address) == "hello"
    stop.set()
    await running


async def test_a_running_service_is_not_pushed_aside(serving: Serve) -> None:
    """The second is refused with the reason, and the first goes on."""
    address = await serving(APP)
    with pytest.raises(AddressError, match="a service is already running at unix:"):
        await listen.serve(APP, [address], asyncio.Event())
    assert await _ask(address) == "hello"


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """A wrong path in a configuration costs no file."""
    path = tmp_path / "genesis.json"
    path.write_text("precious")
    with pytest.raises(AddressError, match="there is a file that is no socket; choose another path"):
        await listen.serve(APP, [Address(path=path)], asyncio.Event())
    assert path.read_text() == "precious"


async def test_a_port_that_is_taken_is_named() -> None:
    """The message names the address and asks whether a service runs there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(AddressError, match=f"cannot listen at http://127.0.0.1:{port}: Address already in use"):
            await listen.serve(APP, [Address(host="127.0.0.1", port=port)], asyncio.Event())


@pytest.mark.requirement("S-1")
async def test_beyond_loopback_nothing_is_opened() -> None:
    """The rule holds where the socket is made, whoever asks."""
    with pytest.raises(AddressError, match="would carry everything in clear"):
        await listen.serve(APP, [Address(host="0.0.0.0", port=0)], asyncio.Event())  # noqa: S104  what must be refused


async def test_several_addresses_serve_one_application(tmp_path: Path) -> None:
    """A Unix socket and loopback at the same time."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stop = asyncio.Event()
    addresses = [Address(path=tmp_path / "a.sock"), Address(host="127.0.0.1", port=port)]
    running = asyncio.create_task(listen.serve(APP, addresses, stop))
    while not (tmp_path / "a.sock").exists():  # noqa: ASYNC110  the file is made by the server
        await asyncio.sleep(0.01)
    assert [await _ask(address) for address in addresses] == ["hello", "hello"]
    stop.set()
    await running


async def test_a_stop_lets_an_open_request_finish(tmp_path: Path) -> None:
    """What was begun is answered within the grace."""
    begun = asyncio.Event()

    async def slow(_request: Any) -> PlainTextResponse:
        begun.set()
        await asyncio.sleep(0.3)
        return PlainTextResponse("finished")

    stop = asyncio.Event()
    address = Address(path=tmp_path / "a.sock")
    running = asyncio.create_task(listen.serve(Starlette(routes=[Route("/", slow)]), [address], stop))
    while not (tmp_path / "a.sock").exists():  # noqa: ASYNC110  the file is made by the server
        await asyncio.sleep(0.01)
    asking = asyncio.create_task(_ask(address))
    await begun.wait()
    stop.set()
    assert await asking == "finished"
    await running
