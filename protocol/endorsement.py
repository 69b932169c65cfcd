"""Votes, and the signed tree heads that carry them (requirements E-10, E-11).

A device gathers the votes of a micro-batch as the leaves of one Merkle tree; each node's key signs the head
once. A signature counts only for the leaves that name its own node: that is why a tree is kept as branches,
one for each node, in the order in which their leaves stand in the tree.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal

import msgspec

from protocol import canonical, merkle
from protocol.canonical import Digest, Height, Name, TxId
from protocol.envelope import PREFIX, Envelope, pae
from protocol.errors import BadProofError, BadSignatureError, MalformedError
from protocol.keys import PublicKey

PAYLOAD_TYPE: Final = PREFIX + "tree-head.v1+json"
MAX_LEAVES: Final = 65536
"""Most votes in one tree."""

Verdict = Literal["approve", "reject"]
Reason = Annotated[str, msgspec.Meta(pattern=r"\A([a-z][a-z0-9-]{0,63})?\Z")]
"""A stable code; empty for an approval."""


class Vote(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """What one node says of one transaction; there is no default verdict."""

    network: Name
    transaction: Digest
    node: Name
    verdict: Verdict
    reason: Reason
    version: Literal[1] = 1

    def leaf(self) -> bytes:
        """The 32-byte hash under which the vote stands in a tree."""
        return merkle.leaf_hash(canonical.encode(self))


def approval(network: str, transaction: TxId, node: str) -> Vote:
    """The vote that approves."""
    return Vote(network=network, transaction=transaction, node=node, verdict="approve", reason="")


class TreeHead(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """What a node key signs: the tree's root and size, who signs on which device, and the height it had applied.

    `sequence` counts the trees of the device and never goes back; a guard that is behind it was restored.
    """

    network: Name
    device: Name
    node: Name
    key: Digest
    root: Digest
    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_LEAVES)]
    height: Height
    sequence: Annotated[int, msgspec.Meta(ge=1, le=canonical.MAX_INTEGER)]
    version: Literal[1] = 1


Leaf = Annotated[int, msgspec.Meta(ge=0, le=MAX_LEAVES)] | Digest
"""In a block: the index of a transaction that this leaf approves. Else the hash of a vote that is not in it."""


class Branch(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The votes of one node in a tree, in order, and the head that its key signed."""

    node: Name
    leaves: Annotated[tuple[Leaf, ...], msgspec.Meta(min_length=1, max_length=MAX_LEAVES)]
    head: Envelope


class Tree(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """The votes of one micro-batch. Devices answer with leaf hashes alone; blocks put indices where they can."""

    branches: Annotated[tuple[Branch, ...], msgspec.Meta(min_length=1, max_length=256)]

    def leaf_hashes(self, network: str, transactions: Sequence[TxId]) -> list[bytes]:
        """The hashes of all leaves in order; indices are taken from `transactions`. Raises `MalformedError`."""
        hashes: list[bytes] = []
        for branch in self.branches:
            for leaf in branch.leaves:
                if isinstance(leaf, str):
                    hashes.append(bytes.fromhex(leaf))
                elif leaf < len(transactions):
                    hashes.append(approval(network, transactions[leaf], branch.node).leaf())
                else:
                    raise MalformedError(f"a leaf approves transaction {leaf} of a block of {len(transactions)}")
        return hashes

    def for_block(self, index_of: dict[str, int]) -> "Tree":
        """The same tree with each leaf hash (hexadecimal) that `index_of` knows replaced by its index."""
        return Tree(
            tuple(
                Branch(
                    branch.node,
                    tuple(index_of.get(leaf, leaf) if isinstance(leaf, str) else leaf for leaf in branch.leaves),
                    branch.head,
                )
                for branch in self.branches
            )
        )


class Endorsement(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """One vote with its place in a tree and the signed head: verifies alone (requirement E-11)."""

    vote: Vote
    index: int
    path: tuple[Digest, ...]
    head: Envelope

    def verify(self, key: PublicKey) -> TreeHead:
        """The head, when `key` signed it for this vote's node; raises `BadSignatureError` or `BadProofError`."""
        head = decode_head(self.head)
        if (head.network, head.node) != (self.vote.network, self.vote.node):
            raise BadProofError(
                f"a head of node {head.node} on {head.network} does not speak for "
                f"node {self.vote.node} on {self.vote.network}"
            )
        verify_head(self.head, head, key)
        merkle.verify_inclusion(
            self.vote.leaf(), self.index, head.size, [bytes.fromhex(h) for h in self.path], bytes.fromhex(head.root)
        )
        return head


def decode_head(envelope: Envelope) -> TreeHead:
    """The tree head in an envelope, not yet verified; raises `MalformedError`."""
    envelope.require_type(PAYLOAD_TYPE)
    return canonical.decode(envelope.payload, _head_decoder)


def verify_head(envelope: Envelope, head: TreeHead, key: PublicKey) -> None:
    """Check that `key`, which the head must name, made the only signature; raises `BadSignatureError`."""
    if head.key != key.id:
        raise BadSignatureError(f"the head names key {head.key[:16]}… where key {key.id[:16]}… is expected")
    if [signature.keyid for signature in envelope.signatures] != [key.id]:
        raise BadSignatureError(f"the head of node {head.node} must carry one signature, by the key that it names")
    key.verify(envelope.signatures[0].sig, pae(PAYLOAD_TYPE, envelope.payload), low_s=True)


def check_tree(tree: Tree, leaves: Sequence[bytes], heads: Iterable[TreeHead]) -> None:
    """Check that every head of a tree states the root and size of its `leaves` and the branch's own node.

    Raises `BadProofError`. Signatures are checked by `verify_head`.
    """
    root = merkle.root(leaves).hex()
    for branch, head in zip(tree.branches, heads, strict=True):
        if head.node != branch.node:
            raise BadProofError(f"a head of node {head.node} stands over the votes of node {branch.node}")
        if (head.root, head.size) != (root, len(leaves)):
            raise BadProofError(
                f"the head of node {head.node} states root {head.root[:16]}… over {head.size} leaves; "
                f"its leaves give {root[:16]}… over {len(leaves)}"
            )
    if len({branch.node for branch in tree.branches}) != len(tree.branches):
        raise BadProofError("a node stands twice in one tree")


def endorsements(tree: Tree, leaves: Sequence[bytes], votes: Iterable[Vote]) -> list[Endorsement]:
    """The endorsements that prove each of `votes` by `tree`; raises `BadProofError` for one that is not in it."""
    place = {leaf: index for index, leaf in enumerate(leaves)}
    heads = {branch.node: branch.head for branch in tree.branches}
    proven = []
    for vote in votes:
        index = place.get(vote.leaf())
        if index is None or vote.node not in heads:
            raise BadProofError(f"the vote of node {vote.node} is not in the tree")
        path = tuple(h.hex() for h in merkle.inclusion_proof(leaves, index))
        proven.append(Endorsement(vote, index, path, heads[vote.node]))
    return proven


_head_decoder = msgspec.json.Decoder(TreeHead)
