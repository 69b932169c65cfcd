"""`hsm-endorser backup`: save what a network's folder knows, never its secrets, and restore it (docs/backup.md).

A restored guard is an old one: its device may have signed more since. So every restored guard is marked, and its device
signs nothing until the administrators have ordered a new one (requirement K-10, docs/guard.md).
"""

import contextlib
import os
import shutil
import sqlite3
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli import backup_archive
from cli.backup_archive import File, Manifest
from cli.errors import UsageError, VerificationFailedError
from cli.output import JsonFlag, Output
from cli.plan import Layout, read_network, write_settings
from ledger.errors import LedgerError
from ledger.genesis import check_genesis
from protocol.block import Block
from protocol.errors import ProtocolError
from protocol.transcript import Transcript

app = typer.Typer(help="Backups without keys: save a network's folder, restore it.", no_args_is_help=True)

RESTORED: Final = ".restored"
"""The file beside a guard that says that it came out of a backup (see `hsm_endorser.guard_files`)."""

Replace = Annotated[
    list[str] | None,
    typer.Option("--token", help="DEVICE=URI: where the device's token is on this machine; again for each."),
]
Variables = Annotated[
    list[str] | None,
    typer.Option("--environment", help="DEVICE:NAME=VALUE: what its module needs on this machine; again for each."),
]


@app.command()
def create(
    *,
    network: Annotated[Path, typer.Option(help="The network's folder; its services may run.")],
    output_file: Annotated[Path, typer.Option("--output", help="The archive, a file that does not exist yet.")],
    as_json: JsonFlag = False,
) -> None:
    """Save chains, registry, transcripts, guards and configuration. No PIN, no private key, no token."""
    output, known = Output(as_json=as_json), read_network(network)
    paths = backup_archive.to_save(network)
    with (
        backup_archive.new_file(output_file) as archive,
        contextlib.ExitStack() as undo,
        tempfile.TemporaryDirectory(prefix=".backup-", dir=output_file.parent) as folder,
    ):
        undo.callback(output_file.unlink, missing_ok=True)
        scratch = Path(folder)
        for path in paths:
            backup_archive.copy(network / path, scratch / path)
        manifest = _manifest(known.network, known.ceremony, scratch, paths)
        digest = backup_archive.write(archive, manifest, scratch)
        archive.flush()
        os.fsync(archive.fileno())
        undo.pop_all()
    output.plain(f"Saved {len(paths)} files of network {known.network} in {output_file}.")
    for path, height in manifest.heights.items():
        output.plain(f"  {path}: up to block {height}")
    for guard in manifest.guards:
        output.plain(f"  guard of {guard.device}: up to tree {guard.tree} and journal entry {guard.journal}")
    output.plain("Not in it, and to be kept by those who hold them: tokens, PINs, private keys.")
    output.plain(f"Note down its digest; restoring can be held to it: {digest}")
    output.result(
        {"file": str(output_file), "digest": digest, "files": paths, "heights": manifest.heights}
        | {"guards": list(manifest.guards)}
    )


@app.command()
def restore(
    *,
    file: Annotated[Path, typer.Argument(help="The archive.", exists=True, dir_okay=False)],
    into: Annotated[Path, typer.Option(help="A folder that does not exist yet.")],
    digest: Annotated[str, typer.Option(help="The digest that `create` printed: refuse any other archive.")] = "",
    token: Replace = None,
    environment: Variables = None,
    as_json: JsonFlag = False,
) -> None:
    """Restore a backup into a new folder. Its devices sign nothing until new guards are ordered for them."""
    output, into = Output(as_json=as_json), into.absolute()
    if into.exists():
        raise UsageError(f"{into} exists already", advice="restoring never overwrites; choose a new folder")
    into.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{into.name}-", dir=into.parent))
    try:
        manifest, found = backup_archive.extract(file, scratch)
        if digest and found != digest:
            raise VerificationFailedError(
                f"this archive has digest {found[:16]}…, wanted is {digest[:16]}…: it is another one", code="bad-backup"
            )
        _check(manifest, scratch)
        _complete(scratch)
        _point_tokens(scratch, _tokens(token), _environments(environment))
        for guard in manifest.guards:
            _mark_restored(scratch / guard.path, manifest.time)
        scratch.rename(into)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    devices = [guard.device for guard in manifest.guards]
    output.plain(f"Restored {len(manifest.files)} files of network {manifest.network} into {into}.")
    output.plain(
        f"Put the PIN files where {into}/devices/*/device.toml names them (mode 0600), and see that the tokens"
    )
    output.plain("and modules are those that it names. Never run a second copy of this network beside it.")
    for path, height in manifest.heights.items():
        if path.startswith("management/"):
            output.plain(
                f"The management service's chain ends at block {height}. If the network went on after the backup, "
                "put a chain that is up to date in its place before you start it (docs/backup.md)."
            )
    for device in devices:
        output.plain(f"{device} signs nothing until its guard is started anew:")
        output.plain(f"  hsm-endorser guard order --network {into} --device {device} --reason 'restored from a backup'")
    output.result({"network": manifest.network, "folder": str(into), "digest": found, "devices": devices})


def _manifest(network: str, ceremony: str, folder: Path, paths: list[str]) -> Manifest:
    databases = [path for path in paths if backup_archive.is_database(folder / path)]
    heights = {path: height for path in databases if (height := backup_archive.height(folder / path)) is not None}
    guards = backup_archive.guards(folder, paths)
    files = tuple(File(path, (folder / path).stat().st_size, backup_archive.digest_of(folder / path)) for path in paths)
    return Manifest(network, ceremony, time.time_ns() // 1_000_000, heights, guards, files)


def _check(manifest: Manifest, folder: Path) -> None:
    """The files belong together: block 0, the network, its ceremony, and databases that are whole."""
    try:
        genesis = Block.decode((folder / "genesis.json").read_bytes())
        channel = check_genesis(genesis).registry.channel
        transcript = folder / "ceremony" / "transcript"
        if transcript.exists():
            Transcript.read(transcript.read_bytes())
    except FileNotFoundError as error:
        raise _bad(f"{Path(str(error.filename)).name} is missing") from None
    except (ProtocolError, LedgerError) as error:
        raise _bad(f"genesis.json or the transcript does not hold: {error}") from None
    known = read_network(folder)
    if not channel.network == known.network == manifest.network or channel.ceremony != known.ceremony:
        raise _bad(f"genesis.json is that of {channel.network}, network.toml that of {known.network}")
    for each in manifest.files:
        if backup_archive.is_database(folder / each.path):
            _check_database(each.path, folder / each.path)
    if backup_archive.guards(folder, [each.path for each in manifest.files]) != manifest.guards:
        raise _bad("the guards are not those that the manifest names")


def _check_database(name: str, path: Path) -> None:
    connection = sqlite3.connect(path)
    try:
        (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error as error:
        verdict = str(error)
    finally:
        connection.close()
    if verdict != "ok":
        raise _bad(f"{name} is damaged: {verdict}")


def _complete(folder: Path) -> None:
    """Folders that a network has, and that had no file to be saved."""
    layout = Layout(folder)
    for part in ("devices", "peers", "clients", "administrators", "run", "logs"):
        (folder / part).mkdir(mode=0o700, exist_ok=True)
    layout.management.mkdir(mode=0o700, exist_ok=True)


def _mark_restored(guard: Path, saved: int) -> None:
    """Durably, and before the folder has its name: this guard is opened by nobody any more."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(saved / 1000))
    with guard.with_name(guard.name + RESTORED).open("w", encoding="utf-8") as file:
        file.write(f"saved {stamp}\n")
        file.flush()
        os.fsync(file.fileno())


def _point_tokens(folder: Path, uris: dict[str, str], environments: dict[str, dict[str, str]]) -> None:
    """Let device.toml name the tokens as this machine has them."""
    for device in sorted(uris.keys() | environments.keys()):
        path = Layout(folder).device(device) / "device.toml"
        if not path.exists():
            raise UsageError(f"the backup has no device {device}")
        settings: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        table = settings["token"]
        table["uri"] = uris.get(device, table["uri"])
        table["environment"] = table.get("environment", {}) | environments.get(device, {})
        write_settings(path, settings)


def _tokens(given: list[str] | None) -> dict[str, str]:
    found = {}
    for each in given or []:
        device, equals, uri = each.partition("=")
        if not equals or not uri.startswith("pkcs11:"):
            raise UsageError(f"--token {each!r} is not of the form DEVICE=pkcs11:…")
        found[device] = uri
    return found


def _environments(given: list[str] | None) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for each in given or []:
        device, colon, rest = each.partition(":")
        name, equals, value = rest.partition("=")
        if not colon or not equals:
            raise UsageError(f"--environment {each!r} is not of the form DEVICE:NAME=VALUE")
        found.setdefault(device, {})[name] = value
    return found


def _bad(reason: str) -> VerificationFailedError:
    return VerificationFailedError(reason, code="bad-backup", advice="nothing was restored; take another copy")
