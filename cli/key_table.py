"""All keys of a network as its registry has them: who holds them, where, how long they count, and whether they do."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from ledger import expiring
from ledger.errors import RegistryError
from ledger.registry_view import RegistryView
from ledger.standing import Expiry
from protocol.canonical import MAX_INTEGER
from protocol.keys import key_id
from protocol.registry import Device, Lifetime, Node, Revocation

IN_FORCE: Final = "in force"
COLUMNS: Final = ["holder", "key", "device", "tier", "heights", "days", "state"]


class KeyRow(msgspec.Struct, frozen=True):
    """One key; `since` and `last` are heights, `not_before` and `until` milliseconds of block time."""

    holder: str
    key: str
    device: str
    tier: str
    """Empty for keys that live on no device."""
    since: int
    last: int | None
    not_before: int
    until: int | None
    days: float | None
    """Until it expires, by block time; None where it never does."""
    state: str

    def cells(self) -> list[object]:
        """As people read it."""
        heights = f"{self.since} on" if self.last is None else f"{self.since} to {self.last}"
        days = "" if self.days is None else f"{self.days:.0f}"
        return [self.holder, f"{self.key[:12]}…", self.device, self.tier, heights, days, self.state]

    def document(self) -> dict[str, Any]:
        """As `--json` shows it."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found | {"days": None if self.days is None else round(self.days, 2)}


def expiring_soon(found: Iterable[KeyRow], days: int) -> list[KeyRow]:
    """Those in force, without a successor, that expire within so many days (requirement K-13)."""
    return [
        row for row in found if row.days is not None and row.days <= days and row.last is None and row.state == IN_FORCE
    ]


def warning(row: KeyRow) -> str:
    """A line that says so, and what to do."""
    kind, _, name = row.holder.partition("/")
    advice = {
        "device": f"hsm-endorser device replace {name}",
        "client": f"hsm-endorser client renew {name}",
    }.get(kind, f"hsm-endorser key rotate {row.holder}")
    return f"{row.holder} (key {row.key[:16]}…) expires in {row.days:.1f} days: {advice} --network DIR"


class At(msgspec.Struct, frozen=True):
    """The registry, and the height and block time (ms) for which it is asked."""

    registry: RegistryView
    height: int
    time: int


class Held(msgspec.Struct, frozen=True):
    """A key in an entry; `device` is empty for none."""

    holder: str
    spki: bytes
    lifetime: Lifetime
    device: str


def rows(registry: RegistryView, *, height: int, time: int, clients: bool = True) -> list[KeyRow]:
    """The keys in the registry, at this height and block time (ms), in the order of their holders."""
    at = At(registry, height, time)
    found = [_row(at, each) for each in _held(registry, clients=clients)]
    known = {row.key for row in found}
    gone = [_revoked(each) for each in registry.revocations if each.name not in known]
    return sorted([*found, *gone], key=lambda row: (row.holder.partition("/")[0], row.holder, row.since, row.key))


def _held(registry: RegistryView, *, clients: bool) -> Iterator[Held]:
    for standings in (registry.administrator_standings, registry.registrar_standings, registry.center_standings):
        for each in standings.values():
            yield Held(each.holder, each.key.spki, each.lifetime, each.device)
    for device in registry.devices:
        yield Held(f"device/{device.name}", device.identity, device, device.name)
    for name in registry.node_names:
        for key in (registry.node(name) or Node(name, ())).keys:
            yield Held(f"node/{name}", key.key, key, key.device)
    for path in registry.entries.under("client") if clients else ():
        entry = registry.client_entry(path.partition("/")[2])
        if entry:
            yield Held(path, entry.key, entry, "")


def _row(at: At, held: Held) -> KeyRow:
    key, lifetime = key_id(held.spki), held.lifetime
    ends = Expiry(held.holder, key, held.device, lifetime.last, lifetime.until)
    return KeyRow(
        holder=held.holder,
        key=key,
        device=held.device,
        tier=at.registry.tier(held.device, key) if held.device else "",
        since=lifetime.since,
        last=_or_none(lifetime.last),
        not_before=lifetime.not_before,
        until=_or_none(lifetime.until),
        days=expiring.days_left(ends, at.time),
        state=_state(at, held, key),
    )


def _state(at: At, held: Held, key: str) -> str:
    registry = at.registry
    revocation = registry.revocation(key)
    if revocation is not None:
        return f"revoked: {revocation.reason}"
    entry: Device | None = registry.device(held.device) if held.device else None
    of_device = registry.revocation(key_id(entry.identity)) if entry else None
    if of_device is not None:
        return f"its device was revoked: {of_device.reason}"
    lapse = held.lifetime.lapse(at.height, at.time)
    if lapse:
        return lapse
    kind, _, name = held.holder.partition("/")
    if kind == "node":
        try:
            registry.node_key(name, key, device=held.device, height=at.height, time=at.time)
        except RegistryError as error:
            return str(error)
    return (registry.center_standings[name].lapse(at.height, at.time) if kind == "center" else "") or IN_FORCE


def _revoked(revocation: Revocation) -> KeyRow:
    """A revoked key that no entry holds any more."""
    return KeyRow(revocation.holder, revocation.name, "", "", 0, None, 0, None, None, f"revoked: {revocation.reason}")


def _or_none(value: int) -> int | None:
    return None if value == MAX_INTEGER else value
