"""A client's new key: certified on the word of the old one, and on the chain once both have announced it (K-12).

    1. the client asks with a CSR of the new key and a request that its key in force signs; it gets the certificate,
       and the words of the announcement
    2. it returns the announcement, signed by the old key and by the new one; the registrar puts it on the chain

A renewal brings a new key: what would be gained by a new date on an old key is less than what a longer life risks.
Both steps may be repeated: the same key gets the same certificate, and what is on the chain is answered as it stands.
"""

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final, TypeVar

import msgspec
import structlog

from ledger.replica import Replica
from management.ca import CertificateAuthority, Enrolled
from management.certificate import Request, read_request
from management.enrolments import Enrolment, Enrolments
from management.errors import EnrolmentError
from management.issued import Issued
from management.registering import Registering
from protocol import canonical, renewal, rotation
from protocol.envelope import Envelope
from protocol.errors import ProtocolError
from protocol.keys import PublicKey
from protocol.registry import Client
from protocol.rotation import Announcement

MOST_UNANNOUNCED: Final = 16
"""Keys of one client that may be certified and not announced."""

T = TypeVar("T")

_log = structlog.get_logger()


class Offered(msgspec.Struct, frozen=True):
    """A certificate (DER) that is on no chain yet, the CA's (DER), and what both keys are to sign (canonical bytes)."""

    certificate: bytes
    ca_certificate: bytes
    announcement: bytes


class Renewals:
    """The CA's part in the life of a client's key. Both methods raise `EnrolmentError` and `ManagementError`."""

    def __init__(
        self,
        replica: Replica,
        authority: CertificateAuthority,
        enrolments: Enrolments,
        registering: Registering,
        workers: Executor,
    ) -> None:
        self._replica = replica
        self._authority = authority
        self._issuing = authority.issuing
        self._enrolments = enrolments
        self._registering = registering
        self._workers = workers

    async def ask(self, name: str, csr: bytes, proof: Envelope) -> Offered:
        """Step 1: the certificate for the new key."""
        request = await self._in_thread(lambda: read_request(name, csr))
        async with self._authority.alone(name):
            entry, old = self._in_force(name)
            self._check_proof(request, proof, old)
            await self._require_few(request)
            issued = await self._issuing.issue(request.subject, proof=proof, voucher=old.id)
        _log.info("renewal offered", client=name, serial=issued.serial)
        issuer = await self._issuing.issuer_of(issued.certificate)
        return Offered(issued.certificate, issuer, canonical.encode(self._words(entry, old, issued, request.key)))

    async def announce(self, name: str, announcement: Envelope) -> Enrolled:
        """Step 2: the new key takes the place of the old one."""
        try:
            said = rotation.decode(announcement)
            new = PublicKey.load(said.new)
        except ProtocolError as error:
            raise EnrolmentError("bad-announcement", str(error)) from None
        if said.holder != f"client/{name}" or said.network != self._replica.network:
            raise EnrolmentError("bad-announcement", f"it announces a key of {said.holder} in network {said.network}")
        async with self._authority.alone(name):
            entry = self._replica.registry.client_entry(name)
            if entry is not None and entry.key == said.new and entry.certificate == _digest(said.certificate):
                kept = await self._in_thread(lambda: self._enrolments.find(name))
                known = kept.transaction if kept and kept.certificate == said.certificate else None
                return Enrolled(said.certificate, await self._issuing.issuer_of(said.certificate), known or "")
            _, old = self._in_force(name)
            await self._in_thread(lambda: _check_announcement(announcement, old))
            await self._issuing.require_counting(new)
            issued = await self._issuing.find(self._issuing.issuer, new)
            if issued is None or issued.certificate != said.certificate or issued.name != name:
                raise EnrolmentError(
                    "bad-announcement", "its certificate is not the one that was issued for the new key"
                )
            if (said.not_before, said.until) != (issued.not_before, issued.not_after):
                raise EnrolmentError("bad-announcement", "the key's lifetime is not that of its certificate")
            transaction = await self._registering.renew_client(announcement, issued)
            await self._note(name, issued, transaction.id)
            await self._registering.commit(transaction)
        _log.info("client renewed", client=name, transaction=transaction.id, old=old.id, new=new.id)
        return Enrolled(issued.certificate, await self._issuing.issuer_of(issued.certificate), transaction.id)

    def _in_force(self, name: str) -> tuple[Client, PublicKey]:
        """The client and its key, which counts in the next block."""
        replica = self._replica
        entry, standing = replica.registry.client_entry(name), replica.registry.client_standing(name)
        if entry is None or standing is None:
            raise EnrolmentError("unknown-client", f"client {name} is not on the whitelist; register it")
        lapse = standing.lapse(replica.height + 1, replica.time)
        if lapse:
            code = "revoked" if standing.revoked else "client-expired"
            raise EnrolmentError(
                code, f"{lapse}: it cannot name its successor; let the administrators remove {name}, and register anew"
            )
        return entry, standing.key

    async def _require_few(self, request: Request) -> None:
        """A client that asks and asks, and announces nothing, uses the token up."""
        waiting = {each.key for each in await self._issuing.unannounced(request.name)}
        if len(waiting) >= MOST_UNANNOUNCED and request.key.id not in waiting:
            raise EnrolmentError(
                "too-many-keys",
                f"{len(waiting)} keys of {request.name} are certified and not announced; announce one of them",
            )

    def _check_proof(self, request: Request, proof: Envelope, old: PublicKey) -> None:
        try:
            asked = renewal.verify(proof, old)
        except ProtocolError as error:
            raise EnrolmentError("bad-renewal", str(error)) from None
        expected = (self._replica.network, request.name, request.key.id)
        if (asked.network, asked.client, asked.new) != expected:
            raise EnrolmentError("bad-renewal", "the request is for another network, client or key than the CSR's")
        if request.key.id == old.id:
            raise EnrolmentError("key-in-use", "this is the key in force: a renewal brings a new one")

    def _words(self, entry: Client, old: PublicKey, issued: Issued, new: PublicKey) -> Announcement:
        return Announcement(
            network=self._replica.network,
            holder=f"client/{entry.name}",
            old=old.id,
            new=new.spki,
            device="",
            since=self._replica.height,
            overlap=0,
            not_before=issued.not_before,
            until=issued.not_after,
            certificate=issued.certificate,
        )

    async def _note(self, name: str, issued: Issued, transaction: str) -> None:
        def work() -> None:
            kept = self._enrolments.find(name) or Enrolment(name, "issued")
            self._enrolments.put(
                msgspec.structs.replace(kept, state="issued", certificate=issued.certificate, transaction=transaction)
            )

        await self._in_thread(work)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)


def _check_announcement(announcement: Envelope, old: PublicKey) -> None:
    try:
        rotation.verify(announcement, old)
    except ProtocolError as error:
        raise EnrolmentError("bad-announcement", str(error)) from None


def _digest(certificate: bytes) -> str:
    return hashlib.sha256(certificate).hexdigest()
