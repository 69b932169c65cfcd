"""The set-up script, in a project folder of its own with only the programs that each case allows."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
TOOLS = ("bash", "cat", "cut", "dirname", "env", "id", "mkdir", "rm", "sha256sum")
BASH = shutil.which("bash") or "/bin/bash"
SCRIPTS = ("demo.sh", "test.sh", "scripts/setup.sh", "scripts/own_mounts.sh", ".ci/run")

Setup = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the script and what it reads, and nothing prepared."""
    folder = tmp_path / "project"
    (folder / "scripts").mkdir(parents=True)
    for file in ("scripts/setup.sh", "requirements.lock", "pyproject.toml"):
        shutil.copy(PROJECT / file, folder / file)
    return folder


@pytest.fixture
def setup(project: Path, tmp_path: Path) -> Setup:
    """Run the script where only the named programs can be found."""
    programs = tmp_path / "bin"
    programs.mkdir()

    def run(*fake: str) -> subprocess.CompletedProcess[str]:
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None
            (programs / tool).symlink_to(found)
        for name in fake:
            (programs / name).write_text("#!/usr/bin/env bash\nexit 0\n")
            (programs / name).chmod(0o755)
        return subprocess.run(
            [BASH, "scripts/setup.sh"],
            cwd=project,
            env={"PATH": str(programs), "HOME": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def prepare(project: Path) -> None:
    """Make the folder look as after a first call."""
    (project / ".venv" / "bin").mkdir(parents=True)
    command = project / ".venv" / "bin" / "hsm-endorser"
    command.touch(mode=0o755)
    read = (project / "requirements.lock").read_bytes() + (project / "pyproject.toml").read_bytes()
    (project / ".venv" / ".prepared").write_text(f"{project} {hashlib.sha256(read).hexdigest()}")


def unpacked_softhsm(project: Path) -> None:
    """Make the folder look as after SoftHSM2 was unpacked into it."""
    (project / ".softhsm/usr/bin").mkdir(parents=True)
    (project / ".softhsm/usr/lib/softhsm").mkdir(parents=True)
    (project / ".softhsm/usr/lib/softhsm/libsofthsm2.so").touch()
    util = project / ".softhsm/usr/bin/softhsm2-util"
    util.write_text("#!/usr/bin/env bash\nexit 0\n")
    util.chmod(0o755)


def test_the_second_call_does_nothing_and_says_nothing(project: Path, setup: Setup) -> None:
    """Where everything is prepared, the script neither needs Python nor apt nor a network, and is silent."""
    prepare(project)
    unpacked_softhsm(project)
    done = setup()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_softhsm_the_line_to_run_is_printed(project: Path, setup: Setup) -> None:
    """When SoftHSM2 can neither be installed nor unpacked, the script says so and prints the exact line."""
    prepare(project)
    done = setup()
    assert done.returncode == 1
    assert done.stdout == ""
    assert "SoftHSM2 cannot be installed" in done.stderr
    assert "    sudo apt-get update && sudo apt-get install -y softhsm2 libsofthsm2\n" in done.stderr


def test_without_python_the_line_to_run_is_printed(project: Path, setup: Setup) -> None:
    """When no Python 3.11 can be found or installed, the script prints the exact line."""
    unpacked_softhsm(project)
    done = setup()
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed" in done.stderr
    assert "    sudo apt-get update && sudo apt-get install -y python3 python3-venv\n" in done.stderr


def test_a_changed_lock_file_is_noticed(project: Path, setup: Setup) -> None:
    """After a change of the lock file the environment is made again."""
    prepare(project)
    unpacked_softhsm(project)
    with (project / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert "Python 3.11 or newer is needed" in setup().stderr


def test_a_moved_folder_is_noticed(project: Path, setup: Setup) -> None:
    """An environment that was made elsewhere is made again: its scripts name the old folder."""
    prepare(project)
    unpacked_softhsm(project)
    stamp = project / ".venv" / ".prepared"
    stamp.write_text(stamp.read_text().replace(str(project), "/elsewhere"))
    assert "Python 3.11 or newer is needed" in setup().stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_and_stop_at_errors(script: str) -> None:
    """Every script can be started as it is, is valid bash, and stops at the first error."""
    path = PROJECT / script
    assert path.stat().st_mode & 0o111
    assert subprocess.run([BASH, "-n", path], check=False).returncode == 0
    assert "set -euo pipefail" in path.read_text()
