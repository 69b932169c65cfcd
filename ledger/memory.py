"""Which signatures this process has verified itself, so that it does so once."""

import hashlib
import threading
from collections import OrderedDict
from typing import Final

from protocol.endorsement import TreeHead, verify_head
from protocol.envelope import Envelope
from protocol.keys import PublicKey
from protocol.transaction import Transaction

CAPACITY: Final = 65_536

_Seen = tuple[str, str, bytes]


class SignatureMemory:
    """A bounded set of verified (what was signed, key, signature); safe to use from several threads.

    It never speaks for another process: what is not in it is verified.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._seen: OrderedDict[_Seen, None] = OrderedDict()
        self._lock = threading.Lock()

    def verify_transaction(self, transaction: Transaction, key: PublicKey) -> None:
        """Check the client's reference signature (requirement E-3); raises `BadSignatureError`."""
        seen = (transaction.id, key.id, transaction.envelope.signatures[0].sig)
        # The key id beside a signature is not signed: without a look at it, a replica that remembers would accept
        # what all others refuse.
        if transaction.signers == (key.id,) and seen in self._seen:
            return
        transaction.verify(key)
        self._remember(seen)

    def verify_head(self, envelope: Envelope, head: TreeHead, key: PublicKey) -> None:
        """Check a node's signature under a tree head (requirement E-12); raises `BadSignatureError`."""
        sig = envelope.signatures[0].sig if envelope.signatures else b""
        seen = (hashlib.sha256(envelope.payload).hexdigest(), key.id, sig)
        if [each.keyid for each in envelope.signatures] == [head.key] == [key.id] and seen in self._seen:
            return
        verify_head(envelope, head, key)
        self._remember(seen)

    def _remember(self, seen: _Seen) -> None:
        with self._lock:
            self._seen[seen] = None
            if len(self._seen) > self._capacity:
                self._seen.popitem(last=False)
