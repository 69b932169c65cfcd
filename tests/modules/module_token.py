"""A token of a real module: all that the product is told of it stands in a PKCS#11 URI and an environment."""

import os
import secrets
from pathlib import Path

import msgspec

from hsm_endorser.token import TokenConfig
from hsm_endorser.worker_messages import RSA_BITS
from protocol.keys import Scheme

LABEL = "device-token"


class ModuleToken(msgspec.Struct, frozen=True, kw_only=True):
    """An initialised, empty token, whose daemons run."""

    uri: str
    environment: dict[str, str]
    schemes: tuple[Scheme, ...]
    """What its module can do, the first for identity, center and CA."""
    rsa_bits: int = RSA_BITS

    @property
    def config(self) -> TokenConfig:
        """How a device opens it."""
        return msgspec.structs.replace(TokenConfig.parse(self.uri, self.environment), rsa_bits=self.rsa_bits)


def uri(module: Path, pin: Path, label: str = LABEL) -> str:
    """The URI of the token in a module."""
    return f"pkcs11:token={label}?module-path={module}&pin-source=file:{pin}"


def create_pin(path: Path) -> Path:
    """A file with a new PIN; eight characters, the most that opencryptoki takes."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(4) + "\n")
    return path


def module(*names: str, packages: str) -> Path:
    """The first module of that name on this machine; fails with the line to run."""
    folders = ("usr/lib/*/pkcs11", "usr/lib/*", "usr/lib/pkcs11", "usr/lib64/pkcs11", "usr/lib64", "usr/lib")
    for name in names:
        for folder in folders:
            for found in sorted(Path("/").glob(f"{folder}/{name}")):
                return found
    raise AssertionError(f"{names[0]} is missing; run: sudo apt-get install -y {packages}")
