"""The configuration file of a peer, and what it says of mistakes."""

from pathlib import Path

import pytest

from peer.config import load
from peer.errors import ConfigError

GOOD = """\
name = "peer-1"
listen = ["unix:../run/peer-1.sock", "http://127.0.0.1:8080"]
sources = ["unix:../run/management.sock"]
genesis = "../genesis.json"
database = "chain.db"
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "peer.toml"
    path.write_text(text)
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """A peer can be started from any folder."""
    config = load(_write(tmp_path, GOOD))
    assert [str(address) for address in config.listen] == [
        f"unix:{tmp_path.parent}/run/peer-1.sock",
        "http://127.0.0.1:8080",
    ]
    assert (config.name, config.genesis) == ("peer-1", tmp_path.parent / "genesis.json")
    assert config.database == tmp_path / "chain.db"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('name = "peer-1"', 'name = "a b"', r"peer\.toml: name: .*pattern"),
        ('name = "peer-1"', "", "name: Field required"),
        ('name = "peer-1"', 'name = "peer-1"\nmore = 1', "more: Extra inputs are not permitted"),
        ('["unix:../run/management.sock"]', "[]", "sources: .*at least 1 item"),
        ('["unix:../run/management.sock"]', '["/run/x.sock"]', r"sources\.0: .*is no address; write unix:"),
        ('"chain.db"', "7", "database: "),
        ("listen =", "listen", "is no TOML file"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, reason: str) -> None:
    """The file and the field stand in the message."""
    assert old in GOOD
    with pytest.raises(ConfigError, match=reason):
        load(_write(tmp_path, GOOD.replace(old, new)))


@pytest.mark.requirement("S-1")
def test_a_listener_that_others_could_reach_is_refused(tmp_path: Path) -> None:
    """The reason is given, and what to write instead."""
    with pytest.raises(ConfigError, match=r"listen\.1: .*carry everything in clear; until mutual TLS is there, use"):
        load(_write(tmp_path, GOOD.replace("127.0.0.1", "0.0.0.0")))  # noqa: S104  what must be refused


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The message names the path."""
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere\.toml: No such file"):
        load(tmp_path / "nowhere.toml")
