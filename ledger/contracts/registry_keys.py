"""What the registry asks of keys: that they may be used at all, that they end, that what was revoked stays so.

And of what is known about them: a custody statement is its device's own word, and a key below the channel's tier is
not enrolled (requirements K-5, K-13, K-14, E-18).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import msgspec

from ledger.errors import RejectedError
from ledger.registry_lookup import decode_envelope
from ledger.registry_view import RegistryView
from protocol import custody, registry
from protocol.errors import ProtocolError, UnacceptableKeyError
from protocol.keys import PublicKey, key_id
from protocol.registry import (
    Administrator,
    Center,
    Channel,
    Client,
    Custody,
    Device,
    Entry,
    Lifetime,
    Node,
    Registrar,
    Revocation,
)
from protocol.tier import reaches

MOST_AHEAD: Final = 24 * 3_600_000
"""How far a custody statement's time may lie ahead of the block's, in milliseconds: a later one must find room."""


Changes = Mapping[str, Entry | None]
"""Entries to be put, by their keys; None removes one."""


class HeldKey(msgspec.Struct, frozen=True):
    """A key as an entry holds it: on which device, empty where on none, and when it counts."""

    spki: bytes
    device: str
    lifetime: Lifetime


def held(entry: Entry | None) -> tuple[HeldKey, ...]:
    """All keys of an entry; of a device, its identity key."""
    match entry:
        case Administrator(key=key) | Registrar(key=key) | Client(key=key):
            return (HeldKey(key, "", entry),)
        case Center(key=key, device=device):
            return (HeldKey(key, device, entry),)
        case Device(identity=key):
            return (HeldKey(key, "", entry),)
        case Node(keys=keys):
            return tuple(HeldKey(each.key, each.device, each) for each in keys)
        case _:
            return ()


def keys_of(entry: Entry | None) -> tuple[bytes, ...]:
    """The SubjectPublicKeyInfo of each key of an entry."""
    return tuple(each.spki for each in held(entry))


def check_acceptable(entries: Iterable[Entry | None]) -> None:
    """Refuse keys that no party may register (requirement E-18); raises `RejectedError`."""
    for entry in entries:
        for spki in keys_of(entry):
            try:
                PublicKey.load(spki)
            except UnacceptableKeyError as error:
                raise RejectedError("unacceptable-key", str(error)) from None


def check_statements(before: RegistryView, after: RegistryView, changes: Changes, *, height: int, time: int) -> None:
    """Refuse custody statements that do not hold in a block of this height and time (ms); nothing else read them yet.

    Raises `RejectedError` (`bad-custody`).
    """
    for entry in changes.values():
        if isinstance(entry, Custody):
            _check_custody(entry, before, after, height, time)


def check(before: RegistryView, after: RegistryView, changes: Changes, *, time: int) -> None:
    """Refuse what the changed entries may not say of keys, in a block of this time (ms).

    Raises `RejectedError`: `bad-lifetime`, `no-end`, `revoked-key`, `tier-too-low`, `wrong-holder`, `final` or
    `inconsistent`.
    """
    for key, entry in changes.items():
        if entry is None:
            _check_not_replayable(key, before, after)
        if isinstance(entry, Revocation):
            _check_revocation(entry, before)
        for each in held(entry):
            _check_lifetime(key, each.lifetime)
            _check_end(key, each, before, after.channel, time)
            _check_stays_retired(key, each, before)
        for each in _brought(key, entry, before):
            _check_not_revoked(key, each, after)
            _check_not_moved(key, each, before, after)
            _check_tier(key, each, after)


def _brought(key: str, entry: Entry | None, before: RegistryView) -> Iterator[HeldKey]:
    """The keys of an entry that it did not hold before, or not on this device."""
    data = before.entries.get(key)
    known = {(each.spki, each.device) for each in held(registry.decode_entry(key, data) if data else None)}
    return (each for each in held(entry) if (each.spki, each.device) not in known)


def _check_lifetime(key: str, lifetime: Lifetime) -> None:
    if lifetime.until <= lifetime.not_before:
        raise RejectedError(
            "bad-lifetime", f"a key of {key} would end at {lifetime.until} and begin at {lifetime.not_before} (ms)"
        )
    if lifetime.last < lifetime.since:
        raise RejectedError(
            "bad-lifetime", f"a key of {key} would count up to height {lifetime.last} and from {lifetime.since} on"
        )


def _check_end(key: str, each: HeldKey, before: RegistryView, channel: Channel, time: int) -> None:
    """A key ends within the time that the channel allows."""
    until = each.lifetime.until
    if until - time <= channel.longest_lifetime:
        return
    data = before.entries.get(key)
    for known in held(registry.decode_entry(key, data) if data else None):
        if (known.spki, known.lifetime.until) == (each.spki, until):
            return  # nothing about it is new: a rule that came later does not stand in the way of another change
    raise RejectedError(
        "no-end",
        f"a key of {key} would end at {until} (ms), the channel allows {channel.longest_lifetime} ms from {time} on",
    )


def _check_stays_retired(key: str, each: HeldKey, before: RegistryView) -> None:
    """A key that has a last height keeps it: whoever puts an entry as it was before a rotation would undo that."""
    data = before.entries.get(key)
    for known in held(registry.decode_entry(key, data) if data else None):
        if (known.spki, known.device) == (each.spki, each.device) and each.lifetime.last > known.lifetime.last:
            raise RejectedError(
                "inconsistent",
                f"key {key_id(each.spki)[:16]}… of {key} counts up to height {known.lifetime.last} and not longer; "
                "read the entry again: it was changed meanwhile",
            )


def _check_not_revoked(key: str, each: HeldKey, after: RegistryView) -> None:
    if after.revocation(key_id(each.spki)) is not None:
        raise RejectedError("revoked-key", f"key {key_id(each.spki)[:16]}… of {key} was revoked; make a new one")
    device = after.device(each.device) if each.device else None
    if device is not None and after.revocation(key_id(device.identity)) is not None:
        raise RejectedError("revoked-key", f"device {each.device} was revoked, so no key on it counts any more")


def _check_not_moved(key: str, each: HeldKey, before: RegistryView, after: RegistryView) -> None:
    """A key of a revoked device went with it: whoever has it now, no other device is where it was made."""
    data = before.entries.get(key)
    for known in held(registry.decode_entry(key, data) if data else None):
        device = before.device(known.device) if known.device and known.spki == each.spki else None
        if device is not None and after.revocation(key_id(device.identity)) is not None:
            raise RejectedError(
                "revoked-key",
                f"key {key_id(each.spki)[:16]}… of {key} lived on {known.device}, which was revoked; make a new one",
            )


def _check_not_replayable(key: str, before: RegistryView, after: RegistryView) -> None:
    """A device leaves for good: came its identity back, its former statements and guard orders could, too."""
    kind, _, name = key.partition("/")
    device = before.device(name) if kind == "device" else None
    if device is not None and after.revocation(key_id(device.identity)) is None:
        raise RejectedError("inconsistent", f"the identity key of {key} is revoked before the device is taken out")


def _check_tier(key: str, each: HeldKey, after: RegistryView) -> None:
    least = after.channel.least_tier
    if each.device and least != "claimed":
        tier = after.tier(each.device, key_id(each.spki))
        if not reaches(tier, least):
            raise RejectedError(
                "tier-too-low",
                f"key {key_id(each.spki)[:16]}… of {key} is {tier}, the channel asks for {least} at least: audit "
                f"device {each.device} and put its custody statement first",
            )


def _check_revocation(entry: Revocation, before: RegistryView) -> None:
    """A revocation is of a key that is held, and is put once (requirement K-14)."""
    if before.revocation(entry.name) is not None:
        raise RejectedError("final", f"key {entry.name[:16]}… was revoked before: that is final")
    data = before.entries.get(entry.holder)
    keys = keys_of(registry.decode_entry(entry.holder, data)) if data else ()
    if entry.name not in {key_id(spki) for spki in keys}:
        raise RejectedError("wrong-holder", f"{entry.holder} does not hold key {entry.name[:16]}…")


def _check_custody(entry: Custody, before: RegistryView, after: RegistryView, height: int, time: int) -> None:
    """A statement is by the device itself, about itself, in this network, and not older than the one before (K-6)."""
    device = after.device(entry.name)
    if device is None:
        raise RejectedError("unknown-device", f"the custody statement of {entry.name} is about no device")
    lapse = after.device_lapse(entry.name, height=height, time=time)
    if lapse:
        raise RejectedError("bad-custody", lapse)
    try:
        statement = custody.verify(decode_envelope(entry.statement), PublicKey.load(device.identity))
    except ProtocolError as error:
        raise RejectedError("bad-custody", f"the statement of {entry.name} does not hold: {error}") from None
    audit = statement.predicate
    if (audit.network, audit.device) != (after.channel.network, entry.name):
        raise RejectedError(
            "bad-custody", f"the statement is about device {audit.device!r} of network {audit.network!r}"
        )
    if audit.time > time + MOST_AHEAD:
        raise RejectedError("bad-custody", f"the statement is of {audit.time}, the block's time is {time} (ms)")
    last = before.statement(entry.name)
    if last is not None and audit.time < last.predicate.time:
        raise RejectedError("bad-custody", f"there is a later statement of {entry.name} than that of {audit.time}")
