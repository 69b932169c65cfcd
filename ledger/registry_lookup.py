"""The registry's entries as values, decoded once: what stands in it, whether or not it counts now."""

import functools
from collections.abc import Mapping
from functools import cached_property
from typing import TypeVar

import msgspec

from ledger.errors import RegistryError
from ledger.registry_entries import RegistryEntries
from protocol import canonical, custody, distinct, registry
from protocol.custody import Statement
from protocol.envelope import Envelope
from protocol.keys import PublicKey
from protocol.registry import (
    Administrator,
    Center,
    Channel,
    Client,
    Custody,
    Device,
    Entry,
    GuardOrder,
    Node,
    Registrar,
    Revocation,
    decode_entry,
    registry_root,
)

E = TypeVar("E", bound=Entry)


class RegistryLookup:
    """All registry entries (canonical bytes by `kind/name`); never changes. Safe to share among threads."""

    def __init__(self, entries: Mapping[str, bytes]) -> None:
        self.entries = entries if isinstance(entries, RegistryEntries) else RegistryEntries(entries)
        self._decoded: dict[str, Entry] = {}

    @cached_property
    def root(self) -> str:
        """The registry root over all entries."""
        return registry_root(self.entries)

    @cached_property
    def channel(self) -> Channel:
        """What holds for the whole network."""
        return self._require(registry.CHANNEL_KEY, Channel)

    @cached_property
    def node_names(self) -> tuple[str, ...]:
        """The channel's nodes, sorted."""
        return self._names("node")

    @cached_property
    def administrators(self) -> dict[str, PublicKey]:
        """Keys of all administrators, by name, whether they count or not."""
        return {
            name: PublicKey.load(self._require(f"administrator/{name}", Administrator).key)
            for name in self._names("administrator")
        }

    @cached_property
    def registrars(self) -> dict[str, PublicKey]:
        """Keys of all registrars (CAs), by name, whether they count or not."""
        return {
            name: PublicKey.load(self._require(f"registrar/{name}", Registrar).key) for name in self._names("registrar")
        }

    @cached_property
    def centers(self) -> dict[str, PublicKey]:
        """Keys of all centers, by name, whether they count or not."""
        return {name: PublicKey.load(self._require(f"center/{name}", Center).key) for name in self._names("center")}

    @cached_property
    def devices(self) -> tuple[Device, ...]:
        """All devices, sorted by name."""
        return tuple(self._require(f"device/{name}", Device) for name in self._names("device"))

    @cached_property
    def tokens(self) -> dict[str, str]:
        """The token of each device: devices with the same value are one (see `protocol.distinct`)."""
        return distinct.tokens(self.devices)

    @cached_property
    def revocations(self) -> tuple[Revocation, ...]:
        """All revocations, sorted by the id of the key."""
        return tuple(self._require(f"revocation/{key_id}", Revocation) for key_id in self._names("revocation"))

    def administrator(self, name: str) -> Administrator | None:
        """An administrator's entry."""
        return self._find(f"administrator/{name}", Administrator)

    def registrar(self, name: str) -> Registrar | None:
        """A registrar's entry."""
        return self._find(f"registrar/{name}", Registrar)

    def center(self, name: str) -> Center | None:
        """A center's entry."""
        return self._find(f"center/{name}", Center)

    def device(self, name: str) -> Device | None:
        """A device's entry."""
        return self._find(f"device/{name}", Device)

    def node(self, name: str) -> Node | None:
        """A node's entry."""
        return self._find(f"node/{name}", Node)

    def client_entry(self, name: str) -> Client | None:
        """A client's entry."""
        return self._find(f"client/{name}", Client)

    def guard_order(self, device: str) -> GuardOrder | None:
        """The last order to start the guard of a device anew, if there was one (requirement K-10)."""
        return self._find(f"guard-order/{device}", GuardOrder)

    def revocation(self, key_id: str) -> Revocation | None:
        """The revocation of a key, if it was revoked (requirement K-14)."""
        return self._find(f"revocation/{key_id}", Revocation)

    def custody(self, device: str) -> Custody | None:
        """The entry with a device's latest custody statement, if there is one (requirements K-5, K-6)."""
        return self._find(f"custody/{device}", Custody)

    def statement(self, device: str) -> Statement | None:
        """A device's latest custody statement; it was verified when it was put into the registry."""
        key = f"custody/{device}"
        data = self.entries.get(key)
        return None if data is None else _statement_in(key, data)

    def keys_on_device(self, device: str) -> dict[str, str]:
        """Which node each key belongs to that the registry places on `device`, by key id."""
        return {
            PublicKey.load(registered.key).id: name
            for name in self.node_names
            for registered in self._require(f"node/{name}", Node).keys
            if registered.device == device
        }

    def devices_of(self, node: str) -> tuple[str, ...]:
        """The devices that hold a key of `node`, sorted, whether or not it counts (requirement E-6)."""
        entry = self.node(node)
        return tuple(sorted({registered.device for registered in entry.keys})) if entry else ()

    def _names(self, kind: str) -> tuple[str, ...]:
        return tuple(key.removeprefix(kind + "/") for key in self.entries.under(kind))

    def _find(self, key: str, kind: type[E]) -> E | None:
        entry = self._decoded.get(key)
        if entry is None:
            data = self.entries.get(key)
            if data is None:
                return None
            entry = self._decoded[key] = decode_entry(key, data)
        if not isinstance(entry, kind):
            raise RegistryError(f"{key} is no {kind.__name__}")
        return entry

    def _require(self, key: str, kind: type[E]) -> E:
        entry = self._find(key, kind)
        if entry is None:
            raise RegistryError(f"the registry has no {key}")
        return entry


@functools.lru_cache(maxsize=256)
def _statement_in(key: str, data: bytes) -> Statement:
    """A registry is made anew with every change, and a statement is large: it is decoded once."""
    entry = decode_entry(key, data)
    if not isinstance(entry, Custody):
        raise RegistryError(f"{key} is no Custody")
    return custody.decode(decode_envelope(entry.statement))


def decode_envelope(data: bytes) -> Envelope:
    """The envelope whose canonical bytes stand in a custody entry; raises `MalformedError`."""
    return canonical.decode(data, _envelope_decoder)


_envelope_decoder = msgspec.json.Decoder(Envelope)
