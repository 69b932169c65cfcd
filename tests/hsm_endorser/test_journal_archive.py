"""The archive of a journal: whole, or refused at the entry that is not."""

import io
import random
from pathlib import Path

import pytest

from hsm_endorser import journal_archive
from hsm_endorser.errors import GuardDamagedError
from hsm_endorser.guard import Guard
from hsm_endorser.guard_records import JournalEntry
from protocol.canonical import KeyId

KEYS = [KeyId("11" * 32), KeyId("22" * 32)]


@pytest.fixture
def guard(tmp_path: Path) -> Guard:
    """A guard that is open, with ten signatures in its journal."""
    made = Guard.create(tmp_path / "guard.db", network="n", device="d")
    for number in range(10):
        made.record(journal=[JournalEntry("challenge", KEYS[number % 2], f"{number:064x}")])
    return made


def archive(guard: Guard) -> bytes:
    """The archive's bytes."""
    out = io.BytesIO()
    journal_archive.write(guard.path, out)
    return out.getvalue()


def read(data: bytes) -> journal_archive.Archive:
    """Read an archive."""
    return journal_archive.read(iter(io.BytesIO(data)))


@pytest.mark.requirement("K-14")
def test_an_archive_holds_the_whole_journal(guard: Guard) -> None:
    """The journal of a device that runs is archived whole, and the device goes on recording."""
    found = read(archive(guard))
    assert found.rows == tuple(guard.journal(limit=100))
    assert (found.heading.network, found.heading.device, found.heading.entries) == ("n", "d", 10)
    guard.record(journal=[JournalEntry("challenge", KEYS[0], "ff" * 32)])
    assert len(read(archive(guard)).rows) == 11
    guard.close()
    assert len(read(archive(guard)).rows) == 11


@pytest.mark.requirement("K-14", "S-5")
def test_a_changed_archive_is_refused(guard: Guard) -> None:
    """An entry that was edited, left out, moved or cut off is noticed."""
    lines = archive(guard).splitlines(keepends=True)
    edited = [*lines[:4], lines[4].replace(KEYS[1].encode(), KEYS[0].encode()), *lines[5:]]
    cases = {
        "do not lead to the chain value": edited,
        "entry 3 is missing in the archive; 4 stands in its place": [*lines[:3], *lines[4:]],
        "was changed or cut off: its 9 entries": lines[:-1],
        "entry 2 is missing in the archive; 3 stands": [lines[0], lines[1], lines[3], lines[2], *lines[4:]],
        "no archive of a journal": lines[1:],
        "entry 11 of the archive cannot be read": [*lines, b"nonsense\n"],
    }
    for reason, changed in cases.items():
        with pytest.raises(GuardDamagedError, match=reason):
            read(b"".join(changed))


def test_any_changed_byte_is_refused_or_means_the_same(guard: Guard) -> None:
    """No single changed byte of the entries yields another journal."""
    data = archive(guard)
    whole = read(data)
    start = data.index(b"\n") + 1
    chance = random.Random(7)  # noqa: S311  a test that is the same each time
    for _ in range(300):
        place = chance.randrange(start, len(data))
        changed = bytearray(data)
        changed[place] ^= 1 << chance.randrange(8)
        try:
            found = read(bytes(changed))
        except GuardDamagedError:
            continue
        assert found.rows == whole.rows


def test_no_guard_is_no_journal(tmp_path: Path) -> None:
    """Where there is no guard, none is made."""
    with pytest.raises(GuardDamagedError, match="there is no guard at"):
        journal_archive.write(tmp_path / "guard.db", io.BytesIO())
    assert not (tmp_path / "guard.db").exists()
