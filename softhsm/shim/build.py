"""Compiles the misbehaving module with the machine's C compiler."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

from softhsm.installation import SoftHSMError

SOURCE: Final = Path(__file__).with_name("faulty.c")
SECONDS: Final = 60.0


def build(folder: Path) -> Path:
    """The path of the compiled module in `folder`; raises `SoftHSMError` with what to install."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SoftHSMError(
            "there is no C compiler for the fault-injecting module; run: sudo apt-get install gcc libc6-dev"
        )
    module = folder / "faulty-pkcs11.so"
    done = subprocess.run(
        [
            compiler,
            "-std=gnu11",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-O2",
            "-fPIC",
            "-shared",
            "-o",
            module,
            SOURCE,
            "-ldl",
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode:
        raise SoftHSMError(f"{SOURCE.name} cannot be compiled: {done.stderr.strip()}")
    return module
