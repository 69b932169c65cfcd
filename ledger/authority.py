"""Who may make a transaction: the whitelist and the reference signature, or the registry's own policy.

Clients sign alone. Registry transactions are signed by k of n administrators, whatever the state of nodes and
tokens; the registrar (the CA's token key) alone may add clients and nothing else.
"""

from typing import Final

from ledger.contracts.registry import NAME as REGISTRY
from ledger.errors import AuthorizationError
from ledger.memory import SignatureMemory
from ledger.registry_view import RegistryView
from protocol.errors import BadSignatureError
from protocol.transaction import Transaction

REGISTRAR_KIND: Final = f"{REGISTRY}.add_client"


def authorize(transaction: Transaction, registry: RegistryView, memory: SignatureMemory) -> None:
    """Check who stands behind a transaction (requirements E-2, E-3, S-2); raises `AuthorizationError`."""
    payload = transaction.payload
    if payload.network != registry.channel.network:
        raise AuthorizationError(
            "wrong-network", f"the transaction is for network {payload.network}, this is {registry.channel.network}"
        )
    try:
        if payload.contract == REGISTRY:
            _authorize_registry(transaction, registry, memory)
            return
        key = registry.client(payload.client)
        if key is None:
            raise AuthorizationError("unknown-client", f"client {payload.client} is not on the whitelist")
        memory.verify_transaction(transaction, key)
    except BadSignatureError as error:
        raise AuthorizationError("bad-signature", str(error)) from None


def _authorize_registry(transaction: Transaction, registry: RegistryView, memory: SignatureMemory) -> None:
    registrar = registry.registrars.get(transaction.payload.client)
    if registrar is not None:
        if transaction.kind != REGISTRAR_KIND:
            raise AuthorizationError("not-authorized", f"a registrar may add clients; this is {transaction.kind}")
        memory.verify_transaction(transaction, registrar)
        return
    check_administrators(transaction, registry)


def check_administrators(transaction: Transaction, registry: RegistryView) -> None:
    """Check that administrators signed, as many as the registry asks for, and nobody else.

    Raises `AuthorizationError` (`not-authorized`) or `BadSignatureError`. One administrator counts once.
    """
    administrators = {key.id: key for key in registry.administrators.values()}
    for signer in transaction.signers:
        if signer not in administrators:
            raise AuthorizationError("not-authorized", f"key {signer[:16]}… is no administrator's")
        transaction.verify_by(administrators[signer])
    needed = registry.channel.administrators_needed
    signed = len(set(transaction.signers))
    if signed < needed:
        raise AuthorizationError("not-authorized", f"{signed} administrators signed where {needed} are needed")
