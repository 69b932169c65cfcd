"""The mark beside a guard: how far it had come, so that a file that has lost its last commits is noticed.

SQLite takes a damaged page at the end of its write-ahead log for a commit that never was, and opens without a
word with what was before. An old copy of the file alone looks sound as well. So after each commit the guard writes
how far it is into a file of its own. That costs no sync: the mark is written after the commit is durable, so whatever a
crash leaves of it is never ahead of the guard, and a guard that is behind its mark has lost what it knew.
"""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Final

from hsm_endorser.errors import GuardError
from hsm_endorser.guard_file import State, sync_folder


class Mark:
    """An open mark. Its content has one length always, so that it is overwritten in place."""

    SUFFIX: Final = ".mark"

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @staticmethod
    def path_of(guard: Path) -> Path:
        """Where the mark of a guard stands."""
        return Path(f"{guard}{Mark.SUFFIX}")

    @staticmethod
    def create(guard: Path, state: State) -> "Mark":
        """A new mark, durable when this returns; raises `OSError`."""
        mark = Mark(os.open(Mark.path_of(guard), os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        mark.write(state)
        os.fsync(mark._descriptor)
        sync_folder(guard)
        return mark

    @staticmethod
    def open(guard: Path, state: State) -> "Mark":
        """The mark; raises `GuardError` when it is missing, damaged, or ahead of the guard, or `OSError`."""
        try:
            descriptor = os.open(Mark.path_of(guard), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise GuardError(f"its mark {Mark.path_of(guard).name} is missing") from None
        mark = Mark(descriptor)
        try:
            mark._require_not_ahead(state)
        except BaseException:
            mark.close()
            raise
        return mark

    def write(self, state: State) -> None:
        """Say how far the guard is; call it when that is durable. Raises `OSError`."""
        os.pwrite(self._descriptor, _encode(state.sequence, state.journal_count), 0)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _require_not_ahead(self, state: State) -> None:
        sequence, journal = self._read()
        if sequence > state.sequence or journal > state.journal_count:
            raise GuardError(
                f"its last commits are lost: it ends at tree {state.sequence} and journal entry {state.journal_count}, "
                f"and has been at tree {sequence} and entry {journal}"
            )

    def _read(self) -> tuple[int, int]:
        data = os.pread(self._descriptor, 256, 0)
        with contextlib.suppress(ValueError):
            sequence, journal = (int(part) for part in data.split()[:2])
            if _encode(sequence, journal) == data:
                return sequence, journal
        raise GuardError("its mark is damaged")


def _encode(sequence: int, journal: int) -> bytes:
    text = b"%016d %016d" % (sequence, journal)
    return text + b" " + hashlib.sha256(text).hexdigest().encode() + b"\n"
