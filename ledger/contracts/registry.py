"""The contract `registry`: every change of what decides validity is a transaction.

Its transactions need no endorsement: k of n administrators sign them, or the registrar alone for `add_client` and
`renew_client` (see `ledger.authority`). What a change may not do stands in `registry_rules` and `registry_keys`, what
a new key in an old one's place needs in `registry_rotation`.
"""

from typing import Annotated, Final

import msgspec

from ledger.contracts import registry_keys, registry_rotation, registry_rules
from ledger.contracts.contract import Call, Contract, Operation, Reads, Writes
from ledger.contracts.registry_keys import Changes
from ledger.contracts.registry_rotation import Announced
from ledger.errors import RejectedError
from protocol import canonical, registry
from protocol.canonical import Digest, Milliseconds, Name
from protocol.registry import Client, Entry, Spki

NAME: Final = "registry"
PREFIX: Final = "registry/"

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
    """Arguments of `add_client`: what the CA as registrar may do (requirement E-1).

    The lifetime is that of the certificate, in milliseconds since the epoch.
    """

    name: Name
    key: Spki
    certificate: Digest
    until: Milliseconds = canonical.MAX_INTEGER
    not_before: Milliseconds = 0


def _genesis(arguments: Genesis, call: Call, _reads: Reads) -> Writes:
    if call.registry.entries:
        raise RejectedError("not-genesis", "the first set is given in block 0")
    return _change(call, {registry.key_of(entry): entry for entry in arguments.entries})


def _put(arguments: Put, call: Call, _reads: Reads) -> Writes:
    return _change(call, {registry.key_of(entry): entry for entry in arguments.entries})


def _remove(arguments: Remove, call: Call, _reads: Reads) -> Writes:
    for key in arguments.keys:
        if key not in call.registry.entries:
            raise RejectedError("not-registered", f"the registry has no {key}")
        registry_rules.check_removal(key, arguments.keys, call.registry)
    return _change(call, dict.fromkeys(arguments.keys))


def _add_client(arguments: AddClient, call: Call, _reads: Reads) -> Writes:
    client = Client(
        arguments.name,
        arguments.key,
        arguments.certificate,
        not_before=arguments.not_before,
        until=arguments.until,
    )
    if registry.key_of(client) in call.registry.entries:
        raise RejectedError("already-registered", f"there is a client {arguments.name} already")
    return _change(call, {registry.key_of(client): client})


def _rotate(arguments: Announced, call: Call, _reads: Reads) -> Writes:
    entry = registry_rotation.rotated(arguments.announcement, call)
    return _change(call, {registry.key_of(entry): entry})


def _renew_client(arguments: Announced, call: Call, _reads: Reads) -> Writes:
    entry = registry_rotation.renewed(arguments.announcement, call)
    return _change(call, {registry.key_of(entry): entry})


def _change(call: Call, changes: Changes) -> Writes:
    registry_keys.check_acceptable(changes.values())
    encoded = {key: None if entry is None else canonical.encode(entry) for key, entry in changes.items()}
    before, after = call.registry, call.registry.changed(encoded)
    registry_rules.check_channel(before, after)
    registry_keys.check_statements(before, after, changes, height=call.height, time=call.time)
    registry_rules.check_whole(before, after, changes)
    registry_keys.check(before, after, changes, time=call.time)
    return {PREFIX + key: data for key, data in encoded.items()}


def _reads_nothing(_arguments: msgspec.Struct, _call: Call) -> tuple[str, ...]:
    return ()


CONTRACT: Final[Contract] = {
    "genesis": Operation(Genesis, _reads_nothing, _genesis),
    "put": Operation(Put, _reads_nothing, _put),
    "remove": Operation(Remove, _reads_nothing, _remove),
    "add_client": Operation(AddClient, _reads_nothing, _add_client),
    "rotate": Operation(Announced, _reads_nothing, _rotate),
    "renew_client": Operation(Announced, _reads_nothing, _renew_client),
}
