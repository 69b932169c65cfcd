"""Puts a new device in the place of one whose token is lost: `hsm-endorser device replace` (requirement K-14).

    1. what the old device had: the nodes, a center, the CA; and whether the chain can go on without it
    2. the new device's folder: its token or the given one, new keys of its own, its guard; kept in `enrolment.json`
    3. one transaction of the administrators: the new device and its keys, the end of the old ones, their revocation
    4. management.toml and network.toml name the new device; what runs must be started again to know it

No key is copied: a replacement is another device. Interrupted anywhere, the same command goes on: a folder with an
`enrolment.json` is taken as it is, and a transaction that is on the chain is not made again.
"""

import asyncio
import contextlib
import shutil
import tempfile
import time
import tomllib
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import httpx2
import msgspec
import sqlalchemy as sa

from cli import plan, registry
from cli.api import Management
from cli.device_control import DeviceControl
from cli.errors import CommandError, UnreachableError, UsageError
from cli.plan import Layout, read_network, write_settings
from cli.registry import Committed
from hsm_endorser import provision
from hsm_endorser.config import load
from hsm_endorser.errors import DeviceError
from hsm_endorser.guard import Guard
from hsm_endorser.provision import Wanted
from hsm_endorser.token import IDENTITY_LABEL
from hsm_endorser.worker_messages import RSA_BITS
from ledger.registry_view import RegistryView
from ledger.store import ChainStore, url_of
from peer.schema import activity
from protocol import canonical, custody
from protocol.canonical import MAX_INTEGER
from protocol.envelope import Envelope
from protocol.errors import ProtocolError
from protocol.keys import Scheme, key_id
from protocol.registry import (
    Center,
    Custody,
    Device,
    EndorsementPolicy,
    Entry,
    Node,
    NodeKey,
    Reason,
    Registrar,
    Revocation,
    Rotation,
    Token,
)
from protocol.tier import Tier, reaches
from softhsm import installation, tokens
from softhsm.installation import SoftHSMError

Say = Callable[[str], None]

SCHEME: Final[Scheme] = "ecdsa-p256-sha256"
DEADLINE_MS: Final = 1000
DAY_MILLISECONDS: Final = 24 * 3600 * 1000
ENROLMENT: Final = "enrolment.json"
STATEMENT: Final = "custody.json"


class Wish(msgspec.Struct, frozen=True):
    """What is wanted. Without a `uri`, a SoftHSM token is made; `suspected` is in milliseconds.

    The new keys are of `scheme`, RSA keys of so many bits; a call to the new token may take `deadline_ms`.
    """

    network: Path
    old: str
    new: str
    days: int
    reason: Reason
    suspected: int
    uri: str = ""
    environment: dict[str, str] = {}
    scheme: Scheme = SCHEME
    rsa_bits: int = RSA_BITS
    deadline_ms: int = DEADLINE_MS
    administrators: tuple[str, ...] = ()


class Had(msgspec.Struct, frozen=True):
    """What lives on the old device."""

    nodes: tuple[str, ...]
    centers: tuple[str, ...]
    registrars: tuple[str, ...]


class Last(msgspec.Struct, frozen=True):
    """What a key signed last, as the chain shows it: the block, or nothing."""

    holder: str
    key: str
    height: int | None


class Replaced(msgspec.Struct, frozen=True):
    """A device that took another's place: which keys, in which block, and what the old keys had signed last."""

    had: Had
    keys: dict[str, str]
    committed: Committed | None
    """None where the transaction was on the chain already."""
    last: tuple[Last, ...]
    sequence: int
    """The highest number of a tree of the old device that the chain shows."""


class Enrolment(msgspec.Struct, frozen=True):
    """What the new device is: its token, its public keys (DER) by label, the CA's certificate (DER) or nothing."""

    device: str
    token: Token
    keys: dict[str, bytes]
    certificates: dict[str, bytes] = {}


def replace(wish: Wish, say: Say) -> Replaced:
    """Carry it out; the steps stand at the top. Raises `UsageError`, `UnreachableError`, `CommandError`."""
    layout, view = Layout(wish.network.absolute()), registry.in_force(wish.network)
    old = view.device(wish.old)
    if old is None:
        known = ", ".join(each.name for each in view.devices)
        raise UsageError(f"the registry has no device {wish.old}", advice=f"known are {known}")
    committed = None
    if view.device(wish.new) is None:
        had = _what_it_had(view, layout, wish.old)
        if had.centers:
            _require_centers(view, layout, had)
        enrolment = _enrolment(wish, layout, had, say)
        last = _signed_last(view, layout, wish.old, had)
        try:
            entries = _entries(wish, view, had, enrolment, old)
        except DeviceError as error:
            raise CommandError(f"{wish.new} was not audited: {error}", code=error.code) from None
        say(f"The administrators put {wish.new} into the registry and revoke {wish.old}.")
        committed = registry.commit(
            wish.network, "put", {"entries": [registry.builtins(entry) for entry in entries]}, wish.administrators
        )
    else:
        enrolment = _read(layout.device(wish.new), wish.new)
        had = _had_by_labels(enrolment)
        last = _signed_last(view, layout, wish.old, had)
    _rewrite(layout, wish)
    keys: dict[str, str] = {label: key_id(spki) for label, spki in enrolment.keys.items()}
    return Replaced(had, keys, committed, last, _sequence(layout, wish.old))


# --- what the old device had -----------------------------------------------------------------------------------


def _what_it_had(view: RegistryView, layout: Layout, device: str) -> Had:
    def serves(each: NodeKey) -> bool:
        return each.device == device and each.last == MAX_INTEGER

    nodes = tuple(name for name in view.node_names if any(map(serves, (view.node(name) or Node(name, ())).keys)))
    centers = tuple(name for name, standing in view.center_standings.items() if standing.device == device)
    registrars = tuple(view.registrars) if _signs_for_the_ca(layout, device) else ()
    return Had(nodes, centers, registrars)


def _signs_for_the_ca(layout: Layout, device: str) -> bool:
    """The registry does not say where the CA's key lives: the devices do, or the one that is silent had it."""
    silent = []
    for name in read_network(layout.folder).devices:
        try:
            with DeviceControl(layout.device(name) / "device.toml") as control:
                if "sign-certificate" in control.status()["doors"]:
                    return name == device
        except (UnreachableError, UsageError, httpx2.HTTPError):
            silent.append(name)
    return silent == [device]


def _require_centers(view: RegistryView, layout: Layout, had: Had) -> None:
    """The block that brings new centers' keys is signed by the old ones: without them there is no such block."""
    others = [name for name, each in view.center_standings.items() if name not in had.centers and not each.revoked]
    if len(others) >= view.channel.centers_needed:
        return
    with Management(layout.socket("management")) as management:
        _, checks = management.readiness()
    if checks.get("center") != "ok" or checks.get("blocks") != "ok":
        raise CommandError(
            f"the key of {', '.join(had.centers)} lives on that device, no other center can sign in its place, and "
            f"it does not answer ({checks.get('center')}): without a block nothing can be registered",
            code="center-lost",
            advice="bring the device back for one block; let the next network have more centers than it needs",
        )


def _had_by_labels(enrolment: Enrolment) -> Had:
    def names(kind: str) -> tuple[str, ...]:
        return tuple(label.partition("/")[2] for label in enrolment.keys if label.startswith(kind + "/"))

    return Had(names("node"), names("center"), names("ca"))


# --- the new device --------------------------------------------------------------------------------------------


def _enrolment(wish: Wish, layout: Layout, had: Had, say: Say) -> Enrolment:
    """The new device's folder, made now or by an earlier attempt."""
    folder = layout.device(wish.new)
    if folder.exists():
        return _read(folder, wish.new)
    say(f"{wish.new}: token and keys for {', '.join(had.nodes) or 'no node'}")
    scratch = Path(tempfile.mkdtemp(prefix=f".{wish.new}-", dir=folder.parent))
    try:
        enrolment = asyncio.run(_make(wish, scratch, had))
        (scratch / ENROLMENT).write_bytes(canonical.encode(enrolment))
        _point_store_to(scratch, folder)
        scratch.rename(folder)
    except (SoftHSMError, DeviceError) as error:
        raise CommandError(f"the device was not made: {error}", code="not-made") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return enrolment


async def _make(wish: Wish, folder: Path, had: Had) -> Enrolment:
    uri, environment = (wish.uri, wish.environment) if wish.uri else _software_token(folder, wish.new)
    settings = plan.device_settings(wish.new, uri, environment)
    settings["token"] |= {"deadline_ms": wish.deadline_ms, "rsa_bits": wish.rsa_bits}
    write_settings(folder / "device.toml", settings)
    config, network = load(folder / "device.toml"), read_network(wish.network).network
    labels = [IDENTITY_LABEL, *(f"node/{node}" for node in had.nodes)]
    labels += [*(f"center/{name}" for name in had.centers), *(f"ca/{name}" for name in had.registrars)]
    wanted: list[Wanted] = [(label, wish.scheme) for label in labels]
    made = await provision.provision(config, network, wanted)
    certificates = {
        name: await provision.issue_ca_certificate(config, network, f"ca/{name}", name) for name in had.registrars
    }
    return Enrolment(wish.new, made.token, {label: made.keys[label].spki for label in labels}, certificates)


def _software_token(folder: Path, name: str) -> tuple[str, dict[str, str]]:
    pin, so_pin = folder / "pin", folder / "so-pin"
    tokens.create_pin_file(pin)
    tokens.create_pin_file(so_pin)
    found = installation.find()
    token = tokens.create_token(folder, name, pin, so_pin, installation=found)
    module = urllib.parse.quote(str(found.module), safe="/")
    uri = f"pkcs11:token={name};serial={token.serial}?module-path={module}&pin-source=file:pin"
    return uri, {"SOFTHSM2_CONF": "softhsm2.conf"}


def _point_store_to(scratch: Path, final: Path) -> None:
    """SoftHSM takes absolute paths only: let the token's configuration name the place where it will stand."""
    path = scratch / "softhsm2.conf"
    if path.exists():
        path.write_text(path.read_text().replace(str(scratch.resolve()), str(final)))


def _read(folder: Path, device: str) -> Enrolment:
    try:
        found = canonical.decode((folder / ENROLMENT).read_bytes(), _enrolment_decoder)
    except FileNotFoundError:
        raise UsageError(
            f"{folder} is there, and was not made by this command", advice="choose another --new name"
        ) from None
    if found.device != device:
        raise UsageError(f"{folder / ENROLMENT} is of device {found.device}", advice="choose another --new name")
    return found


# --- the transaction -------------------------------------------------------------------------------------------


def _entries(wish: Wish, view: RegistryView, had: Had, enrolment: Enrolment, old: Device) -> list[Entry]:
    """The new device with its keys, the end of the old ones, the policies that named it, and what is revoked."""
    until = _clock() + wish.days * DAY_MILLISECONDS
    height, _ = registry.head(wish.network)
    spki = enrolment.keys
    entries: list[Entry] = [Device(wish.new, spki[IDENTITY_LABEL], enrolment.token, until=_device_end(view, until))]
    entries += _statement(wish, view, enrolment)
    for name in had.nodes:
        before = (view.node(name) or Node(name, ())).keys
        keys = tuple(
            msgspec.structs.replace(each, last=max(each.since, height + 1))
            if each.device == wish.old and each.last == MAX_INTEGER
            else each
            for each in before
        )
        entries.append(Node(name, (*keys, NodeKey(spki[f"node/{name}"], wish.new, until=until))))
    entries += [Center(name, spki[f"center/{name}"], wish.new, until=until) for name in had.centers]
    entries += [
        Registrar(name, spki[f"ca/{name}"], enrolment.certificates[name], until=until) for name in had.registrars
    ]
    entries += _policies(view, wish)
    revoked = {key_id(old.identity): f"device/{wish.old}"}
    revoked |= {view.centers[name].id: f"center/{name}" for name in had.centers}
    revoked |= {view.registrars[name].id: f"registrar/{name}" for name in had.registrars}
    entries += [
        Revocation(key, holder, wish.reason, wish.suspected)
        for key, holder in revoked.items()
        if view.revocation(key) is None
    ]
    return entries


def _device_end(view: RegistryView, until: int) -> int:
    """An identity never changes, so it ends only where the channel lets no key be without an end."""
    return MAX_INTEGER if view.channel.longest_lifetime == MAX_INTEGER else until


def _policies(view: RegistryView, wish: Wish) -> Iterator[Entry]:
    """Rotations that name the old device name the new one from now on."""
    for key in view.entries.under("policy"):
        entry = registry.entry(view, key)
        if isinstance(entry, EndorsementPolicy) and isinstance(entry.routing, Rotation):
            groups = tuple(
                tuple(wish.new if name == wish.old else name for name in group) for group in entry.routing.sequence
            )
            if groups != entry.routing.sequence:
                yield msgspec.structs.replace(entry, routing=Rotation(groups))


def _statement(wish: Wish, view: RegistryView, enrolment: Enrolment) -> list[Entry]:
    """The new device's custody statement, which a channel that asks for a tier needs first (requirement K-5)."""
    least = view.channel.least_tier
    if least == "claimed":
        return []
    folder = Layout(wish.network).device(wish.new)
    path = folder / STATEMENT
    envelope = _kept_statement(path)
    if envelope is None or _too_low(envelope, enrolment, least):
        from hsm_endorser.custody import profile, statement  # noqa: PLC0415  the audit is loaded where it is needed

        config, network = load(folder / "device.toml"), read_network(wish.network).network
        guard = Guard.open(config.guard, network=network, device=wish.new)
        envelope = asyncio.run(statement.audit_device(config, guard, network, profile.load()))
        fresh = path.with_name(f".{path.name}")
        fresh.write_bytes(canonical.encode(envelope))
        fresh.replace(path)
    for label, tier in _too_low(envelope, enrolment, least).items():
        raise CommandError(
            f"the new key {label} of {wish.new} is {tier}, this network asks for {least} at least",
            code="tier-too-low",
            advice=f"see why: hsm-endorser custody audit --config {folder}/device.toml; choose another token",
        )
    return [Custody(wish.new, canonical.encode(envelope))]


def _kept_statement(path: Path) -> Envelope | None:
    """The statement of an earlier attempt; None where there is none, or one that was cut short."""
    try:
        envelope = canonical.decode(path.read_bytes(), _envelope_decoder)
        custody.decode(envelope)
    except (FileNotFoundError, ProtocolError):
        return None
    return envelope


def _too_low(envelope: Envelope, enrolment: Enrolment, least: Tier) -> dict[str, Tier]:
    """The labels of those keys that a statement gives too low a tier, with it."""
    audited = custody.decode(envelope)
    tiers = {label: custody.tier_of(audited, key_id(spki)) for label, spki in enrolment.keys.items()}
    return {
        label: tier
        for label, tier in tiers.items()
        if label.startswith(("node/", "center/")) and not reaches(tier, least)
    }


# --- what it had signed last -----------------------------------------------------------------------------------


def _signed_last(view: RegistryView, layout: Layout, device: str, had: Had) -> tuple[Last, ...]:
    """For every key on the old device, the last block that shows a signature of it."""
    entry = view.device(device)
    keys: dict[str, str] = {key_id(entry.identity): f"device/{device}"} if entry else {}
    keys |= {key: f"node/{node}" for key, node in view.keys_on_device(device).items()}
    keys |= {each.key.id: each.holder for name, each in view.center_standings.items() if each.device == device}
    keys |= {view.registrars[name].id: f"registrar/{name}" for name in had.registrars if name in view.registrars}
    with _store(layout) as store:
        heights = _last_heights(store, keys) if store else {}
    return tuple(Last(holder, key, heights.get(key)) for key, holder in keys.items())


def _last_heights(store: ChainStore, keys: Mapping[str, str]) -> dict[str, int]:
    wanted = [bytes.fromhex(key) for key in keys]
    query = (
        sa.select(activity.c.key, sa.func.max(activity.c.height))
        .where(activity.c.key.in_(wanted))
        .group_by(activity.c.key)
    )
    with store.engine.connect() as connection:
        return {bytes(key).hex(): int(height) for key, height in connection.execute(query)}


def _sequence(layout: Layout, device: str) -> int:
    with _store(layout) as store:
        return store.device_sequences().get(device, 0) if store else 0


@contextlib.contextmanager
def _store(layout: Layout) -> Iterator[ChainStore | None]:
    """The chain that a peer of the folder has stored, if there is one."""
    for peer in read_network(layout.folder).peers:
        database = layout.peer(peer) / "chain.db"
        if database.exists():
            with contextlib.closing(ChainStore.open(url_of(database))) as store:
                yield store
            return
    yield None


# --- the folder ------------------------------------------------------------------------------------------------


def _rewrite(layout: Layout, wish: Wish) -> None:
    """Name the new device where the old one was named; each file is replaced as a whole."""
    path = layout.management / "management.toml"
    settings = tomllib.loads(path.read_text(encoding="utf-8"))
    devices = [each for each in settings["devices"] if each["name"] not in {wish.old, wish.new}]
    settings["devices"] = [*devices, {"name": wish.new, "address": f"unix:../run/{wish.new}.sock"}]
    _write(path, settings)
    network = tomllib.loads(layout.network_file.read_text(encoding="utf-8"))
    known = [name for name in network["devices"] if name not in {wish.old, wish.new}]
    network["devices"] = [*known, wish.new]
    _write(layout.network_file, network)


def _write(path: Path, settings: dict[str, object]) -> None:
    fresh = path.with_suffix(".toml.new")
    write_settings(fresh, settings)
    fresh.replace(path)


def _clock() -> int:
    return time.time_ns() // 1_000_000


_enrolment_decoder = msgspec.json.Decoder(Enrolment)
_envelope_decoder = msgspec.json.Decoder(Envelope)
