"""Blocks: a header that centers sign, and the body that it commits (requirement M-4).

The transactions give root data (`transaction_root`), the header's canonical bytes give authentication data
(their SHA-256), and each header names the authentication data of the one before.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec

from protocol import canonical, merkle
from protocol.canonical import Digest, Height, Milliseconds, Name
from protocol.endorsement import Tree
from protocol.envelope import PREFIX, Envelope, pae
from protocol.errors import BadSignatureError, MalformedError
from protocol.keys import PublicKey
from protocol.transaction import Transaction

PAYLOAD_TYPE: Final = PREFIX + "header.v1+json"
RULES_VERSION: Final = 1
"""The rules by which this release cuts and judges new blocks."""
NO_PREVIOUS: Final = "0" * 64
"""What the genesis block names as its predecessor."""
MAX_BLOCK_BYTES: Final = 64 << 20
MAX_TRANSACTIONS: Final = 65536

Code = Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9-]{0,63}\Z")]
VALID: Final = "valid"
"""The outcome code of a transaction that took effect; every other code names why it did not."""


class Header(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """What centers sign for one height."""

    version: Literal[1]
    rules_version: Annotated[int, msgspec.Meta(ge=1, le=canonical.MAX_INTEGER)]
    network: Name
    height: Height
    time: Milliseconds
    previous: Digest
    transaction_count: Annotated[int, msgspec.Meta(ge=0, le=MAX_TRANSACTIONS)]
    transaction_root: Digest
    outcome_root: Digest
    registry_root: Digest

    def encode(self) -> bytes:
        """The canonical bytes: what the envelope carries and the authentication data covers."""
        return canonical.encode(self)

    @property
    def authentication(self) -> str:
        """The authentication data of this height: SHA-256 over the canonical bytes, hexadecimal."""
        return hashlib.sha256(self.encode()).hexdigest()


class Outcome(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """What executing one transaction came to; `writes` is the SHA-256 of its canonical write set."""

    transaction: Digest
    code: Code
    writes: Digest

    def leaf(self) -> bytes:
        """The 32-byte hash under which the outcome stands in `outcome_root`."""
        return merkle.leaf_hash(canonical.encode(self))


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    authentication: Digest
    header: Envelope
    transactions: tuple[msgspec.Raw, ...]
    trees: tuple[Tree, ...]


class Block(msgspec.Struct, frozen=True, eq=False):
    """A block: the header's envelope (signed or about to be), its decoded header, and the body."""

    envelope: Envelope
    header: Header
    authentication: str
    transactions: tuple[Transaction, ...]
    trees: tuple[Tree, ...]

    @staticmethod
    def decode(data: bytes) -> "Block":
        """The block in canonical bytes, without judging it; raises `MalformedError`."""
        wire = canonical.decode(data, _wire_decoder, limit=MAX_BLOCK_BYTES)
        header = decode_header(wire.header)
        authentication = hashlib.sha256(wire.header.payload).hexdigest()
        if authentication != wire.authentication:
            raise MalformedError(
                f"authentication data {wire.authentication[:16]}… beside a header that gives {authentication[:16]}…"
            )
        transactions = tuple(Transaction.decode(bytes(raw)) for raw in wire.transactions)
        return Block(wire.header, header, authentication, transactions, wire.trees)

    def encode(self) -> bytes:
        """The canonical bytes of the block: one line of the stream, no line feed."""
        transactions = tuple(msgspec.Raw(transaction.raw) for transaction in self.transactions)
        return canonical.encode(_Wire(self.authentication, self.envelope, transactions, self.trees))

    def signed(self, envelope: Envelope) -> "Block":
        """The same block under another envelope of the same header."""
        if envelope.payload != self.envelope.payload:
            raise MalformedError("the envelope is of another header")
        return Block(envelope, self.header, self.authentication, self.transactions, self.trees)


def unsigned(header: Header, transactions: Sequence[Transaction], trees: Sequence[Tree]) -> Block:
    """A block that no center has signed yet."""
    payload = header.encode()
    envelope = Envelope(payload, PAYLOAD_TYPE, ())
    return Block(envelope, header, hashlib.sha256(payload).hexdigest(), tuple(transactions), tuple(trees))


def decode_header(envelope: Envelope) -> Header:
    """The header in an envelope, not yet verified; raises `MalformedError`."""
    envelope.require_type(PAYLOAD_TYPE)
    return canonical.decode(envelope.payload, _header_decoder)


def verify_header(envelope: Envelope, centers: Sequence[PublicKey], needed: int) -> None:
    """Check that at least `needed` of the `centers` signed the header, and nobody else.

    Raises `BadSignatureError`. One center counts once.
    """
    known: dict[str, PublicKey] = {key.id: key for key in centers}
    signed: set[str] = set()
    message = pae(PAYLOAD_TYPE, envelope.payload)
    for signature in envelope.signatures:
        key = known.get(signature.keyid)
        if key is None:
            raise BadSignatureError(f"the header is signed by key {signature.keyid[:16]}…, which is no center's")
        key.verify(signature.sig, message, low_s=True)
        signed.add(key.id)
    if len(signed) < needed:
        raise BadSignatureError(f"the header carries {len(signed)} center signatures where {needed} are needed")


def transaction_leaf(transaction: Transaction) -> bytes:
    """The leaf hash of a transaction's complete bytes."""
    return merkle.leaf_hash(transaction.raw)


def tree_leaf(tree: Tree) -> bytes:
    """The leaf hash of a tree's canonical bytes."""
    return merkle.leaf_hash(canonical.encode(tree))


def transaction_root(transactions: Sequence[Transaction], trees: Sequence[Tree]) -> str:
    """The root data of a body: the node over the root of its transactions and the root of its trees."""
    return merkle.node_hash(
        merkle.root([transaction_leaf(transaction) for transaction in transactions]),
        merkle.root([tree_leaf(tree) for tree in trees]),
    ).hex()


def outcome_root(outcomes: Sequence[Outcome]) -> str:
    """The root over the outcomes, in the order of the transactions."""
    return merkle.root([outcome.leaf() for outcome in outcomes]).hex()


_wire_decoder = msgspec.json.Decoder(_Wire)
_header_decoder = msgspec.json.Decoder(Header)
