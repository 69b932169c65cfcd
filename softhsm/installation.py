"""Where SoftHSM2 is on this machine: the PKCS#11 module and `softhsm2-util`."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

MODULE_NAME: Final = "libsofthsm2.so"
UTIL_NAME: Final = "softhsm2-util"
BESIDE_THE_PROJECT: Final = Path(__file__).resolve().parent.parent / ".softhsm"
"""Where the packages are unpacked when nobody may install them."""
ROOTS: Final = (Path("/"), Path("/usr/local"), Path("/opt/softhsm"), Path("/opt/homebrew"))
MODULE_FOLDERS: Final = ("usr/lib/softhsm", "usr/lib/*/softhsm", "usr/lib64/softhsm", "usr/lib64/pkcs11", "lib/softhsm")
UTIL_FOLDERS: Final = ("usr/bin", "bin")


class SoftHSMError(Exception):
    """SoftHSM2 is missing or did not do what it was told; the message says what to do."""


class Installation(msgspec.Struct, frozen=True):
    """The two files that are needed."""

    module: Path
    util: Path


def find(module: Path | None = None, util: Path | None = None) -> Installation:
    """The installation to use: the paths given, else unpacked beside the project, else the distribution's.

    Raises `SoftHSMError` with the line to run.
    """
    module = _existing(module) if module else next(_candidates(MODULE_FOLDERS, MODULE_NAME), None)
    util = _existing(util) if util else next(_utils(), None)
    if module is None or util is None:
        missing = " and ".join(name for name, path in ((MODULE_NAME, module), (UTIL_NAME, util)) if path is None)
        raise SoftHSMError(f"{missing} not found; run: sudo apt-get install softhsm2")
    return Installation(module, util)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise SoftHSMError(f"{path} does not exist; run: sudo apt-get install softhsm2 (or name the right path)")
    return path.resolve()


def _utils() -> Iterator[Path]:
    yield from _candidates(UTIL_FOLDERS, UTIL_NAME)
    if found := shutil.which(UTIL_NAME):
        yield Path(found)


def _candidates(folders: tuple[str, ...], name: str) -> Iterator[Path]:
    for root in (BESIDE_THE_PROJECT, *ROOTS):
        for folder in folders:
            yield from sorted(path for path in root.glob(f"{folder}/{name}") if path.is_file())
