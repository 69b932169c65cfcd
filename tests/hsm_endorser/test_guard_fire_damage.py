"""A guard that is missing, damaged, read-only, full or old: nothing is signed, and all are told what to do (K-10)."""

import base64
import contextlib
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from hsm_endorser.config import Config
from hsm_endorser.errors import GuardDamagedError, GuardError
from hsm_endorser.guard import Guard
from hsm_endorser.guard_records import JournalEntry, VoteRecord
from protocol import block as blocks
from protocol.block import Block
from protocol.canonical import KeyId
from protocol.endorsement import approval
from protocol.envelope import Envelope
from protocol.messages import EndorseResponse, Signed
from tests.hsm_endorser.device_world import RunningDevice, World, request_body, running
from tests.hsm_endorser.guard_fire_program import CLOCK, Step

ROOT = Path(__file__).resolve().parents[2]
PAGE = 4096
FRAME = 24 + PAGE
ORDER = "hsm-endorser guard order --device d"
KEY = KeyId("11" * 32)
VOTES = [(f"{number:064x}", node) for number in range(400) for node in ("A", "B")]
SUFFIXES = ("", "-wal", "-shm", ".mark")


def used_guard(folder: Path) -> Guard:
    """A guard with many pages of everything."""
    guard = Guard.create(folder / "guard.db", network="n", device="d")
    for sequence in range(1, 41):
        some = VOTES[(sequence - 1) * 20 : sequence * 20]
        votes = [VoteRecord(approval("n", tx, node), 1000) for tx, node in some]
        entries = [JournalEntry("head", KEY, f"{sequence * 10 + index:064x}") for index in range(8)]
        guard.record(votes=votes, sequence=sequence, journal=entries, header=(sequence, f"{sequence:064x}"))
    return guard


def reopened(folder: Path) -> Guard:
    """The guard of a folder."""
    return Guard.open(folder / "guard.db", network="n", device="d")


def content(guard: Guard) -> tuple[object, ...]:
    """All that a guard knows."""
    headers = guard._files.connection.execute("SELECT * FROM headers").fetchall()
    keys = [(node, tx) for tx, node in VOTES]
    return guard.recorded(keys), guard.journal(limit=100_000), headers, guard.sequence, guard.since


def copied(source: Path, target: Path) -> Path:
    """The files of a guard as they are at this moment, in another folder."""
    target.mkdir()
    for suffix in SUFFIXES:
        if (file := source / f"guard.db{suffix}").exists() and suffix != "-shm":
            shutil.copy(file, target)
    return target


def is_refused(folder: Path, whole: tuple[object, ...]) -> bool:
    """Whether the guard is refused with the advice; one that opens must know everything that it knew."""
    reason = ""
    try:
        guard = reopened(folder)
    except GuardDamagedError as error:
        reason = str(error)
    if reason:
        assert "nothing is signed" in reason
        assert ORDER in reason
        return True
    assert content(guard) == whole
    guard.close()
    return False


@pytest.mark.requirement("K-10")
def test_a_flipped_bit_in_any_page_is_refused_or_harmless(tmp_path: Path) -> None:
    """Bits in every page of the file: whatever opens knows all that was recorded; everything else is refused."""
    guard = used_guard(tmp_path)
    whole = content(guard)
    guard.close()
    data = (tmp_path / "guard.db").read_bytes()
    pages = len(data) // PAGE
    chance = random.Random(7)  # noqa: S311  the same bits in every run
    refused = 0
    for page in range(pages):
        for _ in range(3):
            at, bit = page * PAGE + chance.randrange(PAGE), chance.randrange(8)
            (tmp_path / "guard.db").write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            refused += is_refused(tmp_path, whole)
            for suffix in ("-wal", "-shm"):
                (tmp_path / f"guard.db{suffix}").unlink(missing_ok=True)
    assert pages > 40
    assert refused > pages  # the rest is room that holds nothing


@pytest.mark.requirement("K-10")
def test_a_flipped_bit_in_the_write_ahead_log_is_refused(tmp_path: Path) -> None:
    """SQLite forgets without a word what stands after a damaged frame; the mark tells that it was there."""
    (tmp_path / "live").mkdir()
    guard = used_guard(tmp_path / "live")
    whole = content(guard)
    crashed = copied(tmp_path / "live", tmp_path / "crashed")
    guard.close()
    log = (crashed / "guard.db-wal").read_bytes()
    frames = (len(log) - 32) // FRAME
    assert frames > 40
    for frame in {*range(0, frames, frames // 24), frames - 1}:
        again = copied(crashed, tmp_path / f"frame-{frame}")
        at = 32 + frame * FRAME + 2000
        (again / "guard.db-wal").write_bytes(log[:at] + bytes([log[at] ^ 4]) + log[at + 1 :])
        assert is_refused(again, whole), f"frame {frame}"
    assert not is_refused(crashed, whole)


@pytest.mark.requirement("K-10")
@pytest.mark.parametrize("file", ["guard.db-wal", "guard.db.mark"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
def test_what_was_cut_off_is_refused(tmp_path: Path, file: str, share: float) -> None:
    """A write-ahead log or a mark that lost its end."""
    (tmp_path / "live").mkdir()
    guard = used_guard(tmp_path / "live")
    whole = content(guard)
    crashed = copied(tmp_path / "live", tmp_path / "crashed")
    guard.close()
    os.truncate(crashed / file, int((crashed / file).stat().st_size * share))
    assert is_refused(crashed, whole)


@pytest.mark.requirement("K-10")
@pytest.mark.parametrize("file", ["guard.db", "guard.db-wal", "guard.db.mark"])
def test_what_is_missing_is_refused(tmp_path: Path, file: str) -> None:
    """Any file of a guard that was in use."""
    (tmp_path / "live").mkdir()
    guard = used_guard(tmp_path / "live")
    crashed = copied(tmp_path / "live", tmp_path / "crashed")
    guard.close()
    (crashed / file).unlink()
    with pytest.raises(GuardDamagedError, match=ORDER):
        reopened(crashed)


@pytest.mark.requirement("K-10")
def test_an_old_copy_of_the_file_alone_is_refused(tmp_path: Path) -> None:
    """Put back in the place of the newer one, it is behind the mark, before the chain shows anything."""
    guard = used_guard(tmp_path)
    guard.close()
    shutil.copy(tmp_path / "guard.db", tmp_path / "backup")
    guard = reopened(tmp_path)
    guard.record(votes=[VoteRecord(approval("n", "ab" * 32, "A"), 1)], sequence=41)
    guard.close()
    shutil.copy(tmp_path / "backup", tmp_path / "guard.db")
    with pytest.raises(GuardDamagedError, match=r"it ends at tree 40 .* and has been at tree 41"):
        reopened(tmp_path)


# --- the whole device -----------------------------------------------------------------------------------------


async def is_silent(device: RunningDevice, world: World, reason: str) -> None:
    """Check that a device signs nothing for any purpose, and that all its answers say why and what to do."""
    block = world.network.block(world.copy, [])
    body = block.signed(msgspec.structs.replace(block.envelope, signatures=())).encode()
    endorsed = await device.endorse((world.network.evidence("x"), ["A"]))
    status = (await device.http.get("/v1/status")).json()
    ready = await device.http.get("/health/ready")
    header = await device.http.post("/v1/sign-header", content=body)
    identity = await device.http.get("/v1/identity?nonce=" + "ab" * 16)
    assert endorsed.trees == ()
    assert endorsed.answers[0].failure.code == "guard-failed"
    assert (ready.status_code, status["ready"]) == (503, False)
    assert (header.status_code, header.json()["type"]) == (503, "urn:hsm-endorser:problem:guard-failed")
    assert identity.status_code == 503
    for text in (
        endorsed.answers[0].failure.detail,
        status["reason"],
        ready.json()["checks"]["guard"],
        header.json()["detail"],
    ):
        assert reason in text
        assert "nothing is signed" in text.lower()
        assert "hsm-endorser guard order --device device-a" in text


def missing(guard: Path) -> None:
    """The file is gone."""
    guard.unlink()


def truncated(guard: Path) -> None:
    """The file lost its end."""
    os.truncate(guard, guard.stat().st_size // 2)


def flipped(guard: Path) -> None:
    """One bit of the state is another."""
    data = bytearray(guard.read_bytes())
    data[data.rfind(b"device-a")] ^= 1
    guard.write_bytes(data)


def unmarked(guard: Path) -> None:
    """The mark is gone."""
    Path(f"{guard}.mark").unlink()


@pytest.mark.requirement("K-10")
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (missing, "there is no guard"),
        (truncated, "is damaged"),
        (flipped, "does not match its checksum"),
        (unmarked, "its mark guard.db.mark is missing"),
    ],
)
async def test_a_device_without_a_whole_guard_starts_and_signs_nothing(
    world: World, damage: Callable[[Path], None], reason: str
) -> None:
    """Not even the challenge by which it would show that its token is there; it says why wherever it is asked."""
    damage(world.config.guard)
    async with running(world.config) as device:
        await is_silent(device, world, reason)
        assert device.signatures() == 0
        await device.apply(world.block([]))
        assert device.parts.chain.height == 1  # it follows the chain all the same


@pytest.mark.requirement("K-10")
async def test_a_guard_in_use_ends_the_start(world: World) -> None:
    """A second device over the same guard does not start at all."""
    async with running(world.config):
        with pytest.raises(GuardError, match="in use by another process; stop that device first"):
            async with running(world.config):
                pass


@contextlib.contextmanager
def nearly_full(folder: Path) -> Iterator[Callable[[], None]]:
    """A folder with room for less than 1 MiB, and the function that makes room in it."""
    folder.mkdir()
    size = ["-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if subprocess.run(["mount", *size], check=False, capture_output=True).returncode == 0:  # noqa: S607
        try:
            (folder / "filler").write_bytes(bytes(700 << 10))
            yield (folder / "filler").unlink
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)  # noqa: S607
    else:  # without the right to mount: no file may grow
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300 << 10, before[1]))
        try:
            yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.requirement("K-10")
async def test_a_full_disk_stops_the_device(world: World, tmp_path: Path) -> None:
    """Nothing is signed that could not be recorded; with room again and a restart, it keeps all its words."""
    with nearly_full(tmp_path / "small") as make_room:
        config = world.config.model_copy(update={"guard": tmp_path / "small" / "guard.db"})
        Guard.create(config.guard, network="test", device="device-a").close()
        said: list[str] = []
        async with running(config) as device:
            failure = None
            while failure is None:
                wishes = [world.network.evidence(f"subject-{len(said) + index}") for index in range(50)]
                before = device.signatures()
                response = await device.endorse(*[(wish, ["A"]) for wish in wishes])
                failure = response.answers[0].failure
                said += [vote.transaction for answer in response.answers for vote in answer.votes]
                assert (failure is None) == (device.signatures() > before)
            assert failure.code == "guard-failed"
            assert "cannot be written" in failure.detail
            assert "Make room on its disk" in failure.detail
            ready = await device.http.get("/health/ready")
            assert (ready.status_code, "cannot be written" in ready.json()["checks"]["guard"]) == (503, True)
        make_room()
        async with running(config) as device:
            assert set(device.parts.guard.recorded([("A", tx) for tx in said])) == {("A", tx) for tx in said}
            response = await device.endorse((wishes[-1], ["A"]))
            assert [vote.verdict for vote in response.answers[0].votes] == ["approve"]
    assert said


def bounded(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    """Python in a process of its own; the superuser writes wherever it likes, unless it gives that up."""
    rights = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--"] if os.geteuid() == 0 else []
    return subprocess.run([*rights, sys.executable, *arguments], cwd=ROOT, capture_output=True, timeout=60, check=False)


def run_in_child(world: World, guard: Path, steps: list[Step]) -> list[tuple[int, bytes]]:
    """The answers of a device in a process of its own, which may write only what the modes of files allow."""
    token = world.enrolled.token
    settings = {
        "name": "device-a",
        "listen": ["unix:device.sock"],
        "chain": ["unix:management.sock"],
        "genesis": "genesis.json",
        "database": "chain.db",
        "guard": str(guard),
        "token": {"uri": token.created.uri, "environment": dict(token.created.environment)},
    }
    (world.folder / "device.json").write_bytes(msgspec.json.encode(settings))
    (world.folder / "plan.ndjson").write_bytes(b"\n".join(map(msgspec.json.encode, steps)))
    ended = bounded("-m", "tests.hsm_endorser.guard_fire_program", str(world.folder))
    assert ended.returncode == 0, ended.stderr.decode()
    lines = [line.split() for line in ended.stdout.splitlines()]
    assert [line for line in lines if line[0] == b"signed"] == []
    return [(int(line[2]), base64.b64decode(line[3])) for line in lines if line[0] == b"answer"]


def test_a_guard_that_cannot_be_written_does_not_open(tmp_path: Path) -> None:
    """That is found out by opening it, before anybody asks for a signature."""
    used_guard(tmp_path).close()
    (tmp_path / "guard.db").chmod(0o400)
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from hsm_endorser.guard import Guard\n"
        "Guard.open(Path(sys.argv[1]), network='n', device='d')\n"
    )
    ended = bounded("-c", program, str(tmp_path / "guard.db"))
    assert ended.returncode == 1
    assert b"GuardDamagedError" in ended.stderr
    assert b"cannot be written (attempt to write a readonly database): nothing is signed" in ended.stderr


@pytest.mark.requirement("K-10")
@pytest.mark.parametrize("what", ["file", "folder"])
async def test_a_read_only_guard_signs_nothing(world: World, what: str) -> None:
    """The file, or the folder in which its log would stand: no signature, and what to do."""
    guard = world.folder / "kept" / "guard.db"
    guard.parent.mkdir()
    Guard.create(guard, network="test", device="device-a").close()
    if what == "file":
        guard.chmod(0o400)
    else:
        guard.parent.chmod(0o500)
    body = request_body([(world.network.evidence("x"), ["A"])])
    steps = [Step("GET /v1/status", b""), Step("/v1/endorse", body), Step("GET /health/ready", b"")]
    (_, status), (_, endorsed), (ready_code, ready) = run_in_child(world, guard, steps)
    guard.parent.chmod(0o700)
    assert msgspec.json.decode(status)["ready"] is False
    assert ready_code == 503
    (answer,) = msgspec.json.decode(endorsed, type=EndorseResponse).answers
    assert answer.failure.code == "guard-failed"
    for text in (answer.failure.detail, msgspec.json.decode(status)["reason"], ready.decode()):
        assert "nothing is signed" in text
        assert "device's user write" in text


# --- an old backup --------------------------------------------------------------------------------------------


def back_up(config: Config, folder: Path) -> None:
    """Copy all files of a stopped device's guard."""
    folder.mkdir()
    for suffix in SUFFIXES:
        if (file := Path(f"{config.guard}{suffix}")).exists():
            shutil.copy(file, folder)


def restore(config: Config, folder: Path) -> None:
    """Put the copy back, whole."""
    for suffix in SUFFIXES:
        Path(f"{config.guard}{suffix}").unlink(missing_ok=True)
    for file in folder.iterdir():
        shutil.copy(file, config.guard.parent)


@pytest.mark.requirement("K-10")
async def test_a_backup_behind_the_trees_on_the_chain_signs_nothing(world: World, tmp_path: Path) -> None:
    """All files restored, mark and all: the chain shows a later tree of this device."""
    async with running(world.config) as device:
        await device.endorse((world.network.evidence("before"), ["A"]))
    back_up(world.config, tmp_path / "backup")
    wish = world.network.evidence("after")
    async with running(world.config) as device:
        response = await device.endorse((wish, ["A"]))
        tree = response.trees[0].for_block({vote.leaf().hex(): 0 for vote in response.answers[0].votes})
        trees = [tree, *world.network.endorse([wish], by=("B",))]
        await device.apply(world.network.block(world.copy, [wish], trees).encode())
    restore(world.config, tmp_path / "backup")
    world.copy.apply(world.network.block(world.copy, [wish], trees).encode())
    async with running(world.config) as device:
        await is_silent(device, world, "knows tree 1 as the last, the chain shows tree 2")


@pytest.mark.requirement("K-10", "M-6")
@pytest.mark.parametrize("seen", ["at the start", "in a later block"])
async def test_a_backup_behind_the_headers_on_the_chain_signs_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    """A device that signs for a center and votes for nobody is found out by the headers that it signed."""
    monkeypatch.setattr("hsm_endorser.doors.clock", lambda: CLOCK)
    back_up(world.config, tmp_path / "backup")
    async with running(world.config) as device:
        block = world.network.block(world.copy, [])
        body = block.signed(msgspec.structs.replace(block.envelope, signatures=())).encode()
        answer = await device.http.post("/v1/sign-header", content=body)
        signature = msgspec.json.decode(answer.content, type=Signed).signature
        own: Block = block.signed(Envelope(block.envelope.payload, blocks.PAYLOAD_TYPE, (signature,)))
        if seen == "at the start":
            await device.apply(own.encode())
    restore(world.config, tmp_path / "backup")
    world.copy.apply(own.encode())
    async with running(world.config) as device:
        if seen == "in a later block":
            assert device.parts.guard.trouble == ""
            await device.apply(own.encode())
        await is_silent(device, world, f"knows no header for height 1, the chain shows {own.authentication[:16]}…")
