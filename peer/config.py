"""The configuration of a peer: one TOML file. Relative paths are relative to the file.

name = "peer-1"
listen = ["unix:../../run/peer-1.sock"]
sources = ["unix:../../run/management.sock"]
genesis = "../../genesis.json"
database = "chain.db"
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from peer.errors import ConfigError
from transport import settings
from transport.settings import Name, ResolvedAddress, ResolvedPath, Settings, SettingsError


class Config(Settings):
    """What a peer is told: its name, where it listens, whom it follows, where its chain stands."""

    name: Name
    listen: Annotated[tuple[ResolvedAddress, ...], Field(min_length=1)]
    sources: Annotated[tuple[ResolvedAddress, ...], Field(min_length=1)]
    genesis: ResolvedPath
    database: ResolvedPath


def load(path: Path) -> Config:
    """The configuration in a file; raises `ConfigError` that names every field that is wrong."""
    try:
        return settings.read(path, Config)
    except SettingsError as error:
        raise ConfigError(str(error)) from None
