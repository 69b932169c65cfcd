"""The configuration of a peer: one TOML file. Relative paths are relative to the file.

name = "peer-1"
listen = ["unix:../../run/peer-1.sock"]
sources = ["unix:../../run/management.sock"]
genesis = "../../genesis.json"
database = "chain.db"
"""

import tomllib
from pathlib import Path
from typing import Annotated, Final

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationInfo

from peer.errors import ConfigError
from transport.address import Address, AddressError


def _resolved(value: object, info: ValidationInfo) -> object:
    return info.context / value if isinstance(value, str) and isinstance(info.context, Path) else value


def _address(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    try:
        address = Address.parse(value)
        address.require_local()
    except AddressError as error:
        raise ValueError(str(error)) from None  # pydantic adds the field to the reason of a ValueError
    if address.path and isinstance(info.context, Path):
        return Address(path=info.context / address.path)
    return address


ResolvedPath = Annotated[Path, BeforeValidator(_resolved)]
ResolvedAddress = Annotated[Address, BeforeValidator(_address)]
NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\z"


class Config(BaseModel):
    """What a peer is told: its name, where it listens, whom it follows, where its chain stands."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    name: Annotated[str, StringConstraints(pattern=NAME)]
    listen: Annotated[tuple[ResolvedAddress, ...], Field(min_length=1)]
    sources: Annotated[tuple[ResolvedAddress, ...], Field(min_length=1)]
    genesis: ResolvedPath
    database: ResolvedPath

    @property
    def database_url(self) -> str:
        """The chain's database as SQLAlchemy names it."""
        return f"sqlite:///{self.database.absolute()}"


def load(path: Path) -> Config:
    """The configuration in a file; raises `ConfigError` that names every field that is wrong."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML file: {error}") from None
    try:
        return Config.model_validate(settings, context=path.absolute().parent)
    except pydantic.ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError(f"{path}: {wrong}") from None
