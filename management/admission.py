"""What is checked of a transaction before anything is kept of it; pure, and run in threads.

Until the client's signature is verified, nothing is remembered under the transaction's id: the id does not
cover the signature, so anybody could poison it.
"""

from collections.abc import Sequence
from typing import Final

from ledger.authority import authorize
from ledger.contracts.registry import NAME as REGISTRY
from ledger.errors import AuthorizationError, LedgerError
from ledger.memory import SignatureMemory
from ledger.registry_view import RegistryView
from management.outcome import Refusal
from protocol.errors import MalformedError
from protocol.transaction import Transaction

FARTHEST_START: Final = 1
"""How far beyond the next height a transaction's `valid_from` may lie: a device would refuse it for ever."""


def admit(
    lines: Sequence[bytes], registry: RegistryView, memory: SignatureMemory, *, height: int, now: int
) -> list[Transaction | Refusal]:
    """Each of the transactions (canonical bytes), or why it is not taken. `now` in milliseconds since the epoch."""
    return [_admit(line, registry, memory, height, now) for line in lines]


def _admit(
    line: bytes, registry: RegistryView, memory: SignatureMemory, height: int, now: int
) -> Transaction | Refusal:
    try:
        transaction = Transaction.decode(line)
    except MalformedError as error:
        return Refusal(code=error.code, detail=str(error))
    payload = transaction.payload
    if payload.network != registry.channel.network:
        return _refusal(
            transaction,
            "wrong-network",
            f"the transaction is for network {payload.network}, this is {registry.channel.network}",
        )
    if payload.valid_until <= now:  # a courtesy by the wall clock: what counts is the block's time
        return _refusal(
            transaction,
            "expired",
            f"the transaction was valid until {payload.valid_until}, it is {now} (ms); sign a new one",
        )
    try:
        authorize(transaction, registry, memory, height=height + 1, time=now)
    except AuthorizationError as error:
        return _refusal(transaction, error.code, str(error))
    except LedgerError as error:
        return _refusal(transaction, error.code, str(error))
    if payload.valid_from > height + 1 + FARTHEST_START:
        return _refusal(
            transaction,
            "not-yet-valid",
            f"the transaction counts from height {payload.valid_from} on, the next block is {height + 1}",
        )
    if payload.contract != REGISTRY and registry.policy(transaction.kind) is None:
        return _refusal(
            transaction,
            "no-policy",
            f"no endorsement policy covers {transaction.kind}, so nobody could endorse it",
        )
    return transaction


def _refusal(transaction: Transaction, code: str, detail: str) -> Refusal:
    return Refusal(code=code, detail=detail, transaction=transaction.id)
