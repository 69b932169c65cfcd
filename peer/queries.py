"""What a peer answers from its own verified chain. Every method blocks on the database: call from a worker thread."""

import threading
from collections.abc import Iterator
from typing import Final, TypeVar

import msgspec

from ledger.errors import LedgerError
from ledger.evidence import Evidence
from ledger.exhibit import Exhibit
from ledger.exhibiting import Exhibits
from ledger.receipt import Receipt
from ledger.store import ChainStore
from peer.activity import Activity
from peer.errors import UnknownError
from protocol import canonical, trace
from protocol.block import VALID, Block
from protocol.canonical import TxId
from protocol.trace import Kind, Signing

T = TypeVar("T")

ENCLOSED: Final[frozenset[Kind]] = frozenset({"statement", "announcement"})
"""Signatures inside a transaction: the registry verifies them when it takes what they are under."""


class Committed(msgspec.Struct, frozen=True):
    """Where a transaction stands on the chain and what became of it; `code` is "valid" or the reason it was not."""

    transaction: str
    height: int
    index: int
    code: str


class Queries:
    """Reads of one chain store; safe from any number of threads."""

    def __init__(self, store: ChainStore, activity: Activity) -> None:
        self._store = store
        self._exhibits = Exhibits(store)
        self._activity = activity
        self._scan = threading.Lock()
        self._digest = (-1, "")

    def state(self, key: str) -> bytes:
        """The canonical bytes that stand under `key`; raises `UnknownError`."""
        return self._known("state", key, self._store.state(key))

    def block(self, height: int) -> bytes:
        """The canonical bytes of the block at `height`; raises `UnknownError`."""
        return self._known("block", height, self._store.block(height))

    def transaction(self, identity: TxId) -> Committed:
        """Where a transaction stands; raises `UnknownError`."""
        place = self._known("transaction", identity, self._store.locate([identity]).get(identity))
        return Committed(identity, place.height, place.index, place.code)

    def receipt(self, identity: TxId) -> bytes:
        """A proof of the transaction that verifies offline; raises `UnknownError`."""
        return self._exhibit(identity, Receipt)

    def evidence(self, identity: TxId, *, start: int) -> bytes:
        """The same with all custody statements, and the handovers of centers after block `start` (K-15).

        Raises `UnknownError`.
        """
        return self._exhibit(identity, Evidence, start)

    def _exhibit(self, identity: TxId, kind: type[Exhibit], start: int = 0) -> bytes:
        try:
            return canonical.encode(self._exhibits.make(identity, kind, start))
        except LedgerError as error:
            if error.code != "not-found":
                raise
            raise UnknownError("transaction", str(error)) from None

    def trace(self, key: str, *, start: int, limit: int) -> trace.Page:
        """What a key signed in at most `limit` blocks from height `start` on (requirement K-14)."""
        height = self._activity.covered()
        heights = self._activity.heights(key, start=start, limit=limit + 1)
        blocks = (Block.decode(self.block(each)) for each in heights[:limit])
        signings = tuple(signing for block in blocks for signing in self._signings(block, key))
        return trace.Page(key, height, signings, heights[limit] if len(heights) > limit else None)

    def _signings(self, block: Block, key: str) -> Iterator[Signing]:
        """What a key signed in a block; what the registry refused to take is told apart: nobody verified that."""
        outcomes = self._store.outcomes(block.header.height) or ()
        refused = {outcome.transaction: outcome.code for outcome in outcomes if outcome.code != VALID}
        for each in trace.signings(block, key):
            code = refused.get(each.transactions[0]) if each.kind in ENCLOSED else None
            if code is None:
                yield each
            else:
                subject = f"{each.subject}, which the registry refused ({code}): nobody has verified the signature"
                yield msgspec.structs.replace(each, subject=subject)

    def digest(self) -> tuple[int, str]:
        """The height, and SHA-256 over the whole state at it.

        A scan of the whole state: one runs at a time, and its result serves until the height changes.
        """
        with self._scan:
            if self._digest[0] != self._store.height():
                self._digest = self._store.digest()
            return self._digest

    def _known(self, what: str, name: object, found: T | None) -> T:
        if found is None:
            raise UnknownError(what, f"no {what} {name} up to height {self._store.height()}")
        return found
