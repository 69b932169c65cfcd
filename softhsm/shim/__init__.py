"""A PKCS#11 module between the caller and SoftHSM2 that fails, hangs, crashes and lies on demand, and counts C_Sign.

    module = build(folder)                                  # compiles faulty.c
    control = Control.create(folder / "control")
    environment = control.environment(real_module)          # for the process that loads `module`
    control.set("sign", "hang", times=1)

For tests and rehearsals: never put it before a token that matters.
"""

from softhsm.shim.build import build
from softhsm.shim.control import Control

__all__ = ["Control", "build"]
