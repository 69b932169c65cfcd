"""What a device answered, verified as a whole before any of it is used (requirement E-12). Pure; runs in threads.

1. it is the answer of the device that was asked, one answer for each proposal
2. every vote is of this network, of the transaction and of a node that was asked, one for each node
3. every tree's heads state the root and the size of its leaves
4. every head is of this device, signed by the key that is registered for its node there and in force
5. every vote stands in the branch of its own node
"""

from collections.abc import Mapping, Sequence

import msgspec

from ledger.errors import RegistryError
from ledger.memory import SignatureMemory
from ledger.registry_view import RegistryView
from management.errors import BadAnswerError
from management.pool import Cast, CheckedTree
from protocol import canonical
from protocol.canonical import TxId
from protocol.endorsement import MAX_LEAVES, Tree, Vote, check_tree, decode_head
from protocol.errors import ProtocolError
from protocol.messages import Answer, EndorseResponse, Failure


class VerifiedAnswer(msgspec.Struct, frozen=True, eq=False):
    """What one device validly said to one proposal: approvals and rejects by node, or why there is no vote."""

    approved: dict[str, Cast] = {}
    rejected: dict[str, str] = {}
    failure: Failure | None = None


def verify(
    body: bytes,
    asked: Sequence[tuple[TxId, tuple[str, ...]]],
    device: str,
    registry: RegistryView,
    memory: SignatureMemory,
    *,
    height: int,
    time: int,
) -> list[VerifiedAnswer]:
    """The answers to what was `asked` (transactions and nodes, in order).

    `height` and `time` (ms) are those of the next block: keys must be in force there. Raises `BadAnswerError`.
    """
    try:
        response = _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswerError(f"device {device} answered what is no endorsement: {error}") from None
    if response.device != device:
        raise BadAnswerError(f"device {device} was asked, {response.device} answered")
    if len(response.answers) != len(asked):
        raise BadAnswerError(f"device {device} gave {len(response.answers)} answers to {len(asked)} proposals")
    network = registry.channel.network
    for (transaction, nodes), answer in zip(asked, response.answers, strict=True):
        _check_votes(answer, network, transaction, nodes)
    try:
        branches = _verify_trees(response, device, registry, memory, height=height, time=time)
    except (ProtocolError, RegistryError) as error:
        raise BadAnswerError(f"device {device}: {error}") from None
    return [_place(answer, branches, device) for answer in response.answers]


def _check_votes(answer: Answer, network: str, transaction: TxId, nodes: tuple[str, ...]) -> None:
    """Step 2."""
    if answer.failure is not None:
        if answer.votes:
            raise BadAnswerError(f"votes and a failure ({answer.failure.code}) at once for transaction {transaction}")
        return
    voted = sorted(vote.node for vote in answer.votes)
    if voted != sorted(nodes):
        raise BadAnswerError(
            f"votes of {', '.join(voted) or 'nobody'} for transaction {transaction} where {', '.join(nodes)} were asked"
        )
    for vote in answer.votes:
        if (vote.network, vote.transaction) != (network, transaction):
            raise BadAnswerError(
                f"a vote on transaction {vote.transaction} of {vote.network} "
                f"where transaction {transaction} of {network} was asked about"
            )
        if (vote.verdict == "approve") != (vote.reason == ""):
            raise BadAnswerError(f"node {vote.node} says {vote.verdict} with reason {vote.reason!r}")


def _verify_trees(
    response: EndorseResponse,
    device: str,
    registry: RegistryView,
    memory: SignatureMemory,
    *,
    height: int,
    time: int,
) -> dict[str, dict[str, CheckedTree]]:
    """Steps 3 and 4; for each node, which tree each of its leaves stands in."""
    network = registry.channel.network
    branches: dict[str, dict[str, CheckedTree]] = {}
    for tree in response.trees:
        if sum(len(branch.leaves) for branch in tree.branches) > MAX_LEAVES:
            raise BadAnswerError(f"device {device} sent a tree of more than {MAX_LEAVES} leaves")
        heads = tuple(decode_head(branch.head) for branch in tree.branches)
        check_tree(tree, tree.leaf_hashes(network, ()), heads)
        for branch, head in zip(tree.branches, heads, strict=True):
            if (head.network, head.device) != (network, device):
                raise BadAnswerError(f"a head of {head.device} on {head.network} where {device} on {network} was asked")
            if head.height >= height:
                raise BadAnswerError(
                    f"device {device} judged at height {head.height}, this chain stands at {height - 1}"
                )
            key = registry.node_key(branch.node, head.key, device=device, height=height, time=time)
            memory.verify_head(branch.head, head, key)
        checked = CheckedTree(tree, heads, len(canonical.encode(tree)))
        for branch in tree.branches:
            leaves = branches.setdefault(branch.node, {})
            leaves.update((leaf, checked) for leaf in branch.leaves if isinstance(leaf, str))
    return branches


def _place(answer: Answer, branches: Mapping[str, Mapping[str, CheckedTree]], device: str) -> VerifiedAnswer:
    """Step 5."""
    if answer.failure is not None:
        return VerifiedAnswer(failure=answer.failure)
    approved: dict[str, Cast] = {}
    rejected: dict[str, str] = {}
    for vote in answer.votes:
        leaf, tree = _find(vote, branches, device)
        if vote.verdict == "approve":
            approved[vote.node] = Cast(tree, leaf, device)
        else:
            rejected[vote.node] = vote.reason
    return VerifiedAnswer(approved, rejected)


def _find(vote: Vote, branches: Mapping[str, Mapping[str, CheckedTree]], device: str) -> tuple[str, CheckedTree]:
    leaf = vote.leaf().hex()
    tree = branches.get(vote.node, {}).get(leaf)
    if tree is None:
        raise BadAnswerError(f"device {device} sent a vote of node {vote.node} that stands in no tree of that node")
    return leaf, tree


def tree_identity(tree: Tree) -> bytes:
    """What tells two trees apart: the head of the first branch covers root, size, device and sequence."""
    return tree.branches[0].head.payload


_decoder = msgspec.json.Decoder(EndorseResponse)
