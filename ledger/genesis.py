"""Block 0: the first set of the registry, signed by its administrators (architecture, decision 1)."""

import secrets
from collections.abc import Iterable
from typing import Final

from ledger import execution
from ledger.authority import check_administrators
from ledger.errors import AuthorizationError, BadCopyError, BlockRefusedError
from ledger.execution import Execution
from ledger.registry_view import RegistryView
from protocol import canonical
from protocol.block import (
    NO_PREVIOUS,
    RULES_VERSION,
    VALID,
    Block,
    Header,
    outcome_root,
    transaction_root,
    unsigned,
    verify_header,
)
from protocol.errors import BadSignatureError, ProtocolError
from protocol.registry import Entry
from protocol.transaction import Transaction, TransactionPayload

CLIENT: Final = "genesis"
KIND: Final = "registry.genesis"


def genesis_payload(network: str, entries: Iterable[Entry]) -> bytes:
    """The canonical payload of the first set's transaction, for the administrators to sign."""
    return canonical.encode(
        TransactionPayload(
            version=1,
            network=network,
            client=CLIENT,
            contract="registry",
            operation="genesis",
            arguments={"entries": list(entries)},
            nonce=secrets.token_hex(16),
            valid_from=0,
            valid_until=canonical.MAX_INTEGER,
        )
    )


def draft_genesis(transaction: bytes, time: int) -> Block:
    """Block 0 around the signed first set (an envelope's canonical bytes), for the center to sign.

    `time` is in milliseconds since the epoch. Raises `BlockRefusedError` when the set does not hold together.
    """
    try:
        decoded = Transaction.decode(transaction)
    except ProtocolError as error:
        raise BlockRefusedError("not-genesis", str(error)) from None
    return unsigned(_header(decoded, _execute(decoded, time), time), [decoded], [])


def check_genesis(block: Block) -> Execution:
    """Check that a block is a genesis block: block 0, one first set, signed by those whom the set itself names.

    Raises `BlockRefusedError` (`not-genesis`), or `BadCopyError` when the centers' signatures do not hold.
    """
    if block.header.height != 0 or len(block.transactions) != 1 or block.trees:
        raise BlockRefusedError("not-genesis", "a genesis block is block 0 and holds one transaction and no votes")
    (transaction,) = block.transactions
    if transaction.kind != KIND:
        raise BlockRefusedError("not-genesis", f"block 0 holds {transaction.kind} where {KIND} is expected")
    result = _execute(transaction, block.header.time)
    if _header(transaction, result, block.header.time) != block.header:
        raise BlockRefusedError("not-genesis", "the header is not the one that the first set gives")
    try:
        check_administrators(transaction, result.registry, height=0, time=block.header.time)
    except (AuthorizationError, BadSignatureError) as error:
        raise BlockRefusedError("not-genesis", str(error)) from None
    try:
        centers = result.registry.centers_for(height=0, time=block.header.time, kinds=[transaction.kind])
        verify_header(block.envelope, tuple(centers.values()), result.registry.channel.centers_needed)
    except BadSignatureError as error:
        raise BadCopyError(f"genesis: {error}") from None
    return result


def _execute(transaction: Transaction, time: int) -> Execution:
    result = execution.execute([transaction], RegistryView({}), lambda _keys: {}, height=0, time=time)
    code = result.outcomes[0].code
    if code != VALID:
        raise BlockRefusedError("not-genesis", f"the first set does not hold together: {code}")
    channel = result.registry.channel
    if channel.network != transaction.payload.network:
        raise BlockRefusedError("not-genesis", f"the first set is for network {channel.network}")
    if channel.rules_version != RULES_VERSION:
        raise BlockRefusedError(
            "not-genesis", f"the first set asks for rules {channel.rules_version}, this release makes {RULES_VERSION}"
        )
    return result


def _header(transaction: Transaction, result: Execution, time: int) -> Header:
    return Header(
        version=1,
        rules_version=RULES_VERSION,
        network=transaction.payload.network,
        height=0,
        time=time,
        previous=NO_PREVIOUS,
        transaction_count=1,
        transaction_root=transaction_root([transaction], []),
        outcome_root=outcome_root(result.outcomes),
        registry_root=result.registry.root,
    )
