"""What a guard records, and the statements that read and write it inside one transaction of its file."""

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from hsm_endorser import guard_file
from hsm_endorser.errors import GuardConflictError
from hsm_endorser.guard_file import State
from protocol.canonical import KeyId
from protocol.endorsement import Vote

KEYS_PER_QUERY: Final = 400

Purpose = Literal[
    "head", "header", "certificate", "crl", "registration", "challenge", "statement", "rotation", "generation"
]
VoteKey = tuple[str, str]
"""Node and transaction id; the network is the guard's own."""


class VoteRecord(msgspec.Struct, frozen=True):
    """A vote to record; it may be forgotten when the block time reaches `valid_until` (ms)."""

    vote: Vote
    valid_until: int


class JournalEntry(msgspec.Struct, frozen=True):
    """A signature about to be made: what for, by which key, and the SHA-256 of the bytes that it covers.

    For a key that is about to be generated, `key` is its CKA_ID (hexadecimal): it has no other id yet.
    """

    purpose: Purpose
    key: KeyId
    digest: str


class JournalRow(msgspec.Struct, frozen=True):
    """An entry as it stands in the journal: its number, the time (ms) and the tree sequence then."""

    number: int
    entry: JournalEntry
    time: int
    sequence: int


def next_sequence(state: State, sequence: int) -> None:
    """Take the number of the next tree; raises `GuardConflictError` for any other."""
    if sequence != state.sequence + 1:
        raise GuardConflictError(f"tree {sequence} after tree {state.sequence}")
    state.sequence = sequence


def find_votes(connection: sqlite3.Connection, network: str, keys: Sequence[VoteKey]) -> dict[VoteKey, Vote]:
    """Those of the votes that are recorded."""
    by_node: dict[str, list[str]] = {}
    for node, tx in keys:
        by_node.setdefault(node, []).append(tx)
    found: dict[VoteKey, Vote] = {}
    for node, transactions in by_node.items():
        for start in range(0, len(transactions), KEYS_PER_QUERY):
            some = transactions[start : start + KEYS_PER_QUERY]
            # Not `(network, node, tx) IN (VALUES …)`: SQLite answers that by walking the whole table.
            marks = ",".join("?" * len(some))
            rows = connection.execute(
                f"SELECT tx, verdict, reason FROM votes WHERE network = ? AND node = ? AND tx IN ({marks})",  # noqa: S608  marks alone
                [network, node, *some],
            )
            for tx, verdict, reason in rows:
                found[node, tx] = Vote(network=network, transaction=tx, node=node, verdict=verdict, reason=reason)
    return found


def add_votes(connection: sqlite3.Connection, state: State, votes: Sequence[VoteRecord]) -> None:
    """Record votes; those that are recorded already may be given again. Raises `GuardConflictError` for others."""
    known = find_votes(connection, state.network, [(each.vote.node, each.vote.transaction) for each in votes])
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


def drop_votes(connection: sqlite3.Connection, state: State, block_time: int) -> int:
    """Drop the votes that may be forgotten at this block time (ms); how many."""
    rows = connection.execute("DELETE FROM votes WHERE valid_until <= ? RETURNING *", (block_time,)).fetchall()
    guard_file.count_out(state, "vote", rows)
    return len(rows)


def add_header(connection: sqlite3.Connection, state: State, height: int, authentication: str) -> None:
    """Record the one header of a height; raises `GuardConflictError` for another one, or one of before the guard."""
    if height < state.headers_since:
        raise GuardConflictError(
            f"this guard was re-initialised and signs headers from height {state.headers_since} on, this is {height}"
        )
    before = find_header(connection, state.network, height)
    if before is None:
        values = (state.network, height, authentication)
        connection.execute("INSERT INTO headers VALUES (?, ?, ?)", values)
        guard_file.count_in(state, "header", [values])
    elif before != authentication:
        raise GuardConflictError(
            f"a header with authentication data {before[:16]}… was signed for height {height} already; "
            f"{authentication[:16]}… is not"
        )


def find_header(connection: sqlite3.Connection, network: str, height: int) -> str | None:
    """The authentication data of the header that is recorded for a height."""
    row = connection.execute(
        "SELECT authentication FROM headers WHERE network = ? AND height = ?", (network, height)
    ).fetchone()
    return None if row is None else str(row[0])


def last_header(connection: sqlite3.Connection, network: str) -> int:
    """The greatest height for which a header is recorded; -1 when there is none."""
    (height,) = connection.execute("SELECT max(height) FROM headers WHERE network = ?", (network,)).fetchone()
    return -1 if height is None else int(height)


def append_journal(connection: sqlite3.Connection, state: State, entries: Sequence[JournalEntry], now: int) -> None:
    """Add entries to the journal's chain, at the time `now` (ms)."""
    rows = []
    for entry in entries:
        state.journal_count += 1
        row = (state.journal_count, entry.purpose, entry.key, entry.digest, now, state.sequence)
        state.journal_tip = guard_file.link(state.journal_tip, row)
        rows.append((*row, state.journal_tip))
    connection.executemany("INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


def read_journal(connection: sqlite3.Connection, key: KeyId | None, after: int, limit: int) -> list[JournalRow]:
    """At most `limit` entries after entry number `after`, in order, of one key or of all."""
    where, values = ("AND key = ?", [key]) if key else ("", [])
    rows = connection.execute(
        "SELECT number, purpose, key, digest, time, sequence FROM journal "  # noqa: S608  no value is in it
        f"WHERE number > ? {where} ORDER BY number LIMIT ?",
        (after, *values, limit),
    )
    return [_journal_row(row) for row in rows]


def _journal_row(row: Sequence[Any]) -> JournalRow:
    number, purpose, key, digest, when, sequence = row
    return JournalRow(number, JournalEntry(purpose, KeyId(key), digest), when, sequence)
