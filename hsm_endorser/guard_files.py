"""The open files of a guard: its locks, its connection and its mark, held together until it is closed."""

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Final

import msgspec

from hsm_endorser import guard_file
from hsm_endorser.errors import GuardDamagedError, GuardError, GuardInUseError
from hsm_endorser.guard_file import State
from hsm_endorser.guard_mark import Mark

RESTORED: Final = ".restored"
"""Beside a guard that came out of a backup: it says from when. Such a guard is opened by nobody, only replaced."""
UNREADABLE: Final = (sqlite3.Error, msgspec.MsgspecError, OSError, ValueError, TypeError, OverflowError)
"""What reading a file raises that is no guard, or no more."""


class Files:
    """What an open guard holds, and everything that closing it closes."""

    def __init__(self, connection: sqlite3.Connection, mark: Mark, held: contextlib.ExitStack) -> None:
        self.connection = connection
        self.mark = mark
        self._held = held
        self._version = guard_file.data_version(connection)

    @staticmethod
    def create(path: Path, state: State) -> "Files":
        """New files; raises `GuardError` when there are any."""
        with contextlib.ExitStack() as held:
            held.callback(os.close, guard_file.lock(path))
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            except OSError as error:
                raise GuardError(
                    f"cannot create a guard at {path}: {error.strerror}; "
                    "a guard that is there is opened, never replaced"
                ) from None
            # A crash from here on leaves a file that is no guard: opening it says that it is damaged.
            try:
                held.callback(os.close, guard_file.lock_file(path))
                connection = held.enter_context(contextlib.closing(guard_file.connect(path)))
                guard_file.write_schema(connection, state)
                mark = Mark.create(path, state)
            except (sqlite3.Error, OSError) as error:
                raise GuardError(f"cannot create a guard at {path}: {error}") from None
            held.callback(mark.close)
            return Files(connection, mark, held.pop_all())

    @staticmethod
    def open(path: Path, *, network: str, device: str) -> tuple["Files", State]:
        """The files that are there, checked as a whole, and the state in them; raises as `Guard.open` does."""
        if not path.is_file():
            raise GuardDamagedError(
                f"there is no guard at {path}: without it this device could sign two different votes, so nothing is "
                f"signed. {guard_file.advice(device)}"
            )
        restored = path.with_name(path.name + RESTORED)
        if restored.exists():
            raise GuardDamagedError(
                f"the guard at {path} was restored from a backup (see {restored.name}): what the device has signed "
                f"since then is not in it, so nothing is signed. {guard_file.advice(device)}"
            )
        with contextlib.ExitStack() as held:
            held.callback(os.close, guard_file.lock(path))
            try:
                held.callback(os.close, guard_file.lock_file(path))
                connection = held.enter_context(contextlib.closing(guard_file.connect(path)))
                state = guard_file.load(connection)
                guard_file.check_whole(connection, state)
                mark = Mark.open(path, state)
            except GuardInUseError:
                raise
            except (*UNREADABLE, GuardError) as error:
                raise guard_file.trouble(path, device, error) from None
            held.callback(mark.close)
            if (state.network, state.device) != (network, device):
                raise GuardError(
                    f"the guard at {path} is that of {state.device} on {state.network}, not of {device} on {network}; "
                    "correct `guard` in the device's configuration"
                )
            return Files(connection, mark, held.pop_all()), state

    @property
    def is_ours_alone(self) -> bool:
        """Whether nobody else has written: the locks keep others out, and SQLite counts changes of who goes round."""
        return guard_file.data_version(self.connection) == self._version

    def close(self) -> None:
        """Close everything, the locks last."""
        self._held.close()
