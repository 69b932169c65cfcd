"""The guard: what is about to be signed is durably recorded first (requirement K-10).

A repeat gets what is recorded; something else for the same vote or height is refused. The journal beside it lists
every signature by its purpose, so that the loss of a key can be answered with a list of what it signed (K-14).

Plain `sqlite3`, WAL with synchronous=FULL: the guard belongs to one device, never moves to another database, and
stands before every signature, where a commit must cost a sync and nothing else. One commit for each batch.

SQLite does not notice a flipped bit in a value, so the guard does: each journal entry is chained to the one
before, the set of votes and headers has a sum, and both stand in a state row with a checksum of its own. A whole
disk that is rolled back cannot be noticed here; the chain shows the head sequences that the device has used.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from hsm_endorser import guard_file
from hsm_endorser.errors import GuardConflictError, GuardError
from hsm_endorser.guard_file import State
from protocol.canonical import KeyId
from protocol.endorsement import Vote

KEYS_PER_QUERY: Final = 400

Purpose = Literal["head", "header", "certificate", "crl", "registration", "challenge", "statement"]
VoteKey = tuple[str, str]
"""Node and transaction id; the network is the guard's own."""


class VoteRecord(msgspec.Struct, frozen=True):
    """A vote to record; it may be forgotten when the block time reaches `valid_until` (ms)."""

    vote: Vote
    valid_until: int


class JournalEntry(msgspec.Struct, frozen=True):
    """A signature about to be made: what for, by which key, and the SHA-256 of the bytes that it covers."""

    purpose: Purpose
    key: KeyId
    digest: str


class JournalRow(msgspec.Struct, frozen=True):
    """An entry as it stands in the journal: its number, the time (ms) and the tree sequence then."""

    number: int
    entry: JournalEntry
    time: int
    sequence: int


class Guard:
    """The record of one device. Its methods block for as long as a disk sync takes; any one thread at a time."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lock_file: int, state: State) -> None:
        self.path = path
        self._connection = connection
        self._lock_file = lock_file
        self._state = state
        self._lock = threading.Lock()
        self._behind = ""
        self._broken = ""

    @staticmethod
    def create(path: Path, *, network: str, device: str, since: int = 0) -> "Guard":
        """A new guard; raises `GuardError` when there is one.

        `since` is the least `valid_from` of transactions to vote on: 0 for a new device, and for one whose guard
        was lost the first height of which it is certain that it signed nothing.
        """
        lock_file = guard_file.lock(path)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except OSError as error:
            os.close(lock_file)
            raise GuardError(
                f"cannot create a guard at {path}: {error.strerror}; a guard that is there is opened, never replaced"
            ) from None
        os.close(descriptor)
        connection = guard_file.connect(path)
        connection.executescript(f"BEGIN IMMEDIATE;{guard_file.SCHEMA}")
        state = State(network, device, since, 0, 0, bytes(32), 0, 0)
        connection.execute(
            "INSERT INTO state VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (guard_file.SCHEMA_VERSION, *guard_file.columns(state)),
        )
        connection.execute("COMMIT")
        guard_file.sync_folder(path)
        return Guard(path, connection, lock_file, state)

    @staticmethod
    def open(path: Path, *, network: str, device: str) -> "Guard":
        """The guard that is there; raises `GuardError` when it is missing, damaged, in use, or another device's."""
        if not path.is_file():
            raise GuardError(
                f"there is no guard at {path}: without it this device could sign two different votes. "
                "Restore the newest copy, or let two administrators order its re-initialisation"
            )
        lock_file = guard_file.lock(path)
        connection: sqlite3.Connection | None = None
        try:
            connection = guard_file.connect(path)
            state = guard_file.load(connection)
            guard_file.check_whole(connection, state)
        except (sqlite3.Error, msgspec.MsgspecError, ValueError, TypeError, GuardError) as error:
            guard_file.give_up(connection, lock_file)
            raise guard_file.damaged(path, str(error)) from None
        if (state.network, state.device) != (network, device):
            guard_file.give_up(connection, lock_file)
            raise GuardError(
                f"the guard at {path} is that of {state.device} on {state.network}, not of {device} on {network}; "
                "correct `guard` in the device's configuration"
            )
        return Guard(path, connection, lock_file, state)

    def close(self) -> None:
        """Close the file and let another process open it."""
        with self._lock:
            self._connection.close()
            os.close(self._lock_file)
            self._broken = "the guard is closed"

    @property
    def sequence(self) -> int:
        """The last tree sequence that was recorded."""
        return self._state.sequence

    @property
    def since(self) -> int:
        """The least `valid_from` of transactions to vote on."""
        return self._state.since

    @property
    def trouble(self) -> str:
        """Why nothing may be signed; empty when all is well."""
        return self._broken or self._behind

    def require_not_behind(self, sequence: int) -> None:
        """Refuse to go on when the chain shows a later tree than this guard knows: it was restored."""
        if sequence > self._state.sequence:
            self._behind = (
                f"the guard at {self.path} knows tree {self._state.sequence} as the last, the chain shows tree "
                f"{sequence} of this device: an old copy was restored. Nothing is signed; restore the newest copy, "
                "or let two administrators order the guard's re-initialisation"
            )
        self._require_trust()

    def recorded(self, keys: Iterable[VoteKey]) -> dict[VoteKey, Vote]:
        """Those of the votes that are recorded already."""
        with self._reading() as connection:
            return self._recorded(connection, list(keys))

    def record(
        self,
        *,
        votes: Sequence[VoteRecord] = (),
        sequence: int | None = None,
        header: tuple[int, str] | None = None,
        journal: Sequence[JournalEntry] = (),
    ) -> None:
        """Record, durably and in one commit, what will be signed when this returns.

        `sequence` is the tree's and must be the next; `header` is a height and its authentication data. What is
        recorded already may be given again. Raises `GuardConflictError` for another vote or header, and
        `GuardError` when it cannot be recorded; nothing is recorded then and nothing may be signed.
        """
        with self._writing() as (connection, state):
            if sequence is not None:
                if sequence != state.sequence + 1:
                    raise GuardConflictError(f"tree {sequence} after tree {state.sequence}")
                state.sequence = sequence
            self._record_votes(connection, state, votes)
            if header:
                _record_header(connection, state, *header)
            _append(connection, state, journal, time.time_ns() // 1_000_000)

    def forget(self, block_time: int) -> int:
        """Drop the votes on transactions that have run out at this block time (ms); how many."""
        with self._writing() as (connection, state):
            rows = connection.execute("DELETE FROM votes WHERE valid_until <= ? RETURNING *", (block_time,)).fetchall()
            for row in rows:
                state.records -= 1
                state.record_sum = (state.record_sum - guard_file.weight("vote", row)) % guard_file.MODULUS
            return len(rows)

    def journal(self, *, key: KeyId | None = None, after: int = 0, limit: int = 1000) -> list[JournalRow]:
        """Journal entries in order, of one key or of all, after entry number `after`."""
        where, values = ("AND key = ?", [key]) if key else ("", [])
        with self._reading() as connection:
            rows = connection.execute(
                "SELECT number, purpose, key, digest, time, sequence FROM journal "  # noqa: S608  no value is in it
                f"WHERE number > ? {where} ORDER BY number LIMIT ?",
                (after, *values, limit),
            )
            return [_journal_row(row) for row in rows]

    def verify_journal(self) -> int:
        """Check the whole chain of the journal; how many entries. Raises `GuardError` at the first that is wrong."""
        with self._reading() as connection:
            guard_file.check_journal(connection, self._state, 0)
            return self._state.journal_count

    # --- inside one transaction ---------------------------------------------------------------------------

    def _recorded(self, connection: sqlite3.Connection, keys: Sequence[VoteKey]) -> dict[VoteKey, Vote]:
        found: dict[VoteKey, Vote] = {}
        for start in range(0, len(keys), KEYS_PER_QUERY):
            some = keys[start : start + KEYS_PER_QUERY]
            marks = ",".join(["(?,?,?)"] * len(some))
            values = [value for node, tx in some for value in (self._state.network, node, tx)]
            rows = connection.execute(
                f"SELECT * FROM votes WHERE (network, node, tx) IN (VALUES {marks})",  # noqa: S608  marks alone
                values,
            )
            for network, node, tx, verdict, reason, _valid_until in rows:
                found[node, tx] = Vote(network=network, transaction=tx, node=node, verdict=verdict, reason=reason)
        return found

    def _record_votes(self, connection: sqlite3.Connection, state: State, votes: Sequence[VoteRecord]) -> None:
        known = self._recorded(connection, [(each.vote.node, each.vote.transaction) for each in votes])
        rows = []
        for record in votes:
            vote = record.vote
            if vote.network != state.network:
                raise GuardConflictError(f"a vote for network {vote.network} at the guard of {state.network}")
            before = known.setdefault((vote.node, vote.transaction), vote)
            if before != vote:
                raise GuardConflictError(
                    f"node {vote.node} has voted {before.verdict} {before.reason} on {vote.transaction} already "
                    f"and does not vote {vote.verdict} {vote.reason} on it"
                )
            if before is vote:
                rows.append((vote.network, vote.node, vote.transaction, vote.verdict, vote.reason, record.valid_until))
        connection.executemany("INSERT INTO votes VALUES (?, ?, ?, ?, ?, ?)", rows)
        guard_file.count_in(state, "vote", rows)

    def _require_trust(self) -> None:
        if self.trouble:
            raise GuardError(self.trouble)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._require_trust()
            try:
                yield self._connection
            except sqlite3.Error as error:
                self._broken = str(guard_file.damaged(self.path, str(error)))
                raise GuardError(self._broken) from None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, State]]:
        with self._lock:
            self._require_trust()
            state = msgspec.structs.replace(self._state)
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection, state
                guard_file.save(self._connection, state)
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                # A commit that failed may stand on the disk or not: only opening the guard anew tells.
                self._roll_back()
                self._broken = f"the guard at {self.path} cannot be written ({error}); restart the device when it can"
                raise GuardError(self._broken) from None
            except BaseException:
                self._roll_back()
                raise
            self._state = state

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.execute("ROLLBACK")


def _record_header(connection: sqlite3.Connection, state: State, height: int, authentication: str) -> None:
    row = connection.execute(
        "SELECT authentication FROM headers WHERE network = ? AND height = ?", (state.network, height)
    ).fetchone()
    if row is None:
        values = (state.network, height, authentication)
        connection.execute("INSERT INTO headers VALUES (?, ?, ?)", values)
        guard_file.count_in(state, "header", [values])
    elif row[0] != authentication:
        raise GuardConflictError(
            f"a header with authentication data {row[0][:16]}… was signed for height {height} already; "
            f"{authentication[:16]}… is not"
        )


def _append(connection: sqlite3.Connection, state: State, entries: Sequence[JournalEntry], now: int) -> None:
    rows = []
    for entry in entries:
        state.journal_count += 1
        row = (state.journal_count, entry.purpose, entry.key, entry.digest, now, state.sequence)
        state.journal_tip = guard_file.link(state.journal_tip, row)
        rows.append((*row, state.journal_tip))
    connection.executemany("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


def _journal_row(row: Sequence[Any]) -> JournalRow:
    number, purpose, key, digest, when, sequence = row
    return JournalRow(number, JournalEntry(purpose, KeyId(key), digest), when, sequence)
