"""The plan of a ceremony: a TOML file that says everything before anything is done (requirement K-11).

What it comes to is a `protocol.ceremony.Declaration`: the first step of the transcript, under the file's digest.
"""

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from cli import plan as folders
from cli.errors import UsageError
from hsm_endorser.config import PATH_VARIABLES
from hsm_endorser.errors import UriError
from hsm_endorser.token_config import TokenConfig
from hsm_endorser.uri import TokenUri
from hsm_endorser.worker_messages import RSA_BITS
from protocol import ceremony
from protocol.block import RULES_VERSION
from protocol.canonical import Name
from protocol.ceremony import Declaration, Holder, Label, Lifetimes, PlannedDevice, PlannedKey
from protocol.errors import ProtocolError
from protocol.keys import PublicKey, Scheme
from protocol.registry import EndorsementPolicy, Partitioned, Routing
from protocol.tier import Tier

DAY_MS: Final = 24 * 3600 * 1000
P256: Final[Scheme] = "ecdsa-p256-sha256"
URI: Final = "pkcs11:"
Days = Annotated[int, msgspec.Meta(ge=1, le=36525)]
MAX_BYTES: Final = 1 << 20


class LifetimeTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long the keys of each kind count, in days from the start of the ceremony."""

    node: Days = 730
    center: Days = 730
    ca: Days = 3652
    administrator: Days = 1095
    device: Days = 3652


class AdministratorTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A role holder: the public key, and where the private one is held, if that may stand here."""

    name: Name
    public_key: str
    """PEM, or the path of a PEM file."""
    held: str = ""
    """The path of the private key's file, or the pkcs11: URI of the token that holds it; empty: asked for."""
    environment: dict[str, str] = {}


class DeviceTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A device: its token, and whose keys are generated there."""

    name: Name
    uri: str
    environment: dict[str, str] = {}
    nodes: tuple[Name, ...] = ()
    center: str = ""
    ca: str = ""
    scheme: Scheme = P256
    schemes: dict[Label, Scheme] = {}
    """Schemes of single keys, by label."""
    deadline_ms: Annotated[int, msgspec.Meta(ge=50, le=60_000)] = 1000
    rsa_bits: Annotated[int, msgspec.Meta(ge=2048, le=4096)] = RSA_BITS
    profile: str = "strict"
    """By which profile its token is audited, where `least_tier` demands an audit."""


class PolicyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which nodes endorse a transaction type."""

    type: Name
    expression: Annotated[str, msgspec.Meta(max_length=4096)]
    routing: Routing = Partitioned()
    distinct_devices: bool = False
    least_tier: Tier = "claimed"


class PlanFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file as it is written."""

    network: Name
    administrators_needed: Annotated[int, msgspec.Meta(ge=ceremony.LEAST_PRESENT, le=32)] = ceremony.LEAST_PRESENT
    administrator: tuple[AdministratorTable, ...]
    device: Annotated[tuple[DeviceTable, ...], msgspec.Meta(min_length=1)]
    policy: tuple[PolicyTable, ...] = ()
    lifetimes: LifetimeTable = LifetimeTable()
    longest_validity_s: Annotated[int, msgspec.Meta(ge=60, le=30 * 24 * 3600)] = 3600
    least_tier: Tier = "claimed"
    peers: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1, max_length=16)] = ("peer-1", "peer-2")
    period_ms: Annotated[int, msgspec.Meta(ge=50, le=600_000)] = folders.PERIOD_MS


class Plan(msgspec.Struct, frozen=True):
    """A plan that holds together: the file and its bytes, and what is declared by it."""

    path: Path
    data: bytes
    file: PlanFile
    declaration: Declaration

    def device(self, name: str) -> DeviceTable:
        """A device's table."""
        return next(each for each in self.file.device if each.name == name)

    def administrator(self, name: str) -> AdministratorTable:
        """An administrator's table."""
        return next(each for each in self.file.administrator if each.name == name)

    def token(self, device: str) -> TokenConfig:
        """The token of a device; its paths are absolute."""
        table = self.device(device)
        return token_config(self.path, table.uri, table.environment, seconds=table.deadline_ms / 1000)

    @property
    def network_plan(self) -> folders.NetworkPlan:
        """The same as `network init` plans it."""
        return folders.NetworkPlan(
            name=self.file.network,
            devices={each.name: each.nodes for each in self.file.device},
            peers=self.file.peers,
            policies={each.type: each.expression for each in self.file.policy},
            administrators=tuple(each.name for each in self.file.administrator),
            period_ms=self.file.period_ms,
        )


def read(path: Path) -> Plan:
    """The plan in a file; raises `UsageError` that names the file and what is wrong in it."""
    try:
        data = path.read_bytes()
        file = msgspec.convert(tomllib.loads(data.decode()), PlanFile)
        plan = Plan(path.absolute(), data, file, _declare(path, file, hashlib.sha256(data).hexdigest()))
        ceremony.check_declaration(plan.declaration)
        _require_own_sockets(file)
        for device in file.device:
            plan.token(device.name)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError, ProtocolError, UriError) as error:
        raise UsageError(f"{path}: {error}") from None
    return plan


def token_config(
    base: Path, uri: str, environment: dict[str, str], *, seconds: float = 1.0, rsa_bits: int = RSA_BITS
) -> TokenConfig:
    """A token by its URI; relative paths are relative to the file `base`. Raises `UriError`."""
    folder = base.absolute().parent
    resolved = {name: str(folder / value) if name in PATH_VARIABLES else value for name, value in environment.items()}
    parsed = TokenUri.parse(uri, base=folder)
    return TokenConfig(uri=parsed, environment=resolved, seconds=seconds, rsa_bits=rsa_bits)


def public_key(base: Path, text: str) -> PublicKey:
    """A public key in PEM, in the text itself or in the file that it names; raises `UsageError`."""
    where = "public_key"
    data = text.encode()
    if not text.lstrip().startswith("-----BEGIN"):
        path = base.absolute().parent / text
        where = str(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{base}: cannot read the public key {path}: {error.strerror}") from None
    try:
        return PublicKey.of(serialization.load_pem_public_key(data))
    except (ValueError, UnsupportedAlgorithm, ProtocolError) as error:
        raise UsageError(f"{base}: {where} is no usable PEM public key: {error}") from None


def labels(device: DeviceTable) -> tuple[PlannedKey, ...]:
    """The keys to generate on a device's token, the identity first."""
    names = [f"{ceremony.NODE}{node}" for node in device.nodes]
    names += [f"{ceremony.CENTER}{device.center}"] if device.center else []
    names += [f"{ceremony.CA}{device.ca}"] if device.ca else []
    unknown = sorted(device.schemes.keys() - {*names, ceremony.IDENTITY})
    if unknown:
        raise ProtocolError(f"device {device.name}: schemes names {', '.join(unknown)}, which it does not hold")
    identity = PlannedKey(ceremony.IDENTITY, device.schemes.get(ceremony.IDENTITY, P256))
    return (identity, *(PlannedKey(name, device.schemes.get(name, device.scheme)) for name in names))


def _require_own_sockets(file: PlanFile) -> None:
    """Each service listens at a socket of its own name."""
    names = ["management", *(each.name for each in file.device), *file.peers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ProtocolError(f"{', '.join(twice)} is the name of two services")


def _declare(path: Path, file: PlanFile, digest: str) -> Declaration:
    of = file.lifetimes
    return msgspec.convert(  # the limits of the wire's types are checked here
        msgspec.to_builtins(
            Declaration(
                network=file.network,
                plan=digest,
                holders=tuple(Holder(each.name, public_key(path, each.public_key).spki) for each in file.administrator),
                needed=file.administrators_needed,
                devices=tuple(PlannedDevice(each.name, labels(each)) for each in file.device),
                policies=tuple(
                    EndorsementPolicy(each.type, each.expression, each.routing, each.distinct_devices, each.least_tier)
                    for each in file.policy
                ),
                lifetimes=Lifetimes(
                    of.node * DAY_MS,
                    of.center * DAY_MS,
                    of.ca * DAY_MS,
                    of.administrator * DAY_MS,
                    of.device * DAY_MS,
                ),
                longest_validity=file.longest_validity_s * 1000,
                rules_version=RULES_VERSION,
                least_tier=file.least_tier,
            )
        ),
        Declaration,
    )
