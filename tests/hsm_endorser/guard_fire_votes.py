"""What keys have signed on which transaction, taken from answers whose signatures are all verified."""

from collections.abc import Mapping

from protocol.endorsement import check_tree, decode_head, verify_head
from protocol.keys import PublicKey
from protocol.messages import EndorseResponse

Words = dict[tuple[str, str], set[tuple[str, str]]]
"""By key and transaction: every verdict and reason that the key has signed."""


def hear(keys: Mapping[str, PublicKey], words: Words, response: EndorseResponse) -> None:
    """Take down every vote of an answer under the key that signed for it; `keys` are by label."""
    signer: dict[str, str] = {}
    for tree in response.trees:
        leaves = tree.leaf_hashes("test", [])
        heads = [decode_head(branch.head) for branch in tree.branches]
        check_tree(tree, leaves, heads)
        for branch, head in zip(tree.branches, heads, strict=True):
            key = keys[f"node/{branch.node}"]
            verify_head(branch.head, head, key)
            signer.update(dict.fromkeys(map(str, branch.leaves), key.id))
    for answer in response.answers:
        for vote in answer.votes:
            words[signer[vote.leaf().hex()], vote.transaction].add((vote.verdict, vote.reason))
