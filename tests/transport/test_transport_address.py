"""Addresses: what is one, and which of them other machines could reach."""

from pathlib import Path

import pytest

from transport.address import MAX_SOCKET_PATH, Address, AddressError
from transport.connect import connect, connect_blocking


@pytest.mark.parametrize(
    ("text", "shown", "base_url"),
    [
        ("unix:/run/a.sock", "unix:/run/a.sock", "http://localhost"),
        ("unix:///run/a.sock", "unix:/run/a.sock", "http://localhost"),
        ("unix:run/a.sock", "unix:run/a.sock", "http://localhost"),
        ("unix:/run/a#b?c.sock", "unix:/run/a#b?c.sock", "http://localhost"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("http://[::1]:8080", "http://[::1]:8080", "http://[::1]:8080"),
        ("http://localhost:8080", "http://localhost:8080", "http://localhost:8080"),
    ],
)
def test_what_is_an_address(text: str, shown: str, base_url: str) -> None:
    """A Unix socket by its path, or a host with a port; every character of a path counts."""
    address = Address.parse(text)
    assert (str(address), address.base_url) == (shown, base_url)
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("unix:a.sock", "unix:/net/management/a.sock"),
        ("unix:../run/a.sock", "unix:/net/run/a.sock"),
        ("unix:/run/a.sock", "unix:/run/a.sock"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
    ],
)
def test_relative_addresses_are_shown_without_detours(text: str, shown: str) -> None:
    """A relative path is relative to the folder given, and `..` is gone from what people read."""
    assert str(Address.parse(text).within(Path("/net/management"))) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "unix:",
        "unix://host/path",
        "/run/a.sock",
        "127.0.0.1:8080",
        "http://127.0.0.1",
        "http://127.0.0.1:0",
        "http://127.0.0.1:65536",
        "http://127.0.0.1:8080/path",
        "http://127.0.0.1:8080?query",
        "http://user@127.0.0.1:8080",
        "http://[::1",
        "https://127.0.0.1:8080",
        "tcp://127.0.0.1:8080",
        "http://127.0.0.1\n:8080",
        "unix:/run/a\0.sock",
    ],
)
def test_what_is_none(text: str) -> None:
    """The message says what to write."""
    with pytest.raises(AddressError, match=r"is no address; write unix:/path/to\.sock or http://127\.0\.0\.1:8080"):
        Address.parse(text)


@pytest.mark.requirement("S-1")
@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "[::1]"])
def test_loopback_is_local(host: str) -> None:
    """Nothing but this machine can reach it."""
    Address.parse(f"http://{host}:80").require_local()


@pytest.mark.requirement("S-1")
@pytest.mark.parametrize(
    "host",
    ["0.0.0.0", "[::]", "10.0.0.1", "192.168.1.1", "example.org", "localhost.example.org"],  # noqa: S104  refused
)
def test_beyond_loopback_nothing_listens_and_nothing_connects(host: str) -> None:
    """The reason is given, and what to use instead; listeners and connections obey the same rule."""
    address = Address.parse(f"http://{host}:80")
    for use in (
        address.require_local,
        lambda: connect(address, timeout=1),
        lambda: connect_blocking(address, timeout=1),
    ):
        with pytest.raises(AddressError, match="would carry everything in clear; until mutual TLS is there, use unix:"):
            use()


def test_a_path_too_long_for_the_kernel_is_shortened_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that is short seen from here is used that way; else the message names the folder as the reason."""
    folder = tmp_path / ("x" * 90) / ("y" * 90)
    folder.mkdir(parents=True)
    address = Address(path=folder / "a.sock")
    with pytest.raises(AddressError, match="too long for a Unix socket; use a folder with a shorter name"):
        address.socket_path()
    monkeypatch.chdir(folder)
    assert address.socket_path() == "a.sock"
    assert len(str(address.path)) > MAX_SOCKET_PATH
