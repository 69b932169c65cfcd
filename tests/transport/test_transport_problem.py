"""Refusals: the shape of RFC 9457, there and back."""

import json
from typing import Annotated

import pytest
from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError

from tests.transport.conftest import Serve
from transport import problem
from transport.connect import connect
from transport.problem import TYPE_PREFIX, ProblemError, raise_for_problem

DEVICES = ({"device": "device-a", "outcome": "not ready"},)


def _app() -> FastAPI:
    app = FastAPI()
    problem.install(app, RequestValidationError)

    @app.get("/refused")
    async def refused() -> None:
        raise ProblemError(
            429, "pool-full", "try later", devices=DEVICES, transaction="ab" * 32, headers={"Retry-After": "1"}
        )

    @app.get("/broken")
    async def broken() -> None:
        raise RuntimeError("the PIN is 1234")

    @app.get("/number")
    async def number(n: Annotated[int, Query(ge=0)]) -> int:
        return n

    return app


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "/refused",
            {
                "type": TYPE_PREFIX + "pool-full",
                "title": "Pool full",
                "status": 429,
                "detail": "try later",
                "devices": list(DEVICES),
                "transaction": "ab" * 32,
            },
        ),
        ("/nothing", {"type": TYPE_PREFIX + "not-found", "title": "Not found", "status": 404, "detail": "Not Found"}),
        (
            "/number?n=x",
            {
                "type": TYPE_PREFIX + "malformed",
                "title": "Malformed",
                "status": 422,
                "detail": "query.n: Input should be a valid integer, unable to parse string as an integer",
            },
        ),
    ],
)
async def test_a_refusal_has_one_shape(serving: Serve, path: str, expected: dict[str, object]) -> None:
    """Type, title, status, detail, and what else helps; members that say nothing are left out."""
    async with connect(await serving(_app()), timeout=5) as client:
        answer = await client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (expected["status"], "application/problem+json")
    assert answer.json() == expected
    assert answer.headers.get("retry-after") == ("1" if path == "/refused" else None)


@pytest.mark.requirement("S-6")
async def test_a_fault_tells_nothing_of_its_inside(serving: Serve) -> None:
    """An error that nobody foresaw answers 500 and leaves its words to the log."""
    async with connect(await serving(_app()), timeout=5) as client:
        answer = await client.get("/broken")
    assert (answer.status_code, answer.json()["type"]) == (500, TYPE_PREFIX + "internal-error")
    assert "1234" not in answer.text


def test_a_problem_is_raised_again_where_it_was_answered() -> None:
    """Who called gets what was refused: code, detail, devices."""
    sent = ProblemError(403, "unknown-client", "nobody", devices=DEVICES, transaction="ab" * 32)
    with pytest.raises(ProblemError, match="unknown-client: nobody") as raised:
        raise_for_problem(403, problem.problem_response(sent.problem).body)
    assert raised.value.problem == sent.problem
    assert raised.value.problem.code == "unknown-client"
    raise_for_problem(202, b"")


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b"\xff\xff", b"x" * 100_000, json.dumps({"type": 1}).encode()])
def test_an_answer_that_is_no_problem_is_one_all_the_same(body: bytes) -> None:
    """Whatever a server sent with its error status, the caller gets a problem of bounded size."""
    with pytest.raises(ProblemError) as raised:
        raise_for_problem(502, body)
    assert (raised.value.problem.status, raised.value.problem.code) == (502, "http-error")
    assert len(raised.value.problem.detail) <= 500
