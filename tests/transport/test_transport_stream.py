"""NDJSON streams: whole lines alone, over every break of the connection."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from tests.transport.conftest import Serve
from transport.address import Address
from transport.problem import ProblemError, problem_response
from transport.stream import follow, lines

Body = Callable[[int], AsyncIterator[bytes]]


def _app(body: Body) -> Starlette:
    async def stream(request: Request) -> StreamingResponse:
        return StreamingResponse(body(int(request.query_params.get("from", "0"))), media_type="application/x-ndjson")

    return Starlette(routes=[Route("/lines", stream)])


async def _read(address: Address, *, limit: int = 1000, heard: Callable[[], None] | None = None) -> list[bytes]:
    return [line async for line in lines(address, "/lines", limit=limit, heard=heard)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_lines_are_put_together_however_they_are_cut(serving: Serve, size: int) -> None:
    """Pieces of any size give the same lines; empty ones are keep-alives, and half a line is none."""
    data = b'one\n\n\n"two"\n' + b"x" * 50 + b"\n\nhalf"

    async def pieces(_start: int) -> AsyncIterator[bytes]:
        for at in range(0, len(data), size):
            yield data[at : at + size]

    heard: list[None] = []
    address = await serving(_app(pieces))
    assert await _read(address, heard=lambda: heard.append(None)) == [b"one", b'"two"', b"x" * 50]
    assert len(heard) > 1


@pytest.mark.parametrize("ending", [b"", b"\n"])
async def test_a_line_beyond_its_limit_is_refused(serving: Serve, ending: bytes) -> None:
    """Whether it ends or not, it is not handed on; one of just the limit is."""

    async def long(_start: int) -> AsyncIterator[bytes]:
        yield b"x" * 1000 + b"\n" + b"y" * 1001 + ending

    address = await serving(_app(long))
    async with contextlib.aclosing(lines(address, "/lines", limit=1000)) as stream:
        assert await anext(stream) == b"x" * 1000
        with pytest.raises(ValueError, match="a line of more than 1000 bytes from unix:"):
            await anext(stream)


async def test_a_refusal_is_a_problem(serving: Serve) -> None:
    """The stream's error status comes with its reason, however long the body is."""

    async def refuse(scope: object, receive: object, send: Callable[[object], object]) -> None:
        response = problem_response(ProblemError(409, "behind", "no such height").problem)
        await response(scope, receive, send)  # type: ignore[arg-type]

    with pytest.raises(ProblemError, match="behind: no such height"):
        await _read(await serving(refuse))

    async def endless(_start: int) -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 10_000
            await asyncio.sleep(0)

    async def stream(_request: Request) -> StreamingResponse:
        return StreamingResponse(endless(0), status_code=500)

    async with asyncio.timeout(10):
        with pytest.raises(ProblemError, match="http-error: xxx"):
            await _read(await serving(Starlette(routes=[Route("/lines", stream)])))


async def test_silence_is_a_break(serving: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that sends no keep-alive is taken for dead."""
    monkeypatch.setattr("transport.stream.SILENCE_SECONDS", 0.2)

    async def silent(_start: int) -> AsyncIterator[bytes]:
        yield b"one\n"
        await asyncio.sleep(30)

    with pytest.raises(httpx2.ReadTimeout):
        await _read(await serving(_app(silent)))


async def test_following_goes_on_after_every_break(serving: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection gives two lines and half of the next, and nothing is lost or comes twice."""
    monkeypatch.setattr("transport.stream.FIRST_PAUSE_SECONDS", 0.01)

    async def two(start: int) -> AsyncIterator[bytes]:
        yield b"%d\n%d\n%d" % (start, start + 1, start + 2)

    got: list[int] = []
    address = await serving(_app(two))
    following = follow(address, lambda: f"/lines?from={len(got)}", limit=100, on_break=lambda _error: None)
    async with asyncio.timeout(10), contextlib.aclosing(following):
        async for line in following:
            got.append(int(line))
            if len(got) == 9:
                break
    assert got == list(range(9))


async def test_following_waits_for_a_server_that_is_not_there_yet(serving: Serve, tmp_path: object) -> None:
    """Breaks are told to the follower, and the server is found when it comes."""
    breaks: list[Exception] = []
    address = Address.parse(f"unix:{tmp_path}/0.sock")

    async def endless(start: int) -> AsyncIterator[bytes]:
        yield b"%d\n" % start

    following = follow(address, lambda: "/lines?from=7", limit=100, on_break=breaks.append)
    first = asyncio.create_task(anext(following))
    async with asyncio.timeout(10):
        while not breaks:  # noqa: ASYNC110  the break is told by a callback
            await asyncio.sleep(0.01)
        assert isinstance(breaks[0], httpx2.ConnectError)
        assert await serving(_app(endless)) == address
        assert await first == b"7"
    await following.aclose()
