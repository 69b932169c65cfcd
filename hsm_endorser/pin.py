"""PINs: from a file that its owner alone can read, or from an operator's hands into memory (requirement S-6).

A PIN change writes the new PIN beside the old one first: `pin.new`. While both are there, nobody can say from the
outside which of them the token has. The next login then tries the new one, once: when the token takes it, the change
is finished, and when it does not, the token never heard of it and an operator removes `pin.new`.
"""

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

from hsm_endorser.errors import PinFileError, TokenLockedError
from hsm_endorser.worker_messages import Pin

MAX_BYTES: Final = 255
MIN_BYTES: Final = 4
PRIVATE: Final = stat.S_IRUSR | stat.S_IWUSR
HANDED_OVER: Final = stat.S_IRUSR | stat.S_IRGRP
"""The mode of a systemd credential whose reader is named in an access list: the group bits are the list's mask."""


def check_pin_file(path: Path) -> None:
    """Raise `PinFileError` unless `path` is a regular file that this user alone (and root) can read."""
    os.close(_open(path))


def read_pin(path: Path) -> str:
    """The PIN in the file's first and only line; raises `PinFileError`, which never shows what the file holds."""
    with os.fdopen(_open(path), "rb") as file:
        data = file.read(MAX_BYTES + 2).removesuffix(b"\n")
    return checked(data, f"the PIN file {path}")


def checked(data: bytes, where: str) -> str:
    """The PIN in `data`; raises `PinFileError`."""
    if not MIN_BYTES <= len(data) <= MAX_BYTES or b"\n" in data or b"\0" in data:
        raise PinFileError(f"{where} must hold one line of {MIN_BYTES} to {MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise PinFileError(f"{where} is not UTF-8 text") from None


class PinSource:
    """Where a token's PIN comes from: its file, or (None) an operator who enters it."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self._entered: Pin | None = None

    @property
    def is_locked(self) -> bool:
        """Whether nobody has entered the PIN since the start."""
        return self.file is None and self._entered is None

    @property
    def given(self) -> tuple[Pin | None, Path | None]:
        """What the worker is told: the PIN itself, or the file that it reads."""
        if self.file is None:
            return self._entered, None
        return None, self.pending if self.pending and self.pending.exists() else self.file

    @property
    def pending(self) -> Path | None:
        """Where the new PIN stands during a change."""
        return self.file.with_name(f"{self.file.name}.new") if self.file else None

    def check(self) -> None:
        """Raise `PinFileError` when the file cannot be used, `TokenLockedError` when there is no PIN yet."""
        _, file = self.given
        if file:
            check_pin_file(file)
        elif self.is_locked:
            raise TokenLockedError("nobody has entered the PIN since the start; run: hsm-endorser device unlock")

    def enter(self, pin: Pin) -> None:
        """Keep a PIN that an operator entered; it is gone with this process."""
        if self.file is not None:
            raise PinFileError(f"this device takes its PIN from {self.file}; correct that file instead")
        self._entered = pin

    def forget(self) -> None:
        """Drop a PIN that was entered and that the token refused."""
        self._entered = None

    def stage(self, new: Pin) -> None:
        """Write the new PIN beside the old one, durably. Nothing else has happened when this fails."""
        if self.pending is None:
            return
        try:
            descriptor = os.open(self.pending, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, PRIVATE)
            with os.fdopen(descriptor, "wb") as file:
                file.write(new.value.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            _sync_folder(self.pending)
        except OSError as error:
            raise PinFileError(f"the new PIN cannot be written to {self.pending}: {error.strerror}") from None

    def settle(self, new: Pin | None = None) -> None:
        """The token has taken the new PIN: it is the PIN from now on. Does nothing when no change is under way."""
        if self.file is None:
            self._entered = new or self._entered
        elif self.pending and self.pending.exists():
            self.pending.replace(self.file)
            _sync_folder(self.file)

    def abandon(self) -> None:
        """The token has refused the change: the old PIN stays."""
        if self.pending:
            with contextlib.suppress(FileNotFoundError):
                self.pending.unlink()
            _sync_folder(self.pending)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        # Not blocking: a named pipe without a writer would hang us here.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise PinFileError(f"the PIN file {path} cannot be opened: {error.strerror}") from None
    try:
        _check(path, os.fstat(descriptor))  # the open file is judged, not the name: nobody can exchange it
    except PinFileError:
        os.close(descriptor)
        raise
    return descriptor


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise PinFileError(f"the PIN file {path} is no regular file")
    if _is_credential(status):
        return
    if status.st_uid != os.geteuid():
        raise PinFileError(
            f"the PIN file {path} belongs to user {status.st_uid}, not to user {os.geteuid()} who runs this; "
            f"run: chown {os.geteuid()} {path}"
        )
    if stat.S_IMODE(status.st_mode) & ~PRIVATE:
        raise PinFileError(
            f"the PIN file {path} has mode {stat.S_IMODE(status.st_mode):04o}: others could read it; "
            f"run: chmod 600 {path}"
        )


def _is_credential(status: os.stat_result) -> bool:
    """A file that root handed to this user by an access list, as systemd does with credentials."""
    owned_by_root = status.st_uid == 0 and status.st_gid == 0
    return os.geteuid() != 0 and owned_by_root and not stat.S_IMODE(status.st_mode) & ~HANDED_OVER
