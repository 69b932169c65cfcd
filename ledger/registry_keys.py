"""Which registered keys count, at which height and block time: nodes, clients, and who acts for the network.

Whether a key counts depends on its lifetime and its device's, on revocations, and on the tier that the device's
custody statement gives it. What of that is the same at every height and block time is found out once for each key.
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

from ledger.errors import RegistryError
from ledger.registry_lookup import RegistryLookup
from ledger.standing import Expiry, Standing
from protocol import custody
from protocol.keys import PublicKey, key_id
from protocol.registry import Lifetime, NodeKey
from protocol.tier import Tier, reaches


class RegistryKeys(RegistryLookup):
    """The keys of all registry entries; never changes. Safe to share among threads."""

    def __init__(self, entries: Mapping[str, bytes]) -> None:
        super().__init__(entries)
        self._clients: dict[str, Standing] = {}
        self._nodes: dict[tuple[str, str], Standing] = {}

    # --- single keys --------------------------------------------------------------------------------------

    def client(self, name: str) -> PublicKey | None:
        """The key of a whitelisted client, whether it counts or not (see `client_standing`)."""
        standing = self.client_standing(name)
        return None if standing is None else standing.key

    def client_standing(self, name: str) -> Standing | None:
        """The key of a whitelisted client, and when it counts."""
        standing = self._clients.get(name)
        if standing is None:
            entry = self.client_entry(name)
            if entry is None:
                return None
            standing = self._clients[name] = self._standing(f"client/{name}", entry.key, entry)
        return standing

    def node_key(self, node: str, key_id: str, *, device: str, height: int, time: int) -> PublicKey:
        """The key `key_id` of `node` on `device`, when it counts at this height and block time.

        Raises `RegistryError` that says why it does not (requirements E-9, K-5, K-13, K-14). It is decided by the
        entries `node/…`, `device/…`, `channel`, the revocations of the key and of the device's identity key, and
        where the channel asks for a tier, `custody/…`.
        """
        standing = self._nodes.get((node, key_id))
        if standing is None:
            registered = self._keys_of(node).get(key_id)
            if self.node(node) is None:
                raise RegistryError(f"there is no node {node}; known are {', '.join(self.node_names) or 'none'}")
            if registered is None:
                raise RegistryError(f"key {key_id[:16]}… is not registered for node {node}")
            standing = self._node_standing(node, key_id, registered)
        if standing.device != device:
            raise RegistryError(f"key {key_id[:16]}… of node {node} lives on {standing.device}, not on {device}")
        lapse = standing.lapse(height, time)
        if lapse:
            raise RegistryError(lapse)
        return standing.key

    def device_lapse(self, device: str, *, height: int, time: int) -> str:
        """Why no key on a device counts at this height and block time; empty when they may."""
        entry = self.device(device)
        if entry is None:
            return f"the registry has no device/{device}"
        if self.revocation(key_id(entry.identity)) is not None:
            return f"device {device} was revoked"
        lapse = entry.lapse(height, time)
        return f"device {device} {lapse}" if lapse else ""

    def tier(self, device: str, key_id: str) -> Tier:
        """How much is known of where a key is: what the device's latest custody statement says (requirement K-5)."""
        statement = self.statement(device)
        return "claimed" if statement is None else custody.tier_of(statement, key_id)

    # --- who acts for the network -------------------------------------------------------------------------

    def administrators_in_force(self, *, height: int, time: int) -> dict[str, PublicKey]:
        """Keys of the administrators who may sign, by name.

        When fewer are within their lifetimes than are needed, all count that are not revoked: the registry is never
        locked for good by time alone.
        """
        in_force = _in_force(self.administrator_standings, height, time)
        if len(in_force) >= self.channel.administrators_needed:
            return in_force
        return _not_revoked(self.administrator_standings)

    def registrars_in_force(self, *, height: int, time: int) -> dict[str, PublicKey]:
        """Keys of the registrars (CAs) that may add clients, by name."""
        return _in_force(self.registrar_standings, height, time)

    def centers_in_force(self, *, height: int, time: int) -> dict[str, PublicKey]:
        """Keys of the centers that may sign the header of a block of this height and time, by name."""
        return _in_force(self.center_standings, height, time)

    def centers_for(self, *, height: int, time: int, kinds: Iterable[str]) -> dict[str, PublicKey]:
        """Keys of the centers that may sign the header of a block with transactions of these `kinds`, by name.

        Where too few centers are in force, those that are not revoked sign blocks with registry transactions and no
        others: with these the administrators bring new keys.
        """
        in_force = self.centers_in_force(height=height, time=time)
        if len(in_force) >= self.channel.centers_needed or not _is_repair(kinds):
            return in_force
        return _not_revoked(self.center_standings)

    @cached_property
    def administrator_standings(self) -> dict[str, Standing]:
        """The administrators' keys and when they count, by name."""
        return {
            name: self._standing(f"administrator/{name}", entry.key, entry)
            for name in self._names("administrator")
            if (entry := self.administrator(name))
        }

    @cached_property
    def registrar_standings(self) -> dict[str, Standing]:
        """The registrars' keys and when they count, by name."""
        return {
            name: self._standing(f"registrar/{name}", entry.key, entry)
            for name in self._names("registrar")
            if (entry := self.registrar(name))
        }

    @cached_property
    def center_standings(self) -> dict[str, Standing]:
        """The centers' keys and when they count, by name."""
        return {
            name: self._standing(f"center/{name}", entry.key, entry, entry.device)
            for name in self._names("center")
            if (entry := self.center(name))
        }

    def devices_in_force(self, node: str, *, height: int, time: int) -> tuple[str, ...]:
        """The devices that hold a key of `node` which counts at this height and block time, sorted."""
        return tuple(sorted({each.device for each in self._node_standings(node) if not each.lapse(height, time)}))

    def lapses(self, node: str, *, height: int, time: int) -> dict[str, str]:
        """Why no key of `node` counts on a device, for each of its devices where that is so."""
        standings = sorted(self._node_standings(node), key=lambda each: each.lifetime.since)
        found = {each.device: each.lapse(height, time) for each in standings}  # the newest key speaks for the device
        in_force = self.devices_in_force(node, height=height, time=time)
        return {device: why for device, why in sorted(found.items()) if device not in in_force}

    def expiries(self) -> list[Expiry]:
        """When each key that is not revoked ends, soonest first (requirement K-13)."""
        found = [
            Expiry(standing.holder, standing.key.id, standing.device, standing.lifetime.last, standing.lifetime.until)
            for standing in self._all_standings()
            if not standing.revoked
        ]
        return sorted(found, key=lambda each: (each.until, each.last, each.holder, each.key_id))

    # --- what does not depend on height and time ----------------------------------------------------------

    def _standing(self, holder: str, spki: bytes, lifetime: Lifetime, device: str = "") -> Standing:
        key = PublicKey.load(spki)
        revoked = weak = ""
        device_lifetime = None
        if self.revocation(key.id) is not None:
            revoked = f"key {key.id[:16]}… of {holder} was revoked"
        if device:
            device_lifetime = on = self.device(device)
            weak = self._weakness(holder, key.id, device)
            if on is None:
                weak = f"the registry has no device/{device}, on which key {key.id[:16]}… of {holder} lives"
            elif not revoked and self.revocation(key_id(on.identity)) is not None:
                revoked = f"device {device}, where key {key.id[:16]}… of {holder} lives, was revoked"
        return Standing(holder, key, lifetime, revoked, weak, device, device_lifetime)

    def _weakness(self, holder: str, key: str, device: str) -> str:
        least = self.channel.least_tier
        if least == "claimed":
            return ""
        tier = self.tier(device, key)
        if reaches(tier, least):
            return ""
        return f"key {key[:16]}… of {holder} on {device} is {tier}, the channel asks for {least} at least"

    def _keys_of(self, node: str) -> dict[str, NodeKey]:
        """The keys of a node by their ids; none where there is no such node."""
        entry = self.node(node)
        return {key_id(each.key): each for each in entry.keys} if entry else {}

    def _node_standing(self, node: str, key: str, registered: NodeKey) -> Standing:
        standing = self._nodes.get((node, key))
        if standing is None:
            standing = self._standing(f"node/{node}", registered.key, registered, registered.device)
            self._nodes[node, key] = standing
        return standing

    def _node_standings(self, node: str) -> list[Standing]:
        return [self._node_standing(node, key, each) for key, each in self._keys_of(node).items()]

    def _all_standings(self) -> Iterator[Standing]:
        for standings in (self.administrator_standings, self.registrar_standings, self.center_standings):
            yield from standings.values()
        for device in self.devices:
            standing = self._standing(f"device/{device.name}", device.identity, device)
            yield Standing(standing.holder, standing.key, device, standing.revoked, "", device.name)
        for name in self.node_names:
            yield from self._node_standings(name)
        for name in self._names("client"):
            standing_of_client = self.client_standing(name)
            if standing_of_client is not None:
                yield standing_of_client


def _in_force(standings: Mapping[str, Standing], height: int, time: int) -> dict[str, PublicKey]:
    return {name: standing.key for name, standing in standings.items() if not standing.lapse(height, time)}


def _not_revoked(standings: Mapping[str, Standing]) -> dict[str, PublicKey]:
    return {name: standing.key for name, standing in standings.items() if not standing.revoked}


def _is_repair(kinds: Iterable[str]) -> bool:
    """Whether a block holds registry transactions and nothing else."""
    contracts = {kind.partition(".")[0] for kind in kinds}
    return contracts == {"registry"}
