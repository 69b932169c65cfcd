"""PIN files: one line, readable by their owner alone (requirement S-6)."""

import os
import stat
from pathlib import Path
from typing import Final

from hsm_endorser.errors import PinFileError

MAX_BYTES: Final = 255
MIN_BYTES: Final = 4


def check_pin_file(path: Path) -> None:
    """Raise `PinFileError` unless `path` is a regular file of this user with mode 0600 or 0400."""
    os.close(_open(path))


def read_pin(path: Path) -> str:
    """The PIN in the file's first and only line; raises `PinFileError`, which never shows what the file holds."""
    with os.fdopen(_open(path), "rb") as file:
        data = file.read(MAX_BYTES + 2).removesuffix(b"\n")
    if not MIN_BYTES <= len(data) <= MAX_BYTES or b"\n" in data or b"\0" in data:
        raise PinFileError(f"the PIN file {path} must hold one line of {MIN_BYTES} to {MAX_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise PinFileError(f"the PIN file {path} is not UTF-8 text") from None


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
    if status.st_uid != os.geteuid():
        raise PinFileError(
            f"the PIN file {path} belongs to user {status.st_uid}, not to user {os.geteuid()} who runs this; "
            f"run: chown {os.geteuid()} {path}"
        )
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO | stat.S_IXUSR):
        raise PinFileError(
            f"the PIN file {path} has mode {stat.S_IMODE(status.st_mode):04o}: others could read it; "
            f"run: chmod 600 {path}"
        )
