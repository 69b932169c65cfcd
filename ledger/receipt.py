"""Receipts: one file that proves a transaction's place, outcome and endorsements to anyone who has genesis.json.

The small form of evidence: the same proofs and the same checklist (see `ledger.exhibit`), without the custody
statements where no tier is demanded.
"""

from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from ledger.exhibit import MAX_EXHIBIT_BYTES, Checklist, Exhibit, ExhibitError
from protocol import canonical
from protocol.canonical import TxId

if TYPE_CHECKING:
    from ledger.store import ChainStore

MAX_RECEIPT_BYTES: Final = MAX_EXHIBIT_BYTES
ReceiptError = ExhibitError


class Receipt(Exhibit, frozen=True, forbid_unknown_fields=True, tag_field="form", tag="receipt"):
    """Everything that proves one transaction."""

    CODE: ClassVar[str] = "bad-receipt"


class ReceiptReport(msgspec.Struct, frozen=True):
    """What a receipt proves, with each step in words."""

    transaction: str
    kind: str
    client: str
    height: int
    time: int
    """The block's, in milliseconds since the epoch."""
    code: str
    nodes: tuple[str, ...]
    steps: tuple[str, ...]


def make_receipt(store: "ChainStore", transaction: TxId) -> bytes:
    """The canonical bytes of the receipt of a transaction in the chain; raises `LedgerError` (`not-found`)."""
    from ledger.exhibiting import Exhibits  # noqa: PLC0415  who verifies needs no database

    return canonical.encode(Exhibits(store).make(transaction, Receipt))


def verify_receipt(data: bytes, genesis: bytes) -> ReceiptReport:
    """Check a receipt step by step against the network's genesis block; raises `ExhibitError`."""
    found = Checklist(data, genesis, Receipt).run()
    return ReceiptReport(
        transaction=found.transaction.id,
        kind=found.transaction.kind,
        client=found.transaction.payload.client,
        height=found.header.height,
        time=found.header.time,
        code=found.code,
        nodes=found.decision.nodes if found.decision else (),
        steps=tuple(step.found for step in found.steps),
    )
