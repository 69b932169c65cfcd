"""When the keys end that the network itself works with. Those of clients are left out: there may be very many."""

from collections.abc import Iterator
from typing import Final

from ledger.registry_view import RegistryView
from ledger.standing import Expiry
from protocol.canonical import MAX_INTEGER
from protocol.keys import key_id
from protocol.registry import Lifetime

DAY_MILLISECONDS: Final = 24 * 3600 * 1000


def network_keys(registry: RegistryView) -> list[Expiry]:
    """The keys of administrators, registrars, centers, devices and nodes that are not revoked, soonest first.

    Requirement K-13.
    """
    found = [each for each in _all(registry) if registry.revocation(each.key_id) is None]
    return sorted(found, key=lambda each: (each.until, each.last, each.holder, each.key_id))


def is_replaced(expiry: Expiry) -> bool:
    """Whether a successor is announced: the end of this key is no trouble."""
    return expiry.last != MAX_INTEGER


def days_left(expiry: Expiry, time: int) -> float | None:
    """How many days the key counts yet from the block time `time` (ms) on, negative when it has expired.

    None where it never expires.
    """
    return None if expiry.until == MAX_INTEGER else (expiry.until - time) / DAY_MILLISECONDS


def seconds_left(registry: RegistryView, time: int) -> Iterator[tuple[str, str, float]]:
    """Holder, key id and the seconds of block time that each key counts yet, for those that expire at all."""
    for each in network_keys(registry):
        if each.until != MAX_INTEGER:
            yield each.holder, each.key_id, (each.until - time) / 1000


def _all(registry: RegistryView) -> Iterator[Expiry]:
    for standings in (registry.administrator_standings, registry.registrar_standings, registry.center_standings):
        for each in standings.values():
            yield Expiry(each.holder, each.key.id, each.device, each.lifetime.last, each.lifetime.until)
    for device in registry.devices:
        yield _expiry(f"device/{device.name}", device.identity, device.name, device)
    for name in registry.node_names:
        node = registry.node(name)
        for key in node.keys if node else ():
            yield _expiry(f"node/{name}", key.key, key.device, key)


def _expiry(holder: str, spki: bytes, device: str, lifetime: Lifetime) -> Expiry:
    return Expiry(holder, key_id(spki), device, lifetime.last, lifetime.until)
