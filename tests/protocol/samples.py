"""One good value of each wire type, for tests that make them bad."""

import msgspec

from protocol import block as blocks
from protocol import canonical, merkle
from protocol.block import Block, Header
from protocol.endorsement import PAYLOAD_TYPE as HEAD_TYPE
from protocol.endorsement import Branch, Tree, TreeHead, Vote, approval
from protocol.transaction import PAYLOAD_TYPE, Transaction, TransactionPayload
from tests import software_keys
from tests.software_keys import SoftwareKey

NETWORK = "test"
CLIENT = software_keys.ecdsa("c1")
CENTER = software_keys.ecdsa("center-1")
NODES = {name: software_keys.ecdsa(f"node {name}") for name in ("A", "B")}

PAYLOAD = TransactionPayload(
    version=1,
    network=NETWORK,
    client="c1",
    contract="evidence",
    operation="record",
    arguments={"attributes": {"vendor": "Grüne Pumpen"}, "digest": "ab" * 32, "subject": "pump-7"},
    nonce="00112233445566778899aabbccddeeff",
    valid_from=0,
    valid_until=1_800_000_000_000,
)


def transaction(key: SoftwareKey = CLIENT, nonce: int = 0) -> Transaction:
    """A signed transaction; another `nonce` makes another one."""
    payload = msgspec.structs.replace(PAYLOAD, nonce=f"{nonce:032x}")
    return Transaction.decode(canonical.encode(key.envelope(PAYLOAD_TYPE, canonical.encode(payload))))


def head(node: str, hashes: list[bytes], *, key: SoftwareKey | None = None) -> TreeHead:
    """The head that a node's key signs over these leaves."""
    return TreeHead(
        network=NETWORK,
        device="device-1",
        node=node,
        key=(key or NODES[node]).id,
        root=merkle.root(hashes).hex(),
        size=len(hashes),
        height=4,
        sequence=9,
    )


def tree(votes: list[Vote]) -> Tree:
    """A device's tree over these votes, as leaf hashes; votes of one node stand side by side."""
    hashes = [vote.leaf() for vote in votes]
    branches = []
    for node in dict.fromkeys(vote.node for vote in votes):
        sealed = NODES[node].envelope(HEAD_TYPE, canonical.encode(head(node, hashes)))
        branches.append(Branch(node, tuple(vote.leaf().hex() for vote in votes if vote.node == node), sealed))
    return Tree(tuple(branches))


def block(count: int = 3) -> Block:
    """A signed block of `count` transactions that A and B approve in one tree."""
    transactions = [transaction(nonce=nonce) for nonce in range(count)]
    votes = [approval(NETWORK, each.id, node) for node in NODES for each in transactions]
    index_of = {vote.leaf().hex(): index % count for index, vote in enumerate(votes)}
    trees = [tree(votes).for_block(index_of)]
    outcomes = [blocks.Outcome(each.id, blocks.VALID, "cd" * 32) for each in transactions]
    header = Header(
        version=1,
        rules_version=1,
        network=NETWORK,
        height=5,
        time=1_799_999_999_000,
        previous="ef" * 32,
        transaction_count=count,
        transaction_root=blocks.transaction_root(transactions, trees),
        outcome_root=blocks.outcome_root(outcomes),
        registry_root="12" * 32,
    )
    made = blocks.unsigned(header, transactions, trees)
    return made.signed(CENTER.envelope(blocks.PAYLOAD_TYPE, header.encode()))
