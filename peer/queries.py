"""What a peer answers from its own verified chain. Every method blocks on the database: call from a worker thread."""

import threading
from typing import TypeVar

import msgspec

from ledger.errors import LedgerError
from ledger.receipt import make_receipt
from ledger.store import ChainStore
from peer.errors import UnknownError
from protocol.canonical import TxId

T = TypeVar("T")


class Committed(msgspec.Struct, frozen=True):
    """Where a transaction stands on the chain and what became of it; `code` is "valid" or the reason it was not."""

    transaction: str
    height: int
    index: int
    code: str


class Queries:
    """Reads of one chain store; safe from any number of threads."""

    def __init__(self, store: ChainStore) -> None:
        self._store = store
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
        try:
            return make_receipt(self._store, identity)
        except LedgerError as error:
            if error.code != "not-found":
                raise
            raise UnknownError("transaction", str(error)) from None

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
