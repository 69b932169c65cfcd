"""How a service reads its configuration: one TOML file, checked field by field. Paths are relative to the file."""

import os
import tomllib
from pathlib import Path
from typing import Annotated, TypeVar

import pydantic
from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationInfo

from transport.address import Address, AddressError


class SettingsError(ValueError):
    """A configuration file that cannot be used; the message names the file and every field that is wrong."""


class Settings(BaseModel):
    """What every table of a configuration has in common: nothing unknown in it, and it never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True, hide_input_in_errors=True)


S = TypeVar("S", bound=Settings)


def read(path: Path, kind: type[S]) -> S:
    """The configuration in the file at `path`; raises `SettingsError`."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is no TOML file: {error}") from None
    try:
        return kind.model_validate(settings, context=path.absolute().parent)
    except pydantic.ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise SettingsError(f"{path}: {wrong}") from None


def _resolved(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str) or not isinstance(info.context, Path):
        return value
    return Path(os.path.normpath(info.context / value))


def _address(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    try:
        address = Address.parse(value)
        address.require_local()
    except AddressError as error:
        raise ValueError(str(error)) from None  # pydantic adds the field to the reason of a ValueError
    return address.within(info.context) if isinstance(info.context, Path) else address


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\z")]
"""A name as the protocol has it (see `protocol.canonical.Name`)."""
ResolvedPath = Annotated[Path, BeforeValidator(_resolved)]
ResolvedAddress = Annotated[Address, BeforeValidator(_address)]
"""An address that only this machine can reach (requirement S-1)."""
