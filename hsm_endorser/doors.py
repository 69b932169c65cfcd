"""The typed doors: headers, certificates, revocation lists, registrations. No door takes a digest.

Each parses what it is asked to sign, checks that it is what it claims to be, and signs nothing else.
"""

import asyncio
import time
from typing import Final, Literal

import msgspec

from hsm_endorser import certificates, registrations
from hsm_endorser.chain import Chain
from hsm_endorser.errors import GuardError, NotReadyError, RefusedError, TokenUnavailableError
from hsm_endorser.former_cas import former_cas
from hsm_endorser.signing import GuardedToken
from ledger.contracts.registry import NAME as REGISTRY
from ledger.errors import LedgerError
from ledger.replica import Replica
from ledger.standing import Standing
from protocol import block as blocks
from protocol import canonical, transaction
from protocol.block import Block
from protocol.canonical import KeyId
from protocol.envelope import Signature, pae
from protocol.errors import ProtocolError
from protocol.messages import SignCertificate, SignCrl, SignRegistration
from protocol.transaction import TransactionPayload

AHEAD_MILLISECONDS: Final = 5000
"""How far a block's time may be ahead of this machine's clock."""

Door = Literal["sign-header", "sign-certificate", "sign-crl", "sign-registration"]
CA_DOORS: Final[tuple[Door, ...]] = ("sign-certificate", "sign-crl", "sign-registration")


def clock() -> int:
    """The clock of the machine, in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


class Doors:
    """The doors of one device. All raise `RefusedError`, `NotReadyError`, `GuardError` or `TokenError`."""

    def __init__(self, device: str, chain: Chain, signer: GuardedToken) -> None:
        self._device = device
        self._chain = chain
        self._signer = signer

    @property
    def open_doors(self) -> tuple[Door, ...]:
        """The doors that this device has a key for."""
        doors: tuple[Door, ...] = ("sign-header",) if self._center_keys() else ()
        return doors + (CA_DOORS if self._registrar() else ())

    async def sign_header(self, body: bytes) -> Signature:
        """Sign the header of the next block, after executing the block and comparing every field.

        Another header for the same height is refused for ever; the same one is signed again.
        """
        self._require_guard()
        if not self._center_keys():
            self._require_token()
            raise RefusedError("no-center-key", f"no center's key lives on device {self._device}")
        block = await self._decode(body)
        height = block.header.height
        since = self._signer.guard.headers_since
        if height < since:
            raise RefusedError(
                "before-guard",
                f"this device's guard was re-initialised: it signs headers from height {since} on, this is {height}; "
                "let another center sign it",
            )
        await self._chain.reach(height - 1)
        ahead = block.header.time - clock()
        if ahead > AHEAD_MILLISECONDS:
            raise RefusedError(
                "time-ahead",
                f"the block's time is {ahead} ms ahead of this machine's clock; set the clocks of both machines",
            )
        try:
            key = await self._chain.run(lambda replica: self._check_header(replica, block))
        except LedgerError as error:
            raise RefusedError(error.code, str(error)) from None
        message = pae(blocks.PAYLOAD_TYPE, block.envelope.payload)
        return await self._signer.sign("header", key, message, header=(height, block.authentication))

    async def sign_certificate(self, request: SignCertificate) -> Signature:
        """Sign a client's, a node's or a service's certificate for the CA: never one that could sign certificates."""
        await self._reach(request.least_height)
        ca = self._ca()
        certified = certificates.check_certificate(request.tbs, ca.key, ca.certificate)
        registrations.check_certified(certified, request.proof, self._place())
        return await self._signer.sign("certificate", ca.key.id, request.tbs)

    async def sign_crl(self, request: SignCrl) -> Signature:
        """Sign a certificate revocation list for the CA, by the key that issued what is on it (requirement K-14)."""
        await self._reach(request.least_height)
        ca = await self._issuer_of(request.tbs)
        revoked = [entry.name for entry in self._chain.registry.revocations if entry.name != ca.key.id]
        # A long list takes a while to parse: other doors stay open meanwhile.
        await asyncio.to_thread(certificates.check_crl, request.tbs, ca.key, ca.certificate, revoked)
        return await self._signer.sign("crl", ca.key.id, request.tbs)

    async def sign_registration(self, request: SignRegistration) -> Signature:
        """Sign, as registrar, the transaction that registers one certified client, or its new key (E-1, K-12)."""
        await self._reach(request.least_height)
        ca = self._ca()
        payload = self._registration(request.payload)
        registrations.check(payload, request.certificate, ca, self._place())
        message = pae(transaction.PAYLOAD_TYPE, request.payload)
        return await self._signer.sign("registration", ca.key.id, message)

    async def _issuer_of(self, tbs: bytes) -> certificates.Ca:
        """The CA whose list this is: the one in force, or one before it whose key is still on this token."""
        current = self._ca()
        wanted = certificates.issuer_identifier(tbs)
        if wanted is None or wanted == certificates.identifier_of(current):
            return current
        for former in await self._chain.run(former_cas):
            if wanted == certificates.identifier_of(former) and former.key.id in self._signer.token.keys:
                return former
        raise RefusedError("wrong-issuer", "the list is of no key of this CA that is on this token and not revoked")

    async def _reach(self, height: int) -> None:
        if height > self._chain.height:
            await self._chain.reach(height)

    def _place(self) -> registrations.Place:
        return registrations.Place(self._chain.registry, self._chain.height + 1, self._chain.time)

    async def _decode(self, body: bytes) -> Block:
        try:
            return await self._chain.run(lambda _replica: Block.decode(body))
        except ProtocolError as error:
            raise RefusedError(error.code, str(error)) from None

    def _registration(self, data: bytes) -> TransactionPayload:
        try:
            payload = canonical.decode(data, _payload_decoder)
            canonical.check_free_form(payload.arguments)
        except ProtocolError as error:
            raise RefusedError(error.code, str(error)) from None
        if payload.contract != REGISTRY or payload.operation not in registrations.OPERATIONS:
            wanted = " or ".join(registrations.OPERATIONS)
            raise RefusedError(
                "not-a-registration",
                f"a registrar signs {REGISTRY}.{wanted}, this is {payload.contract}.{payload.operation}",
            )
        if payload.network != self._chain.network:
            raise RefusedError("wrong-network", f"network {payload.network} where {self._chain.network} is expected")
        return payload

    def _require_guard(self) -> None:
        """Say so before anything else when nothing may be signed at all."""
        if self._signer.guard.trouble:
            raise GuardError(self._signer.guard.trouble)

    def _require_token(self) -> None:
        """A token that is away shows no keys: that is no answer to whether a key lives on it."""
        if self._signer.token.trouble:
            raise TokenUnavailableError(self._signer.token.trouble)

    def _center_keys(self) -> dict[str, Standing]:
        """The keys of centers that the registry places on this device, and that are on its token, by name."""
        return {
            name: standing
            for name, standing in self._chain.registry.center_standings.items()
            if standing.device == self._device and standing.key.id in self._signer.token.keys
        }

    def _check_header(self, replica: Replica, block: Block) -> KeyId:
        """In the ledger's thread: the key that signs, when the block holds and the key counts at its height and time.

        What is in force for a block is the registry before it: so the key that is replaced by a block signs it.
        """
        replica.check(block, signed=False)
        header, kinds = block.header, {transaction.kind for transaction in block.transactions}
        counting = replica.registry.centers_for(height=header.height, time=header.time, kinds=kinds)
        here = self._center_keys()
        for name, standing in here.items():
            if counting.get(name) == standing.key:
                return standing.key.id
        for name, standing in here.items():
            why = f"center {name} does not sign block {header.height}: {standing.lapse(header.height, header.time)}"
            if standing.revoked:
                raise RefusedError("revoked", f"{why}; let the administrators register another key for it")
            if standing.weak:
                raise RefusedError("tier-too-low", f"{why}; audit the device: hsm-endorser custody audit")
            advice = f"let the administrators register a new key: hsm-endorser key rotate --unannounced center/{name}"
            raise RefusedError("key-expired", f"{why}; {advice}")
        raise RefusedError("no-center-key", f"no center's key lives on device {self._device} any more")

    def _registrar(self) -> certificates.Ca | None:
        """The CA whose key is on this token and counts in the next block, by the last block's time (K-13, K-14)."""
        registry, height, time = self._chain.registry, self._chain.height + 1, self._chain.time
        for name, key in registry.registrars_in_force(height=height, time=time).items():
            entry = registry.registrar(name)
            if entry and key.id in self._signer.token.keys:
                return certificates.Ca(name, key, entry.certificate)
        return None

    def _ca(self) -> certificates.Ca:
        if self._chain.halted:
            raise NotReadyError(f"this device has halted: {self._chain.halted}")
        self._require_guard()
        ca = self._registrar()
        if ca is None:
            self._require_token()
            for standing in self._chain.registry.registrar_standings.values():
                if standing.key.id in self._signer.token.keys:
                    raise self._ca_lapsed(standing)
            raise RefusedError("no-ca-key", f"no registrar's key lives on device {self._device}")
        return ca

    def _ca_lapsed(self, standing: Standing) -> RefusedError:
        why = standing.lapse(self._chain.height + 1, self._chain.time)
        if standing.revoked:
            return RefusedError("revoked", f"{why}; let the administrators register another key for the CA")
        advice = f"let the administrators register a new key: hsm-endorser key rotate --unannounced {standing.holder}"
        return RefusedError("key-expired", f"{why}; {advice}")


_payload_decoder = msgspec.json.Decoder(TransactionPayload)
