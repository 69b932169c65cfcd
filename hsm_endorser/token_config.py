"""Which token, how long it may take, and which one it must be."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from hsm_endorser.uri import TokenUri
from hsm_endorser.worker_messages import RSA_BITS
from protocol import registry
from protocol.canonical import KeyId

IDENTITY_LABEL: Final = "identity"
DEFAULT_SECONDS: Final = 1.0
PATIENCE: Final = 1.5
"""A caller waits so many deadlines at most: for the calls before its own, and for its own."""


class TokenConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which token, and how long it may take. `environment` is given to the worker and to nobody else."""

    uri: TokenUri
    environment: Mapping[str, str] = {}
    seconds: float = DEFAULT_SECONDS
    """Deadline of one call. Whoever asks the device has an answer after `PATIENCE` times this."""
    start_seconds: float = 5.0
    """Deadline of loading the module, finding the token and logging in."""
    rsa_bits: int = RSA_BITS
    """The size of a new RSA key."""
    note: Path | None = None
    """Where it is kept that the token must not be used."""

    @property
    def patience(self) -> float:
        """How long a caller waits at most, in seconds."""
        return PATIENCE * self.seconds

    @staticmethod
    def parse(
        uri: str,
        environment: Mapping[str, str] | None = None,
        *,
        base: Path | None = None,
        seconds: float = DEFAULT_SECONDS,
    ) -> "TokenConfig":
        """The configuration for a URI in text; raises `UriError`."""
        return TokenConfig(uri=TokenUri.parse(uri, base=base), environment=dict(environment or {}), seconds=seconds)


class Pinned(msgspec.Struct, frozen=True):
    """Which token it must be: what its information says, and the identity key that must answer (K-9)."""

    token: registry.Token
    identity: KeyId
