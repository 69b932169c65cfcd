"""The contract `registry`: every change of what decides validity is a transaction.

Its transactions need no endorsement: k of n administrators sign them, or the registrar alone for `add_client`
(see `ledger.authority`). What a change may not do is lock the network out of its own registry.
"""

from collections.abc import Collection, Iterable
from typing import Annotated, Final

import msgspec

from ledger.contracts.contract import Call, Contract, Operation, Reads, Writes
from ledger.errors import RegistryError, RejectedError
from ledger.registry_view import RegistryView
from protocol import canonical, distinct, registry
from protocol.canonical import Digest, Name
from protocol.errors import LimitExceededError, PolicySyntaxError, UnacceptableKeyError
from protocol.keys import PublicKey
from protocol.registry import (
    Administrator,
    Center,
    Channel,
    Client,
    Device,
    EndorsementPolicy,
    Entry,
    GuardOrder,
    Node,
    Partitioned,
    Registrar,
    Rotation,
    Spki,
)

NAME: Final = "registry"
PREFIX: Final = "registry/"
LEAST_VALIDITY: Final = 60_000
"""Shortest `longest_validity` that a channel may set, in milliseconds."""

Entries = Annotated[tuple[Entry, ...], msgspec.Meta(min_length=1, max_length=4096)]


class Genesis(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of `genesis`, in block 0 alone: the first set."""

    entries: Entries


class Put(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of `put`: entries to add or to replace, all or none."""

    entries: Entries


class Remove(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of `remove`: the keys (`kind/name`) of entries to take out, all or none."""

    keys: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=4096)]


class AddClient(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of `add_client`: what the CA as registrar may do (requirement E-1)."""

    name: Name
    key: Spki
    certificate: Digest


def _genesis(arguments: Genesis, call: Call, _reads: Reads) -> Writes:
    if call.registry.entries:
        raise RejectedError("not-genesis", "the first set is given in block 0")
    return _change(call.registry, {registry.key_of(entry): entry for entry in arguments.entries})


def _put(arguments: Put, call: Call, _reads: Reads) -> Writes:
    return _change(call.registry, {registry.key_of(entry): entry for entry in arguments.entries})


def _remove(arguments: Remove, call: Call, _reads: Reads) -> Writes:
    for key in arguments.keys:
        if key not in call.registry.entries:
            raise RejectedError("not-registered", f"the registry has no {key}")
        _check_removal(key, arguments.keys, call.registry)
    return _change(call.registry, dict.fromkeys(arguments.keys))


def _add_client(arguments: AddClient, call: Call, _reads: Reads) -> Writes:
    client = Client(arguments.name, arguments.key, arguments.certificate)
    if registry.key_of(client) in call.registry.entries:
        raise RejectedError("already-registered", f"there is a client {arguments.name} already")
    return _change(call.registry, {registry.key_of(client): client})


def _change(before: RegistryView, changes: dict[str, Entry | None]) -> Writes:
    for entry in changes.values():
        _check_keys(entry)
    encoded = {key: None if entry is None else canonical.encode(entry) for key, entry in changes.items()}
    after = before.changed(encoded)
    _check_whole(before, after, changes)
    return {PREFIX + key: data for key, data in encoded.items()}


def _check_keys(entry: Entry | None) -> None:
    """Refuse keys that no party may register (requirement E-18)."""
    for spki in _keys(entry):
        try:
            PublicKey.load(spki)
        except UnacceptableKeyError as error:
            raise RejectedError("unacceptable-key", str(error)) from None


def _keys(entry: Entry | None) -> tuple[bytes, ...]:
    match entry:
        case Administrator(key=key) | Registrar(key=key) | Center(key=key) | Client(key=key):
            return (key,)
        case Device(identity=key):
            return (key,)
        case Node(keys=keys):
            return tuple(each.key for each in keys)
        case _:
            return ()


def _check_whole(before: RegistryView, after: RegistryView, changes: dict[str, Entry | None]) -> None:
    """Refuse a registry that contradicts itself or that nobody could change any more."""
    try:
        channel, administrators, centers = after.channel, after.administrators, after.centers
    except RegistryError as error:
        raise RejectedError("inconsistent", str(error)) from None
    if before.entries:
        _check_channel(before.channel, channel)
    if channel.longest_validity < LEAST_VALIDITY:
        # No transaction could be valid any more, not even the one that puts this right.
        raise RejectedError("lock-out", f"longest_validity is {channel.longest_validity} ms, under {LEAST_VALIDITY}")
    _enough("administrators", len(administrators), channel.administrators_needed)
    _enough("centers", len(centers), channel.centers_needed)
    _check_unique(after, changes)
    if all(key.startswith("client/") for key in changes):
        return  # nothing refers to clients, and there can be very many of them
    for key in _but_clients(after):
        _check_entry(registry.decode_entry(key, after.entries[key]), before, after)


def _check_entry(entry: Entry, before: RegistryView, after: RegistryView) -> None:
    """Refuse an entry that refers to what is not there."""
    match entry:
        case EndorsementPolicy():
            check_policy(entry, after)
        case Device():
            _check_token(entry, after)
        case Node(name=name, keys=keys):
            _check_devices(f"node {name}", (each.device for each in keys), after)
        case Center(name=name, device=device):
            _check_devices(f"center {name}", [device], after)
        case GuardOrder():
            _check_guard_order(entry, before, after)
        case _:
            pass


def _check_channel(before: Channel, after: Channel) -> None:
    if after.network != before.network:
        raise RejectedError("inconsistent", "the network's name cannot change")
    if after.rules_version not in (before.rules_version, before.rules_version + 1):
        raise RejectedError(
            "inconsistent", f"rules {after.rules_version} after rules {before.rules_version}: they go up one by one"
        )


def _enough(what: str, count: int, needed: int) -> None:
    if count < needed:
        raise RejectedError("lock-out", f"{count} {what} would be left where {needed} are needed")


def _check_unique(after: RegistryView, changes: dict[str, Entry | None]) -> None:
    """One key, one holder; only clients may share one among themselves."""
    holders: dict[bytes, str] = {}
    for key in _but_clients(after):
        for spki in _keys(registry.decode_entry(key, after.entries[key])):
            if spki in holders:
                raise RejectedError("key-in-use", f"a key of {key} is that of {holders[spki]} already")
            holders[spki] = key
    # All clients are looked at only where another kind of entry may have brought one of their keys.
    brought = any(_keys(entry) for entry in changes.values() if not isinstance(entry, Client))
    for key in after.entries.under("client") if brought else changes:
        entry = registry.decode_entry(key, after.entries[key]) if key in after.entries else None
        if isinstance(entry, Client) and entry.key in holders:
            raise RejectedError("key-in-use", f"the key of {key} is that of {holders[entry.key]}")


def _but_clients(after: RegistryView) -> list[str]:
    return [key for kind in after.entries.kinds() if kind != "client" for key in after.entries.under(kind)]


def check_policy(entry: EndorsementPolicy, after: RegistryView) -> None:
    """Refuse a policy that cannot be read, that names who is not there, or that could never be satisfied (E-5, E-8)."""
    who = f"policy {entry.name}"
    try:
        rule = after.rule_of(entry)
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


def _check_rotation(who: str, rotation: Rotation, after: RegistryView) -> None:
    for group in rotation.sequence:
        for device in group:
            if after.device(device) is None:
                raise RejectedError("unknown-device", f"{who} rotates to {device}, which is no device")
        if len(set(group)) != len(group):
            raise RejectedError("inconsistent", f"{who} names a device twice in one group: {', '.join(group)}")


def _check_token(entry: Device, after: RegistryView) -> None:
    """A high-availability group belongs to one device: its serials are no other device's (requirement K-9)."""
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
    _check_devices(f"the guard ordered for {entry.name}", [entry.name], after)
    last = before.guard_order(entry.name)
    if last is not None and last != entry and entry.since <= last.since:
        raise RejectedError(
            "inconsistent",
            f"a guard for {entry.name} from height {entry.since} on was ordered before the one from {last.since}",
        )


def _check_removal(key: str, removed: Collection[str], before: RegistryView) -> None:
    """What ordered a device's guard stays as long as the device: without it the order could be given again."""
    kind, _, name = key.partition("/")
    if kind == "guard-order" and before.device(name) and f"device/{name}" not in removed:
        raise RejectedError("inconsistent", f"the last order for the guard of {name} stays as long as the device does")


def _check_devices(who: str, devices: Iterable[str], after: RegistryView) -> None:
    for device in devices:
        if after.device(device) is None:
            raise RejectedError("unknown-device", f"a key of {who} lives on {device}, which is no device")


def _reads_nothing(_arguments: msgspec.Struct, _call: Call) -> tuple[str, ...]:
    return ()


CONTRACT: Final[Contract] = {
    "genesis": Operation(Genesis, _reads_nothing, _genesis),
    "put": Operation(Put, _reads_nothing, _put),
    "remove": Operation(Remove, _reads_nothing, _remove),
    "add_client": Operation(AddClient, _reads_nothing, _add_client),
}
