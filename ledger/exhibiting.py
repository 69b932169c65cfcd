"""Makes exhibits from a chain's database: judges as a reader will, and shows everything that was looked at."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import sqlalchemy as sa

from ledger.errors import LedgerError
from ledger.exhibit import Exhibit
from ledger.handover import Handover, Start, Trust
from ledger.judgement import Judgement
from ledger.proof import ProvenEntries, ProvenEntry, Span, WatchedEntries, path_of
from ledger.registry_view import RegistryView
from ledger.schema import registry_history
from protocol import block as blocks
from protocol import endorsement, merkle
from protocol.block import Block
from protocol.canonical import TxId
from protocol.endorsement import Endorsement, Tree, Vote

if TYPE_CHECKING:
    from ledger.store import ChainStore

X = TypeVar("X", bound=Exhibit)
REMEMBERED: Final = 256
"""How many handovers are remembered: each needs the whole registry of its height to be made."""


class Exhibits:
    """Makes the exhibits of one chain, and remembers its latest handovers. Safe to share among threads."""

    def __init__(self, store: "ChainStore") -> None:
        self._store = store
        self._links: OrderedDict[int, _Link] = OrderedDict()
        self._lock = threading.Lock()

    def make(self, transaction: TxId, kind: type[X], start: int = 0) -> X:
        """The exhibit of a transaction in the chain, with the handovers after the block at height `start`.

        Raises `LedgerError` (`not-found`).
        """
        store = self._store
        location = store.locate([transaction]).get(transaction)
        if location is None:
            raise LedgerError("not-found", f"transaction {transaction} is not in the chain")
        height, index = location.height, location.index
        if height == 0:
            raise LedgerError("not-found", "the genesis transaction needs no receipt: genesis.json holds it")
        if start >= height:
            raise LedgerError(
                "not-found",
                f"transaction {transaction} stands in block {height}: the head of block {start} is too late",
            )
        block, before = _block(store, height), _block(store, height - 1)
        outcomes = store.outcomes(height) or []
        endorsements = tuple(_endorsements(block, index))
        entries = WatchedEntries(store.registry(height - 1))
        registry = RegistryView(entries)
        judgement = Judgement(block.transactions[index], block.header, endorsements, registry, kind.WITH_CUSTODY)
        _ask(judgement, block)
        first, handovers = self._handovers(start, block)
        return kind(
            start=first,
            handovers=handovers,
            header=block.envelope,
            transactions=_raw(block) if _expired(registry, block) else (),
            previous=before.envelope.payload,
            transaction=msgspec.Raw(block.transactions[index].raw),
            index=index,
            path=path_of([blocks.transaction_leaf(each) for each in block.transactions], index),
            trees_root=_trees_root(block),
            outcome=outcomes[index],
            outcome_path=path_of([outcome.leaf() for outcome in outcomes], index),
            endorsements=endorsements,
            registry_count=len(entries),
            registry=entries.proof(),
        )

    def _handovers(self, start: int, last: Block) -> tuple[Start, tuple[Handover, ...]]:
        """The handovers that lead from the block at height `start` to a later one's header."""
        link = first = self._link(start)
        made: list[Handover] = []
        while (height := self._next(link, last.header.height)) is not None:
            after = self._link(height)
            expired = _expired(link.trust.registry, after.block)
            link.trust.follow(after.block.envelope, _kinds(after.block))
            made.append(
                Handover(
                    header=after.block.envelope,
                    transactions=_raw(after.block) if expired else (),
                    trees_root=_trees_root(after.block) if expired else None,
                    registry_count=after.count,
                    registry=after.proof,
                )
            )
            link = after
        link.trust.follow(last.envelope, _kinds(last))
        return Start(first.trust.height, first.trust.authentication), tuple(made)

    def _link(self, height: int) -> "_Link":
        with self._lock:
            link = self._links.get(height)
            if link is not None:
                self._links.move_to_end(height)
                return link
        link = _make_link(self._store, height)
        with self._lock:
            self._links[height] = link
            if len(self._links) > REMEMBERED:
                self._links.popitem(last=False)
        return link

    def _next(self, link: "_Link", before: int) -> int | None:
        """The next height below `before` after which who the centers are rests on something else."""
        height: int | None = link.trust.height
        while height is not None:
            height = next_change(self._store, link.spans, after=height, before=before)
            if height is not None and not link.is_same(changes_at(self._store, link.spans, height)):
                break
        return height


class _Link(msgspec.Struct, frozen=True, eq=False):
    """A block, and what decides who the centers are after it: what was looked at, and the proof of that."""

    block: Block
    trust: Trust
    """Over what is shown alone, as a reader has it."""
    spans: tuple[Span, ...]
    count: int
    proof: tuple[ProvenEntry, ...]

    def is_same(self, changes: Mapping[str, bytes | None]) -> bool:
        """Whether entries that were written anew are as they were."""
        return all(self.trust.registry.entries.get(key) == entry for key, entry in changes.items())


def _make_link(store: "ChainStore", height: int) -> _Link:
    block = _block(store, height)
    header = block.header
    entries = WatchedEntries(store.registry(height))
    registry = RegistryView(entries)
    # A reader asks who the centers are for some later header: what that rests on is the same for all of them.
    registry.centers_for(height=height + 1, time=header.time, kinds=())
    for name in registry.center_standings:
        registry.center(name)
    assert registry.channel  # noqa: S101  looked at
    proof = entries.proof()
    shown = RegistryView(ProvenEntries(len(entries), proof, header.registry_root))
    return _Link(block, Trust.of(header, shown), entries.spans(), len(entries), proof)


def _ask(judgement: Judgement, block: Block) -> None:
    """Ask all that a reader will ask of the registry."""
    authors = judgement.authors()
    votes = judgement.votes()
    if not judgement.is_registry:
        judgement.decision(votes)
    signers = judgement.with_tiers(judgement.signers(block.envelope, _kinds(block)))
    used = (*authors, *(vote.key for vote in votes), *signers)
    judgement.statements(used)
    judgement.check_not_revoked(used)


def next_change(store: "ChainStore", spans: Iterable[Span], *, after: int, before: int) -> int | None:
    """The first height between `after` and `before` at which registry entries in these spans were written or removed.

    Found by the primary key of the registry's history: no block is read.
    """
    table = registry_history.c
    found: list[int] = []
    with store.engine.connect() as connection:
        for start, stop in spans:
            query = sa.select(sa.func.min(table.height)).where(
                table.key >= start, table.key < stop, table.height > after, table.height < before
            )
            found.extend(height for height in connection.scalars(query) if height is not None)
    return min(found, default=None)


def changes_at(store: "ChainStore", spans: Iterable[Span], height: int) -> dict[str, bytes | None]:
    """The registry entries in these spans that the block at a height wrote; None for those that it removed."""
    table = registry_history.c
    found: dict[str, bytes | None] = {}
    with store.engine.connect() as connection:
        for start, stop in spans:
            query = sa.select(table.key, table.entry).where(
                table.key >= start, table.key < stop, table.height == height
            )
            for key, entry in connection.execute(query):
                found[key] = None if entry is None else bytes(entry)
    return found


def _expired(registry: RegistryView, block: Block) -> bool:
    """Whether too few centers were in force for the block, so that all its transactions must be shown."""
    header = block.header
    return len(registry.centers_in_force(height=header.height, time=header.time)) < registry.channel.centers_needed


def _kinds(block: Block) -> tuple[str, ...]:
    return tuple(each.kind for each in block.transactions)


def _raw(block: Block) -> tuple[msgspec.Raw, ...]:
    return tuple(msgspec.Raw(each.raw) for each in block.transactions)


def _trees_root(block: Block) -> str:
    return merkle.root([blocks.tree_leaf(tree) for tree in block.trees]).hex()


def _block(store: "ChainStore", height: int) -> Block:
    data = store.block(height)
    if data is None:
        raise LedgerError("not-found", f"there is no block {height}")
    return Block.decode(data)


def _endorsements(block: Block, index: int) -> Iterator[Endorsement]:
    ids = [transaction.id for transaction in block.transactions]
    network = block.header.network
    for tree in block.trees:
        leaves = tree.leaf_hashes(network, ids)
        yield from endorsement.endorsements(tree, leaves, _approvals(tree, network, ids, index))


def _approvals(tree: Tree, network: str, ids: list[TxId], index: int) -> list[Vote]:
    return [
        endorsement.approval(network, ids[index], branch.node) for branch in tree.branches if index in branch.leaves
    ]
