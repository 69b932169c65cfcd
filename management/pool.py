"""The record pool in memory: who is in it, how far each has come, and what waits for a cut.

What was left over from one cut is older than what came later, and the oldest goes first (requirement M-5).
"""

import asyncio
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from protocol.canonical import TxId
from protocol.endorsement import Tree, TreeHead
from protocol.transaction import Transaction

MAX_BLOCK_BODY: Final = 12 << 20
"""Most bytes of transactions in one block: with its votes it fits into one request to the device that signs."""


class CheckedTree(msgspec.Struct, frozen=True, eq=False):
    """A tree of votes whose root and signatures were verified (requirement E-12)."""

    tree: Tree
    heads: tuple[TreeHead, ...]
    size: int
    """How many bytes it takes in a block at most."""


class Cast(msgspec.Struct, frozen=True, eq=False):
    """A verified approval: in which tree it stands, under which leaf hash (hexadecimal), from which device."""

    tree: CheckedTree
    leaf: str
    device: str

    def key_of(self, node: str) -> str:
        """The id of the key that approved for `node`; empty when it is not in this tree."""
        return next((head.key for head in self.tree.heads if head.node == node), "")


class Record(msgspec.Struct, eq=False):
    """A transaction in the pool. `sequence` is the order of receipt, `height` the chain's at that moment."""

    transaction: Transaction
    sequence: int
    height: int
    stage: Literal["arriving", "pending", "endorsed", "settling"] = "arriving"
    durable: "asyncio.Future[None] | None" = None

    @property
    def id(self) -> TxId:
        """The transaction's id."""
        return self.transaction.id


class Endorsed(msgspec.Struct, frozen=True, eq=False):
    """A record whose policy is satisfied by the approvals of these nodes (none for registry transactions)."""

    record: Record
    casts: dict[str, Cast]


class Pool:
    """Everything that was acknowledged and is in no block yet; at most `limit` transactions."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.changed = asyncio.Event()
        self._records: dict[TxId, Record] = {}
        self._ready: dict[TxId, Endorsed] = {}
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._records)

    @property
    def is_full(self) -> bool:
        """Whether nothing more is taken."""
        return len(self._records) >= self.limit

    @property
    def ready(self) -> int:
        """How many endorsed transactions wait for a cut."""
        return len(self._ready)

    def find(self, transaction: TxId) -> Record | None:
        """The record of a transaction."""
        return self._records.get(transaction)

    def add(self, transaction: Transaction, height: int) -> Record:
        """A place for a new transaction; it is durable only later. The caller has looked at `is_full`."""
        self._sequence += 1
        record = Record(transaction, self._sequence, height)
        self._records[transaction.id] = record
        return record

    def restore(self, transaction: Transaction, sequence: int, height: int) -> Record:
        """A record as it was written before the last stop; beyond the limit too, because it was acknowledged."""
        record = Record(transaction, sequence, height, "pending")
        self._records[transaction.id] = record
        self._sequence = max(self._sequence, sequence)
        return record

    def put(self, endorsed: Iterable[Endorsed]) -> None:
        """Endorsed transactions now wait for a cut, unless they left the pool meanwhile."""
        for each in endorsed:
            if self._records.get(each.record.id) is each.record:
                each.record.stage = "endorsed"
                self._ready[each.record.id] = each
        self.changed.set()

    def oldest(self, most: int) -> list[Endorsed]:
        """The next block's transactions, oldest first: at most `most`, and no more bytes than a block may have."""
        waiting = sorted(self._ready.values(), key=lambda each: each.record.sequence)
        chosen: list[Endorsed] = []
        size = 0
        for each in waiting[:most]:
            size += len(each.record.transaction.raw)
            if size > MAX_BLOCK_BODY:
                break
            chosen.append(each)
        return chosen

    def withdraw(self, records: Iterable[Record], stage: Literal["pending", "settling"]) -> None:
        """Take records out of what waits for a cut: to be endorsed again, or to be let go."""
        for record in records:
            record.stage = stage
            self._ready.pop(record.id, None)

    def remove(self, ids: Iterable[TxId]) -> None:
        """Forget transactions: they are in a block, or durably refused, or were never taken."""
        for each in ids:
            self._records.pop(each, None)
            self._ready.pop(each, None)
