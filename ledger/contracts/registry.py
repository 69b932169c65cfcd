"""The contract `registry`: every change of what decides validity is a transaction.

Its transactions need no endorsement: k of n administrators sign them, or the registrar alone for `add_client`
(see `ledger.authority`). What a change may not do is lock the network out of its own registry.
"""

from collections.abc import Iterable
from typing import Annotated, Final

import msgspec

from ledger.contracts.contract import Call, Contract, Operation, Reads, Writes
from ledger.errors import LedgerError, RejectedError
from ledger.registry_view import RegistryView
from protocol import canonical, policy, registry
from protocol.canonical import Digest, Name
from protocol.errors import PolicySyntaxError, UnacceptableKeyError
from protocol.keys import PublicKey
from protocol.registry import Administrator, Center, Client, Device, EndorsementPolicy, Entry, Node, Registrar, Spki

NAME: Final = "registry"
PREFIX: Final = "registry/"
CLIENTS: Final = "client/"

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
        channel = after.channel
        if before.entries and channel.network != before.channel.network:
            raise RejectedError("inconsistent", "the network's name cannot change")
        _enough("administrators", len(set(after.administrators.values())), channel.administrators_needed)
        _enough("centers", len(set(after.centers.values())), channel.centers_needed)
    except LedgerError as error:
        raise RejectedError("inconsistent", str(error)) from None
    if before.entries and all(isinstance(entry, Client) for entry in changes.values()):
        # There can be very many clients: adding some must not look at all of them.
        _check_unique(after, changes)
        return
    _check_unique(after, (key for key in after.entries if key.startswith(CLIENTS)))
    for key in after.entries:
        match registry.decode_entry(key, after.entries[key]):
            case EndorsementPolicy(name=name, expression=expression):
                _check_policy(name, expression, after)
            case Node(name=name, keys=keys):
                _check_devices(f"node {name}", (each.device for each in keys), after)
            case Center(name=name, device=device):
                _check_devices(f"center {name}", [device], after)
            case _:
                pass


def _enough(what: str, count: int, needed: int) -> None:
    if count < needed:
        raise RejectedError("lock-out", f"{count} {what} would be left where {needed} are needed")


def _check_unique(after: RegistryView, clients: Iterable[str]) -> None:
    """One key, one holder; only clients may share one among themselves. `clients` are those to look at."""
    holders: dict[bytes, str] = {}
    others = (key for key in after.entries if not key.startswith(CLIENTS))
    for key in (*others, *clients):
        for spki in _keys(registry.decode_entry(key, after.entries[key])):
            holder = holders.get(spki, key)
            if holder != key:
                raise RejectedError("key-in-use", f"the key of {key} is that of {holder}")
            if not key.startswith(CLIENTS):
                holders[spki] = key


def _check_policy(name: str, expression: str, after: RegistryView) -> None:
    try:
        parsed = policy.parse(expression)
    except PolicySyntaxError as error:
        raise RejectedError("policy-syntax", f"policy {name}: {error}") from None
    unknown = parsed.nodes(after.node_names) - set(after.node_names)
    if unknown:
        raise RejectedError("unknown-node", f"policy {name} names {', '.join(sorted(unknown))}, who are no nodes")


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
