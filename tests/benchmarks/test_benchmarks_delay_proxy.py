"""The proxy that stands for distance: it delays by what it is told, and changes nothing else."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.delay_proxy import Distance, Link
from transport.address import Address

SLACK = 0.04
"""What a busy machine may add, in seconds."""


class Echo(threading.Thread):
    """A service that sends back what it gets."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self.start()

    def run(self) -> None:
        """Answer until the listener is closed."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def close(self) -> None:
        """Answer nobody any more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.join(5)

    @staticmethod
    def _answer(connection: socket.socket) -> None:
        with connection:
            while chunk := connection.recv(65536):
                connection.sendall(chunk)


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    """A link to a service that echoes; no delay yet."""
    echo = Echo(tmp_path / "echo.sock")
    with Distance() as distance:
        yield distance.link(Address(path=tmp_path / "far.sock"), Address(path=tmp_path / "echo.sock"))
    echo.close()


@pytest.fixture
def client(link: Link) -> Iterator[socket.socket]:
    """A connection over the link."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(str(link.listen.path))
        yield connection


def round_trip(connection: socket.socket, data: bytes) -> float:
    """Seconds until all of `data` is back."""
    began = time.monotonic()
    connection.sendall(data)
    received = b""
    while len(received) < len(data):
        received += connection.recv(65536)
    assert received == data
    return time.monotonic() - began


def median_round_trip(connection: socket.socket) -> float:
    """Of five, in seconds."""
    return sorted(round_trip(connection, b"x") for _ in range(5))[2]


@pytest.mark.requirement("E-21")
@pytest.mark.parametrize("delay", [0.02, 0.05])
def test_a_round_trip_takes_twice_the_delay(link: Link, client: socket.socket, delay: float) -> None:
    """An open connection adds the one-way delay in each direction, and hardly more."""
    link.delay = delay
    round_trip(client, b"first")

    assert 2 * delay <= median_round_trip(client) < 2 * delay + SLACK


def test_without_a_delay_the_proxy_costs_little(client: socket.socket) -> None:
    """At delay zero what remains is the proxy's own work."""
    assert median_round_trip(client) < SLACK


def test_the_delay_can_be_changed_while_a_connection_is_open(link: Link, client: socket.socket) -> None:
    """Both the rise and the fall take effect on the next bytes."""
    near = median_round_trip(client)
    link.delay = 0.1
    far = median_round_trip(client)
    link.delay = 0.0

    assert (far >= 0.2, near < 0.2, median_round_trip(client) < 0.2) == (True, True, True)


def test_a_new_connection_costs_one_round_trip_more(link: Link) -> None:
    """The first answer comes after the handshake's round trip and its own."""
    link.delay = 0.05
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(link.listen.path))
        first = round_trip(connection, b"x")

    assert 0.2 <= first < 0.2 + 2 * SLACK


def test_latency_does_not_limit_the_rate(link: Link, client: socket.socket) -> None:
    """Many chunks are under way at once, and arrive complete and in order."""
    link.delay = 0.05
    data = b"".join(number.to_bytes(4, "big") for number in range(100_000))

    def send() -> None:
        for start in range(0, len(data), 4096):
            client.sendall(data[start : start + 4096])

    sender = threading.Thread(target=send)
    began = time.monotonic()
    sender.start()
    received = b""
    while len(received) < len(data):
        received += client.recv(65536)
    sender.join(5)

    assert received == data
    assert time.monotonic() - began < 2.0  # one after the other, a hundred chunks would take ten seconds


def test_the_end_of_a_connection_travels_too(client: socket.socket) -> None:
    """Who stops sending still gets the rest of the answer, and then the end."""
    client.sendall(b"last words")
    client.shutdown(socket.SHUT_WR)
    received = b""
    while chunk := client.recv(100):
        received += chunk

    assert received == b"last words"


def test_a_service_that_is_away_is_a_broken_connection(tmp_path: Path) -> None:
    """Nothing hangs: the client is told by the end of its connection."""
    with Distance() as distance:
        distance.link(Address(path=tmp_path / "far.sock"), Address(path=tmp_path / "nobody.sock"))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(5)
            connection.connect(str(tmp_path / "far.sock"))

            assert connection.recv(1) == b""


def test_leaving_closes_everything(tmp_path: Path) -> None:
    """No socket file, no connection and no thread remains."""
    echo = Echo(tmp_path / "echo.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(5)
        with Distance() as distance:
            link = distance.link(Address(path=tmp_path / "far.sock"), Address(path=tmp_path / "echo.sock"))
            connection.connect(str(tmp_path / "far.sock"))
            round_trip(connection, b"x")
        echo.close()

        assert connection.recv(1) == b""
    assert link.listen.path is not None
    assert not link.listen.path.exists()
    assert [thread.name for thread in threading.enumerate() if thread.name == "distance"] == []
