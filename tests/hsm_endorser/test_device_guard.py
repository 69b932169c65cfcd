import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from hsm_endorser import guard_file
from hsm_endorser.errors import GuardConflictError, GuardError
from hsm_endorser.guard import Guard
from hsm_endorser.guard_records import JournalEntry, VoteRecord
from protocol.canonical import KeyId
from protocol.endorsement import Vote, approval

TX = "ab" * 32
OTHER = "cd" * 32
KEY = KeyId("11" * 32)
END = 1000


def create(path: Path, **options) -> Guard:
    """A new guard in a folder."""
    return Guard.create(path / "guard.db", network="n", device="d", **options)


def reopen(guard: Guard) -> Guard:
    """The guard, closed and opened again."""
    guard.close()
    return Guard.open(guard.path, network="n", device="d")


def yes(tx: str = TX, node: str = "A") -> VoteRecord:
    """An approval to record."""
    return VoteRecord(approval("n", tx, node), END)


def no(tx: str = TX, node: str = "A", reason: str = "already-spent") -> VoteRecord:
    """A reject to record."""
    return VoteRecord(Vote(network="n", transaction=tx, node=node, verdict="reject", reason=reason), END)


def entry(purpose="head", digest: str = "22" * 32) -> JournalEntry:
    """A journal entry."""
    return JournalEntry(purpose, KEY, digest)


def filled(path: Path) -> Guard:
    """A guard with ten trees of votes, one header and a journal."""
    guard = create(path)
    for sequence in range(1, 11):
        votes = [yes(f"{sequence * 100 + index:064x}") for index in range(20)]
        guard.record(votes=votes, sequence=sequence, journal=[entry(digest=f"{sequence:064x}")])
    guard.record(header=(7, "77" * 32), journal=[entry("header")])
    return guard


@pytest.mark.requirement("K-10")
def test_a_repeat_returns_the_recorded_vote(tmp_path: Path) -> None:
    """What was recorded is found again, also after a restart; recording it again is no conflict."""
    guard = create(tmp_path)
    guard.record(votes=[no()], sequence=1)
    guard = reopen(guard)
    assert guard.recorded([("A", TX), ("B", TX), ("A", OTHER)]) == {("A", TX): no().vote}
    guard.record(votes=[no()], sequence=2)
    assert guard.sequence == 2
    guard.close()


@pytest.mark.requirement("K-10")
@pytest.mark.parametrize("second", [yes(), no(reason="unbalanced")])
def test_another_vote_is_a_conflict_and_nothing_of_the_batch_is_recorded(tmp_path: Path, second: VoteRecord) -> None:
    """A node has one word on a transaction; a batch that breaks this is not recorded at all."""
    guard = create(tmp_path)
    guard.record(votes=[no()], sequence=1)
    with pytest.raises(GuardConflictError, match="has voted reject already-spent"):
        guard.record(votes=[yes(OTHER), second], sequence=2, journal=[entry()])
    assert guard.recorded([("A", OTHER)]) == {}
    assert (guard.sequence, guard.verify_journal()) == (1, 0)
    guard.record(votes=[yes(OTHER)], sequence=2)
    reopen(guard).close()


@pytest.mark.requirement("K-10")
def test_two_words_in_one_batch_are_a_conflict(tmp_path: Path) -> None:
    """The conflict is seen within a batch, too."""
    guard = create(tmp_path)
    with pytest.raises(GuardConflictError):
        guard.record(votes=[yes(), no()], sequence=1)
    guard.close()


@pytest.mark.requirement("K-10", "M-6")
def test_one_header_for_a_height(tmp_path: Path) -> None:
    """The same header again is fine, another one for that height is refused for ever."""
    guard = create(tmp_path)
    guard.record(header=(5, "aa" * 32))
    guard = reopen(guard)
    guard.record(header=(5, "aa" * 32))
    with pytest.raises(GuardConflictError, match="for height 5 already"):
        guard.record(header=(5, "bb" * 32), journal=[entry("header")])
    assert guard.verify_journal() == 0
    guard.close()


@pytest.mark.parametrize("sequence", [0, 1, 3])
def test_sequences_have_no_gap_and_no_repeat(tmp_path: Path, sequence: int) -> None:
    """Each tree has the next number."""
    guard = create(tmp_path)
    guard.record(sequence=1)
    with pytest.raises(GuardConflictError, match="after tree 1"):
        guard.record(sequence=sequence)
    guard.close()


def test_votes_of_another_network_are_refused(tmp_path: Path) -> None:
    """A guard knows its own network alone."""
    guard = create(tmp_path)
    foreign = VoteRecord(approval("other", TX, "A"), END)
    with pytest.raises(GuardConflictError, match="network other"):
        guard.record(votes=[foreign], sequence=1)
    guard.close()


@pytest.mark.requirement("K-10")
def test_create_and_open_are_two_things(tmp_path: Path) -> None:
    """A missing guard is never made by opening it, and an existing one never replaced by creating it."""
    with pytest.raises(GuardError, match="could sign two different votes"):
        Guard.open(tmp_path / "guard.db", network="n", device="d")
    assert not (tmp_path / "guard.db").exists()
    create(tmp_path).close()
    with pytest.raises(GuardError, match="never replaced"):
        create(tmp_path)


@pytest.mark.parametrize(("network", "device"), [("other", "d"), ("n", "other")])
def test_another_devices_guard_is_not_opened(tmp_path: Path, network: str, device: str) -> None:
    """A guard belongs to one device on one network."""
    create(tmp_path).close()
    with pytest.raises(GuardError, match="correct `guard`"):
        Guard.open(tmp_path / "guard.db", network=network, device=device)


def test_a_guard_is_held_by_one_process(tmp_path: Path) -> None:
    """A second opening fails while the first lasts."""
    guard = create(tmp_path)
    with pytest.raises(GuardError, match="in use by another process"):
        Guard.open(guard.path, network="n", device="d")
    reopen(guard).close()


@pytest.mark.requirement("K-10")
def test_a_guard_behind_the_chain_signs_nothing(tmp_path: Path) -> None:
    """When the chain shows a later tree, an old copy was restored: nothing is recorded or looked up any more."""
    guard = create(tmp_path)
    guard.record(sequence=1)
    guard.require_not_behind(1)
    with pytest.raises(GuardError, match="an old copy was restored"):
        guard.require_not_behind(2)
    for act in (lambda: guard.record(sequence=2), lambda: guard.recorded([("A", TX)]), lambda: guard.forget(0)):
        with pytest.raises(GuardError, match="the chain shows tree 2"):
            act()
    assert "hsm-endorser guard order --device d" in guard.trouble
    guard.close()


@pytest.mark.requirement("K-10")
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_guard_is_refused(tmp_path: Path, share: float) -> None:
    """A file that lost its end is damaged, and the error says what to do."""
    guard = filled(tmp_path)
    guard.close()
    os.truncate(guard.path, int(guard.path.stat().st_size * share))
    with pytest.raises(GuardError, match="nothing is signed"):
        Guard.open(guard.path, network="n", device="d")


@pytest.mark.requirement("K-10")
@pytest.mark.parametrize(
    "content",
    [f"{505:064x}".encode(), b"approve", ("77" * 32).encode(), f"{9:064x}".encode(), b"header"],
    ids=["transaction of a vote", "verdict", "authentication data", "journal digest", "journal purpose"],
)
def test_a_flipped_bit_is_found(tmp_path: Path, content: bytes) -> None:
    """SQLite does not notice one bit in a value; the guard does, wherever it is."""
    guard = filled(tmp_path)
    guard.close()
    data = bytearray(guard.path.read_bytes())
    at = data.rfind(content)
    assert at > 0
    data[at + len(content) - 1] ^= 1
    guard.path.write_bytes(data)
    with pytest.raises(GuardError, match="is damaged"):
        Guard.open(guard.path, network="n", device="d")


@pytest.mark.requirement("K-10", "S-5")
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM votes WHERE tx = (SELECT min(tx) FROM votes)",
        "UPDATE votes SET verdict = 'reject', reason = 'x' WHERE tx = (SELECT min(tx) FROM votes)",
        "DELETE FROM headers",
        "DELETE FROM journal WHERE number = 3",
        "DELETE FROM journal WHERE number = (SELECT max(number) FROM journal)",
        "UPDATE journal SET purpose = 'statement' WHERE number = 2",
        "UPDATE state SET sequence = sequence - 1",
        "UPDATE state SET since = 5",
        "DELETE FROM state",
    ],
)
def test_an_edited_guard_is_refused(tmp_path: Path, statement: str) -> None:
    """What was deleted or changed by hand is found when the guard is opened."""
    guard = filled(tmp_path)
    guard.close()
    with sqlite3.connect(guard.path) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(GuardError, match="is damaged"):
        Guard.open(guard.path, network="n", device="d")


@pytest.mark.requirement("S-5")
def test_the_whole_journal_can_be_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change before the part that is checked at opening is found by the full check, at its entry."""
    monkeypatch.setattr(guard_file, "JOURNAL_CHECKED_AT_OPEN", 2)
    guard = filled(tmp_path)
    guard.close()
    with sqlite3.connect(guard.path) as connection:
        connection.execute("UPDATE journal SET digest = 'x' WHERE number = 4")
    connection.close()
    guard = Guard.open(guard.path, network="n", device="d")
    with pytest.raises(GuardError, match="journal entry 4 is missing or was changed"):
        guard.verify_journal()
    guard.close()


@pytest.mark.requirement("K-14")
def test_the_journal_lists_what_a_key_signed(tmp_path: Path) -> None:
    """Every signature is listed by key, purpose, digest, time and tree, in order."""
    guard = create(tmp_path)
    guard.record(sequence=1, journal=[entry(), JournalEntry("head", KeyId("33" * 32), "44" * 32)])
    guard.record(journal=[entry("challenge")])
    rows = guard.journal(key=KEY)
    assert [(row.number, row.entry.purpose, row.sequence) for row in rows] == [(1, "head", 1), (3, "challenge", 1)]
    assert [row.number for row in guard.journal(after=1)] == [2, 3]
    guard.close()


@pytest.mark.requirement("M-7")
def test_what_has_run_out_is_forgotten(tmp_path: Path) -> None:
    """Votes are dropped at the block time at which their transaction can be in no block any more."""
    guard = create(tmp_path)
    guard.record(votes=[yes(), VoteRecord(approval("n", OTHER, "A"), END + 1)], sequence=1)
    assert guard.forget(END - 1) == 0
    assert guard.forget(END) == 1
    assert set(guard.recorded([("A", TX), ("A", OTHER)])) == {("A", OTHER)}
    reopen(guard).close()


def test_a_reinitialised_guard_says_from_where_it_votes(tmp_path: Path) -> None:
    """The height is kept."""
    guard = reopen(create(tmp_path, since=42))
    assert guard.since == 42
    guard.close()


@pytest.mark.requirement("K-10")
def test_what_was_recorded_survives_sigkill(tmp_path: Path) -> None:
    """A process that is killed while it records loses nothing that `record` had returned for."""
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from hsm_endorser.guard import Guard\n"
        "from hsm_endorser.guard_records import VoteRecord\n"
        "from protocol.endorsement import approval\n"
        "guard = Guard.create(Path(sys.argv[1]), network='n', device='d')\n"
        "for number in range(1, 100000):\n"
        "    guard.record(votes=[VoteRecord(approval('n', f'{number:064x}', 'A'), 1)], sequence=number)\n"
        "    print(number, flush=True)\n"
    )
    path = tmp_path / "guard.db"
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    last = 0
    for line in process.stdout:
        last = int(line)
        if last == 50:
            process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    guard = Guard.open(path, network="n", device="d")
    assert guard.sequence >= last >= 50
    recorded = guard.recorded([("A", f"{number:064x}") for number in range(1, last + 1)])
    assert len(recorded) == last
    guard.close()


def test_a_full_disk_stops_the_guard(tmp_path: Path) -> None:
    """When a commit fails nobody knows whether it stands: the guard signs nothing until it is opened anew."""
    guard = create(tmp_path)
    guard._files.connection.execute("PRAGMA max_page_count = 12")
    votes = [yes(f"{index:064x}") for index in range(1000)]
    with pytest.raises(GuardError, match="cannot be written"):
        guard.record(votes=votes, sequence=1)
    with pytest.raises(GuardError, match="restart the device"):
        guard.record(sequence=1)
    guard = reopen(guard)
    assert (guard.sequence, guard.recorded([("A", votes[0].vote.transaction)])) == (0, {})
    guard.close()
