"""The durable note that a token must not be used: it outlives the process, so that no restart is taken for consent.

It stands beside the guard. A quarantine ends by an operator's word alone (`hsm-endorser device release`). A refused
PIN, or another reason that stopped the opening, ends as well when the operator has changed what was wrong: the PIN
file, or the token's settings.
"""

import contextlib
import hashlib
import os
import time
from pathlib import Path

import msgspec

from hsm_endorser.errors import PinRefusedError, TokenError, TokenQuarantinedError, TokenStoppedError
from hsm_endorser.pin import PinSource

_KINDS: tuple[type[TokenError], ...] = (TokenQuarantinedError, PinRefusedError, TokenStoppedError)


class Note(msgspec.Struct, frozen=True):
    """Why the token is out of service, since when (ms), and what was configured then."""

    code: str
    reason: str
    since: int
    settings: str

    @property
    def error(self) -> TokenError:
        """The error that everybody is answered."""
        kind = next((kind for kind in _KINDS if kind.code == self.code), TokenQuarantinedError)
        return kind(self.reason)


class OutOfService:
    """The note of one device; `path` None keeps none (a token that is being set up)."""

    def __init__(self, path: Path | None, uri: str, pins: PinSource) -> None:
        self.path = path
        self._uri = uri
        self._pins = pins

    def note(self) -> Note | None:
        """The note that is in force; one that cannot be read is a quarantine."""
        if self.path is None:
            return None
        try:
            note = msgspec.json.decode(self.path.read_bytes(), type=Note)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            reason = f"the note {self.path} that stopped this token cannot be read ({error}); look at the token, then "
            return Note(TokenQuarantinedError.code, reason + "run: hsm-endorser device release", 0, "")
        if note.code != TokenQuarantinedError.code and note.settings != self._settings():
            self.clear()
            return None
        return note

    def write(self, error: TokenError) -> None:
        """Keep the note, durably."""
        if self.path is None:
            return
        note = Note(error.code, str(error), time.time_ns() // 1_000_000, self._settings())
        scratch = self.path.with_name(f"{self.path.name}.writing")
        with scratch.open("wb") as file:
            file.write(msgspec.json.encode(note))
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(self.path)
        self._sync()

    def clear(self) -> None:
        """An operator has acted."""
        if self.path is None:
            return
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        self._sync()

    def _sync(self) -> None:
        if self.path:
            descriptor = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _settings(self) -> str:
        """What an operator would change: the settings of the token, and the PIN file (never its contents)."""
        pin, file = self._pins.given
        state = "entered" if pin else ""
        if file:
            with contextlib.suppress(OSError):
                status = file.stat()
                state = f"{file} {status.st_ino} {status.st_size} {status.st_mtime_ns}"
        return hashlib.sha256(f"{self._uri}\n{state}".encode()).hexdigest()
