"""What the matrix leaves behind: nothing, even when it is killed; and what it says where a package is missing."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.modules import module_token, own_mounts
from tests.modules.daemon import program, running
from tests.modules.tokens import TOKENS

pytestmark = pytest.mark.modules
ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from tests.modules.tokens import TOKENS
with TOKENS[sys.argv[1]](Path(sys.argv[2])):
    print("ready", flush=True)
    time.sleep(60)
"""


def processes_of(folder: Path) -> list[str]:
    """The command lines of all processes that name the folder, or were started in it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if str(folder) in command:
            found.append(command)
    return found


@pytest.mark.parametrize("name", ["tpm2-pkcs11 on swtpm", "p11-kit remote client"])
def test_nothing_runs_on_when_the_tests_are_killed(tmp_path: Path, name: str) -> None:
    """The kernel ends every daemon with the process that started it."""
    command = [sys.executable, "-c", HOLDER, name, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "ready\n"
        daemons = [each for each in processes_of(tmp_path) if HOLDER[:20] not in each]
        assert daemons
        holder.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while processes_of(tmp_path):
        assert time.monotonic() < deadline, processes_of(tmp_path)
        time.sleep(0.05)


def test_a_token_ends_its_daemons(tmp_path: Path) -> None:
    """At the end of the block no process of the TPM's is left."""
    with TOKENS["tpm2-pkcs11 on swtpm"](tmp_path):
        assert len(processes_of(tmp_path)) == 3, "TPM, bus, resource manager"
    assert processes_of(tmp_path) == []


def test_a_daemon_that_ends_is_reported_with_what_it_said(tmp_path: Path) -> None:
    """The first failure tells its reason, and nothing waits for a dead program."""
    command = [program("sh", "dash"), "-c", "echo out of luck; exit 3"]
    started = time.monotonic()
    with (
        pytest.raises(AssertionError, match="sh ended with 3: out of luck"),
        running(command, ready=lambda: False, log=tmp_path / "log"),
    ):
        pytest.fail("it is not ready")
    assert time.monotonic() - started < 5


def test_a_missing_module_fails_with_the_line_to_run() -> None:
    """Never skipped: the packages to install are named."""
    with pytest.raises(AssertionError, match=re.escape("run: sudo apt-get install -y libabsent libother")):
        module_token.module("libabsent.so", packages="libabsent libother")
    with pytest.raises(AssertionError, match="absent-daemon is missing; run: sudo apt-get install -y absent"):
        program("absent-daemon", "absent")


def test_nothing_is_hidden_from_the_rest_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a mount namespace of this run's own, nothing is mounted, and the line to run is told."""
    assert os.environ[own_mounts.BEGUN] == "1"
    monkeypatch.delenv(own_mounts.BEGUN)
    with pytest.raises(AssertionError, match=r"run: \./test\.sh --modules"), own_mounts.mounted(tmp_path, Path("/mnt")):
        pytest.fail("it was mounted")


def test_mounts_end_with_their_block(tmp_path: Path) -> None:
    """What was hidden is there again."""
    (tmp_path / "place").mkdir()
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "seen").touch()
    with own_mounts.mounted(tmp_path / "source", tmp_path / "place"):
        assert (tmp_path / "place" / "seen").exists()
    assert not (tmp_path / "place" / "seen").exists()
