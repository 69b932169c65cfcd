"""What a change of the registry may not do: contradict itself, or lock the network out of its own registry."""

from collections.abc import Collection, Iterable
from typing import Final

from ledger.contracts.registry_keys import Changes, keys_of
from ledger.errors import RegistryError, RejectedError
from ledger.registry_view import RegistryView
from protocol import distinct, registry
from protocol.errors import LimitExceededError, PolicySyntaxError
from protocol.registry import (
    Center,
    Client,
    Device,
    EndorsementPolicy,
    Entry,
    GuardOrder,
    Node,
    Partitioned,
    Rotation,
)

LEAST_VALIDITY: Final = 60_000
"""Shortest `longest_validity` that a channel may set, in milliseconds."""
KEY_KINDS: Final = ("administrator", "center", "device", "node", "registrar")
"""The kinds of entries that hold keys, but for clients, of whom there can be very many."""
REFERRING_KINDS: Final = ("center", "custody", "device", "guard-order", "node", "policy")
"""The kinds of entries that refer to others."""
BOUND_TO_DEVICE: Final = {"guard-order": "the last order for the guard", "custody": "the latest custody statement"}
"""What stays as long as its device: without it, an older one could be given again (requirements K-10, K-6)."""


def check_channel(before: RegistryView, after: RegistryView) -> None:
    """Refuse a registry without a channel, or with another one; raises `RejectedError`."""
    try:
        channel = after.channel
    except RegistryError as error:
        raise RejectedError("inconsistent", str(error)) from None
    if channel.longest_validity < LEAST_VALIDITY:
        # No transaction could be valid any more, not even the one that puts this right.
        raise RejectedError("lock-out", f"longest_validity is {channel.longest_validity} ms, under {LEAST_VALIDITY}")
    if not before.entries:
        return
    if channel.network != before.channel.network:
        raise RejectedError("inconsistent", "the network's name cannot change")
    if channel.ceremony != before.channel.ceremony:
        raise RejectedError("inconsistent", "how the network was made stays as block 0 says, for ever")
    known = before.channel.rules_version
    if channel.rules_version not in (known, known + 1):
        raise RejectedError("inconsistent", f"rules {channel.rules_version} after rules {known}: they go up one by one")


def check_whole(before: RegistryView, after: RegistryView, changes: Changes) -> None:
    """Refuse a registry that contradicts itself or that nobody could change any more; raises `RejectedError`."""
    _check_unique(after, changes)
    if all(key.startswith("client/") for key in changes):
        return  # nothing refers to clients, and there can be very many of them
    channel = after.channel
    # What has lapsed by time counts all the same where it must, what was revoked never does.
    administrators, centers = after.administrator_standings.values(), after.center_standings.values()
    _enough("administrators", [not each.revoked for each in administrators], channel.administrators_needed)
    _enough("centers", [not each.revoked for each in centers], channel.centers_needed)
    for kind in REFERRING_KINDS:
        for key in after.entries.under(kind):
            if kind == "custody":
                check_devices("a custody statement", [key.partition("/")[2]], after)
            else:
                _check_entry(registry.decode_entry(key, after.entries[key]), before, after, new=key in changes)


def check_removal(key: str, removed: Collection[str], before: RegistryView) -> None:
    """Refuse to take out what must stay; raises `RejectedError`."""
    kind, _, name = key.partition("/")
    if kind == "revocation":
        raise RejectedError("final", f"key {name[:16]}… was revoked: that is final")
    if kind in BOUND_TO_DEVICE and before.device(name) and f"device/{name}" not in removed:
        raise RejectedError("inconsistent", f"{BOUND_TO_DEVICE[kind]} of {name} stays as long as the device does")


def check_devices(who: str, devices: Iterable[str], after: RegistryView) -> None:
    """Refuse keys on devices that are not registered; raises `RejectedError`."""
    for device in devices:
        if after.device(device) is None:
            raise RejectedError("unknown-device", f"a key of {who} lives on {device}, which is no device")


def check_policy(entry: EndorsementPolicy, after: RegistryView, *, new: bool = True) -> None:
    """Refuse a policy that cannot be read, that names who is not there, or that could never be satisfied (E-5, E-8).

    A `new` one must be satisfiable by keys that are not revoked, of the tier that it asks for. One that stood before
    must not keep a key from being revoked, or a worse custody statement from being recorded.
    """
    who = f"policy {entry.name}"
    try:
        rule = after.rule_of(entry, usable=new)
    except PolicySyntaxError as error:
        raise RejectedError("policy-syntax", f"{who}: {error}") from None
    unknown = rule.holders.keys() - set(after.node_names)
    if unknown:
        raise RejectedError("unknown-node", f"{who} names {', '.join(sorted(unknown))}, who are no nodes")
    if isinstance(entry.routing, Rotation):
        _check_rotation(who, entry.routing, after)
    if entry.distinct_devices:
        try:
            distinct.check_size(rule.policy, after.node_names)
        except LimitExceededError as error:
            raise RejectedError("limit-exceeded", f"{who}: {error}") from None
    if entry.distinct_devices or not isinstance(entry.routing, Partitioned):
        # Where each node has its own device, nodes may be named before they have keys: they wait for them.
        never = rule.never()
        if never:
            raise RejectedError("never-satisfied", f"{who}: {never}")


def _check_entry(entry: Entry, before: RegistryView, after: RegistryView, *, new: bool) -> None:
    """Refuse an entry that refers to what is not there."""
    match entry:
        case EndorsementPolicy():
            check_policy(entry, after, new=new)
        case Device():
            _check_device(entry, before, after)
        case Node(name=name, keys=keys):
            check_devices(f"node {name}", (each.device for each in keys), after)
        case Center(name=name, device=device):
            check_devices(f"center {name}", [device], after)
        case GuardOrder():
            _check_guard_order(entry, before, after)
        case _:
            pass


def _enough(what: str, stand: Collection[bool], needed: int) -> None:
    if sum(stand) < needed:
        raise RejectedError("lock-out", f"{sum(stand)} {what} would be left where {needed} are needed")


def _check_unique(after: RegistryView, changes: Changes) -> None:
    """One key, one holder; only clients may share one among themselves."""
    holders: dict[bytes, str] = {}
    for kind in KEY_KINDS:
        for key in after.entries.under(kind):
            for spki in keys_of(registry.decode_entry(key, after.entries[key])):
                if spki in holders:
                    raise RejectedError("key-in-use", f"a key of {key} is that of {holders[spki]} already")
                holders[spki] = key
    # All clients are looked at only where another kind of entry may have brought one of their keys.
    brought = any(keys_of(entry) for entry in changes.values() if not isinstance(entry, Client))
    for key in after.entries.under("client") if brought else changes:
        entry = registry.decode_entry(key, after.entries[key]) if key in after.entries else None
        if isinstance(entry, Client) and entry.key in holders:
            raise RejectedError("key-in-use", f"the key of {key} is that of {holders[entry.key]}")


def _check_rotation(who: str, rotation: Rotation, after: RegistryView) -> None:
    for group in rotation.sequence:
        for device in group:
            if after.device(device) is None:
                raise RejectedError("unknown-device", f"{who} rotates to {device}, which is no device")
        if len(set(group)) != len(group):
            raise RejectedError("inconsistent", f"{who} names a device twice in one group: {', '.join(group)}")


def _check_device(entry: Device, before: RegistryView, after: RegistryView) -> None:
    """A device's identity never changes, and a high-availability group belongs to one device (requirement K-9)."""
    known = before.device(entry.name)
    if known is not None and known.identity != entry.identity:
        raise RejectedError(
            "inconsistent", f"the identity of device {entry.name} never changes: a replacement is a new device"
        )
    if len(set(entry.token.group)) != len(entry.token.group):
        raise RejectedError("inconsistent", f"device {entry.name} names a serial of its group twice")
    for other in after.devices:
        if other.name != entry.name and (entry.token.group or other.token.group):
            both = distinct.overlap(entry.token, other.token)
            if both:
                raise RejectedError(
                    "inconsistent",
                    f"serial {', '.join(sorted(both))} is in the groups of {entry.name} and {other.name}: a group is "
                    "one token, registered for one device",
                )


def _check_guard_order(entry: GuardOrder, before: RegistryView, after: RegistryView) -> None:
    """Orders follow one another: an older one must not come back, or it could be given a second time (K-10)."""
    check_devices(f"the guard ordered for {entry.name}", [entry.name], after)
    last = before.guard_order(entry.name)
    if last is not None and last != entry and entry.since <= last.since:
        raise RejectedError(
            "inconsistent",
            f"a guard for {entry.name} from height {entry.since} on was ordered before the one from {last.since}",
        )
