"""The guard's file: its tables, its lock, and the checks that find a truncation or a flipped bit when it is opened."""

import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from hsm_endorser.errors import GuardError

SCHEMA_VERSION: Final = 1
JOURNAL_CHECKED_AT_OPEN: Final = 100_000
"""How many of the last journal entries are checked when the guard is opened."""
MODULUS: Final = 1 << 128
"""The sum over all records wraps here."""

SCHEMA: Final = """
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL, network TEXT NOT NULL, device TEXT NOT NULL,
    since INTEGER NOT NULL, sequence INTEGER NOT NULL, journal_count INTEGER NOT NULL, journal_tip BLOB NOT NULL,
    records INTEGER NOT NULL, record_sum BLOB NOT NULL, checksum BLOB NOT NULL
) STRICT;
CREATE TABLE votes (
    network TEXT NOT NULL, node TEXT NOT NULL, tx TEXT NOT NULL, verdict TEXT NOT NULL, reason TEXT NOT NULL,
    valid_until INTEGER NOT NULL, PRIMARY KEY (network, node, tx)
) STRICT, WITHOUT ROWID;
CREATE TABLE headers (
    network TEXT NOT NULL, height INTEGER NOT NULL, authentication TEXT NOT NULL, PRIMARY KEY (network, height)
) STRICT, WITHOUT ROWID;
CREATE TABLE journal (
    number INTEGER PRIMARY KEY, purpose TEXT NOT NULL, key TEXT NOT NULL, digest TEXT NOT NULL,
    time INTEGER NOT NULL, sequence INTEGER NOT NULL, chain BLOB NOT NULL
) STRICT;
CREATE INDEX journal_by_key ON journal (key, number);
CREATE INDEX votes_by_end ON votes (valid_until);
"""


class State(msgspec.Struct):
    """The state row: where the sequence, the journal and the sum over all records stand."""

    network: str
    device: str
    since: int
    sequence: int
    journal_count: int
    journal_tip: bytes
    records: int
    record_sum: int

    def checksum(self) -> bytes:
        """SHA-256 over the whole row."""
        return hashlib.sha256(msgspec.json.encode(self)).digest()


def count_in(state: State, kind: str, rows: Sequence[Sequence[Any]]) -> None:
    """Take new records into the state's count and sum."""
    state.records += len(rows)
    state.record_sum = (state.record_sum + sum(weight(kind, row) for row in rows)) % MODULUS


def weight(kind: str, row: Sequence[Any]) -> int:
    """What a row adds to the sum over all records: adding and taking away need no order."""
    return int.from_bytes(hashlib.blake2b(msgspec.json.encode((kind, *row)), digest_size=16).digest(), "big")


def link(before: bytes, row: Sequence[Any]) -> bytes:
    """The chain value of a journal row."""
    return hashlib.sha256(before + msgspec.json.encode(row)).digest()


def lock(path: Path) -> int:
    """Hold the guard for this process alone: two devices over one record would each sign behind the other's back."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise GuardError(f"the folder of the guard {path} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise GuardError(f"the guard at {path} is in use by another process; stop that device first") from None
    return descriptor


def connect(path: Path) -> sqlite3.Connection:
    """A connection whose commits are durable."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    connection.execute("PRAGMA synchronous=FULL")
    if mode != "wal":
        connection.close()
        raise GuardError(f"the guard at {path} cannot use a write-ahead log; keep it on a local file system")
    return connection


def columns(state: State) -> tuple[Any, ...]:
    """The state as it stands in the table, checksum last."""
    return (
        state.network,
        state.device,
        state.since,
        state.sequence,
        state.journal_count,
        state.journal_tip,
        state.records,
        state.record_sum.to_bytes(16, "big"),
        state.checksum(),
    )


def save(connection: sqlite3.Connection, state: State) -> None:
    """Write the state row."""
    connection.execute(
        "UPDATE state SET network=?, device=?, since=?, sequence=?, journal_count=?, journal_tip=?, records=?, "
        "record_sum=?, checksum=?",
        columns(state),
    )


def load(connection: sqlite3.Connection) -> State:
    """Read the state row; raises `GuardError` when it does not match its checksum."""
    row = connection.execute("SELECT * FROM state").fetchone()
    if row is None:
        raise GuardError("its state is missing")
    _one, version, network, device, since, sequence, count, tip, records, record_sum, checksum = row
    if version != SCHEMA_VERSION:
        raise GuardError(f"it has schema {version} where this release knows {SCHEMA_VERSION}")
    state = State(network, device, since, sequence, count, tip, records, int.from_bytes(record_sum, "big"))
    if state.checksum() != checksum:
        raise GuardError("its state does not match its checksum")
    return state


def check_whole(connection: sqlite3.Connection, state: State) -> None:
    """Compare everything in the file with the state; raises `GuardError`."""
    (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if verdict != "ok":
        raise GuardError(f"integrity check: {verdict}")
    count, total = 0, 0
    for kind, table in (("vote", "votes"), ("header", "headers")):
        for row in connection.execute(f"SELECT * FROM {table}"):  # noqa: S608  one of two names
            count += 1
            total += weight(kind, row)
    if (count, total % MODULUS) != (state.records, state.record_sum):
        raise GuardError(f"its {count} records are not the {state.records} that were written")
    check_journal(connection, state, max(0, state.journal_count - JOURNAL_CHECKED_AT_OPEN))


def check_journal(connection: sqlite3.Connection, state: State, after: int) -> None:
    """Follow the journal's chain from entry `after` to its end; raises `GuardError` at the first wrong entry."""
    tip = bytes(32)
    if after:
        row = connection.execute("SELECT chain FROM journal WHERE number = ?", (after,)).fetchone()
        if row is None:
            raise GuardError(f"journal entry {after} is missing")
        tip = row[0]
    expected = after
    for *row, chain in connection.execute("SELECT * FROM journal WHERE number > ? ORDER BY number", (after,)):
        expected += 1
        tip = link(tip, row)
        if row[0] != expected or tip != chain:
            raise GuardError(f"journal entry {expected} is missing or was changed")
    if (expected, tip) != (state.journal_count, state.journal_tip):
        raise GuardError(f"the journal ends at entry {expected} where entry {state.journal_count} was the last")


def damaged(path: Path, what: str) -> GuardError:
    """The error for a file that cannot be trusted."""
    return GuardError(
        f"the guard at {path} is damaged ({what}): nothing is signed. Restore the newest copy, "
        "or let two administrators order its re-initialisation"
    )


def give_up(connection: sqlite3.Connection | None, lock_file: int) -> None:
    """Close what an opening had opened."""
    if connection:
        connection.close()
    os.close(lock_file)


def sync_folder(path: Path) -> None:
    """A new file's name is durable only when its folder is."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
