"""The doors of the management service: one application for everybody, one for the operator's own socket.

The submission path takes raw bytes; a batch is one transaction a line. HTTP statuses are chosen here alone.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict, Field

from ledger.contracts.registry import NAME as REGISTRY
from ledger.errors import LedgerError
from ledger.replica import Replica
from management.alarms import Alarms
from management.answering import batch_body, status_members
from management.ca import LONGEST_INVITATION_SECONDS, CertificateAuthority, Enrolled
from management.certificate import Kind
from management.device_client import DeviceClient
from management.errors import (
    BadAnswerError,
    BusyError,
    DeviceRefusedError,
    DeviceUnreachableError,
    EnrolmentError,
    ManagementError,
    StoppingError,
)
from management.feed import Feed
from management.intake import Intake
from management.issued import Issued
from management.outcome import Refusal, Status
from management.renewal import Renewals
from management.routing import Router
from management.rule_now import rule_now
from management.simulation import DeviceState, simulate
from management.streaming import LineStream
from protocol import canonical
from protocol.canonical import TxId
from protocol.envelope import Envelope
from protocol.registry import Reason
from transport import operations, problem
from transport.operations import Readiness
from transport.problem import ProblemError, problem_response
from transport.stream import MEDIA_TYPE as NDJSON

MOST_LINES: Final = 20_000
"""Most transactions in one batch."""
LONGEST_WAIT_SECONDS: Final = 60.0
BUSY: Final = {"pool-full", "busy"}
UNAVAILABLE: Final = {"endorsement-unavailable", "not-kept", "stopping", "unreachable", "store"}
STATUS_OF: Final = {
    "malformed": 400,
    "limit-exceeded": 400,
    "unknown-client": 403,
    "bad-signature": 403,
    "not-authorized": 403,
    "bad-secret": 403,
    "secret-needed": 403,
    "enrolment-refused": 403,
    "bad-renewal": 403,
    "client-expired": 403,
    "revoked": 403,
    "key-in-use": 409,
    "key-retired": 409,
    "too-many-keys": 409,
    "not-issued": 404,
    "unknown-issuer": 404,
    "unknown-node": 404,
    "endorsement-refused": 409,
    "already-registered": 409,
    "already-executed": 409,
    "not-yet-valid": 409,
    "secret-used": 409,
    "other-csr": 409,
    "not-waiting": 409,
    "bad-answer": 502,
    "device-refused": 502,
    "no-ca": 503,
    "registration-failed": 503,
    **dict.fromkeys(BUSY, 429),
    **dict.fromkeys(UNAVAILABLE, 503),
}
OTHERWISE: Final = 422

JSON: Final = "application/json"
PEM: Final = "application/x-pem-file"
CRL: Final = "application/pkix-crl"
TransactionId = Annotated[str, Path(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Path(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
NameInQuery = Annotated[str | None, Query(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
NameField = Annotated[str, Field(pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
KeyInQuery = Annotated[str, Query(pattern="^([0-9a-f]{64})?$")]
KindInQuery = Annotated[Kind | None, Query()]
HeightInPath = Annotated[int, Path(ge=0, le=canonical.MAX_INTEGER)]
HeightInQuery = Annotated[int, Query(alias="from", ge=0, le=canonical.MAX_INTEGER)]
Until = Literal["settled", "endorsed"]
Wait = Annotated[float, Query(ge=0, le=LONGEST_WAIT_SECONDS, allow_inf_nan=False)]


class Center(Protocol):
    """What the doors need of the service behind them."""

    replica: Replica
    intake: Intake
    feed: Feed
    ca: CertificateAuthority
    renewals: Renewals
    devices: dict[str, DeviceClient]
    router: Router
    alarms: Alarms
    period_ms: int
    metrics_registry: CollectorRegistry

    async def readiness(self) -> Readiness:
        """Whether it can do its work now."""
        ...


class EnrolRequest(BaseModel):
    """A CSR (PEM) whose common name is the client's name, and the one-time secret if there is one."""

    model_config = ConfigDict(extra="forbid")
    name: NameField
    csr: Annotated[str, Field(max_length=65536)]
    secret: Annotated[str, Field(max_length=256)] | None = None


class RenewRequest(BaseModel):
    """A CSR (PEM) of the new key, and the request that the key in force signed (a DSSE envelope, base64 in JSON)."""

    model_config = ConfigDict(extra="forbid")
    csr: Annotated[str, Field(max_length=65536)]
    proof: dict[str, Any]


class AnnounceRequest(BaseModel):
    """The announcement of a client's new key (a DSSE envelope), signed by the old key and by the new one."""

    model_config = ConfigDict(extra="forbid")
    announcement: dict[str, Any]


class NodeCertificateRequest(BaseModel):
    """Whose keys are certified: all of a node that count now, or the one on a device."""

    model_config = ConfigDict(extra="forbid")
    node: NameField
    device: NameField | None = None


class ServiceCertificateRequest(BaseModel):
    """A service's CSR (PEM). Without `dns` and `addresses`, the alternative names in the CSR are certified."""

    model_config = ConfigDict(extra="forbid")
    name: NameField
    csr: Annotated[str, Field(max_length=65536)]
    dns: Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=64)] = []
    addresses: Annotated[list[Annotated[str, Field(max_length=45)]], Field(max_length=64)] = []


class RevokeRequest(BaseModel):
    """Why a service's certificates are revoked (RFC 5280, section 5.3.1); and one (PEM) that is listed no more."""

    model_config = ConfigDict(extra="forbid")
    reason: Reason = "unspecified"
    certificate: Annotated[str, Field(max_length=65536)] | None = None


class InviteRequest(BaseModel):
    """Who is invited to enrol, and for how long the secret counts."""

    model_config = ConfigDict(extra="forbid")
    name: NameField
    seconds: Annotated[int, Field(ge=1, le=LONGEST_INVITATION_SECONDS)] = 3600


def public_app(center: Center) -> FastAPI:
    """What clients, devices and peers may ask for."""
    app = _app("hsm-endorser management", center)
    _add_submission(app, center)
    _add_chain(app, center)
    _add_policies(app, center)
    _add_routing(app, center)
    _add_ca(app, center)
    return app


def _add_submission(app: FastAPI, center: Center) -> None:
    @app.post("/v1/transactions", status_code=202, openapi_extra=_body(JSON), responses=_answered({200: JSON}))
    async def submit(request: Request, wait: Wait = 0.0, until: Until = "settled") -> Response:
        """Take one transaction (the canonical bytes of its envelope): 202 means durably kept.

        With `wait` the answer comes when it is settled, or, `until=endorsed`, when it has its endorsements.
        """
        body = await request.body()
        with _refusals():
            answer = await center.intake.submit_one(body, wait, until_endorsed=until == "endorsed")
        if isinstance(answer, Status) and answer.refusal:
            answer = answer.refusal
        if isinstance(answer, Refusal):
            error = _problem(answer)
            return problem_response(error.problem, error.headers)
        return _json(status_members(answer, _problem_members), 200 if answer.is_settled else 202)

    @app.post("/v1/transactions:batch", status_code=202, openapi_extra=_body(NDJSON), responses=_PROBLEMS)
    async def submit_batch(request: Request) -> Response:
        """Take many transactions, one a line; each gets its own result, in order."""
        body = await request.body()
        if body.count(b"\n") > MOST_LINES:
            raise ProblemError(413, "too-many-lines", f"a batch has at most {MOST_LINES} lines; send several")
        lines = [line for line in body.split(b"\n") if line]
        with _refusals():
            answers = await center.intake.submit(lines)
        full = any(isinstance(answer, Refusal) and answer.code in BUSY for answer in answers)
        return Response(
            batch_body(answers, _problem_members), 202, {"Retry-After": "1"} if full else None, media_type=JSON
        )

    @app.get("/v1/transactions/{transaction}", responses=_PROBLEMS)
    async def transaction_status(transaction: TransactionId, wait: Wait = 0.0) -> Response:
        """Where a transaction stands, after at most `wait` seconds for it to be settled."""
        with _refusals():
            status = await center.intake.status(TxId(transaction), wait)
        if status is None:
            raise ProblemError(404, "unknown-transaction", f"nothing is known of transaction {transaction}")
        return _json(status_members(status, _problem_members))


def _add_chain(app: FastAPI, center: Center) -> None:
    @app.get("/v1/blocks", response_class=Response, responses=_answered({200: NDJSON}))
    async def blocks(start: HeightInQuery = 0) -> Response:
        """All blocks from a height on, one a line, for ever."""
        with _refusals():
            return LineStream(center.feed.subscribe("blocks", start))

    @app.get("/v1/events", response_class=Response, responses=_answered({200: NDJSON}))
    async def events(start: HeightInQuery = 0) -> Response:
        """What became of each transaction of all blocks from a height on, a block a line, for ever."""
        with _refusals():
            return LineStream(center.feed.subscribe("events", start))

    @app.get("/v1/blocks/{height}", responses=_PROBLEMS)
    async def block(height: HeightInPath) -> Response:
        """The canonical bytes of one block."""
        found = await center.feed.block(height)
        if found is None:
            raise ProblemError(404, "unknown-block", f"the chain ends at height {center.replica.height}")
        return Response(found, media_type=JSON)

    @app.get("/v1/network")
    async def network() -> Response:
        """Which chain this is, and where it stands."""
        replica = center.replica
        return _json(
            {
                "network": replica.network,
                "height": replica.height,
                "time": replica.time,
                "authentication": replica.authentication,
                "registry_root": replica.registry.root,
                "period_ms": center.period_ms,
                "ceremony": replica.registry.channel.ceremony,
            }
        )

    @app.get("/v1/devices")
    async def devices() -> Response:
        """The endorsement devices, as this center sees them."""
        return _json(
            {
                "devices": [
                    {
                        "device": device.name,
                        "address": str(device.address),
                        "ready": device.is_ready,
                        "reason": device.reason,
                        "waiting": device.waiting,
                        "status": device.status,
                    }
                    for device in center.devices.values()
                ]
            }
        )


def _add_policies(app: FastAPI, center: Center) -> None:
    @app.get("/v1/policies/{kind}/simulation", responses=_PROBLEMS)
    async def simulation(kind: Name, without: NameInQuery = None) -> Response:
        """Whether a transaction of this type would be endorsed now, by whom, on which devices; or without a device."""
        replica = center.replica
        view = replica.registry
        if kind.partition(".")[0] == REGISTRY:
            raise ProblemError(422, "not-endorsed", "registry transactions are signed by administrators, not endorsed")
        if without is not None and view.device(without) is None:
            raise ProblemError(404, "unknown-device", f"the registry has no device {without}")
        states = {
            device.name: DeviceState(device.is_ready, device.reason, device.status.nodes if device.status else ())
            for device in center.devices.values()
        }
        now = max(time.time_ns() // 1_000_000, replica.time)
        found = simulate(kind, view, states, height=replica.height, time=now, without=without)
        if found is None:
            raise ProblemError(404, "no-policy", f"no policy says who endorses {kind}")
        return _json(found)


def _add_routing(app: FastAPI, center: Center) -> None:
    @app.get("/v1/routes/{kind}", responses=_PROBLEMS)
    async def route(kind: Name) -> Response:
        """Whom the next transaction of this type goes to, and why: the candidates with their figures (E-7)."""
        rule = None if kind.partition(".")[0] == REGISTRY else rule_now(center.replica, kind)
        if rule is None:
            raise ProblemError(404, "no-policy", f"no policy says who endorses {kind}")
        return _json(center.router.explain(kind, rule))

    @app.get("/v1/alarms")
    async def alarms() -> Response:
        """What an operator must look into, newest first; the latest of this process (E-12)."""
        return _json({"alarms": center.alarms.latest()})


def _add_ca(app: FastAPI, center: Center) -> None:
    @app.post("/v1/enrol", status_code=201, responses=_answered({202: JSON}))
    async def enrol(asked: EnrolRequest) -> Response:
        """A certificate for a CSR with a one-time secret, or 202 until an operator approves it."""
        with _refusals():
            issued = await center.ca.enrol(asked.name, asked.csr.encode(), asked.secret)
        if issued is None:
            return _json(
                {"name": asked.name, "status": "waiting for an operator; send the same request again later"}, 202
            )
        return _json(_enrolled(issued), 201)

    @app.post("/v1/clients/{name}/certificate", status_code=201, responses=_PROBLEMS)
    async def renew(name: Name, asked: RenewRequest) -> Response:
        """A certificate for a client's new key, on the word of the key in force; and what both are to sign (K-12)."""
        with _refusals():
            offered = await center.renewals.ask(name, asked.csr.encode(), _envelope(asked.proof))
        members = {
            "certificate": _pem(offered.certificate),
            "ca_certificate": _pem(offered.ca_certificate),
            "announcement": offered.announcement.decode(),
        }
        return _json(members, 201)

    @app.post("/v1/clients/{name}/key", status_code=201, responses=_PROBLEMS)
    async def announce(name: Name, asked: AnnounceRequest) -> Response:
        """The new key takes the place of the old one: both have signed the announcement (K-12)."""
        with _refusals():
            return _json(_enrolled(await center.renewals.announce(name, _envelope(asked.announcement))), 201)

    @app.get("/v1/ca/certificate", response_class=Response, responses=_answered({200: PEM}))
    async def ca_certificate() -> Response:
        """The CA's certificate (PEM); after a change of its key, those before it follow for as long as they last."""
        with _refusals():
            issuers = await center.ca.issuing.issuers()
        return Response("".join(_pem(each.certificate.public_bytes(Encoding.DER)) for each in issuers), media_type=PEM)

    @app.get("/v1/ca/crl", response_class=Response, responses=_answered({200: CRL}))
    async def crl(issuer: KeyInQuery = "") -> Response:
        """The list of revoked certificates (DER) of the CA's key in force, or of the `issuer` key before it."""
        with _refusals():
            return Response(await center.ca.issuing.crl(issuer), media_type=CRL)


def _enrolled(enrolled: Enrolled) -> dict[str, str]:
    return {
        "certificate": _pem(enrolled.certificate),
        "ca_certificate": _pem(enrolled.ca_certificate),
        "transaction": enrolled.transaction,
    }


def control_app(center: Center) -> FastAPI:
    """What the operator may do, through a socket of his own."""
    app = _app("hsm-endorser management, control", center)

    @app.post("/v1/enrolments", status_code=201, responses=_PROBLEMS)
    async def invite(asked: InviteRequest) -> Response:
        """A one-time enrolment secret; it is told once."""
        with _refusals():
            return _json(await center.ca.invite(asked.name, asked.seconds), 201)

    @app.get("/v1/enrolments")
    async def waiting() -> Response:
        """The CSRs that wait for approval."""
        found = [{"name": each.name, "csr": _csr_pem(each.csr or b"")} for each in await center.ca.waiting()]
        return _json({"enrolments": found})

    @app.post("/v1/enrolments/{name}:approve", responses=_PROBLEMS)
    async def approve(name: Name) -> Response:
        """Approve one; the client gets its certificate when it asks again."""
        with _refusals():
            await center.ca.decide(name, "approved")
        return _json({"name": name, "state": "approved"})

    @app.post("/v1/enrolments/{name}:refuse", responses=_PROBLEMS)
    async def refuse(name: Name) -> Response:
        """Refuse one."""
        with _refusals():
            await center.ca.decide(name, "refused")
        return _json({"name": name, "state": "refused"})

    _add_certificates(app, center)

    return app


def _add_certificates(app: FastAPI, center: Center) -> None:
    @app.get("/v1/certificates")
    async def certificates(kind: KindInQuery = None) -> Response:
        """All certificates that were issued here, with their states and the days that are left."""
        return _json({"certificates": await center.ca.issuing.listed(kind)})

    @app.post("/v1/certificates/node", status_code=201, responses=_PROBLEMS)
    async def node(asked: NodeCertificateRequest) -> Response:
        """Certificates for a node's keys that count now; the keys stay on their tokens."""
        with _refusals():
            issued = await center.ca.issue_node(asked.node, asked.device)
        return _json({"certificates": [_issued(each) for each in issued]}, 201)

    @app.post("/v1/certificates/service", status_code=201, responses=_PROBLEMS)
    async def service(asked: ServiceCertificateRequest) -> Response:
        """A certificate for a service's TLS key."""
        with _refusals():
            issued = await center.ca.issue_service(asked.name, asked.csr.encode(), asked.dns, asked.addresses)
        return _json(_issued(issued), 201)

    @app.post("/v1/certificates/service/{name}:revoke", responses=_PROBLEMS)
    async def revoke(name: Name, asked: RevokeRequest) -> Response:
        """Put the certificates of a service on the list of revoked ones (clients and nodes: the registry)."""
        with _refusals():
            known = asked.certificate.encode() if asked.certificate else None
            revoked = await center.ca.issuing.revoke_service(name, asked.reason, known)
        return _json({"name": name, "revoked": [each.serial for each in revoked]})


def _issued(issued: Issued) -> dict[str, object]:
    return {
        "name": issued.name,
        "kind": issued.kind,
        "key": issued.key,
        "serial": issued.serial,
        "not_before": issued.not_before,
        "not_after": issued.not_after,
        "certificate": _pem(issued.certificate),
    }


def _app(title: str, center: Center) -> FastAPI:
    app = FastAPI(title=title, version="1", docs_url=None, redoc_url=None)
    problem.install(app, RequestValidationError)
    app.router.routes.extend(operations.routes(center.metrics_registry, center.readiness))
    return app


def _problem(refusal: Refusal) -> ProblemError:
    return ProblemError(
        STATUS_OF.get(refusal.code, OTHERWISE),
        refusal.code,
        refusal.detail,
        devices=refusal.devices_as_data(),
        transaction=refusal.transaction,
        reason=refusal.reason,
        headers={"Retry-After": "1"} if refusal.code in BUSY else None,
    )


def _problem_members(refusal: Refusal) -> dict[str, Any]:
    members: dict[str, Any] = msgspec.to_builtins(_problem(refusal).problem)
    return {name: value for name, value in members.items() if value is not None and value not in ((), [])}


@contextmanager
def _refusals() -> Iterator[None]:
    """The room's errors as problems."""
    try:
        yield
    except BusyError as error:
        raise ProblemError(429, error.code, str(error), headers={"Retry-After": str(error.seconds)}) from None
    except EnrolmentError as error:
        raise ProblemError(STATUS_OF.get(error.reason, OTHERWISE), error.reason, str(error)) from None
    except DeviceRefusedError as error:
        raise ProblemError(502, "device-refused", f"{error.said}: {error}") from None
    except (DeviceUnreachableError, BadAnswerError, StoppingError) as error:
        raise ProblemError(STATUS_OF[error.code], error.code, str(error)) from None
    except (ManagementError, LedgerError) as error:
        raise ProblemError(STATUS_OF.get(error.code, 500), error.code, str(error)) from None


def _envelope(members: dict[str, Any]) -> Envelope:
    try:
        return msgspec.convert(members, Envelope)
    except msgspec.ValidationError as error:
        raise EnrolmentError("malformed", f"not a DSSE envelope: {error}") from None


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type=JSON)


def _pem(certificate: bytes) -> str:
    return x509.load_der_x509_certificate(certificate).public_bytes(Encoding.PEM).decode()


def _csr_pem(csr: bytes) -> str:
    return x509.load_der_x509_csr(csr).public_bytes(Encoding.PEM).decode()


def _body(media_type: str) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": {"type": "string"}}}}}


def _answered(media_types: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """Statuses beside the usual one, or with another type of content; and the problems."""
    described = {200: "as it stands", 202: "taken, and not finished yet"}
    return {
        **{
            status: {"description": described[status], "content": {media_type: {}}}
            for status, media_type in media_types.items()
        },
        **_PROBLEMS,
    }


_PROBLEM: Final = {"description": "A refusal (RFC 9457)", "content": {problem.MEDIA_TYPE: {}}}
_PROBLEMS: Final[dict[int | str, dict[str, Any]]] = {"4XX": _PROBLEM, "5XX": _PROBLEM}
