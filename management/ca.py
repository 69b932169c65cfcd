"""The CA (requirement E-1): a CSR goes in, a certificate comes out, and the client is on the whitelist.

Who may have one: whoever shows a one-time secret (only its hash is kept, and it is bound to the first CSR that
comes with it), or whom an operator approves; and a client that shows, by its key in force, that it wants another one
(`management.renewal`). The certificate is given out after the registration is committed.
"""

import asyncio
import contextlib
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager
from typing import Final, Literal, TypeVar

import msgspec
import structlog

from ledger.errors import RegistryError
from ledger.replica import Replica
from management.certificate import Request, Subject, moment, read_request, read_service_request
from management.enrolments import Enrolment, Enrolments
from management.errors import EnrolmentError
from management.issued import Issued
from management.issuing import Issuing
from management.registering import Registering
from management.turns import Turns
from protocol.canonical import MAX_INTEGER
from protocol.keys import PublicKey, key_id
from protocol.registry import NodeKey

SECRET_BYTES: Final = 24
LONGEST_INVITATION_SECONDS: Final = 30 * 86_400
MOST_AT_ONCE: Final = 1000
"""Requests that may be under way at one time."""

Result = TypeVar("Result")

_log = structlog.get_logger()


class Enrolled(msgspec.Struct, frozen=True):
    """A certificate (DER), that of the CA (DER), and the transaction that put the client on the whitelist."""

    certificate: bytes
    ca_certificate: bytes
    transaction: str


class Invitation(msgspec.Struct, frozen=True):
    """A one-time secret, told once; `expires` in milliseconds since the epoch."""

    name: str
    secret: str
    expires: int


class CertificateAuthority:
    """Enrols clients, certifies nodes and services; holds no key."""

    def __init__(
        self,
        replica: Replica,
        enrolments: Enrolments,
        issuing: Issuing,
        registering: Registering,
        workers: Executor,
    ) -> None:
        self._replica = replica
        self._enrolments = enrolments
        self._registering = registering
        self._workers = workers
        self._turns = Turns(MOST_AT_ONCE)
        self.issuing = issuing

    async def invite(self, name: str, seconds: int) -> Invitation:
        """A new one-time secret for a client; an earlier one counts no more. Raises `EnrolmentError`."""
        self._check_new(name)
        secret = secrets.token_urlsafe(SECRET_BYTES)
        expires = time.time_ns() // 1_000_000 + seconds * 1000
        invited = Enrolment(name, "invited", _hash(secret), expires)
        async with self.alone(name):
            await self._in_thread(lambda: self._enrolments.put(invited))
        return Invitation(name, secret, expires)

    async def waiting(self) -> list[Enrolment]:
        """Those that wait for an operator."""
        return await self._in_thread(self._enrolments.waiting)

    async def decide(self, name: str, state: Literal["approved", "refused"]) -> None:
        """An operator's decision; the client's next request finds it. Raises `EnrolmentError`."""
        async with self.alone(name):
            await self._in_thread(lambda: self._enrolments.decide(name, state))

    async def enrol(self, name: str, csr: bytes, secret: str | None) -> Enrolled | None:
        """The certificate for a CSR (PEM), or None while an operator has yet to approve it.

        The same CSR again gets the same certificate. Raises `EnrolmentError`, `ManagementError`.
        """
        request = await self._in_thread(lambda: read_request(name, csr))
        async with self.alone(name):
            enrolment = await self._in_thread(lambda: self._enrolments.find(name))
            allowed = await self._allow(request, enrolment, secret)
            if allowed is None:
                return None
            return await self._register(request, allowed)

    async def issue_node(self, node: str, device: str | None = None) -> list[Issued]:
        """Certificates for the keys of a node that count now, or for the one on a device. Raises `EnrolmentError`."""
        keys = self._node_keys(node, device)
        if not keys:
            where = f" on {device}" if device else ""
            raise EnrolmentError("unknown-node", f"the registry has no key of a node {node}{where} that counts now")
        return [
            await self.issuing.issue(
                Subject("node", node, PublicKey.load(key.key)),
                until=None if key.until == MAX_INTEGER else moment(key.until),
            )
            for key in keys
        ]

    async def issue_service(self, name: str, csr: bytes, dns: list[str], addresses: list[str]) -> Issued:
        """A certificate for a service's TLS key; raises `EnrolmentError`."""
        request = await self._in_thread(lambda: read_service_request(name, csr, dns, addresses))
        return await self.issuing.issue(request.subject)

    def alone(self, name: str) -> AbstractAsyncContextManager[None]:
        """One request for a client at a time; raises `BusyError`."""
        return self._turns.of(name)

    def _node_keys(self, node: str, device: str | None) -> list[NodeKey]:
        registry, height, now = self._replica.registry, self._replica.height + 1, self._replica.time
        entry = registry.node(node)
        found = []
        for key in entry.keys if entry else ():
            with contextlib.suppress(RegistryError):
                if device in {None, key.device}:
                    registry.node_key(node, key_id(key.key), device=key.device, height=height, time=now)
                    found.append(key)
        return found

    async def _allow(self, request: Request, enrolment: Enrolment | None, secret: str | None) -> Enrolment | None:
        """The enrolment, when this request may have a certificate; None when it has to wait."""
        if secret is not None:
            return await self._allow_secret(request, enrolment, secret)
        if enrolment is None or self._is_over(request, enrolment):
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

    def _is_over(self, request: Request, enrolment: Enrolment) -> bool:
        """Whether it was for another key of a client that is not on the whitelist any more."""
        removed = self._replica.registry.client_entry(request.name) is None
        return removed and enrolment.state == "issued" and enrolment.csr != request.der

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
        if self._replica.registry.client_entry(name) is not None:
            raise EnrolmentError("already-registered", f"there is a client {name} already; choose another name")

    async def _register(self, request: Request, enrolment: Enrolment) -> Enrolled:
        """Sign, register, wait for the commit. After a crash anywhere here the same request goes on."""
        if enrolment.certificate and enrolment.transaction and self._is_registered(request, enrolment.certificate):
            issuer = await self.issuing.issuer_of(enrolment.certificate)
            return Enrolled(enrolment.certificate, issuer, enrolment.transaction)
        self._check_new(request.name)
        issued = await self.issuing.issue(request.subject)
        transaction = await self._registering.add_client(request.name, request.key, issued)
        given = msgspec.structs.replace(
            enrolment, state="issued", certificate=issued.certificate, transaction=transaction.id
        )
        await self._in_thread(lambda: self._enrolments.put(given))
        await self._registering.commit(transaction)
        _log.info("client enrolled", client=request.name, transaction=transaction.id)
        return Enrolled(issued.certificate, await self.issuing.issuer_of(issued.certificate), transaction.id)

    def _is_registered(self, request: Request, certificate: bytes) -> bool:
        entry = self._replica.registry.client_entry(request.name)
        digest = hashlib.sha256(certificate).hexdigest()
        return entry is not None and entry.key == request.key.spki and entry.certificate == digest

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
