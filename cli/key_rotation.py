"""Rotates one key: has it announced where it lives, and lets the administrators put the announcement on the chain.

    a node, a center, the CA     the device that holds the key makes the next one and lets both sign
    an administrator             in the folder, or in the file or on the token where a ceremony has left the key
                                 (NAME.held); an old file is kept as NAME.key.retired

Whatever is interrupted is begun again: the device finds the key that it made, the folder the file that it wrote.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from cli import registry, role_holder
from cli.api import Management
from cli.device_control import DeviceControl
from cli.errors import CommandError, UnreachableError, UsageError
from cli.keys import SoftwareKey
from cli.plan import Layout, read_network
from cli.registry import Committed
from cli.role_holder import Held
from ledger.registry_view import RegistryView
from protocol import canonical, custody, rotation
from protocol.canonical import MAX_INTEGER
from protocol.envelope import Envelope
from protocol.keys import PublicKey, Scheme, key_id
from protocol.registry import Administrator, Center, Custody, Node, NodeKey, Registrar
from protocol.rotation import Announcement
from protocol.tier import reaches

Say = Callable[[str], None]

AHEAD: Final = 5
"""A node's new key counts so many blocks from now: its announcement needs one or two to get onto the chain."""
ATTEMPTS: Final = 5
DAY_MILLISECONDS: Final = 24 * 3600 * 1000
ELSEWHERE: Final = {
    "client": "a client gets its next key with: hsm-endorser client renew {name} --network DIR",
    "device": "an identity never changes; another device takes its place: hsm-endorser device replace {name}",
}


class Wish(msgspec.Struct, frozen=True):
    """What is wanted: `since` None is soon, `administrators` nobody is as many as are needed."""

    network: Path
    holder: str
    days: int
    overlap: int
    since: int | None = None
    administrators: tuple[str, ...] = ()


class Rotated(msgspec.Struct, frozen=True):
    """A rotation that is on the chain. The old key counts up to height `last`, the new one from `since` on."""

    holder: str
    device: str
    old: str
    new: str
    since: int
    last: int
    until: int
    committed: Committed

    def sentence(self) -> str:
        """What counts from when, in words."""
        where = f" on {self.device}" if self.device else ""
        return (
            f"{self.holder}: key {self.new[:16]}…{where} counts from height {self.since} on; the one before, "
            f"{self.old[:16]}…, counts up to height {self.last} (block {self.committed.height}, signed by "
            f"{', '.join(self.committed.signers)})."
        )


def devices_of(view: RegistryView, layout: Layout, holder: str) -> list[str]:
    """The devices with a key of the holder that has no successor yet; raises `UsageError` where there is none."""
    kind, _, name = holder.partition("/")
    found: list[str] = []
    if kind == "node" and (node := view.node(name)):
        found = sorted({each.device for each in node.keys if each.last == MAX_INTEGER and not _gone(view, each)})
    elif kind == "center" and (center := view.center(name)):
        found = [center.device]
    elif kind == "registrar" and view.registrar(name):
        found = _ca_devices(layout)
    elif kind in ELSEWHERE:
        raise UsageError(f"the key of {holder} is not rotated so", advice=ELSEWHERE[kind].format(name=name))
    else:
        raise UsageError(
            f"the registry has no {holder}",
            advice="name a holder such as node/A, center/center-1, registrar/ca or administrator/admin-1",
        )
    if not found:
        raise UsageError(
            f"no device holds a key of {holder} that could announce the next one",
            advice="see hsm-endorser key list; where the device is lost: hsm-endorser device replace",
        )
    return found


def devices_for(view: RegistryView, holder: str) -> list[str]:
    """The devices where a holder whose key is lost or has expired may get a new one: those that it had one on."""
    kind, _, name = holder.partition("/")
    if kind == "node" and (node := view.node(name)):
        named = {each.device for each in node.keys}
        return sorted(
            each for each in named if (entry := view.device(each)) and not view.revocation(key_id(entry.identity))
        )
    if kind == "center" and (center := view.center(name)):
        return [center.device]
    raise UsageError(f"the registry does not say where the key of {holder} lived", advice="name the device: --device")


def rotate_on(device: str, wish: Wish, say: Say) -> Rotated:
    """Rotate the key of a node, a center or a registrar that lives on a device of the folder."""
    layout = Layout(wish.network)
    node = wish.holder.startswith("node/")
    audited = False
    for attempt in range(1, ATTEMPTS + 1):
        height, now = _head(layout)
        order = {
            "holder": wish.holder,
            "since": (wish.since or height + AHEAD * attempt) if node else 0,
            "overlap": wish.overlap if node else 0,
            "not_before": now,
            "until": max(now, _clock()) + wish.days * DAY_MILLISECONDS,
        }
        with DeviceControl(layout.device(device) / "device.toml") as control:
            answer = msgspec.json.decode(control.ask("/v1/rotations", order), type=_DeviceAnswer)
        announcement = rotation.decode(answer.announcement)
        if not audited:
            audited = True
            view = registry.in_force(wish.network)
            if _audit_first(view, wish, device, key_id(announcement.new), say):
                continue  # the heights of before are gone; the same key is announced again
        try:
            done = _put(wish, answer.announcement)
        except CommandError as error:
            late = error.code == "bad-announcement" and wish.since is None and attempt < ATTEMPTS
            if not late:
                raise
            say(f"The chain has moved on; announcing the same key again ({attempt + 1} of {ATTEMPTS}).")
            continue
        return _rotated(announcement, done)
    raise CommandError(f"{wish.holder} was not rotated in {ATTEMPTS} attempts", advice="give a later height: --since")


def rotate_administrator(wish: Wish) -> Rotated:
    """Rotate the key of an administrator: in the folder, or in the file or on the token where a ceremony left it."""
    name = wish.holder.partition("/")[2]
    entry = registry.in_force(wish.network).administrator(name)
    if entry is None:
        raise UsageError(f"the registry has no {wish.holder}")
    held = role_holder.held_elsewhere(wish.network, name)
    if held is not None and held.where.startswith(role_holder.URI):
        return _rotate_on_token(wish, entry, held)
    path = Layout(wish.network).administrator_key(name) if held is None else Path(held.where)
    fresh = path.with_suffix(".key.new")
    old = SoftwareKey.load(path)
    new = SoftwareKey.load(fresh) if fresh.exists() else SoftwareKey.create(fresh)
    if entry.key == new.public.spki:  # committed before, and interrupted then
        _take_over(wish, held, path, fresh, new.public)
        raise _rotated_before(wish)
    announcement = _announcement(wish, old.public, new.public)
    payload = canonical.encode(announcement)
    signatures = tuple(key.sign(payload, rotation.PAYLOAD_TYPE) for key in (old, new))
    done = _put(wish, Envelope(payload, rotation.PAYLOAD_TYPE, signatures))
    _take_over(wish, held, path, fresh, new.public)
    return _rotated(announcement, done)


def _rotate_on_token(wish: Wish, entry: Administrator, held: Held) -> Rotated:
    """The next key is made on the same token; the old one stays there."""
    name = wish.holder.partition("/")[2]
    old = PublicKey.load(bytes.fromhex(held.public_key))
    new = role_holder.next_key(wish.network, name, held)
    later = msgspec.structs.replace(held, public_key=new.spki.hex())
    if entry.key == new.spki:  # committed before, and interrupted then
        role_holder.write_held(wish.network, name, later)
        raise _rotated_before(wish)
    announcement = _announcement(wish, old, new)
    payload = canonical.encode(announcement)
    signatures = tuple(
        role_holder.sign_as(wish.network, name, each, payload, rotation.PAYLOAD_TYPE) for each in (held, later)
    )
    done = _put(wish, Envelope(payload, rotation.PAYLOAD_TYPE, signatures))
    role_holder.write_held(wish.network, name, later)
    return _rotated(announcement, done)


def _announcement(wish: Wish, old: PublicKey, new: PublicKey) -> Announcement:
    """What an administrator's old and new key sign."""
    _, now = _head(Layout(wish.network))
    return Announcement(
        network=read_network(wish.network).network,
        holder=wish.holder,
        old=old.id,
        new=new.spki,
        device="",
        since=0,
        overlap=0,
        not_before=now,
        until=max(now, _clock()) + wish.days * DAY_MILLISECONDS,
    )


def _rotated_before(wish: Wish) -> UsageError:
    return UsageError(f"{wish.holder} was rotated before; its new key is in place now", advice="nothing to do")


def put_unannounced(device: str, wish: Wish, say: Say) -> Rotated:
    """A new key by the administrators' word alone: for a holder whose key has expired, and signs nothing any more."""
    layout = Layout(wish.network)
    _, now = _head(layout)
    until = max(now, _clock()) + wish.days * DAY_MILLISECONDS
    view = registry.in_force(wish.network)
    order = {"holder": wish.holder, "until": until, "scheme": _scheme(view, device, wish.holder)}
    with DeviceControl(layout.device(device) / "device.toml") as control:
        made = msgspec.json.decode(control.ask("/v1/keys", order), type=_Made)
    _audit_first(view, wish, device, made.id, say)
    kind, _, name = wish.holder.partition("/")
    entry: Node | Center | Registrar
    if kind == "node" and (node := view.node(name)):
        old = next((each for each in reversed(node.keys) if each.device == device), None)
        entry = msgspec.structs.replace(node, keys=(*node.keys, NodeKey(made.key, device, until=until)))
        before = key_id(old.key) if old else ""
    elif kind == "center" and (center := view.center(name)):
        entry = Center(name, made.key, device, until=until)
        before = key_id(center.key)
    elif kind == "registrar" and (registrar := view.registrar(name)):
        entry = Registrar(name, made.key, made.certificate, until=until)
        before = key_id(registrar.key)
    else:
        raise UsageError(f"the registry has no {wish.holder}")
    done = registry.commit(wish.network, "put", {"entries": [registry.builtins(entry)]}, wish.administrators)
    return Rotated(wish.holder, device, before, made.id, done.height + 1, done.height, until, done)


def _scheme(view: RegistryView, device: str, holder: str) -> Scheme:
    """That of the device's identity where the holder had no key on it: the token can do that one."""
    node = view.node(holder.partition("/")[2]) if holder.startswith("node/") else None
    keys = [each.key for each in node.keys if each.device == device] if node else []
    entry = view.device(device)
    if holder.startswith("center/") and (center := view.center(holder.partition("/")[2])):
        keys.append(center.key)
    if not keys and entry:
        keys.append(entry.identity)
    return PublicKey.load(keys[-1]).scheme if keys else "ecdsa-p256-sha256"


def _put(wish: Wish, announcement: Envelope) -> Committed:
    arguments = {"announcement": msgspec.json.decode(canonical.encode(announcement))}
    return registry.commit(wish.network, "rotate", arguments, wish.administrators)


def _rotated(announcement: Announcement, done: Committed) -> Rotated:
    node = announcement.holder.startswith("node/")
    since = announcement.since if node else done.height + 1
    return Rotated(
        holder=announcement.holder,
        device=announcement.device,
        old=announcement.old,
        new=key_id(announcement.new),
        since=since,
        last=since + announcement.overlap if node else done.height,
        until=announcement.until,
        committed=done,
    )


def _audit_first(view: RegistryView, wish: Wish, device: str, key: str, say: Say) -> bool:
    """Where the channel asks for more than a claim: audit the device with its new key, and put the statement (K-5).

    Whether that was done now. Raises `CommandError` for a key that does not reach the tier all the same.
    """
    least = view.channel.least_tier
    if wish.holder.startswith("registrar/") or reaches(view.tier(device, key), least):
        return False
    from cli import custody_audit  # noqa: PLC0415  the audit is loaded where it is needed
    from hsm_endorser.custody import profile  # noqa: PLC0415

    say(f"{device}: audit of its token, because this network asks for the tier {least} at least")
    config = Layout(wish.network).device(device) / "device.toml"
    audited = custody_audit.of_device(config, profile.load(), read_only=False)
    tier = custody.tier_of(custody.decode(audited.envelope), key)
    if not reaches(tier, least):
        raise CommandError(
            f"the new key {key[:16]}… of {wish.holder} is {tier}, this network asks for {least} at least",
            code="tier-too-low",
            advice=f"see why: hsm-endorser custody audit --config {config}; put the key on another token",
        )
    entry = Custody(device, canonical.encode(audited.envelope))
    registry.commit(wish.network, "put", {"entries": [registry.builtins(entry)]}, wish.administrators)
    return True


def _ca_devices(layout: Layout) -> list[str]:
    """The devices of the folder that sign for the CA."""
    found = []
    for name in read_network(layout.folder).devices:
        try:
            with DeviceControl(layout.device(name) / "device.toml") as control:
                if "sign-certificate" in control.status()["doors"]:
                    found.append(name)
        except UnreachableError:
            continue
    return found


def _gone(view: RegistryView, key: NodeKey) -> bool:
    entry = view.device(key.device)
    return entry is None or any(view.revocation(key_id(each)) for each in (key.key, entry.identity))


def _head(layout: Layout) -> tuple[int, int]:
    with Management(layout.socket("management")) as management:
        info = management.network()
    return info.height, info.time


def _take_over(wish: Wish, held: Held | None, path: Path, fresh: Path, new: PublicKey) -> None:
    """The new key in the old one's place; where a ceremony left it elsewhere, NAME.held says which one it is now."""
    if held is not None:
        name = wish.holder.partition("/")[2]
        role_holder.write_held(wish.network, name, msgspec.structs.replace(held, public_key=new.spki.hex()))
    _take(path, fresh)


def _take(path: Path, fresh: Path) -> None:
    """The new key's file in the old one's place; a crash at any line leaves both keys, and `path` is always there."""
    retired = path.with_suffix(".key.retired")
    retired.unlink(missing_ok=True)
    os.link(path, retired)
    fresh.replace(path)


def _clock() -> int:
    return time.time_ns() // 1_000_000


class _Made(msgspec.Struct, frozen=True):
    holder: str
    label: str
    id: str
    key: bytes
    certificate: bytes = b""


class _DeviceAnswer(msgspec.Struct, frozen=True):
    announcement: Envelope
    made: _Made
