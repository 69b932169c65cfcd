"""What is in force: the registry at one height, read-only, with its keys and policies ready to use."""

from collections.abc import Mapping
from functools import cached_property
from typing import TypeVar

from ledger.endorsement_rule import EndorsementRule
from ledger.errors import RegistryError
from ledger.registry_entries import RegistryEntries
from protocol import distinct, policy, registry
from protocol.keys import PublicKey
from protocol.policy import Policy
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
    Registrar,
    decode_entry,
    registry_root,
)

E = TypeVar("E", bound=Entry)


class RegistryView:
    """All registry entries (canonical bytes by `kind/name`); never changes. Safe to share among threads."""

    def __init__(self, entries: Mapping[str, bytes]) -> None:
        self.entries = entries if isinstance(entries, RegistryEntries) else RegistryEntries(entries)
        self._decoded: dict[str, Entry] = {}
        self._keys: dict[str, PublicKey] = {}
        self._rules: dict[str, EndorsementRule] = {}

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
        """Keys of the administrators, by name."""
        return {
            name: self._key(self._require(f"administrator/{name}", Administrator).key)
            for name in self._names("administrator")
        }

    @cached_property
    def registrars(self) -> dict[str, PublicKey]:
        """Keys of the registrars (CAs), by name."""
        return {name: self._key(self._require(f"registrar/{name}", Registrar).key) for name in self._names("registrar")}

    @cached_property
    def centers(self) -> dict[str, PublicKey]:
        """Keys of the centers, by name."""
        return {name: self._key(self._require(f"center/{name}", Center).key) for name in self._names("center")}

    def client(self, name: str) -> PublicKey | None:
        """The key of a whitelisted client."""
        key = self._keys.get(name)
        if key is None:
            entry = self._find(f"client/{name}", Client)
            if entry is None:
                return None
            key = self._keys[name] = self._key(entry.key)
        return key

    def registrar(self, name: str) -> Registrar | None:
        """A registrar's entry."""
        return self._find(f"registrar/{name}", Registrar)

    def center(self, name: str) -> Center | None:
        """A center's entry."""
        return self._find(f"center/{name}", Center)

    def device(self, name: str) -> Device | None:
        """A device's entry."""
        return self._find(f"device/{name}", Device)

    def guard_order(self, device: str) -> GuardOrder | None:
        """The last order to start the guard of a device anew, if there was one (requirement K-10)."""
        return self._find(f"guard-order/{device}", GuardOrder)

    def node(self, name: str) -> Node | None:
        """A node's entry."""
        return self._find(f"node/{name}", Node)

    def node_key(self, node: str, key_id: str, *, device: str, height: int, time: int) -> PublicKey:
        """The key `key_id` of `node` on `device`, when it counts at this height and block time.

        Raises `RegistryError` that says why it does not (requirements E-9, K-13).
        """
        entry = self.node(node)
        if entry is None:
            raise RegistryError(f"there is no node {node}; known are {', '.join(self.node_names) or 'none'}")
        for registered in entry.keys:
            key = self._key(registered.key)
            if key.id != key_id:
                continue
            if registered.device != device:
                raise RegistryError(f"key {key_id[:16]}… of node {node} lives on {registered.device}, not on {device}")
            if height < registered.since:
                raise RegistryError(f"key {key_id[:16]}… of node {node} counts from height {registered.since} on")
            if time >= registered.until:
                raise RegistryError(f"key {key_id[:16]}… of node {node} has expired")
            return key
        raise RegistryError(f"key {key_id[:16]}… is not registered for node {node}")

    def keys_on_device(self, device: str) -> dict[str, str]:
        """Which node each key belongs to that the registry places on `device`, by key id."""
        return {
            self._key(registered.key).id: name
            for name in self.node_names
            for registered in self._require(f"node/{name}", Node).keys
            if registered.device == device
        }

    def devices_of(self, node: str) -> tuple[str, ...]:
        """The devices that hold a key of `node`, sorted (requirement E-6)."""
        entry = self.node(node)
        return tuple(sorted({registered.device for registered in entry.keys})) if entry else ()

    def devices_in_force(self, node: str, *, height: int, time: int) -> tuple[str, ...]:
        """The devices that hold a key of `node` which counts at this height and block time, sorted."""
        entry = self.node(node)
        keys = entry.keys if entry else ()
        return tuple(sorted({key.device for key in keys if key.since <= height and time < key.until}))

    def policy(self, kind: str) -> Policy | None:
        """The policy for a transaction type `contract.operation`: its own, else that of its contract."""
        key = self.policy_key(kind)
        return policy.parse(self._require(key, EndorsementPolicy).expression) if key else None

    def rule(self, kind: str) -> EndorsementRule | None:
        """The policy for a transaction type, as votes are judged by it."""
        key = self.policy_key(kind)
        if key is None:
            return None
        rule = self._rules.get(key)
        if rule is None:
            rule = self._rules[key] = self.rule_of(self._require(key, EndorsementPolicy))
        return rule

    def rule_of(self, entry: EndorsementPolicy) -> EndorsementRule:
        """What a policy, in force or not, comes to in this registry; raises `PolicySyntaxError`."""
        parsed = policy.parse(entry.expression)
        return EndorsementRule(
            name=entry.name,
            policy=parsed,
            routing=entry.routing,
            distinct_devices=entry.distinct_devices,
            members=self.node_names,
            token_of=self.tokens if entry.distinct_devices else {},
            holders={node: self.devices_of(node) for node in sorted(parsed.nodes(self.node_names))},
        )

    @cached_property
    def tokens(self) -> dict[str, str]:
        """The token of each device: devices with the same value are one (see `protocol.distinct`)."""
        return distinct.tokens(self.devices)

    @cached_property
    def devices(self) -> tuple[Device, ...]:
        """All devices, sorted by name."""
        return tuple(self._require(f"device/{name}", Device) for name in self._names("device"))

    def policy_key(self, kind: str) -> str | None:
        """Under which key the policy for a transaction type stands."""
        for key in (f"policy/{kind}", f"policy/{kind.partition('.')[0]}"):
            if key in self.entries:
                return key
        return None

    def changed(self, changes: Mapping[str, bytes | None]) -> "RegistryView":
        """The registry after `changes`; None removes an entry."""
        return RegistryView(self.entries.changed(changes)) if changes else self

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

    @staticmethod
    def _key(spki: bytes) -> PublicKey:
        return PublicKey.load(spki)
