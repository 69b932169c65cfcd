"""The plan of a network folder: who is in it, where everything lies, and the text of every configuration file.

DIR/genesis.json, network.toml          block 0 in canonical bytes; what this folder is
    devices/NAME/device.toml, pin, …    an endorsement device and its token
    management/management.toml          the management service (a center)
    peers/NAME/peer.toml                a peer
    clients/NAME.key, .csr, .crt        software keys of clients, what they asked of the CA, what it certified
    administrators/NAME.key             software keys of those who may change the registry
    run/*.sock, logs/*.log              where services listen, what they write
"""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from cli.errors import UsageError
from protocol.canonical import Name
from protocol.registry import Partitioned, Replicated, Rotation, Routing
from protocol.tier import Tier
from transport.address import Address

DEFAULT_NODES: Final = ("A", "B", "C")
CENTER: Final = "center-1"
CA: Final = "ca"
ADMINISTRATORS: Final = ("admin-1", "admin-2", "admin-3")
ADMINISTRATORS_NEEDED: Final = 2
LONGEST_VALIDITY_MS: Final = 3_600_000
PERIOD_MS: Final = 500


class Layout(msgspec.Struct, frozen=True):
    """Where everything lies under the folder of one network."""

    folder: Path

    @property
    def genesis(self) -> Path:
        """Block 0, canonical bytes."""
        return self.folder / "genesis.json"

    @property
    def network_file(self) -> Path:
        """What this folder is: names and addresses."""
        return self.folder / "network.toml"

    def device(self, name: str) -> Path:
        """The folder of an endorsement device."""
        return self.folder / "devices" / name

    @property
    def management(self) -> Path:
        """The folder of the management service."""
        return self.folder / "management"

    def peer(self, name: str) -> Path:
        """The folder of a peer."""
        return self.folder / "peers" / name

    def client_key(self, name: str) -> Path:
        """The private key of a client."""
        return self.folder / "clients" / f"{name}.key"

    def client_request(self, name: str) -> Path:
        """The certificate signing request of a client."""
        return self.folder / "clients" / f"{name}.csr"

    def client_certificate(self, name: str) -> Path:
        """The certificate of a client."""
        return self.folder / "clients" / f"{name}.crt"

    def administrator_key(self, name: str) -> Path:
        """The private key of an administrator."""
        return self.folder / "administrators" / f"{name}.key"

    def socket(self, name: str) -> Address:
        """Where the service `name` listens."""
        return Address(path=self.folder / "run" / f"{name}.sock")


class NetworkPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Who is in a network: devices with the nodes whose keys they hold, peers, policies, administrators."""

    name: str
    devices: dict[str, tuple[str, ...]]
    peers: tuple[str, ...]
    policies: dict[str, str]
    routing: Routing = Partitioned()
    administrators: tuple[str, ...] = ADMINISTRATORS
    period_ms: int = PERIOD_MS
    least_tier: Tier = "claimed"
    """Above claimed, every token is audited when the network is made (requirement K-5)."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """All nodes, each once."""
        return tuple(dict.fromkeys(node for nodes in self.devices.values() for node in nodes))

    @property
    def first_device(self) -> str:
        """The device whose token holds the keys of the center and the CA, too."""
        return next(iter(self.devices))


def default_plan(name: str, nodes: Sequence[str], peers: int, policies: Mapping[str, str]) -> NetworkPlan:
    """One device for each node; two thirds of the nodes endorse, and all of them where value is made.

    Raises `UsageError` for names that cannot stand in a registry.
    """
    _require_name("the network", name, "name it otherwise: --name NAME")
    for node in nodes:  # its device's name is a folder's name, too
        _require_name("a node", node, "name it otherwise: --node NAME")
        _require_name("its device", f"device-{node.lower()}", "choose a shorter --node NAME")
    if len(set(nodes)) != len(nodes):
        raise UsageError(f"a node is named twice among {', '.join(nodes)}")
    if len({node.lower() for node in nodes}) != len(nodes):
        raise UsageError("two nodes differ in capitals only; their devices would have the same name")
    quoted = ", ".join(f"'{node}'" for node in nodes)
    enough = len(nodes) * 2 // 3 or 1
    some = f"OutOf({enough}, {quoted})"
    every = f"AND({quoted})"
    return NetworkPlan(
        name=name,
        devices={f"device-{node.lower()}": (node,) for node in nodes},
        peers=tuple(f"peer-{number}" for number in range(1, peers + 1)),
        policies={"assets": some, "evidence": some, "assets.issue": every} | dict(policies),
    )


def checked_name(what: str, name: str, advice: str) -> str:
    """The name, when it can stand in a registry; raises `UsageError`."""
    _require_name(what, name, advice)
    return name


def _require_name(what: str, name: str, advice: str) -> None:
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        reason = f"{what} cannot be called {name!r}: names are 1 to 64 ASCII letters, digits, '.', '_' or '-'"
        raise UsageError(f"{reason}, a letter or digit first", advice=advice) from None


def replicated(plan: NetworkPlan, devices: int, sequence: str = "") -> NetworkPlan:
    """The same network with a key of every node on each of `device-1` … `device-N` (requirement E-7).

    With a `sequence` of groups, the devices take turns by it (requirement E-8).
    """
    names = tuple(f"device-{number}" for number in range(1, devices + 1))
    routing = rotation(sequence) if sequence else Replicated()
    if isinstance(routing, Rotation):
        unknown = {name for group in routing.sequence for name in group} - set(names)
        if unknown:
            raise UsageError(f"the sequence names {', '.join(sorted(unknown))}; the devices are {', '.join(names)}")
    return msgspec.structs.replace(plan, devices=dict.fromkeys(names, plan.nodes), routing=routing)


def rotation(sequence: str) -> Rotation:
    """The rotation that a text such as `device-a;device-b,device-c` states; raises `UsageError`."""
    groups = [[device.strip() for device in group.split(",")] for group in sequence.split(";")]
    try:
        return msgspec.convert({"strategy": "rotation", "sequence": groups}, Rotation)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"--sequence {sequence!r}: {error}", advice="groups are parted by ';', the devices of one by ','"
        ) from None


def device_settings(name: str, token_uri: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """The contents of `device.toml`."""
    return {
        "name": name,
        "listen": [f"unix:../../run/{name}.sock"],
        "control": f"unix:../../run/{name}-control.sock",
        "chain": ["unix:../../run/management.sock"],
        "genesis": "../../genesis.json",
        "database": "chain.db",
        "guard": "guard.db",
        "token": {"uri": token_uri, "environment": dict(environment), "deadline_ms": 1000},
    }


def management_settings(plan: NetworkPlan) -> dict[str, Any]:
    """The contents of `management.toml`."""
    return {
        "name": CENTER,
        "listen": ["unix:../run/management.sock"],
        "control": "unix:../run/control.sock",
        "genesis": "../genesis.json",
        "database": "chain.db",
        "ca_name": CA,
        "period_ms": plan.period_ms,
        "devices": [{"name": name, "address": f"unix:../run/{name}.sock"} for name in plan.devices],
    }


def peer_settings(name: str) -> dict[str, Any]:
    """The contents of `peer.toml`."""
    return {
        "name": name,
        "listen": [f"unix:../../run/{name}.sock"],
        "sources": ["unix:../../run/management.sock"],
        "genesis": "../../genesis.json",
        "database": "chain.db",
    }


def network_settings(plan: NetworkPlan) -> dict[str, Any]:
    """The contents of `network.toml`."""
    return {
        "network": plan.name,
        "ceremony": "none",
        "devices": list(plan.devices),
        "peers": list(plan.peers),
        "administrators": list(plan.administrators),
    }


class NetworkFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`network.toml`, read."""

    network: str
    ceremony: str
    devices: tuple[str, ...]
    peers: tuple[str, ...]
    administrators: tuple[str, ...]


def read_network(folder: Path) -> NetworkFile:
    """What a network folder says of itself; raises `UsageError` when it is none."""
    path = Layout(folder).network_file
    advice = f"make a network first: hsm-endorser network init {folder}"
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), NetworkFile)
    except FileNotFoundError:
        raise UsageError(f"{folder} is no network folder: {path.name} is missing", advice=advice) from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{path}: {error}") from None


def write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write a TOML file: plain values first, then tables, then lists of tables."""
    lines = [f"{key} = {_value(value)}" for key, value in settings.items() if not _is_table(value)]
    for key, value in settings.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{key}]", *(f"{name} = {_value(each)}" for name, each in value.items())]
        elif _is_table(value):
            for table in value:
                lines += ["", f"[[{key}]]", *(f"{name} = {_value(each)}" for name, each in table.items())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and bool(value) and all(isinstance(each, Mapping) for each in value)
    )


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, str | int | bool):
        return json.dumps(value)  # for these, TOML writes what JSON writes
    raise TypeError(f"no TOML form for {type(value).__name__}")
