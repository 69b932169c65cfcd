"""The control file of the misbehaving module: the layout is that of `struct control` in `faulty.c`."""

import mmap
import struct
from pathlib import Path
from typing import Final, Literal

Function = Literal["initialize", "open_session", "login", "sign_init", "sign", "token_info"]
Fault = Literal["none", "fail", "delay", "hang", "crash", "corrupt", "other_key", "fail_after"]

MAGIC: Final = b"HSMSHIM1"
FUNCTIONS: Final[tuple[Function, ...]] = ("initialize", "open_session", "login", "sign_init", "sign", "token_info")
FAULTS: Final[tuple[Fault, ...]] = ("none", "fail", "delay", "hang", "crash", "corrupt", "other_key", "fail_after")
_RULE: Final = struct.Struct("=6I2Q")  # fault, code, milliseconds, skip, times, hit; calls, successes
_FAULT: Final = struct.Struct("=I")
_DETAILS: Final = struct.Struct("=5I")
_SERIAL_OFFSET: Final = len(MAGIC) + len(FUNCTIONS) * _RULE.size
_SERIAL_BYTES: Final = 16
_SIZE: Final = _SERIAL_OFFSET + _SERIAL_BYTES


class Control:
    """Tells the module, in whichever process it is loaded, how to behave from its next call on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SIZE)

    @staticmethod
    def create(path: Path) -> "Control":
        """A control file under which the module behaves well."""
        path.write_bytes(MAGIC.ljust(_SIZE, b"\0"))
        return Control(path)

    def environment(self, real_module: Path) -> dict[str, str]:
        """What the process that loads the module needs in its environment."""
        return {"HSM_SHIM_MODULE": str(real_module), "HSM_SHIM_CONTROL": str(self.path)}

    def set(
        self, function: Function, fault: Fault, *, code: int = 0, milliseconds: int = 0, skip: int = 0, times: int = 0
    ) -> None:
        """From now on `fault` hits calls of `function`, after `skip` good ones, `times` times (0: always).

        `fail` returns `code` without calling the real module, `fail_after` calls it first; `delay` waits.
        """
        at = _offset(function)
        # A call may come at any moment: it must find either no fault or all of it.
        _FAULT.pack_into(self._memory, at, FAULTS.index("none"))
        _DETAILS.pack_into(self._memory, at + _FAULT.size, code, milliseconds, skip, times, 0)
        _FAULT.pack_into(self._memory, at, FAULTS.index(fault))

    def behave(self) -> None:
        """End all faults; the counts stay."""
        for function in FUNCTIONS:
            self.set(function, "none")
        self.show_serial("")

    def show_serial(self, serial: str) -> None:
        """Let the token show another serial number (at most 16 characters; empty for its own)."""
        padded = serial.encode("ascii").ljust(_SERIAL_BYTES) if serial else bytes(_SERIAL_BYTES)
        self._memory[_SERIAL_OFFSET:_SIZE] = padded[:_SERIAL_BYTES]

    def calls(self, function: Function) -> int:
        """How often the function was called."""
        return int(_RULE.unpack_from(self._memory, _offset(function))[6])

    def successes(self, function: Function) -> int:
        """How often it returned CKR_OK to its caller."""
        return int(_RULE.unpack_from(self._memory, _offset(function))[7])


def _offset(function: Function) -> int:
    return len(MAGIC) + FUNCTIONS.index(function) * _RULE.size
