"""A token at the end of a connection, as a network HSM is: `p11-kit server` over the misbehaving module."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from hsm_endorser.token import TokenConfig
from hsm_endorser.uri import TokenUri
from softhsm.installation import find
from tests.hsm_endorser.shimmed_token import Shimmed, shim

START_SECONDS = 10.0
FOLDERS = ("/usr/lib/*/pkcs11", "/usr/lib/pkcs11", "/usr/lib64/pkcs11")


def client_module() -> Path:
    """`p11-kit-client.so` of this machine (Debian: p11-kit-modules)."""
    for folder in FOLDERS:
        for found in Path("/").glob(f"{folder.removeprefix('/')}/p11-kit-client.so"):
            return found
    raise FileNotFoundError("p11-kit-client.so is missing; run: sudo apt-get install p11-kit p11-kit-modules")


class Server:
    """A `p11-kit server` before one token; it forks a child for each connection."""

    def __init__(self, token: Shimmed, socket: Path) -> None:
        self._token = token
        self.socket = socket
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it listens."""
        program = shutil.which("p11-kit")
        assert program, "run: sudo apt-get install p11-kit p11-kit-modules"
        self.socket.unlink(missing_ok=True)
        control = self._token.control.environment(find().module)
        environment = {"PATH": os.environ["PATH"], **self._token.soft.created.environment, **control}
        self._process = subprocess.Popen(
            [program, "server", "-f", "-n", self.socket, "--provider", shim(), "pkcs11:token=token-a"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self.socket.exists():
            assert self._process.poll() is None, "p11-kit server ended"
            assert time.monotonic() < deadline, "p11-kit server does not listen"
            time.sleep(0.01)

    @property
    def children(self) -> list[int]:
        """The processes that serve one connection each."""
        assert self._process
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(each) for each in path.read_text().split()]

    def signal_children(self, number: int) -> None:
        """Send a signal to whoever serves a connection now."""
        for child in self.children:
            os.kill(child, number)

    def kill(self) -> None:
        """End the server and all that it forked."""
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    @property
    def config(self) -> TokenConfig:
        """How a device reaches the token over the connection."""
        uri = msgspec.structs.replace(TokenUri.parse(self._token.soft.created.uri), module=client_module())
        environment = {"P11_KIT_SERVER_ADDRESS": f"unix:path={self.socket}"}
        return msgspec.structs.replace(self._token.config, uri=uri, environment=environment)


@contextmanager
def serving(token: Shimmed, socket: Path) -> Iterator[Server]:
    """A server that runs until the end of the block."""
    server = Server(token, socket)
    server.start()
    try:
        yield server
    finally:
        server.kill()
