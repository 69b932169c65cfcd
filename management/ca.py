"""The CA (requirement E-1): a CSR goes in, a certificate comes out, and the client is on the whitelist.

Who may have one: whoever shows a one-time secret (only its hash is kept, and it is bound to the first CSR that
comes with it), or whom an operator approves. The CA's key lives on a token: certificate and registration are signed
by typed doors of a device. The certificate is given out after the registration is committed.
"""

import asyncio
import base64
import datetime as dt
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Final, Literal, Protocol, TypeVar

import msgspec
import structlog
from cryptography.hazmat.primitives.serialization import Encoding

from ledger.replica import Replica
from management.certificate import Issuer, Request, read_request
from management.enrolments import Enrolment, Enrolments
from management.errors import BadAnswerError, DeviceUnreachableError, EnrolmentError
from management.intake import Answer
from management.outcome import Status
from protocol import canonical
from protocol.block import VALID
from protocol.envelope import Envelope, Signature
from protocol.errors import BadSignatureError
from protocol.messages import DeviceStatus, SignCertificate, SignCrl, SignRegistration
from protocol.registry import Client, decode_entry
from protocol.transaction import PAYLOAD_TYPE, Transaction, TransactionPayload

SECRET_BYTES: Final = 24
LONGEST_INVITATION_SECONDS: Final = 30 * 86_400
REGISTRATION_MILLISECONDS: Final = 300_000
COMMIT_SECONDS: Final = 30.0
CRL_KEPT_SECONDS: Final = 3600.0
DOOR_SECONDS: Final = 5.0
DOOR_POLL_SECONDS: Final = 0.1

Door = Literal["sign-certificate", "sign-crl", "sign-registration"]
Result = TypeVar("Result")

_log = structlog.get_logger()


class Issued(msgspec.Struct, frozen=True):
    """A certificate (DER), that of the CA (DER), and the transaction that put the client on the whitelist."""

    certificate: bytes
    ca_certificate: bytes
    transaction: str


class Invitation(msgspec.Struct, frozen=True):
    """A one-time secret, told once; `expires` in milliseconds since the epoch."""

    name: str
    secret: str
    expires: int


class Doors(Protocol):
    """A device with typed doors."""

    status: DeviceStatus | None

    async def sign(self, door: str, body: bytes, seconds: float = ...) -> Signature:
        """The signature that a door gives for a body."""
        ...


class Submit(Protocol):
    """The service's own intake."""

    async def submit_one(self, line: bytes, seconds: float) -> Answer:
        """Submit one transaction and wait for its commit."""
        ...


class CertificateAuthority:
    """Enrols clients; holds no key."""

    def __init__(
        self,
        name: str,
        replica: Replica,
        enrolments: Enrolments,
        *,
        devices: Mapping[str, Doors],
        intake: Submit,
        workers: Executor,
    ) -> None:
        self._name = name
        self._replica = replica
        self._enrolments = enrolments
        self._devices = devices
        self._intake = intake
        self._workers = workers
        self._one_at_a_time = asyncio.Lock()
        self._crl = b""
        self._crl_until = 0.0

    @property
    def certificate(self) -> bytes:
        """The CA's own certificate (DER), as the registry has it; raises `EnrolmentError`."""
        entry = self._replica.registry.registrar(self._name)
        if entry is None:
            raise EnrolmentError(
                "no-ca", f"the registry has no registrar {self._name}; put one there, or correct ca_name"
            )
        return entry.certificate

    async def invite(self, name: str, seconds: int) -> Invitation:
        """A new one-time secret for a client; an earlier one counts no more. Raises `EnrolmentError`."""
        self._check_new(name)
        secret = secrets.token_urlsafe(SECRET_BYTES)
        expires = time.time_ns() // 1_000_000 + seconds * 1000
        invited = Enrolment(name, "invited", _hash(secret), expires)
        async with self._one_at_a_time:
            await self._in_thread(lambda: self._enrolments.put(invited))
        return Invitation(name, secret, expires)

    async def waiting(self) -> list[Enrolment]:
        """Those that wait for an operator."""
        return await self._in_thread(self._enrolments.waiting)

    async def decide(self, name: str, state: Literal["approved", "refused"]) -> None:
        """An operator's decision; the client's next request finds it. Raises `EnrolmentError`."""
        async with self._one_at_a_time:
            await self._in_thread(lambda: self._enrolments.decide(name, state))

    async def enrol(self, name: str, csr: bytes, secret: str | None) -> Issued | None:
        """The certificate for a CSR (PEM), or None while an operator has yet to approve it.

        The same CSR again gets the same certificate. Raises `EnrolmentError`, `ManagementError`.
        """
        request = await self._in_thread(lambda: read_request(name, csr))
        async with self._one_at_a_time:
            enrolment = await self._in_thread(lambda: self._enrolments.find(name))
            allowed = await self._allow(request, enrolment, secret)
            if allowed is None:
                return None
            return await self._issue(request, allowed)

    async def crl(self) -> bytes:
        """The current list of revoked certificates (DER), signed by the CA's key. Raises `ManagementError`."""
        async with self._one_at_a_time:
            if time.monotonic() >= self._crl_until:
                issuer = Issuer(self.certificate)
                draft = issuer.draft_crl(time.time_ns() // 1_000_000, _now())
                signature = await self._sign("sign-crl", canonical.encode(SignCrl(draft.tbs)))
                self._crl = _finish(lambda: draft.signed(signature.sig).public_bytes(Encoding.DER))
                self._crl_until = time.monotonic() + CRL_KEPT_SECONDS
            return self._crl

    async def _allow(self, request: Request, enrolment: Enrolment | None, secret: str | None) -> Enrolment | None:
        """The enrolment, when this request may have a certificate; None when it has to wait."""
        if secret is not None:
            return await self._allow_secret(request, enrolment, secret)
        if enrolment is None:
            self._check_new(request.name)
            await self._in_thread(lambda: self._enrolments.ask(request.name, request.der))
            return None
        if enrolment.secret_hash is not None:
            raise EnrolmentError("secret-needed", f"{request.name} was invited with a secret; send it with the CSR")
        if enrolment.csr != request.der:
            raise EnrolmentError(
                "other-csr", f"another CSR of {request.name} is {enrolment.state}; send that one again"
            )
        if enrolment.state == "refused":
            raise EnrolmentError("enrolment-refused", f"an operator refused the enrolment of {request.name}")
        return None if enrolment.state == "waiting" else enrolment

    async def _allow_secret(self, request: Request, enrolment: Enrolment | None, secret: str) -> Enrolment:
        known = enrolment.secret_hash if enrolment else None
        right = hmac.compare_digest(known or b"\0" * 32, _hash(secret))
        if enrolment is None or known is None or not right:
            raise EnrolmentError("bad-secret", f"this is no enrolment secret of {request.name}; ask for a new one")
        if enrolment.state != "invited":
            if enrolment.csr == request.der:
                return enrolment
            raise EnrolmentError("secret-used", "the secret was used with another CSR; it counts once")
        if time.time_ns() // 1_000_000 >= enrolment.expires:
            raise EnrolmentError("bad-secret", f"the enrolment secret of {request.name} has expired; ask for a new one")
        self._check_new(request.name)
        used = msgspec.structs.replace(enrolment, state="issuing", csr=request.der)
        await self._in_thread(lambda: self._enrolments.put(used))
        return used

    def _check_new(self, name: str) -> None:
        if self._replica.registry.client(name) is not None:
            raise EnrolmentError("already-registered", f"there is a client {name} already; choose another name")

    async def _issue(self, request: Request, enrolment: Enrolment) -> Issued:
        """Sign, register, wait for the commit. After a crash anywhere here the same request goes on."""
        issuer = Issuer(self.certificate)
        ca_certificate = issuer.certificate.public_bytes(Encoding.DER)
        if enrolment.certificate and enrolment.transaction and self._is_registered(request, enrolment.certificate):
            return Issued(enrolment.certificate, ca_certificate, enrolment.transaction)
        self._check_new(request.name)
        draft = issuer.draft_certificate(request, _now())
        signature = await self._sign("sign-certificate", canonical.encode(SignCertificate(draft.tbs)))
        certificate = _finish(lambda: draft.signed(signature.sig).public_bytes(Encoding.DER))
        registration = await self._registration(request, certificate)
        issued = msgspec.structs.replace(
            enrolment, state="issued", certificate=certificate, transaction=registration.id
        )
        await self._in_thread(lambda: self._enrolments.put(issued))
        answer = await self._intake.submit_one(registration.raw, COMMIT_SECONDS)
        if not isinstance(answer, Status):
            raise EnrolmentError(answer.code, f"the registration was refused: {answer.detail}")
        if answer.status != "committed" or answer.code != VALID:
            came = answer.code or (answer.refusal.detail if answer.refusal else answer.status)
            raise EnrolmentError("registration-failed", f"the registration is not in force: {came}; send the CSR again")
        _log.info("client enrolled", client=request.name, transaction=registration.id)
        return Issued(certificate, ca_certificate, registration.id)

    def _is_registered(self, request: Request, certificate: bytes) -> bool:
        key = f"client/{request.name}"
        data = self._replica.registry.entries.get(key)
        entry = decode_entry(key, data) if data is not None else None
        return isinstance(entry, Client) and entry.certificate == hashlib.sha256(certificate).hexdigest()

    async def _registration(self, request: Request, certificate: bytes) -> Transaction:
        replica = self._replica
        now = time.time_ns() // 1_000_000
        latest = replica.time + replica.registry.channel.longest_validity
        payload = canonical.encode(
            TransactionPayload(
                version=1,
                network=replica.network,
                client=self._name,
                contract="registry",
                operation="add_client",
                arguments={
                    "name": request.name,
                    "key": base64.b64encode(request.key.spki).decode(),
                    "certificate": hashlib.sha256(certificate).hexdigest(),
                },
                nonce=secrets.token_hex(16),
                valid_from=replica.height,
                valid_until=min(now + REGISTRATION_MILLISECONDS, latest),
            )
        )
        signature = await self._sign("sign-registration", canonical.encode(SignRegistration(payload, certificate)))
        return Transaction.decode(canonical.encode(Envelope(payload, PAYLOAD_TYPE, (signature,))))

    async def _sign(self, door: Door, body: bytes) -> Signature:
        return await (await self._offering(door)).sign(door, body)

    async def _offering(self, door: Door) -> Doors:
        """The device that offers a door; one that has just started is waited for. Raises `DeviceUnreachableError`."""
        deadline = time.monotonic() + DOOR_SECONDS
        while True:
            for device in self._devices.values():
                if device.status is not None and door in device.status.doors:
                    return device
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(DOOR_POLL_SECONDS)
        raise DeviceUnreachableError(f"no device offers {door} now; start the one that holds the key of {self._name}")

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)


def _finish(build: Callable[[], bytes]) -> bytes:
    try:
        return build()
    except (BadSignatureError, ValueError) as error:
        raise BadAnswerError(f"the CA's device signed something else: {error}") from None


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0)
