"""Reads the journal of signatures: which key signed what, for what purpose (requirements K-8, K-14). Writes nothing."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from hsm_endorser.guard import Guard
from hsm_endorser.guard_records import JournalEntry, JournalRow, Purpose
from protocol.canonical import KeyId
from protocol.envelope import Envelope, pae

PAGE: Final = 5000


def rows(guard: Guard, *, after: int = 0) -> Iterator[JournalRow]:
    """All entries in order, from the one after number `after` on; a page at a time."""
    while page := guard.journal(after=after, limit=PAGE):
        yield from page
        after = page[-1].number


def by_purpose(entries: Iterable[JournalRow]) -> Counter[Purpose]:
    """How many signatures there are for each purpose."""
    return Counter(row.entry.purpose for row in entries)


def entries_of(envelope: Envelope, purpose: Purpose) -> Iterator[JournalEntry]:
    """What must stand in a journal if a device made the signatures of an envelope."""
    digest = hashlib.sha256(pae(envelope.payload_type, envelope.payload)).hexdigest()
    for signature in envelope.signatures:
        yield JournalEntry(purpose, KeyId(signature.keyid), digest)
