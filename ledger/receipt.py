"""Receipts: one file that proves a transaction's place, outcome and endorsements to anyone who has genesis.json.

Verifying needs no network, no token and no ledger. It goes from the outside in: the centers that block 0 names
signed the header; the header commits the transaction, its outcome and (through the header before it) the
registry in force; the registry gives the client's key, the policy and the nodes' keys.
"""

import bisect
from collections.abc import Iterable
from typing import Annotated, Final, Literal

import msgspec

from ledger.authority import authorize
from ledger.contracts.registry import NAME as REGISTRY
from ledger.errors import LedgerError
from ledger.genesis import check_genesis
from ledger.memory import SignatureMemory
from ledger.registry_view import RegistryView
from ledger.store import ChainStore
from protocol import block as blocks
from protocol import canonical, endorsement, merkle, registry
from protocol.block import Block, Header, Outcome
from protocol.canonical import Digest, TxId
from protocol.endorsement import Endorsement, Tree
from protocol.envelope import Envelope
from protocol.errors import ProtocolError
from protocol.transaction import Transaction

MAX_RECEIPT_BYTES: Final = 16 << 20

Path = tuple[Digest, ...]
Count = Annotated[int, msgspec.Meta(ge=0, le=canonical.MAX_INTEGER)]


class ProvenEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A registry entry and its place among all entries, sorted by key."""

    key: str
    entry: msgspec.Raw
    index: Count
    path: Path


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that proves one transaction; `previous` is the payload of the header before."""

    transaction: msgspec.Raw
    index: Count
    path: Path
    trees_root: Digest
    outcome: Outcome
    outcome_path: Path
    endorsements: tuple[Endorsement, ...]
    header: Envelope
    previous: bytes
    registry_count: Count
    registry: tuple[ProvenEntry, ...]
    version: Literal[1] = 1


class ReceiptError(LedgerError):
    """A receipt that proves nothing: `step` is the check that failed."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__("bad-receipt", f"{step}: {reason}")
        self.step = step


class ReceiptReport(msgspec.Struct, frozen=True):
    """What a receipt proves, with each step in words."""

    transaction: str
    kind: str
    client: str
    height: int
    time: int
    code: str
    nodes: tuple[str, ...]
    steps: tuple[str, ...]


def make_receipt(store: ChainStore, transaction: TxId) -> bytes:
    """The canonical bytes of the receipt of a transaction in the chain; raises `LedgerError` (`not-found`)."""
    location = store.locate([transaction]).get(transaction)
    if location is None:
        raise LedgerError("not-found", f"transaction {transaction} is not in the chain")
    if location.height == 0:
        raise LedgerError("not-found", "the genesis transaction needs no receipt: genesis.json holds it")
    block, before = _block(store, location.height), _block(store, location.height - 1)
    outcomes = store.outcomes(location.height) or []
    entries = store.registry(location.height - 1)
    endorsements = tuple(_endorsements(block, location.index))
    return canonical.encode(
        Receipt(
            transaction=msgspec.Raw(block.transactions[location.index].raw),
            index=location.index,
            path=_path([blocks.transaction_leaf(each) for each in block.transactions], location.index),
            trees_root=merkle.root([blocks.tree_leaf(tree) for tree in block.trees]).hex(),
            outcome=outcomes[location.index],
            outcome_path=_path([outcome.leaf() for outcome in outcomes], location.index),
            endorsements=endorsements,
            header=block.envelope,
            previous=before.envelope.payload,
            registry_count=len(entries),
            registry=tuple(_proven(entries, block.transactions[location.index], endorsements)),
        )
    )


def verify_receipt(data: bytes, genesis: bytes) -> ReceiptReport:
    """Check a receipt step by step against the network's genesis block; raises `ReceiptError`."""
    verifier = _Verifier(data, genesis)
    try:
        return verifier.run()
    except (ProtocolError, LedgerError) as error:
        if isinstance(error, ReceiptError):
            raise
        raise ReceiptError(verifier.step, str(error)) from None


class _Verifier:
    """The checklist. `step` names the check that is under way."""

    def __init__(self, data: bytes, genesis: bytes) -> None:
        self._data = data
        self._genesis = genesis
        self._done: list[str] = []
        self.step = "form"

    def run(self) -> ReceiptReport:
        receipt = canonical.decode(self._data, _decoder, limit=MAX_RECEIPT_BYTES)
        transaction = Transaction.decode(bytes(receipt.transaction))
        self._say("the receipt is canonical and holds one transaction")

        self.step = "genesis"
        genesis = check_genesis(Block.decode(self._genesis)).registry
        self._say(f"genesis.json is a genesis block of network {genesis.channel.network}, signed by its administrators")

        self.step = "header"
        header = blocks.decode_header(receipt.header)
        blocks.verify_header(receipt.header, tuple(genesis.centers.values()), genesis.channel.centers_needed)
        self._require(header.network == genesis.channel.network, f"the header is of network {header.network}")
        self._say(f"the header of block {header.height} is signed by the center that genesis names")

        self.step = "transaction"
        tree = _root_of_path(
            blocks.transaction_leaf(transaction), receipt.index, header.transaction_count, receipt.path
        )
        root = merkle.node_hash(tree, bytes.fromhex(receipt.trees_root)).hex()
        self._require(root == header.transaction_root, "it is not under the header's transaction root")
        self._say(f"the transaction is number {receipt.index} of {header.transaction_count} under that header")

        self.step = "outcome"
        self._require(receipt.outcome.transaction == transaction.id, "the outcome is of another transaction")
        merkle.verify_inclusion(
            receipt.outcome.leaf(),
            receipt.index,
            header.transaction_count,
            [bytes.fromhex(each) for each in receipt.outcome_path],
            bytes.fromhex(header.outcome_root),
        )
        self._say(f"its outcome under that header is: {receipt.outcome.code}")

        self.step = "registry"
        view = self._registry(receipt, header, transaction)
        self._say(f"the registry entries are those in force at height {header.height}")

        self.step = "client"
        authorize(transaction, view, SignatureMemory())
        self._require(
            transaction.payload.valid_from <= header.height and header.time < transaction.payload.valid_until,
            "it was not valid at that height and time",
        )
        self._say(f"{transaction.payload.client} was registered and signed the transaction")

        self.step = "endorsements"
        nodes = self._nodes(receipt, header, transaction, view)

        payload = transaction.payload
        return ReceiptReport(
            transaction=transaction.id,
            kind=transaction.kind,
            client=payload.client,
            height=header.height,
            time=header.time,
            code=receipt.outcome.code,
            nodes=nodes,
            steps=tuple(self._done),
        )

    def _registry(self, receipt: Receipt, header: Header, transaction: Transaction) -> RegistryView:
        previous = blocks.decode_header(Envelope(receipt.previous, blocks.PAYLOAD_TYPE, ()))
        self._require(
            previous.authentication == header.previous and previous.height == header.height - 1,
            "the header before is not the one that the signed header names",
        )
        leaves: set[str] = set()
        for proven in receipt.registry:
            entries_root = _root_of_path(
                registry.entry_leaf(proven.key, bytes(proven.entry)), proven.index, receipt.registry_count, proven.path
            )
            leaves.add(registry.root_over(receipt.registry_count, entries_root))
        self._require(leaves == {previous.registry_root}, "an entry is not under the registry root in force")
        for prefix in _complete_prefixes(transaction):
            self._require(_is_complete(receipt, prefix), f"entries under {prefix!r} were left out")
        return RegistryView({proven.key: bytes(proven.entry) for proven in receipt.registry})

    def _nodes(self, receipt: Receipt, header: Header, transaction: Transaction, view: RegistryView) -> tuple[str, ...]:
        if transaction.payload.contract == REGISTRY:
            self._say("registry transactions are signed by administrators and need no endorsement")
            return ()
        approved: dict[str, set[str]] = {}
        refused: dict[str, set[str]] = {}
        for each in receipt.endorsements:
            vote = each.vote
            self._require(
                (vote.transaction, vote.network) == (transaction.id, header.network),
                f"the vote of node {vote.node} is not about this transaction",
            )
            head = endorsement.decode_head(each.head)
            self._require(head.height < header.height, f"node {vote.node} voted at height {head.height}")
            key = view.node_key(vote.node, head.key, device=head.device, height=header.height, time=header.time)
            each.verify(key)
            said = approved if vote.verdict == "approve" else refused
            said.setdefault(vote.node, set()).add(head.device)
        self._require(not refused, "; ".join(_no(node, refused, approved) for node in sorted(refused)))
        rule = view.rule(transaction.kind)
        if rule is None:
            raise ReceiptError(self.step, f"there is no policy for {transaction.kind}")
        result = rule.evaluate(approved)
        if not result.satisfied:
            raise ReceiptError(self.step, rule.shortfall(approved, result))
        on = ", each on a token of its own" if rule.distinct_devices else ""
        self._say(f"{', '.join(result.approved)} endorsed it, which satisfies the policy {rule.policy.text}{on}")
        return result.approved

    def _say(self, step: str) -> None:
        self._done.append(step)

    def _require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise ReceiptError(self.step, otherwise)


def _no(node: str, refused: dict[str, set[str]], approved: dict[str, set[str]]) -> str:
    """What a node's no means: also one of two words of it, as it has only one (requirement E-22)."""
    places = ", ".join(sorted(refused[node]))
    if node in approved:
        both = f"node {node} approved it on {', '.join(sorted(approved[node]))} and rejected it on {places}"
        return f"{both}: it counts as refusing"
    return f"node {node} rejected it on {places}"


def _block(store: ChainStore, height: int) -> Block:
    data = store.block(height)
    if data is None:
        raise LedgerError("not-found", f"there is no block {height}")
    return Block.decode(data)


def _path(leaves: list[bytes], index: int) -> Path:
    return tuple(each.hex() for each in merkle.inclusion_proof(leaves, index))


def _endorsements(block: Block, index: int) -> Iterable[Endorsement]:
    ids = [transaction.id for transaction in block.transactions]
    network = block.header.network
    for tree in block.trees:
        leaves = tree.leaf_hashes(network, ids)
        yield from endorsement.endorsements(tree, leaves, _approvals(tree, network, ids, index))


def _approvals(tree: Tree, network: str, ids: list[TxId], index: int) -> list[endorsement.Vote]:
    return [
        endorsement.approval(network, ids[index], branch.node) for branch in tree.branches if index in branch.leaves
    ]


def _complete_prefixes(transaction: Transaction) -> tuple[str, ...]:
    """The kinds of entries that a receipt must show whole, so that nothing that decides is left out."""
    if transaction.payload.contract == REGISTRY:
        return ("administrator/", "registrar/")
    return ("node/", f"policy/{transaction.kind.partition('.')[0]}", "registrar/")


def _proven(
    entries: dict[str, bytes], transaction: Transaction, endorsements: Iterable[Endorsement]
) -> Iterable[ProvenEntry]:
    keys = sorted(entries)
    leaves = [registry.entry_leaf(key, entries[key]) for key in keys]
    wanted = {keys.index(registry.CHANNEL_KEY)}
    client = f"client/{transaction.payload.client}"
    if client in entries:
        wanted.add(bisect.bisect_left(keys, client))
    rule = RegistryView(entries).rule(transaction.kind)
    if rule is not None and rule.distinct_devices:  # which tokens they are stands in the devices' entries
        voted_on = {endorsement.decode_head(each.head).device for each in endorsements}
        wanted.update(bisect.bisect_left(keys, f"device/{device}") for device in voted_on)
    for prefix in _complete_prefixes(transaction):
        first = end = bisect.bisect_left(keys, prefix)
        while end < len(keys) and keys[end].startswith(prefix):
            end += 1
        # The neighbours on both sides prove that nothing of the prefix was left out.
        wanted.update(range(max(first - 1, 0), min(end + 1, len(keys))))
    places = sorted(wanted)
    for index, path in zip(places, merkle.inclusion_proofs(leaves, places), strict=True):
        yield ProvenEntry(keys[index], msgspec.Raw(entries[keys[index]]), index, tuple(each.hex() for each in path))


def _is_complete(receipt: Receipt, prefix: str) -> bool:
    places = {proven.index: proven.key for proven in receipt.registry}
    under = [index for index, key in places.items() if key.startswith(prefix)]
    before = [index for index, key in places.items() if key < prefix]
    first = max(before, default=-1) + 1
    last = first + len(under)
    if sorted(under) != list(range(first, last)):
        return False
    return last == receipt.registry_count or (last in places and places[last] > prefix)


def _root_of_path(leaf: bytes, index: int, size: int, path: Path) -> bytes:
    return merkle.root_of_proof(leaf, index, size, [bytes.fromhex(each) for each in path])


_decoder = msgspec.json.Decoder(Receipt)
