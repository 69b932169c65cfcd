"""The guard: what is about to be signed is durably recorded first (requirement K-10).

A repeat gets what is recorded; something else for the same vote or height is refused. The journal beside it lists
every signature by its purpose, so that the loss of a key can be answered with a list of what it signed (K-14).

Plain `sqlite3`, WAL with synchronous=FULL: the guard belongs to one device, never moves to another database, and
stands before every signature, where a commit must cost a sync and nothing else. One commit for each batch.

SQLite does not notice a flipped bit in a value, so the guard does: each journal entry is chained to the one
before, the set of votes and headers has a sum, and both stand in a state row with a checksum of its own. A mark
beside the file tells when its last commits are gone. A whole disk that is rolled back cannot be noticed here; the
chain shows the head sequences and the headers that the device has signed. See docs/guard.md.
"""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from hsm_endorser import guard_file, guard_records
from hsm_endorser.errors import GuardDamagedError, GuardError
from hsm_endorser.guard_file import State
from hsm_endorser.guard_files import Files
from hsm_endorser.guard_records import JournalEntry, JournalRow, VoteKey, VoteRecord
from protocol.canonical import KeyId
from protocol.endorsement import Vote


class Guard:
    """The record of one device. Its methods block for as long as a disk sync takes; any one thread at a time."""

    def __init__(self, path: Path, state: State, files: Files | None, broken: str = "") -> None:
        self.path = path
        self._state = state
        self._files = files
        self._lock = threading.Lock()
        self._behind = ""
        self._broken = broken
        self._last_header = -1
        if files:
            self._last_header = guard_records.last_header(files.connection, state.network)

    @staticmethod
    def create(
        path: Path,
        *,
        network: str,
        device: str,
        since: int = 0,
        headers_since: int = 0,
        sequence: int = 0,
        guard_order: str = "",
    ) -> "Guard":
        """A new guard; raises `GuardError` when there is one.

        The last four are for a guard that takes the place of a lost one, by the order with that digest: the least
        `valid_from` of transactions to vote on, the least height of headers to sign, and a tree sequence that the
        lost one had not reached.
        """
        state = State(network, device, since, headers_since, guard_order, sequence)
        return Guard(path, state, Files.create(path, state))

    @staticmethod
    def open(path: Path, *, network: str, device: str) -> "Guard":
        """The guard that is there.

        Raises `GuardInUseError`, `GuardDamagedError` when it is missing, damaged or cannot be written, and `GuardError`
        when it is another device's.
        """
        files, state = Files.open(path, network=network, device=device)
        guard = Guard(path, state, files)
        try:
            with guard._writing():
                pass  # whether it can be written is found out now, before anybody asks for a signature
        except GuardError as error:
            guard.close()
            raise GuardDamagedError(str(error)) from None
        return guard

    @staticmethod
    def lost(path: Path, reason: str, *, network: str, device: str) -> "Guard":
        """What stands for a guard that cannot be opened: it says why, and refuses everything."""
        return Guard(path, State(network, device), None, reason)

    def close(self) -> None:
        """Close the file and let another process open it."""
        with self._lock:
            files, self._files = self._files, None
            self._broken = self._broken or "the guard is closed"
            if files:
                files.close()

    @property
    def sequence(self) -> int:
        """The last tree sequence that was recorded."""
        return self._state.sequence

    @property
    def since(self) -> int:
        """The least `valid_from` of transactions to vote on."""
        return self._state.since

    @property
    def headers_since(self) -> int:
        """The least height of headers to sign."""
        return self._state.headers_since

    @property
    def guard_order(self) -> str:
        """The digest of the order that this guard was made by; empty for a new device's."""
        return self._state.guard_order

    @property
    def last_header(self) -> int:
        """The greatest height for which a header was recorded; -1 when there is none."""
        return self._last_header

    @property
    def trouble(self) -> str:
        """Why nothing may be signed; empty when all is well."""
        return self._broken or self._behind

    # --- what the chain shows -----------------------------------------------------------------------------

    def require_not_behind(self, sequence: int) -> None:
        """Refuse to go on when the chain shows a later tree than this guard knows: it was restored."""
        if sequence > self._state.sequence:
            self._fall_behind(f"knows tree {self._state.sequence} as the last, the chain shows tree {sequence}")
        self._require_trust()

    def require_header(self, height: int, authentication: str) -> None:
        """Refuse to go on when the chain shows a header signed by a key of this device that is not recorded here."""
        if height >= self._state.headers_since:
            with self._reading() as connection:
                known = guard_records.find_header(connection, self._state.network, height)
            if known != authentication:
                found = f"header {known[:16]}…" if known else "no header"
                self._fall_behind(
                    f"knows {found} for height {height}, the chain shows {authentication[:16]}… as signed"
                )
        self._require_trust()

    def require_order(self, digest: str, since: int) -> None:
        """Refuse to go on when the chain shows a later order than the one by which this guard was made."""
        own = (self._state.since, self._state.guard_order)
        if own[0] < since or (own[0] == since and own[1] != digest):
            self._fall_behind(
                f"votes from height {own[0]} on, and the administrators have ordered a new one from {since} on"
            )
        self._require_trust()

    def _fall_behind(self, what: str) -> None:
        self._behind = (
            f"the guard at {self.path} {what} of this device: an old copy was restored. Nothing is signed. "
            f"{guard_file.advice(self._state.device)}"
        )

    # --- records ------------------------------------------------------------------------------------------

    def recorded(self, keys: Iterable[VoteKey]) -> dict[VoteKey, Vote]:
        """Those of the votes that are recorded already."""
        with self._reading() as connection:
            return guard_records.find_votes(connection, self._state.network, list(keys))

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
                guard_records.next_sequence(state, sequence)
            guard_records.add_votes(connection, state, votes)
            if header:
                guard_records.add_header(connection, state, *header)
            guard_records.append_journal(connection, state, journal, time.time_ns() // 1_000_000)
        if header:
            self._last_header = max(self._last_header, header[0])

    def forget(self, block_time: int) -> int:
        """Drop the votes on transactions that have run out at this block time (ms); how many."""
        with self._writing() as (connection, state):
            return guard_records.drop_votes(connection, state, block_time)

    def journal(self, *, key: KeyId | None = None, after: int = 0, limit: int = 1000) -> list[JournalRow]:
        """Journal entries in order, of one key or of all, after entry number `after`."""
        with self._reading() as connection:
            return guard_records.read_journal(connection, key, after, limit)

    def verify_journal(self) -> int:
        """Check the whole chain of the journal; how many entries. Raises `GuardError` at the first that is wrong."""
        with self._reading() as connection:
            guard_file.check_journal(connection, self._state, 0)
            return self._state.journal_count

    # --- one transaction ----------------------------------------------------------------------------------

    def _require_trust(self) -> None:
        if self.trouble:
            raise GuardError(self.trouble)

    def _trusted_files(self) -> Files:
        self._require_trust()
        if self._files is None:
            raise GuardError("the guard is closed")
        return self._files

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            files = self._trusted_files()
            try:
                yield files.connection
            except sqlite3.Error as error:
                self._broken = str(guard_file.trouble(self.path, self._state.device, error))
                raise GuardError(self._broken) from None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[tuple[sqlite3.Connection, State]]:
        with self._lock:
            files = self._trusted_files()
            state = msgspec.structs.replace(self._state)
            try:
                files.connection.execute("BEGIN IMMEDIATE")
                self._require_alone(files)
                yield files.connection, state
                guard_file.save(files.connection, state)
                files.connection.execute("COMMIT")
                # A crash here leaves a mark that is behind the guard, which says nothing against it.
                files.mark.write(state)
            except (sqlite3.Error, OSError) as error:
                # A commit that failed may stand on the disk or not: only opening the guard anew tells.
                self._roll_back(files)
                self._broken = str(guard_file.trouble(self.path, self._state.device, error))
                raise GuardError(self._broken) from None
            except BaseException:
                self._roll_back(files)
                raise
            self._state = state

    def _require_alone(self, files: Files) -> None:
        if not files.is_ours_alone:
            self._broken = (
                f"the guard at {self.path} was written by another process, so nothing is signed; "
                "stop whatever else uses it, then restart the device"
            )
            raise GuardError(self._broken)

    @staticmethod
    def _roll_back(files: Files) -> None:
        with contextlib.suppress(sqlite3.Error):
            files.connection.execute("ROLLBACK")
