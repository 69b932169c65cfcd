"""The program around a worker that loads a PKCS#11 module: alone, single-threaded, and gone when its parent is.

Two programs are one: `token_worker`, which signs for the service, and `custody.probe_worker`, which does harm for the
audit. They share how they start, how they find the token, and how a return code becomes a word; what they can be
asked differs altogether (docs/adr/0006-probe-worker.md).
"""

import ctypes
import fcntl
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from hsm_endorser.failures import BY_NUMBER, UNKNOWN
from hsm_endorser.pin import read_pin
from hsm_endorser.worker_messages import FRAME_LENGTH, MAX_FRAME, Open, Pin, frame

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
LOCK_POLL_SECONDS: Final = 0.01
TOKEN_INITIALIZED: Final = 0x400

BY_TEXT: Final = {
    "Buffer was too small": "BufferTooSmall",
    "Initialisation error (already": "CryptokiAlreadyInitialized",
    "Initialisation error (not": "CryptokiNotInitialized",
    "Parallel not supported": "SessionParallelNotSupported",
    "User type invalid": "UserTypeInvalid",
}
"""Return codes for which the binding has a text and no exception of their own."""

Asked = TypeVar("Asked")


class RequestError(Exception):
    """A request that the worker does not pass on to the token, and why."""

    def __init__(self, word: str, text: str) -> None:
        super().__init__(text)
        self.word = word


def serve(descriptor: int, parent: int, requests: type[Asked], answer: Callable[[Asked], msgspec.Struct]) -> None:
    """Answer requests on the inherited socket until the other side closes."""
    _isolate(parent)
    decoder = msgspec.msgpack.Decoder(requests)
    with socket.socket(fileno=descriptor) as connection:
        while True:
            head = _receive(connection, FRAME_LENGTH.size)
            if head is None:
                return
            (length,) = FRAME_LENGTH.unpack(head)
            if length > MAX_FRAME:
                return
            body = _receive(connection, length)
            if body is None:
                return
            connection.sendall(frame(answer(decoder.decode(body))))


def find_token(library: Any, wanted: Open) -> Any:
    """The one token that matches; raises `RequestError`."""
    tokens = [slot.get_token() for slot in library.get_slots(token_present=True)]
    tokens = [token for token in tokens if token.flags & TOKEN_INITIALIZED]
    found = [token for token in tokens if _matches(token, wanted)]
    if len(found) > 1:
        raise RequestError("AmbiguousToken", f"{len(found)} tokens match the URI; add serial= to it")
    if found:
        return found[0]
    same_name = [token for token in tokens if wanted.token is not None and token.label == wanted.token]
    if same_name:
        other = same_name[0]
        raise RequestError(
            "TokenSwapped",
            f"the token {wanted.token!r} here is {other.manufacturer_id} {other.model} serial {serial(other)}, "
            "which is not the one that the URI names",
        )
    raise RequestError("NoSuchToken", f"none of the {len(tokens)} tokens that the module shows matches the URI")


def serial(token: Any) -> str:
    """The serial number of a token, as text."""
    return bytes(token.serial).decode("ascii", "replace").strip()


def pin_of(pin: Pin | None, file: str | None) -> str:
    """The PIN itself, given or read; raises `PinFileError`."""
    if pin is not None:
        return pin.value
    if file is None:
        raise RequestError("Locked", "nobody has entered the PIN since the start; run: hsm-endorser device unlock")
    return read_pin(Path(file))


def word(error: Exception) -> str:
    """The word for the return code in an error of the binding, as `failures` spells it."""
    if type(error).__name__ != "PKCS11Error":
        return type(error).__name__
    text = str(error)
    if known := next((spelled for start, spelled in BY_TEXT.items() if text.startswith(start)), None):
        return known
    try:
        number = int(text.rpartition(" ")[2], 16)  # "Unmapped error code 0x68"
    except ValueError:
        return UNKNOWN
    return BY_NUMBER[number].word if number in BY_NUMBER else UNKNOWN


def clean(text: str) -> str:
    """Text of a module's or the binding's, fit to be shown."""
    return "".join(character for character in text if character.isprintable())[:300]


class StartLock:
    """Workers that start at the same moment disturb each other inside the module: one after the other, then.

    The module's own file is the lock, so that all programs on the machine that know this habit share it. It is a
    courtesy: after `seconds` the worker goes on without, since a hung neighbour must not stop this token.
    """

    def __init__(self, module: str, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        try:
            self._file = os.open(module, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise RequestError("NoModule", f"the PKCS#11 module {module} cannot be read: {error.strerror}") from None

    def __enter__(self) -> None:
        while time.monotonic() < self._deadline:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(LOCK_POLL_SECONDS)
            else:
                return

    def __exit__(self, *_error: object) -> None:
        os.close(self._file)


def _matches(token: Any, wanted: Open) -> bool:
    return all(
        expected is None or expected == got
        for expected, got in (
            (wanted.token, token.label),
            (wanted.manufacturer, token.manufacturer_id),
            (wanted.model, token.model),
            (wanted.serial, serial(token)),
            (wanted.slot_id, token.slot.slot_id),
        )
    )


def _isolate(parent: int) -> None:
    """No core dump, no debugger, and no life without the parent."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    library.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    if os.getppid() != parent:  # it died before the signal was asked for
        sys.exit(1)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when to stop


def _receive(connection: socket.socket, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        try:
            part = connection.recv(min(count - len(data), 1 << 20))
        except ConnectionResetError:  # the parent was killed while an answer waited for it
            return None
        if not part:
            return None
        data += part
    return bytes(data)
