"""A replica of the chain: verify, execute, append. The verifier is a numbered list in the order of the threat.

    The block itself
     1. it is for the next height
     2. enough centers in force signed it     (else it is a bad copy, and another source may have a good one:
     3. its body is what its header commits    what nobody who matters stands behind never halts a replica)
     4. it is for this network, by the rules in force, and this release knows them
     5. it names the authentication data of the block before, and its time does not go back
    Each transaction
     6. it is for this network, and its author, a key in force, stands on the whitelist and signed it (or
        administrators did)
     7. its window of validity is open, and it is in no block yet
    Each tree of votes
     8. its heads state the root over its leaves, and approve something of this block
     9. each head is signed by a key in force of the branch's own node, on the device that it names
    Each transaction again
    10. the nodes that approved it satisfy the policy in force; one node counts once, and so does one token where
        the policy asks for distinct devices, and no vote below the policy's tier does
    The result
    11. executing it in order gives the outcomes and the registry that the header commits

What is in force for block h is the registry after block h-1, at height h and the block's time. A replica belongs to
one thread.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import sqlalchemy as sa

from ledger import execution
from ledger.authority import authorize
from ledger.contracts.registry import NAME as REGISTRY
from ledger.errors import BadCopyError, BlockRefusedError, DivergedError, NotNextError, StoreError
from ledger.execution import Execution
from ledger.genesis import check_genesis
from ledger.memory import SignatureMemory
from ledger.registry_view import RegistryView
from ledger.store import FETCH_AGAIN, ChainStore, Commit
from ledger.verifier import BodyVerifier, window
from protocol import block as blocks
from protocol import canonical
from protocol.block import MAX_BLOCK_BYTES, MAX_TRANSACTIONS, NO_PREVIOUS, RULES_VERSION, Block, Header, Outcome
from protocol.endorsement import Tree
from protocol.errors import BadSignatureError, ProtocolError
from protocol.transaction import Transaction

BODY_BYTES: Final = MAX_BLOCK_BYTES - (1 << 20)
"""Room for transactions and trees in a block, in bytes: the rest is the header's, with its signatures."""


class CheckedBlock(msgspec.Struct, frozen=True):
    """A block that was checked and executed, and what it changes; nothing of it is stored yet."""

    block: Block
    outcomes: list[Outcome]
    registry: RegistryView
    writes: dict[str, bytes | None]
    sequences: dict[str, int]


class Replica:
    """One verified copy of a chain, at its last height."""

    def __init__(self, store: ChainStore, memory: SignatureMemory | None = None) -> None:
        self.store = store
        self.memory = memory or SignatureMemory()
        self.height = -1
        self.time = 0
        self.authentication = NO_PREVIOUS
        self.registry = RegistryView({})
        self._checked: CheckedBlock | None = None

    @staticmethod
    def create(store: ChainStore, genesis: bytes, *, memory: SignatureMemory | None = None) -> "Replica":
        """A replica that starts with block 0, in an empty store.

        Raises `BadCopyError`, `BlockRefusedError` or `DivergedError` when it is no genesis block.
        """
        replica = Replica(store, memory)
        if store.height() >= 0:
            raise StoreError("the store holds a chain already; open it")
        replica.append(replica.check(_decode(genesis)))
        return replica

    @staticmethod
    def open(store: ChainStore, *, memory: SignatureMemory | None = None) -> "Replica":
        """The replica of a store that holds at least block 0."""
        replica = Replica(store, memory)
        height = store.height()
        last = store.block(height)
        if last is None:
            raise StoreError("the store holds no block; create the chain from the network's genesis.json")
        try:
            block, registry = Block.decode(last), RegistryView(store.registry(height))
        except ProtocolError as error:
            raise StoreError(f"block {height} in the store is damaged ({error}); {FETCH_AGAIN}") from None
        if block.header.registry_root != registry.root:
            raise StoreError(f"the registry in the store is not the one that block {height} commits; {FETCH_AGAIN}")
        replica._stand_at(block, registry)
        return replica

    @property
    def network(self) -> str:
        """The name of the network."""
        return self.registry.channel.network

    def authorize(self, transaction: Transaction) -> None:
        """Check who stands behind a transaction, as for the next block; raises `AuthorizationError` (E-2, E-3)."""
        authorize(transaction, self.registry, self.memory, height=self.height + 1, time=self.time)

    def simulate(self, transactions: Sequence[Transaction]) -> list[str]:
        """What would become of each transaction, alone, in the next block: "valid" or the code of why not.

        The caller has authorised them. Requirements E-4, E-10, M-7.
        """
        channel = self.registry.channel
        codes = [window(transaction, channel, self.height + 1, self.time) for transaction in transactions]
        known = self.store.locate([transaction.id for transaction in transactions])
        for index, transaction in enumerate(transactions):
            if transaction.id in known:
                codes[index] = "already-executed"
        open_ones = [transaction for transaction, code in zip(transactions, codes, strict=True) if not code]
        results = iter(
            execution.simulate(open_ones, self.registry, self.store.fetch, height=self.height + 1, time=self.time)
        )
        return [code or next(results) for code in codes]

    def draft(self, time: int, transactions: Sequence[Transaction], trees: Sequence[Tree]) -> CheckedBlock:
        """Cut the next block: check and execute its body, and write the header for it (requirement M-4).

        Raises `BlockRefusedError` that names the transaction that has no place in it.
        """
        time = max(time, self.time)
        self._check_rules(RULES_VERSION)
        if self.takes_repairs_only(time):
            _check_repairs(transactions)
        _check_size(transactions, trees)
        sequences = self._verifier.verify(transactions, trees, height=self.height + 1, time=time)
        result = self._execute(transactions, time)
        body = (tuple(transactions), tuple(trees))
        header = self._header(time, *body, result)
        self._checked = _checked(blocks.unsigned(header, *body), result, sequences)
        return self._checked

    def takes_repairs_only(self, time: int) -> bool:
        """Whether too few centers are in force for more than a block of registry transactions at this time (ms)."""
        centers = self.registry.centers_in_force(height=self.height + 1, time=time)
        return len(centers) < self.registry.channel.centers_needed

    def check(self, block: Block, *, signed: bool = True) -> CheckedBlock:
        """Check and execute a block without storing anything (requirements E-14, E-16, E-17, E-22).

        `signed=False` leaves out the center signatures: for whoever is asked to make one. What is wrong with such a
        block is its author's fault alone, and no reason to halt.
        Raises `NotNextError`, `BadCopyError` (try another source), `BlockRefusedError` or `DivergedError` (halt).
        """
        header = block.header
        self._check_next(header)
        if header.height == 0:
            _check_body(block)
            return _checked(block, check_genesis(block), {})
        if signed:
            self._check_centers(block)
        known = self._checked
        if known is not None and _same_content(known.block, block):
            return msgspec.structs.replace(known, block=block)
        _check_body(block)
        self._check_place(header)
        sequences = self._verifier.verify(block.transactions, block.trees, height=header.height, time=header.time)
        result = self._execute(block.transactions, header.time)
        self._compare(header, result)
        self._checked = _checked(block, result, sequences)
        return self._checked

    def append(self, checked: CheckedBlock, *, also: Callable[[sa.Connection], None] | None = None) -> None:
        """Store a checked block and stand on it: one commit, in which `also` takes part.

        Raises `NotNextError` when the replica has moved since the check.
        """
        header = checked.block.header
        self._check_next(header)
        self._check_link(header)
        commit = Commit(
            height=header.height,
            time=header.time,
            authentication=checked.block.authentication,
            body=checked.block.encode(),
            outcomes=checked.outcomes,
            writes=checked.writes,
            sequences=checked.sequences,
        )
        self.store.append(commit, also)
        self._stand_at(checked.block, checked.registry)

    def apply(self, data: bytes) -> CheckedBlock:
        """Decode, check and append the next block."""
        checked = self.check(_decode(data))
        self.append(checked)
        return checked

    @property
    def _verifier(self) -> BodyVerifier:
        return BodyVerifier(self.registry, self.memory, self.store.locate)

    def _execute(self, transactions: Sequence[Transaction], time: int) -> Execution:
        """Step 11, for the next block."""
        return execution.execute(transactions, self.registry, self.store.fetch, height=self.height + 1, time=time)

    def _stand_at(self, block: Block, registry: RegistryView) -> None:
        self.height = block.header.height
        self.time = block.header.time
        self.authentication = block.authentication
        self.registry = registry
        self._checked = None

    def _check_next(self, header: Header) -> None:
        """Step 1."""
        if header.height != self.height + 1:
            raise NotNextError(header.height, self.height + 1)

    def _check_centers(self, block: Block) -> None:
        """Step 2."""
        header = block.header
        centers = self.registry.centers_for(
            height=header.height, time=header.time, kinds={each.kind for each in block.transactions}
        )
        try:
            blocks.verify_header(block.envelope, tuple(centers.values()), self.registry.channel.centers_needed)
        except BadSignatureError as error:
            # Whoever has no center key can make this up, so it says nothing about the chain.
            raise BadCopyError(f"block {block.header.height}: {error}") from None

    def _check_place(self, header: Header) -> None:
        """Steps 4 and 5."""
        if header.network != self.network:
            raise BlockRefusedError(
                "wrong-network", f"block of network {header.network} where {self.network} is expected"
            )
        self._check_rules(header.rules_version)
        self._check_link(header)
        if header.time < self.time:
            raise BlockRefusedError("time-goes-back", f"block time {header.time} after {self.time}")

    def _check_link(self, header: Header) -> None:
        """Step 5."""
        if header.previous != self.authentication:
            raise BlockRefusedError(
                "wrong-previous",
                f"block {header.height} follows {header.previous[:16]}…, "
                f"this chain stands at {self.authentication[:16]}…",
            )

    def _check_rules(self, version: int) -> None:
        """Step 4: the registry says by which rules blocks are made."""
        in_force = self.registry.channel.rules_version
        if max(version, in_force) > RULES_VERSION:
            raise BlockRefusedError(
                "unknown-rules",
                f"block {self.height + 1} follows rules {version}, rules {in_force} are in force, and this release "
                f"knows rules {RULES_VERSION}; install a newer one",
            )
        if version != in_force:
            raise BlockRefusedError(
                "wrong-rules", f"block {self.height + 1} follows rules {version} where rules {in_force} are in force"
            )

    def _header(
        self, time: int, transactions: tuple[Transaction, ...], trees: tuple[Tree, ...], result: Execution
    ) -> Header:
        return Header(
            version=1,
            rules_version=RULES_VERSION,
            network=result.registry.channel.network,
            height=self.height + 1,
            time=time,
            previous=self.authentication,
            transaction_count=len(transactions),
            transaction_root=blocks.transaction_root(transactions, trees),
            outcome_root=blocks.outcome_root(result.outcomes),
            registry_root=result.registry.root,
        )

    def _compare(self, header: Header, result: Execution) -> None:
        """Step 11."""
        for name, found, stated in (
            ("outcome", blocks.outcome_root(result.outcomes), header.outcome_root),
            ("registry", result.registry.root, header.registry_root),
        ):
            if found != stated:
                raise DivergedError(
                    f"block {header.height}: executing it gives {name} root {found}, its header states {stated}; "
                    "this replica and the centers do not agree"
                )


def _decode(data: bytes) -> Block:
    try:
        return Block.decode(data)
    except ProtocolError as error:
        raise BadCopyError(f"no block: {error}") from None


def _check_body(block: Block) -> None:
    """Step 3."""
    header = block.header
    count, root = len(block.transactions), blocks.transaction_root(block.transactions, block.trees)
    if (header.transaction_count, header.transaction_root) != (count, root):
        raise BadCopyError(f"the body of block {header.height} is not what its header commits")


def _check_size(transactions: Sequence[Transaction], trees: Sequence[Tree]) -> None:
    """Refuse a body that nobody could decode."""
    room = BODY_BYTES - sum(len(canonical.encode(tree)) for tree in trees)
    for index, transaction in enumerate(transactions):
        room -= len(transaction.raw) + 1
        if room < 0 or index == MAX_TRANSACTIONS:
            raise BlockRefusedError(
                "too-large",
                f"a block has room for {BODY_BYTES} bytes and {MAX_TRANSACTIONS} transactions, votes included; "
                f"transaction {transaction.id} is beyond",
                transaction.id,
            )


def _check_repairs(transactions: Sequence[Transaction]) -> None:
    """With centers that have expired, blocks bring registry transactions and nothing else."""
    for transaction in transactions:
        if transaction.payload.contract != REGISTRY:
            raise BlockRefusedError(
                "centers-expired",
                "too few centers are in force: until administrators bring new keys, blocks hold registry transactions "
                "alone",
                transaction.id,
            )
    if not transactions:
        raise BlockRefusedError("centers-expired", "too few centers are in force for a block without transactions")


def _same_content(one: Block, other: Block) -> bool:
    return (
        one.authentication == other.authentication
        and one.trees == other.trees
        and [transaction.raw for transaction in one.transactions] == [t.raw for t in other.transactions]
    )


def _checked(block: Block, result: Execution, sequences: dict[str, int]) -> CheckedBlock:
    return CheckedBlock(block, result.outcomes, result.registry, result.writes, sequences)
