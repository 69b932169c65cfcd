"""The peer's HTTP interface: queries over the verified chain, and what operators ask. HTTP statuses are chosen here."""

from typing import Annotated, Any, Final

from fastapi import FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel

from peer.errors import UnknownError
from peer.follower import Follower
from peer.metrics import Metrics
from peer.queries import Queries
from protocol import canonical
from protocol.canonical import MAX_INTEGER, TxId
from transport import operations, problem
from transport.problem import ProblemError

JSON: Final = "application/json"
MOST_BLOCKS: Final = 64


class HaltReport(BaseModel):
    """Why the peer stopped, and at which height."""

    code: str
    reason: str
    height: int


class Status(BaseModel):
    """The peer's last block, and whether it halted."""

    peer: str
    network: str
    height: int
    time: int
    authentication: str
    halted: HaltReport | None


class StateDigest(BaseModel):
    """SHA-256 over the whole state at a height: peers of one chain have the same."""

    height: int
    digest: str


class TransactionPlace(BaseModel):
    """Where a transaction stands, and what became of it: "valid", or the code of why not."""

    transaction: str
    height: int
    index: int
    code: str


def _refusal(description: str) -> dict[str, Any]:
    schema = {"type": "object", "required": ["type", "title", "status", "detail"]}
    return {"description": description, "content": {problem.MEDIA_TYPE: {"schema": schema}}}


REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    404: _refusal("not on this peer's chain, up to the height that the detail names"),
    422: _refusal("the address is malformed"),
}
Identity = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="the transaction id, 64 hexadecimal digits")]
KeyIdentity = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", description="the SHA-256 of the public key")]
BlockHeight = Annotated[int, Path(ge=0, le=MAX_INTEGER)]
StateKey = Annotated[str, Path(max_length=1024, description="such as evidence/SUBJECT or assets/coin/TXID:0")]


def create_app(name: str, network: str, follower: Follower, queries: Queries, metrics: Metrics) -> FastAPI:
    """The application of one peer. Query routes are plain functions: FastAPI runs them in worker threads."""
    app = FastAPI(title="hsm-endorser peer", version="1", docs_url=None, redoc_url=None)
    problem.install(app, RequestValidationError)
    app.add_exception_handler(UnknownError, _on_unknown)
    app.router.routes.extend(operations.routes(metrics.registry, follower.readiness))

    @app.get("/v1/status")
    async def status() -> Status:
        """The last block that was applied, and why the peer halted, if it did."""
        head, halted = follower.head, follower.halted
        return Status(
            peer=name,
            network=network,
            height=head.height,
            time=head.time,
            authentication=head.authentication,
            halted=HaltReport(code=halted.code, reason=halted.reason, height=halted.height) if halted else None,
        )

    @app.get("/v1/digest")
    def digest() -> StateDigest:
        """SHA-256 over the whole state, with the height at which it was taken."""
        height, value = queries.digest()
        return StateDigest(height=height, digest=value)

    @app.get("/v1/state/{key:path}", responses=REFUSALS, response_class=Response)
    def state(key: StateKey) -> Response:
        """The value of one state key, in canonical JSON."""
        return Response(queries.state(key), media_type=JSON)

    @app.get("/v1/transactions/{identity}", responses=REFUSALS)
    def transaction(identity: Identity) -> TransactionPlace:
        """Where a transaction stands in the chain, and what became of it."""
        found = queries.transaction(TxId(identity))
        return TransactionPlace(transaction=found.transaction, height=found.height, index=found.index, code=found.code)

    @app.get("/v1/blocks/{height}", responses=REFUSALS, response_class=Response)
    def block(height: BlockHeight) -> Response:
        """The canonical bytes of one block."""
        return Response(queries.block(height), media_type=JSON)

    @app.get("/v1/trace/{key}", responses=REFUSALS, response_class=Response)
    def trace(
        key: KeyIdentity,
        start: Annotated[int, Query(alias="from", ge=0, le=MAX_INTEGER)] = 0,
        limit: Annotated[int, Query(ge=1, le=MOST_BLOCKS, description="blocks in this answer, at most")] = MOST_BLOCKS,
    ) -> Response:
        """Everything that a key signed, in the order of the chain, found by an index; a page at a time."""
        return Response(canonical.encode(queries.trace(key, start=start, limit=limit)), media_type=JSON)

    @app.get("/v1/receipts/{identity}", responses=REFUSALS, response_class=Response)
    def receipt(identity: Identity) -> Response:
        """A file that proves a transaction and its outcome offline."""
        return Response(queries.receipt(TxId(identity)), media_type=JSON)

    @app.get("/v1/evidence/{identity}", responses=REFUSALS, response_class=Response)
    def evidence(
        identity: Identity,
        start: Annotated[
            int, Query(alias="from", ge=0, le=MAX_INTEGER, description="the block that the reader trusts")
        ] = 0,
    ) -> Response:
        """A receipt for auditors: with custody statements, and the handovers of the centers since a trusted block."""
        return Response(queries.evidence(TxId(identity), start=start), media_type=JSON)

    return app


async def _on_unknown(_request: Request, error: Exception) -> Response:
    assert isinstance(error, UnknownError)  # noqa: S101  the handler is registered for that type
    return problem.problem_response(ProblemError(404, f"unknown-{error.what}", str(error)).problem)
