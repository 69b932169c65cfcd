"""Makes a network's folder: tokens, keys, administrators, the genesis block. All of it, or nothing.

It is built beside its place and renamed at the end. Nodes', the center's and the CA's keys are generated on the
devices' tokens and never leave them; administrators have software keys of their own.
"""

import asyncio
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography import x509

from cli import keys, plan
from cli.errors import CommandError, UsageError
from cli.keys import SoftwareKey
from cli.plan import Layout, NetworkPlan, write_settings
from hsm_endorser import provision
from hsm_endorser.config import Config, load
from hsm_endorser.errors import DeviceError
from hsm_endorser.guard import Guard
from hsm_endorser.provision import Provisioned, Wanted
from hsm_endorser.token import IDENTITY_LABEL
from ledger.errors import LedgerError
from ledger.genesis import check_genesis, draft_genesis, genesis_payload
from protocol import canonical, custody
from protocol.block import RULES_VERSION, Block
from protocol.custody import Statement
from protocol.keys import Scheme
from protocol.registry import (
    Administrator,
    Center,
    Channel,
    Custody,
    Device,
    EndorsementPolicy,
    Entry,
    Node,
    NodeKey,
    Registrar,
)
from protocol.tier import Tier, reaches
from softhsm import installation, tokens
from softhsm.installation import SoftHSMError

Say = Callable[[str], None]

SCHEME: Final[Scheme] = "ecdsa-p256-sha256"
CENTER_LABEL: Final = f"center/{plan.CENTER}"
CA_LABEL: Final = f"ca/{plan.CA}"
KEY_LIFETIME_MS: Final = 730 * 24 * 3600 * 1000
"""Two years: nodes' keys sign nothing in blocks after that (requirement K-13)."""
LONGEST_LIFETIME_MS: Final = 3652 * 24 * 3600 * 1000
"""Ten years: no key may be registered for longer; devices' identities and the CA have them."""
CLOCK_MS: Final = 3600 * 1000
"""How far the clocks of those who set an end may be ahead of the chain's time."""
ENVIRONMENT: Final = {"SOFTHSM2_CONF": "softhsm2.conf"}


def found(network: NetworkPlan, folder: Path, say: Say) -> None:
    """Make the network's folder; raises `UsageError` when it exists, `CommandError` when a token does not serve."""
    folder = folder.absolute()
    if folder.exists():
        raise UsageError(f"{folder} exists already", advice="choose a new folder; networks are never overwritten")
    if "#" in str(folder) or not str(folder).isprintable():  # SoftHSM's configuration ends a path there
        raise UsageError(
            f"SoftHSM cannot keep tokens in {str(folder)!r}", advice="choose a path without '#' and control characters"
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise UsageError(f"cannot make a folder in {folder.parent}: {error.strerror}") from None
    try:
        asyncio.run(_build(network, Layout(scratch), say))
        for name in network.devices:
            _point_store_to(Layout(scratch).device(name), Layout(folder).device(name))
        scratch.rename(folder)
    except LedgerError as error:
        raise UsageError(f"this network does not hold together: {error}", code=error.code) from None
    except (SoftHSMError, DeviceError) as error:
        raise CommandError(f"the network was not made: {error}", code="not-made") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


async def _build(network: NetworkPlan, layout: Layout, say: Say) -> None:
    for part in ("devices", "peers", "clients", "administrators", "run", "logs"):
        (layout.folder / part).mkdir(mode=0o700)
    layout.management.mkdir(mode=0o700)
    configs = {name: _write_device(layout, name) for name in network.devices}
    provisioned: dict[str, Provisioned] = {}
    for name, config in configs.items():
        say(f"{name}: token and keys for {', '.join(network.devices[name])}")
        provisioned[name] = await provision.provision(config, network.name, _wanted(network, name))
    statements = await _audited(network, configs, provisioned, say) if network.least_tier != "claimed" else []
    first = configs[network.first_device]
    certificate = await provision.issue_ca_certificate(first, network.name, CA_LABEL, plan.CA)
    administrators = {name: SoftwareKey.create(layout.administrator_key(name)) for name in network.administrators}
    entries = [*_entries(network, provisioned, administrators, certificate), *statements]
    payload = genesis_payload(network.name, entries)
    _, transaction = keys.sign(payload, list(administrators.values()))
    genesis = await provision.sign_genesis(first, draft_genesis(transaction, _now()), CENTER_LABEL)
    check_genesis(Block.decode(genesis.encode()))
    layout.genesis.write_bytes(genesis.encode())
    write_settings(layout.management / "management.toml", plan.management_settings(network))
    for name in network.peers:
        layout.peer(name).mkdir(mode=0o700)
        write_settings(layout.peer(name) / "peer.toml", plan.peer_settings(name))
    write_settings(layout.network_file, plan.network_settings(network))


def _write_device(layout: Layout, name: str) -> Config:
    """A device's folder with its token, PIN files and configuration; paths in the latter are relative."""
    folder = layout.device(name)
    folder.mkdir(mode=0o700)
    pin, so_pin = folder / "pin", folder / "so-pin"
    tokens.create_pin_file(pin)
    tokens.create_pin_file(so_pin)
    found = installation.find()
    token = tokens.create_token(folder, name, pin, so_pin, installation=found)
    module = urllib.parse.quote(str(found.module), safe="/")
    uri = f"pkcs11:token={name};serial={token.serial}?module-path={module}&pin-source=file:pin"
    write_settings(folder / "device.toml", plan.device_settings(name, uri, ENVIRONMENT))
    return load(folder / "device.toml")


def _wanted(network: NetworkPlan, device: str) -> list[Wanted]:
    labels = [f"node/{node}" for node in network.devices[device]]
    if device == network.first_device:
        labels += [CENTER_LABEL, CA_LABEL]
    return [(label, SCHEME) for label in labels]


async def _audited(
    network: NetworkPlan, configs: dict[str, Config], provisioned: dict[str, Provisioned], say: Say
) -> list[Custody]:
    """A custody statement of each device; raises `CommandError` for a key below the tier that the network asks for."""
    from hsm_endorser.custody import profile, statement  # noqa: PLC0415  needed for this option alone

    entries = []
    for name, config in configs.items():
        say(f"{name}: audit of its token")
        guard = Guard.open(config.guard, network=network.name, device=name)
        envelope = await statement.audit_device(config, guard, network.name, profile.load())
        _require_tier(network.least_tier, name, provisioned[name], custody.decode(envelope))
        entries.append(Custody(name, canonical.encode(envelope)))
    return entries


def _require_tier(least: Tier, device: str, provisioned: Provisioned, audited: Statement) -> None:
    for label, key in provisioned.keys.items():
        tier = custody.tier_of(audited, key.id)
        if label.startswith(("node/", "center/")) and not reaches(tier, least):
            reasons = [f"{row.check}: {row.reason}" for row in audited.predicate.rows if row.verdict == "fail"]
            raise CommandError(
                f"the network was not made: key {label} of {device} is {tier} where {least} is demanded"
                + (f" ({'; '.join(reasons[:3])})" if reasons else ""),
                code="tier-too-low",
                advice="audit the token (hsm-endorser custody audit --uri …), or choose a lower --least-tier",
            )


def _entries(
    network: NetworkPlan,
    provisioned: dict[str, Provisioned],
    administrators: dict[str, SoftwareKey],
    certificate: bytes,
) -> list[Entry]:
    now = _now()
    until, at_last = now + KEY_LIFETIME_MS, now + LONGEST_LIFETIME_MS
    first = provisioned[network.first_device].keys
    return [
        Channel(
            network=network.name,
            rules_version=RULES_VERSION,
            centers_needed=1,
            administrators_needed=min(plan.ADMINISTRATORS_NEEDED, len(administrators)),
            longest_validity=plan.LONGEST_VALIDITY_MS,
            ceremony="none",
            least_tier=network.least_tier,
            longest_lifetime=LONGEST_LIFETIME_MS + CLOCK_MS,
        ),
        *(Administrator(name, key.public.spki, until=until) for name, key in administrators.items()),
        Registrar(plan.CA, first[CA_LABEL].spki, certificate, until=_end_of(certificate)),
        Center(plan.CENTER, first[CENTER_LABEL].spki, network.first_device, until=until),
        # The identity of a device never changes: it lives as long as the token may.
        *(
            Device(name, made.keys[IDENTITY_LABEL].spki, made.token, until=at_last)
            for name, made in provisioned.items()
        ),
        *(
            Node(
                node,
                tuple(
                    NodeKey(provisioned[device].keys[f"node/{node}"].spki, device, until=until)
                    for device, nodes in network.devices.items()
                    if node in nodes
                ),
            )
            for node in network.nodes
        ),
        *(EndorsementPolicy(kind, expression, network.routing) for kind, expression in network.policies.items()),
    ]


def _point_store_to(scratch: Path, final: Path) -> None:
    """SoftHSM takes absolute paths only: let a token's configuration name the place where it will stand."""
    path = scratch / "softhsm2.conf"
    path.write_text(path.read_text().replace(str(scratch.resolve()), str(final)))


def _end_of(certificate: bytes) -> int:
    """When a certificate (DER) ends, in milliseconds."""
    return int(x509.load_der_x509_certificate(certificate).not_valid_after_utc.timestamp() * 1000)


def _now() -> int:
    return int(time.time() * 1000)
