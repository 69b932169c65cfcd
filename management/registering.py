"""The registrar's transactions: a certified client comes onto the whitelist, or its new key does. Signed on a token."""

import base64
import hashlib
import secrets
import time
from typing import Any, Final, Protocol

import msgspec

from ledger.replica import Replica
from management.ca_doors import CaDoors
from management.errors import EnrolmentError
from management.intake import Answer
from management.issued import Issued
from management.outcome import Status
from protocol import canonical
from protocol.block import VALID
from protocol.envelope import Envelope
from protocol.keys import PublicKey
from protocol.messages import SignRegistration
from protocol.transaction import PAYLOAD_TYPE, Transaction, TransactionPayload

REGISTRATION_MILLISECONDS: Final = 300_000
COMMIT_SECONDS: Final = 30.0


class Submit(Protocol):
    """The service's own intake."""

    async def submit_one(self, line: bytes, seconds: float) -> Answer:
        """Submit one transaction and wait for its commit."""
        ...


class Registering:
    """What the CA does as registrar."""

    def __init__(self, name: str, replica: Replica, doors: CaDoors, intake: Submit) -> None:
        self._name = name
        self._replica = replica
        self._doors = doors
        self._intake = intake

    async def add_client(self, name: str, key: PublicKey, issued: Issued) -> Transaction:
        """The signed transaction that puts a client on the whitelist, for as long as its certificate is valid."""
        arguments = {
            "name": name,
            "key": base64.b64encode(key.spki).decode(),
            "certificate": hashlib.sha256(issued.certificate).hexdigest(),
            "not_before": issued.not_before,
            "until": issued.not_after,
        }
        return await self._signed("add_client", arguments, issued.certificate)

    async def renew_client(self, announcement: Envelope, issued: Issued) -> Transaction:
        """The signed transaction that puts a client's new key in the place of the old one."""
        arguments = {"announcement": msgspec.json.decode(canonical.encode(announcement))}
        return await self._signed("renew_client", arguments, issued.certificate)

    async def commit(self, transaction: Transaction) -> None:
        """Hand it in and wait until it is in force; raises `EnrolmentError` when it is not."""
        answer = await self._intake.submit_one(transaction.raw, COMMIT_SECONDS)
        if not isinstance(answer, Status):
            raise EnrolmentError(answer.code, f"the registration was refused: {answer.detail}")
        if answer.status != "committed" or answer.code != VALID:
            came = answer.code or (answer.refusal.detail if answer.refusal else answer.status)
            raise EnrolmentError("registration-failed", f"the registration is not in force: {came}; ask again")

    async def _signed(self, operation: str, arguments: dict[str, Any], certificate: bytes) -> Transaction:
        replica = self._replica
        now = time.time_ns() // 1_000_000
        latest = replica.time + replica.registry.channel.longest_validity
        payload = canonical.encode(
            TransactionPayload(
                version=1,
                network=replica.network,
                client=self._name,
                contract="registry",
                operation=operation,
                arguments=arguments,
                nonce=secrets.token_hex(16),
                valid_from=replica.height,
                valid_until=min(now + REGISTRATION_MILLISECONDS, latest),
            )
        )
        signature = await self._doors.sign(
            "sign-registration", canonical.encode(SignRegistration(payload, certificate, replica.height))
        )
        return Transaction.decode(canonical.encode(Envelope(payload, PAYLOAD_TYPE, (signature,))))
