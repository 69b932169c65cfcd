"""The body of a block against what is in force: steps 6 to 10 of the replica's list. No state, no I/O of its own."""

from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from ledger.authority import authorize
from ledger.contracts.registry import NAME as REGISTRY
from ledger.errors import AuthorizationError, BlockRefusedError, RegistryError
from ledger.memory import SignatureMemory
from ledger.registry_view import RegistryView
from ledger.store import Location
from protocol.canonical import TxId
from protocol.endorsement import Tree, TreeHead, check_tree, decode_head
from protocol.errors import ProtocolError
from protocol.registry import Channel
from protocol.transaction import Transaction

Approval = tuple[str, str, str]
"""A node, the device on which its key approved, and that key's id."""


def window(transaction: Transaction, channel: Channel, height: int, time: int) -> str:
    """Why a transaction's window of validity is not open at this height and block time; empty when it is."""
    payload = transaction.payload
    if height < payload.valid_from:
        return "not-yet-valid"
    if time >= payload.valid_until:
        return "expired"
    if payload.valid_until > time + channel.longest_validity:
        return "validity-too-long"
    return ""


class BodyVerifier(msgspec.Struct, frozen=True, eq=False):
    """Judges bodies by one registry; `locate` tells which of some transactions stand in the chain already."""

    registry: RegistryView
    memory: SignatureMemory
    locate: Callable[[Collection[TxId]], Mapping[TxId, Location]]

    def verify(
        self, transactions: Sequence[Transaction], trees: Sequence[Tree], *, height: int, time: int
    ) -> dict[str, int]:
        """Check a body for this height and block time; the highest tree-head sequence that it shows, by device.

        Raises `BlockRefusedError`, which names the transaction at fault where there is one.
        """
        self._check_transactions(transactions, height, time)
        approvals: list[set[Approval]] = [set() for _ in transactions]
        sequences: dict[str, int] = {}
        ids = [transaction.id for transaction in transactions]
        for tree in trees:
            heads = self._check_tree(tree, ids, height, time)
            for branch, head in zip(tree.branches, heads, strict=True):
                sequences[head.device] = max(head.sequence, sequences.get(head.device, 0))
                approval = (branch.node, head.device, head.key)
                for leaf in branch.leaves:
                    if isinstance(leaf, int):
                        approvals[leaf].add(approval)
        self._check_policies(transactions, approvals)
        return sequences

    def _check_transactions(self, transactions: Sequence[Transaction], height: int, time: int) -> None:
        """Steps 6 and 7."""
        ids: set[TxId] = set()
        for transaction in transactions:
            if transaction.id in ids:
                raise BlockRefusedError("duplicate", f"transaction {transaction.id} stands twice", transaction.id)
            ids.add(transaction.id)
            try:
                authorize(transaction, self.registry, self.memory, height=height, time=time)
            except AuthorizationError as error:
                raise BlockRefusedError(error.code, f"transaction {transaction.id}: {error}", transaction.id) from None
            code = window(transaction, self.registry.channel, height, time)
            if code:
                raise BlockRefusedError(
                    code, f"transaction {transaction.id} is {code} in block {height}", transaction.id
                )
        for known in self.locate(ids):
            raise BlockRefusedError("already-executed", f"transaction {known} is in a block already", known)

    def _check_tree(self, tree: Tree, ids: Sequence[TxId], height: int, time: int) -> list[TreeHead]:
        """Steps 8 and 9; the tree's heads."""
        network = self.registry.channel.network
        if not any(isinstance(leaf, int) for branch in tree.branches for leaf in branch.leaves):
            raise BlockRefusedError("idle-tree", "a tree approves no transaction of its block")
        try:
            heads = [decode_head(branch.head) for branch in tree.branches]
            check_tree(tree, tree.leaf_hashes(network, ids), heads)
            for branch, head in zip(tree.branches, heads, strict=True):
                if head.network != network or head.height >= height:
                    raise BlockRefusedError(
                        "bad-endorsement",
                        f"a head of node {head.node} on {head.network} at height {head.height} in block {height}",
                    )
                key = self.registry.node_key(branch.node, head.key, device=head.device, height=height, time=time)
                self.memory.verify_head(branch.head, head, key)
        except (ProtocolError, RegistryError) as error:
            raise BlockRefusedError("bad-endorsement", str(error)) from None
        return heads

    def _check_policies(self, transactions: Sequence[Transaction], approvals: Sequence[set[Approval]]) -> None:
        """Step 10."""
        satisfied: set[tuple[str, frozenset[Approval]]] = set()
        for transaction, given in zip(transactions, approvals, strict=True):
            if transaction.payload.contract == REGISTRY:
                continue  # administrators stand in for endorsement: step 6
            case = (transaction.kind, frozenset(given))
            if case in satisfied:
                continue
            rule = self.registry.rule(transaction.kind)
            if rule is None:
                raise BlockRefusedError(
                    "no-policy", f"transaction {transaction.id}: no policy for {transaction.kind}", transaction.id
                )
            devices: dict[str, set[str]] = {}
            for node, device, key in given:
                if rule.counts(key):
                    devices.setdefault(node, set()).add(device)
            result = rule.evaluate(devices)
            if not result.satisfied:
                raise BlockRefusedError(
                    "policy-not-met", f"transaction {transaction.id}: {rule.shortfall(devices, result)}", transaction.id
                )
            satisfied.add(case)
