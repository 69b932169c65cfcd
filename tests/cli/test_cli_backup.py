"""Backups of a running network: nothing secret in them, nothing tampered with restored, and no old guard that signs."""

import io
import json
import sqlite3
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.backup_archive import MANIFEST
from cli.main import main
from cli.network import services
from cli.plan import Layout, read_network
from cli.supervisor import Supervisor
from hsm_endorser.errors import GuardDamagedError
from hsm_endorser.guard import Guard
from protocol import canonical
from tests.cli.conftest import Result
from tests.flow.running_network import RunningNetwork

Run = Callable[..., Result]

pytestmark = pytest.mark.requirement("K-10")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNetwork]:
    """A running network of two devices, both of which must endorse, with a client and a few blocks."""
    folder = tmp_path_factory.mktemp("backup") / "net"
    given = ["--node", "A", "--node", "B", "--peers", "1", "--policy", "evidence=AND('A','B')"]
    assert main(["network", "init", str(folder), *given, "--json"]) == 0
    settings = folder / "management" / "management.toml"
    settings.write_text("endorsement_ms = 3000\n" + settings.read_text())  # refusals need not keep the tests waiting
    with Supervisor(folder, services(folder, read_network(folder)), print) as supervisor:
        supervisor.wait_ready(60)
        assert main(["client", "register", "alice", "--network", str(folder), "--json"]) == 0
        running = RunningNetwork(Layout(folder), supervisor)
        commit(running, "before-the-backup")
        yield running


@pytest.fixture(scope="module")
def saved(network: RunningNetwork) -> Path:
    """A backup that was taken while the network ran."""
    path = network.layout.folder.parent / "saved.tar"
    assert main(["backup", "create", "--network", str(network.layout.folder), "--output", str(path), "--json"]) == 0
    return path


def commit(network: RunningNetwork, subject: str, **options: int) -> Any:
    """Hand in one record that both devices must endorse, and see how it ends."""
    transaction = network.evidence(subject, **options)
    with network.management() as management:
        management.submit(transaction.raw)
    return network.ended(transaction.id)


def members(archive: Path) -> dict[str, bytes]:
    """Every file of an archive."""
    with tarfile.open(archive) as tar:
        found = {}
        for each in tar:
            data = tar.extractfile(each)
            assert data is not None
            found[each.name] = data.read()
        return found


def test_nothing_secret_is_saved(network: RunningNetwork, saved: Path) -> None:
    """Not one PIN, SO PIN, private key or object of a token, in any file, nor their names."""
    folder = network.layout.folder
    files = [*folder.glob("devices/*/pin"), *folder.glob("devices/*/so-pin")]
    secrets = [path.read_bytes().strip() for path in files]
    secrets += [path.read_bytes() for path in folder.rglob("*.object")]
    for key in folder.rglob("*.key"):
        secrets += [line for line in key.read_bytes().splitlines() if not line.startswith(b"-----")]
    assert len(secrets) > 20
    archive = saved.read_bytes()
    assert [secret for secret in secrets if secret in archive] == []
    names = members(saved)
    assert not [name for name in names if "pin" in Path(name).name or name.endswith(".key") or "tokens" in name]
    assert {"genesis.json", "devices/device-a/guard.db", "management/chain.db", "clients/alice.crt"} <= names.keys()


def test_a_folder_with_a_key_under_another_name_is_not_saved(run: Run, built: tuple[Path, Any], tmp_path: Path) -> None:
    """A private key in a file that would be saved stops the backup, and leaves no archive."""
    folder, output = built[0], tmp_path / "out.tar"
    (folder / "clients").mkdir()
    (folder / "clients/eve.crt").write_text("-----BEGIN PRIVATE KEY-----\nMIGH\n")
    result = run("backup", "create", "--network", folder, "--output", output, "--json")
    assert "holds a private key" in result.document["error"]["reason"]
    assert not output.exists()
    assert not list(tmp_path.glob(".backup-*"))


def test_a_backup_says_how_far_everything_was(network: RunningNetwork, saved: Path) -> None:
    """Heights of chains and marks of guards stand in the manifest, with the SHA-256 of every file."""
    manifest = json.loads(members(saved)[MANIFEST])
    assert manifest["network"] == network.name
    assert manifest["heights"]["management/chain.db"] >= 1
    (first, second) = manifest["guards"]
    assert (first["device"], second["device"]) == ("device-a", "device-b")
    assert first["tree"] >= 1
    assert len(manifest["files"]) == len(members(saved)) - 1


def test_a_backup_is_never_overwritten_nor_restored_over_a_folder(
    run: Run, network: RunningNetwork, saved: Path
) -> None:
    """Both commands refuse what is there, and leave it as it is."""
    before = saved.read_bytes()
    folder = network.layout.folder
    again = run("backup", "create", "--network", folder, "--output", saved, "--json")
    over = run("backup", "restore", saved, "--into", folder, "--json")
    assert (again.code, over.code, saved.read_bytes()) == (2, 2, before)
    assert "never overwrites" in over.document["error"]["advice"]


# ---- tampering


def rewritten(archive: Path, target: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> Path:
    """An archive of the same files, each as `change` gives it, or without it."""
    with tarfile.open(target, "w") as tar:
        for name, data in members(archive).items():
            changed = change(name, data)
            if changed is not None:
                info = tarfile.TarInfo(changed[0])
                info.size = len(changed[1])
                tar.addfile(info, io.BytesIO(changed[1]))
    return target


def refused(run: Run, archive: Path, into: Path) -> str:
    """Why an archive is refused; nothing of it is left."""
    result = run("backup", "restore", archive, "--into", into, "--json")
    assert (result.code, result.document["error"]["code"]) == (4, "bad-backup")
    assert not into.exists()
    assert not list(into.parent.glob(f".{into.name}-*"))
    return str(result.document["error"]["reason"])


def test_a_tampered_archive_is_refused_by_the_file_at_fault(run: Run, saved: Path, tmp_path: Path) -> None:
    """One byte, a longer file, a missing file, one too many, others in another order, no manifest."""
    into, target = tmp_path / "restored", tmp_path / "tampered.tar"
    victim = "devices/device-b/guard.db"

    def flip(name: str, data: bytes) -> tuple[str, bytes]:
        return name, data[:-1] + bytes([data[-1] ^ 1]) if name == victim else data

    assert f"{victim} was changed" in refused(run, rewritten(saved, target, flip), into)
    longer = rewritten(saved, target, lambda name, data: (name, data + b"\0" if name == victim else data))
    assert f"{victim} has " in refused(run, longer, into)
    without = rewritten(saved, target, lambda name, data: None if name == victim else (name, data))
    assert f"names {victim}" in refused(run, without, into)
    renamed = rewritten(saved, target, lambda name, data: ("extra" if name == "network.toml" else name, data))
    assert "'extra' stands where manifest.json names network.toml" in refused(run, renamed, into)
    headless = rewritten(saved, target, lambda name, data: None if name == MANIFEST else (name, data))
    assert "does not begin with manifest.json" in refused(run, headless, into)
    more = rewritten(saved, target, lambda name, data: (name, data))
    with tarfile.open(more, "a") as tar:
        tar.addfile(tarfile.TarInfo("administrators/eve.held"))
    assert "'administrators/eve.held' is in the archive" in refused(run, more, into)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.7, 0.97])
def test_a_truncated_archive_is_refused(run: Run, saved: Path, tmp_path: Path, share: float) -> None:
    """Wherever it ends, it says at which file."""
    data = saved.read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(data[: int(len(data) * share)])
    reason = refused(run, cut, tmp_path / "restored")
    assert "manifest.json" in reason or "/" in reason


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "/etc/outside",
        "devices/../../outside",
        "devices/../x.db",
        "devices/device-a/pin",
        "tokens/x",
        "a\\..\\b",
        "",
    ],
)
def test_a_path_that_leads_elsewhere_is_refused(run: Run, saved: Path, tmp_path: Path, path: str) -> None:
    """Also when the manifest names it: a backup writes what a backup holds, into its own folder."""

    def rename(name: str, data: bytes) -> tuple[str, bytes]:
        if name == MANIFEST:
            manifest = json.loads(data)
            next(each for each in manifest["files"] if each["path"] == "network.toml")["path"] = path
            data = canonical.encode(manifest)
        return (path or ".") if name == "network.toml" else name, data

    refused(run, rewritten(saved, tmp_path / "t.tar", rename), tmp_path / "deep" / "restored")
    assert not list(tmp_path.rglob("outside"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_and_devices_are_refused(run: Run, saved: Path, tmp_path: Path, kind: bytes) -> None:
    """A link in the place of a file, by the name that the manifest has for it."""
    target = tmp_path / "t.tar"
    with tarfile.open(target, "w") as tar:
        for name, data in members(saved).items():
            info = tarfile.TarInfo(name)
            if name == "network.toml":
                info.type, info.linkname = kind, "/etc/passwd"
                tar.addfile(info)
                continue
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert "network.toml is no regular file" in refused(run, target, tmp_path / "restored")


def test_an_archive_is_held_to_its_digest(run: Run, saved: Path, tmp_path: Path) -> None:
    """Whoever rewrites files and manifest alike makes another digest than the one that was noted down."""

    def forge(name: str, data: bytes) -> tuple[str, bytes]:
        if name == MANIFEST:
            data = canonical.encode(json.loads(data) | {"time": 1})
        return name, data

    forged = rewritten(saved, tmp_path / "forged.tar", forge)
    result = run("backup", "restore", forged, "--into", tmp_path / "a", "--digest", "ab" * 32, "--json")
    assert "it is another one" in result.document["error"]["reason"]
    assert run("backup", "restore", forged, "--into", tmp_path / "b", "--json").code == 0


def test_a_guard_that_the_manifest_conceals_is_found(run: Run, saved: Path, tmp_path: Path) -> None:
    """Every guard is marked as restored, whatever the manifest says."""

    def conceal(name: str, data: bytes) -> tuple[str, bytes]:
        if name == MANIFEST:
            data = canonical.encode(json.loads(data) | {"guards": []})
        return name, data

    concealed = rewritten(saved, tmp_path / "t.tar", conceal)
    assert "the guards are not those that the manifest names" in refused(run, concealed, tmp_path / "restored")


# ---- an old state never signs


def test_a_restored_guard_is_opened_by_nobody(run: Run, saved: Path, tmp_path: Path) -> None:
    """It says why; and without the word beside it, its mark is missing."""
    into = tmp_path / "restored"
    uri = "pkcs11:token=elsewhere?module-path=/usr/lib/p11.so&pin-source=file:/etc/pin"
    given = ["--token", f"device-a={uri}", "--environment", "device-a:SOFTHSM2_CONF=/etc/softhsm2.conf"]
    assert run("backup", "restore", saved, "--into", into, *given, "--json").code == 0
    text = (into / "devices/device-a/device.toml").read_text()
    assert uri in text
    assert "/etc/softhsm2.conf" in text
    guard = into / "devices/device-a/guard.db"
    name = read_network(into).network
    with pytest.raises(GuardDamagedError, match="was restored from a backup"):
        Guard.open(guard, network=name, device="device-a")
    guard.with_name("guard.db.restored").unlink()
    with pytest.raises(GuardDamagedError, match=r"its mark guard\.db\.mark is missing"):
        Guard.open(guard, network=name, device="device-a")


def test_the_chain_goes_on_and_the_restored_device_gives_no_second_word(
    run: Run, network: RunningNetwork, saved: Path, tmp_path: Path
) -> None:
    """A device that lost its disk comes back from an older backup: it signs nothing until two administrators have
    ordered a new guard, and then only what is valid later than anything that the lost one can have voted on.
    """
    folder = network.layout.folder
    voted = network.evidence("after-the-backup")
    with network.management() as management:
        management.submit(voted.raw)
    assert network.ended(voted.id).code == "valid"
    into = tmp_path / "restored"
    assert run("backup", "restore", saved, "--into", into, "--json").code == 0
    device, machine = network.layout.device("device-b"), tmp_path / "lost"
    config = device / "device.toml"

    def exchange() -> None:
        """The disk is lost; the token and its PIN are not."""
        for name in ("chain.db", "guard.db", "guard.db.mark"):
            machine.mkdir(exist_ok=True)
            for each in device.glob(f"{name}*"):
                each.rename(machine / each.name)
        for each in (into / "devices/device-b").iterdir():
            (device / each.name).write_bytes(each.read_bytes())

    stopped(network, "device-b", exchange)
    reason = wait_for(run, config, lambda said: "was restored from a backup" in said["reason"])["reason"]
    assert "hsm-endorser guard order --device device-b" in reason
    refused_now = commit(network, "while-it-is-old", valid_until=soon())
    assert (refused_now.status, blamed(refused_now)["device"]) == ("failed", "device-b")
    assert "was restored from a backup" in blamed(refused_now)["detail"]

    order = tmp_path / "order.json"
    given = ["--network", folder, "--device", "device-b", "--reason", "disk lost", "--out", order]
    alone = run("guard", "order", *given, "--admin", "admin-1", "--json")
    assert alone.document["signatures"] == 1
    assert "where 2 administrators are needed" in str(apply(run, network, order))
    ahead = tmp_path / "ahead.json"
    both = ["--admin", "admin-1", "--admin", "admin-2", "--height", "9000", "--out", ahead]
    assert run("guard", "order", *given[:-2], *both, "--json").code == 0
    assert "this device's copy of the chain ends at" in str(apply(run, network, ahead))
    assert run("guard", "sign", order, "--network", folder, "--admin", "admin-2", "--json").code == 0
    applied = stopped(network, "device-b", lambda: apply(run, network, order))
    assert (device / "guard.db.restored").exists() is False
    wait_for(run, config, lambda said: said["ready"])
    assert run("guard", "anchor", order, "--network", folder, "--json").code == 0

    since = applied["valid_from"]
    old = commit(network, "valid-before-the-new-guard", valid_until=soon())
    assert (old.status, blamed(old)["said"]) == ("failed", "before-guard")
    with network.management() as management:
        while management.network().height + 1 < since:
            time.sleep(0.1)
    later = commit(network, "after-the-order", valid_from=since)
    assert (later.status, later.code) == ("committed", "valid")
    with sqlite3.connect(device / "guard.db") as connection:
        votes = {tx for (tx,) in connection.execute("SELECT tx FROM votes")}
    assert voted.id not in votes


def blamed(status: Any) -> dict[str, str]:
    """What the one device said for which a transaction failed."""
    (device,) = status.problem.devices
    return dict(device)


def soon() -> int:
    """An end of validity that does not keep a test waiting."""
    return int(time.time() * 1000) + 1500


def apply(run: Run, network: RunningNetwork, order: Path) -> dict[str, Any]:
    """What the device's machine answers to an order."""
    config = network.layout.device("device-b") / "device.toml"
    found: dict[str, Any] = run("guard", "apply", order, "--config", config, "--json").document
    return found


def stopped(network: RunningNetwork, name: str, work: Callable[[], Any]) -> Any:
    """Do something while a service stands still."""
    network.supervisor.stop(name)
    try:
        return work()
    finally:
        network.supervisor.start(name)


def wait_for(run: Run, config: Path, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """What a device says of itself, when it is so."""
    deadline = time.monotonic() + 30
    while True:
        result = run("device", "status", "--config", config, "--json")
        if result.code == 0 and done(result.document):
            found: dict[str, Any] = result.document
            return found
        assert time.monotonic() < deadline, result.out + result.err
        time.sleep(0.1)
