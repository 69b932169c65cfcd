"""Programs that a token needs: started, waited for, and ended with whoever started them, even when that is killed."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

START_SECONDS = 15.0
END_SECONDS = 5.0
ACCEPTS = 0x10000
"""__SO_ACCEPTCON in the flags of /proc/net/unix."""


def program(name: str, packages: str) -> str:
    """The path of a program; fails with the line to run."""
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    assert found, f"{name} is missing; run: sudo apt-get install -y {packages}"
    return found


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], *, ready: Callable[[], bool], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """A program that runs until the end of the block; it is `ready` at its beginning."""
    name = Path(str(command[0])).name
    with log.open("wb") as output:
        process = subprocess.Popen(
            # The kernel ends it with this process.
            [program("setpriv", "util-linux"), "--pdeathsig", "KILL", *command],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            said = log.read_text(errors="replace")[-2000:]
            assert process.poll() is None, f"{name} ended with {process.returncode}: {said}"
            assert time.monotonic() < deadline, f"{name} was not ready within {START_SECONDS:g} s: {said}"
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def listening(path: Path) -> bool:
    """Whether somebody accepts connections on a Unix socket: its file is there a moment before.

    The kernel is asked: a connection that says nothing ends opencryptoki's daemon.
    """
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return any(fields[-1] == str(path) and int(fields[3], 16) & ACCEPTS for fields in sockets[1:])


def run(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> str:
    """What a program prints that ends soon; its errors are the assertion's text."""
    done = subprocess.run(
        command,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"{Path(str(command[0])).name} failed: {(done.stderr or done.stdout).strip()}"
    return done.stdout
