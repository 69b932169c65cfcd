"""Initialises the token in a module's first slot by the standard's own functions; PINs come from files.

    python initialise.py MODULE LABEL SO_PIN_FILE PIN_FILE [FIRST_SO_PIN_FILE]

FIRST_SO_PIN_FILE holds the SO PIN of a token as it leaves the factory, where a module has one. A process of its own:
modules are not loaded into the tests.
"""

import ctypes
import sys
from pathlib import Path

RW_SESSION = 0x6
SO, USER = 0, 1
Number = ctypes.c_ulong


def main(module: str, label: str, so_file: str, pin_file: str, first_so_file: str = "") -> None:
    """Initialise, set both PINs, log in once as the user."""
    library = ctypes.CDLL(module)
    so_pin, pin, first = (Path(file).read_bytes().strip() for file in (so_file, pin_file, first_so_file or so_file))

    def call(name: str, *arguments: object) -> None:
        code = getattr(library, name)(*arguments)
        if code:
            raise SystemExit(f"{name} returned {code:#x}")

    def length(text: bytes) -> ctypes.c_ulong:
        return Number(len(text))

    call("C_Initialize", None)
    count = Number(0)
    call("C_GetSlotList", 1, None, ctypes.byref(count))
    slots = (Number * count.value)()
    call("C_GetSlotList", 1, slots, ctypes.byref(count))
    slot = Number(slots[0])
    call("C_InitToken", slot, first, length(first), label.ljust(32).encode())
    session = Number(0)
    call("C_OpenSession", slot, Number(RW_SESSION), None, None, ctypes.byref(session))
    call("C_Login", session, Number(SO), first, length(first))
    if first != so_pin:
        call("C_SetPIN", session, first, length(first), so_pin, length(so_pin))
    call("C_InitPIN", session, pin, length(pin))
    call("C_Logout", session)
    call("C_Login", session, Number(USER), pin, length(pin))
    call("C_Finalize", None)


if __name__ == "__main__":
    main(*sys.argv[1:])
