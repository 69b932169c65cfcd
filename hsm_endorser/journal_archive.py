"""The archive of a journal: one file of lines that says what a device's keys signed, for tracing them later (K-14).

The first line says whose journal it is, how many entries follow and with which chain value they end; each line after
it is an entry. The chain of hashes is followed when an archive is read: an entry that was changed, left out or put in
between is found at its number. An archive proves nothing to anyone else: it is what the device claims.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, Literal

import msgspec

from hsm_endorser import guard_file
from hsm_endorser.errors import GuardDamagedError, GuardError
from hsm_endorser.guard_records import JournalEntry, JournalRow, Purpose
from protocol.canonical import KeyId

BUSY_SECONDS: Final = 10.0
MOST_LINE_BYTES: Final = 4096


class Heading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first line of an archive. `tip` is the chain value of the last entry, hexadecimal."""

    network: str
    device: str
    entries: int
    tip: str
    version: Literal[1] = 1


class _Line(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    number: int
    purpose: Purpose
    key: str
    digest: str
    time: int
    sequence: int


class Archive(msgspec.Struct, frozen=True):
    """A journal as it was archived."""

    heading: Heading
    rows: tuple[JournalRow, ...]


def write(guard: Path, out: BinaryIO) -> Heading:
    """Archive the journal of the guard at `guard`, also while its device runs; it is not changed.

    Raises `GuardDamagedError` when there is no guard, or when its journal does not hold together.
    """
    if not guard.is_file():
        raise GuardDamagedError(f"there is no guard at {guard}")
    try:
        with contextlib.closing(sqlite3.connect(guard, isolation_level=None, timeout=BUSY_SECONDS)) as connection:
            connection.execute("PRAGMA query_only=ON")
            connection.execute("BEGIN")  # one snapshot, whatever the device records meanwhile
            state = guard_file.load(connection)
            guard_file.check_journal(connection, state, 0)
            heading = Heading(state.network, state.device, state.journal_count, state.journal_tip.hex())
            out.write(msgspec.json.encode(heading) + b"\n")
            out.writelines(
                msgspec.json.encode(row) + b"\n"
                for row in connection.execute(
                    "SELECT number, purpose, key, digest, time, sequence FROM journal ORDER BY number"
                )
            )
            return heading
    except (sqlite3.Error, GuardError) as error:
        raise GuardDamagedError(f"the journal in {guard} cannot be archived: {error}") from None


def read(lines: Iterator[bytes]) -> Archive:
    """An archive whose chain of hashes holds from its first entry to its last; raises `GuardDamagedError`."""
    try:
        heading = msgspec.json.decode(next(lines, b""), type=Heading)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise GuardDamagedError(f"no archive of a journal: {error}") from None
    rows: list[JournalRow] = []
    tip = bytes(32)
    for expected, data in enumerate(lines, 1):
        try:
            line = _line_decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise GuardDamagedError(f"entry {expected} of the archive cannot be read: {error}") from None
        if line.number != expected:
            raise GuardDamagedError(f"entry {expected} is missing in the archive; {line.number} stands in its place")
        tip = guard_file.link(tip, msgspec.structs.astuple(line))
        rows.append(
            JournalRow(expected, JournalEntry(line.purpose, KeyId(line.key), line.digest), line.time, line.sequence)
        )
    if (len(rows), tip.hex()) != (heading.entries, heading.tip):
        raise GuardDamagedError(
            f"the archive of {heading.device} was changed or cut off: its {len(rows)} entries do not lead to the chain "
            f"value that its first line states for {heading.entries}"
        )
    return Archive(heading, tuple(rows))


_line_decoder = msgspec.json.Decoder(_Line)
