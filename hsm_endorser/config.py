"""The configuration of a device: one TOML file. Relative paths are relative to the file.

name = "device-a"
listen = ["unix:../../run/device-a.sock"]
chain = ["unix:../../run/management.sock"]
genesis = "../../genesis.json"
database = "chain.db"
guard = "guard.db"

[token]
uri = "pkcs11:token=device-a;serial=…?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:pin"
environment = {SOFTHSM2_CONF = "softhsm2.conf"}
deadline_ms = 1000

`control = "unix:control.sock"` opens the operator's listener (drain, resume, unlock, PIN change); a token whose URI
names no pin-source needs it. `warn_days = [30, 7, 1]` says when it is warned of keys that are about to expire.
"""

from pathlib import Path
from typing import Annotated, Final, Literal, Self

import pydantic
from pydantic import BeforeValidator, Field, StringConstraints, ValidationInfo

from hsm_endorser.errors import ConfigError, UriError
from hsm_endorser.lifetimes import WARN_DAYS
from hsm_endorser.token import TokenConfig
from hsm_endorser.uri import TokenUri
from hsm_endorser.worker_messages import RSA_BITS
from transport.settings import Name, ResolvedAddress, ResolvedPath, Settings, SettingsError, read

PATH_VARIABLES: Final = frozenset({"SOFTHSM2_CONF"})
"""Variables of modules that hold a path; theirs may be relative to the file, too."""


def _uri(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str):
        return value
    try:
        return TokenUri.parse(value, base=info.context if isinstance(info.context, Path) else None)
    except UriError as error:
        raise ValueError(str(error)) from None


class TokenSettings(Settings):
    """Which token, what its module needs in its environment, and how long a call may take."""

    uri: Annotated[TokenUri, BeforeValidator(_uri)]
    environment: Annotated[
        dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\z")], str], Field(default_factory=dict)
    ]
    deadline_ms: Annotated[int, Field(ge=50, le=60_000)] = 1000
    """How long one call to the token may take; whoever asks the device waits one and a half times that at most."""
    start_ms: Annotated[int, Field(ge=500, le=120_000)] = 5000
    """How long loading the module, finding the token and logging in may take."""
    rsa_bits: Literal[2048, 3072, 4096] = RSA_BITS
    """The size of a new RSA key; some tokens make 2048 bits only."""

    @pydantic.field_validator("environment")
    @classmethod
    def _resolve(cls, value: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        base = info.context
        if not isinstance(base, Path):
            return value
        return {name: str(base / text) if name in PATH_VARIABLES else text for name, text in value.items()}


class Config(Settings):
    """What a device is told: its name, where it listens, whom it follows, where its records stand, its token."""

    name: Name
    listen: Annotated[tuple[ResolvedAddress, ...], Field(min_length=1)]
    chain: Annotated[tuple[ResolvedAddress, ...], Field(min_length=1)]
    genesis: ResolvedPath
    database: ResolvedPath
    guard: ResolvedPath
    token: TokenSettings
    control: ResolvedAddress | None = None
    """The operator's own door: a Unix socket."""
    warn_days: Annotated[tuple[Annotated[int, Field(ge=1, le=3650)], ...], Field(min_length=1, max_length=10)] = (
        WARN_DAYS
    )
    """So many days before a key expires, it is warned of, each time more urgently."""

    @pydantic.model_validator(mode="after")
    def _check_control(self) -> Self:
        if self.control and self.control.path is None:
            raise ValueError("control must be unix:/path/to.sock, which only its user can open")
        if self.control is None and self.token.uri.pin_file is None:
            raise ValueError(
                "token.uri names no PIN; write pin-source=file:/path/to/pin (mode 0600) into it, "
                'or control = "unix:control.sock" here, where an operator enters the PIN after each start'
            )
        return self

    @property
    def token_config(self) -> TokenConfig:
        """The token as the device opens it."""
        return TokenConfig(
            uri=self.token.uri,
            environment=self.token.environment,
            seconds=self.token.deadline_ms / 1000,
            start_seconds=self.token.start_ms / 1000,
            rsa_bits=self.token.rsa_bits,
            note=self.guard.with_name(f"{self.guard.name}.out-of-service"),
        )


def load(path: Path) -> Config:
    """The configuration in a file; raises `ConfigError` that names every field that is wrong."""
    try:
        return read(path, Config)
    except SettingsError as error:
        raise ConfigError(str(error)) from None
