"""Which keys count no more, since when and why: read from the registry as the chain tells it (requirement K-14).

The list of revoked certificates is made from this. Nothing here depends on what this service remembers: after the
loss of everything but the chain, the same keys are retired at the same times.
"""

import threading
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from ledger.entry_history import Version, block_time, versions
from ledger.store import ChainStore
from protocol.canonical import MAX_INTEGER, KeyId
from protocol.keys import key_id
from protocol.registry import Client, Device, Lifetime, Node, Reason, Revocation, decode_entry

SUPERSEDED: Final[Reason] = "superseded"
REMOVED: Final[Reason] = "cessation-of-operation"


class Retired(msgspec.Struct, frozen=True):
    """A key that counts no more, from a block time on (milliseconds since the epoch)."""

    key: KeyId
    time: int
    reason: Reason
    suspected: int = 0
    """From when on others may have had the key; zero where nobody said so."""
    until: int = MAX_INTEGER
    """When the key would have ended anyhow. A revoked key stays on every list."""
    holder: str = ""
    """The registry entry that held it."""


class RetiredKeys:
    """All retired keys of clients, nodes and devices; reads what is new in the chain when it is asked. Blocks."""

    def __init__(self, store: ChainStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._height = -1
        self._held: dict[str, dict[KeyId, Lifetime]] = {}
        self._identities: dict[str, set[KeyId]] = {}
        """Every identity key that a device name ever had."""
        self._places: dict[KeyId, str] = {}
        """On which device each node key lives."""
        self._gone: dict[KeyId, Retired] = {}
        self._revoked: dict[KeyId, Retired] = {}

    def at(self, height: int) -> dict[KeyId, Retired]:
        """The keys that count no more in the block after `height`, by id.

        A revocation says more than a replacement and stands in its place.
        """
        with self._lock:
            self._catch_up(height)
            return {**self._gone, **self._run_out(height), **self._on_revoked_devices(), **self._revoked}

    def find_earlier(self, key: KeyId, height: int) -> Retired | None:
        """A key that counted no more when the chain was last looked at: at `height` if it never was.

        For keys that were never seen here: whoever registers many clients does not read the chain for each.
        """
        with self._lock:
            if self._height < 0:
                self._catch_up(height)
            return self._revoked.get(key) or self._gone.get(key)

    def _catch_up(self, height: int) -> None:
        if height <= self._height:
            return
        try:
            for kind in ("device", "node", "client", "revocation"):
                for version in versions(self._store, kind, after=self._height):
                    if version.height <= height:
                        self._note(version)
        except BaseException:
            self._forget()  # what was read in part must not be read twice: a key in force would look replaced
            raise
        self._height = height

    def _note(self, version: Version) -> None:
        entry = None if version.entry is None else decode_entry(version.key, version.entry)
        match entry:
            case Revocation(name=name, holder=holder, reason=reason, suspected=suspected):
                key = KeyId(name)
                self._revoked.setdefault(key, Retired(key, version.time, reason, suspected, holder=holder))
                return
            case Client(key=spki):
                keys = {key_id(spki): _lifetime(entry)}
            case Node(keys=registered):
                keys = {key_id(each.key): _lifetime(each) for each in registered}
                self._places.update((key_id(each.key), each.device) for each in registered)
            case Device(identity=spki):
                keys = {key_id(spki): _lifetime(entry)}
                self._identities.setdefault(version.key.partition("/")[2], set()).add(key_id(spki))
            case _:
                keys = {}
        before = self._held.get(version.key, {})
        reason = SUPERSEDED if keys else REMOVED
        for key, lifetime in before.items():
            if key not in keys:
                gone = Retired(key, version.time, reason, until=lifetime.until, holder=version.key)
                self._gone.setdefault(key, gone)
        self._held[version.key] = keys

    def _run_out(self, height: int) -> dict[KeyId, Retired]:
        """Node keys whose successor alone counts, since the last block that they counted in: the overlap is over."""
        return {
            key: Retired(key, block_time(self._store, lifetime.last), SUPERSEDED, until=lifetime.until, holder=each)
            for each, keys in self._held.items()
            if each.startswith("node/")
            for key, lifetime in keys.items()
            if lifetime.last <= height
        }

    def _on_revoked_devices(self) -> dict[KeyId, Retired]:
        """Every node key on a device whose identity key is revoked goes with it."""
        lost = {
            device: self._revoked[identity]
            for device, identities in self._identities.items()
            for identity in identities & self._revoked.keys()
        }
        return {
            key: msgspec.structs.replace(lost[device], key=key)
            for key, device in self._places.items()
            if device in lost
        }


def listed(retired: Iterable[Retired], *, now: int, kept: int) -> Iterator[Retired]:
    """Those that belong on a list of revoked certificates at `now`: until `kept` ms after they would have ended.

    RFC 5280, section 3.3: an entry stays until a list was issued after the certificate's own end.
    """
    return (each for each in retired if each.until > now - kept)


def _lifetime(of: Lifetime) -> Lifetime:
    return Lifetime(since=of.since, last=of.last, not_before=of.not_before, until=of.until)
