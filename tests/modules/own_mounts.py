"""Folders that stand in the machine's places, for this run's processes alone.

Some modules have their paths built in. What is mounted here is seen by the processes of this run and by nobody else:
`scripts/own_mounts.sh` has begun a mount namespace for it. The machine's own tokens and settings stay as they are.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests.modules.daemon import program, run

BEGUN = "HSM_ENDORSER_OWN_MOUNTS"
"""Set by the script that begins the namespace."""


@contextlib.contextmanager
def mounted(source: Path, place: Path) -> Iterator[None]:
    """`source` instead of what is at `place`, until the end of the block."""
    assert os.environ.get(BEGUN) == "1", (
        f"{place} would be hidden for the whole machine; run: ./test.sh --modules (it calls scripts/own_mounts.sh)"
    )
    run([program("mount", "mount"), "--bind", source, place])
    try:
        yield
    finally:
        run([program("umount", "mount"), "--lazy", place])
