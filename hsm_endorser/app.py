"""The device's HTTP interface: the doors as they are seen from outside. HTTP statuses are chosen here."""

from typing import Annotated, Any, Final, TypeVar

import msgspec
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response

from hsm_endorser.custody.statement import AuditOrder
from hsm_endorser.device import Device
from hsm_endorser.doors import Doors
from hsm_endorser.errors import (
    BusyError,
    ConfigError,
    DeviceError,
    GuardConflictError,
    GuardError,
    NotReadyError,
    RefusedError,
    TokenError,
)
from hsm_endorser.metrics import Metrics
from hsm_endorser.operator import DRAIN_SECONDS, Operator
from hsm_endorser.readiness import Health
from hsm_endorser.rotation import KeyOrder, Made, Rotated, RotationOrder
from protocol import canonical
from protocol.envelope import Envelope
from protocol.errors import ProtocolError
from protocol.messages import (
    MAX_BATCH_BYTES,
    DeviceStatus,
    EndorseRequest,
    EndorseResponse,
    SignCertificate,
    SignCrl,
    Signed,
    SignRegistration,
)
from transport import operations, problem
from transport.problem import ProblemError

JSON: Final = "application/json"
T = TypeVar("T")

STATUSES: Final[tuple[tuple[type[DeviceError], int], ...]] = (
    (BusyError, 503),
    (NotReadyError, 503),
    (GuardConflictError, 409),
    (GuardError, 503),
    (RefusedError, 422),
    (TokenError, 503),
    (ConfigError, 422),
)
PASSING: Final = (BusyError, NotReadyError)
"""Troubles that pass by themselves: the answer says when to try again."""


def create_app(device: Device, doors: Doors, health: Health, metrics: Metrics) -> FastAPI:
    """The application of one device. Bodies are read as they are and decoded once, by msgspec."""
    app = FastAPI(title="hsm-endorser endorsement device", version="1", docs_url=None, redoc_url=None)
    problem.install(app, RequestValidationError)
    app.add_exception_handler(DeviceError, _on_device_error)
    app.add_exception_handler(ProtocolError, _on_malformed)
    app.router.routes.extend(operations.routes(metrics.registry, health.readiness))

    @app.post("/v1/endorse", **_door(EndorseRequest, EndorseResponse))
    async def endorse(request: Request) -> Response:
        """Judge a batch of proposals, and sign the votes: one signed tree head for each node (E-10, E-11)."""
        with device.gate.passing():
            return _answer(await device.endorse(await _body(request, _endorse_decoder, MAX_BATCH_BYTES)))

    @app.post("/v1/sign-header", **_door(None, Signed))
    async def sign_header(request: Request) -> Response:
        """Sign the next block's header. The body is the block in canonical bytes, its header still unsigned."""
        with device.gate.passing():
            return _answer(Signed(await doors.sign_header(await request.body())))

    @app.post("/v1/sign-certificate", **_door(SignCertificate, Signed))
    async def sign_certificate(request: Request) -> Response:
        """Sign a client's certificate with the CA's key."""
        with device.gate.passing():
            return _answer(Signed(await doors.sign_certificate(await _body(request, _certificate_decoder))))

    @app.post("/v1/sign-crl", **_door(SignCrl, Signed))
    async def sign_crl(request: Request) -> Response:
        """Sign a certificate revocation list with the CA's key."""
        with device.gate.passing():
            return _answer(Signed(await doors.sign_crl(await _body(request, _crl_decoder, MAX_BATCH_BYTES))))

    @app.post("/v1/sign-registration", **_door(SignRegistration, Signed))
    async def sign_registration(request: Request) -> Response:
        """Sign, as registrar, the transaction that puts a certified client on the whitelist."""
        with device.gate.passing():
            return _answer(Signed(await doors.sign_registration(await _body(request, _registration_decoder))))

    @app.get("/v1/status", response_class=Response, responses=_responses(DeviceStatus))
    async def status() -> Response:
        """The live state: height, readiness proven by a real signature, what waits, which nodes and doors."""
        return _answer(await health.status())

    @app.get("/v1/identity", response_class=Response, responses={200: {"description": "a DSSE envelope"}, **_REFUSALS})
    async def identity(nonce: Annotated[str, Query(pattern=r"^[0-9a-f]{32,128}$")]) -> Response:
        """Who this device is: a statement over the asker's nonce, signed by the identity key (E-20)."""
        return _answer(await health.statement(nonce))

    return app


def create_control_app(operator: Operator, health: Health, metrics: Metrics) -> FastAPI:
    """The operator's application: it belongs on a Unix socket of mode 0600. PINs are bodies, never logged."""
    app = FastAPI(title="hsm-endorser endorsement device, control", version="1", docs_url=None, redoc_url=None)
    problem.install(app, RequestValidationError)
    app.add_exception_handler(DeviceError, _on_device_error)
    app.add_exception_handler(ProtocolError, _on_malformed)
    app.router.routes.extend(operations.routes(metrics.registry, health.readiness))

    _add_key_routes(app, operator)
    _add_audit_route(app, operator)

    async def state() -> Response:
        return _answer(await health.status())

    @app.post("/v1/drain", response_class=Response, responses=_responses(DeviceStatus))
    async def drain(wait: Annotated[float, Query(ge=0, le=600)] = DRAIN_SECONDS) -> Response:
        """Take nothing new, and answer when what is under way has ended, at the latest after `wait` seconds."""
        await operator.drain(wait)
        return await state()

    @app.post("/v1/resume", response_class=Response, responses=_responses(DeviceStatus))
    async def resume() -> Response:
        """Take requests again."""
        operator.resume()
        return await state()

    @app.post("/v1/unlock", response_class=Response, responses=_responses(DeviceStatus))
    async def unlock(request: Request) -> Response:
        """Open the token. The body is the PIN and nothing else; it is tried once."""
        await operator.unlock(await request.body())
        return await state()

    @app.post("/v1/release", response_class=Response, responses=_responses(DeviceStatus))
    async def release() -> Response:
        """The operator has looked: end a quarantine, or what a refused PIN has stopped."""
        await operator.release()
        return await state()

    @app.post("/v1/change-pin", response_class=Response, responses=_responses(DeviceStatus))
    async def change_pin(request: Request) -> Response:
        """Change the token's PIN: `{"new": …, "old": …}`; without `old`, the PIN that the device has is taken."""
        try:
            wanted = _pin_change_decoder.decode(await request.body())
        except msgspec.MsgspecError as error:  # its text names fields, never values
            raise ProblemError(422, "malformed", str(error)) from None
        await operator.change_pin(wanted.old.encode() if wanted.old is not None else None, wanted.new.encode())
        return await state()

    @app.get("/v1/status", response_class=Response, responses=_responses(DeviceStatus))
    async def status() -> Response:
        """As on the public listener."""
        return await state()

    return app


def _add_key_routes(app: FastAPI, operator: Operator) -> None:
    """What an operator does about keys."""

    @app.post("/v1/rotations", **_door(RotationOrder, Rotated, _ANY_JSON))
    async def rotations(request: Request) -> Response:
        """Make a new key on the token, and have the old one and the new one announce it (K-12).

        The same order again is about the same new key, until that is in the registry.
        """
        return _answer(await operator.rotations.announce(await _order(request, _rotation_decoder)))

    @app.post("/v1/keys", **_door(KeyOrder, Made, _ANY_JSON))
    async def keys(request: Request) -> Response:
        """Make a key for a holder by the strict template, or find the one that was made and is not registered."""
        return _answer(await operator.rotations.make(await _order(request, _key_decoder)))


def _add_audit_route(app: FastAPI, operator: Operator) -> None:
    """What an operator asks about the token."""

    @app.post("/v1/audit", **_door(AuditOrder, Envelope))
    async def audit(request: Request) -> Response:
        """Audit the token by attack, beside the work of the device: the statement, signed by the identity key (K-6)."""
        order = await _body(request, _audit_decoder)
        return _answer(await operator.auditor.audit(order.read(), read_only=order.read_only))


class PinChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `/v1/change-pin`."""

    new: str
    old: str | None = None

    def __repr__(self) -> str:
        return "PinChange(…)"


async def _body(request: Request, decoder: "msgspec.json.Decoder[T]", limit: int = canonical.MAX_BYTES) -> T:
    return canonical.decode(await request.body(), decoder, limit=limit)


async def _order(request: Request, decoder: "msgspec.json.Decoder[T]") -> T:
    """An operator's order: any JSON will do, since nobody signs these bytes."""
    try:
        return decoder.decode(await request.body())
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProblemError(422, "malformed", str(error)) from None


def _answer(value: object) -> Response:
    return Response(canonical.encode(value), media_type=JSON)


async def _on_device_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, DeviceError)  # noqa: S101  the handler is registered for that type
    status = next((status for kind, status in STATUSES if isinstance(error, kind)), 500)
    code = error.reason if isinstance(error, RefusedError) else error.code
    headers = {"Retry-After": "1"} if isinstance(error, PASSING) else None
    return problem.problem_response(ProblemError(status, code, str(error)).problem, headers)


async def _on_malformed(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ProtocolError)  # noqa: S101
    return problem.problem_response(ProblemError(400, error.code, str(error)).problem)


_CANONICAL: Final = "Canonical JSON (RFC 8785): other encodings of the same value are refused."
_ANY_JSON: Final = "JSON; nobody signs these bytes."


def _refusal(description: str) -> dict[str, Any]:
    schema = {"type": "object", "required": ["type", "title", "status", "detail"]}
    return {"description": description, "content": {problem.MEDIA_TYPE: {"schema": schema}}}


_REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    422: _refusal("well formed, and not to be signed: the type says which rule it breaks"),
    503: _refusal("not now: the queue is full, the copy of the chain is behind, or the token or guard is in trouble"),
}
_DOOR_REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    400: _refusal("not canonical JSON of this type"),
    409: _refusal("another header was signed for this height already"),
    413: _refusal("larger than this door takes"),
    **_REFUSALS,
}


def _schema(kind: type) -> dict[str, Any]:
    """The JSON schema of a wire type, self-contained: OpenAPI 3.1 takes it as it is."""
    (schema,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    definition = components.pop(kind.__name__, schema)
    return dict(_inlined(definition, components))


def _inlined(node: Any, components: dict[str, Any]) -> Any:
    if isinstance(node, dict):
        if "$ref" in node:
            return _inlined(components[str(node["$ref"]).rpartition("/")[2]], components)
        return {key: _inlined(value, components) for key, value in node.items()}
    if isinstance(node, list):
        return [_inlined(each, components) for each in node]
    return node


def _responses(kind: type) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": kind.__doc__ or "", "content": {JSON: {"schema": _schema(kind)}}}}


def _door(body: type | None, answer: type, described: str = _CANONICAL) -> dict[str, Any]:
    schema = _schema(body) if body else {"type": "object", "description": "a block; see the block format"}
    content = {"required": True, "description": described, "content": {JSON: {"schema": schema}}}
    return {
        "response_class": Response,
        "responses": {**_responses(answer), **_DOOR_REFUSALS},
        "openapi_extra": {"requestBody": content},
    }


_rotation_decoder = msgspec.json.Decoder(RotationOrder)
_key_decoder = msgspec.json.Decoder(KeyOrder)
_audit_decoder = msgspec.json.Decoder(AuditOrder)
_pin_change_decoder = msgspec.json.Decoder(PinChange)
_endorse_decoder = msgspec.json.Decoder(EndorseRequest)
_certificate_decoder = msgspec.json.Decoder(SignCertificate)
_crl_decoder = msgspec.json.Decoder(SignCrl)
_registration_decoder = msgspec.json.Decoder(SignRegistration)
