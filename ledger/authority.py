"""Who may make a transaction: the whitelist and the reference signature, or the registry's own policy.

Clients sign alone. Registry transactions are signed by k of n administrators, whatever the state of nodes and
tokens; the registrar (the CA's token key) alone may add clients, renew their keys, and nothing else. Each key counts
within its lifetime, by the height and time of the block, and no more once it is revoked.
"""

from typing import Final

from ledger.contracts.registry import NAME as REGISTRY
from ledger.errors import AuthorizationError
from ledger.memory import SignatureMemory
from ledger.registry_view import RegistryView
from ledger.standing import Standing
from protocol.errors import BadSignatureError
from protocol.transaction import Transaction

REGISTRAR_KINDS: Final = frozenset({f"{REGISTRY}.add_client", f"{REGISTRY}.renew_client"})


def authorize(
    transaction: Transaction, registry: RegistryView, memory: SignatureMemory, *, height: int, time: int
) -> None:
    """Check who stands behind a transaction in a block of this height and time (milliseconds since the epoch).

    Requirements E-2, E-3, S-2, K-13, K-14. Raises `AuthorizationError`.
    """
    payload = transaction.payload
    if payload.network != registry.channel.network:
        raise AuthorizationError(
            "wrong-network", f"the transaction is for network {payload.network}, this is {registry.channel.network}"
        )
    try:
        if payload.contract == REGISTRY:
            _authorize_registry(transaction, registry, memory, height, time)
            return
        standing = registry.client_standing(payload.client)
        if standing is None:
            raise AuthorizationError("unknown-client", f"client {payload.client} is not on the whitelist")
        lapse = _lapse(standing, height, time)
        if lapse:
            raise AuthorizationError("client-expired", lapse)
        memory.verify_transaction(transaction, standing.key)
    except BadSignatureError as error:
        raise AuthorizationError("bad-signature", str(error)) from None


def _authorize_registry(
    transaction: Transaction, registry: RegistryView, memory: SignatureMemory, height: int, time: int
) -> None:
    registrar = registry.registrar_standings.get(transaction.payload.client)
    if registrar is not None:
        if transaction.kind not in REGISTRAR_KINDS:
            raise AuthorizationError(
                "not-authorized", f"a registrar may add clients and renew their keys; this is {transaction.kind}"
            )
        lapse = _lapse(registrar, height, time)
        if lapse:
            raise AuthorizationError("not-authorized", lapse)
        memory.verify_transaction(transaction, registrar.key)
        return
    check_administrators(transaction, registry, height=height, time=time)


def _lapse(standing: Standing, height: int, time: int) -> str:
    """Why a key does not count at this height and time; raises `AuthorizationError` when it never will again."""
    if standing.revoked:
        raise AuthorizationError("revoked", standing.revoked)
    return standing.lapse(height, time)


def check_administrators(transaction: Transaction, registry: RegistryView, *, height: int, time: int) -> None:
    """Check that administrators in force signed, as many as the registry asks for, and nobody else.

    Raises `AuthorizationError` (`not-authorized`, `revoked`) or `BadSignatureError`. One administrator counts once.
    """
    in_force = {key.id: key for key in registry.administrators_in_force(height=height, time=time).values()}
    for signer in transaction.signers:
        if signer not in in_force:
            raise _no_administrator(signer, registry, height, time)
        transaction.verify_by(in_force[signer])
    needed = registry.channel.administrators_needed
    signed = len(set(transaction.signers))
    if signed < needed:
        raise AuthorizationError("not-authorized", f"{signed} administrators signed where {needed} are needed")


def _no_administrator(signer: str, registry: RegistryView, height: int, time: int) -> AuthorizationError:
    for standing in registry.administrator_standings.values():
        if standing.key.id == signer:
            return AuthorizationError("not-authorized", _lapse(standing, height, time))
    return AuthorizationError("not-authorized", f"key {signer[:16]}… is no administrator's")
