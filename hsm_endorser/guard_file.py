"""The guard's file: its tables, its lock, and the checks that find a truncation or a flipped bit when it is opened."""

import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from hsm_endorser.errors import GuardDamagedError, GuardError, GuardInUseError

SCHEMA_VERSION: Final = 2
JOURNAL_CHECKED_AT_OPEN: Final = 100_000
"""How many of the last journal entries are checked when the guard is opened."""
IN_THE_WAY: Final = ("SQLITE_BUSY", "SQLITE_CANTOPEN", "SQLITE_FULL", "SQLITE_IOERR", "SQLITE_PERM", "SQLITE_READONLY")
"""SQLite's names of errors that say nothing against the file."""
MODULUS: Final = 1 << 128
"""The sum over all records wraps here."""

SCHEMA: Final = """
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL, network TEXT NOT NULL, device TEXT NOT NULL,
    since INTEGER NOT NULL, headers_since INTEGER NOT NULL, guard_order TEXT NOT NULL, sequence INTEGER NOT NULL,
    journal_count INTEGER NOT NULL, journal_tip BLOB NOT NULL, records INTEGER NOT NULL, record_sum BLOB NOT NULL,
    checksum BLOB NOT NULL
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
    """The state row: where the sequence, the journal and the sum over all records stand.

    A guard that was re-initialised says by which order (its digest), the least `valid_from` to vote on, and the least
    height to sign a header for; the guard of a new device says nothing and zero.
    """

    network: str
    device: str
    since: int = 0
    headers_since: int = 0
    guard_order: str = ""
    sequence: int = 0
    journal_count: int = 0
    journal_tip: bytes = bytes(32)
    records: int = 0
    record_sum: int = 0

    def checksum(self) -> bytes:
        """SHA-256 over the whole row."""
        return hashlib.sha256(msgspec.json.encode(self)).digest()


def count_in(state: State, kind: str, rows: Sequence[Sequence[Any]]) -> None:
    """Take new records into the state's count and sum."""
    state.records += len(rows)
    state.record_sum = (state.record_sum + sum(weight(kind, row) for row in rows)) % MODULUS


def count_out(state: State, kind: str, rows: Sequence[Sequence[Any]]) -> None:
    """Take records that were dropped out of the state's count and sum."""
    state.records -= len(rows)
    state.record_sum = (state.record_sum - sum(weight(kind, row) for row in rows)) % MODULUS


def weight(kind: str, row: Sequence[Any]) -> int:
    """What a row adds to the sum over all records: adding and taking away need no order."""
    return int.from_bytes(hashlib.blake2b(msgspec.json.encode((kind, *row)), digest_size=16).digest(), "big")


def link(before: bytes, row: Sequence[Any]) -> bytes:
    """The chain value of a journal row."""
    return hashlib.sha256(before + msgspec.json.encode(row)).digest()


def lock(path: Path) -> int:
    """Hold the guard for this process alone: two devices over one record would each sign behind the other's back.

    The file beside the guard is there before the guard is; `lock_file` holds the guard's own file as well.
    """
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise GuardDamagedError(
            f"the folder of the guard {path} cannot be used ({error.strerror}): nothing is signed. "
            "Let the device's user write to it, then restart the device"
        ) from None
    _hold(descriptor, path)
    return descriptor


def lock_file(path: Path) -> int:
    """Hold the file itself, by whatever other name (a link, a mount) another process may know it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    _hold(descriptor, path)
    return descriptor


def _hold(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise GuardInUseError(f"the guard at {path} is in use by another process; stop that device first") from None


def connect(path: Path) -> sqlite3.Connection:
    """A connection whose commits are durable; raises `sqlite3.Error` or `GuardError`."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5)
    mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    connection.execute("PRAGMA synchronous=FULL")
    if mode != "wal":
        connection.close()
        raise GuardError(f"the guard at {path} cannot use a write-ahead log; keep it on a local file system")
    return connection


def write_schema(connection: sqlite3.Connection, state: State) -> None:
    """Make the tables of a new guard, in one commit."""
    connection.executescript(f"BEGIN IMMEDIATE;{SCHEMA}")
    marks = ", ".join("?" * len(columns(state)))
    connection.execute(f"INSERT INTO state VALUES (1, ?, {marks})", (SCHEMA_VERSION, *columns(state)))  # noqa: S608
    connection.execute("COMMIT")


def data_version(connection: sqlite3.Connection) -> int:
    """A number that changes when another connection has changed the file."""
    return int(connection.execute("PRAGMA data_version").fetchone()[0])


def columns(state: State) -> tuple[Any, ...]:
    """The state as it stands in the table, checksum last."""
    return (
        state.network,
        state.device,
        state.since,
        state.headers_since,
        state.guard_order,
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
        "UPDATE state SET network=?, device=?, since=?, headers_since=?, guard_order=?, sequence=?, "
        "journal_count=?, journal_tip=?, records=?, record_sum=?, checksum=?",
        columns(state),
    )


def load(connection: sqlite3.Connection) -> State:
    """Read the state row; raises `GuardError` when it does not match its checksum."""
    row = connection.execute("SELECT * FROM state").fetchone()
    if row is None:
        raise GuardError("its state is missing")
    _one, version, network, device, since, headers_since, order, sequence, count, tip, records, total, checksum = row
    if version != SCHEMA_VERSION:
        raise GuardError(f"it has schema {version} where this release knows {SCHEMA_VERSION}")
    state = State(
        network, device, since, headers_since, order, sequence, count, tip, records, int.from_bytes(total, "big")
    )
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


def trouble(path: Path, device: str, error: Exception) -> GuardDamagedError:
    """What an error of the file means to whoever runs the device, and what to do."""
    if not _is_in_the_way(error):
        return GuardDamagedError(f"the guard at {path} is damaged ({error}): nothing is signed. {advice(device)}")
    return GuardDamagedError(
        f"the guard at {path} cannot be written ({error}): nothing is signed. "
        "Make room on its disk and let the device's user write to it and its folder, then restart the device"
    )


def _is_in_the_way(error: Exception) -> bool:
    """Whether an error speaks of the disk or the rights to it, and not of what the file holds."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorname", "").startswith(IN_THE_WAY)
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def advice(device: str) -> str:
    """What to do about a guard that has lost what it knew."""
    return (
        f"An older copy does not help; let the administrators order a new guard: "
        f"hsm-endorser guard order --device {device} (docs/guard.md)"
    )


def sync_folder(path: Path) -> None:
    """A new file's name is durable only when its folder is."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
