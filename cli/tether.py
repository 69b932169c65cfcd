"""Start a program that cannot outlive its parent: `python tether.py PARENT PROGRAM [ARGUMENT …]`.

The kernel kills it when the parent thread that started it ends (prctl(2), PR_SET_PDEATHSIG), even when the parent was
killed itself. Done here, and not between fork and exec of the parent, because the parent has threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, program: list[str]) -> None:
    """Tie this process to `parent`, then become `program`."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it died before the line above
        return
    os.execv(program[0], program)  # noqa: S606  a list of arguments, no shell


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
