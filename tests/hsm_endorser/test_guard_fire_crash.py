"""The device is killed at its disk syncs, started again, and asked again and otherwise: it keeps its word (K-10)."""

import base64
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

from hsm_endorser import doors
from hsm_endorser.guard import Guard
from protocol import block as blocks
from protocol import canonical
from protocol.block import Block
from protocol.envelope import pae_digest
from protocol.keys import PublicKey
from protocol.messages import EndorseResponse, Signed
from tests.hsm_endorser.device_world import Enrolled, RunningDevice, World, device_config, request_body, running
from tests.hsm_endorser.guard_fire_program import CLOCK, Step
from tests.hsm_endorser.guard_fire_votes import Words, hear

ROOT = Path(__file__).resolve().parents[2]
TRANSACTIONS = 200
TOGETHER = 4
HEIGHTS = 5
"""So many blocks are applied on the way; before each, the device signs the header of its own next block."""
NODES = ("A", "E")
LABELS = {"A": "node/A", "E": "node/E"}
SAMPLE = (2, 20, 25, 47)

CALLS = "pwrite64,fsync,fdatasync"


class Fire:
    """A network whose device is to be killed: its plan, and what contradicts it."""

    def __init__(self, folder: Path, enrolled: Enrolled) -> None:
        self.world = World(folder, enrolled)
        self.folder = folder
        network, copy = self.world.network, self.world.copy
        self.wishes = [network.evidence(f"subject-{number}") for number in range(TRANSACTIONS)]
        rivals = [network.evidence(f"subject-{number}", "cd" * 32) for number in range(TRANSACTIONS)]
        self.planned: list[Block] = []
        self.contrary: list[Block] = []
        """By height: a block in the place of the planned one, which records every subject for a rival."""
        steps = []
        share = TRANSACTIONS // HEIGHTS
        for height in range(HEIGHTS):
            trees = network.endorse(rivals, by=("B", "C"), height=height)
            self.contrary.append(network.block(copy, rivals, trees))
            self.planned.append(network.block(copy, []))
            for start in range(height * share, (height + 1) * share, TOGETHER):
                some = self.wishes[start : start + TOGETHER]
                steps.append(Step("/v1/endorse", request_body([(wish, NODES) for wish in some])))
            steps.append(Step("/v1/sign-header", unsigned(self.planned[-1])))
            steps.append(Step("", self.planned[-1].encode()))
            copy.apply(self.planned[-1].encode())
        token = enrolled.token
        config = {
            "name": "device-a",
            "listen": ["unix:device.sock"],
            "chain": ["unix:management.sock"],
            "genesis": "genesis.json",
            "database": "chain.db",
            "guard": "guard.db",
            "token": {"uri": token.created.uri, "environment": dict(token.created.environment)},
        }
        (folder / "device.json").write_bytes(msgspec.json.encode(config))
        (folder / "plan.ndjson").write_bytes(b"\n".join(map(msgspec.json.encode, steps)))

    def copy(self, folder: Path) -> Path:
        """The device as it was in the beginning."""
        shutil.copytree(self.folder, folder)
        return folder

    @property
    def keys(self) -> dict[str, PublicKey]:
        """The public keys of the nodes."""
        return {node: self.world.keys[label] for node, label in LABELS.items()}


def unsigned(block: Block) -> bytes:
    """The block as a device is asked to sign it."""
    return block.signed(msgspec.structs.replace(block.envelope, signatures=())).encode()


@pytest.fixture(scope="module")
def fire(tmp_path_factory: pytest.TempPathFactory, enrolled: Enrolled) -> Fire:
    """The network, built once; every crash works on a copy."""
    return Fire(tmp_path_factory.mktemp("fire"), enrolled)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain of the tests lies in the future."""
    monkeypatch.setattr(doors, "clock", lambda: CLOCK)


class Told:
    """What a killed device had said: signatures of its token, words and headers that left it."""

    def __init__(self, fire: Fire, output: bytes) -> None:
        self.signed: list[tuple[str, str]] = []
        self.words: Words = defaultdict(set)
        self.headers: dict[int, set[str]] = defaultdict(set)
        self.done = False
        for line in output.splitlines(keepends=True):
            words = line.decode().split()
            assert line.endswith(b"\n"), "a line is said in one write"
            if words[0] == "signed":
                self.signed.append((words[1], words[2]))
            elif words[0] == "answer":
                assert words[2] == "200", base64.b64decode(words[3])
                self._hear(fire, int(words[1]), base64.b64decode(words[3]))
            else:
                self.done = True

    def _hear(self, fire: Fire, number: int, answer: bytes) -> None:
        step = msgspec.json.decode((fire.folder / "plan.ndjson").read_bytes().splitlines()[number], type=Step)
        if step.path == "/v1/endorse":
            hear(fire.world.keys, self.words, canonical.decode(answer, msgspec.json.Decoder(EndorseResponse)))
        else:
            block = Block.decode(step.body)
            signature = msgspec.json.decode(answer, type=Signed).signature
            assert signature.keyid == fire.world.keys["center/center-1"].id
            self.headers[block.header.height].add(block.authentication)


def run(folder: Path, kill_at: int | None) -> tuple[int, bytes]:
    """Let the device work, until a thread of it begins its sync number `kill_at`; its exit code and what it said.

    What was written to a write-ahead log and not yet synced is lost then, as when the power fails: a killed process
    alone would lose nothing that the kernel has taken.
    """
    program = [sys.executable, "-m", "tests.hsm_endorser.guard_fire_program", str(folder)]
    log = folder / "strace.log"
    inject = f"inject=fsync,fdatasync:signal=SIGKILL:when={kill_at}"
    strace = ["strace", "-f", "-qq", "-y", "-s", "0", "-o", str(log), "-e", f"trace={CALLS}", "-e", inject]
    ended = subprocess.run(
        [*(strace if kill_at else ()), *program], cwd=ROOT, capture_output=True, timeout=60, check=False
    )
    assert b"Traceback" not in ended.stderr, ended.stderr.decode()
    if ended.returncode != 0:
        for path, ranges in unsynced(log.read_text()).items():
            with Path(path).open("r+b") as file:
                for start, length in ranges:
                    file.seek(start)
                    file.write(bytes(length))
    return ended.returncode, ended.stdout


def unsynced(log: str) -> dict[str, list[tuple[int, int]]]:
    """The parts of each write-ahead log that were written (offset, length) and not synced, from a trace of calls."""
    written: dict[str, list[tuple[int, int]]] = defaultdict(list)
    syncing: dict[str, str] = {}
    for line in log.splitlines():
        if write := re.search(r"pwrite64\(\d+<([^>]+-wal)>, .*, (\d+), (\d+)", line):
            written[write[1]].append((int(write[3]), int(write[2])))
        elif sync := re.search(r"^(\d+) +fd?a?t?a?sync\(\d+<([^>]+)>", line):
            syncing[sync[1]] = sync[2]
        if re.search(r"sync.*\) += 0$", line):
            written.pop(syncing.pop(line.split()[0]), None)
    return written


async def crash(fire: Fire, folder: Path, kill_at: int) -> bool:
    """Kill the device at one of its syncs, and hold everything that it ever signed together; false when it lived."""
    code, output = run(fire.copy(folder), kill_at)
    told = Told(fire, output)
    assert (code == 0) == told.done
    assert code in {0, -9, 137}
    async with running(device_config(folder, fire.world.enrolled.token)) as device:
        before = {tx for _key, tx in told.words}
        words = await ask_again(fire, device, told)
        assert {tx for _key, tx in words} == {wish.id for wish in fire.wishes}
        for (key, tx), said in words.items():
            assert len(said) == 1, f"key {key} has signed {said} on {tx}"
        assert all(words[key.id, tx] == {("approve", "")} for key in fire.keys.values() for tx in before)
        journal = device.parts.guard.journal(limit=100_000)
        assert set(told.signed) <= {(row.entry.key, row.entry.digest) for row in journal}
        assert device.parts.guard.verify_journal() == len(journal)
    Guard.open(folder / "guard.db", network="test", device="device-a").close()
    return not told.done


async def ask_again(fire: Fire, device: RunningDevice, told: Told) -> Words:
    """Ask the restarted device for the same and for the contrary; all words, those before the crash among them."""
    height = device.parts.chain.height
    words = told.words
    hear(fire.world.keys, words, await device.endorse(*[(wish, NODES) for wish in fire.wishes[: TRANSACTIONS // 2]]))
    if height < HEIGHTS:
        headers = told.headers[height + 1]
        signed_inside = {digest for _key, digest in told.signed}
        for block in (fire.contrary[height], fire.planned[height], fire.contrary[height]):
            if pae_digest(blocks.PAYLOAD_TYPE, block.envelope.payload) in signed_inside:
                headers.add(block.authentication)
            answer = await device.http.post("/v1/sign-header", content=unsigned(block))
            if answer.status_code == 200:
                headers.add(block.authentication)
            else:
                assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (409, "guard-conflict")
        assert len(headers) == 1, "one of the two headers is signed, and only that one"
        await device.apply(fire.contrary[height].encode())
    hear(fire.world.keys, words, await device.endorse(*[(wish, NODES) for wish in fire.wishes]))
    return words


@pytest.mark.requirement("K-10")
@pytest.mark.parametrize("kill_at", SAMPLE)
async def test_a_device_killed_at_a_sync_keeps_its_word(fire: Fire, tmp_path: Path, kill_at: int) -> None:
    """After SIGKILL at a sync, no key gives a second word on a transaction, and no height gets a second header."""
    assert await crash(fire, tmp_path / "device", kill_at)


@pytest.mark.slow
@pytest.mark.requirement("K-10")
@pytest.mark.timeout(3600)
async def test_a_device_killed_at_every_sync_keeps_its_word(fire: Fire, tmp_path: Path) -> None:
    """The same for every sync of a run of 200 transactions, until the run ends without reaching that many."""
    kill_at = 1
    while await crash(fire, tmp_path / "device", kill_at):
        shutil.rmtree(tmp_path / "device")
        kill_at += 1
    assert kill_at > max(SAMPLE)
    print(f"killed at each of {kill_at - 1} syncs")  # noqa: T201  the figure of a run that takes minutes


def test_the_run_without_a_kill_is_whole(fire: Fire, tmp_path: Path) -> None:
    """What the crashes interrupt: every transaction approved by both nodes, every header signed once."""
    code, output = run(fire.copy(tmp_path / "device"), None)
    told = Told(fire, output)
    assert (code, told.done) == (0, True)
    assert dict(told.words) == {
        (key.id, wish.id): {("approve", "")} for key in fire.keys.values() for wish in fire.wishes
    }
    assert {height: len(headers) for height, headers in told.headers.items()} == dict.fromkeys(range(1, HEIGHTS + 1), 1)
