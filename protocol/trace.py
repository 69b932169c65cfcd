"""What one key has signed, as the blocks of a chain prove it (requirement K-14)."""

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from protocol import canonical, custody, rotation
from protocol.block import PAYLOAD_TYPE as HEADER_TYPE
from protocol.block import Block
from protocol.canonical import Digest, Height, Milliseconds
from protocol.endorsement import PAYLOAD_TYPE as HEAD_TYPE
from protocol.endorsement import Branch, decode_head
from protocol.envelope import Envelope, pae_digest
from protocol.errors import ProtocolError
from protocol.transaction import PAYLOAD_TYPE as TRANSACTION_TYPE
from protocol.transaction import Transaction

Kind = Literal["votes", "header", "transaction", "statement", "announcement"]


class Signing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One signature of a key in a block."""

    kind: Kind
    height: Height
    time: Milliseconds
    """The block's time."""
    digest: Digest
    """SHA-256 over the signed bytes: the device's journal names the signature by it."""
    subject: str
    """What was signed, in words."""
    transactions: tuple[Digest, ...] = ()
    """The transactions of the block that this signature touches."""
    elsewhere: int = 0
    """Votes under the same head that this block does not show: they stand in other blocks, or were never used."""


class Page(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Signatures of a key in the order of the chain; `next` is where to go on, or nothing."""

    key: Digest
    height: Height
    """Up to which height the chain was looked at."""
    signings: tuple[Signing, ...]
    next: Annotated[int, msgspec.Meta(ge=0, le=canonical.MAX_INTEGER)] | None


def signers(block: Block) -> set[str]:
    """The ids of all keys that have a signature in a block; what cannot be read is nobody's."""
    keys = {signature.keyid for signature in block.envelope.signatures}
    for transaction in block.transactions:
        keys.update(transaction.signers)
        for _, envelope in _enclosed(transaction):
            keys.update(signature.keyid for signature in envelope.signatures)
    keys.update(signature.keyid for tree in block.trees for each in tree.branches for signature in each.head.signatures)
    return keys


def signings(block: Block, key: str) -> Iterator[Signing]:
    """Every signature of `key` in a block."""
    height, time = block.header.height, block.header.time
    if _signed(block.envelope, key):
        subject = f"the header of block {height} ({block.header.transaction_count} transactions)"
        yield Signing("header", height, time, pae_digest(HEADER_TYPE, block.envelope.payload), subject)
    for transaction in block.transactions:
        if key in transaction.signers:
            digest = pae_digest(TRANSACTION_TYPE, transaction.envelope.payload)
            subject = f"{transaction.kind} by {transaction.payload.client}"
            yield Signing("transaction", height, time, digest, subject, (transaction.id,))
        for kind, envelope in _enclosed(transaction):
            if _signed(envelope, key):
                digest = pae_digest(envelope.payload_type, envelope.payload)
                yield Signing(kind, height, time, digest, _WORDS[kind], (transaction.id,))
    ids = [transaction.id for transaction in block.transactions]
    for tree in block.trees:
        for branch in tree.branches:
            if _signed(branch.head, key):
                yield _votes(branch, height, time, ids)


def _votes(branch: Branch, height: int, time: int, ids: list[canonical.TxId]) -> Signing:
    head = decode_head(branch.head)
    approved = tuple(ids[leaf] for leaf in branch.leaves if isinstance(leaf, int))
    votes = "1 approval" if len(approved) == 1 else f"{len(approved)} approvals"
    return Signing(
        "votes",
        height,
        time,
        pae_digest(HEAD_TYPE, branch.head.payload),
        f"{votes} for node {head.node} in tree {head.sequence} of {head.device}",
        approved,
        len(branch.leaves) - len(approved),
    )


def _enclosed(transaction: Transaction) -> Iterator[tuple[Kind, Envelope]]:
    """The signed things that a registry transaction carries: custody statements, announcements of keys."""
    payload = transaction.payload
    if payload.contract != "registry":
        return
    entries = payload.arguments.get("entries")
    found = [
        _base64(entry.get("statement"))
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and entry.get("type") == "custody"
    ]
    if "announcement" in payload.arguments:
        found.append(canonical.encode(payload.arguments["announcement"]))
    for data in found:
        try:
            envelope = canonical.decode(data, _envelope_decoder)
        except ProtocolError:
            continue
        kind = _KINDS.get(envelope.payload_type)
        if kind:
            yield kind, envelope


def _base64(value: object) -> bytes:
    try:
        return msgspec.convert(value, bytes)
    except msgspec.ValidationError:
        return b""


def _signed(envelope: Envelope, key: str) -> bool:
    return any(signature.keyid == key for signature in envelope.signatures)


_KINDS: dict[str, Kind] = {custody.PAYLOAD_TYPE: "statement", rotation.PAYLOAD_TYPE: "announcement"}
_WORDS: dict[Kind, str] = {"statement": "a custody statement", "announcement": "the announcement of a new key"}
_envelope_decoder = msgspec.json.Decoder(Envelope)
