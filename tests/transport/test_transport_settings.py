"""Configuration files: paths and addresses relative to the file, and mistakes by name."""

from pathlib import Path

import pytest

from transport.address import Address
from transport.settings import Name, ResolvedAddress, ResolvedPath, Settings, SettingsError, read


class Table(Settings):
    """A table within a configuration."""

    count: int


class Sample(Settings):
    """One field of each kind."""

    name: Name
    place: ResolvedAddress
    file: ResolvedPath
    table: Table


GOOD = """\
name = "a"
place = "unix:run/../a.sock"
file = "../b.db"

[table]
count = 1
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "service.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """Files and sockets stand where they do seen from the configuration, whatever folder a service is started in."""
    sample = read(_write(tmp_path, GOOD), Sample)
    assert (sample.file, sample.place) == (tmp_path.parent / "b.db", Address(path=tmp_path / "a.sock"))


def test_absolute_paths_stay(tmp_path: Path) -> None:
    """An absolute path and a loopback port mean the same everywhere."""
    text = GOOD.replace("../b.db", "/b.db").replace("unix:run/../a.sock", "http://127.0.0.1:8080")
    sample = read(_write(tmp_path, text), Sample)
    assert (sample.file, str(sample.place)) == (Path("/b.db"), "http://127.0.0.1:8080")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('name = "a"', 'name = "a\\n"', r"service\.toml: name: .*pattern"),
        ('name = "a"', 'other = "a"', r"name: Field required; other: Extra inputs are not permitted"),
        ("count = 1", 'count = "many"', r"table\.count: "),
        ("unix:run/../a.sock", "a.sock", "place: .*is no address; write unix:"),
        ('name = "a"', "name", "is no TOML file"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, reason: str) -> None:
    """The file and every field that is wrong stand in the message."""
    assert old in GOOD
    with pytest.raises(SettingsError, match=reason):
        read(_write(tmp_path, GOOD.replace(old, new)), Sample)


@pytest.mark.requirement("S-1")
def test_an_address_that_others_could_reach_is_refused(tmp_path: Path) -> None:
    """Before anything is opened there, with what to write instead."""
    text = GOOD.replace("unix:run/../a.sock", "http://192.0.2.1:80")
    with pytest.raises(SettingsError, match=r"place: .*until mutual TLS is there, use unix:"):
        read(_write(tmp_path, text), Sample)


@pytest.mark.requirement("S-6")
def test_a_mistake_does_not_repeat_the_value(tmp_path: Path) -> None:
    """Somebody may have written a PIN into the wrong field."""
    with pytest.raises(SettingsError, match="more: Extra inputs") as raised:
        read(_write(tmp_path, GOOD.replace('name = "a"', 'name = "a"\nmore = "314159"')), Sample)
    assert "314159" not in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The message holds its path."""
    with pytest.raises(SettingsError, match=r"cannot read .*nowhere\.toml: No such file"):
        read(tmp_path / "nowhere.toml", Sample)
