"""The transcript's file: one line for each step, on the disk before the next step begins.

A crash leaves at most a last line without its end: that step was not done, and the line is taken away when the ceremony
is taken up again. Whatever else is wrong with the file was done by somebody, and is refused.
"""

import fcntl
import os
from pathlib import Path

from cli.errors import CommandError, VerificationFailedError
from protocol.ceremony import MAX_LINE_BYTES, MAX_STEPS, Step
from protocol.errors import BadTranscriptError
from protocol.transcript import Transcript


class Record:
    """The open file, and what stands in it. One process at a time."""

    def __init__(self, path: Path, descriptor: int, transcript: Transcript) -> None:
        self.path = path
        self.transcript = transcript
        self._descriptor = descriptor

    @staticmethod
    def open(path: Path) -> tuple["Record", bool]:
        """The record at `path`, made if there is none, and whether an interrupted last step was taken away.

        Raises `VerificationFailedError` when a step does not hold, `CommandError` when another process has it.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _sync(path.parent)
            data = read(path)
            whole = data[: data.rfind(b"\n") + 1]
            transcript = parse(whole)
            if whole != data:
                os.ftruncate(descriptor, len(whole))
                os.fsync(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            raise CommandError(f"{path} is in use: this ceremony runs already", code="in-use") from None
        except BaseException:
            os.close(descriptor)
            raise
        return Record(path, descriptor, transcript), whole != data

    def append(self, line: bytes) -> Step:
        """Verify a step, and keep it durably; raises `BadTranscriptError`, and nothing is kept then."""
        step = self.transcript.take(line)
        # A crash from here to the end of the sync leaves no line, or one without its end: the step is done again.
        data = line + b"\n"
        if os.write(self._descriptor, data) != len(data):
            raise CommandError(f"{self.path} cannot be written: the disk is full", code="disk-full")
        os.fsync(self._descriptor)
        return step

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._descriptor)


def read(path: Path) -> bytes:
    """The bytes of a transcript's file; raises `VerificationFailedError` when it is too large to be one."""
    limit = MAX_LINE_BYTES * MAX_STEPS
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise VerificationFailedError(f"{path} has more than {limit} bytes: it is no transcript")
    return data


def parse(data: bytes) -> Transcript:
    """The transcript in `data`, every step verified; raises `VerificationFailedError` with the step's number."""
    try:
        return Transcript.read(data)
    except BadTranscriptError as error:
        raise VerificationFailedError(f"the transcript does not hold at {error}", code="bad-transcript") from None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
