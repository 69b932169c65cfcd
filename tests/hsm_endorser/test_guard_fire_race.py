"""Who asks at the same time for different words gets one (K-10): requests, connections, processes."""

import asyncio
import multiprocessing
import os
import random
import sqlite3
import subprocess
import sys
from collections import defaultdict
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from hsm_endorser import guard_file
from hsm_endorser.errors import GuardConflictError, GuardError, GuardInUseError
from hsm_endorser.guard import Guard
from hsm_endorser.guard_records import VoteRecord
from protocol.endorsement import Vote, approval
from tests.hsm_endorser.device_world import RunningDevice, World
from tests.hsm_endorser.guard_fire_votes import Words, hear

ROOT = Path(__file__).resolve().parents[2]
PAIRS = 500


@pytest.mark.requirement("K-10")
async def test_requests_that_race_with_a_block_get_one_word(world: World, device: RunningDevice) -> None:
    """500 transactions, each asked for twice while a block takes away what half of the requests still see."""
    wishes = [world.network.evidence(f"subject-{number}") for number in range(PAIRS)]
    rivals = [world.network.evidence(f"subject-{number}", "cd" * 32) for number in range(PAIRS)]
    block = world.block(rivals)
    asked = [(wish, nodes) for wish in wishes for nodes in (["A"], ["A", "E"])]
    random.Random(3).shuffle(asked)  # noqa: S311  the same order in every run
    words: Words = defaultdict(set)

    async def ask(start: int) -> None:
        await asyncio.sleep(start / 5000)
        hear(world.keys, words, await device.endorse(*asked[start : start + 20]))

    await ask(0)  # some are answered before the block, whatever else this machine does
    async with asyncio.TaskGroup() as group:
        for start in range(20, len(asked), 20):
            group.create_task(ask(start))
        await asyncio.sleep(0.05)
        group.create_task(device.apply(block))
    hear(world.keys, words, await device.endorse(*asked))
    assert len(words) == 2 * PAIRS
    assert {word for said in words.values() for word in said} == {("approve", ""), ("reject", "already-recorded")}
    assert [said for said in words.values() if len(said) != 1] == []


def records(number: int) -> tuple[VoteRecord, VoteRecord]:
    """Two words on one transaction."""
    tx = f"{number:064x}"
    no = Vote(network="n", transaction=tx, node="A", verdict="reject", reason="already-spent")
    return VoteRecord(approval("n", tx, "A"), 1000), VoteRecord(no, 1000)


@pytest.mark.requirement("K-10")
def test_one_process_holds_a_guard_by_whatever_name(tmp_path: Path) -> None:
    """A link to the file is the same guard: the lock is on the file, too."""
    guard = Guard.create(tmp_path / "guard.db", network="n", device="d")
    (tmp_path / "soft.db").symlink_to(tmp_path / "guard.db")
    (tmp_path / "hard.db").hardlink_to(tmp_path / "guard.db")
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from hsm_endorser.guard import Guard\n"
        "Guard.open(Path(sys.argv[1]), network='n', device='d')\n"
    )
    for name in ("guard.db", "soft.db", "hard.db"):
        with pytest.raises(GuardInUseError, match="stop that device first"):
            Guard.open(tmp_path / name, network="n", device="d")
        other = [sys.executable, "-c", program, str(tmp_path / name)]
        ended = subprocess.run(other, cwd=ROOT, capture_output=True, text=True, check=False, timeout=30)
        assert ended.returncode == 1
        assert "is in use by another process" in ended.stderr
    guard.close()


def _race(path: Path, which: int, pipe: Connection) -> None:
    """One of two processes that have gone round the lock: it takes one side of every pair, then tells which it got."""
    guard_file.lock = lambda _path: os.open("/dev/null", os.O_RDONLY)
    guard_file.lock_file = lambda _path: os.open("/dev/null", os.O_RDONLY)
    guard = Guard.open(path, network="n", device="d")
    pipe.send("ready")
    pipe.recv()
    got, stopped = [], ""
    for number in range(PAIRS):
        try:
            guard.record(votes=[records(number)[which]], sequence=guard.sequence + 1)
        except GuardConflictError:
            continue
        except GuardError as error:
            stopped = str(error)
            break
        got.append(number)
    pipe.send((got, stopped))


@pytest.mark.requirement("K-10")
def test_processes_that_go_round_the_lock_stop_each_other(tmp_path: Path) -> None:
    """500 pairs, two processes on one file: no pair gets two words, and whoever meets the other's traces stops."""
    Guard.create(tmp_path / "guard.db", network="n", device="d").close()
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for which in (0, 1):
        ours, theirs = context.Pipe()
        process = context.Process(target=_race, args=(tmp_path / "guard.db", which, theirs))
        process.start()
        pipes.append(ours)
        processes.append(process)
    assert [pipe.recv() for pipe in pipes] == ["ready", "ready"]
    for pipe in pipes:
        pipe.send("go")
    (yes, why_not), (no, why_no) = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join(10)
        assert process.exitcode == 0
    assert set(yes) & set(no) == set()
    assert 1 <= len(yes) + len(no) <= PAIRS
    assert any("was written by another process" in why for why in (why_not, why_no))


@pytest.mark.requirement("K-10")
def test_the_tables_themselves_take_one_word(tmp_path: Path) -> None:
    """Below the guard's own comparison, the unique keys of the file decide: 500 votes and headers, two connections."""
    guard = Guard.create(tmp_path / "guard.db", network="n", device="d")
    guard.close()
    first, second = (sqlite3.connect(tmp_path / "guard.db", isolation_level=None) for _ in range(2))
    for number in range(PAIRS):
        winner, loser = (first, second) if number % 2 else (second, first)
        winner.execute("INSERT INTO votes VALUES ('n', 'A', ?, 'approve', '', 1)", (f"{number:064x}",))
        winner.execute("INSERT INTO headers VALUES ('n', ?, 'aa')", (number,))
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE constraint failed: votes"):
            loser.execute("INSERT INTO votes VALUES ('n', 'A', ?, 'reject', 'x', 1)", (f"{number:064x}",))
        with pytest.raises(sqlite3.IntegrityError, match="UNIQUE constraint failed: headers"):
            loser.execute("INSERT INTO headers VALUES ('n', ?, 'bb')", (number,))
    first.close()
    second.close()
