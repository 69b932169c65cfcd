"""A network of one device on a token of a real module: enrolled by the product's provisioning, run as processes."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from cli import custody_audit, keys, plan
from cli.keys import SoftwareKey
from cli.main import main
from cli.network import services
from cli.plan import Layout, NetworkPlan, read_network, write_settings
from cli.supervisor import Supervisor
from hsm_endorser import provision
from hsm_endorser.config import Config, load
from hsm_endorser.custody.profile import load as load_profile
from hsm_endorser.provision import Provisioned
from hsm_endorser.token import IDENTITY_LABEL
from ledger.genesis import check_genesis, draft_genesis, genesis_payload
from protocol import custody
from protocol.block import RULES_VERSION, Block
from protocol.custody import Predicate
from protocol.keys import Scheme
from protocol.registry import (
    Administrator,
    Center,
    Channel,
    Device,
    EndorsementPolicy,
    Entry,
    Node,
    NodeKey,
    Registrar,
)
from tests.flow.running_network import RunningNetwork
from tests.modules.module_token import ModuleToken

NETWORK = "modules"
DEVICE = "device-a"
PROFILE = load_profile("strict")
CENTER_LABEL, CA_LABEL = f"center/{plan.CENTER}", f"ca/{plan.CA}"
NODES: dict[Scheme, str] = {"ecdsa-p256-sha256": "P", "rsa-pkcs1-sha256": "R", "ed25519": "E"}
"""A node for each scheme that the module can do: all of them endorse."""


async def enrol(folder: Path, token: ModuleToken) -> tuple[Layout, Provisioned]:
    """The network's folder; every key but the administrator's is generated on the token."""
    layout = Layout(folder)
    for part in ("devices/device-a", "management", "peers/peer-1", "clients", "administrators", "run", "logs"):
        (folder / part).mkdir(mode=0o700, parents=True)
    nodes = {NODES[scheme]: scheme for scheme in token.schemes}
    network = NetworkPlan(
        name=NETWORK, devices={DEVICE: tuple(nodes)}, peers=("peer-1",), policies={}, administrators=("admin",)
    )
    config = _write_device(layout, token)
    first = token.schemes[0]
    wanted: dict[str, Scheme] = {IDENTITY_LABEL: first, CENTER_LABEL: first, CA_LABEL: first}
    wanted |= {f"node/{node}": scheme for node, scheme in nodes.items()}
    made = await provision.provision(config, NETWORK, wanted.items())
    certificate = await provision.issue_ca_certificate(config, NETWORK, CA_LABEL, plan.CA)
    administrator = SoftwareKey.create(layout.administrator_key("admin"))
    payload = genesis_payload(NETWORK, _entries(made, tuple(nodes), administrator, certificate))
    _, transaction = keys.sign(payload, [administrator])
    draft = draft_genesis(transaction, time.time_ns() // 1_000_000)
    genesis = await provision.sign_genesis(config, draft, CENTER_LABEL)
    check_genesis(Block.decode(genesis.encode()))
    layout.genesis.write_bytes(genesis.encode())
    write_settings(layout.management / "management.toml", plan.management_settings(network))
    write_settings(layout.peer("peer-1") / "peer.toml", plan.peer_settings("peer-1"))
    write_settings(layout.network_file, plan.network_settings(network))
    return layout, made


@contextlib.contextmanager
def running(layout: Layout) -> Iterator[RunningNetwork]:
    """The network's processes, and a client `alice` whom the CA has registered."""
    folder = layout.folder
    with Supervisor(folder, services(folder, read_network(folder)), print) as supervisor:
        supervisor.wait_ready(60)
        assert main(["client", "register", "alice", "--network", str(folder), "--json"]) == 0
        yield RunningNetwork(layout, supervisor)


def audited(layout: Layout, made: Provisioned) -> Predicate:
    """The custody audit of the device by the profile `strict`, out of the statement that its identity key signed."""
    answer = custody_audit.of_device(layout.device(DEVICE) / "device.toml", PROFILE, read_only=False)
    return custody.verify(answer.envelope, made.keys[IDENTITY_LABEL]).predicate


def _write_device(layout: Layout, token: ModuleToken) -> Config:
    path = layout.device(DEVICE) / "device.toml"
    settings = plan.device_settings(DEVICE, token.uri, token.environment)
    settings["token"] |= {"deadline_ms": 5000, "rsa_bits": token.rsa_bits}  # other tests share the machine
    write_settings(path, settings)
    return load(path)


def _entries(made: Provisioned, nodes: tuple[str, ...], administrator: SoftwareKey, certificate: bytes) -> list[Entry]:
    held = made.keys
    return [
        Channel(
            network=NETWORK,
            rules_version=RULES_VERSION,
            centers_needed=1,
            administrators_needed=1,
            longest_validity=plan.LONGEST_VALIDITY_MS,
            ceremony="none",
        ),
        Administrator("admin", administrator.public.spki),
        Registrar(plan.CA, held[CA_LABEL].spki, certificate),
        Center(plan.CENTER, held[CENTER_LABEL].spki, DEVICE),
        Device(DEVICE, held[IDENTITY_LABEL].spki, made.token),
        *(Node(node, (NodeKey(held[f"node/{node}"].spki, DEVICE),)) for node in nodes),
        EndorsementPolicy("evidence", f"AND({', '.join(repr(node) for node in nodes)})"),
    ]
