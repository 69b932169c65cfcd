"""The archive of a backup: one tar file, the manifest first, then every file that the manifest names, in its order.

Nothing in it is secret: no PIN, no private key, no token. What may be saved is listed here; all else stays behind. The
manifest holds the SHA-256 of every file, the height of every chain and how far every guard had come.
"""

import hashlib
import io
import os
import re
import sqlite3
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, BinaryIO, Final, Literal

import msgspec

from cli.errors import CommandError, UsageError, VerificationFailedError
from protocol import canonical
from protocol.canonical import Digest, Milliseconds, Name
from protocol.errors import ProtocolError

MANIFEST: Final = "manifest.json"
MAX_MANIFEST_BYTES: Final = 4 << 20
CHUNK: Final = 1 << 20
SQLITE: Final = b"SQLite format 3\0"
BUSY_SECONDS: Final = 30.0
KINDS: Final = re.compile(
    r"genesis\.json|network\.toml|ceremony/(transcript|plan\.toml)"
    r"|management/(management\.toml|[\w.-]+\.db)"
    r"|peers/[\w.-]+/(peer\.toml|[\w.-]+\.db)"
    r"|devices/[\w.-]+/(device\.toml|[\w.-]+\.db|[\w.-]+\.db\.(orders|out-of-service)|[\w.-]+\.db\.\d{8}T\d{6}Z(-\d+)?|[\w.-]+\.journal)"
    r"|clients/[\w.-]+\.(crt|csr)"
    r"|administrators/[\w.-]+\.held",
    re.ASCII,
)
"""What is saved, by its path in the network's folder."""
PRIVATE: Final = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----")

SafePath = Annotated[
    str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*){0,3}\Z", max_length=400)
]


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file: its path in the folder, its size in bytes, its SHA-256."""

    path: SafePath
    size: Annotated[int, msgspec.Meta(ge=0, le=canonical.MAX_INTEGER)]
    digest: Digest


class GuardMark(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a device's guard had come: its last tree, its last journal entry, and from where it signs."""

    device: Name
    path: SafePath
    tree: int
    journal: int
    since: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an archive holds."""

    network: Name
    ceremony: str
    time: Milliseconds
    heights: dict[SafePath, int]
    """The last block of every chain database."""
    guards: tuple[GuardMark, ...]
    files: tuple[File, ...]
    version: Literal[1] = 1


def to_save(folder: Path) -> list[str]:
    """The paths of a network's folder that are saved, sorted; links are not followed."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if name not in {"tokens", "run", "logs"}]
        for name in names:
            path = Path(parent) / name
            relative = path.relative_to(folder).as_posix()
            if KINDS.fullmatch(relative) and path.is_file() and not path.is_symlink():
                found.append(relative)
    return sorted(found)


def copy(source: Path, target: Path) -> None:
    """Copy a file; a database by SQLite's own backup, while others write it. Raises `CommandError`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not is_database(source):
        data = source.read_bytes()
        if PRIVATE.search(data):
            raise CommandError(f"{source} holds a private key: it is not saved, and neither is anything else")
        target.write_bytes(data)
        return
    try:
        reading = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)
        writing = sqlite3.connect(target)
        try:
            reading.backup(writing)  # one read transaction: writers go on meanwhile
            writing.execute("PRAGMA journal_mode=DELETE")  # one file, with nothing beside it
        finally:
            reading.close()
            writing.close()
    except sqlite3.Error as error:
        raise CommandError(f"the database {source} cannot be saved: {error}") from None


def is_database(path: Path) -> bool:
    """Whether a file is one of SQLite's."""
    with path.open("rb") as file:
        return file.read(len(SQLITE)) == SQLITE


def height(database: Path) -> int | None:
    """The last block in a chain's database; None when it is another database."""
    with _reading(database) as connection:
        if "blocks" not in _tables(connection):
            return None
        (last,) = connection.execute("SELECT max(height) FROM blocks").fetchone()
        return -1 if last is None else int(last)


def guards(folder: Path, paths: Iterable[str]) -> tuple[GuardMark, ...]:
    """How far the guards among the files of a folder had come."""
    found = []
    for path in paths:
        database = folder / path
        if path.startswith("devices/") and path.endswith(".db") and is_database(database):
            with _reading(database) as connection:
                if {"state", "journal", "votes"} <= _tables(connection):
                    row = connection.execute("SELECT sequence, journal_count, since FROM state").fetchone()
                    found.append(GuardMark(path.split("/")[1], path, *row))
    return tuple(found)


def _tables(connection: sqlite3.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


class _reading:  # noqa: N801  a context manager that is used like a function
    def __init__(self, database: Path) -> None:
        self._connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, *_error: object) -> None:
        self._connection.close()


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(output: BinaryIO, manifest: Manifest, folder: Path) -> str:
    """Write an archive of the files in `folder`; the digest of its manifest."""
    head = canonical.encode(manifest)
    with tarfile.open(fileobj=output, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add(tar, MANIFEST, len(head), io.BytesIO(head), manifest.time)
        for each in manifest.files:
            with (folder / each.path).open("rb") as file:
                _add(tar, each.path, each.size, file, manifest.time)
    return hashlib.sha256(head).hexdigest()


def _add(tar: tarfile.TarFile, name: str, size: int, data: BinaryIO, time: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, time // 1000
    tar.addfile(info, data)


def extract(archive: Path, into: Path) -> tuple[Manifest, str]:
    """Put every file of an archive under `into`, an empty folder; the manifest, and its digest.

    Raises `VerificationFailedError` that names the file at fault: changed, missing, not named, a link, or with a path
    that leads elsewhere.
    """
    current = MANIFEST
    try:
        with tarfile.open(archive, mode="r:") as tar:
            members = iter(tar)
            manifest, digest = _manifest(tar, next(members, None))
            for wanted, member in _pairs(manifest, members):
                current = wanted.path
                _extract(tar, wanted, member, into)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise _bad(f"the archive is damaged at {current}: {error}") from None
    return manifest, digest


def _manifest(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> tuple[Manifest, str]:
    if member is None or member.name != MANIFEST or not member.isreg() or member.size > MAX_MANIFEST_BYTES:
        raise _bad(f"the archive does not begin with {MANIFEST}: it is no backup")
    data = _read(tar, member)
    try:
        manifest = canonical.decode(data, _manifest_decoder, limit=MAX_MANIFEST_BYTES)
    except ProtocolError as error:
        raise _bad(f"{MANIFEST}: {error}") from None
    paths = [each.path for each in manifest.files]
    if len(set(paths)) != len(paths):
        raise _bad(f"{MANIFEST} names a file twice")
    for path in paths:
        if not KINDS.fullmatch(path):
            raise _bad(f"{path} is no file of a backup")
    return manifest, hashlib.sha256(data).hexdigest()


def _pairs(manifest: Manifest, members: Iterator[tarfile.TarInfo]) -> Iterator[tuple[File, tarfile.TarInfo]]:
    """What the manifest names beside what comes, one by one."""
    for wanted in manifest.files:
        member = next(members, None)
        if member is None:
            raise _bad(f"the archive is cut short: {wanted.path} is missing")
        if member.name != wanted.path:
            raise _bad(f"{member.name!r} stands where {MANIFEST} names {wanted.path}")
        yield wanted, member
    extra = next(members, None)
    if extra is not None:
        raise _bad(f"{extra.name!r} is in the archive, and {MANIFEST} does not name it")


def _extract(tar: tarfile.TarFile, wanted: File, member: tarfile.TarInfo, into: Path) -> None:
    """Only regular files, under names that were judged already: nothing of what tar can do otherwise."""
    if not member.isreg() or member.issparse():
        raise _bad(f"{wanted.path} is no regular file but a link or a device: it is not restored")
    if member.size != wanted.size:
        raise _bad(f"{wanted.path} has {member.size} bytes where {MANIFEST} says {wanted.size}")
    target = into / PurePosixPath(wanted.path)
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    source = tar.extractfile(member)
    if source is None:
        raise _bad(f"{wanted.path} cannot be read")
    digest = hashlib.sha256()
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with source, os.fdopen(descriptor, "wb") as file:
        while part := source.read(CHUNK):
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != wanted.digest:
        raise _bad(f"{wanted.path} was changed: its SHA-256 is {digest.hexdigest()[:16]}…, not {wanted.digest[:16]}…")


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    source = tar.extractfile(member)
    if source is None:
        raise _bad(f"{member.name} cannot be read")
    with source:
        return source.read(MAX_MANIFEST_BYTES + 1)


def _bad(reason: str) -> VerificationFailedError:
    return VerificationFailedError(reason, code="bad-backup", advice="nothing was restored; take another copy")


def new_file(path: Path) -> BinaryIO:
    """A file that did not exist; raises `UsageError` when it did."""
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    except FileExistsError:
        raise UsageError(
            f"{path} exists already", advice="a backup is never overwritten; choose another name"
        ) from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", advice="choose another file") from None


_manifest_decoder = msgspec.json.Decoder(Manifest)
