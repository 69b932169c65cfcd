"""The typed doors: headers, certificates, revocation lists, registrations. No door takes a digest.

Each parses what it is asked to sign, checks that it is what it claims to be, and signs nothing else.
"""

import time
from typing import Final, Literal

import msgspec

from hsm_endorser import certificates
from hsm_endorser.chain import Chain
from hsm_endorser.errors import GuardError, NotReadyError, RefusedError, TokenUnavailableError
from hsm_endorser.signing import GuardedToken
from ledger.contracts.registry import AddClient
from ledger.errors import LedgerError
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
REGISTRATION: Final = ("registry", "add_client")

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
        doors: tuple[Door, ...] = ("sign-header",) if self._center_key() else ()
        return doors + (CA_DOORS if self._registrar() else ())

    async def sign_header(self, body: bytes) -> Signature:
        """Sign the header of the next block, after executing the block and comparing every field.

        Another header for the same height is refused for ever; the same one is signed again.
        """
        self._require_guard()
        key = self._center_key()
        if key is None:
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
            await self._chain.run(lambda replica: replica.check(block, signed=False))
        except LedgerError as error:
            raise RefusedError(error.code, str(error)) from None
        message = pae(blocks.PAYLOAD_TYPE, block.envelope.payload)
        return await self._signer.sign("header", key, message, header=(height, block.authentication))

    async def sign_certificate(self, request: SignCertificate) -> Signature:
        """Sign a client's certificate for the CA: never one that could sign certificates itself."""
        ca = self._ca()
        certificates.check_certificate(request.tbs, ca.key, ca.certificate)
        return await self._signer.sign("certificate", ca.key.id, request.tbs)

    async def sign_crl(self, request: SignCrl) -> Signature:
        """Sign a certificate revocation list for the CA."""
        ca = self._ca()
        certificates.check_crl(request.tbs, ca.key, ca.certificate)
        return await self._signer.sign("crl", ca.key.id, request.tbs)

    async def sign_registration(self, request: SignRegistration) -> Signature:
        """Sign, as registrar, the transaction that puts one certified client on the whitelist (requirement E-1)."""
        ca = self._ca()
        payload = self._registration(request.payload)
        if payload.client != ca.name:
            raise RefusedError("wrong-registrar", f"the transaction is by {payload.client!r}, this CA is {ca.name!r}")
        try:
            wanted = msgspec.convert(payload.arguments, AddClient)
        except msgspec.ValidationError as error:
            raise RefusedError("bad-arguments", str(error)) from None
        certificates.check_issued(request.certificate, ca.key, ca.certificate, wanted)
        message = pae(transaction.PAYLOAD_TYPE, request.payload)
        return await self._signer.sign("registration", ca.key.id, message)

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
        if (payload.contract, payload.operation) != REGISTRATION:
            raise RefusedError(
                "not-a-registration",
                f"a registrar signs registry.add_client, this is {payload.contract}.{payload.operation}",
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

    def _center_key(self) -> KeyId | None:
        """The key of a center that the registry places on this device, and that is on its token."""
        registry = self._chain.registry
        for name, key in registry.centers.items():
            center = registry.center(name)
            if center and center.device == self._device and key.id in self._signer.token.keys:
                return key.id
        return None

    def _registrar(self) -> certificates.Ca | None:
        registry = self._chain.registry
        for name, key in registry.registrars.items():
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
            raise RefusedError("no-ca-key", f"no registrar's key lives on device {self._device}")
        return ca


_payload_decoder = msgspec.json.Decoder(TransactionPayload)
