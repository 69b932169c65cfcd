"""Refusals as RFC 9457 problem details: a stable type, a reason, and what else helps.

Rooms raise errors of their own; an `app.py` chooses the HTTP status and raises `ProblemError`.
"""

from typing import Any, Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

TYPE_PREFIX: Final = "urn:hsm-endorser:problem:"
MEDIA_TYPE: Final = "application/problem+json"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """RFC 9457, section 3.1. `type` is `urn:hsm-endorser:problem:` and a stable code."""

    type: str
    title: str
    status: int
    detail: str
    devices: tuple[dict[str, Any], ...] = ()
    """For endorsement failures: every device that was tried and what it said."""
    transaction: str | None = None
    reason: str | None = None
    """For endorsement failures: the one code in which all that rejected agree."""

    @property
    def code(self) -> str:
        """The stable code at the end of the type."""
        return self.type.removeprefix(TYPE_PREFIX)


class ProblemError(Exception):
    """A problem on its way: raised by an `app.py` to answer it, and by clients that were answered one."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        devices: tuple[dict[str, Any], ...] = (),
        transaction: str | None = None,
        reason: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.problem = Problem(
            type=TYPE_PREFIX + code,
            title=code.replace("-", " ").capitalize(),
            status=status,
            detail=detail,
            devices=devices,
            transaction=transaction,
            reason=reason,
        )
        self.headers = headers


def problem_response(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    """The HTTP answer that carries a problem."""
    # Members that say nothing are left out (RFC 9457 makes all of them optional).
    members = {k: v for k, v in msgspec.to_builtins(problem).items() if v is not None and v != ()}
    return Response(msgspec.json.encode(members), problem.status, headers, MEDIA_TYPE)


def install(app: Starlette, validation_error: type[Exception] | None = None) -> None:
    """Make every refusal of `app` a problem, those of the framework too."""

    async def on_problem(_request: Request, error: Exception) -> Response:
        assert isinstance(error, ProblemError)  # noqa: S101  the handler is registered for that type
        return problem_response(error.problem, error.headers)

    async def on_http(_request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101
        code = {404: "not-found", 405: "method-not-allowed"}.get(error.status_code, "http-error")
        headers = dict(error.headers) if error.headers else None
        return problem_response(ProblemError(error.status_code, code, error.detail).problem, headers)

    async def on_validation(_request: Request, error: Exception) -> Response:
        found = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in getattr(error, "errors", list)()
        )
        return problem_response(ProblemError(422, "malformed", found).problem)

    async def on_anything(_request: Request, _error: Exception) -> Response:
        return problem_response(ProblemError(500, "internal-error", "the service's log says more").problem)

    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    if validation_error:
        app.add_exception_handler(validation_error, on_validation)
    app.add_exception_handler(Exception, on_anything)


def raise_for_problem(status: int, body: bytes) -> None:
    """Raise `ProblemError` when a service answered with an error status."""
    if status < 400:  # noqa: PLR2004
        return
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except msgspec.MsgspecError:
        raise ProblemError(status, "http-error", body[:500].decode(errors="replace")) from None
    error = ProblemError(
        problem.status,
        problem.code,
        problem.detail,
        devices=problem.devices,
        transaction=problem.transaction,
        reason=problem.reason,
    )
    raise error
