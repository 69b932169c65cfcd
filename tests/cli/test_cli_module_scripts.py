"""How `./test.sh --modules` prepares the machine: what is missing fails the run, with the line to run."""

import shutil
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash") or "/bin/bash"


def _call(last: str, programs: Path, *before: str) -> "subprocess.CompletedProcess[str]":
    """The end of the set-up script, where it begins to act, replaced: by these functions, then this call."""
    text = (PROJECT / "scripts/setup.sh").read_text()
    functions, acting, _ = text.rpartition("\nprepare_softhsm\n")
    assert acting
    script = programs / "setup.sh"
    script.write_text("\n".join([functions, *before, last, ""]))
    return _run(programs, script)


def _run(programs: Path, *command: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [BASH, *command],
        cwd=programs,
        env={"PATH": str(programs)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with the few programs that the scripts may find."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("dirname", "id"):
        found = shutil.which(tool)
        assert found
        (folder / tool).symlink_to(found)
    return folder


def test_a_module_that_cannot_be_installed_fails_with_the_line_to_run(programs: Path) -> None:
    """Never left out silently: all packages are named, and the status is 1."""
    done = _call("prepare_modules", programs, "modules_installed() { return 1; }")
    assert done.returncode == 1
    assert "the PKCS#11 modules of the test matrix cannot be installed" in done.stderr
    line = done.stderr.strip().splitlines()[-1].strip()
    assert line.startswith("sudo apt-get update && sudo apt-get install -y ")
    packages = line.split(" install -y ")[1].split()
    assert {"libnss3", "opencryptoki", "swtpm", "tpm2-abrmd", "libtpm2-pkcs11-1", "p11-kit-modules"} <= set(packages)


def test_installed_modules_need_nothing(programs: Path) -> None:
    """Where all are there, neither apt nor rights nor a network is needed, and nothing is said."""
    done = _call("prepare_modules", programs, "modules_installed() { return 0; }")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_missing_program_is_a_missing_module(programs: Path) -> None:
    """With no program of any module in reach, they are not installed; the check itself says nothing."""
    done = _call("modules_installed", programs)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_without_a_namespace_of_its_own_nothing_is_mounted(programs: Path) -> None:
    """Where the kernel allows none, the command does not run, and the line to run is printed."""
    (programs / "unshare").write_text(f"#!{BASH}\nexit 1\n")
    (programs / "unshare").chmod(0o755)
    done = _run(programs, PROJECT / "scripts/own_mounts.sh", "touch", "ran")
    assert done.returncode == 1
    assert "    sudo ./test.sh --modules\n" in done.stderr
    assert not (programs / "ran").exists()
