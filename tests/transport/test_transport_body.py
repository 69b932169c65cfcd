"""Request bodies: limited in size and time, before they are read whole."""

import asyncio
import contextlib
import json
import tracemalloc
from collections.abc import AsyncIterator, Iterator, MutableMapping

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from protocol.canonical import MAX_BYTES
from protocol.messages import MAX_BATCH_BYTES
from tests.transport.conftest import Serve
from transport.address import Address
from transport.body import SMALL_BYTES, BodyLimit
from transport.connect import connect
from transport.problem import TYPE_PREFIX

CALLED: list[int] = []


async def _size(request: Request) -> Response:
    try:
        CALLED.append(len(await request.body()))
    except ClientDisconnect:
        CALLED.append(-1)
    return JSONResponse(CALLED[-1])


PATHS = ("/v1/transactions", "/v1/transactions:batch", "/v1/endorse", "/v1/sign-header")
APP = Starlette(routes=[Route(path, _size, methods=["POST", "PUT", "GET"]) for path in PATHS])


@pytest.fixture
async def address(serving: Serve) -> Address:
    """An application that says how large the body was."""
    CALLED.clear()
    return await serving(APP)


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/v1/transactions", MAX_BYTES),
        ("/v1/transactions:batch", MAX_BATCH_BYTES),
        ("/v1/endorse", MAX_BATCH_BYTES),
    ],
)
async def test_a_body_up_to_its_limit_arrives(address: Address, path: str, limit: int) -> None:
    """A mebibyte for one message, sixteen for a batch: to the byte."""
    async with connect(address, timeout=20) as client:
        assert (await client.post(path, content=b"x" * limit)).json() == limit
        refused = await client.post(path, content=b"x" * (limit + 1))
    assert (refused.status_code, refused.json()["type"]) == (413, TYPE_PREFIX + "too-large")
    assert refused.json()["detail"] == f"the body is larger than {limit} bytes"
    assert [limit] == CALLED


async def _raw(address: Address, request: bytes, *, rest: bytes = b"") -> bytes:
    """The beginning of the answer to raw bytes; `rest` is sent until the server answers."""
    reader, writer = await asyncio.open_unix_connection(address.socket_path())
    writer.write(request)
    try:
        async with asyncio.timeout(20):
            while rest and not (reader.at_eof() or reader._buffer):  # type: ignore[attr-defined]  peek
                writer.write(rest)
                await writer.drain()
                await asyncio.sleep(0)
            return await reader.read(4096)
    except ConnectionError:
        return await reader.read(4096)
    finally:
        writer.close()


async def test_a_length_beyond_the_limit_is_refused_unread(address: Address) -> None:
    """The header is enough: not one byte of the body is waited for."""
    request = b"POST /v1/transactions HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n"
    answer = await _raw(address, request)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == TYPE_PREFIX + "too-large"
    assert CALLED == []


@contextlib.contextmanager
def _memory(*, at_most: int) -> Iterator[None]:
    """Fail when more than `at_most` bytes were allocated at any moment."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < at_most
    finally:
        tracemalloc.stop()


async def test_an_endless_body_is_refused_with_memory_flat(address: Address) -> None:
    """Chunks without a stated length are counted; what is refused is not gathered."""
    request = b"POST /v1/transactions:batch HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    with _memory(at_most=4 * MAX_BATCH_BYTES):
        assert (await _raw(address, request, rest=chunk)).startswith(b"HTTP/1.1 413 ")
    assert CALLED == []


async def test_many_small_chunks_weigh_what_they_are() -> None:
    """A body in pieces of two bytes costs no multiple of its size."""
    pieces = MAX_BYTES // 2
    answered: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        nonlocal pieces
        pieces -= 1
        return {"type": "http.request", "body": b"%02d" % (pieces % 100), "more_body": pieces > 0}

    async def send(message: MutableMapping[str, object]) -> None:
        answered.append(dict(message))

    scope = {"type": "http", "method": "POST", "path": "/v1/transactions", "headers": [], "query_string": b""}
    with _memory(at_most=4 * MAX_BYTES):
        await BodyLimit(APP)(scope, receive, send)
    assert answered[-1]["body"] == b"%d" % MAX_BYTES


async def _until(client: httpx2.AsyncClient, content: bytes, status: int) -> httpx2.Response:
    """The first answer of that status: what other connections sent or closed is noticed a moment later."""
    async with asyncio.timeout(5):
        while True:
            answer = await client.post("/v1/transactions", content=content)
            if answer.status_code == status:
                return answer
            await asyncio.sleep(0.01)


async def test_large_bodies_share_one_room(serving: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unfinished batches fill the room, not the memory: the next is told to come back, a small body still arrives."""
    room = 2 * MAX_BYTES
    monkeypatch.setattr("transport.body.SHARED_BYTES", room)
    address = await serving(APP)
    _reader, writer = await asyncio.open_unix_connection(address.socket_path())
    writer.write(b"POST /v1/transactions:batch HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % room)
    writer.write(b"x" * (room - 1))
    await writer.drain()
    async with connect(address, timeout=5) as client:
        busy = await _until(client, b"x" * MAX_BYTES, 429)
        assert (busy.json()["type"], busy.headers["Retry-After"]) == (TYPE_PREFIX + "busy", "1")
        assert (await client.post("/v1/transactions", content=b"x" * SMALL_BYTES)).json() == SMALL_BYTES
        writer.close()
        await writer.wait_closed()
        assert (await _until(client, b"x" * MAX_BYTES, 200)).json() == MAX_BYTES


async def test_a_body_that_does_not_come_is_given_up(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    """408 after the time for a body; the handler is never called."""
    monkeypatch.setattr("transport.body.BODY_SECONDS", 0.2)
    request = b"POST /v1/transactions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"
    answer = await _raw(address, request)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["type"] == TYPE_PREFIX + "body-timeout"
    assert CALLED == []


async def test_half_a_body_is_no_request(address: Address) -> None:
    """A client that goes away in the middle has asked for nothing."""
    _reader, writer = await asyncio.open_unix_connection(address.socket_path())
    writer.write(b"POST /v1/transactions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()
    async with connect(address, timeout=5) as client:
        assert (await client.post("/v1/transactions", content=b"whole")).json() == 5
    assert CALLED == [5]


async def test_a_streamed_body_arrives_whole(address: Address) -> None:
    """Chunks below the limit are put together in order."""

    async def chunks() -> AsyncIterator[bytes]:
        for size in range(1, 50):
            yield b"x" * size

    async with connect(address, timeout=5) as client:
        assert (await client.post("/v1/transactions", content=chunks())).json() == sum(range(50))
        assert (await client.get("/v1/transactions")).json() == 0
