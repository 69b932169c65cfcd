"""The management service's configuration file (TOML); relative paths are relative to the file."""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, ValidationInfo

from management.errors import ConfigError
from transport.address import Address

FOLDER: Final = "folder"


def _path(value: object, info: ValidationInfo) -> object:
    folder = (info.context or {}).get(FOLDER, Path())
    return Path(os.path.normpath(folder / value)) if isinstance(value, str) else value


def _address(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    return Address.parse(value).within((info.context or {}).get(FOLDER, Path()))


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
LocalPath = Annotated[Path, BeforeValidator(_path)]
ServiceAddress = Annotated[Address, BeforeValidator(_address)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class DeviceConfig(_Model):
    """An endorsement device and where it listens."""

    name: Name
    address: ServiceAddress


class Config(_Model):
    """What one management service (a center) needs to know."""

    name: Name
    """The center's name in the registry."""
    listen: Annotated[list[ServiceAddress], Field(min_length=1)]
    control: ServiceAddress
    """The operator's own door: a Unix socket."""
    genesis: LocalPath
    database: LocalPath
    devices: Annotated[list[DeviceConfig], Field(min_length=1)]
    ca_name: Name = "ca"
    """The CA's name among the registrars."""
    period_ms: Annotated[int, Field(ge=10, le=3_600_000)] = 500
    """Blocks are cut this often (requirement M-4), in milliseconds."""
    heartbeat_ms: Annotated[int, Field(ge=100, le=86_400_000)] = 60_000
    """After this time without transactions an empty block is cut, in milliseconds."""
    endorsement_ms: Annotated[int, Field(ge=100, le=600_000)] = 10_000
    """A transaction whose policy is not satisfied within this time of the first question has failed."""
    hedge_ms: Annotated[int, Field(ge=50, le=60_000)] = 1_000
    """A device that owes an answer for so long is silent: others are asked too (requirement E-12)."""
    silence_ms: Annotated[int, Field(ge=100, le=600_000)] = 1_750
    """A transaction for which only silent devices are left has failed so long after the first question."""
    pool_limit: Annotated[int, Field(ge=1, le=10_000_000)] = 50_000
    """Most transactions in the record pool; beyond it, intake answers 429."""
    block_transactions: Annotated[int, Field(ge=1, le=65_536)] = 2_000
    """A block is cut early when so many transactions wait, and holds no more."""


def load(path: Path) -> Config:
    """The configuration in the file at `path`; raises `ConfigError` that names file and field."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from None
    try:
        config = Config.model_validate(data, context={FOLDER: path.absolute().parent})
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise ConfigError(f"{path}: {found}") from None
    if config.control.path is None:
        raise ConfigError(f"{path}: control: must be unix:/path/to.sock, which only its user can open")
    names = [device.name for device in config.devices]
    if len(set(names)) != len(names):
        raise ConfigError(f"{path}: devices: a name stands twice among {', '.join(names)}")
    return config
