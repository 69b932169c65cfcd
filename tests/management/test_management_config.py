"""The configuration file."""

from pathlib import Path

import pytest

from management.config import load
from management.errors import ConfigError

GOOD = """
name = "center-1"
listen = ["unix:../run/management.sock"]
control = "unix:../run/control.sock"
genesis = "../genesis.json"
database = "chain.db"
[[devices]]
name = "device-a"
address = "unix:../run/device-a.sock"
"""


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """Files and sockets are found from the folder of the configuration file; what is left out has its default."""
    path = tmp_path / "management.toml"
    path.write_text(GOOD)
    config = load(path)
    assert config.database == tmp_path / "chain.db"
    assert str(config.devices[0].address) == f"unix:{tmp_path.parent}/run/device-a.sock"
    assert (config.period_ms, config.pool_limit, config.block_transactions) == (500, 50_000, 2_000)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("colour = 'red'\n" + GOOD, "colour"),
        (GOOD.replace('name = "center-1"', "name = 'a b'"), "name"),
        (GOOD.replace("unix:../run/control.sock", "http://127.0.0.1:8080"), "control: must be unix"),
        (GOOD.replace("unix:../run/management.sock", "ftp://x"), "listen"),
        ("period_ms = 0\n" + GOOD, "period_ms"),
        (GOOD + '[[devices]]\nname = "device-a"\naddress = "unix:b.sock"\n', "stands twice"),
        ("name =", "is no TOML"),
    ],
)
def test_errors_name_the_field(tmp_path: Path, change: str, reason: str) -> None:
    """What cannot be used is refused, and the message names the file and the field."""
    path = tmp_path / "management.toml"
    path.write_text(change)
    with pytest.raises(ConfigError, match=reason) as refused:
        load(path)
    assert "management.toml" in str(refused.value)


def test_missing_file_is_said(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "none.toml")
