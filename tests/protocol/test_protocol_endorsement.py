"""Votes and signed heads: a signature counts for its own node's leaves and for nothing else."""

from typing import Any

import msgspec
import pytest

from protocol import canonical, endorsement, merkle
from protocol.canonical import TxId
from protocol.endorsement import PAYLOAD_TYPE, Branch, Endorsement, Tree, Vote, approval
from protocol.errors import BadProofError, BadSignatureError, MalformedError
from tests import software_keys
from tests.protocol.samples import NETWORK, NODES, head, tree

pytestmark = pytest.mark.requirement("E-10", "E-11")

IDS = [TxId(f"{n:064x}") for n in range(5)]
VOTES = [approval(NETWORK, each, node) for node in ("A", "B") for each in IDS]
TREE = tree(VOTES)
LEAVES = TREE.leaf_hashes(NETWORK, [])


def _proof(vote: Vote) -> Endorsement:
    return endorsement.endorsements(TREE, LEAVES, [vote])[0]


@pytest.mark.parametrize("vote", VOTES, ids=lambda vote: f"{vote.node}{int(vote.transaction, 16)}")
def test_every_vote_of_a_tree_verifies_alone(vote: Vote) -> None:
    """The vote, its place and the signed head are all it takes."""
    found = _proof(vote)
    signed = found.verify(NODES[vote.node].public)
    assert (signed.node, signed.size, signed.root) == (vote.node, len(VOTES), merkle.root(LEAVES).hex())
    other = "B" if vote.node == "A" else "A"
    with pytest.raises(BadSignatureError, match="the head names key"):
        found.verify(NODES[other].public)


def test_a_head_does_not_speak_for_another_nodes_vote() -> None:
    """A's head covers the leaves of B too, and A's key signed it: it is no endorsement by B."""
    vote = approval(NETWORK, IDS[0], "B")
    found = msgspec.structs.replace(_proof(vote), head=TREE.branches[0].head)
    with pytest.raises(BadProofError, match="a head of node A on test does not speak for node B on test"):
        found.verify(NODES["A"].public)


@pytest.mark.parametrize(
    "changed",
    [
        {"transaction": IDS[1]},
        {"verdict": "reject"},
        {"verdict": "reject", "reason": "expired"},
        {"reason": "expired"},
    ],
    ids=str,
)
def test_another_vote_is_not_in_the_tree(changed: dict[str, Any]) -> None:
    """What was signed is bound to the transaction and the verdict."""
    found = _proof(approval(NETWORK, IDS[0], "A"))
    forged = msgspec.structs.replace(found, vote=msgspec.structs.replace(found.vote, **changed))
    with pytest.raises(BadProofError, match="not to the root"):
        forged.verify(NODES["A"].public)


def test_a_vote_for_another_network_is_refused() -> None:
    """The same transaction id elsewhere is another transaction."""
    found = _proof(approval(NETWORK, IDS[0], "A"))
    forged = msgspec.structs.replace(found, vote=msgspec.structs.replace(found.vote, network="other"))
    with pytest.raises(BadProofError, match="on test does not speak for node A on other"):
        forged.verify(NODES["A"].public)


@pytest.mark.parametrize("changed", [{"index": 1}, {"index": -1}, {"index": 2**80}, {"path": ()}], ids=str)
def test_another_place_is_refused(changed: dict[str, Any]) -> None:
    """The proof is of one place in one tree."""
    with pytest.raises(BadProofError):
        msgspec.structs.replace(_proof(VOTES[0]), **changed).verify(NODES["A"].public)


def _signed(node: str = "A", *, by: str = "A", times: int = 1, **changed: Any) -> Endorsement:
    stated = msgspec.structs.replace(head(node, LEAVES), **changed)
    payload = canonical.encode(stated)
    sealed = software_keys.envelope(PAYLOAD_TYPE, payload, [NODES[by]] * times)
    return msgspec.structs.replace(_proof(VOTES[0]), head=sealed)


def test_a_head_is_signed_once_by_the_key_that_it_names() -> None:
    """Another signer, a second signature, none, or a high s: refused."""
    _signed().verify(NODES["A"].public)
    with pytest.raises(BadSignatureError, match="must carry one signature"):
        _signed(by="B").verify(NODES["A"].public)
    with pytest.raises(BadSignatureError, match="must carry one signature"):
        _signed(times=2).verify(NODES["A"].public)
    with pytest.raises(BadSignatureError, match="must carry one signature"):
        _signed(times=0).verify(NODES["A"].public)
    with pytest.raises(BadSignatureError, match="the head names key"):
        _signed(key=NODES["B"].id).verify(NODES["A"].public)
    found = _signed()
    (signature,) = found.head.signatures
    high = msgspec.structs.replace(signature, sig=software_keys.high_s(signature.sig))
    with pytest.raises(BadSignatureError, match="high s"):
        msgspec.structs.replace(found, head=msgspec.structs.replace(found.head, signatures=(high,))).verify(
            NODES["A"].public
        )


def test_a_head_of_another_size_or_root_is_refused() -> None:
    """The size is signed, so that no inner node can be passed off as a leaf."""
    with pytest.raises(BadProofError):
        _signed(size=17).verify(NODES["A"].public)
    with pytest.raises(BadProofError):
        _signed(root="00" * 32).verify(NODES["A"].public)


def test_a_head_without_votes_does_not_exist() -> None:
    """A tree has at least one leaf."""
    with pytest.raises(MalformedError, match=">= 1"):
        _signed(size=0).verify(NODES["A"].public)


def test_a_vote_has_no_default_verdict() -> None:
    """Bytes that leave the verdict out are no vote."""
    decoder = msgspec.json.Decoder(Vote)
    data = canonical.encode(VOTES[0])
    assert canonical.decode(data, decoder) == VOTES[0]
    for wrong in (b',"verdict":"approve"', b',"version":1'):
        assert wrong in data
        with pytest.raises(MalformedError):
            canonical.decode(data.replace(wrong, b""), decoder)
    with pytest.raises(MalformedError):
        canonical.decode(data.replace(b"approve", b"maybe"), decoder)


def test_a_tree_is_written_with_indices_in_a_block() -> None:
    """Where the vote is of a transaction of the block, its index stands for it; the leaves are the same."""
    index_of = {vote.leaf().hex(): IDS.index(TxId(vote.transaction)) for vote in VOTES if vote.transaction != IDS[2]}
    written = TREE.for_block(index_of)
    assert [branch.leaves.count(VOTES[2].leaf().hex()) for branch in written.branches] == [1, 0]
    assert written.branches[1].leaves == (0, 1, VOTES[7].leaf().hex(), 3, 4)
    assert written.leaf_hashes(NETWORK, IDS) == LEAVES
    endorsement.check_tree(written, LEAVES, [endorsement.decode_head(branch.head) for branch in written.branches])
    with pytest.raises(MalformedError, match="approves transaction 4 of a block of 4"):
        written.leaf_hashes(NETWORK, IDS[:4])
    moved = Tree(tuple(Branch("A", branch.leaves, branch.head) for branch in written.branches))
    assert moved.leaf_hashes(NETWORK, IDS) != LEAVES


def _check(branches: list[Branch], leaves: list[bytes]) -> None:
    endorsement.check_tree(Tree(tuple(branches)), leaves, [endorsement.decode_head(b.head) for b in branches])


def test_a_tree_that_contradicts_its_heads_is_refused() -> None:
    """A leaf dropped, added or moved, a branch under another name, a branch twice."""
    a, b = TREE.branches
    _check([a, b], LEAVES)
    for wrong in (LEAVES[:-1], [*LEAVES, LEAVES[0]], [LEAVES[1], LEAVES[0], *LEAVES[2:]]):
        with pytest.raises(BadProofError, match="the head of node A states root"):
            _check([a, b], wrong)
    with pytest.raises(BadProofError, match="a head of node B stands over the votes of node A"):
        _check([Branch("A", a.leaves, b.head), b], LEAVES)
    twice = [vote for vote in VOTES if vote.node == "A"]
    (whole,) = tree(twice).branches
    halves = [Branch("A", whole.leaves[:2], whole.head), Branch("A", whole.leaves[2:], whole.head)]
    with pytest.raises(BadProofError, match="a node stands twice in one tree"):
        _check(halves, [vote.leaf() for vote in twice])


def test_a_vote_that_is_not_in_the_tree_cannot_be_proven() -> None:
    """No endorsement is made up."""
    for vote in (approval(NETWORK, TxId("ff" * 32), "A"), approval(NETWORK, IDS[0], "C")):
        with pytest.raises(BadProofError, match=f"the vote of node {vote.node} is not in the tree"):
            endorsement.endorsements(TREE, LEAVES, [vote])


@pytest.mark.parametrize("leaf", [b"-1", b"65537", b"1.0", b"null", b'"ab"', b'"%s"' % (b"AB" * 32), b"[]"])
def test_a_leaf_is_an_index_or_a_digest(leaf: bytes) -> None:
    """Everything else in a branch is malformed."""
    data = canonical.encode(TREE.for_block({VOTES[0].leaf().hex(): 0}))
    assert b'"leaves":[0,' in data
    with pytest.raises(MalformedError):
        canonical.decode(data.replace(b'"leaves":[0,', b'"leaves":[' + leaf + b",", 1), msgspec.json.Decoder(Tree))
